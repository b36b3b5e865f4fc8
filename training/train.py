"""A training run, from data set to best checkpoint."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from model.detector import Detections
from training.checkpoint import Checkpoint, load_checkpoint
from training.config import MACHINE_SETTINGS, Config, InvalidConfig
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.environment import find_git_commit
from training.evaluate import detect_with_network
from training.generate import generate_pictures
from training.learner import Learner
from training.loader import training_batches
from training.metrics import Metrics, measure
from training.processes import ALONE, Processes
from training.progress import progress_bar
from training.record import Record

_MAY_CHANGE = {*MACHINE_SETTINGS, "patience", "validate_every"}  # when a run is resumed
_OVERFIT_STEPS = 50  # an epoch


@dataclasses.dataclass
class Progress:
    """How far a run has come; a checkpoint to resume from holds these by their names."""

    epoch: int = 0  # whole epochs behind the weights
    step: int = 0  # of the epoch behind those
    best_ap: float = -1.0  # highest `Metrics.task_ap` so far
    best_epoch: int = 0  # whole epochs behind the best weights


def train(config: Config, resume: bool, console: Console, processes: Processes = ALONE) -> Path:
    """Runs or resumes `config` and returns the best checkpoint's path; every process of a run calls it."""
    config = config.for_overfitting()
    train_set, val_set = load_data(config, processes, console)
    processes.check_shares(config)
    learner = Learner(config, train_set, processes, console)
    console.print(learner.describe_steps(), soft_wrap=True)
    last_path, best_path = config.run_folder / "last.pt", config.run_folder / "best.pt"
    progress = _begin(learner, last_path, resume, console)
    commit, steps = find_git_commit(), learner.steps_per_epoch
    first_step = progress.epoch * steps + progress.step
    record = Record(config, learner.device, commit, first_step) if processes.is_first else None

    for epoch in range(progress.epoch, config.epochs):
        last_validated = epoch - epoch % config.validate_every
        if config.patience and last_validated - progress.best_epoch >= config.patience:
            best = f"{progress.best_ap:.2f} after epoch {progress.best_epoch}"
            console.print(f"stopped: no better AP for {config.patience} epochs than {best}")
            break
        learner.begin_epoch(epoch)
        if record:
            record.begin_epoch()
        started = time.monotonic()
        title = f"epoch {epoch + 1}/{config.epochs}"
        batches = training_batches(train_set, config, epoch, progress.step, learner.device, processes)
        with progress_bar(console, f"{title} at {config.picture_size(epoch)} px", steps, progress.step) as advance:
            for parts in batches:
                taken = learner.step(parts)
                advance(loss=sum(loss.item() for loss in taken.losses.values()), pictures=config.batch_size)
                if record:
                    record.add_step(epoch * steps + progress.step, taken)
                progress.step += 1
                if record and progress.step % config.save_every == 0 and progress.step < steps:
                    _make_checkpoint(learner, train_set, progress, commit).save(last_path)
        progress.epoch, progress.step = epoch + 1, 0
        seconds = time.monotonic() - started
        if progress.epoch % config.validate_every and progress.epoch < config.epochs:
            if record:
                _make_checkpoint(learner, train_set, progress, commit).save(last_path)
            console.print(f"{title}: {seconds:.0f} s of training")
            continue

        metrics, detections = _validate(learner, val_set, console)
        is_best = metrics.task_ap > progress.best_ap
        if is_best:
            progress.best_ap, progress.best_epoch = metrics.task_ap, progress.epoch
        if record:
            record.add_epoch(
                progress.epoch,
                progress.epoch * steps,
                metrics,
                best_epoch=progress.best_epoch,
                seconds=seconds,
                dataset=val_set,
                detections=detections,
            )
            ended = _make_checkpoint(learner, train_set, progress, commit, metrics)
            if is_best:  # first: who goes on from the last must not find that the best is missing
                dataclasses.replace(ended, progress=None).save(best_path)
            ended.save(last_path)
        console.print(f"{title}: {metrics}{' (best)' if is_best else ''}, {seconds:.0f} s of training")
    if record:
        record.close()
    return best_path


def _begin(learner: Learner, last_path: Path, resume: bool, console: Console) -> Progress:
    """Returns where the run goes on, with `learner` as it was there; raises `InvalidConfig` where it must not."""
    if not resume:
        if last_path.exists():
            raise InvalidConfig(f"{last_path} exists: continue it with --resume, or give this run another --name")
        return Progress()
    if learner.processes.may_begin(last_path):
        console.print(f"nothing to resume: {last_path} is yet to be written")
        return Progress()
    saved = _load_resumable(last_path, learner.config)
    learner.load_state_dict(saved)
    best_epoch = saved.get("best_epoch", saved["epoch"])  # older checkpoints have none
    progress = Progress(saved["epoch"], saved["step"], best_ap=saved["best_ap"], best_epoch=best_epoch)
    console.print(f"resumed {last_path} at epoch {progress.epoch + 1}, step {progress.step}")
    return progress


def _validate(learner: Learner, dataset: Dataset, console: Console) -> tuple[Metrics, list[Detections]]:
    """Measures the average of the weights, each process a share; the first has the detections, the others none."""
    processes = learner.processes
    share = dataclasses.replace(dataset, photos=processes.deal(dataset.photos))
    found = detect_with_network(learner.average, share, learner.config.input_size, learner.workers, console)
    detections = processes.collect(found)
    metrics = processes.tell(measure(dataset, detections) if processes.is_first else None)
    assert metrics is not None
    return metrics, detections


def _make_checkpoint(
    learner: Learner, dataset: Dataset, progress: Progress, commit: str, metrics: Metrics | None = None
) -> Checkpoint:
    """The average of the weights, with what a resume needs; `metrics` where these weights have been measured."""
    return Checkpoint(
        config=learner.config,
        labels=dataset.labels,
        label_ids=dataset.label_ids,
        weights=learner.average.module.state_dict(),
        epoch=progress.epoch,
        git_commit=commit,
        ap=metrics.ap if metrics else None,
        ap50=metrics.ap50 if metrics else None,
        keypoint_ap=metrics.keypoints.ap if metrics and metrics.keypoints else None,
        skeleton=dataset.skeleton,
        progress=dataclasses.asdict(progress) | learner.state_dict(),
    )


def load_data(config: Config, processes: Processes, console: Console) -> tuple[Dataset, Dataset]:
    """The photos to train on and those to validate on; raises `InvalidConfig` where they do not belong together."""
    if config.generate and processes.is_first:
        generate_pictures(config.data_root, config.generate, config.seed)
    processes.tell(None)  # the pictures are there
    train_set, val_set = load_split(config, "train"), load_split(config, "val")
    if val_set.labels != train_set.labels:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different categories")
    if val_set.skeleton.joints != train_set.skeleton.joints:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different keypoints")
    if config.overfit:
        train_set, val_set = _take_first(train_set, config)
        console.print(
            f"overfit: the first {config.overfit} photos without augmentation, over and over, and validation on the"
            " very same: AP should come near 100",
            soft_wrap=True,
        )
    console.print(f"{len(train_set.photos)} photos to train on, {len(val_set.photos)} to validate on")
    return train_set, val_set


def load_split(config: Config, split: Literal["train", "val"]) -> Dataset:
    """The data set that `config` names for one of the two; raises `InvalidDataset`."""
    annotations, images = {
        "train": (config.train_annotations, config.train_images),
        "val": (config.val_annotations, config.val_images),
    }[split]
    return load_dataset(config.data_root / annotations, config.data_root / images)


def _take_first(dataset: Dataset, config: Config) -> tuple[Dataset, Dataset]:
    """The first `overfit` photos as often as fill an epoch of fixed length, and once."""
    if config.overfit > len(dataset.photos):
        raise InvalidConfig(
            f"overfit {config.overfit}: {dataset.annotations_path} has {len(dataset.photos)} photos: name fewer"
        )
    photos = dataset.photos[: config.overfit]
    wanted = _OVERFIT_STEPS * config.batch_size
    repeated = (photos * -(-wanted // len(photos)))[:wanted]
    return dataclasses.replace(dataset, photos=repeated), dataclasses.replace(dataset, photos=photos)


def _load_resumable(path: Path, config: Config) -> dict[str, Any]:
    saved = load_checkpoint(path)
    old, new = saved.config.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [key for key in new if old[key] != new[key] and key not in _MAY_CHANGE]
    if changed:
        raise InvalidConfig(f"{path} was made with other settings: {', '.join(changed)}. Give a new run another --name")
    if saved.progress is None:
        raise InvalidConfig(f"{path} holds weights alone and cannot be resumed")
    return saved.progress
