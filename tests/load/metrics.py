"""Reads a server's metrics."""

from collections import Counter

from app.bench.local_server import read_samples


def read_metrics(port: int) -> dict[str, float]:
    """Returns each metric's sum over its series, and the requests of /detect by status, as `status:200`."""
    values: Counter[str] = Counter()
    for sample in read_samples(port):
        values[sample.name] += sample.value
        if sample.name == "centernet_requests_total" and sample.labels["route"] == "/detect":
            values[f"status:{sample.labels['status']}"] += sample.value
    return values
