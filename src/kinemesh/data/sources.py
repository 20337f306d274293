"""Data sets by name or path, as the command line and recipes name them."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.utils.data import Dataset

from kinemesh.bodies.topology import Kind
from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.keypoint_sources import names_keypoints, names_scenes
from kinemesh.data.mesh_crop import RESOLUTION
from kinemesh.data.mesh_dataset import MeshDataset, MeshOptions
from kinemesh.data.mesh_tsv import MeshTsvDataset
from kinemesh.data.records import Sample
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.synthetic.dataset import Split
from kinemesh.data.webdataset import MANIFEST, MeshShards
from kinemesh.errors import InputError

SYNTHETIC: Mapping[str, Kind] = {"synthetic-hand": "hand", "synthetic-body": "body"}
SYNTHETIC_RESOLUTION = 128
FREIHAND, FREIHAND_EVALUATION = "freihand:", "freihand-evaluation:"
KNOWN_STORED = ("PATH.yaml (a TSV data set)", "freihand:FOLDER", "freihand-evaluation:FOLDER")
"""What `open_stored` takes, for help and messages."""
KNOWN = (*SYNTHETIC, *KNOWN_STORED, "a folder of shards from 'kinemesh data convert'")
"""What `open_dataset` takes, for help and messages."""


def open_dataset(
    spec: str,
    *,
    split: Split = "test",
    seed: int = 0,
    resolution: int | None = None,
    options: MeshOptions | None = None,
) -> Dataset[Sample]:
    """Open a data set by name or path.

    Args:
        spec: ``synthetic-hand`` or ``synthetic-body``; the ``.yaml`` of a TSV set;
            ``freihand:FOLDER`` or ``freihand-evaluation:FOLDER``; a folder of shards.
        split: "train" varies stored samples as published and streams synthetic ones without end;
            "val" and "test" do neither, and differ for synthetic data alone.
        seed: Key of what is random.
        resolution: Side of the crops; None takes 128 for synthetic and 224 for stored data.
        options: All settings of stored data, in place of the three arguments above.

    Returns:
        A data set of :class:`kinemesh.data.records.Sample`; it has a length, and an index access
        unless it is a folder of shards.

    Raises:
        InputError: There is no such data set, or it is damaged.
    """
    if spec in SYNTHETIC:
        return SyntheticDataset(
            SYNTHETIC[spec], seed, resolution or SYNTHETIC_RESOLUTION, split=split
        )
    if options is None:
        options = MeshOptions(split == "train", seed, resolution or RESOLUTION)
    if _holds_shards(spec):
        return MeshShards(spec, options)
    dataset = _open_rows(spec, options)
    if dataset is None:
        raise InputError(_unknown(spec))
    return dataset


def open_stored(spec: str, options: MeshOptions | None = None) -> MeshDataset:
    """Open a data set whose rows can be read by index as they are stored.

    Raises:
        InputError: It is none of those, does not exist, or is damaged.
    """
    dataset = _open_rows(spec, options)
    if dataset is None:
        raise InputError(_not_stored(spec))
    return dataset


def _open_rows(spec: str, options: MeshOptions | None) -> MeshDataset | None:
    path = Path(spec)
    if path.suffix.lower() in (".yaml", ".yml"):
        return MeshTsvDataset(path, options)
    if spec.startswith(FREIHAND):
        return FreiHandDataset(spec.removeprefix(FREIHAND), "training", options)
    if spec.startswith(FREIHAND_EVALUATION):
        return FreiHandDataset(spec.removeprefix(FREIHAND_EVALUATION), "evaluation", options)
    return None


def _holds_shards(spec: str) -> bool:
    return (Path(spec) / MANIFEST).is_file()


def _not_stored(spec: str) -> str:
    """Why the rows of a data set cannot be read by index as they are stored."""
    known = f"Data sets: {', '.join(KNOWN_STORED)}"
    if spec in SYNTHETIC:
        return f"'{spec}' is rendered when it is read, it has no stored rows to copy. {known}"
    if _holds_shards(spec):
        return (
            f"'{spec}' already holds shards, which are read from front to back. Name the data set "
            f"that they were made from. {known}"
        )
    return _mistaken(spec, KNOWN_STORED) or f"There is no data set '{spec}'. {known}"


def _unknown(spec: str) -> str:
    known = f"Data sets: {', '.join(KNOWN)}."
    near = difflib.get_close_matches(spec, SYNTHETIC, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return _mistaken(spec, KNOWN) or f"There is no data set '{spec}'.{hint} {known}"


def _mistaken(spec: str, known: Sequence[str]) -> str | None:
    """What to write instead where a name is that of something else; None if it is of nothing."""
    path = Path(spec)
    if names_keypoints(spec) or names_scenes(spec):
        return f"'{spec}' holds 2D keypoints alone, for 2D pose models. Data: {', '.join(known)}."
    if any((path / f"{split}_K.json").is_file() for split in ("training", "evaluation")):
        return f"'{spec}' holds FreiHAND. Write: {FREIHAND}{spec} or {FREIHAND_EVALUATION}{spec}"
    if path.is_dir():
        listed = ", ".join(sorted(entry.name for entry in path.glob("*.yaml"))[:8])
        found = f"Its .yaml files: {listed}." if listed else "It holds no .yaml file."
        return f"'{spec}' is a folder without {MANIFEST}. {found} Name one of them."
    return None
