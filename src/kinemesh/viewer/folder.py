"""What a folder of results holds, or why there is nothing to see in it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from kinemesh.errors import InputError
from kinemesh.formats.frames import ENDING
from kinemesh.inference.images import image_suffixes
from kinemesh.viewer.photos import PhotoAlbum, find_photo_results, unreadable_results
from kinemesh.viewer.scenes import Album
from kinemesh.viewer.videos import VideoAlbum

_RESULTS = (".json", ".npz", ".jsonl")


def print_problem(text: str) -> None:
    """Say on stderr what is left out."""
    print(text, file=sys.stderr)


def open_folder(
    folder: str | Path,
    photos: str | Path | None = None,
    tell: Callable[[str], None] = print_problem,
) -> list[Album]:
    """Find the results in a folder: one album for all photos, and one for each video.

    What cannot be read is told and left out.

    Args:
        folder: Where ``kinemesh predict`` wrote its results.
        photos: Folder of the photos and videos themselves, which results name without theirs.
            They are also looked for among the results, in the folder above and in the present one.
        tell: Takes a line about each file that is left out.

    Raises:
        InputError: There is no such folder, or nothing in it can be shown; then nothing is told.
    """
    folder = Path(folder)
    _check_folder(folder)
    places = _photo_folders(folder, photos)
    albums: list[Album] = []
    problems: list[str] = []
    for path in sorted(folder.glob(f"*{ENDING}.jsonl")):
        try:
            album = VideoAlbum(path, places)
        except InputError as error:
            problems.append(str(error))
        else:
            albums += [album] if len(album) else []
    problems += unreadable_results(folder)
    results = find_photo_results(folder)
    if results:
        albums.insert(0, PhotoAlbum(results, places))
    if not albums:
        raise InputError("\n".join(problems) or _nothing_in(folder))
    for problem in problems:
        tell(f"Left out: {problem}")
    return albums


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if not folder.exists():
        raise InputError(
            f"There is no folder '{folder}'. Make one with: "
            f"kinemesh predict photo.jpg --out '{folder}'"
        )
    if folder.suffix.lower() in _RESULTS:
        raise InputError(
            f"Expected a folder of results, found the file '{folder}'. "
            f"Type: kinemesh view '{folder.parent}'"
        )
    raise InputError(
        f"Expected a folder of results, found the file '{folder}'. Make results first: "
        f"kinemesh predict '{folder}' --out out/"
    )


def _photo_folders(folder: Path, photos: str | Path | None) -> list[Path]:
    named: Sequence[Path] = ()
    if photos is not None:
        if not Path(photos).is_dir():
            raise InputError(f"--photos: expected a folder, found no folder '{photos}'.")
        named = (Path(photos),)
    return [*named, folder, folder.absolute().parent, Path.cwd()]


def _nothing_in(folder: Path) -> str:
    """Say what is there in place of results, and what to do."""
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    begun = [path for path in files if path.name.endswith(f"{ENDING}.jsonl")]
    if begun:
        return f"'{begun[0]}' has no frame yet. Wait for the first one, or predict the video again."
    expected = (
        f"Expected results of kinemesh predict (.json, .npz or *{ENDING}.jsonl) in '{folder}'"
    )
    within = sorted(path for path in files if path.is_dir() and find_photo_results(path))
    if within:
        return f"{expected}, found them in a folder within. Type: kinemesh view '{within[0]}'"
    pictures = [path for path in files if path.suffix.lower() in image_suffixes()]
    if any(path.stem.endswith("_overlay") for path in pictures):
        return (
            f"{expected}, found overlays alone. Predict again with json or npz among the formats "
            "of --save."
        )
    if pictures:
        return (
            f"{expected}, found pictures ({len(pictures)}). "
            f"Make results first: kinemesh predict '{folder}' --out out/"
        )
    what = f"{len(files)} other files" if files else "an empty folder"
    return f"{expected}, found {what}. Make some with: kinemesh predict photo.jpg --out '{folder}'"
