"""Names of the files of a video beside its frames, and a check before they are written."""

import re
from collections.abc import Iterable
from pathlib import Path

from kinemesh.errors import InputError
from kinemesh.formats.frames import ENDING
from kinemesh.formats.names import check_targets
from kinemesh.formats.run_record import OVERLAY_ENDING, RunRecord

EXPORT_ENDINGS = {"csv": "_joints.csv", "coco": "_coco.json", "skinned": "_skinned.glb"}
"""Of the files of which a video has one; BVH files are named by the track."""
_TRACK = r"_track_\d+\.bvh"


def track_ending(track: int) -> str:
    """End of the name of a track's BVH file."""
    return f"_track_{track}.bvh"


def further_files(folder: Path, stem: str) -> list[Path]:
    """What lies in a folder under the name of a further file of a video."""
    fixed = "|".join(re.escape(ending) for ending in (OVERLAY_ENDING, *EXPORT_ENDINGS.values()))
    name = re.compile(rf"{re.escape(stem)}({fixed}|{_TRACK})")
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in entries if name.fullmatch(path.name))


def check_video_places(folder: Path, stem: str, source: str, formats: Iterable[str]) -> None:
    """Refuse, before a video is looked at, to write over anything but its own results.

    Args:
        folder: Folder of results.
        stem: Start of the names.
        source: Name of the video, without its folder.
        formats: Further files that will be written, keys of `EXPORT_ENDINGS` among them.

    Raises:
        InputError: The folder holds results of another source under these names, a file is there
            that no run over the video wrote, or a folder has the name of a file.
    """
    formats = set(formats)
    place = folder / f"{stem}{ENDING}"
    tables = [folder / f"{stem}{end}" for name, end in EXPORT_ENDINGS.items() if name in formats]
    named = [place.with_name(f"{place.name}.jsonl"), *tables]
    if "bvh" in formats:
        named += [path for path in further_files(folder, stem) if path.suffix == ".bvh"]
    for path in named:
        if path.is_dir():
            raise InputError(
                f"Expected to write the file '{path}', found a folder of that name. "
                "Rename it, or choose another folder with --out."
            )
    record = RunRecord.read(place)
    if record is not None:
        record.check_source(source, place)
    check_targets(tables, [], None)
    for path in tables:
        if path.exists() and (record is None or not record.has_written(path)):
            raise InputError(
                f"Expected to write '{path}', found a file of that name that no run over "
                f"'{source}' wrote; it may be of a photo. Choose another folder with --out, or "
                "rename the file."
            )
