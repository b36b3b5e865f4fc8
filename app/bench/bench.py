"""`python -m app bench`: the cost of each part of a detection, the throughput limit, and what the server reaches."""

import argparse
import asyncio
import io
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel

from app.arguments import counts
from app.bench.load import ClientStats, build_request, run_clients
from app.bench.local_server import read_samples, run_server
from app.bench.operators import describe_operators, measure_operators
from app.bench.parts import measure_limit, measure_parts, measure_squares
from app.inference.arrangement import choose_arrangement
from app.inference.models import open_detector
from app.schemas import Arrangement
from app.settings import Settings, read_settings, warn_of_unknown_variables
from model.detector import Detector
from model.errors import UserError
from model.image import SUFFIXES, InvalidImage, quieten_decoders

_WARM_UP_SECONDS = 1.0
_CPU = "process_cpu_seconds_total"
_STAGES = ("read", "decode", "queue", "inference", "encode")


class Unusable(UserError):
    """The photos or the server cannot be measured; the message says why."""


class LoadResult(BaseModel):
    """The performance with closed-loop clients on the same machine, each with one request in flight."""

    connections: int
    images_per_second: float
    of_limit: float
    p50_ms: float
    p99_ms: float
    server_cpu_ms_per_image: float
    stages_ms: dict[str, float]  # means, as reported by the server; "rest" is the remaining time that clients see


class Report(BaseModel):
    """All measurements."""

    model: str
    provider: str
    photos: list[str]
    parts_ms: dict[str, float]  # measured one after the other, in one thread unless the name says otherwise
    square_ratio: (
        float | None
    )  # inference time with square inputs / in the photos' shapes; None if the model has only one shape
    arrangement: Arrangement
    limit_images_per_second: float
    ready_seconds: float
    memory_mib: float
    loads: list[LoadResult]


def main(arguments: Sequence[str]) -> int:
    """Runs the benchmark and prints the report; returns the exit status: 2 for unusable arguments."""
    parser = argparse.ArgumentParser(
        "centernet-serve bench",
        description="Measures the cost of a detection on this machine, and the server's throughput and latency.",
        epilog="Further flags are passed to the server, such as --model, --instances and --max-batch.",
    )
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="photos to send; default: a generated one, 900 x 600"
    )
    parser.add_argument(
        "--connections", type=counts, default="1,8,32", help="numbers of concurrent clients, separated by commas"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each measurement")
    parser.add_argument("--operators", action="store_true", help="only profile the time per operator type")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements as JSON")
    parsed, flags = parser.parse_known_args(arguments)
    quieten_decoders()
    try:
        settings = read_settings(flags)
        warn_of_unknown_variables("api_key")
        if parsed.operators:
            operators = _profile(settings, _read_photos(parsed.photos))
            print(describe_operators(operators))
            if parsed.json:
                parsed.json.write_text(json.dumps(operators, indent=2) + "\n")
            return 0
        report = run(settings, flags, _read_photos(parsed.photos), parsed.connections, parsed.seconds)
    except UserError as error:
        print(f"centernet-serve bench: {error}", file=sys.stderr)
        return 2
    print(describe(report))
    if parsed.json:
        parsed.json.write_text(report.model_dump_json(indent=2))
    return 0


def run(
    settings: Settings, flags: Sequence[str], photos: dict[str, bytes], connections: Sequence[int], seconds: float
) -> Report:
    """Measures the parts, the limit and a server with these `flags`; raises what `Detector` raises, and `Unusable`."""
    for name in ("metrics_port", "api_keys", "api_keys_file", "address_requests_per_minute"):
        if getattr(settings, name):
            raise Unusable(f"{name} must not be set for the server to measure; CENTERNET_{name.upper()}= unsets it")
    detector = open_detector(settings.find_models()[0], settings)
    metadata = detector.metadata
    blank = np.zeros((*detector.shapes[-1], 3), np.uint8)
    arrangement = choose_arrangement(detector, blank, settings)
    try:
        parts = measure_parts(detector, list(photos.values()), settings)
        square_ratio = measure_squares(detector, list(photos.values()), settings)
    except InvalidImage as error:
        raise Unusable(f"one of the photos cannot be used: {error}") from error
    limit = measure_limit(detector, list(photos.values()), arrangement, seconds)
    requests = [build_request(data) for data in photos.values()]
    loads = []
    started = time.perf_counter()
    with run_server([*flags, f"--max-queue={max(settings.max_queue, *connections)}", "--log-level=warning"]) as port:
        ready_seconds = time.perf_counter() - started
        asyncio.run(run_clients(port, requests, _WARM_UP_SECONDS, max(connections)))
        for count in connections:
            before = _sum_samples(port)
            stats = asyncio.run(run_clients(port, requests, seconds, count))
            after = _sum_samples(port)
            loads.append(_summarise(count, stats, seconds, limit, before, after))
    return Report(
        model=metadata.name,
        provider=detector.provider,
        photos=list(photos),
        parts_ms=parts,
        square_ratio=square_ratio,
        arrangement=arrangement,
        limit_images_per_second=limit,
        ready_seconds=ready_seconds,
        memory_mib=after["process_resident_memory_bytes"] / 2**20,
        loads=loads,
    )


def _profile(settings: Settings, photos: dict[str, bytes]) -> dict[str, float]:
    detector = Detector(settings.find_models()[0], "cpu")
    return measure_operators(detector.path, detector.prepare(next(iter(photos.values()))).pixels)


def _sum_samples(port: int) -> Mapping[str, float]:
    """Returns a server's samples summed by name, and the seconds by stage.

    Missing samples are 0: the CPU time is not available on every platform.
    """
    values: defaultdict[str, float] = defaultdict(float)
    for sample in read_samples(port):
        is_stage = sample.name == "centernet_stage_seconds_sum"
        values[sample.labels["stage"] if is_stage else sample.name] += sample.value
    return values


def describe(report: Report) -> str:
    """Returns the report as text."""
    chosen = report.arrangement
    lines = [
        f"{report.model} on {report.provider}, {len(report.photos)} photos",
        "",
        "| part | ms |",
        "|---|---:|",
        *(f"| {name} | {milliseconds:.3f} |" for name, milliseconds in report.parts_ms.items()),
        "",
        *(
            [f"with square inputs, inference would take {report.square_ratio:.2f} x as long"]
            if report.square_ratio
            else []
        ),
        f"limit without HTTP: {report.limit_images_per_second:.1f} images/s"
        f" (--instances {chosen.instances} --max-batch {chosen.max_batch}, {chosen.threads} threads each)",
        f"ready after {report.ready_seconds:.2f} s; {report.memory_mib:.0f} MiB of memory at the end",
        "",
        "| connections | images/s | of the limit | p50 ms | p99 ms | server's CPU ms per image |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {load.connections} | {load.images_per_second:.1f} | {load.of_limit:.0%} | {load.p50_ms:.1f}"
        f" | {load.p99_ms:.1f} | {load.server_cpu_ms_per_image:.2f} |"
        for load in report.loads
    ]
    stages = report.loads[0].stages_ms
    lines += [
        "",
        f"| connections | {' | '.join(f'{stage} ms' for stage in stages)} |",
        f"|---:|{'---:|' * len(stages)}",
        *(
            f"| {load.connections} | {' | '.join(f'{milliseconds:.2f}' for milliseconds in load.stages_ms.values())} |"
            for load in report.loads
        ),
    ]
    return "\n".join(lines)


def _summarise(
    connections: int,
    stats: ClientStats,
    seconds: float,
    limit: float,
    before: Mapping[str, float],
    after: Mapping[str, float],
) -> LoadResult:
    if set(stats.statuses) != {200}:
        raise Unusable(f"the server responded {dict(stats.statuses)} to {connections} connections: see its log above")
    images = len(stats.seconds)
    spent_ms = {name: 1000 * (after[name] - before[name]) / images for name in (_CPU, *_STAGES)}
    cpu = spent_ms.pop(_CPU)
    rest = 1000 * statistics.mean(stats.seconds) - sum(spent_ms.values())
    speed = images / seconds
    percentiles = statistics.quantiles(stats.seconds, n=100) if images > 1 else stats.seconds * 99
    return LoadResult(
        connections=connections,
        images_per_second=speed,
        of_limit=speed / limit,
        p50_ms=1000 * percentiles[49],
        p99_ms=1000 * percentiles[98],
        server_cpu_ms_per_image=cpu,
        stages_ms=spent_ms | {"rest": rest},
    )


def _read_photos(folder: Path | None) -> dict[str, bytes]:
    """Returns up to 100 photos by name; raises `Unusable` if the folder has none."""
    if folder is None:
        return {"drawn": draw_photo()}
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise Unusable(f"there is no photo in {folder}: name a folder of {', '.join(sorted(SUFFIXES))}")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files[:100]}


def draw_photo(width: int = 900, height: int = 600) -> bytes:
    """Returns a generated JPEG."""
    coarse = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()
