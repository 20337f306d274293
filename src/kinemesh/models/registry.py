"""Names of models, their cards, and the weight files behind them.

A weight file is one safetensors file with everything that prediction needs: the network's tensors
(``model.*``), the mesh it speaks about (``topology.*``), and a JSON record in the header that says
how to build the network. A card (JSON, same name) stands beside it.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kinemesh.bodies.assets import load_topology
from kinemesh.bodies.official_assets import mano_topology, smpl_topology
from kinemesh.bodies.topology import Topology, strip_prefix
from kinemesh.errors import InputError
from kinemesh.files import atomic_path, sha256, write_json
from kinemesh.models.guided_graphormer import GuidedGraphormer, GuidedGraphormerConfig
from kinemesh.models.hand_pose_networks import (
    HAND_POSE_CONFIGS,
    HandPoseNetwork,
    build_hand_pose_network,
)
from kinemesh.models.joint_statistics import JointStatistics
from kinemesh.models.potter_body import ARCHITECTURE as POTTER_MESH
from kinemesh.models.potter_body_files import build_potter_body
from kinemesh.models.prtr_variants import KEYPOINT_CONFIGS, POSE2D, build_keypoint_network
from kinemesh.models.variants import CONFIGS, build_network

FORMAT = 1
WEIGHTS_DIR = Path(__file__).resolve().parents[1] / "weights"
SHIPPED = {"body": "guided-graphormer-body", "hand": "guided-graphormer-hand"}
"""Short names of the default model of each task."""

Builder = Callable[[Mapping[str, Any], Topology], nn.Module]


def _build_guided_graphormer(record: Mapping[str, Any], topology: Topology) -> nn.Module:
    config = record["config"]
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    return GuidedGraphormer(GuidedGraphormerConfig(**values), topology)


ARCHITECTURES: dict[str, Builder] = {
    "guided-graphormer": _build_guided_graphormer,
    **dict.fromkeys(CONFIGS, functools.partial(build_network, blank=True)),
}
"""What builds a network from the record of a weight file and a mesh."""


def save_model(
    path: str | Path,
    network: nn.Module,
    topology: Topology | None,
    metadata: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
    *,
    half: bool = True,
) -> None:
    """Write a weight file, and its card with the file's SHA-256 if one is given.

    The metadata are plain JSON values. Every file has

    - ``architecture``: a key of `ARCHITECTURES`;
    - ``config``: the fields of its configuration dataclass (``dataclasses.asdict``);
    - ``task``: "body" or "hand";
    - ``resolution``: side of the square input crop in pixels.

    The files of METRO and Mesh Graphormer ("metro", "graphormer", "graphormer-pose") also have
    the following; `variants.describe_variant` returns all of it:

    - ``backbone``: ``{"name": "hrnet" | "resnet", ...}``, see `variants.BackboneSpec`;
    - ``normalisation``: "imagenet": the network wants what `imagenet.normalise_imagenet` makes of
      sRGB in 0..1; where the key is missing the network takes sRGB in 0..1 itself;
    - ``joints``: names of the joint tokens, in their order;
    - ``family``: the official checkpoint family that fits, see `checkpoints.FAMILIES`, or None;
    - ``variant``: the registered variant it came from, or None.

    The networks of PRTR find 2D keypoints ("task": "pose2d"), have no mesh, and a ``resolution`` of
    two numbers; `prtr_variants.keypoint_record` lists their keys, and `load_keypoint_model` reads
    them.

    Training adds ``training`` and a conversion ``source`` and ``license``.

    Args:
        path: Where to write, ``.safetensors``.
        network: Module whose state dict is stored.
        topology: Mesh that the network predicts; None leaves it out, and `load_model` then asks
            for the user's own body model files.
        metadata: See above.
        card: What a user should know: licence, origin, data, scores with their protocol.
        half: Store matrices in float16 and vectors (biases, norms, their statistics) in float32;
            False keeps everything in float32.
    """
    write_weights(path, network.state_dict(), topology, metadata, half=half)
    if card is not None:
        path = Path(path)
        write_json(path.with_suffix(".json"), {**card, "sha256": sha256(path)})


def write_weights(
    path: str | Path,
    state: Mapping[str, Tensor],
    topology: Topology | None,
    metadata: Mapping[str, Any],
    *,
    half: bool,
) -> None:
    """As `save_model`, for a state dict in place of a network."""
    pack = _compact if half else _contiguous
    tensors = {f"model.{name}": pack(value) for name, value in _unshared(state).items()}
    record = {"format": FORMAT, **metadata, "topology": None}
    if topology is not None:
        tensors |= {f"topology.{name}": value for name, value in topology.to_tensors().items()}
        record["topology"] = topology.metadata()
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, {"kinemesh": json.dumps(record)})


def _unshared(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies where several names are one tensor, which a safetensors file cannot say."""
    seen: set[int] = set()
    alone = {}
    for name, value in state.items():
        alone[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return alone


def load_keypoint_model(name: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Build a network of 2D keypoints with its trained weights, in eval mode, on the CPU.

    Args:
        name: Path of a weight file.

    Returns:
        The network, and the metadata that `save_model` was given.

    Raises:
        InputError: There is no such file, or it holds another kind of network.
    """
    path = weight_path(name)
    tensors, record = read_weights(path)
    if record.get("architecture") not in KEYPOINT_CONFIGS:
        raise InputError(
            f"{path}: expected a network of 2D keypoints ({', '.join(KEYPOINT_CONFIGS)}), found "
            f"{record.get('architecture')!r}, which recovers a {record.get('task')}."
        )
    state = {key: _single(value) for key, value in strip_prefix(tensors, "model.").items()}
    try:
        network = build_keypoint_network(record, blank=True)
        network.load_state_dict(state, assign=True)
    except (TypeError, KeyError, RuntimeError) as error:
        raise _other_version(path, error) from error
    return network.eval(), record


def load_hand_pose_model(name: str | Path) -> tuple[HandPoseNetwork, dict[str, Any]]:
    """Build a network of a hand's joints with its trained weights, in eval mode, on the CPU.

    Args:
        name: Path of a weight file.

    Returns:
        The network with its statistics, and the metadata that `save_model` was given.

    Raises:
        InputError: There is no such file, or it holds another kind of network.
    """
    path = weight_path(name)
    tensors, record = read_weights(path)
    if record.get("architecture") not in HAND_POSE_CONFIGS:
        raise InputError(
            f"{path}: expected a network of a hand's joints ({', '.join(HAND_POSE_CONFIGS)}), "
            f"found {record.get('architecture')!r}."
        )
    state = {key: _single(value) for key, value in strip_prefix(tensors, "model.").items()}
    try:
        network = build_hand_pose_network(record, blank=True)
        network.load_state_dict(state, assign=True)
        statistics = JointStatistics.from_record(record["statistics"])
    except (TypeError, KeyError, RuntimeError) as error:
        raise _other_version(path, error) from error
    return HandPoseNetwork(network, statistics).eval(), record


def is_hand_pose_model(name: str | Path) -> bool:
    """Whether a model is one for `load_hand_pose_model`.

    Raises:
        InputError: Nothing has this name, or the file is not a weight file of this library.
    """
    return read_record(weight_path(name)).get("architecture") in HAND_POSE_CONFIGS


def task_of(name: str | Path) -> str | None:
    """What the model of a name recovers: "body", "hand", "pose2d", or None for a backbone.

    Raises:
        InputError: Nothing has this name, or the file is not a weight file of this library.
    """
    task: str | None = read_record(weight_path(name)).get("task")
    return task


def load_model(
    name: str | Path, assets: Path | None = None
) -> tuple[nn.Module, Topology, dict[str, Any]]:
    """Build a network with its trained weights, in eval mode, on the CPU.

    Args:
        name: A shipped model ("body", "hand", or a name that `cards` lists) or the path of a
            weight file.
        assets: Folder with the user's SMPL or MANO files and the official sampling files. It is
            needed for a converted checkpoint that was stored without its mesh and for a network
            of POTTER that poses SMPL, and else not read.

    Returns:
        The network, its topology, and the metadata that `save_model` was given.

    Raises:
        InputError: Nothing has this name, the file is not a weight file of this library, or it
            has no mesh and ``assets`` is None or has another one.
    """
    path = weight_path(name)
    check_shipped(path)
    tensors, record = read_weights(path)
    build = ARCHITECTURES.get(record.get("architecture", ""))
    if record.get("task") == POSE2D:
        raise InputError(
            f"{path}: a network of 2D keypoints ({record.get('architecture')}), which has no mesh. "
            "Use it with kinemesh predict, with kinemesh eval on coco:FOLDER or mpii:FOLDER, or "
            "read it with load_keypoint_model."
        )
    if record.get("architecture") in HAND_POSE_CONFIGS:
        raise InputError(
            f"{path}: a network of a hand's joints ({record.get('architecture')}), which has no "
            "mesh. Use it with kinemesh predict, with kinemesh eval on synthetic-hand or "
            "ego-exo4d:FOLDER, or read it with load_hand_pose_model."
        )
    if record.get("architecture") == POTTER_MESH:
        state = {key: _single(value) for key, value in strip_prefix(tensors, "model.").items()}
        try:
            body, mesh = build_potter_body(path, record, state, assets)
        except (TypeError, KeyError, RuntimeError) as error:
            raise _other_version(path, error) from error
        return body, mesh, record
    if record.get("task") == "detection":
        raise InputError(
            f"{path}: a detector of people and hands, which has no mesh. Score it with kinemesh "
            "eval on coco:FOLDER or synthetic-detection, or find boxes with OwnDetector.load."
        )
    if build is None and record.get("task") is None:
        raise InputError(
            f"{path}: a backbone alone ({record.get('architecture')}), which predicts no mesh. "
            "Give it to training as the weights to begin with."
        )
    if build is None:
        raise InputError(
            f"{path}: architecture {record.get('architecture')!r} is unknown here; this version "
            f"knows {', '.join(ARCHITECTURES)}. Update kinemesh."
        )
    topology = _stored_topology(path, tensors, record) or _topology_of_user(path, record, assets)
    state = {key: _single(value) for key, value in strip_prefix(tensors, "model.").items()}
    try:
        network = build(record, topology)
        network.load_state_dict(state, assign=True)
    except (TypeError, KeyError, RuntimeError) as error:
        raise _other_version(path, error) from error
    return network.eval(), topology, record


def _stored_topology(
    path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> Topology | None:
    stored = record.get("topology")
    if stored is None:
        return None
    try:
        return Topology.from_tensors(strip_prefix(tensors, "topology."), stored)
    except (TypeError, KeyError, RuntimeError) as error:
        raise _other_version(path, error) from error


def _topology_of_user(path: Path, record: Mapping[str, Any], assets: Path | None) -> Topology:
    """The mesh of a checkpoint that was stored without one."""
    task = record.get("task")
    if record.get("architecture") == "graphormer-pose":  # of the mesh it uses the joints alone
        return load_topology("anny-hand")
    if assets is None:
        body_model = "SMPL" if task == "body" else "MANO"
        raise InputError(
            f"{path}: these weights speak about the mesh of {body_model}, which is not stored in "
            f"the file. Name the folder with your {body_model} files (--assets FOLDER), or convert "
            "the checkpoint again with it; what must be in there is listed by: kinemesh doctor "
            "--assets FOLDER"
        )
    return smpl_topology(assets) if task == "body" else mano_topology(assets)


def _other_version(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: the file does not fit the architecture of this version ({error}). It was "
        "written by another version of kinemesh; use that one, or train the model again."
    )


def weight_path(name: str | Path) -> Path:
    """Path of a shipped model by name, or of a file that the user names."""
    text = str(name)
    shipped = WEIGHTS_DIR / f"{SHIPPED.get(text, text)}.safetensors"
    if shipped.is_file():
        return shipped
    if text in SHIPPED or shipped.with_suffix(".json").is_file():
        raise InputError(
            f"{shipped}: the weight file of the shipped model {text!r} is missing. "
            "See what else is, and how to mend it, with: kinemesh doctor"
        )
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix == ".safetensors":
        raise InputError(f"{path}: there is no such file. Check the path of the weight file.")
    known = ", ".join([*SHIPPED, *SHIPPED.values()])
    raise InputError(
        f"No model named {text!r}: expected one of {known}, or the path of a .safetensors file. "
        "List them with: kinemesh models"
    )


def check_shipped(path: Path) -> None:
    """Compare a shipped weight file with its card: a flipped bit would silently mislead.

    Raises:
        InputError: A file of this installation is damaged; those of the user have no card to fit.
    """
    if path.parent != WEIGHTS_DIR:
        return
    card = path.with_suffix(".json")
    if not card.is_file():
        problem = f"its card {card.name} is missing"
    elif _read_card(card).get("sha256") != sha256(path):
        problem = f"its SHA-256 differs from that in {card.name}, so the file is damaged"
    else:
        return
    raise InputError(f"{path}: {problem}. See how to mend it with: kinemesh doctor")


def cards() -> list[dict[str, Any]]:
    """Cards of all shipped models, by name."""
    return [_read_card(path) for path in sorted(WEIGHTS_DIR.glob("*.json"))]


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text("utf-8"))
        return {"name": path.stem, **card}
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{path}: expected a JSON card, but it cannot be read ({error}). "
            "Install kinemesh again."
        ) from error


def _contiguous(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _compact(value: Tensor) -> Tensor:
    value = _contiguous(value)
    return value.half() if value.is_floating_point() and value.ndim > 1 else value


def _single(value: Tensor) -> Tensor:
    """A float32 or integer copy in memory of its own.

    What safetensors returns lies in the file's pages at any address, where some products take
    another path of the processor and round differently.
    """
    return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


def is_weight_file(path: str | Path) -> bool:
    """Whether a file is one of this library's, of any version."""
    try:
        with safe_open(path, framework="pt") as file:
            return "kinemesh" in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a weight file.

    Raises:
        InputError: The file is not one of this library's.
    """
    record = read_record(path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors, record


def read_record(path: Path) -> dict[str, Any]:
    """Record of a weight file, without its tensors.

    Raises:
        InputError: The file is not one of this library's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("kinemesh", "null"))
    except (SafetensorError, OSError, ValueError) as error:
        if _is_of_torch_save(path):
            raise InputError(
                f"{path}: not a readable safetensors file but one of torch.save. Expected a weight "
                "file of kinemesh; make one of an official checkpoint with: kinemesh convert "
                f"{path}"
            ) from error
        raise InputError(
            f"{path}: not a readable safetensors file ({error}). Expected a weight file written "
            "by kinemesh; train one with: kinemesh train"
        ) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise InputError(
            f"{path}: a safetensors file without the kinemesh record of format {FORMAT} in its "
            "header. Expected a weight file written by kinemesh; if it is an official checkpoint, "
            f"make one of it with: kinemesh convert {path}"
        )
    return record


def _is_of_torch_save(path: Path) -> bool:
    """Whether a file begins as those of PyTorch do: a zip archive, or before 1.6 a pickle."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))
    except OSError:
        return False


def parameter_count(network: nn.Module) -> int:
    """Number of values in the parameters, frozen ones included."""
    return sum(p.numel() for p in network.parameters())
