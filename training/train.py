"""A training run, from data set to best checkpoint."""

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from model.network import CenterNet
from training.checkpoint import Checkpoint, build_network, git_commit, load_checkpoint
from training.coco import Dataset, load_coco
from training.config import Config, InvalidConfig
from training.draw import draw_predictions
from training.evaluate import detect_with_network
from training.generate import generate_pictures
from training.loader import steps_per_epoch, training_batches
from training.losses import detection_losses
from training.metrics import measure
from training.pretrained import load_imagenet
from training.progress import progress_bar

MACHINE_SETTINGS = {"output", "data_root", "device", "workers", "save_every"}  # may differ when a run is resumed
_PICTURES = 6  # validation photos drawn into TensorBoard each epoch


class NonFiniteLoss(Exception):
    """A loss term became infinite or not a number; the message names it."""


def train(config: Config, resume: bool, console: Console) -> Path:
    """Runs or resumes `config` and returns the best checkpoint's path."""
    if config.generate:
        generate_pictures(config.data_root, config.generate, config.seed)
    train_set = load_coco(config.data_root / config.train_annotations, config.data_root / config.train_images)
    val_set = load_coco(config.data_root / config.val_annotations, config.data_root / config.val_images)
    if val_set.labels != train_set.labels:
        raise InvalidConfig(f"{val_set.annotations_path} and {train_set.annotations_path} name different categories")
    console.print(f"{len(train_set.photos)} photos to train on, {len(val_set.photos)} to validate on")

    torch.manual_seed(config.seed)
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device)
    network = build_network(config, len(train_set.labels))
    if config.pretrained:
        load_imagenet(network.backbone, config.pretrained)
    freeze_stages(network, config.frozen_stages)
    network.to(device, memory_format=torch.channels_last)
    average = AveragedModel(network, multi_avg_fn=_averaging(config.ema_decay), use_buffers=True)
    optimizer = torch.optim.AdamW(parameter_groups(network, config), fused=True)
    steps = steps_per_epoch(train_set, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_curve(config, steps))
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    progress = {"network": network, "average": average, "optimizer": optimizer, "scheduler": scheduler, "scaler": scaler}

    last_path, best_path = config.run_folder / "last.pt", config.run_folder / "best.pt"
    first_epoch, first_step, best_ap = 0, 0, -1.0
    if resume:
        saved = _load_resumable(last_path, config)
        for name, part in progress.items():
            part.load_state_dict(saved[name])
        first_epoch, first_step, best_ap = saved["epoch"], saved["step"], saved["best_ap"]
        console.print(f"resumed {last_path} at epoch {first_epoch}, step {first_step}")
    elif last_path.exists():
        raise InvalidConfig(f"{last_path} exists: continue it with --resume, or give this run another --name")

    commit = git_commit()

    def checkpoint(epoch: int, step: int, ap: float | None = None, ap50: float | None = None) -> Checkpoint:
        state = {name: part.state_dict() for name, part in progress.items()}
        state |= {"epoch": epoch, "step": step, "best_ap": best_ap}
        weights = average.module.state_dict()
        return Checkpoint(config, train_set.labels, train_set.label_ids, weights, epoch, ap, ap50, commit, state)

    config.run_folder.mkdir(parents=True, exist_ok=True)
    (config.run_folder / "config.json").write_text(config.model_dump_json(indent=2))
    writer = SummaryWriter(str(config.run_folder), purge_step=first_epoch * steps + first_step)
    for epoch in range(first_epoch, config.epochs):
        set_training_mode(network, config)
        size = config.picture_size(epoch)
        started = time.monotonic()
        with progress_bar(console, f"epoch {epoch + 1}/{config.epochs} at {size} px", steps, first_step) as advance:
            batches = training_batches(train_set, config, epoch, first_step, pin_memory=device.type == "cuda")
            for step, (images, targets) in enumerate(batches, start=first_step):
                images = images.to(device, non_blocking=True)
                targets = type(targets)(*(target.to(device, non_blocking=True) for target in targets))
                with torch.autocast(device.type, _dtype(config), enabled=config.precision != "fp32"):
                    maps = network(images)
                terms = detection_losses(maps, targets, config)
                _check_finite(terms, epoch, step)
                optimizer.zero_grad()
                scaler.scale(torch.stack(list(terms.values())).sum()).backward()
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(network.parameters(), config.gradient_clip)
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()
                average.update_parameters(network)

                _log_step(writer, epoch * steps + step, terms, norm, scheduler.get_last_lr()[-1])
                advance(loss=sum(term.item() for term in terms.values()), pictures=len(images))
                if (step + 1) % config.save_every == 0 and step + 1 < steps:
                    checkpoint(epoch, step + 1).save(last_path)
        first_step = 0

        seconds = time.monotonic() - started
        detections = detect_with_network(average.module, val_set, config.input_size, config.workers, console)
        metrics = measure(val_set, detections)
        _log_epoch(writer, config.run_folder, epoch, (epoch + 1) * steps, metrics.ap, metrics.ap50, seconds)
        for photo, found in list(zip(val_set.photos, detections, strict=True))[:_PICTURES]:
            picture = draw_predictions(photo, found, val_set.labels)
            writer.add_image(f"val/{photo.id}", picture, (epoch + 1) * steps, dataformats="HWC")
        is_best = metrics.ap > best_ap
        best_ap = max(best_ap, metrics.ap)
        console.print(
            f"epoch {epoch + 1}/{config.epochs}: AP {metrics.ap:.2f}, AP50 {metrics.ap50:.2f}"
            f"{' (best)' if is_best else ''}, {seconds:.0f} s of training"
        )
        ended = checkpoint(epoch + 1, 0, metrics.ap, metrics.ap50)
        ended.save(last_path)
        if is_best:
            dataclasses.replace(ended, progress=None).save(best_path)
    writer.close()
    return best_path


def parameter_groups(network: CenterNet, config: Config) -> list[dict[str, object]]:
    """Backbone and the rest, each with and without weight decay: vectors (biases, norms) are not decayed."""
    groups: list[dict[str, object]] = []
    backbone = set(network.backbone.parameters())
    for is_backbone in (True, False):
        rate = config.learning_rate * (config.backbone_learning_rate_scale if is_backbone else 1.0)
        own = [p for p in network.parameters() if p.requires_grad and (p in backbone) == is_backbone]
        for decays in (True, False):
            chosen = [p for p in own if (p.ndim > 1) == decays]
            decay = config.weight_decay if decays else 0.0
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def learning_rate_curve(config: Config, steps_per_epoch: int) -> Callable[[int], float]:
    """Step → share of the learning rate: a linear warm-up, then half a cosine down to 0."""
    total = config.epochs * steps_per_epoch
    warmup = min(config.warmup_steps, total // 2)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2

    return share


def freeze_stages(network: CenterNet, count: int) -> None:
    """Takes the first `count` backbone stages out of training."""
    for stage in network.backbone.stages()[:count]:
        for module in stage:
            module.requires_grad_(False)


def set_training_mode(network: CenterNet, config: Config) -> None:
    """Training mode, but for the batch norms whose statistics stay as they were pretrained."""
    network.train()
    frozen = network.backbone.stages()[: None if config.freeze_statistics else config.frozen_stages]
    for stage in frozen:
        for module in stage:
            module.eval()


def _averaging(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor | int], None]:
    """An exponential average that forgets its random start: the decay grows with the number of steps."""

    def average(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        ramp = min(decay, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(ramp)(averaged, current, count)

    return average


def _load_resumable(path: Path, config: Config) -> dict[str, object]:
    saved = load_checkpoint(path)
    old, new = saved.config.model_dump(mode="json"), config.model_dump(mode="json")
    changed = [key for key in new if old[key] != new[key] and key not in MACHINE_SETTINGS]
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


def _log_step(writer: SummaryWriter, step: int, terms: dict[str, Tensor], norm: Tensor, rate: float) -> None:
    for name, term in terms.items():
        writer.add_scalar(f"loss/{name}", term.item(), step)
    writer.add_scalar("gradient_norm", norm.item(), step)
    writer.add_scalar("learning_rate", rate, step)


def _log_epoch(
    writer: SummaryWriter, folder: Path, epoch: int, step: int, ap: float, ap50: float, seconds: float
) -> None:
    writer.add_scalar("val/AP", ap, step)
    writer.add_scalar("val/AP50", ap50, step)
    row = {"epoch": epoch + 1, "ap": round(ap, 3), "ap50": round(ap50, 3), "train_seconds": round(seconds, 1)}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def _dtype(config: Config) -> torch.dtype:
    return torch.float16 if config.precision == "fp16" else torch.bfloat16
