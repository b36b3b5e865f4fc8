"""Everything that a run does, for seconds: what it sees, what it needs, and how fast it would be."""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import torch
from rich.console import Console

from training.config import Config
from training.datasets.dataset import Dataset
from training.inspect import draw_views
from training.learner import Learner
from training.loader import Part, steps_per_epoch, training_batches
from training.models import count_parameters
from training.processes import ALONE, Processes
from training.train import load_data

_SECONDS = 10.0  # each of the three measurements takes about that long
_MOST_STEPS = 50


def dry_run(config: Config, console: Console, processes: Processes = ALONE) -> None:
    """Draws the first views, takes steps at the run's largest picture size, and prints what they took.

    Writes `dry-run.jpg` into the run's folder, and no checkpoint. Raises what a run would raise at its start.
    """
    config = config.for_overfitting() if config.overfit else config
    config = config.model_copy(update={"first_train_size": 0})  # the largest pictures from the first epoch on
    train_set, _ = load_data(config, processes, console)
    processes.check_shares(config)
    steps = steps_per_epoch(train_set, config)
    learner = Learner(config, train_set.labels, train_set.skeleton.joints, steps, processes, console)
    learner.begin_epoch(config.freeze_backbone_epochs)
    console.print(learner.describe_steps(), soft_wrap=True)
    learned = sum(p.numel() for p in learner.network.parameters() if p.requires_grad)
    console.print(f"{count_parameters(learner.network):,} parameters, {learned:,} of them learn")
    if processes.is_first:
        path = _draw(train_set, config)
        console.print(f"{path}: the first views, and the heatmaps to learn from them", soft_wrap=True)

    batches = _endless_batches(train_set, config, learner, processes)
    parts = next(batches)
    first = _time(lambda: learner.step(parts))  # slower than the rest: memory is taken, kernels are chosen
    count = processes.tell(max(2, min(_MOST_STEPS, int(_SECONDS / first))))  # a step is taken by all or by none
    step = _time(lambda: learner.step(parts), count)
    for _ in range(-(-2 * config.workers // config.accumulate)):  # each worker has made two parts in the meantime
        next(batches)
    loader = _time(lambda: next(batches), count)
    both = _time(lambda: learner.step(next(batches)), count)
    for title, seconds in (("loader alone", loader), ("step alone", step), ("both together", both)):
        console.print(f"{title:14} {config.batch_size / seconds:8.1f} pictures/s, {seconds:.3f} s a step")
    if loader > step:
        console.print(f"the loader limits: more than {config.workers} workers, or smaller photos, would be faster")
    else:
        console.print("the step limits: a loader with more workers would not be faster")
    console.print(f"an epoch of {steps} steps: about {both * steps / 60:.1f} minutes, validation aside")
    console.print(f"memory: {_describe_memory(learner.device)}")


def _endless_batches(
    dataset: Dataset, config: Config, learner: Learner, processes: Processes
) -> Iterator[tuple[Part, ...]]:
    for epoch in itertools.count():
        yield from training_batches(dataset, config, epoch, 0, learner.device.type == "cuda", processes)


def _draw(dataset: Dataset, config: Config) -> Path:
    path = config.run_folder / "dry-run.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(draw_views(dataset, config), cv2.COLOR_RGB2BGR))
    return path


def _time(work: Callable[[], object], count: int = 1) -> float:
    """Seconds of one of `count` calls; a step has waited for its GPU when it returns its losses."""
    started = time.monotonic()
    for _ in range(count):
        work()
    return (time.monotonic() - started) / count


def _describe_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return f"at most {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of the GPU's"
    if sys.platform == "win32":
        return "not measured on Windows"
    import resource  # not there on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB, workers aside"
