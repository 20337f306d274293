"""Which official files SMPL- and MANO-shaped networks need, and where a folder has them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kinemesh.bodies.model_files import SUFFIXES
from kinemesh.errors import InputError

Family = Literal["smpl", "mano"]
DEPTH = 3  # as deep as src/modeling/data and SMPL_python_v.1.1.0/smpl/models
_SMPL_SITE = "https://smpl.is.tue.mpg.de (registration)"
_MANO_SITE = "https://mano.is.tue.mpg.de (registration)"
_REPOSITORY = "folder src/modeling/data of the repository microsoft/MeshGraphormer"
_FORMS = rf"({'|'.join(re.escape(suffix) for suffix in SUFFIXES)})"
_ANY_FORM = f"({', '.join(SUFFIXES)})"
_ADJACENCY = ("indices", "size", "values")


@dataclass(frozen=True)
class AssetFile:
    """A file, or some that belong together.

    Attributes:
        title: Its official name.
        family: The body model it belongs to.
        patterns: A regular expression for each file's name in lower case.
        required: Whether nothing works without it.
        purpose: What it is needed for.
        source: Where it can be had.
        compared: Whether it is read wherever it is there, so that a damaged one stands in the way.
    """

    title: str
    family: Family
    patterns: tuple[str, ...]
    required: bool
    purpose: str
    source: str
    compared: bool = False


def _smpl_model(gender: str, short: str, purpose: str, required: bool = False) -> AssetFile:
    version = r"v\d+\.\d+\.\d+"
    pattern = rf"(smpl_{gender}|basicmodel_{short}_lbs_10_207_0_{version}){_FORMS}"
    title = f"SMPL_{gender.upper()} or basicModel_{short}_lbs_10_207_0_v1.0.0 {_ANY_FORM}"
    return AssetFile(title, "smpl", (pattern,), required, purpose, _SMPL_SITE)


def _data(name: str, family: Family, purpose: str, *, required: bool = False) -> AssetFile:
    return AssetFile(name, family, (re.escape(name.lower()),), required, purpose, _REPOSITORY)


def _adjacency(name: str, family: Family) -> AssetFile:
    patterns = tuple(re.escape(f"{name}_adjmat_{part}.pt") for part in _ADJACENCY)
    title = f"{name}_adjmat_{{{','.join(_ADJACENCY)}}}.pt"
    purpose = "a second record of the coarse mesh; compared with the sampling file"
    return AssetFile(title, family, patterns, False, purpose, _REPOSITORY, compared=True)


_GENDERED = "load_body_model(..., gender=...), to compare with gendered labels; nothing else"
ASSET_FILES = {
    "smpl": _smpl_model("neutral", "neutral", "the body: template, labels, errors of meshes", True),
    "smpl-male": _smpl_model("male", "m", _GENDERED),
    "smpl-female": _smpl_model("female", "f", _GENDERED),
    "smpl-sampling": _data(
        "mesh_downsampling.npz", "smpl", "coarse levels of 1723 and 431 vertices", required=True
    ),
    "smpl-regressor": _data(
        "J_regressor_h36m_correct.npy", "smpl", "joints from meshes, and the root", required=True
    ),
    "smpl-label-regressor": _data(
        "J_regressor_extra.npy",
        "smpl",
        "metro24_regressor: the 24 joints of label files that you make of your own meshes",
    ),
    "smpl-adjacency": _adjacency("smpl_431", "smpl"),
    "smpl-coarse-faces": _data(
        "smpl_431_faces.npy", "smpl", "coarse faces, if the sampling file has none"
    ),
    "mano": AssetFile(
        f"MANO_RIGHT {_ANY_FORM}",
        "mano",
        (rf"mano_right{_FORMS}",),
        True,
        "the right hand: template, labels, joints from meshes",
        _MANO_SITE,
    ),
    "mano-sampling": _data(
        "mano_downsampling.npz", "mano", "the coarse level of 195 vertices", required=True
    ),
    "mano-adjacency": _adjacency("mano_195", "mano"),
}
"""The files by the names that this library gives them."""


class AssetFolder:
    """The files of a folder and of its sub-folders, three deep.

    Where a name occurs twice, the one nearer to the top counts, and of a model in several forms
    .safetensors before .npz before .pkl.
    """

    def __init__(self, folder: str | Path) -> None:
        """List the files.

        Raises:
            InputError: There is no such folder.
        """
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(
                f"assets: expected a folder with body model files, found '{folder}'; give the "
                "folder that you put them in"
            )
        self._files = sorted(_listed(self.folder), key=self._preference)

    def _preference(self, path: Path) -> tuple[int, int, str]:
        form = SUFFIXES.index(path.suffix) if path.suffix in SUFFIXES else len(SUFFIXES)
        return len(path.parts), form, str(path)

    def find(self, name: str) -> tuple[Path | None, ...]:
        """Path of each part of a file of `ASSET_FILES`; None for a part that is not there."""
        return tuple(self._find(pattern) for pattern in ASSET_FILES[name].patterns)

    def _find(self, pattern: str) -> Path | None:
        matching = re.compile(pattern)
        found = (path for path in self._files if matching.fullmatch(path.name.lower()))
        return next(found, None)

    def get(self, name: str) -> tuple[Path, ...] | None:
        """All parts of a file, or None where one is missing."""
        paths = tuple(path for path in self.find(name) if path is not None)
        return paths if len(paths) == len(ASSET_FILES[name].patterns) else None

    def require(self, name: str) -> Path:
        """Path of a file.

        Raises:
            InputError: It is not there; the message says where it can be had.
        """
        path = self.find(name)[0]
        if path is None:
            wanted = ASSET_FILES[name]
            raise InputError(
                f"{self.folder}: expected {wanted.title} ({wanted.purpose}), found none; it comes "
                f"from {wanted.source}. See: kinemesh doctor --assets {self.folder}"
            )
        return path


def _listed(folder: Path) -> list[Path]:
    files = []
    for place, folders, names in os.walk(folder):
        deep = len(Path(place).relative_to(folder).parts) >= DEPTH
        folders[:] = [] if deep else [name for name in folders if not name.startswith(".")]
        files += [Path(place) / name for name in names]
    return files
