"""What a server says of itself."""

from collections import Counter

import httpx
from prometheus_client.parser import text_string_to_metric_families


def read_metrics(port: int) -> dict[str, float]:
    """Sums of all series of a name; answers of /detect by status as `status:200`."""
    values: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics").text):
        for sample in family.samples:
            values[sample.name] += sample.value
            if sample.name == "centernet_requests_total" and sample.labels["route"] == "/detect":
                values[f"status:{sample.labels['status']}"] += sample.value
    return values
