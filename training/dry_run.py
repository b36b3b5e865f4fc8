"""Everything that a run does, for seconds: what it sees, what it needs, and how fast it would be."""

from pathlib import Path

from rich.console import Console

from model.image import encode
from training.config import Config
from training.datasets.dataset import Dataset
from training.inspect import draw_views
from training.models import count_parameters
from training.processes import ALONE, Processes
from training.speed import describe_memory, measure_speed, prepare_run

_SECONDS = 10.0  # each of the three measurements takes about that long


def dry_run(config: Config, console: Console, processes: Processes = ALONE) -> None:
    """Draws the first views, takes steps at the run's largest picture size, and prints what they took.

    Writes `dry-run.jpg` into the run's folder, and no checkpoint. Raises what a run would raise at its start.
    """
    learner, train_set = prepare_run(config, processes, console)
    console.print(learner.describe_steps(), soft_wrap=True)
    learned = sum(p.numel() for p in learner.network.parameters() if p.requires_grad)
    console.print(f"{count_parameters(learner.network):,} parameters, {learned:,} of them learn")
    if processes.is_first:
        path = _draw(train_set, learner.config)
        console.print(f"{path}: the first views, and the heatmaps to learn from them", soft_wrap=True)

    speed = measure_speed(learner, train_set, _SECONDS)
    speed.print(console)
    if not learner.workers:
        share = speed.loader / (speed.loader + speed.step)
        console.print(f"without workers loader and step take turns: {share:.0%} of the time is the loader's")
    elif speed.loader > speed.step:
        console.print(f"the loader limits: more than {learner.workers} workers, or smaller photos, would be faster")
    else:
        console.print("the step limits: a loader with more workers would not be faster")
    steps = learner.steps_per_epoch
    console.print(f"an epoch of {steps} steps: about {speed.both * steps / 60:.1f} minutes, validation aside")
    console.print(f"memory: {describe_memory(learner.device)}")


def _draw(dataset: Dataset, config: Config) -> Path:
    path = config.run_folder / "dry-run.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(draw_views(dataset, config), "jpeg"))
    return path
