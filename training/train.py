"""The training loop: data set → epochs with validation → best checkpoint."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from model.detector import Detections
from training.config import MACHINE_SETTINGS, Config, InvalidConfig
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.environment import find_git_commit
from training.evaluation.evaluate import detect_with_network
from training.evaluation.metrics import Metrics, measure
from training.generate import generate_dataset
from training.learner import Learner
from training.loader import training_batches
from training.processes import SINGLE_PROCESS, Processes
from training.progress import progress_bar
from training.record import Record
from training.weights.checkpoint import Checkpoint, load_checkpoint

_CHANGEABLE_ON_RESUME = {*MACHINE_SETTINGS, "patience", "validate_every"}
_OVERFIT_STEPS = 50  # per epoch


@dataclasses.dataclass
class Progress:
    """The position of a run in its schedule; resumable checkpoints store these fields by name."""

    epoch: int = 0  # completed epochs
    step: int = 0  # completed steps of the current epoch
    best_ap: float = -1.0  # highest `Metrics.task_ap` so far
    best_epoch: int = 0  # completed epochs when `best_ap` was measured


def train(config: Config, resume: bool, console: Console, processes: Processes = SINGLE_PROCESS) -> Path:
    """Starts or resumes the run of `config` and returns the best checkpoint's path; every process calls this."""
    train_set, val_set = load_data(config, processes, console)
    processes.check_batch_size(config)
    learner = Learner(config, train_set, processes, console)
    console.print(learner.describe_steps(), soft_wrap=True)
    last_path, best_path = config.run_folder / "last.pt", config.run_folder / "best.pt"
    progress = _start_or_resume(learner, train_set, last_path, resume, console)
    commit, steps = find_git_commit(), learner.steps_per_epoch
    first_step = progress.epoch * steps + progress.step
    record = Record(config, learner.device, commit, first_step) if processes.is_first else None

    for epoch in range(progress.epoch, config.epochs):
        last_validated = epoch - epoch % config.validate_every
        if config.patience and last_validated - progress.best_epoch >= config.patience:
            best = f"{progress.best_ap:.2f} of epoch {progress.best_epoch}"
            console.print(f"stopped early: AP has not exceeded the {best} for {config.patience} epochs")
            break
        learner.begin_epoch(epoch)
        if record:
            record.begin_epoch()
        started = time.monotonic()
        title = f"epoch {epoch + 1}/{config.epochs}"
        batches = training_batches(train_set, config, epoch, progress.step, learner.device, processes)
        with progress_bar(console, f"{title} at {config.image_size(epoch)} px", steps, progress.step) as advance:
            for micro_batches in batches:
                result = learner.step(micro_batches)
                advance(loss=sum(loss.item() for loss in result.losses.values()), images=config.batch_size)
                if record:
                    record.add_step(epoch * steps + progress.step, result)
                progress.step += 1
                # the last step's checkpoint precedes validation, with which a resumed run continues
                if record and (progress.step % config.save_every == 0 or progress.step == steps):
                    _make_checkpoint(learner, train_set, progress, commit).save(last_path)
        progress.epoch, progress.step = epoch + 1, 0
        seconds = time.monotonic() - started
        if progress.epoch % config.validate_every and progress.epoch < config.epochs:
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
            checkpoint = _make_checkpoint(learner, train_set, progress, commit, metrics)
            if is_best:  # before `last`: a run resumed from `last` relies on `best`
                dataclasses.replace(checkpoint, progress=None).save(best_path)
            checkpoint.save(last_path)
        console.print(f"{title}: {metrics}{' (best)' if is_best else ''}, {seconds:.0f} s of training")
    if record:
        record.close()
    return best_path


def _start_or_resume(learner: Learner, dataset: Dataset, last_path: Path, resume: bool, console: Console) -> Progress:
    """Returns the starting position, restoring `learner` on resume; raises `InvalidConfig` if `last_path` conflicts."""
    if not resume:
        if last_path.exists():
            raise InvalidConfig(f"{last_path} exists: continue it with --resume, or give this run another --name")
        return Progress()
    if learner.processes.may_start_fresh(last_path):
        console.print(f"nothing to resume: {last_path} does not exist yet")
        return Progress()
    saved = _load_resumable(last_path, learner, dataset)
    learner.load_state_dict(saved)
    best_epoch = saved.get("best_epoch", saved["epoch"])  # older checkpoints have none
    progress = Progress(saved["epoch"], saved["step"], best_ap=saved["best_ap"], best_epoch=best_epoch)
    console.print(f"resumed {last_path} at epoch {progress.epoch + 1}, step {progress.step}")
    return progress


def _validate(learner: Learner, dataset: Dataset, console: Console) -> tuple[Metrics, list[Detections]]:
    """Evaluates the EMA weights, sharded over the processes; only the first process gets the detections."""
    processes = learner.processes
    shard = dataclasses.replace(dataset, photos=processes.shard(dataset.photos))
    found = detect_with_network(learner.ema, shard, learner.config.input_size, learner.workers, console)
    detections = processes.gather(found)
    metrics = processes.broadcast(measure(dataset, detections) if processes.is_first else None)
    assert metrics is not None
    return metrics, detections


def _make_checkpoint(
    learner: Learner, dataset: Dataset, progress: Progress, commit: str, metrics: Metrics | None = None
) -> Checkpoint:
    """Returns a resumable checkpoint of the EMA weights, with `metrics` if these weights were validated."""
    return Checkpoint(
        config=learner.config,
        labels=dataset.labels,
        label_ids=dataset.label_ids,
        weights=learner.ema.module.state_dict(),
        epoch=progress.epoch,
        git_commit=commit,
        ap=metrics.ap if metrics else None,
        ap50=metrics.ap50 if metrics else None,
        keypoint_ap=metrics.keypoints.ap if metrics and metrics.keypoints else None,
        skeleton=dataset.skeleton,
        progress=dataclasses.asdict(progress) | learner.state_dict(),
    )


def load_data(config: Config, processes: Processes, console: Console) -> tuple[Dataset, Dataset]:
    """Loads the training and validation sets; raises `InvalidConfig` if they contradict each other or `generate`."""
    if config.generate and processes.is_first:
        generate_dataset(config.data_root, config.generate)
    processes.broadcast(None)  # barrier: the data set is generated
    train_set, val_set = load_split(config, "train"), load_split(config, "val")
    if config.generate not in (0, len(train_set.photos)):
        raise InvalidConfig(
            f"{config.data_root} holds {len(train_set.photos)} photos, not the {config.generate} of generate:"
            " set generate = 0 for your own data"
        )
    if val_set.labels != train_set.labels:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different categories")
    if val_set.skeleton.joints != train_set.skeleton.joints:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different keypoints")
    if config.overfit:
        train_set, val_set = _take_first(train_set, config)
        console.print(
            f"overfit: the first {config.overfit} photos without augmentation, repeated, with validation on the same"
            " photos: AP should approach 100",
            soft_wrap=True,
        )
    elif common := {photo.path for photo in train_set.photos} & {photo.path for photo in val_set.photos}:
        raise InvalidConfig(
            f"{len(common)} photos are in both splits, such as {min(common)}: set train_images and val_images"
            " (YOLO), or train_annotations and val_annotations, to different photos"
        )
    console.print(f"{len(train_set.photos)} photos to train on, {len(val_set.photos)} to validate on")
    if train_set.skeleton.joints:
        console.print(train_set.skeleton.describe_mirroring(), soft_wrap=True, highlight=False)
        if not val_set.labels_with_keypoints:
            console.print(
                f"{val_set.annotations_path}: has no annotated keypoints, so the best weights are those with the best"
                " box AP",
                soft_wrap=True,
            )
    return train_set, val_set


def load_split(config: Config, split: Literal["train", "val"]) -> Dataset:
    """Loads one split of the configured data set; raises `InvalidDataset`."""
    annotations, images = {
        "train": (config.train_annotations, config.train_images),
        "val": (config.val_annotations, config.val_images),
    }[split]
    return load_dataset(config.data_root / annotations, config.data_root / images)


def _take_first(dataset: Dataset, config: Config) -> tuple[Dataset, Dataset]:
    """Returns the first `overfit` photos repeated to fill an epoch of `_OVERFIT_STEPS`, and the same photos once."""
    if config.overfit > len(dataset.photos):
        raise InvalidConfig(
            f"overfit {config.overfit}: {dataset.annotations_path} has only {len(dataset.photos)} photos"
        )
    photos = dataset.photos[: config.overfit]
    count = _OVERFIT_STEPS * config.batch_size
    repeated = (photos * -(-count // len(photos)))[:count]
    return dataclasses.replace(dataset, photos=repeated), dataclasses.replace(dataset, photos=photos)


def _load_resumable(path: Path, learner: Learner, dataset: Dataset) -> dict[str, Any]:
    """Loads the training state in `path`; raises `InvalidConfig` if it is not of the same settings and data."""
    saved = load_checkpoint(path)
    old, new = saved.config.model_dump(mode="json"), learner.config.model_dump(mode="json")
    changed = [key for key in new if old[key] != new[key] and key not in _CHANGEABLE_ON_RESUME]
    if changed:
        raise InvalidConfig(f"{path} was made with other settings: {', '.join(changed)}. Give a new run another --name")
    if saved.progress is None:
        raise InvalidConfig(f"{path} holds no optimiser state and cannot be resumed")
    facts = {
        "categories": (saved.labels, dataset.labels),
        "category ids": (saved.label_ids, dataset.label_ids),
        "keypoints": (saved.skeleton.joints, dataset.skeleton.joints),
    }
    changed = [f"{name} {old}, now {new}" for name, (old, new) in facts.items() if old != new]
    if changed:
        raise InvalidConfig(f"{path} was made on other data: {'; '.join(changed)}. Give a new run another --name")
    progress, steps = saved.progress, learner.steps_per_epoch
    if progress["scheduler"]["last_epoch"] != progress["epoch"] * steps + progress["step"]:
        raise InvalidConfig(
            f"{path} was made on another number of photos than the {len(dataset.photos)} of {dataset.annotations_path}."
            " Give a new run another --name"
        )
    return progress
