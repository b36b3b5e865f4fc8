"""ResNet-18 (He et al., arXiv 1512.03385) with torchvision's key names, so that any such checkpoint loads."""

from torch import Tensor, nn


class ResNet(nn.Module):
    """ResNet of basic blocks without its classifier.

    Shapes: (B, 3, H, W), already normalised, H and W multiples of 32 → maps at strides 4, 8, 16, 32 with
    `channels` channels each.
    """

    mean = (123.675, 116.28, 103.53)  # ImageNet, RGB, in 0..255
    std = (58.395, 57.12, 57.375)
    classifier_keys = ("fc.",)

    def __init__(self, repeats: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.channels = (64, 128, 256, 512)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, repeats[0], stride=1)
        self.layer2 = _stage(64, 128, repeats[1], stride=2)
        self.layer3 = _stage(128, 256, repeats[2], stride=2)
        self.layer4 = _stage(256, 512, repeats[3], stride=2)

    def stages(self) -> list[list[nn.Module]]:
        """What makes the stem and then each map, in order."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the four maps."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            maps.append(x)
        return maps


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y = self.relu(y + self.downsample(x))
        assert isinstance(y, Tensor)
        return y


def resnet18() -> ResNet:
    """ResNet-18, 11.2 M parameters without its classifier."""
    return ResNet((2, 2, 2, 2))


def _stage(in_channels: int, out_channels: int, repeats: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(repeats - 1)))
