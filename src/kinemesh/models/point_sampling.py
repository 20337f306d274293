"""Image features at the places of the vertices: PointHMR's point-guided sampling.

Kim et al., "Sampling is Matter: Point-guided 3D Human Mesh Reconstruction" (CVPR 2023), section
3.2. A heat map of each vertex says where it is in the picture, and its feature is the mean of the
feature map under that distribution, position code included: a soft arg-max over features, without
interpolation and without picking places.

Shape legend: B batch, N vertices, D width, C channels, H and W size of a map, P = H W positions.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.models.hrnet import BasicBlock


class ShortcutBlock(nn.Module):
    """Two 3x3 convolutions around a 1x1 convolution that brings the input to the new channels."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,channels,H,W)."""
        y = F.relu(self.bn1(self.conv1(x_BCHW)))
        return F.relu(self.downsample(x_BCHW) + self.bn2(self.conv2(y)))


class MapHead(nn.Sequential):
    """Residual blocks and a 1x1 convolution, without bias and with nothing after it.

    Args:
        in_channels: C of the map that comes in.
        channels: C of the map that goes out.
        blocks: Residual blocks, of which the first changes the channels.
    """

    def __init__(self, in_channels: int, channels: int, blocks: int) -> None:
        super().__init__(
            ShortcutBlock(in_channels, channels),
            *(BasicBlock(channels) for _ in range(blocks - 1)),
            nn.Conv2d(channels, channels, 1, bias=False),
        )


def heat_maps(logits_BNHW: Tensor) -> Tensor:
    """(B,N,H,W) where each vertex is: a distribution over all positions of its map."""
    shares_BNP = logits_BNHW.flatten(2).float().softmax(dim=-1)
    return shares_BNP.view_as(logits_BNHW)


def sample_features(heat_BNHW: Tensor, features_BDHW: Tensor) -> Tensor:
    """Mean feature (B,N,D) under each vertex's distribution, as one matrix product."""
    return torch.bmm(heat_BNHW.flatten(2), features_BDHW.flatten(2).mT)


def mean_places(heat_BNHW: Tensor) -> Tensor:
    """Where the heat maps put the vertices: the mean place of each distribution.

    Returns:
        (B,N,2) x and y in signed crop coordinates, -1 to 1; position i of W lies at
        (2 i + 1) / W - 1.
    """
    height, width = heat_BNHW.shape[-2:]
    along_x, along_y = _centres(width, heat_BNHW.device), _centres(height, heat_BNHW.device)
    x_BN = (heat_BNHW.sum(dim=-2) * along_x).sum(dim=-1)
    y_BN = (heat_BNHW.sum(dim=-1) * along_y).sum(dim=-1)
    return torch.stack([x_BN, y_BN], dim=-1)


@functools.lru_cache(maxsize=16)
def _centres(count: int, device: torch.device) -> Tensor:
    return (torch.arange(count, device=device, dtype=torch.float32) * 2 + 1) / count - 1
