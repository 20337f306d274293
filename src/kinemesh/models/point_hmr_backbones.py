"""Backbones of PointHMR: a fine map to sample from, and a coarse map for grid tokens.

The published network has HRNet-W32 without the head for classification, of which it takes the
finest and the coarsest branch. The other is a ResNet with three transposed convolutions, as in an
unpublished draft. Module names equal the official ones.

Shape legend: B batch, C channels, S image side.
"""

import itertools
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.models.hrnet import HighResolutionModule, HRNet
from kinemesh.models.resnet import ResNet


class PointMaps(NamedTuple):
    """What a backbone makes of an image.

    Attributes:
        fine: (B,C,S/4,S/4).
        coarse: (B,C',S/32,S/32).
    """

    fine: Tensor
    coarse: Tensor


class OuterBranchesModule(HighResolutionModule):
    """The last exchange module: only the finest and the coarsest branch receive the others.

    The official code also computes the two between, which nothing reads; their tensors do not exist
    here. What is left keeps its official number, so the modules of a row have names and no indices.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__(channels)
        rows = {"0": self.fuse_layers[0], str(len(channels) - 1): self.fuse_layers[-1]}
        self.outer_rows = tuple(rows)
        self.fuse_layers = nn.ModuleDict(rows)  # type: ignore[assignment]

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the finest and the coarsest map."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for name in self.outer_rows:
            layers = self.fuse_layers.get_submodule(name)
            assert isinstance(layers, nn.ModuleList)
            total = layers[0](maps[0])
            for layer, x in zip(layers[1:], maps[1:], strict=True):
                total = total + layer(x)
            fused.append(F.relu(total))
        return fused


class PointHRNet(HRNet):
    """HRNet-W{width} without its classification head; published: 32.

    Args:
        width: C of the finest branch.
        stem_width: Channels of the stem and planes of the first stage; 64 when published.
        modules: High-resolution modules in stages 2, 3 and 4; (1, 4, 3) when published.
    """

    def __init__(
        self, width: int = 32, *, stem_width: int = 64, modules: tuple[int, int, int] = (1, 4, 3)
    ) -> None:
        super().__init__(width, stem_width=stem_width, modules=modules)
        channels = [width, 2 * width, 4 * width, 8 * width]
        self.stage4[-1] = OuterBranchesModule(channels)
        self.fine_channels, self.coarse_channels = channels[0], channels[-1]

    def _build_head(self, channels: list[int], planes: object) -> None:
        """There is none."""

    def _initialise(self) -> None:
        """PyTorch's own initial values, as the official network begins without other weights."""

    def forward(self, image_B3SS: Tensor) -> PointMaps:  # type: ignore[override]
        """Return both maps; see `HRNet.branches` for the input and its errors."""
        return PointMaps(*self.branches(image_B3SS))


class PointResNet(ResNet):
    """A ResNet whose last map three transposed convolutions enlarge eight times.

    Args:
        depth: 50, 101 or 152 layers.
        width: Channels of the stem, 64 when published.
    """

    def __init__(self, depth: int = 50, *, width: int = 64) -> None:
        super().__init__(depth, width=width)
        channels = [self.map_channels, 4 * width, 2 * width, width]
        self.deconv_layers = nn.Sequential(
            *(
                layer
                for before, after in itertools.pairwise(channels)
                for layer in _enlarging(before, after)
            )
        )
        self.fine_channels, self.coarse_channels = channels[-1], channels[0]

    def forward(self, image_B3SS: Tensor) -> PointMaps:
        """Return both maps; see `ResNet.features` for the input."""
        coarse = self.features(image_B3SS)[-1]
        return PointMaps(self.deconv_layers(coarse), coarse)


def _enlarging(channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    convolution = nn.ConvTranspose2d(channels, out_channels, 4, 2, 1, bias=False)
    return convolution, nn.BatchNorm2d(out_channels), nn.ReLU()
