"""Names of the result files of a photo, and a check that they replace nothing but results."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from kinemesh.errors import InputError
from kinemesh.formats import SaveFormat
from kinemesh.inference.boxes import is_boxes_file

_HEAD_BYTES = 65536
_OURS = re.compile(rb'"format"\s*:\s*"kinemesh\.people"')


FileKind = SaveFormat | Literal["explain"]
"""What a result file holds: a format that can be chosen, or the picture that explains it."""


def result_names(
    stem: str, kinds: Iterable[FileKind], overlay_suffix: str = ".png"
) -> dict[FileKind, str]:
    """File name of each kind: ``<stem>_overlay.png``, ``<stem>.glb`` and so on."""
    pictures = ("overlay", "views", "explain")
    return {
        name: f"{stem}_{name}{overlay_suffix}" if name in pictures else f"{stem}.{name}"
        for name in kinds
    }


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
    names = [result_names(stem, kinds, overlay_suffix) for stem in stems]
    targets = [folder / name for of_photo in names for name in of_photo.values()]
    boxes_file = Path(boxes.strip()) if boxes is not None and is_boxes_file(boxes) else None
    check_targets(targets, photos, boxes_file)


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
    """Whether a file says that it is kinemesh.people; a folder is left to the writer to refuse."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as stream:
            return _OURS.search(stream.read(_HEAD_BYTES)) is not None
    except OSError:
        return False
