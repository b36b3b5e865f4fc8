"""What a recipe costs on this machine: `python -m training bench`."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table

from training.config import Config, make_config
from training.datasets.dataset import Dataset
from training.environment import describe_environment
from training.files import write_json
from training.learner import Learner
from training.loader import training_batches
from training.processes import SINGLE_PROCESS
from training.speed import Speed, describe_memory, measure_speed, peak_memory, prepare_learner, prepare_run, time_calls

_ROUNDS = 3
_AS_SET = "as it is set"


def bench(
    config: Config, against: Sequence[Mapping[str, str]], seconds: float, path: Path | None, console: Console
) -> None:
    """Prints the pictures a second of loader, step and both at the run's largest picture size, and the peak memory.

    For each other settings of `against` the step alone is measured too, in turn with the first. Each measurement
    takes about `seconds`. Writes all of it as JSON to `path`. Raises what a run raises at its start.
    """
    plain = config.model_dump() | {"first_train_size": 0}
    others = {
        ", ".join(f"{name} = {value}" for name, value in other.items()): make_config(plain | dict(other))
        for other in against
    }
    learner, train_set = prepare_run(config, SINGLE_PROCESS, console)
    console.print(_describe(learner), soft_wrap=True)
    speed = measure_speed(learner, train_set, seconds, _ROUNDS)
    memory = peak_memory(learner.device)
    speed.print(console)
    limit = "loader" if speed.loader > speed.step else "step"
    console.print(f"both together reach {speed.of_slower:.1%} of the {limit} alone, which limits")
    console.print(f"memory: {describe_memory(learner.device)}")
    steps = _compare(learner, others, train_set, seconds) if others else {}
    if steps:
        console.print(_tabulate(steps))
    if path:
        write_json(path, _gather(learner, speed, memory, steps))
        console.print(f"wrote {path}")


def _compare(learner: Learner, others: Mapping[str, Config], dataset: Dataset, seconds: float) -> dict[str, float]:
    """Pictures a second of the step alone, by what is set otherwise; in rounds, as a machine's speed changes."""
    quiet = Console(quiet=True)
    learners = {_AS_SET: learner}
    learners |= {title: prepare_learner(config, dataset, SINGLE_PROCESS, quiet) for title, config in others.items()}
    works, counts, found = {}, {}, dict[str, list[float]]()
    for title, each in learners.items():
        parts = next(training_batches(dataset, each.config, 0, 0, each.device))
        works[title] = work = functools.partial(each.step, parts)
        work()  # what is compiled is compiled now
        counts[title] = max(1, int(seconds / _ROUNDS / time_calls(work)))
    for _ in range(_ROUNDS):
        for title, work in works.items():
            taken = time_calls(work, counts[title])
            found.setdefault(title, []).append(learners[title].config.batch_size / taken)
    return {title: median(speeds) for title, speeds in found.items()}


def _describe(learner: Learner) -> str:
    config = learner.config
    size, threads = config.image_size(0), torch.get_num_threads()
    return (
        f"{config.backbone} at {size} px, batches of {config.batch_size}, {learner.precision} on {learner.device},"
        f" {threads} threads and {learner.workers} workers"
    )


def _tabulate(steps: Mapping[str, float]) -> Table:
    table = Table("the step alone", "pictures/s", "times the first")
    for title, pictures in steps.items():
        table.add_row(title, f"{pictures:.1f}", f"{pictures / steps[_AS_SET]:.2f}")
    return table


def _gather(learner: Learner, speed: Speed, memory: float | None, steps: Mapping[str, float]) -> dict[str, object]:
    return {
        "environment": describe_environment(str(learner.device)),
        "settings": learner.config.model_dump(mode="json"),
        "pictures_per_second": speed.pictures(),
        "both_of_the_slower": speed.of_slower,
        "peak_memory_bytes": memory,
        "step_alone_pictures_per_second": dict(steps),
    }
