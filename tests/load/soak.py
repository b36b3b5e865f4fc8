"""Overloads a server, then runs it at full load for long: `make soak`. Exits with 1 if a figure is out of bounds."""

import argparse
import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np

from app.bench.bench import draw_photo
from app.bench.load import ClientStats, Connection, build_request, run_clients
from app.bench.local_server import run_server
from tests.load.metrics import read_metrics

_CLIENTS = 16
_OVERLOAD = 10  # times the capacity
_TIMEOUT_SECONDS = 5.0  # of each request during overload
_DISCONNECTS = 0.1  # share of the requests whose client disconnects before the response


async def send_closed_loop(port: int, request: bytes, seconds: float, disconnects: float) -> ClientStats:
    """Closed-loop load: each client waits for its response, or disconnects, in a share of `disconnects`."""
    randoms = [np.random.default_rng(number) for number in range(_CLIENTS)]

    async def send(number: int, connection: Connection, request: bytes, seen: ClientStats) -> None:
        disconnects_early = randoms[number].random() < disconnects
        await (connection.disconnect(request, seen) if disconnects_early else connection.post(request, seen))

    return await run_clients(port, [request], seconds, _CLIENTS, send)


async def send_open_loop(port: int, request: bytes, seconds: float, rate: float) -> ClientStats:
    """Open-loop load: `rate` requests a second, whether the earlier ones are answered or not."""
    seen, idle, tasks = ClientStats(), list[Connection](), set[asyncio.Task[None]]()

    async def post() -> None:
        connection = idle.pop() if idle else Connection(port)
        await connection.post(request, seen)
        idle.append(connection)

    started = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
        task = asyncio.create_task(post())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    for connection in idle:
        connection.close()
    return seen


@contextlib.contextmanager
def serving_on_half_the_cpus(flags: Sequence[str]) -> Iterator[int]:
    """Runs a server on one half of the CPUs and this process on the other; gives the server's port."""
    cpus = sorted(os.sched_getaffinity(0))
    half = len(cpus) // 2
    os.sched_setaffinity(0, cpus[half:])
    try:
        with run_server(flags) as port:
            os.sched_setaffinity(0, cpus[:half] or cpus)
            yield port
    finally:
        os.sched_setaffinity(0, cpus)


def measure_goodput(seen: ClientStats, started: float, seconds: float) -> float:
    """Returns the responses a second that came within the timeout while requests were sent, up to the last one."""
    moments = [moment for moment in seen.moments if moment <= started + seconds]
    late = sum(each > _TIMEOUT_SECONDS for each in seen.seconds[: len(moments)])
    return (len(moments) - late) / (moments[-1] - started)


def percentile(values: list[float], percent: int) -> float:
    """Returns the value below which `percent` of the values lie; 0 for fewer than two values."""
    return statistics.quantiles(values, n=100)[percent - 1] if len(values) > 1 else 0.0


def main() -> None:
    """Measures capacity, goodput under overload, and a long run; prints the figures and exits with their verdict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="of the long run")
    parser.add_argument("--rounds", type=int, default=24, help="of full load, then overload")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of the two in each round")
    options, arguments = parser.parse_known_args()
    photo = draw_photo()
    request, request_with_timeout = build_request(photo), build_request(photo, f"?timeout={_TIMEOUT_SECONDS}")
    with serving_on_half_the_cpus(["--log-level=warning", *arguments]) as port:
        asyncio.run(send_closed_loop(port, request, 3, 0))
        capacities, goodputs, seen = [], [], ClientStats()
        for _ in range(options.rounds):  # alternating, as a shared machine's speed drifts
            started = time.perf_counter()
            full = asyncio.run(send_closed_loop(port, request, options.seconds, 0))
            capacities.append(measure_goodput(full, started, options.seconds))
            started = time.perf_counter()
            over = asyncio.run(send_open_loop(port, request_with_timeout, options.seconds, _OVERLOAD * capacities[-1]))
            goodputs.append(measure_goodput(over, started, options.seconds))
            seen.statuses += over.statuses
            seen.seconds += over.seconds
            print(f"capacity {capacities[-1]:.1f} images/s, goodput {goodputs[-1]:.1f}", flush=True)
        share = sum(goodputs) / sum(capacities)
        print(
            f"{_OVERLOAD} x capacity: goodput {share:.3f} of {statistics.mean(capacities):.1f} images/s;"
            f" responses by status {dict(seen.statuses)}; latency of 200 p50 {percentile(seen.seconds, 50):.3f} s,"
            f" p99 {percentile(seen.seconds, 99):.3f} s with a timeout of {_TIMEOUT_SECONDS:g} s",
            flush=True,
        )

        before = read_metrics(port)
        first = asyncio.run(send_closed_loop(port, request, 60, _DISCONNECTS))
        early = read_metrics(port)
        rest = asyncio.run(send_closed_loop(port, request, 60 * options.minutes - 60, _DISCONNECTS))
        until = time.monotonic() + 10
        while (after := read_metrics(port))["centernet_requests_in_flight"] and time.monotonic() < until:
            time.sleep(0.1)
    memory = "process_resident_memory_bytes"
    growth = after[memory] / early[memory] - 1
    counted = {
        status: int(after[f"status:{status}"] - before[f"status:{status}"]) for status in (200, 499, 500, 503, 504)
    }
    statuses = first.statuses + rest.statuses
    disconnected = first.disconnected + rest.disconnected
    print(
        f"{options.minutes:g} minutes: responses by status {dict(statuses)}, {disconnected} clients disconnected;"
        f" the server counted {counted}, {int(after['centernet_requests_in_flight'])} still in flight;"
        f" memory {early[memory] / 2**20:.0f} MiB after a minute, {100 * growth:+.1f} % at the end"
    )
    agree = statuses[200] <= counted[200] <= statuses[200] + disconnected
    has_passed = (
        share >= 0.95
        and seen.statuses[504] + seen.statuses[500] + seen.statuses[0] == 0
        and growth < 0.02
        and not after["centernet_requests_in_flight"]
        and agree
        and set(statuses) == {200}
    )
    print("PASSED" if has_passed else "FAILED")
    raise SystemExit(not has_passed)


if __name__ == "__main__":
    main()
