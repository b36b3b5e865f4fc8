"""Measures servers that share a GPU under load; each server and its clients have a process of their own."""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from app.bench.load import build_request, run_clients
from app.bench.local_server import run_server


def measure_servers(
    flags: Sequence[str], photos: Sequence[bytes], connections: int, processes: int, seconds: float
) -> float:
    """Returns the images/s of `processes` servers together, each under an equal share of the connections."""
    share = max(1, connections // processes)
    flags = [*flags, f"--max-queue={4 * share + 64}", "--log-level=warning"]
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(run_server(flags)) for _ in range(processes)]
        # spawn: a process that has used a GPU must not be forked
        clients = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn")))
        for duration in (1.0, seconds):  # the first one warms up
            counts = list(clients.map(_send, ports, *zip(*[(photos, duration, share)] * processes, strict=True)))
    return sum(counts) / seconds


def _send(port: int, photos: Sequence[bytes], seconds: float, connections: int) -> int:
    requests = [build_request(photo) for photo in photos]
    seen = asyncio.run(run_clients(port, requests, seconds, connections))
    if set(seen.statuses) != {200}:
        raise RuntimeError(f"the server answered {dict(seen.statuses)}")
    return len(seen.seconds)
