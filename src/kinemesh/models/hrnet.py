"""HRNet-W{C} for image classification (Wang et al., TPAMI 2020), the backbone of METRO.

Four branches of stride 4, 8, 16 and 32 run in parallel and exchange their maps after each module.
The classification head merges them from fine to coarse. Module names equal those of the published
ImageNet checkpoints; their last layer, the 1000-class ``classifier``, is not built.

Shape legend: B batch, C channels, H and W size of a map, S image side.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.resnet import Bottleneck

_STRIDE = 32  # of the lowest branch; image sides must divide by it
_BLOCKS = 4  # residual blocks per branch and module


class HRNetFeatures(NamedTuple):
    """What the classification network computes.

    Attributes:
        grid: (B,1024,S/32,S/32), all branches merged, before the last 1x1 convolution.
        final: (B,2048,S/32,S/32), after it, its batch norm and ReLU.
        pooled: (B,2048), the spatial mean of ``final``.
    """

    grid: Tensor
    final: Tensor
    pooled: Tensor


def _conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, relu: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, nn.ReLU()) if relu else nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around an identity skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(x_BCHW + self.bn2(self.conv2(y)))


class HighResolutionModule(nn.Module):
    """Residual blocks on each branch, then every branch receives the sum of all branches."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width) for _ in range(_BLOCKS))) for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fuse_layer(channels, source, target) for source in range(len(channels)))
            for target in range(len(channels))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return one map per branch, fine to coarse, with the shapes that came in."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for row in self.fuse_layers:
            assert isinstance(row, nn.ModuleList)
            total = row[0](maps[0])
            for layer, x in zip(row[1:], maps[1:], strict=True):
                total = total + layer(x)
            fused.append(F.relu(total))
        return fused


def _fuse_layer(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Bring the map of branch ``source`` to the channels and size of branch ``target``."""
    if source == target:
        return nn.Identity()
    if source > target:
        layers = _conv_norm(channels[source], channels[target], 1, relu=False)
        return layers.append(nn.Upsample(scale_factor=2 ** (source - target), mode="nearest"))
    steps = [
        _conv_norm(channels[source], channels[source], 3, 2) for _ in range(target - source - 1)
    ]
    return nn.Sequential(*steps, _conv_norm(channels[source], channels[target], 3, 2, relu=False))


def _transition(channels: Sequence[int]) -> nn.ModuleList:
    """Keep the branches there are and start one more of stride 2 from the coarsest."""
    start = nn.Sequential(_conv_norm(channels[-2], channels[-1], 3, 2))
    return nn.ModuleList([*(nn.Identity() for _ in channels[:-1]), start])


class HRNet(nn.Module):
    """HRNet-W{width} classification network without its classifier.

    Args:
        width: C, channels of the finest branch; the others have 2C, 4C and 8C. Published: 18, 30,
            32, 40, 44, 48 and 64.
        stem_width: Channels of the stem and planes of the first stage; 64 when published.
        head_planes: Planes of the bottleneck that ends each branch; the grid has 4 times the last.
        pooled_channels: Channels of the last 1x1 convolution; 2048 when published.
        modules: High-resolution modules in stages 2, 3 and 4; (1, 4, 3) when published.
    """

    def __init__(
        self,
        width: int,
        *,
        stem_width: int = 64,
        head_planes: tuple[int, int, int, int] = (32, 64, 128, 256),
        pooled_channels: int = 2048,
        modules: tuple[int, int, int] = (1, 4, 3),
    ) -> None:
        super().__init__()
        channels = [width, 2 * width, 4 * width, 8 * width]
        self.conv1 = nn.Conv2d(3, stem_width, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.conv2 = nn.Conv2d(stem_width, stem_width, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(stem_width)
        wide = stem_width * Bottleneck.expansion
        first = Bottleneck(stem_width, stem_width)
        self.layer1 = nn.Sequential(first, *(Bottleneck(wide, stem_width) for _ in range(3)))
        self.transition1 = nn.ModuleList(
            [
                _conv_norm(wide, channels[0], 3),
                nn.Sequential(_conv_norm(wide, channels[1], 3, 2)),
            ]
        )
        self.stage2 = _stage(channels[:2], modules[0])
        self.transition2 = _transition(channels[:3])
        self.stage3 = _stage(channels[:3], modules[1])
        self.transition3 = _transition(channels)
        self.stage4 = _stage(channels, modules[2])
        self.grid_channels = head_planes[-1] * Bottleneck.expansion
        self.pooled_channels = pooled_channels
        self._build_head(channels, head_planes)
        self._initialise()

    def _build_head(self, channels: list[int], planes: Sequence[int]) -> None:
        merged = [width * Bottleneck.expansion for width in planes]
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(*pair)) for pair in zip(channels, planes, strict=True)
        )
        # Unlike every convolution before, those from here on have a bias.
        self.downsamp_modules = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 3, 2, 1), nn.BatchNorm2d(coarse), nn.ReLU())
            for fine, coarse in itertools.pairwise(merged)
        )
        self.final_layer = nn.Sequential(
            nn.Conv2d(merged[-1], self.pooled_channels, 1),
            nn.BatchNorm2d(self.pooled_channels),
            nn.ReLU(),
        )

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def branches(self, image_B3SS: Tensor) -> list[Tensor]:
        """The four branches after stage 4, fine to coarse: (B,C,S/4,S/4) to (B,8C,S/32,S/32).

        Args:
            image_B3SS: RGB, normalised with ImageNet's mean and standard deviation. Height and
                width may differ.

        Raises:
            InputError: A side of the image is not a multiple of 32.
        """
        if image_B3SS.shape[-1] % _STRIDE or image_B3SS.shape[-2] % _STRIDE:
            raise InputError(
                f"image: expected sides that are multiples of {_STRIDE} px, found "
                f"{tuple(image_B3SS.shape[-2:])}; resize or pad the crop."
            )
        x = F.relu(self.bn1(self.conv1(image_B3SS)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.layer1(x)
        maps: list[Tensor] = self.stage2([start(x) for start in self.transition1])
        for transition, stage in (
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            maps = stage([step(x) for step, x in zip(transition, [*maps, maps[-1]], strict=True)])
        return maps

    def forward(self, image_B3SS: Tensor) -> HRNetFeatures:
        """Merge the branches; see `branches` for the input and its errors."""
        maps = self.branches(image_B3SS)
        grid: Tensor = self.incre_modules[0](maps[0])
        for down, increase, x in zip(
            self.downsamp_modules, self.incre_modules[1:], maps[1:], strict=True
        ):
            grid = increase(x) + down(grid)
        final: Tensor = self.final_layer(grid)
        return HRNetFeatures(grid, final, final.mean(dim=(2, 3)))


def _stage(channels: Sequence[int], modules: int) -> nn.Sequential:
    return nn.Sequential(*(HighResolutionModule(channels) for _ in range(modules)))
