"""Official checkpoints as ours, and ours as official ones: one rule of names for each family.

Our networks have the official tensor names, with these differences:

- ``...attention.self.{query,key,value}`` are one tensor ``...attention.self.qkv``, rows in this
  order;
- a ResNet has torchvision's names ``conv1, bn1, layer1..4`` where METRO's files count its modules,
  ``backbone.0, .1, .4 .. .7``;
- tensors without influence on any output do not exist: the text embeddings and poolers of BERT, the
  unused skip of a graph block, the classifier of a backbone.

Sizes are read from the shapes. What shapes do not tell is the number of attention heads, and the
number of joints of a Mesh Graphormer body; both have the published values unless given.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.checkpoint_check import check_tensors, count_differences, some
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoint_shapes import backbone_of, config_of
from kinemesh.models.graphormer import GraphormerConfig
from kinemesh.models.metro import MetroConfig
from kinemesh.models.point_hmr_checkpoints import (
    FAMILY as POINT_HMR,
)
from kinemesh.models.point_hmr_checkpoints import (
    from_official_point_hmr,
    is_point_hmr,
    to_official_point_hmr,
)
from kinemesh.models.potter_checkpoints import TRUNK, potter_family_of, potter_from_official
from kinemesh.models.potter_variants import POTTER_CONFIGS, PotterConfig
from kinemesh.models.prtr_checkpoints import (
    DETR,
    keypoint_family_of,
    keypoints_from_official,
)
from kinemesh.models.prtr_variants import KEYPOINT_CONFIGS, POSE2D, KeypointConfig
from kinemesh.models.variants import VARIANTS, Config, blank_backbone, blank_network

__all__ = [
    "FAMILIES",
    "Converted",
    "Family",
    "family_of",
    "from_official",
    "read_tensors",
    "to_official",
]

_ATTENTION = re.compile(r"(.*\.attention\.self\.)(query|key|value)\.(weight|bias)")
_FUSED = re.compile(r"(.*\.attention\.self\.)qkv\.(weight|bias)")
_PARTS = ("query", "key", "value")
_RESNET = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
_COUNTER = ".num_batches_tracked"
_HEADS = 4
_WORDS, _SEGMENTS, _CLASSES = 30522, 2, 1000
"""Rows of the dead tables: BERT's vocabulary and token types, ImageNet's classes."""
_FEW = 8
"""As many tensors may differ from a registered network's for it to be the one that was meant."""


@dataclass(frozen=True)
class Family:
    """A kind of official checkpoint.

    Attributes:
        architecture: What it builds: a key of `registry.ARCHITECTURES`, or a backbone alone.
        task: "body", "hand", "pose2d", or None for a backbone.
        files: Names that its files were published under.
    """

    architecture: Literal[
        "metro",
        "graphormer",
        "hrnet",
        "resnet",
        "prtr",
        "prtr-deformable",
        "prtr-sequential",
        "potter-hand",
        "potter-mesh",
        "potter-classifier",
        "point-hmr",
    ]
    task: Literal["body", "hand", "pose2d"] | None
    files: str

    @property
    def is_backbone(self) -> bool:
        """Whether its files hold an ImageNet classifier, not a whole network."""
        return self.task is None

    @property
    def finds_keypoints(self) -> bool:
        """Whether it is one of PRTR's, which find 2D keypoints and have no mesh."""
        return self.task == POSE2D


FAMILIES: dict[str, Family] = {
    "metro-body": Family("metro", "body", "metro_h36m_state_dict.bin, metro_3dpw_state_dict.bin"),
    "metro-hand": Family("metro", "hand", "metro_hand_state_dict.bin"),
    "graphormer-body": Family(
        "graphormer", "body", "graphormer_h36m_state_dict.bin, graphormer_3dpw_state_dict.bin"
    ),
    "graphormer-hand": Family("graphormer", "hand", "graphormer_hand_state_dict.bin"),
    "hrnet-imagenet": Family(
        "hrnet",
        None,
        "hrnetv2_w64_imagenet_pretrained.pth, hrnetv2_w40_imagenet_pretrained.pth",
    ),
    "resnet-imagenet": Family("resnet", None, "resnet50-0676ba61.pth and others of torchvision"),
    "prtr": Family("prtr", "pose2d", "checkpoint.pth, model_best.pth, final_state.pth of PRTR"),
    "prtr-deformable": Family("prtr-deformable", "pose2d", "the same of its deformable variant"),
    "prtr-sequential": Family("prtr-sequential", "pose2d", "none released"),
    "point-hmr": Family("point-hmr", "body", "the Human3.6M and 3DPW files of PointHMR-HR32"),
    "potter-hand": Family("potter-hand", "hand", "best checkpoints of the Ego-Exo4D baseline"),
    "potter-mesh": Family("potter-mesh", "body", "POTTER's human mesh recovery, without its SMPL"),
    "potter-classifier": Family(
        "potter-classifier", None, "poolattnformer_s12, poolattnformer_s24, cls_s12.pth"
    ),
}
"""Official checkpoints that can be read, by the name that ``kinemesh convert --family`` takes."""


@dataclass(frozen=True, eq=False)
class Converted:
    """An official checkpoint in our terms.

    Attributes:
        family: Key of `FAMILIES`.
        state: Our names and tensors, all that the network has.
        backbone: What `variants.build_backbone` takes.
        config: Configuration of the network; None for a backbone alone.
        dropped: Official names of tensors without influence, which were left out.
        added: Our names of what a file may lack: counters (``num_batches_tracked``, zero) and
            constants.
    """

    family: str
    state: dict[str, Tensor]
    backbone: dict[str, Any]
    config: Config | KeypointConfig | PotterConfig | None
    dropped: tuple[str, ...]
    added: tuple[str, ...]


def family_of(state: Mapping[str, Tensor]) -> str | None:
    """Which family tensors with official (or our) names belong to; None if to none.

    A body is told from a hand by its camera, which reads the vertices alone.
    """
    for family in (keypoint_family_of(state), potter_family_of(state)):
        if family in KEYPOINT_CONFIGS or family in POTTER_CONFIGS:
            return family
    if is_point_hmr(state):
        return POINT_HMR
    if any(name.startswith("trans_encoder.") for name in state):
        system = "graphormer" if "grid_feat_dim.weight" in state else "metro"
        return f"{system}-{'body' if _reads_vertices_alone(state) else 'hand'}"
    if any(name.startswith("stage4.") for name in state):
        return "hrnet-imagenet"
    if "layer4.0.conv1.weight" in state:
        return "resnet-imagenet"
    return None


def _reads_vertices_alone(state: Mapping[str, Tensor]) -> bool:
    camera, upsampling = state.get("cam_param_fc2.weight"), state.get("upsampling.weight")
    if camera is None or upsampling is None or min(camera.ndim, upsampling.ndim) < 2:
        return "upsampling2.weight" in state
    if camera.shape[1] < upsampling.shape[1]:  # that of no network: one of the two is damaged
        return "upsampling2.weight" in state
    return camera.shape[1] == upsampling.shape[1]


def from_official(
    state: Mapping[str, Tensor],
    family: str | None = None,
    *,
    heads: int | None = None,
    joints: int | None = None,
) -> Converted:
    """Turn a state dict with official names into ours.

    Args:
        state: Tensors by official name, as `read_tensors` returns them.
        family: Key of `FAMILIES`; None takes the one that the names show.
        heads: Attention heads, which no shape tells; None: as published, 4, and 8 in PRTR.
        joints: Joint tokens of a Mesh Graphormer body, which no shape tells; None: 14.

    Returns:
        Our tensors (those that need no change are the same objects), sizes and what was dropped.

    Raises:
        InputError: The tensors belong to another family, or some are missing, unknown or of
            another shape than the rest implies; the message names them.
    """
    family = _checked_family(family, state)
    if heads is not None and heads < 1:
        raise InputError(f"heads: expected 1 or more, found {heads}.")
    if empty := [name for name, value in state.items() if not value.numel()]:
        raise InputError(
            f"Expected tensors with values, found {len(empty)} with none: {some(empty)}. The file "
            "is damaged."
        )
    if family in KEYPOINT_CONFIGS:
        found = keypoints_from_official(state, family, heads)
        sizes = found.backbone, found.config
        return Converted(family, found.state, *sizes, found.dropped, found.added)
    if family == POINT_HMR:
        point = from_official_point_hmr(state, heads)
        parts = point.backbone, point.config, point.dropped, point.added
        return Converted(family, point.state, *parts)
    if family in POTTER_CONFIGS:
        ours = potter_from_official(state, family)
        return Converted(family, ours.state, {}, ours.config, ours.dropped, ())
    dropped = tuple(name for name in state if _is_dead(name, family))
    live = {_our_module(n): v for n, v in state.items() if not _is_dead(n, family)}
    shapes = {name: tuple(value.shape) for name, value in live.items()}
    kind = FAMILIES[family]
    config: Config | None = None
    if kind.task is None:
        backbone = backbone_of(shapes, prefix="")
        wanted = _official_shapes(blank_backbone(backbone))
    else:
        backbone = backbone_of(shapes)
        config = config_of(shapes, _published(kind), backbone, heads or _HEADS, joints)
        wanted = _official_shapes(blank_network(config, backbone))
    added = tuple(name for name in wanted if name.endswith(_COUNTER) and name not in live)
    live |= {name: torch.zeros((), dtype=torch.int64) for name in added}
    if config is not None and count_differences(live, wanted):
        wanted = _nearest(live, wanted, family)
    check_tensors(live, wanted, family, _official_names(live))
    converted = _fuse({name: live[name] for name in wanted})
    return Converted(family, converted, backbone, config, dropped, added)


def to_official(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Turn our state dict into one with all official names, in the official order.

    The dead tensors, which no output depends on, are filled with zeros (ones where they are the
    scale of a norm): official code asks for their presence, not for their values.

    Args:
        state: Our tensors by name.
        family: Key of `FAMILIES`.

    Raises:
        InputError: The tensors belong to another family.
    """
    family = _checked_family(family, state)
    if family == POINT_HMR:
        return to_official_point_hmr(state)
    if FAMILIES[family].finds_keypoints or family in POTTER_CONFIGS:
        return dict(state)
    split = _split(state)
    if FAMILIES[family].is_backbone:
        return split | _dead_classifier(split, prefix="", layer=_classifier(family))
    official_name = _official_names(split)
    official = {official_name(name): tensor for name, tensor in split.items()}
    official |= _dead_encoder(split)
    if "backbone.final_layer.0.weight" in split:
        official |= _dead_classifier(split, prefix="backbone.", layer="classifier")
    return {name: official[name] for name in sorted(official, key=_official_rank)}


def _official_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes that an official checkpoint of a network of ours has, by our modules' names."""
    return {name: tuple(value.shape) for name, value in _split(network.state_dict()).items()}


def _nearest(
    live: Mapping[str, Tensor], wanted: dict[str, tuple[int, ...]], family: str
) -> dict[str, tuple[int, ...]]:
    """Shapes that a damaged file is compared with: those read from it, or a registered network's.

    A damaged tensor that alone tells a size makes sound ones look wrong. The comparison that finds
    less to complain of names the damaged one.
    """
    registered = (variant for variant in VARIANTS.values() if variant.family == family)
    near = [_official_shapes(blank_network(v.config, v.backbone)) for v in registered]
    near = [shapes for shapes in near if count_differences(live, shapes) <= _FEW]
    return min([*near, wanted], key=lambda shapes: count_differences(live, shapes))


def _published(family: Family) -> MetroConfig | GraphormerConfig:
    kind = MetroConfig if family.architecture == "metro" else GraphormerConfig
    return kind.body() if family.task == "body" else kind.hand()


def _checked_family(family: str | None, state: Mapping[str, Tensor]) -> str:
    if family is not None and family not in FAMILIES:
        raise InputError(f"family: expected one of {', '.join(FAMILIES)}, found {family!r}.")
    found = family_of(state)
    if keypoint_family_of(state) == DETR:
        raise InputError(
            "These are the tensors of DETR, a detector, which is no network of this library. Give "
            "the file to the training of PRTR as weights to begin with."
        )
    if potter_family_of(state) == TRUNK:
        raise InputError(
            "These are the tensors of POTTER's trunk, which is no whole network. Give the file to "
            "the training of POTTER as weights to begin with."
        )
    if found is None:
        raise InputError(
            f"Expected the tensors of one of the families {', '.join(FAMILIES)}; found "
            f"{len(state)} tensors whose names fit none of them: {some(state)}."
        )
    if family not in {None, found}:
        raise InputError(
            f"Expected the tensors of {family!r}, found those of {found!r}. Use --family {found}."
        )
    return found


# Names that differ ---------------------------------------------------------------------------


def _is_dead(name: str, family: str) -> bool:
    """Whether no output of the official network depends on a tensor."""
    if FAMILIES[family].is_backbone:
        return name.startswith(f"{_classifier(family)}.")
    return name.startswith("backbone.classifier.") or bool(
        re.search(r"\.bert\.(embeddings|pooler)\.|\.graph_conv\.skip_conv\.", name)
    )


def _classifier(family: str) -> str:
    return "fc" if family == "resnet-imagenet" else "classifier"


def _our_module(name: str) -> str:
    """A ResNet's counted module with torchvision's name."""
    top, _, rest = name.partition(".")
    number, _, tail = rest.partition(".")
    if top == "backbone" and number in _RESNET:
        return f"backbone.{_RESNET[number]}.{tail}"
    return name


def _official_names(state: Iterable[str]) -> Callable[[str], str]:
    """Inverse of `_our_module` for our names, which tell whether there is a ResNet."""
    has_resnet = any(name.startswith("backbone.layer2.") for name in state)
    numbers = {module: number for number, module in _RESNET.items()} if has_resnet else {}

    def official(name: str) -> str:
        top, _, rest = name.partition(".")
        module, _, tail = rest.partition(".")
        is_counted = top == "backbone" and module in numbers
        return f"backbone.{numbers[module]}.{tail}" if is_counted else name

    return official


def _fuse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put query, key and value into one tensor, where the query stood."""
    fused: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _ATTENTION.fullmatch(name)
        if match is None:
            fused[name] = tensor
        elif match[2] == "query":
            parts = [state[f"{match[1]}{part}.{match[3]}"] for part in _PARTS]
            fused[f"{match[1]}qkv.{match[3]}"] = torch.cat(parts)
    return fused


def _split(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `_fuse`; the three parts do not share memory."""
    split: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            split[name] = tensor
            continue
        for part, rows in zip(_PARTS, tensor.chunk(3), strict=True):
            split[f"{match[1]}{part}.{match[2]}"] = rows.clone()
    return split


# Dead tensors --------------------------------------------------------------------------------


def _dead_classifier(state: Mapping[str, Tensor], prefix: str, layer: str) -> dict[str, Tensor]:
    """The 1000 classes of ImageNet behind the last map."""
    last = "final_layer.0" if layer == "classifier" else "layer4.0.conv3"
    like = state[f"{prefix}{last}.weight"]
    return {
        f"{prefix}{layer}.weight": like.new_zeros(_CLASSES, len(like)),
        f"{prefix}{layer}.bias": like.new_zeros(_CLASSES),
    }


def _dead_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's text embeddings and pooler in each block, the unused skip in each graph block."""
    dead: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(".bert.position_embeddings.weight"):
            bert, (positions, width) = name.removesuffix("position_embeddings.weight"), tensor.shape
            dead |= {
                f"{bert}embeddings.word_embeddings.weight": tensor.new_zeros(_WORDS, width),
                f"{bert}embeddings.position_embeddings.weight": tensor.new_zeros(positions, width),
                f"{bert}embeddings.token_type_embeddings.weight": tensor.new_zeros(
                    _SEGMENTS, width
                ),
                f"{bert}embeddings.LayerNorm.weight": tensor.new_ones(width),
                f"{bert}embeddings.LayerNorm.bias": tensor.new_zeros(width),
                f"{bert}pooler.dense.weight": tensor.new_zeros(width, width),
                f"{bert}pooler.dense.bias": tensor.new_zeros(width),
            }
        elif name.endswith(".graph_conv.pre_norm.weight"):
            block, width = name.removesuffix("pre_norm.weight"), len(tensor)
            dead[f"{block}skip_conv.W"] = tensor.new_zeros(width, width)
            dead[f"{block}skip_conv.b"] = tensor.new_zeros(width)
    return dead


_OFFICIAL_ORDER = (
    *("backbone", "trans_encoder", "upsampling", "upsampling2", "conv_learn_tokens"),
    *("cam_param_fc", "cam_param_fc2", "cam_param_fc3", "grid_feat_dim"),
    *("bert", "cls_head", "residual"),
    *("embeddings", "encoder", "pooler", "word_embeddings", "position_embeddings"),
    *("img_embedding", "token_type_embeddings"),
    *("self", "attention", "graph_conv", "intermediate", "output"),
    *("query", "key", "value", "dense", "LayerNorm"),
    *("lin1", "conv", "lin2", "skip_conv", "pre_norm", "norm1", "norm2"),
    *("W", "weight", "b", "bias"),
)
"""Parts of names, so that those that meet below one parent stand as the official code has them."""


def _official_rank(name: str) -> list[int]:
    """Sort key of an official name; a backbone stays in the order of its own modules."""
    parts = name.split(".")
    if parts[0] == "backbone":
        return [0]
    order = {part: rank for rank, part in enumerate(_OFFICIAL_ORDER)}
    return [int(part) if part.isdigit() else order.get(part, len(order)) for part in parts]
