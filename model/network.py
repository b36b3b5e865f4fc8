"""The CenterNet network: backbone, neck and the three heads (Zhou et al., arXiv 1904.07850)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.backbones.backbone import Backbone
from model.backbones.dla import dla34
from model.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from model.backbones.resnet import resnet18, resnet34, resnet50, resnet101
from model.necks.neck import Neck
from model.necks.top_down import TopDownNeck
from model.necks.transposed import DeformableNeck, TransposedNeck

STRIDE = 4
COARSEST_STRIDE = 32  # inputs are multiples of it
SIZE_UNIT = 16.0  # output pixels: the size head's raw 1.0, so that its weights need not grow to reach whole photos

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "dla34": dla34,
}

NECKS: dict[str, type[Neck]] = {
    "top_down": TopDownNeck,
    "transposed": TransposedNeck,
    "deformable": DeformableNeck,
}


class KeypointMaps(NamedTuple):
    """What a network that knows J joints says of them at every cell of the stride-4 grid."""

    places: Tensor  # (B, 2 * J, H/4, W/4), from the cell's corner to each joint (x, y) of its object, in output pixels
    heatmap: Tensor  # (B, J, H/4, W/4), logits
    offset: Tensor  # (B, 2, H/4, W/4), from the cell's corner to the joint in it (x, y), in output pixels


class HeadMaps(NamedTuple):
    """What the network says of every cell of the stride-4 grid."""

    heatmap: Tensor  # (B, C, H/4, W/4), logits
    size: Tensor  # (B, 2, H/4, W/4), width and height in output pixels
    offset: Tensor  # (B, 2, H/4, W/4), from the cell's corner to the centre (x, y), in output pixels
    keypoints: KeypointMaps | None = None  # where the network knows joints


class CenterNet(nn.Module):
    """Photos in, head maps out; `model.codec.decode` turns those into boxes.

    Shapes: images (B, H, W, 3), uint8, RGB, H and W multiples of 32 → `HeadMaps`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: str,
        class_count: int,
        neck_width: int = 64,
        head_width: int = 64,
        neck: str = "top_down",
        joint_count: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = BACKBONES[backbone]()
        self.neck = NECKS[neck](self.backbone.channels, neck_width)
        self.heatmap_head = _head(neck_width, head_width, class_count)
        self.size_head = _head(neck_width, head_width, 2)
        self.offset_head = _head(neck_width, head_width, 2)
        self.joint_count = joint_count
        if joint_count:
            self.keypoint_head = _head(neck_width, head_width, 2 * joint_count)
            self.keypoint_heatmap_head = _head(neck_width, head_width, joint_count)
            self.keypoint_offset_head = _head(neck_width, head_width, 2)
            nn.init.constant_(_last_bias(self.keypoint_heatmap_head), -math.log(9.0))
            nn.init.constant_(_last_bias(self.keypoint_offset_head), 0.5)
        # every cell starts at p = 0.1, so that the many negatives do not drown the first steps (section 5 of the paper)
        nn.init.constant_(_last_bias(self.heatmap_head), -math.log(9.0))
        nn.init.constant_(_last_bias(self.size_head), 1.0)
        nn.init.constant_(_last_bias(self.offset_head), 0.5)
        self.register_buffer("mean", torch.tensor(self.backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self.backbone.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> HeadMaps:
        """Computes the head maps."""
        x = images.permute(0, 3, 1, 2).float()  # NHWC bytes are channels_last already: no copy
        x = (x - self.mean) / self.std
        features = self.neck(self.backbone(x))
        return HeadMaps(
            heatmap=self.heatmap_head(features).float(),
            size=self.size_head(features).float() * SIZE_UNIT,
            offset=self.offset_head(features).float(),
            keypoints=self._find_keypoints(features) if self.joint_count else None,
        )

    def _find_keypoints(self, features: Tensor) -> KeypointMaps:
        return KeypointMaps(
            places=self.keypoint_head(features).float() * SIZE_UNIT,
            heatmap=self.keypoint_heatmap_head(features).float(),
            offset=self.keypoint_offset_head(features).float(),
        )


def _head(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, out_channels, 1)
    )


def _last_bias(head: nn.Sequential) -> Tensor:
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    return last.bias
