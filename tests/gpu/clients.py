"""Servers that share a GPU, and the clients that keep them busy, each in a process of its own."""

import asyncio
import contextlib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from app.bench.load import build_request, run_clients
from app.bench.local_server import run_server


def serve(flags: Sequence[str], photos: Sequence[bytes], connections: int, processes: int, seconds: float) -> float:
    """Returns the images/s of so many servers together, each asked by its share of the clients."""
    share = max(1, connections // processes)
    flags = [*flags, f"--max-queue={4 * share + 64}", "--log-level=warning"]
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(run_server(flags)) for _ in range(processes)]
        # by spawn: what a GPU has been used by cannot be forked
        clients = stack.enter_context(ProcessPoolExecutor(processes, get_context("spawn")))
        for duration in (1.0, seconds):  # the first is to warm up
            counts = list(clients.map(_ask, ports, *zip(*[(photos, duration, share)] * processes, strict=True)))
    return sum(counts) / seconds


def _ask(port: int, photos: Sequence[bytes], seconds: float, connections: int) -> int:
    requests = [build_request(photo) for photo in photos]
    seen = asyncio.run(run_clients(port, requests, seconds, connections))
    if set(seen.statuses) != {200}:
        raise RuntimeError(f"the server answered {dict(seen.statuses)}")
    return len(seen.seconds)
