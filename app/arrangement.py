"""How a model is run: how many batches side by side, how large, with how many threads each. Measured, unless set."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from app.settings import Settings
from model.detector import Detector

_GAIN = 1.05  # times the images/s that a larger batch must be worth: it costs latency and memory
_LARGEST = {"cpu": 8, "cuda": 32, "tensorrt": 32}  # batch that is tried: no CPU has been seen to gain beyond
_TRIAL_SECONDS = 0.05
_LEAST_RUNS = 3

Canvases = Sequence[NDArray[np.uint8]]


class Arrangement(BaseModel):
    """`instances` batches of up to `max_batch` images at once, on `threads` of the CPU's each."""

    instances: int = Field(examples=[2])
    threads: int = Field(examples=[1])
    max_batch: int = Field(examples=[4])
    images_per_second: float | None = Field(None, description="as measured; none where all of it is set")

    @property
    def session_threads(self) -> int | None:
        """What `Detector.infer` is told: one instance has all threads."""
        return self.threads if self.instances > 1 else None


def time_runs(
    work: Callable[[int], object], least_seconds: float, sum_up: Callable[[list[float]], float] = statistics.median
) -> float:
    """Returns the seconds of `work`, which is told the number of its run.

    By default the median of the runs: what else goes on does not decide.
    """
    seconds, until = list[float](), time.perf_counter() + least_seconds
    while len(seconds) < _LEAST_RUNS or time.perf_counter() < until:
        started = time.perf_counter()
        work(len(seconds))
        seconds.append(time.perf_counter() - started)
    return sum_up(seconds)


def measure(detector: Detector, canvases: Canvases, trial: Arrangement) -> float:
    """Returns the images/s of all instances together, each of which computes the canvases as a batch."""

    def run(_: int = 0) -> object:
        return detector.infer(canvases, trial.session_threads)

    def time_instance(_: int) -> float:
        if detector.provider == "cpu":
            return time_runs(run, _TRIAL_SECONDS)  # the first run of a size is slow, and the median is another one's
        run()
        return time_runs(run, _TRIAL_SECONDS, statistics.fmean)  # who waits for the GPU, waits now long and now not

    with ThreadPoolExecutor(trial.instances) as instances:
        return sum(len(canvases) / seconds for seconds in instances.map(time_instance, range(trial.instances)))


Measure = Callable[[Detector, Canvases, Arrangement], float]


def arrange(
    detector: Detector, blank: NDArray[np.uint8], settings: Settings, measure: Measure = measure
) -> Arrangement:
    """Returns what computes the most `blank` pictures a second, no batch taking longer than `max_batch_seconds`.

    Takes about half a second on a CPU, and leaves the detector ready for what it returns.
    """
    sizes = [settings.max_batch] if settings.max_batch else batch_sizes(_LARGEST[detector.provider])
    counts = _choose_counts(detector.provider, settings)
    best, best_speed = None, 0.0
    for count in counts:
        threads = max(1, settings.threads // count)
        if count > 1:
            detector.open_with(threads)
        smaller_size, smaller_seconds, smaller_speed = 0, 0.0, 0.0
        for size in sizes:
            trial = Arrangement(instances=count, threads=threads, max_batch=size)
            if len(sizes) == len(counts) == 1:
                return trial
            trial.images_per_second = speed = measure(detector, [blank] * size, trial)
            seconds = count * size / speed  # of a batch
            is_slow = size > sizes[0] and seconds > settings.max_batch_seconds
            if is_slow or speed < _GAIN * smaller_speed:
                break
            if speed >= _GAIN * best_speed:
                best, best_speed = trial, speed
            if smaller_size:
                # as on a line: a batch takes a time of its own, and one for each image; larger ones gain ever less
                each = (seconds - smaller_seconds) / (size - smaller_size)
                doubled_speed = count * 2 * size / (seconds + size * each)
                if doubled_speed < _GAIN * speed or count < _GAIN * best_speed * each:
                    break
            smaller_size, smaller_seconds, smaller_speed = size, seconds, speed
    assert best is not None
    if detector.provider == "cpu":
        detector.give_back(blank, best.session_threads)
    return best


def batch_sizes(largest: int) -> list[int]:
    """Returns the powers of two up to the largest size, and that itself."""
    return sorted({2**power for power in range(largest.bit_length())} | {largest})


def _choose_counts(provider: str, settings: Settings) -> list[int]:
    """Returns the numbers of instances to try: on a CPU as many as there are threads, and halves of that, down to 1.

    On a GPU a second one gathers and uploads its batch while the first one's is computed.
    """
    if settings.instances:
        return [settings.instances]
    if provider != "cpu":
        return [1, 2]
    return [settings.threads >> halvings for halvings in range(settings.threads.bit_length())]
