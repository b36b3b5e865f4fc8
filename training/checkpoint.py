"""Checkpoints: weights with the configuration and labels that made them, and what a resume needs."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from model.network import CenterNet
from model.skeleton import NO_JOINTS, Skeleton
from training.config import Config
from training.pretrained import load_strictly

FORMAT_VERSION = 1


class InvalidCheckpoint(Exception):
    """The file is no checkpoint of this package; the message says why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The averaged weights of a run at one moment, and how they came to be."""

    config: Config
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    weights: dict[str, torch.Tensor]
    epoch: int  # whole epochs behind these weights
    git_commit: str
    ap: float | None = None  # on validation, per cent; None where not yet measured
    ap50: float | None = None
    keypoint_ap: float | None = None  # of the joints
    skeleton: Skeleton = NO_JOINTS
    progress: dict[str, Any] | None = None  # the optimiser's and the average's state: in `last` alone

    def save(self, path: Path) -> None:
        """Writes the file whole or not at all."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content |= {"config": self.config.model_dump(mode="json"), "format_version": FORMAT_VERSION}
        content |= {"skeleton": dataclasses.asdict(self.skeleton)}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(path)

    def build_network(self) -> CenterNet:
        """The network with these weights, ready for inference on the CPU."""
        network = build_network(self.config, len(self.labels), len(self.skeleton.joints))
        load_strictly(network, self.weights, Path(self.config.name))
        return network.eval()


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU; raises `InvalidCheckpoint` where the file is none of this release."""
    if not path.is_file():
        raise InvalidCheckpoint(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        version = content.pop("format_version")
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise InvalidCheckpoint(f"{path}: not a checkpoint of this package ({type(error).__name__})") from error
    if version != FORMAT_VERSION:
        raise InvalidCheckpoint(f"{path}: format_version {version}, this release reads {FORMAT_VERSION}")
    skeleton = Skeleton.from_json(content.get("skeleton", {}))
    return Checkpoint(**content | {"config": Config.model_validate(content["config"]), "skeleton": skeleton})


def build_network(config: Config, class_count: int, joint_count: int = 0) -> CenterNet:
    """The network that a configuration describes, with random weights."""
    return CenterNet(
        config.backbone,
        class_count,
        neck_width=config.neck_width,
        head_width=config.head_width,
        neck=config.neck,
        joint_count=joint_count,
        mean=config.mean,
        std=config.std,
        stride=config.stride,
        channel_dropout=config.channel_dropout,
    )
