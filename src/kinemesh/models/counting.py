"""Multiply-adds of a network: counted as it runs, and by formula as published.

`count_macs` watches a forward pass and adds up every convolution and matrix product.
`official_gmac` computes from sizes alone what METRO's and Mesh Graphormer's official networks
multiply for one crop, where the image feature is repeated and multiplied once a token. The two
differ by what this package saves. Neither counts norms, activations, biases or sums.

Shape legend: B batch, T tokens, D input, H hidden and O output width of a block, N coarse vertices,
S image side.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kinemesh.errors import InputError
from kinemesh.models.graphormer import GraphormerConfig
from kinemesh.models.graphormer_pose import PoseGraphormerConfig
from kinemesh.models.metro import MetroConfig

_RESNET_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@torch.no_grad()
def count_macs(network: nn.Module, *inputs: Any) -> int:
    """Multiply-adds of ``network(*inputs)``, for the whole batch.

    The network must consist of plain PyTorch layers: count the original of an optimised network,
    whose arithmetic is the same. With parameters and inputs on the device "meta" only shapes are
    computed, which takes no time and no memory.
    """
    counter = FlopCounterMode(display=False)
    # attention as matrix products, which are counted
    with _frozen(network), counter, sdpa_kernel(SDPBackend.MATH):
        network(*inputs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _frozen(network: Any) -> Iterator[None]:
    """No parameter needs a gradient meanwhile.

    PyTorch's counter hooks on to every module input that needs one, and fails on those that are
    views of a parameter, such as learned queries, which have no history without gradients.
    """
    parameters = list(network.parameters()) if isinstance(network, nn.Module) else []
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def official_gmac(
    config: MetroConfig | GraphormerConfig | PoseGraphormerConfig,
    backbone: Mapping[str, Any],
    side: int = 224,
) -> float:
    """10^9 multiply-adds of the official network for one crop.

    The product with the graph's adjacency is counted as a dense one.

    Args:
        config: Sizes of the network.
        backbone: Name and sizes, as in `variants.BackboneSpec`.
        side: S, a multiple of 32.

    Raises:
        InputError: There is no formula for the backbone.
    """
    grid = 0 if isinstance(config, MetroConfig) else (side // 32) ** 2
    if isinstance(config, PoseGraphormerConfig):
        queries, nodes, width = config.joints, config.joints, config.pooled_channels
        heads = queries * 3 + queries * 3
    else:
        nodes = config.coarse_vertices
        queries = config.joints + nodes
        heads = _mesh_head_macs(config)
        width = 3 + (
            config.map_channels if isinstance(config, MetroConfig) else config.pooled_channels
        )
    total = backbone_macs(backbone, side) + heads
    total += sum(block_macs(config, queries + grid, width, nodes))
    if isinstance(config, MetroConfig):
        total += config.cells * queries * config.map_channels * (config.image_feature == "cells")
    else:
        total += grid * config.grid_channels * width
    return total / 1e9


def block_macs(
    config: MetroConfig | GraphormerConfig | PoseGraphormerConfig,
    tokens: int,
    width: int,
    nodes: int,
) -> list[int]:
    """Multiply-adds of each transformer block for one crop.

    Args:
        config: Sizes.
        tokens: T, with grid tokens.
        width: D of the first block.
        nodes: Tokens that are graph nodes.
    """
    graphs = getattr(config, "graph_blocks", (False,) * len(config.hidden_dims))
    macs = []
    for hidden, inner, out, graph in zip(
        config.hidden_dims, config.feed_forward_dims, config.out_dims, graphs, strict=True
    ):
        layer = tokens * (4 * hidden * hidden + 2 * hidden * inner) + 2 * tokens * tokens * hidden
        if graph:
            half = hidden // 2
            layer += nodes * (2 * hidden * half + half * half) + nodes * nodes * half
        ends = tokens * (width * hidden + hidden * out + width * out)
        macs.append(config.layers * layer + ends)
        width = out
    return macs


def _mesh_head_macs(config: MetroConfig | GraphormerConfig) -> int:
    """Up-sampling of x, y and z, and the camera."""
    sizes = (config.coarse_vertices, *config.upsampled)
    upsampling = sum(3 * coarse * fine for coarse, fine in itertools.pairwise(sizes))
    tokens = config.coarse_vertices
    if config.camera_tokens != "vertices":
        tokens += config.joints
    return upsampling + tokens * 3 + tokens * config.camera_hidden + config.camera_hidden * 3


def backbone_macs(backbone: Mapping[str, Any], side: int = 224) -> int:
    """Multiply-adds of a backbone for one image of S x S, without a classifier.

    Raises:
        InputError: It is neither an HRNet nor a ResNet of published proportions.
    """
    sizes = dict(backbone)
    name = sizes.pop("name", None)
    if name == "hrnet" and set(sizes) == {"width"}:
        return sum(_hrnet_convolutions(sizes["width"], side))
    if name == "resnet" and set(sizes) <= {"depth"}:
        return sum(_resnet_convolutions(_RESNET_BLOCKS[sizes.get("depth", 50)], side))
    raise InputError(
        f"backbone: expected an HRNet by its width or a ResNet by its depth, found {backbone}."
    )


def _conv(channels: int, out_channels: int, kernel: int, side: int) -> int:
    """A convolution whose output is ``side`` x ``side``."""
    return channels * out_channels * kernel * kernel * side * side


def _bottleneck(channels: int, planes: int, side: int, stride: int = 1) -> Iterator[int]:
    """A residual block from ``channels`` to four times ``planes``; ``side`` is its output's."""
    yield _conv(channels, planes, 1, side * stride)
    yield _conv(planes, planes, 3, side)
    yield _conv(planes, 4 * planes, 1, side)
    if channels != 4 * planes or stride != 1:
        yield _conv(channels, 4 * planes, 1, side)


def _resnet_convolutions(blocks: Sequence[int], side: int) -> Iterator[int]:
    yield _conv(3, 64, 7, side // 2)
    channels = 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage and not block else 1
            yield from _bottleneck(channels, 64 << stage, side // (4 << stage), stride)
            channels = 4 * (64 << stage)


def _hrnet_convolutions(width: int, side: int) -> Iterator[int]:
    channels = [width << branch for branch in range(4)]
    sides = [side // (4 << branch) for branch in range(4)]
    yield _conv(3, 64, 3, side // 2)
    yield _conv(64, 64, 3, sides[0])
    for block in range(4):
        yield from _bottleneck(64 if block == 0 else 256, 64, sides[0])
    yield _conv(256, channels[0], 3, sides[0])
    yield _conv(256, channels[1], 3, sides[1])
    for branches, modules in ((2, 1), (3, 4), (4, 3)):
        for _ in range(modules):
            yield from _exchange_module(channels[:branches], sides)
        if branches < 4:
            yield _conv(channels[branches - 1], channels[branches], 3, sides[branches])
    yield from _classification_head(channels, sides)


def _exchange_module(channels: Sequence[int], sides: Sequence[int]) -> Iterator[int]:
    """Four residual blocks of two convolutions a branch, then each branch to every other."""
    for own, own_side in zip(channels, sides, strict=False):
        yield 8 * _conv(own, own, 3, own_side)
    for target, source in itertools.permutations(range(len(channels)), 2):
        if source > target:
            yield _conv(channels[source], channels[target], 1, sides[source])
            continue
        for step in range(source + 1, target):
            yield _conv(channels[source], channels[source], 3, sides[step])
        yield _conv(channels[source], channels[target], 3, sides[target])


def _classification_head(channels: Sequence[int], sides: Sequence[int]) -> Iterator[int]:
    merged = 128
    for branch, (own, own_side) in enumerate(zip(channels, sides, strict=True)):
        yield from _bottleneck(own, 32 << branch, own_side)
        if branch:
            yield _conv(merged, 2 * merged, 3, own_side)
            merged *= 2
    yield _conv(merged, 2048, 1, sides[-1])
