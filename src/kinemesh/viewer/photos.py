"""The results of photos in a folder, as ``kinemesh predict`` writes them."""

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kinemesh.formats.people_json import FORMAT, read_people_json
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.inference.person import Person
from kinemesh.viewer.backdrops import PhotoRecord, find_photo, read_pixels, reduced
from kinemesh.viewer.scenes import Scene, camera_of, figures_of

_HEAD_BYTES = 65536
_OURS = re.compile(rb'"format"\s*:\s*"' + re.escape(FORMAT).encode() + rb'"')
_HANDS = "_hands"
_DAMAGE = (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error)
_SAME_RUN_S = 5.0
"""Files of one photo that were written further apart are of different runs."""
_ONLY_OVERLAY = (
    "The photo was not found, so the overlay stands behind the people; it has them drawn on it "
    "already. Name the folder of your photos with --photos."
)
_NO_BACKDROP = "The photo was not found. Name the folder of your photos with --photos."


@dataclass(frozen=True)
class PhotoResults:
    """Result files of one photo.

    Attributes:
        stem: Start of their names.
        files: One .json file, or one or two .npz files (bodies, and hands).
    """

    stem: str
    files: tuple[Path, ...]


class PhotoAlbum:
    """All photos of a folder of results.

    Args:
        results: Result files of each photo, at least one.
        photo_folders: Where the photos may be, the likeliest first.
    """

    def __init__(self, results: Sequence[PhotoResults], photo_folders: Sequence[Path]) -> None:
        self.title = f"photos ({len(results)})"
        self.frame_rate_hz: float | None = None
        self.names: tuple[str, ...] | None = None
        self._results = tuple(results)
        self._photo_folders = tuple(photo_folders)

    def __len__(self) -> int:
        return len(self._results)

    def scene(self, index: int) -> Scene:
        """Read the people of one photo and find the photo itself (see `Album.scene`)."""
        results = self._results[index]
        people = [person for path in results.files for person in _read_people(path)]
        record = _read_record(results)
        overlay = _overlay(results)
        backdrop, note = find_photo(record, self._photo_folders, overlay), ""
        if backdrop is None:
            backdrop = None if overlay is None else read_pixels(overlay)
            note = _NO_BACKDROP if backdrop is None else _ONLY_OVERLAY
        return Scene(
            title=record.file_name or record.stem,
            camera=camera_of(people, record.size),
            figures=figures_of(people),
            backdrop=None if backdrop is None else reduced(backdrop),
            note=note,
        )


def find_photo_results(folder: Path) -> list[PhotoResults]:
    """Photos of whom a folder has a .json or .npz file, by name.

    The .json file is taken where both are there, since it holds bodies and hands together; but
    where an .npz file is of a later run, that, with the hands of the same run alone.
    """
    tables = {path.stem: path for path in _sorted(folder.glob("*.json")) if _is_people_json(path)}
    arrays = {path.stem: path for path in _sorted(folder.glob("*.npz")) if _is_people_npz(path)}
    found = []
    for stem in sorted({*tables, *arrays}):
        body = stem.removesuffix(_HANDS)
        if stem != body and (body in tables or body in arrays):
            continue
        pair = [arrays[name] for name in (stem, stem + _HANDS) if name in arrays]
        table = tables.get(stem)
        if table is not None and not any(_is_later(path, table) for path in pair):
            found.append(PhotoResults(stem, (table,)))
        else:
            latest = [path for path in pair if not any(_is_later(one, path) for one in pair)]
            found.append(PhotoResults(stem, tuple(latest)))
    return found


def unreadable_results(folder: Path) -> list[str]:
    """A line about each .json or .npz file of a folder that is cut off or damaged."""
    damaged = [path for path in _sorted(folder.glob("*.npz")) if _is_damaged_npz(path)]
    # one of ours is named when it is opened, and long to read
    others = [path for path in _sorted(folder.glob("*.json")) if not _is_people_json(path)]
    for path in others:
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            damaged.append(path)
    return [f"'{path}' cannot be read. Predict its photo again." for path in damaged]


def _is_later(path: Path, other: Path) -> bool:
    return path.stat().st_mtime > other.stat().st_mtime + _SAME_RUN_S


def _read_people(path: Path) -> list[Person]:
    return read_people_json(path) if path.suffix == ".json" else read_people_npz(path)


def _read_record(results: PhotoResults) -> PhotoRecord:
    """Name and size of the photo, from files that were just read as people."""
    path = results.files[0]
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            width, height = arrays["image_size"].tolist()
        return PhotoRecord(results.stem, None, (width, height))
    image = json.loads(path.read_text(encoding="utf-8"))["image"]
    return PhotoRecord(results.stem, image["file"], (image["width"], image["height"]))


def _overlay(results: PhotoResults) -> Path | None:
    """The newest overlay, unless it is older than the people."""
    file = results.files[0]
    paths = (file.parent / f"{results.stem}_overlay{suffix}" for suffix in (".png", ".jpg"))
    there = [path for path in paths if path.is_file() and not _is_later(file, path)]
    return max(there, key=lambda path: path.stat().st_mtime, default=None)


def _sorted(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def _is_people_json(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return _OURS.search(stream.read(_HEAD_BYTES)) is not None
    except OSError:
        return False


def _is_people_npz(path: Path) -> bool:
    try:
        return _npz_format(path) == FORMAT
    except _DAMAGE:
        return False


def _is_damaged_npz(path: Path) -> bool:
    try:
        _npz_format(path)
    except _DAMAGE:
        return True
    return False


def _npz_format(path: Path) -> str | None:
    """What a file says it is, None if it does not say; one of `_DAMAGE` where it is damaged."""
    with np.load(path, allow_pickle=False) as arrays:
        return str(arrays["format"]) if "format" in arrays else None
