"""A training run, from data set to best checkpoint."""

import dataclasses
import time
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from training.checkpoint import Checkpoint, load_checkpoint
from training.config import MACHINE_SETTINGS, Config, InvalidConfig
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.environment import find_git_commit
from training.evaluate import detect_with_network
from training.generate import generate_pictures
from training.learner import Learner
from training.loader import steps_per_epoch, training_batches
from training.metrics import Metrics, measure
from training.processes import ALONE, Processes
from training.progress import progress_bar
from training.record import Record

_MAY_CHANGE = {*MACHINE_SETTINGS, "patience", "validate_every"}  # when a run is resumed
_OVERFIT_STEPS = 50  # an epoch


def train(config: Config, resume: bool, console: Console, processes: Processes = ALONE) -> Path:
    """Runs or resumes `config` and returns the best checkpoint's path; every process of a run calls it."""
    config = config.for_overfitting() if config.overfit else config
    train_set, val_set = load_data(config, processes, console)
    processes.check_shares(config)
    steps = steps_per_epoch(train_set, config)
    learner = Learner(config, train_set.labels, train_set.skeleton.joints, steps, processes, console)
    console.print(learner.describe_steps(), soft_wrap=True)

    last_path, best_path = config.run_folder / "last.pt", config.run_folder / "best.pt"
    first_epoch, first_step, best_ap, best_epoch = 0, 0, -1.0, 0
    if resume and processes.may_begin(last_path):
        console.print(f"nothing to resume: {last_path} is yet to be written")
    elif resume:
        saved = _load_resumable(last_path, config)
        learner.load_state_dict(saved)
        first_epoch, first_step, best_ap = saved["epoch"], saved["step"], saved["best_ap"]
        best_epoch = saved.get("best_epoch", first_epoch)
        console.print(f"resumed {last_path} at epoch {first_epoch + 1}, step {first_step}")
    elif last_path.exists():
        raise InvalidConfig(f"{last_path} exists: continue it with --resume, or give this run another --name")
    commit = find_git_commit()

    def checkpoint(epoch: int, step: int, metrics: Metrics | None = None) -> Checkpoint:
        progress = {"epoch": epoch, "step": step, "best_ap": best_ap, "best_epoch": best_epoch}
        progress |= learner.state_dict()
        weights = learner.average.module.state_dict()
        facts = (config, train_set.labels, train_set.label_ids, weights, epoch, commit)
        if metrics is None:
            return Checkpoint(*facts, skeleton=train_set.skeleton, progress=progress)
        keypoint_ap = metrics.keypoints.ap if metrics.keypoints else None
        return Checkpoint(*facts, metrics.ap, metrics.ap50, keypoint_ap, train_set.skeleton, progress)

    if processes.is_first:
        record = Record(config, learner.device, commit, first_epoch * steps + first_step)
    for epoch in range(first_epoch, config.epochs):
        last_validated = epoch - epoch % config.validate_every
        if config.patience and last_validated - best_epoch >= config.patience:
            console.print(
                f"stopped: no better AP for {config.patience} epochs than {best_ap:.2f} after epoch {best_epoch}"
            )
            break
        learner.begin_epoch(epoch)
        if processes.is_first:
            record.begin_epoch()
        started = time.monotonic()
        title = f"epoch {epoch + 1}/{config.epochs} at {config.picture_size(epoch)} px"
        batches = training_batches(train_set, config, epoch, first_step, learner.device, processes)
        with progress_bar(console, title, steps, first_step) as advance:
            for step, parts in enumerate(batches, start=first_step):
                taken = learner.step(parts)
                advance(loss=sum(loss.item() for loss in taken.losses.values()), pictures=config.batch_size)
                if processes.is_first:
                    record.add_step(epoch * steps + step, taken.losses, taken.gradient_norm, taken.learning_rate)
                    if (step + 1) % config.save_every == 0 and step + 1 < steps:
                        checkpoint(epoch, step + 1).save(last_path)
        first_step = 0
        seconds = time.monotonic() - started
        if (epoch + 1) % config.validate_every and epoch + 1 < config.epochs:
            if processes.is_first:
                checkpoint(epoch + 1, 0).save(last_path)
            console.print(f"epoch {epoch + 1}/{config.epochs}: {seconds:.0f} s of training")
            continue

        share = dataclasses.replace(val_set, photos=processes.deal(val_set.photos))
        found = detect_with_network(learner.average, share, config.input_size, config.workers, console)
        detections = processes.collect(found)
        metrics = processes.tell(measure(val_set, detections) if processes.is_first else None)
        assert metrics is not None
        is_best = metrics.task_ap > best_ap
        if is_best:
            best_ap, best_epoch = metrics.task_ap, epoch + 1
        if processes.is_first:
            record.add_epoch(epoch + 1, (epoch + 1) * steps, metrics, seconds, val_set, detections)
            ended = checkpoint(epoch + 1, 0, metrics)
            if is_best:  # first: who goes on from the last must not find that the best is missing
                dataclasses.replace(ended, progress=None).save(best_path)
            ended.save(last_path)
        console.print(
            f"epoch {epoch + 1}/{config.epochs}: {metrics}{' (best)' if is_best else ''}, {seconds:.0f} s of training"
        )
    if processes.is_first:
        record.close()
    return best_path


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
    """One of the two that `config` names; raises `InvalidDataset`."""
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
