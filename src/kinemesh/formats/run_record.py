"""What a run over a video says about itself: ``STEM_frames/run.json``.

It holds the options, so that a run that was broken off goes on as it began, and the further files
(overlay, tables, skeletons, animations) that were written of these frames. The next run over the
video removes those together with the frames, and no file that is not named there.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kinemesh.errors import InputError
from kinemesh.files import write_json

FORMAT = "kinemesh.video-run"
VERSION = 1
NAME = "run.json"
OVERLAY_ENDING = "_overlay.mp4"
Options = Mapping[str, Any]
Stamp = tuple[int, int]
"""Size of a file in bytes and the time when it was last changed, in nanoseconds."""


@dataclass(frozen=True)
class RunRecord:
    """Content of the file.

    Attributes:
        source: Name of the file or folder that the frames come from, or the number of a camera;
            None in a record that does not say it.
        find: What the people that are found depend on, as plain JSON values by option.
        refine: What the refined frames depend on besides.
        finished: Whether the run came to its end.
        files: Further files of these frames, by name, as they were when they were written; None
            for one that was announced and is not known to be written.
    """

    source: str | None
    find: Options
    refine: Options
    finished: bool = False
    files: Mapping[str, Stamp | None] | None = None

    @classmethod
    def read(cls, place: Path) -> "RunRecord | None":
        """The record in a folder of frames, None if there is none.

        Raises:
            InputError: It is damaged or not of this format and version.
        """
        path = place / NAME
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"Cannot read '{path}': {error}.") from error
        known = content if isinstance(content, dict) else {}
        if known.get("format") != FORMAT or known.get("version") != VERSION:
            raise InputError(
                f"Expected '{path}' to be {FORMAT} version {VERSION}, found something else. "
                "Choose another folder with --out."
            )
        try:
            source, files = known.get("source"), known.get("files")
            return cls(
                None if source is None else str(source),
                dict(known["find"]),
                dict(known["refine"]),
                bool(known["finished"]),
                None if files is None else {name: _stamp(value) for name, value in files.items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{path}' says it is {FORMAT}, but a field is missing or wrong: {error!r}. "
                "Choose another folder with --out."
            ) from error

    def write(self, place: Path) -> None:
        """Write it to a folder of frames.

        Raises:
            OSError: The folder is not writable or the disk is full.
        """
        write_json(place / NAME, {"format": FORMAT, "version": VERSION, **vars(self)})

    def has_written(self, path: Path) -> bool:
        """Whether a file is one of these frames, as far as the record tells."""
        return self.files is None or path.name in self.files

    def unchanged(self, folder: Path) -> list[Path]:
        """The further files in the folder of results that are as they were written."""
        files = {folder / name: stamp for name, stamp in (self.files or {}).items()}
        return [path for path, stamp in files.items() if stamp and stamp == stamp_of(path)]

    def check_source(self, source: str, place: Path) -> None:
        """Refuse results of another source whose files have the same names.

        Raises:
            InputError: They are of another one.
        """
        if self.source not in {None, source}:
            raise InputError(
                f"'{place}' holds results of '{self.source}', and those of '{source}' would have "
                "the same names. Choose another folder with --out."
            )


def record_files(place: Path, paths: Iterable[Path], *, written: bool = True) -> None:
    """Add further files of a run to its record, which is there.

    Args:
        place: The folder of frames.
        paths: The files.
        written: Whether they are there, or announced: written soon, over whatever is there.

    Raises:
        InputError: The record is damaged.
        OSError: It cannot be written.
    """
    record = RunRecord.read(place)
    if record is not None:
        known = dict(record.files or {})
        if written:
            known |= {path.name: stamp_of(path) for path in paths}
        else:
            known = dict.fromkeys((path.name for path in paths), None) | known
        replace(record, files=known).write(place)


def videos_of_files(folder: Path) -> dict[str, str]:
    """For the further files of all videos in a folder of results: the source, by name of file."""
    found: dict[str, str] = {}
    for path in folder.glob(f"*/{NAME}") if folder.is_dir() else ():
        with suppress(InputError):  # what is damaged claims no file
            record = RunRecord.read(path.parent)
            if record is not None:
                found |= dict.fromkeys(record.files or {}, record.source or path.parent.name)
    return found


def stamp_of(path: Path) -> Stamp | None:
    """Size and time of a file, None if there is no such file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _stamp(value: Any) -> Stamp | None:
    if value is None:
        return None
    size, changed = value
    return int(size), int(changed)
