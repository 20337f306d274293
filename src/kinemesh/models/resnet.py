"""Residual networks of 50, 101 and 152 layers (He et al., CVPR 2016), for METRO and PRTR.

Stride 2 stands in the 3x3 convolution of a bottleneck, as in torchvision, whose module names these
are; the classifier is not built.

Shape legend: B batch, C channels, H and W size of a map, S image side.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError

Norm = Callable[[int], nn.Module]
_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions; the output has 4 ``planes`` channels.

    ``norm`` makes the norm that follows each convolution from its channels.
    """

    expansion = 4

    def __init__(
        self, in_channels: int, planes: int, stride: int = 1, norm: Norm = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        out_channels = planes * self.expansion
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                norm(out_channels),
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, 4 planes, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.downsample(x_BCHW) + self.bn3(self.conv3(y)))


class ResNet(nn.Module):
    """A residual network without its classifier.

    Args:
        depth: 50, 101 or 152 layers.
        width: Channels of the stem, 64 when published; the maps have 4, 8, 16 and 32 times it.
        norm: Makes the norm after a convolution from its channels.

    Raises:
        InputError: There is no such depth.
    """

    def __init__(self, depth: int = 50, *, width: int = 64, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise InputError(
                f"depth: expected one of {', '.join(map(str, _BLOCKS))}, found {depth}."
            )
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        first, second, third, fourth = _BLOCKS[depth]
        wide = width * Bottleneck.expansion
        self.layer1 = _stage(width, width, first, stride=1, norm=norm)
        self.layer2 = _stage(wide, 2 * width, second, stride=2, norm=norm)
        self.layer3 = _stage(2 * wide, 4 * width, third, stride=2, norm=norm)
        self.layer4 = _stage(4 * wide, 8 * width, fourth, stride=2, norm=norm)
        self.map_channels = 8 * wide
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, image_B3SS: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The maps of layers 1 to 4, at strides 4, 8, 16 and 32.

        Args:
            image_B3SS: RGB, normalised with ImageNet's mean and standard deviation. Height and
                width may differ and be anything.
        """
        x = F.relu(self.bn1(self.conv1(image_B3SS)))
        one = self.layer1(self.maxpool(x))
        two = self.layer2(one)
        three = self.layer3(two)
        return one, two, three, self.layer4(three)


class ResNetBackbone(ResNet):
    """A residual network as METRO's backbone: its last map."""

    def forward(self, image_B3SS: Tensor) -> Tensor:
        """Return (B,2048,S/32,S/32); see `features` for the input."""
        return self.features(image_B3SS)[-1]


def _stage(in_channels: int, planes: int, blocks: int, stride: int, norm: Norm) -> nn.Sequential:
    wide = planes * Bottleneck.expansion
    rest = (Bottleneck(wide, planes, norm=norm) for _ in range(blocks - 1))
    return nn.Sequential(Bottleneck(in_channels, planes, stride, norm), *rest)
