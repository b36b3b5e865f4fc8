"""Imports weights of CenterNet published by the paper's authors or by mmdetection as a checkpoint of this package."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.network.centernet import CenterNet
from model.network.heads import SIZE_UNIT, STRIDE
from training.config_file import make_config
from training.environment import find_git_commit
from training.weights.categories import COCO, COCO_PEOPLE, VOC, Categories
from training.weights.checkpoint import Checkpoint
from training.weights.files import InvalidWeights, check_fit, read_weights

_AUTHORS, _MMDETECTION = "its authors", "mmdetection"
_CATEGORIES = {(len(each.labels), len(each.skeleton.joints)): each for each in (COCO, VOC, COCO_PEOPLE)}
# the authors' mean and std in 0..1, which they apply to channels in the order blue, green, red
_COCO_STATISTICS = {"mean": (0.40789654, 0.44719302, 0.47026115), "std": (0.28863828, 0.27408164, 0.27809835)}
_VOC_STATISTICS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # ImageNet's for red, green, blue

# (bottleneck blocks, number of blocks in layer3)
_RESNETS = {(False, 2): "resnet18", (False, 6): "resnet34", (True, 6): "resnet50", (True, 23): "resnet101"}

_AUTHORS_HEADS = {
    "heatmap_head": "hm",
    "size_head": "wh",
    "offset_head": "reg",
    "keypoint_head": "hps",
    "keypoint_heatmap_head": "hm_hp",
    "keypoint_offset_head": "hp_offset",
}
_MMDETECTION_HEADS = {"heatmap_head": "heatmap_head", "size_head": "wh_head", "offset_head": "offset_head"}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The network that a file belongs to, and its naming of the weights."""

    publisher: str
    backbone: str
    neck: str
    name_of: Callable[[str], str]  # maps our key to the file's key


@dataclasses.dataclass(frozen=True)
class OfficialWeights:
    """A published file's weights, converted so that our network computes the same outputs."""

    publisher: str
    categories: Categories
    network_settings: dict[str, Any]  # settings of `Config`
    weights: dict[str, Tensor]


def import_weights(path: Path, name: str, input_size: int) -> tuple[Checkpoint, OfficialWeights]:
    """Returns the weights in `path` as a checkpoint called `name`, and as recognised.

    Raises `InvalidWeights` as `read_official_weights` does, `InvalidConfig` for an invalid name or size.
    """
    official = read_official_weights(path)
    categories = official.categories
    run = {"name": name, "dataset": categories.dataset, "data_root": ".", "epochs": 1, "input_size": input_size}
    config = make_config(run | official.network_settings)
    checkpoint = Checkpoint(
        config=config,
        labels=categories.labels,
        label_ids=categories.ids,
        weights=official.weights,
        epoch=0,
        git_commit=find_git_commit(),
        skeleton=categories.skeleton,
    )
    return checkpoint, official


def read_official_weights(path: Path) -> OfficialWeights:
    """Recognises the network by its keys, and converts all of its weights.

    Raises `InvalidWeights` if it is not a published network, or if keys are missing, unknown or of a wrong shape; the
    message lists them.
    """
    content = read_weights(path)
    weights = content.get("state_dict", content)
    weights = {key.removeprefix("module."): value for key, value in weights.items() if isinstance(value, Tensor)}
    layout = _recognise(weights, path)
    class_count, head_width, *_ = _shape(weights, layout.name_of("heatmap_head.2.weight"), path)
    _, neck_width, *_ = _shape(weights, layout.name_of("heatmap_head.0.weight"), path)
    joint_count = 0
    if any(key.startswith("hps.") for key in weights):
        joint_count = _shape(weights, layout.name_of("keypoint_heatmap_head.2.weight"), path)[0]
    if (class_count, joint_count) not in _CATEGORIES:
        raise InvalidWeights(
            f"{path}: has {class_count} classes with {joint_count} keypoints; published networks have the 80 classes of"
            " COCO or the 20 of Pascal VOC without keypoints, or people with"
            f" {len(COCO_PEOPLE.skeleton.joints)} keypoints"
        )
    with torch.device("meta"):
        network = CenterNet(
            layout.backbone,
            class_count,
            neck_width=neck_width,
            head_width=head_width,
            neck=layout.neck,
            joint_count=joint_count,
        )
    settings: dict[str, Any] = {
        "backbone": layout.backbone,
        "neck": layout.neck,
        "neck_width": neck_width,
        "head_width": head_width,
    }
    ours = _translate(network, layout, weights, path)
    if layout.publisher == _AUTHORS:
        first = f"backbone.{next(iter(network.backbone.state_dict()))}"
        ours[first] = ours[first].flip(1)  # from their blue, green, red to red, green, blue
        statistics = _VOC_STATISTICS if class_count == len(VOC.labels) else _COCO_STATISTICS
        settings |= {key: tuple(255 * value for value in reversed(values)) for key, values in statistics.items()}
    categories = _CATEGORIES[class_count, joint_count]
    return OfficialWeights(layout.publisher, categories, settings, ours)


def _translate(network: CenterNet, layout: Layout, weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Renames the weights and converts them to our units."""
    own, name_of = network.state_dict(), layout.name_of
    unused = tuple(name_of(f"backbone.{key}") for key in network.backbone.unused_keys)
    theirs = {key: value for key, value in weights.items() if not key.startswith(unused)}
    if layout.publisher == _MMDETECTION:  # its deformable convolutions have no bias
        biases = {name_of(key): value for key, value in own.items() if key.endswith(".bias")}
        zeros = {key: torch.zeros(value.shape) for key, value in biases.items() if key.endswith(".conv.bias")}
        theirs = zeros | theirs
    theirs = check_fit({name_of(key): value for key, value in own.items()}, theirs, path)
    ours = {key: theirs[name_of(key)].to(value.dtype) for key, value in own.items()}
    for key in ours:
        if key.endswith(("size_head.2.weight", "size_head.2.bias", "keypoint_head.2.weight", "keypoint_head.2.bias")):
            ours[key] = ours[key] * STRIDE / SIZE_UNIT  # theirs are in output pixels
    return ours


def _shape(weights: Mapping[str, Tensor], name: str, path: Path) -> torch.Size:
    """Returns the shape of a convolution's weight; raises `InvalidWeights` if it is missing or not 4-dimensional."""
    if name not in weights:
        raise InvalidWeights(f"{path}: missing {name}")
    shape = weights[name].shape
    if len(shape) != 4:
        raise InvalidWeights(f"{path}: {name} is {tuple(shape)}, which is not a convolution's")
    return shape


def _recognise(weights: Mapping[str, Tensor], path: Path) -> Layout:
    is_deformable = any(".conv_offset" in key for key in weights)
    if any(key.startswith("bbox_head.") for key in weights):
        backbone = _find_resnet(weights, "backbone.", path)
        neck = "deformable" if is_deformable else "convolutional"
        return Layout(_MMDETECTION, backbone, neck, _name_in_mmdetection)
    if any(key.startswith("kps.") for key in weights):
        return Layout(_AUTHORS, "hourglass104", "none", _name_in_hourglass)
    if any(key.startswith("base.") for key in weights):
        return Layout(_AUTHORS, "dla34", "aggregation", _name_in_dla)
    if any(key.startswith("deconv_layers.") for key in weights):
        neck = "deformable" if is_deformable else "transposed"
        return Layout(_AUTHORS, _find_resnet(weights, "", path), neck, _name_in_resnet)
    raise InvalidWeights(
        f"{path}: the keys match no CenterNet published by its authors (ResNet, DLA-34, Hourglass-104) or mmdetection"
        " (ResNet)"
    )


def _find_resnet(weights: Mapping[str, Tensor], prefix: str, path: Path) -> str:
    layer = f"{prefix}layer3."
    keys = [key.removeprefix(layer) for key in weights if key.startswith(layer)]
    blocks = len({key.split(".")[0] for key in keys})
    is_bottleneck = any(".conv3." in key for key in keys)
    if (is_bottleneck, blocks) not in _RESNETS:
        raise InvalidWeights(f"{path}: a ResNet with {blocks} blocks in layer3 is not supported")
    return _RESNETS[is_bottleneck, blocks]


def _name_in_resnet(key: str) -> str:
    part, rest = key.split(".", 1)
    return rest if part in ("backbone", "neck") else f"{_AUTHORS_HEADS[part]}.{rest}"


def _name_in_dla(key: str) -> str:
    return key.replace("backbone.", "base.", 1) if key.startswith("backbone.") else _name_in_resnet(key)


def _name_in_hourglass(key: str) -> str:
    part, rest = key.split(".", 1)
    if part == "backbone":
        return rest
    stack = "1"
    if part == "earlier_heads":
        stack, part, rest = rest.split(".", 2)
    layer, kind = rest.split(".")
    return f"{_AUTHORS_HEADS[part]}.{stack}.{'0.conv' if layer == '0' else '1'}.{kind}"


def _name_in_mmdetection(key: str) -> str:
    part, rest = key.split(".", 1)
    if part == "backbone":
        return key
    if part != "neck":
        return f"bbox_head.{_MMDETECTION_HEADS[part]}.{rest}"
    # our flat sequence of convolution, norm and ReLU is a sequence of modules of the three in mmdetection
    layers, index, rest = rest.split(".", 2)
    step, place = divmod(int(index), 3)
    rest = rest.replace("conv_offset_mask", "conv_offset")
    return f"neck.{layers}.{step}.{'bn' if place == 1 else 'conv'}.{rest}"
