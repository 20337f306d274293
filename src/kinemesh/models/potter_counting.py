"""Multiply-adds of POTTER's official networks, by formula: convolutions and matrix products.

`counting.count_macs` counts what runs here, which is a little less: two convolutions of the volume
are one, the last acts on its sums, and the embed-wise products are element-wise.

Shape legend: N cells of a map, C channels, J joints, D depth cells.
"""

import itertools

from kinemesh.models.potter_classifier import PotterClassifierConfig
from kinemesh.models.potter_hand import PotterHandConfig
from kinemesh.models.potter_mesh import PotterMeshConfig
from kinemesh.models.potter_trunk import PyramidConfig, TrunkConfig
from kinemesh.models.potter_variants import PotterConfig, side_of

_POOLED = 4


def potter_gmac(config: PotterConfig) -> float:
    """10^9 multiply-adds of the official network for one crop, without a body model.

    The published number of the mesh network also has the body model's, 0.008.
    """
    side = side_of(config)
    total = _backbone(config, side)
    if isinstance(config, PotterClassifierConfig):
        return (total + config.widths[-1] * config.classes) / 1e9
    cells = (side // 4) ** 2
    volume = config.joints * config.depth_cells * cells
    total += _stream(config, side) + cells * config.widths[0] * config.head_width
    total += volume * config.head_width + 2 * volume * config.joints
    total += _lifting(config) if isinstance(config, PotterHandConfig) else _parameters(config)
    return total / 1e9


def _block(channels: int, ratio: float, cells: int) -> float:
    """Three depth-wise convolutions, two products of pooled maps, two layers."""
    return cells * channels * (3 * 9 + 2 * _POOLED + 2 * ratio * channels)


def _backbone(config: PyramidConfig, side: int) -> float:
    cells = [(side // (4 << stage)) ** 2 for stage in range(4)]
    total = float(cells[0] * 3 * 49 * config.widths[0])
    total += sum(
        9 * first * second * cells[stage]
        for stage, (first, second) in enumerate(itertools.pairwise(config.widths), start=1)
    )
    return total + sum(
        depth * _block(width, ratio, count)
        for depth, width, ratio, count in zip(
            config.layers, config.widths, config.mlp_ratios, cells, strict=True
        )
    )


def _stream(config: TrunkConfig, side: int) -> float:
    total = 0.0
    for stage in (1, 2, 3):  # from each coarser map down to the first
        total += sum(
            9 * config.widths[s] * config.widths[s - 1] * (side // (4 << (s - 1))) ** 2
            for s in range(stage, 0, -1)
        )
    pairs = zip(config.stream_layers, config.stream_mlp_ratios, strict=True)
    cells = (side // 4) ** 2
    return total + sum(depth * _block(config.widths[0], ratio, cells) for depth, ratio in pairs)


def _lifting(config: PotterHandConfig) -> int:
    sums = 2 * config.cells + config.depth_cells
    return config.joints * config.lifting_width * (sums + 3)


def _parameters(config: PotterMeshConfig) -> int:
    outputs = config.shapes + 2 * config.twists + 3
    return config.hidden * (config.widths[-1] + config.hidden + outputs)
