"""The paper's necks for ResNet: three transposed convolutions, alone or each after another convolution.

Sources: arXiv 1904.07850, section 5, after arXiv 1804.06208; mmdetection for `ConvolutionalNeck`.
Key names are the authors'.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.network.deformable import DeformableConv
from model.network.necks.neck import Neck


class TransposedNeck(Neck):
    """Upsamples the coarsest map by 2 three times; the finer maps are not used."""

    widths = (256, 256)  # after the first two steps

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__(channels, width)
        layers: list[nn.Module] = []
        in_channels = channels[-1]
        for out_channels in (*self.widths, width):
            layers += self._make_step(in_channels, out_channels)
            in_channels = out_channels
        self.deconv_layers = nn.Sequential(*layers)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps, of which the last is (B, channels[-1], H/32, W/32) → (B, width, H/4, W/4)."""
        merged: Tensor = self.deconv_layers(maps[-1])
        return merged

    def _make_step(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        return _upsample_2x(in_channels, out_channels)


class ConvolutionalNeck(TransposedNeck):
    """A `TransposedNeck` with a 3x3 convolution before each step and fewer channels after each."""

    widths = (256, 128)

    def _make_step(self, in_channels: int, out_channels: int) -> list[nn.Module]:
        convolution = self._make_convolution(in_channels, out_channels)
        return [
            convolution,
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            *_upsample_2x(out_channels, out_channels),
        ]

    def _make_convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class DeformableNeck(ConvolutionalNeck):
    """A `ConvolutionalNeck` with deformable convolutions."""

    def _make_convolution(self, in_channels: int, out_channels: int) -> nn.Module:
        return DeformableConv(in_channels, out_channels)


def bilinear_kernel(factor: int) -> Tensor:
    """Weights (2 * factor, 2 * factor) with which a transposed convolution upsamples a channel bilinearly."""
    ramp = 1 - ((torch.arange(2 * factor) + 0.5) / factor - 1).abs()
    return ramp[:, None] * ramp


def _upsample_2x(in_channels: int, out_channels: int) -> list[nn.Module]:
    up = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False)
    if in_channels == out_channels:  # initialise as bilinear upsampling of each channel
        nn.init.zeros_(up.weight)
        up.weight.data[range(in_channels), range(in_channels)] = bilinear_kernel(2)
    return [up, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
