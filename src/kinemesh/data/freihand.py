"""FreiHAND in its native layout (Zimmermann et al. 2019, version 2).

========================================  ================================================
``training/rgb/00000000.jpg`` ...         32,560 pictures, then up to three more renderings
                                          of them on other backgrounds (``training_rgb`` is
                                          taken as well)
``training_K.json``                       (N, 3, 3) intrinsics, pixels
``training_xyz.json``                     (N, 21, 3) joints, camera frame, metres
``training_mano.json``                    (N, 1, 61): 48 angles, 10 shape numbers, 3 unused
``training_verts.json``                   (N, 778, 3) vertices, camera frame; optional
``evaluation/rgb``, ``evaluation_K.json``  the test set in the order of the submission
``evaluation_{xyz,verts}.json``           its labels, published later; optional
========================================  ================================================

Joints run from the wrist over each finger to its tip, the order of `kinemesh.skeletons.HAND21`.
The large JSON files are parsed once, a sample at a time, and kept as arrays in a cache folder.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, cast, get_args

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kinemesh.data.mesh_dataset import MeshDataset, MeshOptions
from kinemesh.data.mesh_labels import MeshRecord
from kinemesh.errors import InputError
from kinemesh.files import atomic_path

Split = Literal["training", "evaluation"]

CENTER_PX = (112.0, 112.0)
SCALE = 0.9
"""Side of the crop / 200, the published one for every picture: the middle 180 of 224 pixels."""
_JOINTS, _VERTICES, _POSE, _BETAS = 21, 778, 48, 10
_CHUNK = 1 << 22
_CUT_NUMBER = 64  # a number that was cut by the end of a chunk is no longer than this


class FreiHandDataset(MeshDataset):
    """FreiHAND with the published crop; labels in the record of all mesh data.

    ``pose`` and ``betas`` are MANO's; the pose is a difference from MANO's mean hand, as the files
    hold it. Where ``*_verts.json`` exists, ``vertices`` are filled too. Pictures without labels
    (the evaluation split as it was first published) have all ``has_*`` flags 0.

    Args:
        folder: The unpacked data set.
        split: "training" or "evaluation".
        options: How samples are made.
        vertices: Read ``*_verts.json`` if it exists.
        cache: Folder for the parsed arrays; by default ``kinemesh/freihand`` in
            ``$XDG_CACHE_HOME`` or ``~/.cache``. One that cannot be written is done without.

    Raises:
        InputError: A file is missing, damaged, or of another length than the others.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split = "training",
        options: MeshOptions | None = None,
        *,
        vertices: bool = True,
        cache: str | Path | None = None,
    ) -> None:
        if split not in get_args(Split):
            raise InputError(f"split: expected 'training' or 'evaluation', found {split!r}.")
        super().__init__("hand", options or MeshOptions())
        self.folder, self.split = Path(folder), split
        self.pictures = self._find_pictures()
        tables = _Tables(self.folder, split, _cache_folder(cache))
        self.cameras = tables.read("K", (3, 3), required=True)
        labelled = split == "training"
        self.joints = tables.read("xyz", (_JOINTS, 3), required=labelled)
        self.parameters = tables.read("mano", (1, 61), required=labelled)
        self.vertices = tables.read("verts", (_VERTICES, 3), dtype=np.float32) if vertices else None
        self.versions = self._count_versions()

    def __len__(self) -> int:
        return len(self._cameras) * self.versions

    def __getstate__(self) -> dict[str, Any]:
        # a mapped array would be pickled with all of its content
        return {
            name: _Mapped(str(value.filename)) if isinstance(value, np.memmap) else value
            for name, value in self.__dict__.items()
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {
            name: np.load(value.path, mmap_mode="r") if isinstance(value, _Mapped) else value
            for name, value in state.items()
        }

    @property
    def _cameras(self) -> NDArray:
        assert self.cameras is not None  # it is required above
        return self.cameras

    def read(self, index: int) -> MeshRecord:
        """Picture ``index`` with the label of its capture.

        Raises:
            InputError: The picture is missing.
        """
        row = index % len(self._cameras)
        path = self.pictures / f"{index:08d}.jpg"
        try:
            jpeg = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"Cannot read '{path}': {error.strerror}. Unpack the pictures of FreiHAND again."
            ) from error
        labels = f"'{self.folder / self.split}_*.json', entry {row}"
        return MeshRecord(path.name, jpeg, self._annotation(row), labels, f"'{path}'")

    def _annotation(self, row: int) -> dict[str, Any]:
        camera = self._cameras[row]
        annotation: dict[str, Any] = {"center": CENTER_PX, "scale": SCALE, "has_smpl": 0}
        if self.joints is not None:
            joints = self.joints[row]
            pixels = joints @ camera.T
            confident = np.ones((_JOINTS, 1))
            with np.errstate(divide="ignore", invalid="ignore"):  # refused when it is read
                places = pixels[:, :2] / pixels[:, 2:]
            annotation |= {
                "2d_joints": np.concatenate([places, confident], axis=1),
                "has_2d_joints": 1,
                "3d_joints": np.concatenate([joints, confident], axis=1),
                "has_3d_joints": 1,
                "camera": camera,
            }
        if self.parameters is not None:
            numbers = self.parameters[row, 0]
            annotation |= {"pose": numbers[:_POSE], "betas": numbers[_POSE : _POSE + _BETAS]}
            annotation["has_smpl"] = 1
        if self.vertices is not None and self.joints is not None:
            annotation |= {"vertices": self.vertices[row], "has_smpl": 1}
            annotation.setdefault("pose", np.zeros(_POSE))
            annotation.setdefault("betas", np.zeros(_BETAS))
        return annotation

    def _find_pictures(self) -> Path:
        for name in (f"{self.split}/rgb", f"{self.split}_rgb"):
            if (self.folder / name).is_dir():
                return self.folder / name
        raise InputError(
            f"'{self.folder}': expected FreiHAND's '{self.split}/rgb', found no such folder. "
            "Name the folder that holds training_K.json and evaluation_K.json."
        )

    def _count_versions(self) -> int:
        """How many pictures of each capture are there; later ones need the earlier ones."""
        count = len(self._cameras)
        versions = 1
        while (self.pictures / f"{count * versions:08d}.jpg").is_file():
            versions += 1
        return versions if self.split == "training" else 1


@dataclass(frozen=True)
class _Mapped:
    """Stands for an array in the cache while a data set is pickled."""

    path: str


class _Tables:
    """The JSON files of one split as arrays of equal length."""

    def __init__(self, folder: Path, split: Split, cache: Path) -> None:
        self.folder, self.split, self.cache = folder, split, cache
        self.length: int | None = None

    def read(
        self,
        name: str,
        shape: tuple[int, ...],
        *,
        required: bool = False,
        dtype: DTypeLike = np.float64,
    ) -> NDArray | None:
        path = self.folder / f"{self.split}_{name}.json"
        if not path.is_file():
            if required:
                raise InputError(
                    f"There is no file '{path}'. Unpack the annotations of FreiHAND beside the "
                    "pictures."
                )
            return None
        table = _cached_table(path, shape, dtype, self.cache)
        self.length = self.length or len(table)
        if len(table) != self.length:
            raise InputError(
                f"'{path}': expected {self.length} entries as in {self.split}_K.json, found "
                f"{len(table)}. Copy the file again."
            )
        return table


def _cached_table(path: Path, shape: tuple[int, ...], dtype: DTypeLike, cache: Path) -> NDArray:
    """A JSON file as an array, mapped from the cache so that processes share its memory."""
    state = path.stat()
    identity = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}|{shape}|{np.dtype(dtype)}"
    kept = cache / f"{path.stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npy"
    try:
        return cast(NDArray, np.load(kept, mmap_mode="r"))
    except (OSError, ValueError, EOFError):
        table = _parse_table(path, shape, dtype)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with atomic_path(kept) as temporary:
            np.save(temporary, table)
    except OSError:
        return table
    return cast(NDArray, np.load(kept, mmap_mode="r"))


def _parse_table(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    rows = []
    for number, value in enumerate(_elements(path)):
        try:
            row = np.asarray(value, dtype=dtype)
        except (TypeError, ValueError, OverflowError):
            row = np.zeros(0)
        if row.shape != shape or not np.isfinite(row).all():
            raise InputError(
                f"'{path}', entry {number}: expected {shape} finite numbers, found "
                f"{str(value)[:60]}. Copy the file again."
            )
        rows.append(row)
    if not rows:
        raise InputError(f"'{path}': expected at least one entry, found none.")
    return np.stack(rows)


def _elements(path: Path) -> Iterator[Any]:
    """Elements of a JSON list, one at a time: the file may be larger than the memory."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text = _read_text(file, path).lstrip()
        if not text.startswith("["):
            raise InputError(f"'{path}': expected a JSON list, found {text[:40]!r}.")
        position = 1
        while True:
            position = _skip(text, position, " \t\r\n,")
            if text[position : position + 1] == "]":
                return
            try:
                value, end = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                value, end = None, error.pos
            except (ValueError, RecursionError):  # too many digits, or lists within lists
                raise _damaged(path, text[position : position + 40]) from None
            end = _skip(text, end, " \t\r\n")
            if text[end : end + 1] not in (",", "]") or value is None:
                # what touches the end of the text that was read may go on, even a number
                more = _read_text(file, path) if end >= len(text) - _CUT_NUMBER else ""
                if not more:
                    raise _damaged(path, text[position : position + 40])
                text, position = text[position:] + more, 0
                continue
            yield value
            position = end


def _read_text(file: TextIO, path: Path) -> str:
    try:
        return file.read(_CHUNK)
    except UnicodeDecodeError as error:
        raise InputError(
            f"'{path}': expected UTF-8 text, found another encoding or a damaged file ({error}). "
            "Copy the file again."
        ) from error


def _damaged(path: Path, entry: str) -> InputError:
    return InputError(
        f"'{path}': expected a JSON list of numbers, found a damaged or cut entry that begins with "
        f"{entry!r}. Copy the file again."
    )


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _cache_folder(chosen: str | Path | None) -> Path:
    if chosen is not None:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kinemesh" / "freihand"
