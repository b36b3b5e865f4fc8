"""Training throughput and memory of a configuration on this machine: `python -m training bench`."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from training.config import Config
from training.config_file import make_config
from training.datasets.dataset import Dataset
from training.environment import describe_environment
from training.files import write_json
from training.learner import Learner
from training.loader import training_batches
from training.processes import SINGLE_PROCESS
from training.speed import Speed, describe_memory, measure_speed, peak_memory, prepare_learner, prepare_run, time_calls

_ROUNDS = 3
_BASELINE = "as it is set"


def bench(
    config: Config, against: Sequence[Mapping[str, str]], seconds: float, path: Path | None, console: Console
) -> None:
    """Prints throughput of loader, training step and both together at the run's largest image size, and peak memory.

    For each override in `against` the step alone is measured too, interleaved with the baseline. Each measurement takes
    about `seconds`. `path` is a file for the results as JSON. Raises the errors of the start of a run.
    """
    plain = config.model_dump() | {"first_train_size": 0}
    variants = {
        ", ".join(f"{name} = {value}" for name, value in overrides.items()): make_config(plain | dict(overrides))
        for overrides in against
    }
    learner, train_set = prepare_run(config, SINGLE_PROCESS, console)
    console.print(_describe(learner), soft_wrap=True)
    speed = measure_speed(learner, train_set, seconds, _ROUNDS)
    memory = peak_memory(learner.device)
    speed.print(console)
    limit = "loader" if speed.loader > speed.step else "step"
    console.print(f"both together reach {speed.efficiency:.1%} of the {limit} alone, the bottleneck")
    console.print(f"memory: {describe_memory(learner.device)}")
    steps = _compare(learner, variants, train_set, seconds) if variants else {}
    if steps:
        console.print(_tabulate(steps))
    if path:
        write_json(path, _gather(learner, speed, memory, steps))
        console.print(f"wrote {path}")


def _compare(learner: Learner, variants: Mapping[str, Config], dataset: Dataset, seconds: float) -> dict[str, float]:
    """Returns the step's images per second by variant; measured in rounds, as a machine's speed drifts."""
    quiet = Console(quiet=True)
    learners = {_BASELINE: learner}
    learners |= {title: prepare_learner(config, dataset, SINGLE_PROCESS, quiet) for title, config in variants.items()}
    calls, counts, speeds = {}, {}, dict[str, list[float]]()
    for title, each in learners.items():
        micro_batches = next(training_batches(dataset, each.config, 0, 0, each.device))
        calls[title] = call = functools.partial(each.step, micro_batches)
        call()  # warm-up, including compilation
        counts[title] = max(1, int(seconds / _ROUNDS / time_calls(call)))
    for _ in range(_ROUNDS):
        for title, call in calls.items():
            step_seconds = time_calls(call, counts[title])
            speeds.setdefault(title, []).append(learners[title].config.batch_size / step_seconds)
    return {title: median(each) for title, each in speeds.items()}


def _describe(learner: Learner) -> str:
    config = learner.config
    size, threads = config.image_size(0), torch.get_num_threads()
    return (
        f"{config.backbone} at {size} px, batches of {config.batch_size}, {learner.precision} on {learner.device},"
        f" {threads} threads and {learner.workers} workers"
    )


def _tabulate(steps: Mapping[str, float]) -> Table:
    table = Table("the step alone", "images/s", "relative")
    for title, speed in steps.items():
        table.add_row(title, f"{speed:.1f}", f"{speed / steps[_BASELINE]:.2f}")
    return table


def _gather(learner: Learner, speed: Speed, memory: float | None, steps: Mapping[str, float]) -> dict[str, object]:
    return {
        "environment": describe_environment(str(learner.device)),
        "settings": learner.config.model_dump(mode="json"),
        "images_per_second": speed.images_per_second(),
        "both_of_the_slower": speed.efficiency,
        "peak_memory_bytes": memory,
        "step_alone_images_per_second": dict(steps),
    }
