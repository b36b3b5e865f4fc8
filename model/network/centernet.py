"""The CenterNet network: backbone, neck and heads (Zhou et al., arXiv 1904.07850)."""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.network.backbones.backbone import Backbone
from model.network.backbones.dla import dla34
from model.network.backbones.efficientnet_lite import efficientnet_lite0, efficientnet_lite1, efficientnet_lite2
from model.network.backbones.hourglass import hourglass104
from model.network.backbones.resnet import resnet18, resnet34, resnet50, resnet101
from model.network.heads import STRIDE, HeadMaps, Heads
from model.network.necks.aggregation import AggregationNeck
from model.network.necks.neck import Neck
from model.network.necks.none import NoNeck
from model.network.necks.top_down import TopDownNeck
from model.network.necks.transposed import ConvolutionalNeck, DeformableNeck, TransposedNeck

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
    """The backbone on the meta device, without weights, for its attributes."""
    with torch.device("meta"):
        return BACKBONES[name]()


def fitting_necks(backbone: str) -> list[str]:
    """The names of the necks that merge the backbone's maps to stride 4."""
    needs_no_neck = set(describe_backbone(backbone).strides) == {STRIDE}
    return [name for name, neck in NECKS.items() if (neck is NoNeck) == needs_no_neck]


class CenterNet(Heads):
    """Images to head maps, which `model.network.codec.decode` turns into boxes.

    Shapes: images (B, H, W, 3), uint8, RGB, H and W multiples of `size_step` → `HeadMaps`. If a stacked backbone
    returns several maps at stride 4, the network's own heads take the last; the earlier maps have heads of their own
    for intermediate supervision, used in training only. `mean` and `std` are of RGB in 0..255, by default the
    backbone's. `stride` is input pixels per cell of the head maps, 4 or 2. In training each channel of the backbone's
    maps is zeroed with probability `channel_dropout` (arXiv 1411.4280, 3.2).
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
        """Pixels: the input's height and width must be multiples of it."""
        stride = self.backbone.coarsest_stride
        return stride // 2 if self.backbone.accepts_odd_maps and self.neck.accepts_odd_maps else stride

    def forward(self, images: Tensor) -> HeadMaps:
        """Images (B, H, W, 3), uint8 → maps (B, channels, H / stride, W / stride); `earlier` ones in training only."""
        x = images.permute(0, 3, 1, 2).float()  # NHWC memory is channels_last already: no copy
        x = (x - self.mean) / self.std
        maps = self.backbone(x)
        if not self.training:
            return self.apply_heads(self.neck(maps))
        maps = [F.dropout2d(each, self.channel_dropout) for each in maps]
        predicted = self.apply_heads(self.neck(maps))
        earlier = []
        for heads, features in zip(self.earlier_heads, maps, strict=False):
            assert isinstance(heads, Heads)
            earlier.append(heads.apply_heads(features))
        return predicted._replace(earlier=tuple(earlier))
