"""The CenterNet network: backbone, neck and the three heads (Zhou et al., arXiv 1904.07850)."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.backbone import Backbone
from model.backbones.dla import dla34
from model.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from model.backbones.hourglass import hourglass104
from model.backbones.resnet import resnet18, resnet34, resnet50, resnet101
from model.necks.aggregation import AggregationNeck
from model.necks.neck import Neck
from model.necks.none import NoNeck
from model.necks.top_down import TopDownNeck
from model.necks.transposed import ConvolutionalNeck, DeformableNeck, TransposedNeck

STRIDE = 4  # of the map that the heads read
SIZE_UNIT = 64.0  # input pixels: the size head's raw 1.0, so that its weights need not grow to reach whole photos

BACKBONES: dict[str, Callable[[], Backbone]] = {
    "efficientnet_lite0": efficientnet_lite0,
    "efficientnet_lite1": efficientnet_lite1,
    "efficientnet_lite2": efficientnet_lite2,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "dla34": dla34,
    "hourglass104": hourglass104,
}

NECKS: dict[str, type[Neck]] = {
    "top_down": TopDownNeck,
    "transposed": TransposedNeck,
    "deformable": DeformableNeck,
    "convolutional": ConvolutionalNeck,
    "aggregation": AggregationNeck,
    "none": NoNeck,
}


@functools.cache
def describe_backbone(name: str) -> Backbone:
    """The backbone without values, for what it says of itself."""
    with torch.device("meta"):
        return BACKBONES[name]()


def fitting_necks(backbone: str) -> list[str]:
    """The names of the necks that bring the backbone's maps to stride 4."""
    comes_back_to_it = set(describe_backbone(backbone).strides) == {STRIDE}
    return [name for name, neck in NECKS.items() if (neck is NoNeck) == comes_back_to_it]


class KeypointMaps(NamedTuple):
    """What a network that knows J joints says of them at every cell of its grid, (h, w)."""

    places: Tensor  # (B, 2 * J, h, w), from the cell's corner to each joint (x, y) of its object, in output pixels
    heatmap: Tensor  # (B, J, h, w), logits
    offset: Tensor  # (B, 2, h, w), from the cell's corner to the joint in it (x, y), in output pixels


class HeadMaps(NamedTuple):
    """What the network says of every cell of its grid, (h, w) = (H, W) / stride; a cell is one output pixel."""

    heatmap: Tensor  # (B, C, h, w), logits
    size: Tensor  # (B, 2, h, w), width and height in output pixels
    offset: Tensor  # (B, 2, h, w), from the cell's corner to the centre (x, y), in output pixels
    keypoints: KeypointMaps | None = None  # where the network knows joints
    earlier: tuple["HeadMaps", ...] = ()  # what a stacked backbone's earlier maps say, to learn from alone


class Heads(nn.Module):
    """What reads the head maps off one map at stride 4."""

    def add_heads(self, in_channels: int, width: int, class_count: int, joint_count: int, stride: int) -> Self:
        """Makes the heads, of a hidden layer of `width` each; those of keypoints where there are joints.

        At a `stride` of 2 each cell of the map that they read gives four: a head's last layer has the outputs of all
        four (sub-pixel convolution, arXiv 1609.05158), so that the finer grid costs next to nothing.

        Not the constructor, so that the network can have its own behind the neck: optimisers know parameters by place.
        """
        self.stride, self.joint_count = stride, joint_count
        cells = (STRIDE // stride) ** 2
        self.heatmap_head = _head(in_channels, width, class_count * cells)
        self.size_head = _head(in_channels, width, 2 * cells)
        self.offset_head = _head(in_channels, width, 2 * cells)
        if joint_count:
            self.keypoint_head = _head(in_channels, width, 2 * joint_count * cells)
            self.keypoint_heatmap_head = _head(in_channels, width, joint_count * cells)
            self.keypoint_offset_head = _head(in_channels, width, 2 * cells)
            nn.init.zeros_(_last_bias(self.keypoint_head))  # joints start at their object's centre
            nn.init.constant_(_last_bias(self.keypoint_heatmap_head), -math.log(9.0))
            nn.init.constant_(_last_bias(self.keypoint_offset_head), 0.5)
        # every cell starts at p = 0.1, so that the many negatives do not drown the first steps (section 5 of the paper)
        nn.init.constant_(_last_bias(self.heatmap_head), -math.log(9.0))
        nn.init.constant_(_last_bias(self.size_head), 1.0)
        nn.init.constant_(_last_bias(self.offset_head), 0.5)
        return self

    def read(self, features: Tensor) -> HeadMaps:
        """(B, in_channels, H/4, W/4) → the head maps, at `stride`."""
        return HeadMaps(
            heatmap=self._apply_head(self.heatmap_head, features),
            size=self._apply_head(self.size_head, features) * (SIZE_UNIT / self.stride),
            offset=self._apply_head(self.offset_head, features),
            keypoints=self._find_keypoints(features) if self.joint_count else None,
        )

    def _find_keypoints(self, features: Tensor) -> KeypointMaps:
        return KeypointMaps(
            places=self._apply_head(self.keypoint_head, features) * (SIZE_UNIT / self.stride),
            heatmap=self._apply_head(self.keypoint_heatmap_head, features),
            offset=self._apply_head(self.keypoint_offset_head, features),
        )

    def _apply_head(self, head: nn.Sequential, features: Tensor) -> Tensor:
        values: Tensor = head(features).float()
        return F.pixel_shuffle(values, STRIDE // self.stride) if self.stride < STRIDE else values


class CenterNet(Heads):
    """Photos in, head maps out; `model.codec.decode` turns those into boxes.

    Shapes: images (B, H, W, 3), uint8, RGB, H and W multiples of `size_step` → `HeadMaps`. Where
    several maps come from a backbone at stride 4, the heads of the network itself read the last one; the others have
    heads of their own, which work in training alone. `mean` and `std` are of RGB in 0..255; None: the backbone's.
    `stride` is input pixels per cell of the head maps, 4 or 2. In training each channel of the backbone's maps is
    blanked with a probability of `channel_dropout` (arXiv 1411.4280, 3.2).
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
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        stride: int = STRIDE,
        channel_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.channel_dropout = channel_dropout
        self.backbone = BACKBONES[backbone]()
        self.neck = NECKS[neck](self.backbone.channels, neck_width)
        self.add_heads(self.neck.width, head_width, class_count, joint_count, stride)
        earlier = self.backbone.channels[:-1] if neck == "none" else ()
        self.earlier_heads = nn.ModuleList(
            Heads().add_heads(channels, head_width, class_count, joint_count, stride) for channels in earlier
        )
        for name, statistic in (("mean", mean or self.backbone.mean), ("std", std or self.backbone.std)):
            self.register_buffer(name, torch.tensor(statistic).view(1, 3, 1, 1), persistent=False)

    @property
    def size_step(self) -> int:
        """What the height and width of pictures are multiples of."""
        stride = self.backbone.coarsest_stride
        return stride // 2 if self.backbone.takes_odd and self.neck.takes_odd else stride

    def forward(self, images: Tensor) -> HeadMaps:
        """Computes the head maps."""
        x = images.permute(0, 3, 1, 2).float()  # NHWC bytes are channels_last already: no copy
        x = (x - self.mean) / self.std
        maps = self.backbone(x)
        if not self.training:
            return self.read(self.neck(maps))
        maps = [F.dropout2d(each, self.channel_dropout) for each in maps]
        found = self.read(self.neck(maps))
        earlier = []
        for heads, each in zip(self.earlier_heads, maps, strict=False):
            assert isinstance(heads, Heads)
            earlier.append(heads.read(each))
        return found._replace(earlier=tuple(earlier))


def _head(in_channels: int, width: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(width, out_channels, 1)
    )


def _last_bias(head: nn.Sequential) -> Tensor:
    last = head[-1]
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    return last.bias
