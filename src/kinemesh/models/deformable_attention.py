"""Multi-scale deformable attention (Zhu et al., "Deformable DETR", ICLR 2021, section 4.1).

A query looks at a few points of each level of a pyramid, placed by a linear layer around its
reference point, and mixes what it samples with weights from another linear layer. In plain PyTorch
this is one bilinear sampling for each level.

Shape legend: B batch, Q queries, T tokens of all levels, D width, M heads, d = D / M, L levels,
P points per level, H and W size of a level.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError

Sizes = Sequence[tuple[int, int]]
"""Height and width of each level."""


class Levels(NamedTuple):
    """Sizes of a pyramid, as numbers and on the device.

    Attributes:
        sizes: Height and width of each level.
        pixel_L2: Width and height of a pixel, as a part of its level's.
    """

    sizes: Sizes
    pixel_L2: Tensor

    @classmethod
    def of(cls, sizes: Sizes, like: Tensor) -> "Levels":
        """For tensors of the device and dtype of ``like``."""
        # Filled where they are needed: a copy from the host would wait for the device.
        sides = [
            like.new_full((1,), 1 / side) for height, width in sizes for side in (width, height)
        ]
        return cls(sizes, torch.cat(sides).reshape(-1, 2))


def deformable_attention(
    value_BTMd: Tensor, sizes: Sizes, locations_BQMLP2: Tensor, weights_BQMLP: Tensor
) -> Tensor:
    """Weighted sum of bilinear samples; outside of a map there are zeros.

    Args:
        value_BTMd: Levels after one another, each row by row.
        sizes: Height and width of each level.
        locations_BQMLP2: x and y; 0 and 1 are the outer edges of the map, so that the centre of
            the first pixel is at ``0.5 / W``.
        weights_BQMLP: Of each sample.

    Returns:
        (B,Q,D), heads side by side.
    """
    batch = len(value_BTMd)
    # Points in front of queries: their sum then runs over whole rows, three times as fast on a CPU.
    grids = (2 * locations_BQMLP2 - 1).permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
    weights = weights_BQMLP.permute(3, 0, 2, 4, 1).flatten(1, 2).unsqueeze(2)
    values = value_BTMd.permute(0, 2, 3, 1).flatten(0, 1)  # (BM,d,T)
    total = torch.zeros_like(values[..., :1])
    levels = torch.split(values, [height * width for height, width in sizes], dim=-1)
    for level, size, grid, weight in zip(levels, sizes, grids, weights, strict=True):
        map_NdHW = level.reshape(*level.shape[:2], *size)
        samples_NdPQ = F.grid_sample(map_NdHW, grid, align_corners=False)
        total = total + (samples_NdPQ * weight).sum(2)
    return total.reshape(batch, -1, *total.shape[1:]).permute(0, 3, 1, 2).flatten(2)


def initial_offsets(heads: int, levels: int, points: int) -> Tensor:
    """(M,L,P,2) offsets in pixels: a head looks along its own direction, point p at distance p."""
    angle_M = torch.arange(heads) * (2 * math.pi / heads)
    direction_M2 = torch.stack([angle_M.cos(), angle_M.sin()], dim=-1)
    direction_M2 = direction_M2 / direction_M2.abs().amax(-1, keepdim=True)
    distance_P = torch.arange(1, points + 1, dtype=direction_M2.dtype)
    offsets_MP2 = direction_M2[:, None] * distance_P[:, None]
    return offsets_MP2[:, None].expand(-1, levels, -1, -1)


class DeformableAttention(nn.Module):
    """The whole attention with its linear layers.

    Args:
        width: D.
        levels: L.
        heads: M.
        points: P.
    """

    def __init__(self, width: int = 256, levels: int = 4, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"width: expected a multiple of {heads} heads, found {width}.")
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.initialise()

    def initialise(self) -> None:
        """Offsets by `initial_offsets`, equal weights, Xavier for the others."""
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            offsets = initial_offsets(self.heads, self.levels, self.points)
            self.sampling_offsets.bias.copy_(offsets.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(
        self, query_BQD: Tensor, reference_BQL2: Tensor, memory_BTD: Tensor, levels: Levels
    ) -> Tensor:
        """Return (B,Q,D).

        Args:
            query_BQD: What asks.
            reference_BQL2: x and y in [0,1] of each level, for each query; sizes of 1 broadcast.
            memory_BTD: Levels after one another, each row by row.
            levels: Their sizes.
        """
        locations, weights = self.samples(query_BQD, reference_BQL2, levels)
        value = self.value_proj(memory_BTD).unflatten(-1, (self.heads, -1))
        mixed = deformable_attention(value, levels.sizes, locations, weights)
        out: Tensor = self.output_proj(mixed)
        return out

    def samples(
        self, query_BQD: Tensor, reference_BQL2: Tensor, levels: Levels
    ) -> tuple[Tensor, Tensor]:
        """Where each query looks and how much; arguments as of `forward`.

        Returns:
            x and y in [0,1] of the level (B,Q,M,L,P,2), and weights (B,Q,M,L,P), whose sum over
            the points of all levels is one.
        """
        grouped = (self.levels, self.points)
        offsets = self.sampling_offsets(query_BQD).unflatten(-1, (self.heads, *grouped, 2))
        locations = reference_BQL2[:, :, None, :, None] + offsets * levels.pixel_L2[:, None]
        weights = self.attention_weights(query_BQD).unflatten(-1, (self.heads, -1)).softmax(-1)
        return locations, weights.unflatten(-1, grouped)
