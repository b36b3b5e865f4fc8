"""How a model is run: how many batches side by side, how large, with how many threads each. Measured, unless set."""

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

_GAIN = 1.05  # times the images/s that a larger batch must be worth: it costs latency and memory
_LARGEST = {"cpu": 8, "cuda": 32, "tensorrt": 32}  # batch that is tried: no CPU has been seen to gain beyond
_MOST_GAIN = {"cpu": 1.3, "cuda": 32.0, "tensorrt": 32.0}  # times the images/s of single ones that batches are worth
_TRIAL_SECONDS = 0.05
_QUICK_SECONDS = 0.005  # an image: below it, what Python does for each is much of the whole
_TIE = 0.95  # times the images/s: as fast, as far as a trial can tell


def time_runs(
    work: Callable[[int], object],
    least_seconds: float,
    least_runs: int = 3,
    sum_up: Callable[[list[float]], float] = statistics.median,
) -> float:
    """Returns the seconds of `work`, which is told the number of its run.

    By default the median of the runs: what else goes on does not decide.
    """
    seconds, until = list[float](), time.perf_counter() + least_seconds
    while len(seconds) < least_runs or time.perf_counter() < until:
        started = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - started)
    return sum_up(seconds)


def measure(detector: Detector, canvases: Canvases, trial: Arrangement) -> float:
    """Returns the images/s of all instances together, each of which computes the canvases as a batch."""

    def run(_: int = 0) -> object:
        return detector.infer(canvases, trial.session_threads)

    # who waits for the GPU, waits now long and now not
    sum_up = statistics.median if detector.provider == "cpu" else statistics.fmean

    def time_instance(_: int) -> float:
        run()  # the first one of a size is slow
        return time_runs(run, _TRIAL_SECONDS, 1, sum_up)

    with ThreadPoolExecutor(trial.instances) as instances:
        return sum(len(canvases) / seconds for seconds in instances.map(time_instance, range(trial.instances)))


Measure = Callable[[Detector, Canvases, Arrangement], float]


def arrange(
    detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure = measure
) -> Arrangement:
    """Returns what computes the most `blank` pictures a second, no batch taking longer than `max_batch_seconds`.

    Takes about half a second on a CPU, and leaves the detector ready for what it returns.
    """
    best = _find_fastest(detector, blank, settings, measure)
    if detector.provider != "cpu":
        return best
    if best.threads == 1 and best.images_per_second and best.instances / best.images_per_second < _QUICK_SECONDS:
        best = _spare_python(best, detector, blank, settings, measure)
    detector.release_unused(blank, best.session_threads)
    return best


def _spare_python(
    best: Arrangement, detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure
) -> Arrangement:
    """Has a quick model take several images at once, if it computes as many, and one inference more than CPUs.

    What is handed over together costs the event loop less, and threads that wait for Python's lock leave CPUs unused.
    """
    size = _LARGEST["cpu"]
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
    """Returns the powers of two up to the largest size, and that itself."""
    return sorted({2**power for power in range(largest.bit_length())} | {largest})


def _find_fastest(detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure) -> Arrangement:
    sizes = [settings.max_batch] if settings.max_batch else batch_sizes(_LARGEST[detector.provider])
    counts = _choose_counts(detector.provider, settings)

    def arranged(count: int, size: int, speed: float | None = None) -> Arrangement:
        threads = max(1, settings.threads // count)
        return Arrangement(instances=count, threads=threads, max_batch=size, images_per_second=speed)

    def try_out(count: int, size: int) -> float:
        return measure(detector, [blank] * size, arranged(count, size))

    for count in counts:
        if threads := arranged(count, 1).session_threads:
            detector.add_session(threads)
    if len(sizes) == len(counts) == 1:
        return arranged(counts[0], sizes[0])
    smallest = {count: try_out(count, sizes[0]) for count in counts}
    least_speed = max(smallest.values()) / _MOST_GAIN[detector.provider]
    best: _Trial | None = None
    for count, single_speed in smallest.items():
        if single_speed < least_speed:
            continue
        trial = _Trial(count, sizes[0], single_speed)
        best = _choose_better(best, trial)
        for size in sizes[1:]:
            smaller, trial = trial, _Trial(count, size, try_out(count, size))
            if trial.seconds > settings.max_batch_seconds or trial.speed < _GAIN * smaller.speed:
                break
            best = _choose_better(best, trial)
            if not _may_gain(smaller, trial, best):
                break
    assert best is not None
    return arranged(best.instances, best.size, best.speed)


class _Trial(NamedTuple):
    """So many batches of `size` images at once, and the images/s of all together."""

    instances: int
    size: int
    speed: float

    @property
    def seconds(self) -> float:
        """What a batch takes."""
        return self.instances * self.size / self.speed


def _choose_better(best: _Trial | None, trial: _Trial) -> _Trial:
    return trial if best is None or trial.speed >= _GAIN * best.speed else best


def _may_gain(smaller: _Trial, trial: _Trial, best: _Trial) -> bool:
    """Whether batches larger than the trial's may be worth it: twice as large, or beside the best however large.

    As on a line: a batch takes a time of its own, and one for each image; larger ones gain ever less.
    """
    each = (trial.seconds - smaller.seconds) / (trial.size - smaller.size)
    doubled_speed = trial.instances * 2 * trial.size / (trial.seconds + trial.size * each)
    return doubled_speed >= _GAIN * trial.speed and trial.instances >= _GAIN * best.speed * each


def _choose_counts(provider: str, settings: Settings) -> list[int]:
    """Returns the numbers of instances to try: on a CPU as many as there are threads, and halves of that, down to 1.

    On a GPU a second one gathers and uploads its batch while the first one's is computed.
    """
    if settings.instances:
        return [settings.instances]
    if provider != "cpu":
        return [1, 2]
    return [settings.threads >> halvings for halvings in range(settings.threads.bit_length())]
