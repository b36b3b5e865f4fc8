"""Names and shapes of the weights in published files."""

import math

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

CTDET = {"hm": 80, "wh": 2, "reg": 2}
PASCAL = {"hm": 20, "wh": 2, "reg": 2}
MULTI_POSE = {"hm": 1, "wh": 2, "hps": 34, "reg": 2, "hm_hp": 17, "hp_offset": 2}
RESNETS = {18: (2, 2, 2, 2), 101: (3, 4, 23, 3)}
HOURGLASS_104 = ((256, 256, 384, 384, 384, 512), (2, 2, 2, 2, 2, 4), 128, 256)


def convolution(name: str, out: int, into: int, size: int, bias: bool = False) -> Shapes:
    return {f"{name}.weight": (out, into, size, size)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, channels: int) -> Shapes:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{vector}": (channels,) for vector in vectors} | {f"{name}.num_batches_tracked": ()}


def dcn(name: str, out: int, into: int) -> Shapes:
    return convolution(name, out, into, 3, bias=True) | convolution(f"{name}.conv_offset_mask", 27, into, 3, bias=True)


def resnet(depth: int, prefix: str = "") -> Shapes:
    is_bottleneck = depth > 34
    expansion = 4 if is_bottleneck else 1
    shapes = convolution(f"{prefix}conv1", 64, 3, 7) | norm(f"{prefix}bn1", 64)
    into = 64
    for layer, (width, blocks) in enumerate(zip((64, 128, 256, 512), RESNETS[depth], strict=True), start=1):
        for block in range(blocks):
            name = f"{prefix}layer{layer}.{block}"
            sizes = [(width, into, 1), (width, width, 3), (4 * width, width, 1)]
            if not is_bottleneck:
                sizes = [(width, into, 3), (width, width, 3)]
            for index, (out, inner, size) in enumerate(sizes, start=1):
                shapes |= convolution(f"{name}.conv{index}", out, inner, size) | norm(f"{name}.bn{index}", out)
            if into != expansion * width:
                shapes |= convolution(f"{name}.downsample.0", expansion * width, into, 1)
                shapes |= norm(f"{name}.downsample.1", expansion * width)
            into = expansion * width
    return shapes


def authors_heads(heads: dict[str, int], into: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for name, out in heads.items():
        shapes |= convolution(f"{name}.0", width, into, 3, bias=True) | convolution(
            f"{name}.2", out, width, 1, bias=True
        )
    return shapes


def authors_resnet(depth: int, heads: dict[str, int], deformable: bool) -> Shapes:
    shapes = resnet(depth)
    into = 512 if depth <= 34 else 2048
    for step, width in enumerate((256, 128, 64) if deformable else (256, 256, 256)):
        if deformable:
            shapes |= dcn(f"deconv_layers.{6 * step}", width, into) | norm(f"deconv_layers.{6 * step + 1}", width)
            shapes |= {f"deconv_layers.{6 * step + 3}.weight": (width, width, 4, 4)}
            shapes |= norm(f"deconv_layers.{6 * step + 4}", width)
        else:
            shapes |= {f"deconv_layers.{3 * step}.weight": (into, width, 4, 4)}
            shapes |= norm(f"deconv_layers.{3 * step + 1}", width)
        into = width
    return shapes | authors_heads(heads, into, 64)


def authors_dla(heads: dict[str, int]) -> Shapes:
    def tree(name: str, into: int, out: int, into_root: int) -> Shapes:
        shapes: Shapes = {}
        for block, first in (("tree1", into), ("tree2", out)):
            shapes |= convolution(f"{name}.{block}.conv1", out, first, 3) | norm(f"{name}.{block}.bn1", out)
            shapes |= convolution(f"{name}.{block}.conv2", out, out, 3) | norm(f"{name}.{block}.bn2", out)
        return shapes | convolution(f"{name}.root.conv", out, into_root, 1) | norm(f"{name}.root.bn", out)

    def project(name: str, into: int, out: int) -> Shapes:
        return convolution(f"{name}.project.0", out, into, 1) | norm(f"{name}.project.1", out)

    shapes: Shapes = {}
    for name, out, into, size in (("base_layer", 16, 3, 7), ("level0", 16, 16, 3), ("level1", 32, 16, 3)):
        shapes |= convolution(f"base.{name}.0", out, into, size) | norm(f"base.{name}.1", out)
    shapes |= tree("base.level2", 32, 64, 128) | project("base.level2", 32, 64)
    for name, into, out, into_root in (("base.level3", 64, 128, 448), ("base.level4", 128, 256, 896)):
        shapes |= tree(f"{name}.tree1", into, out, 2 * out) | tree(f"{name}.tree2", out, out, into_root)
        shapes |= project(f"{name}.tree1", into, out) | project(name, into, out)  # the second is never used
    shapes |= tree("base.level5", 256, 512, 1280) | project("base.level5", 256, 512)
    shapes |= convolution("base.fc", 1000, 512, 1, bias=True)  # ImageNet's classifier

    aggregations = {
        "dla_up.ida_0": (256, [(512, 2)]),
        "dla_up.ida_1": (128, [(256, 2), (256, 2)]),
        "dla_up.ida_2": (64, [(128, 2), (128, 2), (128, 2)]),
        "ida_up": (64, [(128, 2), (256, 4)]),
    }
    for name, (out, steps) in aggregations.items():
        for index, (into, factor) in enumerate(steps, start=1):
            for part, first in (("proj", into), ("node", out)):
                shapes |= dcn(f"{name}.{part}_{index}.conv", out, first) | norm(f"{name}.{part}_{index}.actf.0", out)
            shapes |= {f"{name}.up_{index}.weight": (out, 1, 2 * factor, 2 * factor)}
    return shapes | authors_heads(heads, 64, 256)


def authors_hourglass(
    heads: dict[str, int], widths: tuple[int, ...], repeats: tuple[int, ...], stem: int, out_width: int
) -> Shapes:
    def conv_bn(name: str, out: int, into: int, size: int) -> Shapes:
        return convolution(f"{name}.conv", out, into, size) | norm(f"{name}.bn", out)

    def bare_conv_bn(name: str, out: int, into: int) -> Shapes:
        return convolution(f"{name}.0", out, into, 1) | norm(f"{name}.1", out)

    def residual(name: str, into: int, out: int, halves: bool = False) -> Shapes:
        shapes = convolution(f"{name}.conv1", out, into, 3) | norm(f"{name}.bn1", out)
        shapes |= convolution(f"{name}.conv2", out, out, 3) | norm(f"{name}.bn2", out)
        return shapes | (bare_conv_bn(f"{name}.skip", out, into) if halves or into != out else {})

    def module(name: str, level: int) -> Shapes:
        outer, inner, count = widths[level], widths[level + 1], repeats[level]
        shapes: Shapes = {}
        for block in range(count):
            shapes |= residual(f"{name}.up1.{block}", outer, outer)
            shapes |= residual(f"{name}.low1.{block}", inner if block else outer, inner, halves=block == 0)
            shapes |= residual(f"{name}.low3.{block}", inner, inner if block < count - 1 else outer)
        if level + 2 < len(widths):
            return shapes | module(f"{name}.low2", level + 1)
        for block in range(repeats[level + 1]):
            shapes |= residual(f"{name}.low2.{block}", inner, inner)
        return shapes

    width = widths[0]
    shapes = conv_bn("pre.0", stem, 3, 7) | residual("pre.1", stem, width, halves=True)
    for stack in (0, 1):
        shapes |= module(f"kps.{stack}", 0) | conv_bn(f"cnvs.{stack}", out_width, width, 3)
        for head, out in heads.items():
            shapes |= convolution(f"{head}.{stack}.0.conv", width, out_width, 3, bias=True)
            shapes |= convolution(f"{head}.{stack}.1", out, width, 1, bias=True)
    shapes |= residual("inters.0", width, width)
    return shapes | bare_conv_bn("inters_.0", width, width) | bare_conv_bn("cnvs_.0", width, out_width)


def mmdetection_resnet18(deformable: bool) -> Shapes:
    shapes = resnet(18, "backbone.")
    into = 512
    for step, width in enumerate((256, 128, 64)):
        conv, up = f"neck.deconv_layers.{2 * step}", f"neck.deconv_layers.{2 * step + 1}"
        shapes |= convolution(f"{conv}.conv", width, into, 3) | norm(f"{conv}.bn", width)
        if deformable:
            shapes |= convolution(f"{conv}.conv.conv_offset", 27, into, 3, bias=True)
        shapes |= {f"{up}.conv.weight": (width, width, 4, 4)} | norm(f"{up}.bn", width)
        into = width
    for head, out in (("heatmap", 80), ("wh", 2), ("offset", 2)):
        shapes |= convolution(f"bbox_head.{head}_head.0", 64, 64, 3, bias=True)
        shapes |= convolution(f"bbox_head.{head}_head.2", out, 64, 1, bias=True)
    return shapes


def empty_weights(shapes: Shapes) -> dict[str, Tensor]:
    """Fills each weight with a distinct number, as an expanded scalar that takes no space in a file."""
    return {key: torch.tensor(float(index)).expand(shape) for index, (key, shape) in enumerate(shapes.items(), start=1)}


def random_weights(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Draws weights and statistics that keep activations in range, with offsets that stay within a small map."""
    random = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            weights[key] = torch.randn(shape, generator=random) * math.sqrt(1.5 / math.prod(shape[1:]))
            if "conv_offset" in key:
                weights[key] /= 10
        elif key.endswith(("running_var", "weight")):
            weights[key] = torch.rand(shape, generator=random) + 0.5
        elif key.endswith("num_batches_tracked"):
            weights[key] = torch.tensor(7)
        else:
            weights[key] = torch.randn(shape, generator=random) / 10
    return weights
