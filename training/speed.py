"""How fast a run goes, and what it takes: its loader alone, its step alone, and both together as in a run."""

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

_MOST_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Speed:
    """Seconds a step of `batch_size` pictures, by what is measured."""

    batch_size: int
    loader: float
    step: float
    both: float

    @property
    def of_slower(self) -> float:
        """What both together reach of the slower one's pictures a second; 1 where nothing waits but for that."""
        return max(self.loader, self.step) / self.both

    def pictures(self) -> dict[str, float]:
        """Pictures a second, by what is measured."""
        parts = {"loader alone": self.loader, "step alone": self.step, "both together": self.both}
        return {title: self.batch_size / seconds for title, seconds in parts.items()}

    def print(self, console: Console) -> None:
        """Prints pictures a second and seconds a step, a line for each part."""
        for title, pictures in self.pictures().items():
            console.print(f"{title:14} {pictures:8.1f} pictures/s, {self.batch_size / pictures:.3f} s a step")


def prepare_run(config: Config, processes: Processes, console: Console) -> tuple[Learner, Dataset]:
    """The learner and the photos to train on as a run of `config` has them in its slowest epochs.

    Pictures are of the largest size from the first epoch on. Raises what a run raises at its start.
    """
    config = config.for_overfitting()
    config = config.model_copy(update={"first_train_size": 0})
    train_set, _ = load_data(config, processes, console)
    processes.check_batch_size(config)
    return prepare_learner(config, train_set, processes, console), train_set


def prepare_learner(config: Config, dataset: Dataset, processes: Processes, console: Console) -> Learner:
    """A learner in the first epoch whose backbone is no longer frozen: none has slower steps."""
    learner = Learner(config, dataset, processes, console)
    learner.begin_epoch(config.freeze_backbone_epochs)
    return learner


def measure_speed(learner: Learner, dataset: Dataset, seconds: float, rounds: int = 1) -> Speed:
    """Takes about `seconds` for each of the three in turn, so often, at least two steps; the median of the rounds."""
    batches = _endless_batches(learner, dataset)
    parts = next(batches)
    first = time_calls(lambda: learner.step(parts))  # slower than the rest: memory is taken, kernels are chosen
    count = max(2, min(_MOST_STEPS, int(seconds / rounds / first)))
    count = learner.processes.broadcast(count)  # a step is taken by all or by none
    waiting = -(-2 * learner.workers // learner.config.accumulate)  # each worker makes two parts while none is taken
    found: dict[str, list[float]] = {"step": [], "loader": [], "both": []}
    for _ in range(rounds):
        found["step"].append(time_calls(lambda: learner.step(parts), count))
        for _ in range(waiting):
            next(batches)
        found["loader"].append(time_calls(lambda: next(batches), count))
        found["both"].append(time_calls(lambda: learner.step(next(batches)), count))
    return Speed(learner.config.batch_size, **{part: statistics.median(each) for part, each in found.items()})


def time_calls(work: Callable[[], object], count: int = 1) -> float:
    """Seconds of one of `count` calls; a step has waited for its GPU when it returns its losses."""
    started = time.monotonic()
    for _ in range(count):
        work()
    return (time.monotonic() - started) / count


def peak_memory(device: torch.device) -> float | None:
    """The most bytes that this process has held: of the GPU's memory, or of the machine's; None on Windows."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def describe_memory(device: torch.device) -> str:
    """`peak_memory` in words, in GB."""
    most = peak_memory(device)
    if most is None:
        return "not measured on Windows"
    return f"at most {most / 1e9:.2f} GB{' of the GPU' if device.type == 'cuda' else ', workers aside'}"


def _endless_batches(learner: Learner, dataset: Dataset) -> Iterator[tuple[MicroBatch, ...]]:
    for epoch in itertools.count():
        yield from training_batches(dataset, learner.config, epoch, 0, learner.device, learner.processes)
