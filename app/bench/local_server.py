"""Runs a server in a separate process on this machine, for measurements."""

import contextlib
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import IO

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from model.errors import UserError

_START_TIMEOUT_SECONDS = 600  # TensorRT builds its engines at startup


class NotServing(UserError):
    """The server did not start or become ready; its log says why."""


@contextlib.contextmanager
def run_server(flags: Sequence[str], log: IO[bytes] | None = None) -> Iterator[int]:
    """Runs a server with these flags and yields its port once it is ready; raises `NotServing`.

    `log` receives the server's standard error.
    """
    with subprocess.Popen(
        [sys.executable, "-m", "app", *flags, "--host=127.0.0.1", "--port=0"],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise NotServing("the server did not start")
        try:
            port = int(line.rsplit(":", 1)[1])
            until = time.monotonic() + _START_TIMEOUT_SECONDS
            while not _is_successful(port, "/health/ready"):
                if not _is_successful(port, "/health/live") or time.monotonic() > until:
                    raise NotServing("the server does not become ready")
                time.sleep(0.05)  # more frequent polling would slow the start down
            yield port
        finally:
            server.terminate()


def _is_successful(port: int, path: str) -> bool:
    try:
        _get(port, path)
    except urllib.error.HTTPError:
        return False
    return True


def read_samples(port: int) -> list[Sample]:
    """Returns the samples of a server's metrics."""
    text = _get(port, "/metrics").decode()
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def _get(port: int, path: str) -> bytes:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # HTTP_PROXY would apply even to 127.0.0.1
    with direct.open(f"http://127.0.0.1:{port}{path}") as response:
        body: bytes = response.read()
    return body
