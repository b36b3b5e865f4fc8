"""A server in a process of its own, and what it says of itself."""

import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import IO

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


@contextlib.contextmanager
def serving(arguments: list[str], log: IO[bytes] | None = None) -> Iterator[int]:
    """Runs `python -m app` and gives its port; the server writes into the file `log` if there is one."""
    command = [sys.executable, "-m", "app", "--port=0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        port = int(line.rsplit(":", 1)[1])
        try:
            while httpx.get(f"http://127.0.0.1:{port}/health/ready").status_code != 200:
                time.sleep(0.1)
            yield port
        finally:
            server.terminate()
