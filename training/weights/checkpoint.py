"""Checkpoints: weights with their configuration and labels, and the training state to resume from."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from model.errors import UserError
from model.network.centernet import CenterNet
from model.skeleton import NO_JOINTS, Skeleton
from training.config import Config, InvalidConfig
from training.config_file import make_config
from training.files import replacing
from training.weights.files import load_strictly, read_weights

FORMAT_VERSION = 1


class InvalidCheckpoint(UserError):
    """The file is not a checkpoint of this release; the message says why."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The EMA weights at one point of a run, and what is needed to rebuild their network."""

    config: Config
    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    weights: dict[str, torch.Tensor]
    epoch: int  # completed epochs
    git_commit: str
    ap: float | None = None  # on validation, per cent; None if not validated
    ap50: float | None = None
    keypoint_ap: float | None = None  # of the joints, likewise
    skeleton: Skeleton = NO_JOINTS
    progress: dict[str, Any] | None = None  # training state to resume from; only in `last.pt`

    def save(self, path: Path) -> None:
        """Writes the file atomically."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        content |= {"config": self.config.model_dump(mode="json"), "format_version": FORMAT_VERSION}
        content |= {"skeleton": dataclasses.asdict(self.skeleton)}
        with replacing(path) as temporary:
            torch.save(content, temporary)

    def build_network(self) -> CenterNet:
        """Builds the network with these weights, in evaluation mode on the CPU."""
        network = build_network(self.config, len(self.labels), len(self.skeleton.joints))
        load_strictly(network, self.weights, Path(self.config.name))
        return network.eval()


def load_checkpoint(path: Path) -> Checkpoint:
    """Loads a checkpoint onto the CPU.

    Raises `InvalidWeights` if the file cannot be read, `InvalidCheckpoint` if it is not a checkpoint of this release.
    """
    content = read_weights(path)
    if "format_version" not in content:
        raise InvalidCheckpoint(f"{path}: not a checkpoint of this package")
    version = content.pop("format_version")
    if version != FORMAT_VERSION:
        raise InvalidCheckpoint(f"{path}: format_version {version}, this release reads {FORMAT_VERSION}")
    try:
        config = make_config(content["config"])
    except InvalidConfig as error:
        raise InvalidCheckpoint(f"{path}: {error}") from error
    return Checkpoint(**content | {"config": config, "skeleton": Skeleton.from_json(content.get("skeleton", {}))})


def build_network(config: Config, class_count: int, joint_count: int = 0) -> CenterNet:
    """Builds the network of a configuration, with random weights."""
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
