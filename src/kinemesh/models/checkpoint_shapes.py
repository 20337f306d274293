"""The sizes of a network, read from the shapes of its tensors.

A size that several tensors tell is the one that most of them agree on, so that a single odd tensor
does not decide what the others should be. What a tensor that is absent would tell keeps the
published value. The check of the tensors against a network of these sizes then names everything
that is missing or does not fit at once.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from kinemesh.models.graphormer import GraphormerConfig
from kinemesh.models.metro import MetroConfig

Shapes = Mapping[str, tuple[int, ...]]

_HRNET: dict[str, Any] = {
    "stem_width": 64,
    "head_planes": (32, 64, 128, 256),
    "pooled_channels": 2048,
    "modules": (1, 4, 3),
}
"""Published arguments of `HRNet`."""
_DEPTHS = {6: 50, 23: 101, 36: 152}
"""Depth of a ResNet by the blocks of its third layer."""


def backbone_of(shapes: Shapes, prefix: str = "backbone.") -> dict[str, Any]:
    """Which backbone has these tensors, as `variants.build_backbone` takes it.

    Args:
        shapes: Shapes by name; a ResNet has torchvision's names.
        prefix: What stands before the backbone's names.
    """
    own = {name[len(prefix) :]: s for name, s in shapes.items() if name.startswith(prefix)}
    is_resnet = any(name.startswith("layer2.") for name in own)
    return _resnet_of(own) if is_resnet else _hrnet_of(own)


def _hrnet_of(shapes: Shapes) -> dict[str, Any]:
    def channels(conv: str, norm: str, default: int) -> int:
        told = (f"{conv}.weight", f"{norm}.weight", f"{norm}.bias")
        return agreed(shapes, ((name, 0) for name in told), default)

    found = {
        "stem_width": channels("conv1", "bn1", _HRNET["stem_width"]),
        "head_planes": tuple(
            channels(f"incre_modules.{branch}.0.conv1", f"incre_modules.{branch}.0.bn1", planes)
            for branch, planes in enumerate(_HRNET["head_planes"])
        ),
        "pooled_channels": channels("final_layer.0", "final_layer.1", _HRNET["pooled_channels"]),
        "modules": tuple(
            count_modules(shapes, f"stage{stage}", default)
            for stage, default in enumerate(_HRNET["modules"], start=2)
        ),
    }
    unusual = {name: value for name, value in found.items() if value != _HRNET[name]}
    first = "stage2.0.branches.0.0"
    return {"name": "hrnet", "width": channels(f"{first}.conv1", f"{first}.bn1", 64), **unusual}


def _resnet_of(shapes: Shapes) -> dict[str, Any]:
    depth = _DEPTHS.get(count_modules(shapes, "layer3", 6), 50)
    width = agreed(shapes, (("conv1.weight", 0), ("bn1.weight", 0), ("bn1.bias", 0)), 64)
    return {"name": "resnet", "depth": depth, **({} if width == 64 else {"width": width})}


def config_of(
    shapes: Shapes,
    published: MetroConfig | GraphormerConfig,
    backbone: Mapping[str, Any],
    heads: int,
    joints: int | None,
) -> MetroConfig | GraphormerConfig:
    """The configuration of the network with these tensors.

    Args:
        shapes: Shapes by official or our names, which agree in all that is read here.
        published: Sizes of the published network of the same kind, kept where no shape tells.
        backbone: What `backbone_of` found; it decides the width of the image features.
        heads: Attention heads, which no shape tells.
        joints: J where no shape tells it, as in a Mesh Graphormer body; None: the published one.
    """
    blocks = max(count_modules(shapes, "trans_encoder", 3), 1)
    config = replace(published, **_mesh_sizes(shapes, published, joints))
    config = replace(config, **_block_sizes(shapes, config, blocks), heads=heads)
    pooled = _pooled_channels(backbone)
    if isinstance(config, MetroConfig):
        cells = size_of(shapes, "conv_learn_tokens.weight", 1, config.cells)
        return replace(config, map_channels=pooled, cells=cells)
    planes = backbone.get("head_planes", _HRNET["head_planes"])
    graph = tuple(
        any(name.startswith(f"trans_encoder.{b}.") and ".graph_conv." in name for name in shapes)
        for b in range(blocks)
    )
    return replace(config, pooled_channels=pooled, grid_channels=4 * planes[-1], graph_blocks=graph)


def _mesh_sizes(
    shapes: Shapes, published: MetroConfig | GraphormerConfig, joints: int | None
) -> dict[str, Any]:
    coarse = size_of(shapes, "upsampling.weight", 1, published.coarse_vertices)
    stages = [f"upsampling{n if n > 1 else ''}" for n in range(1, 10)]
    upsampled = tuple(
        agreed(
            shapes,
            ((f"{name}.bias", 0), (f"{name}.weight", 0), (f"{after}.weight", 1)),
            coarse,
        )
        for name, after in itertools.pairwise((*stages, ""))
        if f"{name}.weight" in shapes
    )
    queries = size_of(shapes, "cam_param_fc2.weight", 1, 0)
    if published.camera_tokens == "vertices":
        queries = size_of(shapes, "conv_learn_tokens.weight", 0, 0)
    found = queries - coarse if queries > coarse else published.joints
    return {
        "joints": joints or found,
        "coarse_vertices": coarse,
        "upsampled": upsampled or published.upsampled,
        "camera_hidden": agreed(
            shapes,
            (("cam_param_fc2.weight", 0), ("cam_param_fc2.bias", 0), ("cam_param_fc3.weight", 1)),
            published.camera_hidden,
        ),
    }


def _block_sizes(
    shapes: Shapes, published: MetroConfig | GraphormerConfig, blocks: int
) -> dict[str, Any]:
    def each(told: Mapping[str, int], defaults: tuple[int, ...]) -> tuple[int, ...]:
        padded = (*defaults, *(defaults[-1:] * blocks))
        return tuple(
            agreed(
                shapes, ((f"trans_encoder.{b}.{n}", axis) for n, axis in told.items()), padded[b]
            )
            for b in range(blocks)
        )

    first, layer = "trans_encoder.0.bert", "bert.encoder.layer.0"
    widths = {
        "bert.position_embeddings.weight": 1,
        "bert.img_embedding.weight": 0,
        "bert.img_embedding.bias": 0,
        "cls_head.weight": 1,
    }
    inner = {
        f"{layer}.intermediate.dense.weight": 0,
        f"{layer}.intermediate.dense.bias": 0,
        f"{layer}.output.dense.weight": 1,
    }
    heads = {"cls_head.weight": 0, "cls_head.bias": 0, "residual.weight": 0, "residual.bias": 0}
    positions = ((f"trans_encoder.{b}.bert.position_embeddings.weight", 0) for b in range(blocks))
    return {
        "hidden_dims": each(widths, published.hidden_dims),
        "feed_forward_dims": each(inner, published.feed_forward_dims),
        "out_dims": (*each(heads, published.out_dims)[:-1], 3),
        "layers": count_modules(shapes, f"{first}.encoder.layer", published.layers),
        "positions": agreed(shapes, positions, published.positions),
    }


def _pooled_channels(backbone: Mapping[str, Any]) -> int:
    if backbone["name"] == "resnet":
        return 32 * int(backbone.get("width", 64))
    return int(backbone.get("pooled_channels", _HRNET["pooled_channels"]))


def size_of(shapes: Shapes, name: str, axis: int, default: int) -> int:
    """Length of an axis of a tensor; ``default`` where it is absent."""
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else default


def agreed(shapes: Shapes, told: Iterable[tuple[str, int]], default: int) -> int:
    """Length that most of some axes have, each a name and a number; the first of equally many.

    ``default`` where all of these tensors are absent.
    """
    found = [shapes[name][axis] for name, axis in told if len(shapes.get(name, ())) > axis]
    return Counter(found).most_common(1)[0][0] if found else default


def count_modules(shapes: Shapes, parent: str, default: int) -> int:
    """How many modules stand below a name, numbered from 0 without a gap.

    ``default`` where there is no first one. What stands beyond a gap is not counted: a damaged
    name must not make a network of thousands of blocks.
    """
    pattern = re.compile(rf"{re.escape(parent)}\.(\d{{1,3}})\.")
    numbers = {int(match[1]) for match in map(pattern.match, shapes) if match}
    return next(n for n in itertools.count() if n not in numbers) or default
