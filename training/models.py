"""What each backbone costs: `python -m training models`."""

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.network import BACKBONES, COARSEST_STRIDE, CenterNet
from training.config import InvalidConfig

# millions of parameters without the classifier: torchvision's for ResNet, DLA's authors', the wheels' for Lite
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


def print_models(size: int, class_count: int, console: Console) -> None:
    """A table of all backbones: parameters and multiply-accumulates of one picture of `size` pixels squared.

    Raises `InvalidConfig` for a size that the networks cannot take.
    """
    if size <= 0 or size % COARSEST_STRIDE:
        raise InvalidConfig(f"size {size}: choose a multiple of {COARSEST_STRIDE}, the network's coarsest stride")
    table = Table(title=f"one picture of {size} x {size} pixels, {class_count} classes; parameters in millions")
    table.add_column("backbone", no_wrap=True)
    for heading in ("alone", "published", "with neck and heads", "GMACs"):
        table.add_column(heading, justify="right")
    for name in BACKBONES:
        network, macs = build_and_count(name, size, class_count)
        own, whole = (count_parameters(module) / 1e6 for module in (network.backbone, network))
        table.add_row(name, f"{own:.2f}", f"{_PUBLISHED[name]:.2f}", f"{whole:.2f}", f"{macs / 1e9:.2f}")
    console.print(table)


def build_and_count(backbone: str, size: int, class_count: int) -> tuple[CenterNet, int]:
    """Returns a detector without values, and how many multiply-accumulates one picture takes."""
    with torch.device("meta"):
        network = CenterNet(backbone, class_count).eval()
        images = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(images)
    return network, counter.get_total_flops() // 2


def count_parameters(module: nn.Module) -> int:
    """Returns how many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters())
