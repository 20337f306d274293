"""PRTR's checkpoints as ours, and weights to begin a training with.

Our networks have the official tensor names. What differs from file to file: older ones call the
backbone ``backbone.body``; a frozen batch norm has no counter; the heads of the deformable network
are in the file six times, of which the last counts; and constants of the end-to-end network are
computed here, whether a file has them or not.

Sizes are read from the shapes. No shape tells the number of attention heads, the size of the crop
and the order of colours; they have the published values unless given.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.checkpoint_check import check_tensors
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoint_shapes import Shapes, backbone_of, count_modules, size_of
from kinemesh.models.prtr import PrtrConfig
from kinemesh.models.prtr_deformable import DeformablePrtrConfig
from kinemesh.models.prtr_sequential import SequentialConfig, SequentialPrtr
from kinemesh.models.prtr_variants import (
    KEYPOINT_VARIANTS,
    KeypointArchitecture,
    KeypointConfig,
    Size,
    build_keypoint_network,
    keypoint_record,
    published_order,
)

DETR = "detr"
"""What `keypoint_family_of` calls DETR's person detectors, such as detr-r50-e632da11.pth."""
_BODY = "backbone.0.body."
_OLD_BODY = "backbone.body."
_COUNTER = ".num_batches_tracked"
_CLASSIFIER = re.compile(r"backbone\.0\.body\.(fc|classifier)\.")
_HEAD = re.compile(r"(class_embed|kpt_embed)\.(\d+)\.(.*)")
_CONSTANTS = ("x_interpolate", "y_interpolate", "mask", "pe")
_HEADS = 8
_RATIOS = (4, 8, 16, 32)
"""Channels of the four maps of a ResNet over the width of its stem."""
_DETR_PERSON, _DETR_NOTHING = 1, 91
"""Classes of a DETR that was trained on COCO."""
_SIZES: dict[int, tuple[str, Size]] = {17: ("coco17", (288, 384)), 16: ("mpii16", (256, 256))}
"""By the number of joints: joint set and the smallest published crop."""


@dataclass(frozen=True, eq=False)
class KeypointTensors:
    """A checkpoint of PRTR in our terms.

    Attributes:
        state: Our names and tensors, all that the network has.
        backbone: Name and arguments, as `prtr_variants.build_keypoint_backbone` takes them.
        config: Sizes.
        dropped: Official names of tensors that were left out.
        added: Our names of tensors that the file lacks: counters (zero) and constants.
    """

    state: dict[str, Tensor]
    backbone: dict[str, Any]
    config: KeypointConfig
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def keypoint_family_of(state: Mapping[str, Tensor]) -> KeypointArchitecture | str | None:
    """Which family tensors belong to: an architecture of PRTR, `DETR`, or None."""
    if "transformer_kpt.query_embed.weight" in state:
        return "prtr-sequential"
    if "transformer.level_embed" in state and any(n.startswith("kpt_embed.") for n in state):
        return "prtr-deformable"
    if "kpt_embed.layers.0.weight" in state:
        return "prtr"
    if "bbox_embed.layers.0.weight" in state and "query_embed.weight" in state:
        return DETR
    return None


# From official tensors -------------------------------------------------------------------------


def keypoints_from_official(
    state: Mapping[str, Tensor], family: KeypointArchitecture, heads: int | None = None
) -> KeypointTensors:
    """Turn a state dict with official names into ours.

    Args:
        state: Tensors by official name, as `read_tensors` returns them.
        family: What they are.
        heads: Of each attention, which no shape tells; None: 8, as published.

    Raises:
        InputError: Some tensors are missing, unknown or of another shape than the rest implies.
    """
    named = {_renamed(name): tensor for name, tensor in state.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in named.items()}
    backbone = backbone_of(shapes, prefix=_BODY)
    config = _CONFIGS[family](shapes, heads or _HEADS)
    record = {"architecture": family, "config": vars(config), "backbone": backbone}
    network = build_keypoint_network(record, blank=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    dropped = tuple(n for n in state if _is_dropped(_renamed(n), wanted))
    live = {name: tensor for name, tensor in named.items() if not _is_dropped(name, wanted)}
    if family == "prtr-deformable":
        live = _with_last_heads(live)
    added = {n: _computed(n, network) for n in wanted if _is_computed(n, family, live)}
    new = tuple(name for name in added if name not in live)
    live |= added
    check_tensors(live, wanted, family)
    return KeypointTensors({name: live[name] for name in wanted}, backbone, config, dropped, new)


def _renamed(name: str) -> str:
    return _BODY + name.removeprefix(_OLD_BODY) if name.startswith(_OLD_BODY) else name


def _is_dropped(name: str, wanted: Mapping[str, Any]) -> bool:
    """A classifier, or the counter of a batch norm that is frozen here."""
    if _CLASSIFIER.match(name):
        return True
    return name.endswith(_COUNTER) and name.startswith(_BODY) and name not in wanted


def _with_last_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The heads of all layers are one module: the tensors loaded last are those that count."""
    found = [match for match in map(_HEAD.fullmatch, state) if match]
    last = {match[1]: max(int(m[2]) for m in found if m[1] == match[1]) for match in found}
    return {
        name: state.get(f"{m[1]}.{last[m[1]]}.{m[3]}", tensor)
        if (m := _HEAD.fullmatch(name))
        else tensor
        for name, tensor in state.items()
    }


def _is_computed(name: str, family: KeypointArchitecture, live: Mapping[str, Tensor]) -> bool:
    if name.endswith(_COUNTER):
        return name not in live
    return family == "prtr-sequential" and name in _CONSTANTS


def _computed(name: str, network: nn.Module) -> Tensor:
    """Zero for a counter; a constant of the end-to-end network."""
    if name.endswith(_COUNTER):
        return torch.zeros((), dtype=torch.int64)
    assert isinstance(network, SequentialPrtr)
    network.register_constants()
    return network.get_buffer(name)


# Sizes -----------------------------------------------------------------------------------------


def _common_sizes(shapes: Shapes, published: KeypointConfig, heads: int) -> dict[str, Any]:
    """What all three networks have alike."""
    first = "transformer.encoder.layers.0"
    return {
        "width": size_of(shapes, "input_proj.weight", 0, published.width),
        "heads": heads,
        "encoder_layers": count_modules(shapes, "transformer.encoder.layers", 6),
        "decoder_layers": count_modules(shapes, "transformer.decoder.layers", 6),
        "feed_forward": size_of(shapes, f"{first}.linear1.weight", 0, published.feed_forward),
        "pre_norm": "transformer.encoder.norm.weight" in shapes,
    }


def _plain_config(shapes: Shapes, heads: int) -> KeypointConfig:
    published = PrtrConfig()
    learned = "backbone.1.row_embed.weight" in shapes
    return replace(
        published,
        **_common_sizes(shapes, published, heads),
        joints=size_of(shapes, "class_embed.weight", 0, published.joints + 1) - 1,
        queries=size_of(shapes, "query_embed.weight", 0, published.queries),
        positions="learned" if learned else "sine",
    )


def _deformable_config(shapes: Shapes, heads: int) -> KeypointConfig:
    published = DeformablePrtrConfig()
    levels = size_of(shapes, "transformer.level_embed", 0, published.levels)
    learned = "backbone.1.row_embed.weight" in shapes

    def points(attention: str, default: int) -> int:
        name = f"transformer.{attention}.attention_weights.weight"
        return size_of(shapes, name, 0, heads * levels * default) // (heads * levels)

    return replace(
        published,
        **_common_sizes(shapes, published, heads)
        | {
            "width": size_of(shapes, "transformer.level_embed", 1, published.width),
            "pre_norm": False,
        },
        joints=size_of(shapes, "class_embed.0.weight", 0, published.joints + 1) - 1,
        queries=size_of(shapes, "query_embed.weight", 0, published.queries),
        positions="learned" if learned else "sine",
        levels=levels,
        encoder_points=points("encoder.layers.0.self_attn", published.encoder_points),
        decoder_points=points("decoder.layers.0.cross_attn", published.decoder_points),
    )


def _sequential_config(shapes: Shapes, heads: int) -> KeypointConfig:
    published = SequentialConfig()
    kpt = "transformer_kpt"
    stem = size_of(shapes, f"{_BODY}conv1.weight", 0, 64)
    return replace(
        published,
        **_common_sizes(shapes, published, heads),
        joints=size_of(shapes, f"{kpt}.class_predictor.weight", 0, published.joints + 1) - 1,
        person_queries=size_of(shapes, "query_embed.weight", 0, published.person_queries),
        keypoint_queries=size_of(shapes, f"{kpt}.query_embed.weight", 0, 100),
        keypoint_width=size_of(shapes, f"{kpt}.query_embed.weight", 1, published.keypoint_width),
        levels=_levels(size_of(shapes, f"{kpt}.input_proj.weight", 1, 56 * stem) // stem),
        rows=size_of(shapes, "col_embed.weight", 1, published.rows),
        columns=size_of(shapes, "row_embed.weight", 1, published.columns),
    )


def _levels(ratio: int) -> tuple[int, ...]:
    """Which maps are cropped: their channels are powers of two, so that the sum tells."""
    return tuple(level for level, share in enumerate(_RATIOS) if ratio & share)


_CONFIGS = {
    "prtr": _plain_config,
    "prtr-deformable": _deformable_config,
    "prtr-sequential": _sequential_config,
}


# Records ---------------------------------------------------------------------------------------


def record_of_tensors(found: KeypointTensors, size: Size | None = None) -> dict[str, Any]:
    """Metadata of a weight file for converted tensors.

    Args:
        found: Of a checkpoint.
        size: Width and height of the crop; None: the smallest published one of the joint set.

    Returns:
        What `prtr_variants.keypoint_record` returns; the variant is the registered one with these
        sizes.

    Raises:
        InputError: There is no joint set for the number of joints, or the size does not fit.
    """
    joints = found.config.joints
    if joints not in _SIZES:
        raise InputError(
            f"The checkpoint has {joints} joints; expected 17 (COCO) or 16 (MPII). Which joints "
            "these are cannot be told."
        )
    skeleton, published = _SIZES[joints]
    order = published_order(found.backbone)
    if isinstance(found.config, SequentialConfig):
        published, order = KEYPOINT_VARIANTS["prtr-sequential"].size, "rgb"
    values: dict[str, Any] = {"size": size or published, "backbone": found.backbone}
    named = [
        v.name
        for v in KEYPOINT_VARIANTS.values()
        if (v.config, v.backbone, v.size) == (found.config, found.backbone, values["size"])
    ]
    return keypoint_record(
        found.config,
        skeleton=skeleton,
        order=order,
        variant=named[0] if named else None,
        **values,
    )


# Weights to begin with -------------------------------------------------------------------------


@dataclass(frozen=True)
class InitialWeights:
    """What a network was given to begin with.

    Attributes:
        source: Name of the file.
        kind: "imagenet", "detr", or the family of a whole network.
        taken: Names of the tensors of the network that were filled.
        fresh: Names of those that were not.
    """

    source: str
    kind: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.taken) + len(self.fresh)
        return f"{len(self.taken)} of {total} tensors from {self.source} ({self.kind})"


def load_initial_keypoints(network: nn.Module, path: str | Path) -> InitialWeights:
    """Fill what a file has of a `Prtr`, `DeformablePrtr` or `SequentialPrtr`; no code of it is run.

    The file is one of:

    - ImageNet's weights of the backbone: torchvision's ``resnet50-*.pth`` (101, 152), or
      ``hrnetv2_w32_imagenet_pretrained.pth``;
    - DETR, ``detr-r50-e632da11.pth``: backbone, transformer, projection, queries and, in the
      end-to-end network, boxes and the classes person and no object;
    - a whole network of PRTR, official or a weight file of this library.

    Raises:
        InputError: The file is none of these, or belongs to a network of other sizes.
    """
    path = Path(path)
    # A weight file of this library is read here, too: its tensors are plain ones.
    state = read_tensors(path)
    if any(name.startswith("model.") for name in state):
        state = strip_prefix(state, "model.")
    family = keypoint_family_of(state)
    if family is None:
        return _from_imagenet(network, path)
    if family == DETR:
        given, kind = _detr_tensors(state, network), DETR
    else:
        renamed = {_renamed(name): tensor for name, tensor in state.items()}
        given, kind = _with_last_heads(renamed), family
    return _fill(network, given, path, kind)


def _from_imagenet(network: nn.Module, path: Path) -> InitialWeights:
    # pretrained reads official checkpoints, which know the families of this module
    from kinemesh.models.pretrained import load_backbone  # noqa: PLC0415

    load_backbone(network.get_submodule("backbone.0.body"), path)  # type: ignore[arg-type]
    names = network.state_dict()
    taken = tuple(name for name in names if name.startswith(_BODY))
    rest = tuple(name for name in names if not name.startswith(_BODY))
    return InitialWeights(path.name, "imagenet", taken, rest)


def _detr_tensors(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """DETR's tensors by the names of PRTR; of its classes the two that the detector has."""
    heads = ("class_embed.", "bbox_embed.")
    given = {name: value for name, value in state.items() if not name.startswith(heads)}
    if not isinstance(network, SequentialPrtr):
        return given
    given |= {name: value for name, value in state.items() if name.startswith("bbox_embed.")}
    classes = [_DETR_PERSON, _DETR_NOTHING]
    for name in ("class_embed.weight", "class_embed.bias"):
        if len(state[name]) > _DETR_NOTHING:
            given[name] = state[name][classes]
        elif len(state[name]) == len(classes):
            given[name] = state[name]
    return given


def _fill(network: nn.Module, given: Mapping[str, Tensor], path: Path, kind: str) -> InitialWeights:
    own = network.state_dict()
    common = [name for name in own if name in given]
    differing = [name for name in common if given[name].shape != own[name].shape]
    if differing or not any(name.startswith("transformer.") for name in common):
        name = differing[0] if differing else "transformer.*"
        found = tuple(given[name].shape) if differing else "nothing of the same name"
        wanted = tuple(own[name].shape) if differing else "a transformer of the same kind"
        raise InputError(
            f"{path}: these are weights of {kind!r} for another network; '{name}': expected "
            f"{wanted}, found {found}. Take those of a network of the same kind and sizes."
        )
    network.load_state_dict({**own, **{name: given[name] for name in common}})
    fresh = tuple(name for name in own if name not in given)
    return InitialWeights(path.name, kind, tuple(common), fresh)
