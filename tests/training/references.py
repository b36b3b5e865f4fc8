"""Reference implementations of published networks, which read the weights by their published keys.

They use none of the product's code except `deform_conv`, which `tests.model.test_deformable` tests.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from model.network.deformable import deform_conv

Weights = dict[str, Tensor]


def convolve(weights: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)


def normalise(weights: Weights, name: str, x: Tensor) -> Tensor:
    mean, variance, scale, bias = (
        weights[f"{name}.{each}"][:, None, None] for each in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + bias


def deform(weights: Weights, name: str, offset_name: str, x: Tensor) -> Tensor:
    offsets_and_mask = convolve(weights, offset_name, x)
    weight = weights[f"{name}.weight"]
    bias = weights.get(f"{name}.bias", torch.zeros(len(weight)))
    return deform_conv(x, weight, offsets_and_mask[:, :18], bias, offsets_and_mask[:, 18:].sigmoid())


def upsample(weights: Weights, name: str, x: Tensor, factor: int = 2, groups: int = 1) -> Tensor:
    padding = (weights[f"{name}.weight"].shape[-1] - factor) // 2
    return F.conv_transpose2d(x, weights[f"{name}.weight"], None, factor, padding, groups=groups)


def resnet18(weights: Weights, prefix: str, x: Tensor) -> Tensor:
    x = F.relu(normalise(weights, f"{prefix}bn1", convolve(weights, f"{prefix}conv1", x, 2)))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        for block in range(2):
            name, stride = f"{prefix}layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1
            y = F.relu(normalise(weights, f"{name}.bn1", convolve(weights, f"{name}.conv1", x, stride)))
            y = normalise(weights, f"{name}.bn2", convolve(weights, f"{name}.conv2", y))
            if stride == 2:
                x = normalise(weights, f"{name}.downsample.1", convolve(weights, f"{name}.downsample.0", x, 2))
            x = F.relu(x + y)
    return x


def read_heads(weights: Weights, names: list[str], first: str, second: str, x: Tensor) -> list[Tensor]:
    return [convolve(weights, f"{name}.{second}", F.relu(convolve(weights, f"{name}.{first}", x))) for name in names]


def authors_resdcn18(weights: Weights, x: Tensor) -> Tensor:
    """Returns the heads' input feature map of images (B, 3, H, W), normalised as by the authors."""
    x = resnet18(weights, "", x)
    for step in range(3):
        name, up = f"deconv_layers.{6 * step}", f"deconv_layers.{6 * step + 3}"
        x = deform(weights, name, f"{name}.conv_offset_mask", x)
        x = F.relu(normalise(weights, f"deconv_layers.{6 * step + 1}", x))
        x = F.relu(normalise(weights, f"deconv_layers.{6 * step + 4}", upsample(weights, up, x)))
    return x


def authors_res18(weights: Weights, x: Tensor) -> Tensor:
    x = resnet18(weights, "", x)
    for step in range(3):
        x = upsample(weights, f"deconv_layers.{3 * step}", x)
        x = F.relu(normalise(weights, f"deconv_layers.{3 * step + 1}", x))
    return x


def mmdetection_resnet18(weights: Weights, x: Tensor) -> Tensor:
    x = resnet18(weights, "backbone.", x)
    for step in range(3):
        conv, up = f"neck.deconv_layers.{2 * step}", f"neck.deconv_layers.{2 * step + 1}"
        if f"{conv}.conv.conv_offset.weight" in weights:
            x = deform(weights, f"{conv}.conv", f"{conv}.conv.conv_offset", x)
        else:
            x = convolve(weights, f"{conv}.conv", x)
        x = F.relu(normalise(weights, f"{conv}.bn", x))
        x = F.relu(normalise(weights, f"{up}.bn", upsample(weights, f"{up}.conv", x)))
    return x


def authors_aggregation(weights: Weights, maps: list[Tensor]) -> Tensor:
    """Aggregates DLA's feature maps at strides 4, 8, 16, 32 into the heads' input, level by level."""

    def step(name: str, index: int, layers: list[Tensor], at: int, factor: int) -> None:
        def dcn(part: str, x: Tensor) -> Tensor:
            key = f"{name}.{part}_{index}"
            x = deform(weights, f"{key}.conv", f"{key}.conv.conv_offset_mask", x)
            return F.relu(normalise(weights, f"{key}.actf.0", x))

        x = dcn("proj", layers[at])
        x = upsample(weights, f"{name}.up_{index}", x, factor, groups=x.shape[1])
        layers[at] = dcn("node", x + layers[at - 1])

    layers = list(maps)
    step("dla_up.ida_0", 1, layers, 3, 2)
    at_16 = layers[3]
    step("dla_up.ida_1", 1, layers, 2, 2)
    step("dla_up.ida_1", 2, layers, 3, 2)
    at_8 = layers[3]
    step("dla_up.ida_2", 1, layers, 1, 2)
    step("dla_up.ida_2", 2, layers, 2, 2)
    step("dla_up.ida_2", 3, layers, 3, 2)
    last = [layers[3], at_8, at_16]
    step("ida_up", 1, last, 1, 2)
    step("ida_up", 2, last, 2, 4)
    return last[2]


def authors_hourglass(weights: Weights, x: Tensor) -> list[Tensor]:
    """Returns the heads' input feature map of each stack, for images (B, 3, H, W) normalised as by the authors."""

    def residual(name: str, x: Tensor) -> Tensor:
        halves = ".low1.0" in name or name == "pre.1"
        y = F.relu(normalise(weights, f"{name}.bn1", convolve(weights, f"{name}.conv1", x, 2 if halves else 1)))
        y = normalise(weights, f"{name}.bn2", convolve(weights, f"{name}.conv2", y))
        if f"{name}.skip.0.weight" in weights:
            x = normalise(weights, f"{name}.skip.1", convolve(weights, f"{name}.skip.0", x, 2 if halves else 1))
        return F.relu(x + y)

    def sequence(name: str, x: Tensor) -> Tensor:
        block = 0
        while f"{name}.{block}.conv1.weight" in weights:
            x = residual(f"{name}.{block}", x)
            block += 1
        assert block > 0
        return x

    def module(name: str, x: Tensor) -> Tensor:
        inside: Callable[[str, Tensor], Tensor] = sequence if f"{name}.low2.0.conv1.weight" in weights else module
        low = sequence(f"{name}.low3", inside(f"{name}.low2", sequence(f"{name}.low1", x)))
        return sequence(f"{name}.up1", x) + low.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def conv_bn(name: str, x: Tensor, stride: int = 1) -> Tensor:
        return F.relu(normalise(weights, f"{name}.bn", convolve(weights, f"{name}.conv", x, stride)))

    x = residual("pre.1", conv_bn("pre.0", x, 2))
    first = conv_bn("cnvs.0", module("kps.0", x))
    x = normalise(weights, "inters_.0.1", convolve(weights, "inters_.0.0", x))
    x = F.relu(x + normalise(weights, "cnvs_.0.1", convolve(weights, "cnvs_.0.0", first)))
    return [first, conv_bn("cnvs.1", module("kps.1", residual("inters.0", x)))]
