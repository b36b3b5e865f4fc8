"""The cost of a detection without HTTP: each part by itself, and the machine's maximum throughput."""

import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from app.answers import encode_answer
from app.inference.arrangement import time_runs
from app.pipeline import DetectionResult, build_filter
from app.schemas import Arrangement
from app.settings import Settings
from model.canvas import Canvases
from model.detector import Detector, move_to_photo

_PART_SECONDS = 0.5
_PAIRS = 7  # paired runs per shape


def measure_parts(detector: Detector, photos: Sequence[bytes], settings: Settings) -> dict[str, float]:
    """Returns the median milliseconds of each part of a detection, over the photos in turn."""
    canvases = [detector.prepare(photo, settings.max_pixels) for photo in photos]
    wanted = build_filter(settings, detector.metadata)
    [found] = detector.infer([canvases[0].pixels])
    letterbox = canvases[0].letterbox

    def finish(_: int = 0) -> DetectionResult:
        return DetectionResult(move_to_photo(wanted.select(found), letterbox), letterbox, 0, 0, 0)

    ready = finish()
    parts: dict[str, Callable[[int], object]] = {
        "decode and letterbox": lambda turn: detector.prepare(photos[turn % len(photos)], settings.max_pixels),
        f"inference of one, {settings.threads} threads": lambda turn: detector.infer(
            [canvases[turn % len(canvases)].pixels]
        ),
        "filter and move the boxes": finish,
        "write the JSON": lambda _: encode_answer(detector.metadata, ready, 0),
    }
    for part in parts.values():
        part(0)  # the first run is slow
    return {name: 1000 * time_runs(part, _PART_SECONDS) for name, part in parts.items()}


def measure_squares(detector: Detector, photos: Sequence[bytes], settings: Settings) -> float | None:
    """Returns the ratio of inference time with square inputs to that with the photos' own shapes.

    None if the model has only one shape.
    """
    if len(detector.shapes) == 1:
        return None
    shapes = Counter(detector.prepare(photo, settings.max_pixels).letterbox.shape for photo in photos)
    in_shapes = in_squares = 0.0
    for shape, count in shapes.items():
        blanks = [np.zeros((*each, 3), np.uint8) for each in (shape, detector.shapes[-1])]
        pairs = [[_time(detector.infer, [blank]) for blank in blanks] for _ in range(_PAIRS)]
        in_shape, in_square = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        in_shapes += count * in_shape
        in_squares += count * in_square
    return in_squares / in_shapes


def _time(infer: Callable[[Canvases], object], canvases: Canvases) -> float:
    started = time.perf_counter()
    infer(canvases)
    return time.perf_counter() - started


def measure_limit(detector: Detector, photos: Sequence[bytes], arrangement: Arrangement, seconds: float) -> float:
    """Returns the maximum throughput in images/s: each instance decodes and computes batches without HTTP."""

    def run_instance(instance: int) -> int:
        until, turn = time.perf_counter() + seconds, instance
        while time.perf_counter() < until:
            batch = [photos[(turn + offset) % len(photos)] for offset in range(arrangement.max_batch)]
            detector.infer([detector.prepare(photo).pixels for photo in batch], arrangement.session_threads)
            turn += len(batch)
        return turn - instance

    with ThreadPoolExecutor(arrangement.instances) as instances:
        started = time.perf_counter()
        return sum(instances.map(run_instance, range(arrangement.instances))) / (time.perf_counter() - started)
