"""Names of the result files of a photo, and a check that they replace nothing but results."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from kinemesh.errors import InputError
from kinemesh.formats import SURFACE_FORMATS, SaveFormat
from kinemesh.formats.run_record import videos_of_files
from kinemesh.inference.boxes import is_boxes_file

_HEAD_BYTES = 65536
_OURS = re.compile(rb'"format"\s*:\s*"kinemesh\.(people|coco)"')
_NOBODY = b"[]"  # COCO rows of a photo without people: nothing is lost with them


FileKind = SaveFormat | Literal["explain"]
"""What a result file holds: a format that can be chosen, or the picture that explains it."""


_PICTURES: tuple[FileKind, ...] = ("overlay", "views", "explain")
_ENDINGS: dict[FileKind, str] = {
    "csv": "_joints.csv",
    "coco": "_coco.json",
    "skinned": "_skinned.glb",
    **{name: f"_{name}.png" for name in SURFACE_FORMATS},
}
_PERSON = r"(?P<stem>.+)_(person_\d+|hand_\d+_(left|right))"
_PERSON_FILE = re.compile(rf"{_PERSON}(\.|_)(?P<kind>bvh|depth|depth_near|normals|mask)(\.png)?")


def result_names(
    stem: str, kinds: Iterable[FileKind], overlay_suffix: str = ".png"
) -> dict[FileKind, str]:
    """The file of each kind that holds everybody: ``<stem>_overlay.png``, ``<stem>.glb`` and so on.

    BVH is not among them: it has a file for each person and no other (`file_names`).
    """
    return {
        kind: f"{stem}_{kind}{overlay_suffix}"
        if kind in _PICTURES
        else stem + _ENDINGS.get(kind, f".{kind}")
        for kind in kinds
        if kind != "bvh"
    }


def file_names(
    stem: str,
    kind: FileKind,
    labels: Sequence[str],
    overlay_suffix: str = ".png",
    *,
    mixed: bool = False,
) -> list[str]:
    """All files of one kind of a photo, in the order in which they are written.

    Args:
        stem: Start of the names.
        kind: What the files hold.
        labels: Name of each person (`kinemesh.formats.glb.person_name`).
        overlay_suffix: Of overlay, views and explanation.
        mixed: Whether there are bodies and hands, which stand in two .npz files.
    """
    if kind == "bvh":
        return [f"{stem}_{label}.bvh" for label in labels]
    name = result_names(stem, [kind], overlay_suffix)[kind]
    if kind == "npz" and mixed:
        return [name, f"{stem}_hands.npz"]
    if kind not in SURFACE_FORMATS:
        return [name]
    endings = (kind, "depth_near") if kind == "depth" else (kind,)
    return [f"{start}_{end}.png" for start in _starts(stem, labels) for end in endings]


def _starts(stem: str, labels: Sequence[str]) -> list[str]:
    return [stem, *(f"{stem}_{label}" for label in labels)]


def check_run(
    photos: Sequence[Path],
    stems: Sequence[str],
    folder: Path,
    kinds: Sequence[FileKind],
    overlay_suffix: str,
    boxes: str | None,
) -> None:
    """Check the targets of all photos of a run before its first (`check_targets`).

    Args:
        photos: The photos.
        stems: Starts of the names of their results.
        folder: Folder for the results.
        kinds: Files to write for each photo.
        overlay_suffix: ".png" or ".jpg".
        boxes: Value of ``--boxes``, None if it was left out.

    Raises:
        InputError: A result would replace something else than a result.
    """
    targets = [
        folder / name
        for stem in stems
        for kind in kinds
        if kind != "bvh"
        for name in file_names(stem, kind, (), overlay_suffix, mixed=True)
    ]
    targets += _files_of_people(folder, frozenset(stems), kinds)
    boxes_file = Path(boxes.strip()) if boxes is not None and is_boxes_file(boxes) else None
    check_targets(targets, photos, boxes_file)
    videos = videos_of_files(folder)
    for target in targets:
        if target.name in videos and target.exists():
            raise InputError(
                f"The results would overwrite '{target}', which is of the video "
                f"'{videos[target.name]}'. Choose another folder with --out."
            )


def _files_of_people(folder: Path, stems: frozenset[str], kinds: Sequence[FileKind]) -> list[Path]:
    """Files in the folder that have the name of a single person's: how many come is not known."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _PERSON_FILE.fullmatch(path.name)
        if match and match["stem"] in stems and match["kind"].removesuffix("_near") in kinds:
            found.append(path)
    return found


def check_targets(targets: Sequence[Path], inputs: Iterable[Path], boxes: Path | None) -> None:
    """Refuse to write results over what they were made from, or over someone else's JSON.

    Files are compared by identity, so that links and the letter case of a name hide nothing.

    Args:
        targets: Files that will be written.
        inputs: Photos.
        boxes: File of boxes, None if there is none.

    Raises:
        InputError: A target is one of the photos or the file of boxes, or is a .json file of
            another format.
    """
    photos = {identity for path in inputs for identity in _identities(path)}
    boxes_file = set() if boxes is None else _identities(boxes)
    for target in targets:
        found = _identities(target)
        if found & boxes_file:
            raise InputError(
                f"The results would overwrite the boxes in '{boxes}'. "
                "Choose another folder with --out."
            )
        if found & photos:
            raise InputError(
                f"The results would overwrite the photo '{target}'. "
                "Choose another folder with --out."
            )
        if found and target.suffix == ".json" and not _is_ours(target):
            raise InputError(
                f"Expected to write '{target}', found a JSON file of that name that kinemesh did "
                "not write. Choose another folder with --out, or rename the file."
            )


def _identities(path: Path) -> set[tuple[int, int]]:
    """Device and number of a file and, where it is a link, of the link; empty if there is none."""
    found = set()
    for look in (os.stat, os.lstat):
        try:
            status = look(path)
        except (OSError, ValueError):
            continue
        found.add((status.st_dev, status.st_ino))
    return found


def _is_ours(path: Path) -> bool:
    """Whether a file says that it is of kinemesh; a folder is left to the writer to refuse."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
            return _OURS.search(head) is not None or head.strip() == _NOBODY
    except OSError:
        return False
