"""Throughput and memory of a run: the loader alone, the training step alone, and both together."""

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from rich.console import Console

from training.config import Config
from training.datasets.dataset import Dataset
from training.learner import Learner
from training.loader import MicroBatch, training_batches
from training.processes import Processes
from training.train import load_data

_MAX_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds per step of `batch_size` images."""

    batch_size: int
    loader: float
    step: float
    both: float

    @property
    def efficiency(self) -> float:
        """Throughput of both together, relative to the slower one alone; 1 if the two overlap perfectly."""
        return max(self.loader, self.step) / self.both

    def images_per_second(self) -> dict[str, float]:
        """Returns images per second by measurement."""
        parts = {"loader alone": self.loader, "step alone": self.step, "both together": self.both}
        return {title: self.batch_size / seconds for title, seconds in parts.items()}

    def print(self, console: Console) -> None:
        """Prints images per second and seconds per step, one line per measurement."""
        for title, speed in self.images_per_second().items():
            console.print(f"{title:14} {speed:8.1f} images/s, {self.batch_size / speed:.3f} s a step")


def prepare_run(config: Config, processes: Processes, console: Console) -> tuple[Learner, Dataset]:
    """Returns the learner and the training set of a run of `config`, as in its slowest epochs.

    Images have the run's largest size. Raises the errors of the start of a run.
    """
    config = config.model_copy(update={"first_train_size": 0})
    train_set, _ = load_data(config, processes, console)
    processes.check_batch_size(config)
    return prepare_learner(config, train_set, processes, console), train_set


def prepare_learner(config: Config, dataset: Dataset, processes: Processes, console: Console) -> Learner:
    """Returns a learner at its first epoch with an unfrozen backbone, whose steps are the slowest."""
    learner = Learner(config, dataset, processes, console)
    learner.begin_epoch(config.freeze_backbone_epochs)
    return learner


def measure_speed(learner: Learner, dataset: Dataset, seconds: float, rounds: int = 1) -> Speed:
    """Measures loader, step and both, each for about `seconds`, in interleaved rounds; returns medians.

    A round has at least two steps of each.
    """
    batches = _endless_batches(learner, dataset)
    micro_batches = next(batches)
    first = time_calls(lambda: learner.step(micro_batches))  # warm-up: allocates memory and selects kernels
    count = max(2, min(_MAX_STEPS, int(seconds / rounds / first)))
    count = learner.processes.broadcast(count)  # all processes must take the same number of steps
    # in batches: each worker prefetches two micro-batches
    prefetched = -(-2 * learner.workers // learner.config.accumulate)
    found: dict[str, list[float]] = {"step": [], "loader": [], "both": []}
    for _ in range(rounds):
        found["step"].append(time_calls(lambda: learner.step(micro_batches), count))
        for _ in range(prefetched):
            next(batches)
        found["loader"].append(time_calls(lambda: next(batches), count))
        found["both"].append(time_calls(lambda: learner.step(next(batches)), count))
    return Speed(learner.config.batch_size, **{part: statistics.median(each) for part, each in found.items()})


def time_calls(call: Callable[[], object], count: int = 1) -> float:
    """Returns the mean seconds of `count` calls; a training step synchronises with its GPU before it returns."""
    started = time.monotonic()
    for _ in range(count):
        call()
    return (time.monotonic() - started) / count


def peak_memory(device: torch.device) -> float | None:
    """Returns the peak memory of this process in bytes, on the GPU or else resident (RSS); None on Windows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource  # not available on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def describe_memory(device: torch.device) -> str:
    """Formats `peak_memory` in GB."""
    peak = peak_memory(device)
    if peak is None:
        return "not measured on Windows"
    return f"peak {peak / 1e9:.2f} GB{' on the GPU' if device.type == 'cuda' else ', without workers'}"


def _endless_batches(learner: Learner, dataset: Dataset) -> Iterator[tuple[MicroBatch, ...]]:
    for epoch in itertools.count():
        yield from training_batches(dataset, learner.config, epoch, 0, learner.device, learner.processes)
