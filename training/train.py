"""A training run, from data set to best checkpoint."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from training.checkpoint import Checkpoint, build_network, git_commit, load_checkpoint
from training.config import Config, InvalidConfig
from training.datasets.dataset import Dataset
from training.datasets.load import load_dataset
from training.evaluate import detect_with_network
from training.generate import generate_pictures
from training.loader import steps_per_epoch, training_batches
from training.losses import detection_losses
from training.metrics import Metrics, measure
from training.optimizer import build_average, build_optimizer, freeze_stages, learning_rate_curve, set_training_mode
from training.pretrained import load_pretrained
from training.progress import progress_bar
from training.record import Record

_MACHINE_SETTINGS = {"output", "data_root", "device", "workers", "save_every"}  # may differ when a run is resumed


class NonFiniteLoss(Exception):
    """A loss term became infinite or not a number; the message names it."""


def train(config: Config, resume: bool, console: Console) -> Path:
    """Runs or resumes `config` and returns the best checkpoint's path."""
    train_set, val_set = _load_data(config)
    console.print(f"{len(train_set.photos)} photos to train on, {len(val_set.photos)} to validate on")
    steps = steps_per_epoch(train_set, config)

    torch.manual_seed(config.seed)
    device = _choose_device(config.device)
    network = build_network(config, len(train_set.labels), len(train_set.skeleton.joints))
    if config.pretrained:
        console.print(load_pretrained(network, config.pretrained, train_set.labels, train_set.skeleton.joints))
    freeze_stages(network, config.frozen_stages)
    network.to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # PyTorch's stubs miss this one
    average = build_average(network, config.ema_decay)
    optimizer = build_optimizer(network, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_curve(config, steps))
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    parts: dict[str, Any] = {
        "network": network,
        "average": average,
        "optimizer": optimizer,
        "scheduler": scheduler,
        "scaler": scaler,
    }

    last_path, best_path = config.run_folder / "last.pt", config.run_folder / "best.pt"
    first_epoch, first_step, best_ap = 0, 0, -1.0
    if resume:
        saved = _load_resumable(last_path, config)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first_epoch, first_step, best_ap = saved["epoch"], saved["step"], saved["best_ap"]
        console.print(f"resumed {last_path} at epoch {first_epoch + 1}, step {first_step}")
    elif last_path.exists():
        raise InvalidConfig(f"{last_path} exists: continue it with --resume, or give this run another --name")

    commit = git_commit()

    def checkpoint(epoch: int, step: int, metrics: Metrics | None = None) -> Checkpoint:
        state = {name: part.state_dict() for name, part in parts.items()}
        state |= {"epoch": epoch, "step": step, "best_ap": best_ap}
        weights = average.module.state_dict()
        facts = (config, train_set.labels, train_set.label_ids, weights, epoch, commit)
        if metrics is None:
            return Checkpoint(*facts, skeleton=train_set.skeleton, progress=state)
        keypoint_ap = metrics.keypoints.ap if metrics.keypoints else None
        return Checkpoint(*facts, metrics.ap, metrics.ap50, keypoint_ap, train_set.skeleton, state)

    record = Record(config, device, commit, first_epoch * steps + first_step)
    for epoch in range(first_epoch, config.epochs):
        set_training_mode(network, config)
        started = time.monotonic()
        title = f"epoch {epoch + 1}/{config.epochs} at {config.picture_size(epoch)} px"
        with progress_bar(console, title, steps, first_step) as advance:
            batches = training_batches(train_set, config, epoch, first_step, pin_memory=device.type == "cuda")
            for step, (images, targets) in enumerate(batches, start=first_step):
                images = images.to(device, non_blocking=True)
                targets = targets.to(device)
                with torch.autocast(device.type, _dtype(config), enabled=config.precision != "fp32"):
                    maps = network(images)
                terms = detection_losses(maps, targets, config)
                _check_finite(terms, epoch, step)
                optimizer.zero_grad()
                scaler.scale(torch.stack(list(terms.values())).sum()).backward()  # type: ignore[no-untyped-call]
                scaler.unscale_(optimizer)
                gradient_norm = nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                average.update_parameters(network)

                record.add_step(epoch * steps + step, terms, gradient_norm, optimizer.param_groups[-1]["lr"])
                advance(loss=sum(term.item() for term in terms.values()), pictures=len(images))
                if (step + 1) % config.save_every == 0 and step + 1 < steps:
                    checkpoint(epoch, step + 1).save(last_path)
        first_step = 0
        seconds = time.monotonic() - started

        detections = detect_with_network(average, val_set, config.input_size, config.workers, console)
        metrics = measure(val_set, detections)
        record.add_epoch(epoch + 1, (epoch + 1) * steps, metrics, seconds, val_set, detections)
        is_best = metrics.task_ap > best_ap
        best_ap = max(best_ap, metrics.task_ap)
        ended = checkpoint(epoch + 1, 0, metrics)
        ended.save(last_path)
        if is_best:
            dataclasses.replace(ended, progress=None).save(best_path)
        console.print(
            f"epoch {epoch + 1}/{config.epochs}: {metrics}{' (best)' if is_best else ''}, {seconds:.0f} s of training"
        )
    record.close()
    return best_path


def _load_data(config: Config) -> tuple[Dataset, Dataset]:
    if config.generate:
        generate_pictures(config.data_root, config.generate, config.seed)
    train_set = load_dataset(config.data_root / config.train_annotations, config.data_root / config.train_images)
    val_set = load_dataset(config.data_root / config.val_annotations, config.data_root / config.val_images)
    if val_set.labels != train_set.labels:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different categories")
    if val_set.skeleton.joints != train_set.skeleton.joints:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different keypoints")
    return train_set, val_set


def _choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InvalidConfig(f"device {name}: PyTorch finds no CUDA device here; use --device cpu")
    return torch.device(name)


def _dtype(config: Config) -> torch.dtype:
    return torch.float16 if config.precision == "fp16" else torch.bfloat16


def _load_resumable(path: Path, config: Config) -> dict[str, Any]:
    saved = load_checkpoint(path)
    old, new = saved.config.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [key for key in new if old[key] != new[key] and key not in _MACHINE_SETTINGS]
    if changed:
        raise InvalidConfig(f"{path} was made with other settings: {', '.join(changed)}. Give a new run another --name")
    if saved.progress is None:
        raise InvalidConfig(f"{path} holds weights alone and cannot be resumed")
    return saved.progress


def _check_finite(terms: dict[str, Tensor], epoch: int, step: int) -> None:
    for name, term in terms.items():
        if not torch.isfinite(term):
            raise NonFiniteLoss(
                f"the {name} loss is {term.item()} at epoch {epoch + 1}, step {step}: lower the learning rate,"
                " or train with precision fp32"
            )
