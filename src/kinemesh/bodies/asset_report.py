"""Which of the official files a folder has, which are missing, and which are damaged."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kinemesh.bodies import mano, smpl
from kinemesh.bodies.asset_files import ASSET_FILES, AssetFile, AssetFolder, Family
from kinemesh.bodies.model_files import read_model_file
from kinemesh.bodies.official_assets import LEVELS, mano_topology, smpl_topology
from kinemesh.bodies.sampling import read_array, read_edges, read_regressor, read_sampling
from kinemesh.errors import InputError
from kinemesh.skeletons import H36M17


@dataclass(frozen=True)
class AssetStatus:
    """One file of `ASSET_FILES`, or some that belong together.

    Attributes:
        file: What is looked for, what it is needed for and where it comes from.
        status: ``"broken"`` is there but cannot be used.
        detail: Its path; the missing parts; or what is wrong with it.
    """

    file: AssetFile
    status: Literal["ok", "missing", "broken"]
    detail: str


def inspect_assets(folder: str | Path) -> list[AssetStatus]:
    """Look for all official files and read those that are there, changing nothing.

    Raises:
        InputError: There is no such folder.
    """
    files = AssetFolder(folder)
    found = {name: _look(files, name) for name in ASSET_FILES}
    topologies: dict[Family, Callable[[str | Path], object]]
    topologies = {"smpl": smpl_topology, "mano": mano_topology}
    for family, topology in topologies.items():
        if is_complete(found.values(), family):
            try:
                topology(folder)  # each file is whole; do they fit together?
            except InputError as error:
                name = _blamed(files, family, str(error))
                found[name] = replace(found[name], status="broken", detail=str(error))
    return list(found.values())


def is_complete(statuses: Iterable[AssetStatus], family: Family) -> bool:
    """Whether all that networks of this family need is there and can be used."""
    own = [status for status in statuses if status.file.family == family]
    damaged = any(status.status == "broken" for status in own if status.file.compared)
    return not damaged and all(status.status == "ok" for status in own if status.file.required)


def _blamed(files: AssetFolder, family: Family, message: str) -> str:
    """Name of the file that a message begins with, or else of the sampling file."""
    own = [name for name, file in ASSET_FILES.items() if file.family == family]
    named = (n for n in own if any(message.startswith(f"{path}:") for path in files.find(n)))
    return next(named, f"{family}-sampling")


def _look(files: AssetFolder, name: str) -> AssetStatus:
    file, paths = ASSET_FILES[name], files.get(name)
    if paths is None:
        there = [path.name for path in files.find(name) if path is not None]
        detail = f"only {', '.join(there)}" if there else "not found"
        return AssetStatus(file, "missing", detail)
    try:
        _READERS[name](paths)
    except InputError as error:
        return AssetStatus(file, "broken", str(error))
    return AssetStatus(file, "ok", str(paths[0]))


def _model(joints: int, paths: tuple[Path, ...]) -> None:
    read_model_file(paths[0], joints)


def _array(rows: int | None, columns: int | None, paths: tuple[Path, ...]) -> None:
    read_array(paths[0], rows, columns)


def _regressor(paths: tuple[Path, ...]) -> None:
    read_regressor(paths[0], len(H36M17))


def _sampling(family: Family, paths: tuple[Path, ...]) -> None:
    read_sampling(paths[0], LEVELS[family])


_READERS: dict[str, Callable[[tuple[Path, ...]], Any]] = {
    "smpl": partial(_model, smpl.JOINTS),
    "smpl-male": partial(_model, smpl.JOINTS),
    "smpl-female": partial(_model, smpl.JOINTS),
    "smpl-sampling": partial(_sampling, "smpl"),
    "smpl-regressor": _regressor,
    "smpl-label-regressor": partial(_array, 14, None),
    "smpl-adjacency": read_edges,
    "smpl-coarse-faces": partial(_array, None, 3),
    "mano": partial(_model, mano.JOINTS),
    "mano-sampling": partial(_sampling, "mano"),
    "mano-adjacency": read_edges,
}
