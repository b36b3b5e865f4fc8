"""How a model is run: its number of instances, and their batch size and threads; measured, unless they are set."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.schemas import Arrangement
from app.settings import Settings
from model.canvas import Canvases
from model.detector import Detector

_MIN_GAIN = 1.05  # least factor in images/s that a larger batch must gain: it costs latency and memory
_MAX_BATCH = {"cpu": 8, "cuda": 32, "tensorrt": 32}  # largest that is tried: no CPU has been seen to gain beyond
_MAX_GAIN = {"cpu": 1.3, "cuda": 32.0, "tensorrt": 32.0}  # most that batches gain over single images, a factor
_TRIAL_SECONDS = 0.05
_QUICK_SECONDS = 0.005  # per image: below it, Python's overhead per image is much of the total
_TIE = 0.95  # above this ratio of images/s, a trial cannot tell two arrangements apart


def time_runs(
    work: Callable[[int], object],
    min_seconds: float,
    min_runs: int = 3,
    average: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Returns the seconds that `work` takes; it is called with the number of its run.

    By default the median of the runs, so that other load on the machine matters less.
    """
    seconds, until = list[float](), time.perf_counter() + min_seconds
    while len(seconds) < min_runs or time.perf_counter() < until:
        started = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - started)
    return average(seconds)


def measure(detector: Detector, canvases: Canvases, trial: Arrangement) -> float:
    """Returns the images/s of all instances together, when each computes the canvases as a batch."""

    def run(_: int = 0) -> object:
        return detector.infer(canvases, trial.session_threads)

    # on a GPU the runs of concurrent instances vary widely: the mean counts
    average = statistics.median if detector.provider == "cpu" else statistics.fmean

    def time_instance(_: int) -> float:
        run()  # the first run of a batch size is slow
        return time_runs(run, _TRIAL_SECONDS, 1, average)

    with ThreadPoolExecutor(trial.instances) as instances:
        return sum(len(canvases) / seconds for seconds in instances.map(time_instance, range(trial.instances)))


Measure = Callable[[Detector, Canvases, Arrangement], float]


def choose_arrangement(
    detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure = measure
) -> Arrangement:
    """Returns the arrangement with the most images/s on `blank` whose batches take at most `max_batch_seconds`.

    Takes about half a second on a CPU. Leaves the detector with the session that the arrangement needs.
    """
    best = _find_fastest(detector, blank, settings, measure)
    if detector.provider != "cpu":
        return best
    if best.threads == 1 and best.images_per_second and best.instances / best.images_per_second < _QUICK_SECONDS:
        best = _reduce_python_overhead(best, detector, blank, settings, measure)
    detector.release_unused(blank, best.session_threads)
    return best


def _reduce_python_overhead(
    best: Arrangement, detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure
) -> Arrangement:
    """Gives a fast model larger batches, if they are not slower, and one instance more than CPUs, unless these are set.

    A batch costs the event loop less than its images one by one, and threads that wait for the GIL leave CPUs idle.
    """
    size = _MAX_BATCH["cpu"]
    if not settings.max_batch and best.max_batch < size:
        larger = best.model_copy(update={"max_batch": size})
        larger.images_per_second = speed = measure(detector, [blank] * size, larger)
        is_slow = best.instances * size / speed > settings.max_batch_seconds
        if not is_slow and speed >= _TIE * (best.images_per_second or 0):
            best = larger
    if not settings.instances and best.instances > 1:
        best.instances += 1
    return best


def batch_sizes(largest: int) -> list[int]:
    """Returns the powers of two up to `largest`, and `largest` itself."""
    return sorted({2**power for power in range(largest.bit_length())} | {largest})


def _find_fastest(detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure) -> Arrangement:
    sizes = [settings.max_batch] if settings.max_batch else batch_sizes(_MAX_BATCH[detector.provider])
    counts = _choose_counts(detector.provider, settings)

    def build(count: int, size: int, speed: float | None = None) -> Arrangement:
        threads = max(1, settings.threads // count)
        return Arrangement(instances=count, threads=threads, max_batch=size, images_per_second=speed)

    def measure_trial(count: int, size: int) -> float:
        return measure(detector, [blank] * size, build(count, size))

    for count in counts:
        if threads := build(count, 1).session_threads:
            detector.add_session(threads)
    if len(sizes) == len(counts) == 1:
        return build(counts[0], sizes[0])
    smallest = {count: measure_trial(count, sizes[0]) for count in counts}
    least_speed = max(smallest.values()) / _MAX_GAIN[detector.provider]
    best: _Trial | None = None
    for count, single_speed in smallest.items():
        if single_speed < least_speed:
            continue
        trial = _Trial(count, sizes[0], single_speed)
        best = _choose_better(best, trial)
        for size in sizes[1:]:
            smaller, trial = trial, _Trial(count, size, measure_trial(count, size))
            if trial.seconds > settings.max_batch_seconds or trial.speed < _MIN_GAIN * smaller.speed:
                break
            best = _choose_better(best, trial)
            if not _may_gain(smaller, trial, best):
                break
    assert best is not None
    return build(best.instances, best.size, best.speed)


class _Trial(NamedTuple):
    """`instances` concurrent batches of `size` images, and their images/s together."""

    instances: int
    size: int
    speed: float

    @property
    def seconds(self) -> float:
        """How long a batch takes."""
        return self.instances * self.size / self.speed


def _choose_better(best: _Trial | None, trial: _Trial) -> _Trial:
    return trial if best is None or trial.speed >= _MIN_GAIN * best.speed else best


def _may_gain(smaller: _Trial, trial: _Trial, best: _Trial) -> bool:
    """Whether a batch twice as large may gain enough, and whether any larger batch may beat the best.

    Assumes that a batch's time is linear in its size, a constant and a time per image: larger batches gain ever less.
    """
    image_seconds = (trial.seconds - smaller.seconds) / (trial.size - smaller.size)
    doubled_speed = trial.instances * 2 * trial.size / (trial.seconds + trial.size * image_seconds)
    return doubled_speed >= _MIN_GAIN * trial.speed and trial.instances >= _MIN_GAIN * best.speed * image_seconds


def _choose_counts(provider: str, settings: Settings) -> list[int]:
    """Returns the numbers of instances to try: on a CPU the number of threads, and its halves down to 1.

    On a GPU, a second instance gathers and uploads its batch while the first one computes.
    """
    if settings.instances:
        return [settings.instances]
    if provider != "cpu":
        return [1, 2]
    return [settings.threads >> halvings for halvings in range(settings.threads.bit_length())]
