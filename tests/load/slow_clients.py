"""Attacks a server with slowhttptest while a regular client sends it images: `make slow-clients`."""

import argparse
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Sequence

import httpx

from app.bench.bench import draw_photo
from app.bench.local_server import read_samples, run_server
from tests.load.metrics import read_metrics

_COMMON = ["-c", "1000", "-r", "200", "-i", "10", "-p", "3"]  # connections, new ones a second, pauses, probe's timeout
_ATTACKS: dict[str, tuple[str, Sequence[str]]] = {
    "none": ("/", []),
    "slow heads (slowloris)": ("/", ["-H", "-x", "24"]),
    "slow bodies": ("/detect", ["-B", "-t", "POST", "-s", "8192", "-x", "10"]),
    "slow readers": ("/page/results.js", ["-X", "-w", "512", "-y", "1024", "-n", "5", "-z", "32", "-k", "10"]),
}
_FLAGS = ["--body-timeout-seconds=20", "--answer-timeout-seconds=20", "--log-level=warning"]  # shorter than an attack


def main() -> None:
    """Prints, for each attack, the regular client's latency and the server's connections, rejections and memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=30, help="of each attack; default: %(default)s")
    options = parser.parse_args()
    if shutil.which("slowhttptest") is None:
        raise SystemExit("slowhttptest is not installed: on Debian, apt-get install slowhttptest")
    with run_server(_FLAGS) as port:
        print("| slow clients | responses | not 200 | p50 ms | p95 ms | max ms | most connections | refused | MiB |")
        print("|---|---|---|---|---|---|---|---|---|")
        for name, (path, attack) in _ATTACKS.items():
            before = count_rejections(port)
            command = ["slowhttptest", *_COMMON, "-l", str(options.seconds), *attack]
            attacker = (
                subprocess.Popen([*command, "-u", f"http://127.0.0.1:{port}{path}"], stdout=subprocess.DEVNULL)
                if attack
                else None
            )
            seconds, failures, connections = post_images(port, options.seconds)
            if attacker:
                attacker.terminate()
                attacker.wait()
            rejections = count_rejections(port) - before
            milliseconds = sorted(1000 * each for each in seconds)
            print(
                f"| {name} | {len(seconds)} | {failures} | {statistics.median(milliseconds):.0f} "
                f"| {milliseconds[int(len(milliseconds) * 0.95)]:.0f} | {milliseconds[-1]:.0f} | {connections:.0f} "
                f"| {', '.join(f'{reason} {count}' for reason, count in rejections.items())} "
                f"| {read_metrics(port)['process_resident_memory_bytes'] / 2**20:.0f} |",
                flush=True,
            )


def post_images(port: int, duration: float) -> tuple[list[float], int, float]:
    """Posts an image again and again, each on a new connection; returns times, failures and the most connections."""
    photo = draw_photo(640, 480)
    seconds, failures, connections = [], 0, 0.0
    end = time.perf_counter() + duration
    while (started := time.perf_counter()) < end:
        try:
            response = httpx.post(f"http://127.0.0.1:{port}/detect", content=photo, timeout=30)
            failures += response.status_code != 200
        except httpx.HTTPError:
            failures += 1
        seconds.append(time.perf_counter() - started)
        connections = max(connections, read_metrics(port)["centernet_connections"])
        time.sleep(0.1)
    return seconds, failures, connections


def count_rejections(port: int) -> Counter[str]:
    """Returns the requests that the server has refused, by reason."""
    counts: Counter[str] = Counter()
    for sample in read_samples(port):
        if sample.name == "centernet_rejections_total":
            counts[sample.labels["reason"]] += int(sample.value)
    return counts


if __name__ == "__main__":
    main()
