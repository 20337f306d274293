"""PointHMR's checkpoints as ours, ours as official ones, and backbones to begin with.

Our networks have the official tensor names. Tensors without influence on any output do not exist
here: two embeddings, and what HRNet's last module would send to its two middle branches. Sizes are
read from the shapes. No shape tells the heads (4), the distances of the masks (7, 5, 3 and 1) and
the vertices of the finer levels, which are SMPL's or, for 195 coarse vertices, MANO's.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.checkpoint_check import check_tensors, differences
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoint_shapes import Shapes, agreed, backbone_of, count_modules, size_of
from kinemesh.models.hrnet import HighResolutionModule
from kinemesh.models.point_hmr import GRID_STRIDE, PointHmrConfig
from kinemesh.models.variants import blank_network

FAMILY = "point-hmr"
_COUNTER = ".num_batches_tracked"
_MIDDLE_ROWS = (1, 2)
_DEAD_ROW = re.compile(r"fuse_layers\.[12]\.")
_DEAD_EMBEDDING = re.compile(r"(cam|vertex)_token_embed\.weight")
_BACKBONE_KEYS = ("module.", "backbone.")


@dataclass(frozen=True, eq=False)
class PointTensors:
    """A checkpoint of PointHMR in our terms.

    Attributes:
        state: Our names and tensors, all that the network has.
        backbone: What `variants.build_backbone` takes.
        config: Sizes.
        dropped: Official names of tensors that were left out.
        added: Our names of counters that the file lacks; they are zero.
    """

    state: dict[str, Tensor]
    backbone: dict[str, Any]
    config: PointHmrConfig
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def is_point_hmr(state: Mapping[str, Tensor]) -> bool:
    """Whether tensors with official, or our, names are those of a PointHMR."""
    return "transformer.cam_predictor.weight" in state and "cam_layer.weight" in state


def dead_names(names: Iterable[str]) -> tuple[str, ...]:
    """Those official names whose tensors no output of the official network depends on."""
    names = tuple(names)
    last = _last_module(names)
    return tuple(
        name
        for name in names
        if _DEAD_EMBEDDING.fullmatch(name)
        or (last is not None and _DEAD_ROW.match(name.removeprefix(f"{last}.")))
    )


def from_official_point_hmr(state: Mapping[str, Tensor], heads: int | None = None) -> PointTensors:
    """Turn a state dict with official names into ours.

    Args:
        state: Tensors by official name.
        heads: Attention heads, which no shape tells; None: 4.

    Raises:
        InputError: Tensors are missing, unknown or of another shape than the rest implies.
    """
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    backbone = backbone_of(shapes)
    config = config_of(shapes, heads)
    dropped = dead_names(state)
    live = {name: value for name, value in state.items() if name not in set(dropped)}
    wanted = {
        name: tuple(value.shape)
        for name, value in blank_network(config, backbone).state_dict().items()
    }
    added = tuple(name for name in wanted if name.endswith(_COUNTER) and name not in live)
    live |= {name: torch.zeros((), dtype=torch.int64) for name in added}
    check_tensors(live, wanted, FAMILY)
    return PointTensors({name: live[name] for name in wanted}, backbone, config, dropped, added)


def config_of(shapes: Shapes, heads: int | None = None) -> PointHmrConfig:
    """Sizes of the network with these tensors; what is absent keeps the published size."""
    told = {
        "joints": (("joint_token_embed.weight", 0),),
        "coarse_vertices": (("cam_layer.weight", 1), ("heatmap_layer.0.bn1.weight", 0)),
        "width": (("joint_token_embed.weight", 1), ("feature_extract_layer.0.bn1.weight", 0)),
        "position_width": (("token_position_embed.weight", 1),),
        "second_width": (
            ("transformer.dim_reduce.weight", 0),
            ("transformer.cam_predictor.weight", 1),
            ("transformer.transformer_4.norm.weight", 0),
        ),
    }
    published = PointHmrConfig()
    sizes: dict[str, Any] = {
        name: agreed(shapes, where, getattr(published, name)) for name, where in told.items()
    }
    upsampled = PointHmrConfig.hand().upsampled if sizes["coarse_vertices"] == 195 else None
    inner = tuple(
        agreed(
            shapes,
            ((f"transformer.transformer_{n}.layers.0.linear1.{kind}", 0) for kind in _KINDS),
            default,
        )
        for n, default in zip((1, 3), published.feed_forward, strict=True)
    )
    found = replace(
        published,
        **sizes,
        upsampled=upsampled or published.upsampled,
        feed_forward=(inner[0], inner[1]),
        layers=count_modules(shapes, "transformer.transformer_1.layers", published.layers),
        heads=heads or published.heads,
    )
    tokens = size_of(shapes, "token_position_embed.weight", 0, 0)
    cells = tokens - 1 - found.joints - found.coarse_vertices
    side = math.isqrt(max(cells, 0))
    return replace(found, resolution=GRID_STRIDE * side) if side and side**2 == cells else found


_KINDS = ("weight", "bias")


def to_official_point_hmr(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn our state dict into one with all official names, in the official order.

    What no output depends on is filled with zeros, and ones where it is a norm's scale or variance.
    """
    official: dict[str, Tensor] = {}
    last = _last_module(state)
    for name, value in state.items():
        if last is not None and name.startswith(f"{last}.fuse_layers.3."):
            official |= {n: v for n, v in _middle_rows(state, last) if n not in official}
        if name == "joint_token_embed.weight":
            official["cam_token_embed.weight"] = value.new_zeros(1, value.shape[1])
        official[name] = value
        if name == "joint_token_embed.weight":
            vertices = state["cam_layer.weight"].shape[1]
            official["vertex_token_embed.weight"] = value.new_zeros(vertices, value.shape[1])
    return official


def load_backbone_trunk(backbone: nn.Module, path: str | Path) -> str:
    """Fill the backbone from a checkpoint that holds it under its own names, among others.

    Fitting are HRNet's and ResNet's ImageNet files, and networks trained for other tasks that keep
    these names (the published training began with the backbone of such a network). What the file
    holds beside the backbone, such as a classifier, is not looked at.

    Args:
        backbone: `PointHRNet` or `PointResNet`.
        path: Checkpoint; no code of it is run.

    Returns:
        What was loaded, for the record of a training.

    Raises:
        InputError: The file lacks tensors of the backbone, or has them in other shapes.
    """
    state: dict[str, Tensor] = read_tensors(path)
    for prefix in _BACKBONE_KEYS:
        state = strip_prefix(state, prefix) or state
    own = backbone.state_dict()
    # ImageNet's ResNet has no layers that enlarge the map; they keep their initial values
    wanted = {
        name: tuple(value.shape)
        for name, value in own.items()
        if not name.startswith("deconv_layers.")
        and not (name.endswith(_COUNTER) and name not in state)
    }
    held = {name: value for name, value in state.items() if name in wanted}
    if problems := differences(held, wanted):
        raise InputError(
            f"{path}: expected the tensors of a {type(backbone).__name__}, alone or among others. "
            f"{problems}"
        )
    backbone.load_state_dict(own | held)
    return f"the backbone from {Path(path).name} ({len(held)} of {len(state)} tensors)"


def _last_module(names: Iterable[str]) -> str | None:
    """Name of HRNet's last module, None where the backbone is another."""
    numbers = [int(m[1]) for m in map(re.compile(r"backbone\.stage4\.(\d+)\.").match, names) if m]
    return f"backbone.stage4.{max(numbers)}" if numbers else None


def _middle_rows(state: Mapping[str, Tensor], last: str) -> Iterator[tuple[str, Tensor]]:
    """What the official last module has for its middle branches."""
    width = len(state[f"{last}.branches.0.0.bn1.weight"])
    with torch.device("meta"):
        module = HighResolutionModule([width << branch for branch in range(4)])
    for name, value in module.state_dict().items():
        if name.startswith(tuple(f"fuse_layers.{row}." for row in _MIDDLE_ROWS)):
            is_one = value.ndim == 1 and name.endswith(("weight", "running_var"))
            fill = torch.ones if is_one else torch.zeros
            yield f"{last}.{name}", fill(value.shape, dtype=value.dtype)
