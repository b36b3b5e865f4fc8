"""A dry run: draws training views, measures speed and memory, and estimates the time of an epoch."""

from pathlib import Path

from rich.console import Console

from model.image import encode
from training.config import Config
from training.datasets.dataset import Dataset
from training.inspect import draw_views
from training.models import count_parameters
from training.processes import SINGLE_PROCESS, Processes
from training.speed import describe_memory, measure_speed, prepare_run

_SECONDS = 10.0  # approximate duration of each of the three measurements


def dry_run(config: Config, console: Console, processes: Processes = SINGLE_PROCESS) -> None:
    """Draws the first views, and prints the speed and memory of steps at the run's largest image size.

    Writes `dry-run.jpg` to the run's folder, but no checkpoint. Raises the same errors as starting the run.
    """
    learner, train_set = prepare_run(config, processes, console)
    console.print(learner.describe_steps(), soft_wrap=True)
    trainable = sum(p.numel() for p in learner.network.parameters() if p.requires_grad)
    console.print(f"{count_parameters(learner.network):,} parameters, {trainable:,} of them trainable")
    if processes.is_first:
        path = _save_views(train_set, learner.config)
        console.print(f"{path}: the first views with their target heatmaps", soft_wrap=True)

    speed = measure_speed(learner, train_set, _SECONDS)
    speed.print(console)
    if not learner.workers:
        share = speed.loader / (speed.loader + speed.step)
        console.print(f"without workers loader and step take turns: {share:.0%} of the time is the loader's")
    elif speed.loader > speed.step:
        console.print(f"the loader limits: more than {learner.workers} workers, or smaller photos, would be faster")
    else:
        console.print("the step limits: more loader workers would not be faster")
    steps = learner.steps_per_epoch
    console.print(f"an epoch of {steps} steps: about {speed.both * steps / 60:.1f} minutes, validation aside")
    console.print(f"memory: {describe_memory(learner.device)}")


def _save_views(dataset: Dataset, config: Config) -> Path:
    path = config.run_folder / "dry-run.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(draw_views(dataset, config), "jpeg"))
    return path
