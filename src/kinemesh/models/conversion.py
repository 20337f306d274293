"""Checkpoint files in the official form to weight files of this library, and back."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinemesh.bodies.official_assets import mano_topology, smpl_topology
from kinemesh.bodies.topology import Topology, strip_prefix
from kinemesh.errors import InputError
from kinemesh.files import atomic_path, sha256
from kinemesh.models.checkpoint_check import differences
from kinemesh.models.checkpoint_files import check_is_file, read_tensors
from kinemesh.models.checkpoints import FAMILIES, Converted, from_official, to_official
from kinemesh.models.graphormer import GraphormerConfig
from kinemesh.models.graphormer_pose import PoseGraphormerConfig
from kinemesh.models.metro import MetroConfig
from kinemesh.models.point_hmr import PointHmrConfig
from kinemesh.models.potter_checkpoints import PotterTensors, record_of_potter
from kinemesh.models.potter_variants import (
    POTTER_CONFIGS,
    PotterConfig,
    build_potter_network,
    potter_config_from,
    potter_variant_of,
)
from kinemesh.models.prtr_checkpoints import KeypointTensors, record_of_tensors
from kinemesh.models.prtr_variants import POSE2D, KeypointConfig, build_keypoint_network
from kinemesh.models.registry import is_weight_file, read_record, read_weights, write_weights
from kinemesh.models.variants import (
    VARIANTS,
    Config,
    Task,
    blank_backbone,
    blank_network,
    build_network,
    config_from,
    network_metadata,
)

LICENSE = (
    "The weights stay under the licence that they came with; the licence of kinemesh covers its "
    "code alone."
)


@dataclass(frozen=True, eq=False)
class Conversion:
    """What was written.

    Attributes:
        path: The new file.
        converted: Tensors, sizes, and what was left out.
        variant: Name of the registered variant with these sizes, None if there is none.
        topology: Mesh that was stored with the weights.
    """

    path: Path
    converted: Converted
    variant: str | None
    topology: Topology | None


def convert_checkpoint(
    source: str | Path,
    family: str | None = None,
    *,
    out: Path | None = None,
    assets: Path | None = None,
    heads: int | None = None,
    size: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write an official checkpoint as a weight file of this library, in float32.

    Args:
        source: State dict with official names, see `checkpoint_files.read_tensors`.
        family: Key of `checkpoints.FAMILIES`; None takes the one that the names show.
        out: Where to write; None: beside ``source`` with the suffix .safetensors.
        assets: Folder with the user's SMPL or MANO files. The mesh that the network was trained
            on is then stored with the weights, so that they can be used without the folder.
        heads: Attention heads, which no shape tells; None: as published.
        size: Width and height of the crop of a network of PRTR, which no shape tells; None: the
            smallest published one.
        overwrite: Replace a file that is there already.

    Raises:
        InputError: The file is not what ``family`` says, the assets do not fit, or the target is
            there already.
    """
    source = Path(source)
    check_is_file(source)
    if is_weight_file(source):
        raise InputError(
            f"{source}: this is a weight file of kinemesh already. Turn it into an official "
            "state dict with --official, or use it as it is."
        )
    out = _target(source, out, f"{source.stem}.safetensors", overwrite)
    _check_suffix(out, (".safetensors",))
    converted = from_official(read_tensors(source), family, heads=heads)
    task = FAMILIES[converted.family].task
    if assets is not None and converted.family in POTTER_CONFIGS:
        raise InputError("assets: the networks of POTTER store no mesh; leave --assets out.")
    topology = None if assets is None else _topology(assets, task)
    if size is not None and task != POSE2D:
        raise InputError("size: only the networks of PRTR take crops of several sizes.")
    described = _record(converted, task, topology, size)
    variant = described.get("variant")
    record = {
        **described,
        "source": {"file": source.name, "sha256": sha256(source)},
        "license": LICENSE,
    }
    if topology is not None:
        build_network(record, topology, blank=True)  # refuses a mesh of other sizes
    write_weights(out, converted.state, topology, record, half=False)
    return Conversion(out, converted, variant, topology)


def _topology(assets: Path, task: str | None) -> Topology:
    if task not in ("body", "hand"):
        what = "a backbone" if task is None else "a network of 2D keypoints"
        raise InputError(f"assets: {what} has no mesh; leave --assets out.")
    return smpl_topology(assets) if task == "body" else mano_topology(assets)


def _record(
    converted: Converted,
    task: str | None,
    topology: Topology | None,
    size: tuple[int, int] | None,
) -> dict[str, Any]:
    family = converted.family
    if isinstance(converted.config, KeypointConfig):
        sizes = converted.backbone, converted.config
        found = KeypointTensors(converted.state, *sizes, converted.dropped, converted.added)
        return record_of_tensors(found, size)
    if isinstance(converted.config, PotterConfig):
        return record_of_potter(PotterTensors(converted.state, converted.config, converted.dropped))
    if converted.config is None:
        backbone = {"backbone": converted.backbone, "task": None}
        return {"architecture": FAMILIES[family].architecture, "family": family, **backbone}
    mesh_task: Task = "body" if task == "body" else "hand"
    return network_metadata(
        converted.config,
        converted.backbone,
        mesh_task,
        topology,
        family=family,
        variant=_variant_of(converted.config, converted.backbone),
    )


def _variant_of(config: Config, backbone: Mapping[str, Any]) -> str | None:
    """The registered variant with these sizes."""
    sizes = config, backbone
    return next((v.name for v in VARIANTS.values() if (v.config, v.backbone) == sizes), None)


def _target(source: Path, out: Path | None, name: str, overwrite: bool) -> Path:
    """Where to write: never over the source, and over another file only if asked to."""
    out = source.with_name(name) if out is None else out
    if not out.exists():
        if not out.parent.is_dir():
            raise InputError(f"--out {out}: there is no folder '{out.parent}'. Make it first.")
        return out
    if source.exists() and out.samefile(source):
        raise InputError(f"{out}: this is the file to convert. Choose another with --out.")
    if not overwrite or out.is_dir():
        raise InputError(
            f"{out}: there is such a {'folder' if out.is_dir() else 'file'} already. Choose "
            "another name with --out, or replace the file with --overwrite."
        )
    return out


def _check_suffix(out: Path, wanted: tuple[str, ...]) -> None:
    """Refuse a name that says something else than what is written."""
    if out.suffix not in wanted:
        raise InputError(
            f"--out {out}: expected a name that ends in {' or '.join(wanted)}, which is what is "
            f"written, found {out.name!r}. Write --out {out.with_suffix(wanted[0])}"
        )


def export_official(
    source: str | Path,
    family: str | None = None,
    *,
    out: Path | None = None,
    overwrite: bool = False,
) -> tuple[Path, str, int]:
    """Write a weight file of this library as an official state dict.

    The file is a plain ordered dict of tensors in the format that PyTorch wrote before 1.6, since
    that is what the official code runs on. Tensors without influence are there, see `to_official`.

    Args:
        source: Weight file of METRO, Mesh Graphormer, PRTR or a backbone.
        family: Checked against what the file holds; None takes that.
        out: Where to write; None: beside ``source``, ``<stem>_state_dict.bin``.
        overwrite: Replace a file that is there already.

    Returns:
        The new file, its family and its number of tensors.

    Raises:
        InputError: The file is not one of ours, no official code has such a network, or the
            target is there already.
    """
    source = Path(source)
    check_is_file(source)
    # The official loader takes a file for a state dict if its path says so.
    stem = source.stem.removesuffix("_state_dict") + "_state_dict"
    out = _target(source, out, f"{stem}.bin", overwrite)
    _check_suffix(out, (".bin", ".pth", ".pt"))
    tensors, record = read_weights(source)
    found = record.get("family", record.get("architecture"))
    if not isinstance(found, str) or found not in FAMILIES:
        raise InputError(
            f"{source}: a network of the architecture {record.get('architecture')!r}; no official "
            "code reads its weights, so there is nothing to convert to."
        )
    ordered = _ordered(strip_prefix(tensors, "model."), record, source)
    official = to_official(ordered, family or found)
    with atomic_path(out) as temporary:
        torch.save(OrderedDict(official), temporary, _use_new_zipfile_serialization=False)
    return out, found, len(official)


def note_on_sizes(source: str | Path) -> str:
    """What to know before official code is given a weight file of this library.

    Returns:
        That its sizes are those of no published network, and what they are; empty if they are.
    """
    record = read_record(Path(source))
    if record["architecture"] in POTTER_CONFIGS:
        return _note_on_potter(record)
    if record["task"] not in ("body", "hand"):
        return ""
    config, backbone = config_from(record), record["backbone"]
    if isinstance(config, PoseGraphormerConfig) or _variant_of(config, backbone) is not None:
        return ""
    return (
        f"These are not the sizes of a published network: {sizes_of(config, backbone)}. Official "
        "code loads the file only if it is changed to build a network of these sizes and, where "
        "the mesh is another than SMPL or MANO, of that mesh."
    )


def _note_on_potter(record: Mapping[str, Any]) -> str:
    if record["architecture"] == "potter-mesh":
        return (
            "The body model is not among the tensors; official code takes it from your SMPL file "
            "and loads the rest with strict=False."
        )
    if potter_variant_of(potter_config_from(record)) is not None:
        return ""
    return (
        "These are not the sizes of a published network. Official code loads the file only if it "
        "is changed to build a network of these sizes."
    )


def sizes_of(
    config: MetroConfig | GraphormerConfig | PointHmrConfig, backbone: Mapping[str, Any]
) -> str:
    """The sizes in which networks of one kind differ, in words."""
    levels = ", ".join(map(str, (config.coarse_vertices, *config.upsampled)))
    if isinstance(config, PointHmrConfig):
        widths = f"{config.token_width}, {config.second_width}"
    else:
        widths = ", ".join(map(str, config.hidden_dims))
    return (
        f"{config.joints} joints, meshes of {levels} vertices, widths {widths}, {config.layers} "
        f"layers, {config.heads} heads, backbone {' '.join(map(str, backbone.values()))}"
    )


def _ordered(
    state: Mapping[str, Tensor], record: Mapping[str, Any], source: Path
) -> dict[str, Tensor]:
    """The float32 tensors of a weight file, which sorts them, in the order of the modules."""
    try:
        blank = _blank(record).state_dict()
        problems = differences(state, {name: tuple(value.shape) for name, value in blank.items()})
    except Exception as error:  # a damaged record may hold anything
        problems = f"{type(error).__name__}: {error}"
    if problems:
        raise InputError(
            f"{source}: expected tensors and a record in the header that fit each other, found "
            f"{problems}. The file is damaged or was written by another version of kinemesh."
        )
    return {
        name: state[name].float() if state[name].is_floating_point() else state[name]
        for name in blank
    }


def _blank(record: Mapping[str, Any]) -> nn.Module:
    """The network of a record without storage."""
    if record["architecture"] in POTTER_CONFIGS:
        return build_potter_network(record, blank=True)
    if record["task"] is None:
        return blank_backbone(record["backbone"])
    if record["task"] == POSE2D:
        return build_keypoint_network(record, blank=True)
    return blank_network(config_from(record), record["backbone"])
