"""Parameters and compute of each backbone and of the paper's networks: `python -m training models`."""

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.network.centernet import BACKBONES, CenterNet, describe_backbone, fitting_necks
from model.network.codec import decode
from training.config import InvalidConfig

# millions of parameters without the classifier, as published by torchvision (ResNet), DLA's authors and the Lite wheels
_PUBLISHED = {
    "efficientnet_lite0": 2.96,
    "efficientnet_lite1": 3.72,
    "efficientnet_lite2": 4.36,
    "resnet18": 11.18,
    "resnet34": 21.28,
    "resnet50": 23.51,
    "resnet101": 42.50,
    "dla34": 15.23,
}


# the paper's networks: backbone, neck, head width, and AP on COCO val from table 1 and section 6.1
_PAPER_NETWORKS = (
    ("resnet18", "deformable", 64, 28.1),
    ("resnet101", "deformable", 64, 34.6),
    ("dla34", "aggregation", 256, 37.4),
    ("hourglass104", "none", 256, 40.3),
)


def print_models(size: int, class_count: int, console: Console) -> None:
    """Prints parameters and multiply-accumulates for one image of `size` pixels squared, as two tables.

    The first lists all backbones, with the first neck that fits, the second the paper's networks. Raises
    `InvalidConfig` for a size that no network accepts.
    """
    coarsest = min(describe_backbone(name).coarsest_stride for name in BACKBONES)
    if size <= 0 or size % coarsest:
        raise InvalidConfig(f"size {size}: must be a multiple of {coarsest}, the networks' coarsest stride")
    title = f"one image of {size} x {size} pixels, {class_count} classes; parameters in millions"
    table = _make_table(title, ("backbone only", "published", "with neck and heads", "GMACs"))
    for name in BACKBONES:
        network = build(name, fitting_necks(name)[0], 64, class_count)
        published = f"{_PUBLISHED[name]:.2f}" if name in _PUBLISHED else "-"
        table.add_row(name, _millions(network.backbone), published, _millions(network), _gmacs(network, size))
    console.print(table)

    table = _make_table("the paper's networks", ("neck", "with neck and heads", "GMACs", "published AP"))
    for name, neck, head_width, ap in _PAPER_NETWORKS:
        network = build(name, neck, head_width, class_count)
        table.add_row(name, neck, _millions(network), _gmacs(network, size), f"{ap:.1f}")
    console.print(table)


def build(backbone: str, neck: str, head_width: int, class_count: int) -> CenterNet:
    """Builds a detector in evaluation mode on the meta device, whose tensors have shapes but no data."""
    with torch.device("meta"):
        return CenterNet(backbone, class_count, head_width=head_width, neck=neck).eval()


def count_macs(network: CenterNet, size: int) -> int:
    """Counts the multiply-accumulates for one image of `size` pixels squared; `network` is from `build`."""
    images = torch.zeros(1, size, size, 3, dtype=torch.uint8, device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        decode(network(images), stride=network.stride)
    return int(counter.get_total_flops()) // 2


def count_parameters(module: nn.Module) -> int:
    """Counts parameters, frozen ones included; the running statistics of batch norm are not parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _make_table(title: str, headings: tuple[str, ...]) -> Table:
    table = Table(title=title, caption="n x 128: the size must be a multiple of 128")
    table.add_column("backbone", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "neck" else "right")
    return table


def _millions(module: nn.Module) -> str:
    return f"{count_parameters(module) / 1e6:.2f}"


def _gmacs(network: CenterNet, size: int) -> str:
    coarsest = network.backbone.coarsest_stride
    return f"n x {coarsest}" if size % coarsest else f"{count_macs(network, size) / 1e9:.2f}"
