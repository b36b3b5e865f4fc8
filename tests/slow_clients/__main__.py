"""Attacks a server with slowhttptest while a regular client sends it images: `make slow-clients`."""

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

CONNECTIONS = 1000
SECONDS = 30
COMMON = ["-c", str(CONNECTIONS), "-r", "200", "-i", "10", "-l", str(SECONDS), "-p", "3"]
ATTACKS: dict[str, tuple[str, Sequence[str]]] = {
    "none": ("/", []),
    "slow heads (slowloris)": ("/", ["-H", "-x", "24"]),
    "slow bodies": ("/detect", ["-B", "-t", "POST", "-s", "8192", "-x", "10"]),
    "slow readers": ("/page/results.js", ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "10"]),
}


def main() -> None:
    """Prints, for each attack, the regular client's latency and the server's connections, rejections and memory."""
    if shutil.which("slowhttptest") is None:
        raise SystemExit("slowhttptest is not installed: on Debian, apt-get install slowhttptest")
    with serve() as (address, process), httpx.Client(base_url=address, timeout=60) as operator:
        print("| slow clients | responses | not 200 | p50 ms | p95 ms | max ms | most connections | refused | MB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, (path, options) in ATTACKS.items():
            before = read_metrics(operator)
            attacker = (
                subprocess.Popen(["slowhttptest", *COMMON, *options, "-u", address + path], stdout=subprocess.DEVNULL)
                if options
                else None
            )
            seconds, failures, connections = post_images(address, operator)
            if attacker:
                attacker.terminate()
                attacker.wait()
            after = read_metrics(operator)
            rejections = {
                reason: int(after[key] - before.get(key, 0))
                for key in after
                if (reason := "".join(re.findall(r'^centernet_rejections_total\{reason="(.*)"\}', key)))
                and after[key] != before.get(key, 0)
            }
            milliseconds = sorted(1000 * each for each in seconds)
            print(
                f"| {name} | {len(seconds)} | {failures} | {statistics.median(milliseconds):.0f} "
                f"| {milliseconds[int(len(milliseconds) * 0.95)]:.0f} | {milliseconds[-1]:.0f} | {connections:.0f} "
                f"| {', '.join(f'{reason} {count}' for reason, count in rejections.items())} "
                f"| {read_memory(process.pid):.0f} |",
                flush=True,
            )


@contextlib.contextmanager
def serve() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Runs a server; gives its address and its process."""
    # shorter than an attack
    timeouts = ["--body-timeout-seconds", "20", "--answer-timeout-seconds", "20"]
    command = [sys.executable, "-m", "app", "--port", "0", "--log-level", "warning", *timeouts]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the server did not start")
        address = line.split()[-1]
        while httpx.get(f"{address}/health/ready").status_code != 200:
            time.sleep(0.1)
        yield address, process
        process.terminate()


def post_images(address: str, operator: httpx.Client) -> tuple[list[float], int, float]:
    """Posts an image again and again, each on a new connection; returns times, failures and the most connections."""
    rng = np.random.default_rng(0)
    file = BytesIO()
    Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8)).resize((640, 480)).save(file, "JPEG")
    seconds, failures, connections = [], 0, 0.0
    end = time.perf_counter() + SECONDS
    while (started := time.perf_counter()) < end:
        try:
            response = httpx.post(f"{address}/detect", content=file.getvalue(), timeout=30)
            failures += response.status_code != 200
        except httpx.HTTPError:
            failures += 1
        seconds.append(time.perf_counter() - started)
        connections = max(connections, read_metrics(operator)["centernet_connections"])
        time.sleep(0.1)
    return seconds, failures, connections


def read_metrics(operator: httpx.Client) -> dict[str, float]:
    lines = operator.get("/metrics").text.splitlines()
    return {key: float(value) for key, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def read_memory(process: int) -> float:
    """Returns the resident memory of a process in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000


if __name__ == "__main__":
    main()
