"""POTTER's checkpoints as ours, and weights to begin a training with.

Our networks have the official tensor names. A checkpoint of the mesh network also holds a body
model, ``smpl.*``: it is licensed, it is no weight, and it is left out. Sizes are read from the
shapes. No shape tells dropout, and none tells the crop of a mesh network whose volume is not as
deep as wide; both have the published values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from torch import Tensor, nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.models.checkpoint_check import check_tensors, some
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoint_shapes import Shapes, agreed, count_modules, size_of
from kinemesh.models.potter_classifier import PotterClassifierConfig
from kinemesh.models.potter_hand import PotterHandConfig
from kinemesh.models.potter_mesh import PotterMeshConfig
from kinemesh.models.potter_trunk import TrunkConfig
from kinemesh.models.potter_variants import (
    PotterArchitecture,
    PotterConfig,
    build_potter_network,
    potter_record,
)

TRUNK: Final = "potter-trunk"
"""What `potter_family_of` calls a trunk alone, such as one trained on COCO's 2D poses."""
_BODY_MODEL = "smpl."
_POSE, _BACKBONE = "poolattnformer_pose", "poolattnformer_pose.poolattn_cls"
_PREFIXES = ("module.", "backbone.")


@dataclass(frozen=True, eq=False)
class PotterTensors:
    """A checkpoint of POTTER in our terms.

    Attributes:
        state: Our names and tensors, all that the network has.
        config: Sizes.
        dropped: Official names of tensors that were left out: the body model's.
    """

    state: dict[str, Tensor]
    config: PotterConfig
    dropped: tuple[str, ...]


def potter_family_of(
    state: Mapping[str, Tensor],
) -> PotterArchitecture | Literal["potter-trunk"] | None:
    """Which network tensors belong to: one of POTTER's, its trunk alone, or None."""
    if "pose_3d_head.0.weight" in state and f"{_POSE}.norm0.weight" in state:
        return "potter-hand"
    if "decphi.weight" in state and f"{_POSE}.norm0.weight" in state:
        return "potter-mesh"
    plain = {_without_prefixes(name) for name in state}
    if "poolattn_cls.patch_embed.proj.weight" in plain:
        return TRUNK
    if {"patch_embed.proj.weight", "network.0.0.token_mixer.proj0.weight"} <= plain:
        return "potter-classifier"
    return None


# From official tensors -------------------------------------------------------------------------


def potter_from_official(state: Mapping[str, Tensor], family: PotterArchitecture) -> PotterTensors:
    """Turn a state dict with official names into ours.

    Args:
        state: Tensors by official name, as `read_tensors` returns them.
        family: What they are.

    Raises:
        InputError: Some tensors are missing, unknown or of another shape than the rest implies.
    """
    dropped = tuple(name for name in state if name.startswith(_BODY_MODEL))
    live = {name: tensor for name, tensor in state.items() if name not in dropped}
    shapes = {name: tuple(tensor.shape) for name, tensor in live.items()}
    config = _CONFIGS[family](shapes)
    network = build_potter_network({"architecture": family, "config": vars(config)}, blank=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    check_tensors(live, wanted, family)
    return PotterTensors({name: live[name] for name in wanted}, config, dropped)


def record_of_potter(found: PotterTensors) -> dict[str, Any]:
    """Metadata of a weight file for converted tensors, see `potter_variants.potter_record`.

    Raises:
        InputError: A hand network has other joints than a hand's 21.
    """
    return potter_record(found.config)


def _pyramid_sizes(shapes: Shapes, prefix: str) -> dict[str, Any]:
    """Sizes of the four stages."""
    published = TrunkConfig()
    widths = tuple(
        agreed(
            shapes,
            (
                (f"{prefix}network.{2 * stage}.0.layer_scale_1", 0),
                (f"{prefix}network.{2 * stage}.0.norm1.weight", 0),
                (f"{prefix}network.{2 * stage}.0.mlp.fc2.bias", 0),
            ),
            default,
        )
        for stage, default in enumerate(published.widths)
    )
    layers = tuple(
        count_modules(shapes, f"{prefix}network.{2 * stage}", default)
        for stage, default in enumerate(published.layers)
    )
    ratios = tuple(
        _ratio(shapes, f"{prefix}network.{2 * stage}.0", width, published.mlp_ratios[stage])
        for stage, width in enumerate(widths)
    )
    return {"widths": widths, "layers": layers, "mlp_ratios": ratios}


def _ratio(shapes: Shapes, block: str, width: int, default: float) -> float:
    told = ((f"{block}.mlp.fc1.weight", 0), (f"{block}.mlp.fc1.bias", 0))
    ratio = agreed(shapes, told, int(default * width)) / width
    return int(ratio) if ratio.is_integer() else ratio


def _trunk_sizes(shapes: Shapes) -> dict[str, Any]:
    sizes, published = _pyramid_sizes(shapes, f"{_BACKBONE}."), TrunkConfig()
    blocks = [f"{_POSE}.stage1.Block{number}" for number in (1, 2, 3)]
    fine = sizes["widths"][0]
    pairs = list(zip(blocks, published.stream_layers, published.stream_mlp_ratios, strict=True))
    return sizes | {
        "stream_layers": tuple(count_modules(shapes, block, depth) for block, depth, _ in pairs),
        "stream_mlp_ratios": tuple(
            _ratio(shapes, f"{block}.0", fine, ratio) for block, _, ratio in pairs
        ),
        "head_width": size_of(shapes, "up_sample.0.weight", 0, 256),
    }


def _joints_and_depth(shapes: Shapes, joints: int, depth: int) -> tuple[int, int]:
    told = (("pose_layer.0.weight", 0), ("pose_layer.0.bias", 0), ("pose_layer.2.weight", 0))
    found = agreed(shapes, told, joints)
    return found, size_of(shapes, "final_layer.weight", 0, found * depth) // found


def _classifier_config(shapes: Shapes) -> PotterClassifierConfig:
    classes = agreed(shapes, (("head.weight", 0), ("head.bias", 0)), 1000)
    return PotterClassifierConfig(**_pyramid_sizes(shapes, ""), classes=classes)


def _hand_config(shapes: Shapes) -> PotterHandConfig:
    published = PotterHandConfig()
    joints, depth = _joints_and_depth(shapes, published.joints, published.depth_cells)
    sums = size_of(shapes, "pose_3d_head.0.weight", 1, 2 * published.cells + depth)
    cells = max((sums - depth) // 2 // 8, 1) * 8  # a damaged head must not break the rest
    lifting = agreed(shapes, (("pose_3d_head.0.weight", 0), ("pose_3d_head.3.weight", 1)), 512)
    return PotterHandConfig(
        **_trunk_sizes(shapes),
        joints=joints,
        side=4 * cells,
        depth=None if depth == cells else depth,
        lifting_width=lifting,
    )


def _mesh_config(shapes: Shapes) -> PotterMeshConfig:
    published = PotterMeshConfig()
    joints, depth = _joints_and_depth(shapes, published.joints, published.depth_cells)
    cells = depth if depth % 8 == 0 else published.cells
    return PotterMeshConfig(
        **_trunk_sizes(shapes),
        joints=joints,
        side=4 * cells,
        depth=None if depth == cells else depth,
        hidden=agreed(shapes, (("fc1.bias", 0), ("fc1.weight", 0), ("fc2.bias", 0)), 1024),
        twists=size_of(shapes, "decphi.weight", 0, 2 * published.twists) // 2,
        shapes=agreed(shapes, (("decshape.weight", 0), ("init_shape", 0)), published.shapes),
    )


_CONFIGS: dict[str, Any] = {
    "potter-hand": _hand_config,
    "potter-mesh": _mesh_config,
    "potter-classifier": _classifier_config,
}


# Weights to begin with -------------------------------------------------------------------------


@dataclass(frozen=True)
class TakenWeights:
    """What a network was given to begin with.

    Attributes:
        matched: Names in the network that were filled.
        discarded: Names in the file that were not used.
        fresh: Names in the network that keep what they had.
    """

    matched: tuple[str, ...]
    discarded: tuple[str, ...]
    fresh: tuple[str, ...]

    def __str__(self) -> str:
        total = len(self.matched) + len(self.fresh)
        left = f"; new: {some(self.fresh)}" if self.fresh else ""
        unused = f"; unused: {some(self.discarded)}" if self.discarded else ""
        return f"{len(self.matched)} of {total} tensors{left}{unused}"


def take_weights(target: nn.Module, state: Mapping[str, Tensor]) -> TakenWeights:
    """Fill the tensors of a network that a state dict has with the same name and shape.

    One leading ``module.`` and then one leading ``backbone.`` are taken off the names of the file,
    as the official code does. What does not fit is left out without an error.

    Args:
        target: A network or a part of one.
        state: Tensors by name.

    Returns:
        What was filled, unused and left as it was.
    """
    own = target.state_dict()
    given, discarded = {}, []
    for name, tensor in state.items():
        plain = _without_prefixes(name)
        if plain in own and own[plain].shape == tensor.shape:
            given[plain] = tensor
        else:
            discarded.append(name)
    target.load_state_dict({**own, **given})
    fresh = tuple(name for name in own if name not in given)
    return TakenWeights(tuple(name for name in own if name in given), tuple(discarded), fresh)


def _without_prefixes(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def load_initial_potter(network: nn.Module, path: str | Path) -> TakenWeights:
    """Fill what a file has of a `PotterHand`, `PotterMesh` or `PotterClassifier`.

    The file is one of

    - a classifier, ``poolattnformer_s12.pth``: it fills the backbone;
    - a trunk that was trained on another task, such as 2D poses of COCO;
    - a whole network of POTTER; where the sizes of a layer differ, that layer stays new;
    - a weight file of this library with any of these. No code of the file is run.

    Raises:
        InputError: The file is none of these, or no tensor fits; the message says what was found.
    """
    path = Path(path)
    state = read_tensors(path)
    if any(name.startswith("model.") for name in state):  # a weight file of this library
        state = strip_prefix(state, "model.")
    family = potter_family_of(state)
    target = _target(network, family)
    if target is None:
        found = f"{len(state)} tensors: {some(state)}" if family is None else f"those of {family!r}"
        raise InputError(
            f"{path}: expected weights of POTTER that a {type(network).__name__} can begin with, "
            f"found {found}. Take a classifier such as poolattnformer_s12, or a pose network."
        )
    taken = take_weights(network.get_submodule(target), state)
    if not taken.matched:
        raise InputError(
            f"{path}: no tensor of this {family!r} has the shape that the network wants; the "
            f"network has other sizes: {taken}. Take a file of the same sizes."
        )
    prefix = f"{target}." if target else ""
    filled = {prefix + name for name in taken.matched}
    fresh = tuple(name for name in network.state_dict() if name not in filled)
    matched = tuple(name for name in network.state_dict() if name in filled)
    return TakenWeights(matched, taken.discarded, fresh)


def _target(network: nn.Module, family: str | None) -> str | None:
    """Name of the part of a network that a file fills; "" for all of it, None if nothing."""
    is_classifier = not hasattr(network, _POSE)
    if family in {None, "potter-classifier"}:
        return None if family is None else "" if is_classifier else _BACKBONE
    if is_classifier:
        return None
    return _POSE if family == TRUNK else ""
