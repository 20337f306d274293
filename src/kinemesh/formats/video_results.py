"""The results of a video run in a folder, and how a run that was broken off goes on.

Beside the files of `kinemesh.formats.frames` and the overlay there is ``STEM_frames/run.json``,
which says with what options they were made and what else was written of them
(`kinemesh.formats.run_record`), and as long as the run is not finished also ``STEM_frames/raw/``,
what the network found before it was refined.
"""

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from kinemesh.errors import InputError
from kinemesh.formats import check_folder
from kinemesh.formats.frames import (
    ENDING,
    FrameArrays,
    FramesHeader,
    FramesWriter,
    complete_lines,
)
from kinemesh.formats.run_record import NAME, OVERLAY_ENDING, Options, RunRecord, stamp_of
from kinemesh.formats.video import PART_FRAMES, OverlayVideo, check_video_target
from kinemesh.formats.video_names import check_video_places
from kinemesh.inference.video_frame import VideoFrame

UNFINISHED = "unfinished"
"""Folder beside the arrays, for further files until they are whole."""


class VideoResults:
    """Where the frames of a run go; see `kinemesh.inference.video_run.Results`.

    Args:
        folder: Folder of results; made if it is not there.
        stem: Start of the names of the files.
        header: First line of the file of frames.
        find: What the people that are found depend on, as plain JSON values by option.
        refine: What the refined frames depend on besides.
        resume: Whether results that are there are gone on from.
        overlay: Whether an overlay video is made.
        sound: File whose sound it gets.
        skeleton: Whether joints are drawn on it.
        part_frames: Frames of the overlay that a run which is killed may have to draw again.

    Until the first frame is found nothing is written, and a finished run that is to be replaced
    stays whole: what is wrong with the options or with the first frame costs no results. With its
    frames go its overlay and the further files that its record names, but for those that somebody
    changed since.

    Attributes:
        is_complete: Whether a run with the same options came to its end before; there is nothing
            left to do.
        journal: People as they were found.
        overlay: The overlay video, None if there is none.

    Raises:
        InputError: There are results of an unfinished run and ``resume`` is False, or of a run with
            other options and it is True; or the results of another video or a file that is not
            ours are in the way.
    """

    def __init__(
        self,
        folder: str | Path,
        stem: str,
        header: FramesHeader,
        find: Options,
        refine: Options,
        *,
        resume: bool = False,
        overlay: bool = True,
        sound: Path | None = None,
        skeleton: bool = False,
        part_frames: int = PART_FRAMES,
    ) -> None:
        folder = Path(folder)
        check_folder(folder)
        self._place = folder / f"{stem}{ENDING}"
        self._folder = folder
        target = folder / f"{stem}{OVERLAY_ENDING}"
        check_video_target(target, header.source)
        find, refine = _plain(find), _plain(refine)
        self._lines = folder / f"{stem}{ENDING}.jsonl"
        source = Path(header.source).name
        check_video_places(folder, stem, source, ())
        before = RunRecord.read(self._place)
        if before is None and self._place.exists():
            raise InputError(
                f"Expected to write to '{self._place}', found something of that name that kinemesh "
                "did not write. Choose another folder with --out, or rename it."
            )
        files = {} if before is None else before.files
        self._record = RunRecord(source, find, refine, files=files or {})
        same_options = before is not None and (before.find, before.refine) == (find, refine)
        self.is_complete = resume and before is not None and before.finished and same_options
        if before is not None and not self.is_complete:
            if resume:
                self._check_same(before, self._record)
            elif before.finished:
                before = None
            else:
                self._refuse_unfinished()
        same = before is not None and before.refine == refine
        self.journal = _FirstFrame(FrameArrays(self._place / "raw", compress=False), self._begin)
        self._finished = self._kept() if same else 0
        self._writer: FramesWriter | None = None
        self._make_writer = partial(FramesWriter, folder, stem, header, self._finished)
        if before is not None:
            self._open()
        self.overlay: OverlayVideo | None = None
        if overlay and not self.is_complete:
            self.overlay = OverlayVideo(
                target,
                self._place / "parts",
                (header.frame_rate or 25.0) / header.every,
                sound,
                keep_parts=same,
                skeleton=skeleton,
                part_frames=part_frames,
            )
        self._target = target

    @property
    def finished(self) -> int:
        """How many refined frames are written."""
        return self._finished

    @property
    def paths(self) -> list[Path]:
        """The files to look at first."""
        drawn = [] if self.overlay is None or not self.overlay.written else [self._target]
        return [*drawn, *([self._lines] if self._lines.is_file() else [])]

    def write(self, frame: VideoFrame) -> None:
        """Write the next refined frame.

        Raises:
            OSError: The folder is not writable or the disk is full.
        """
        assert self._writer is not None  # a frame is in the journal before it is refined
        self._writer.write(frame)
        self._finished += 1

    def close(self, *, finished: bool) -> None:
        """End the run.

        Args:
            finished: Whether it came to its end, so that another one may replace its results.
        """
        if self._writer is None:  # not one frame came
            return
        self._writer.close()
        if self.is_complete:
            return
        drawn = self.overlay is not None and self.overlay.written
        files = {self._target.name: stamp_of(self._target)} if drawn else {}
        record = replace(self._record, finished=finished, files=files)
        if finished:
            record.write(self._place)
            shutil.rmtree(self._place / "raw", ignore_errors=True)
        else:
            with suppress(OSError):  # whoever ended the run, such as a full disk, is told already
                record.write(self._place)

    def _begin(self) -> None:
        """Make place for the first frame; a finished run that is replaced stays until now."""
        self._place.mkdir(parents=True, exist_ok=True)
        self._record.write(self._place)
        # the lines first: without them no old arrays are taken for frames of this run
        self._lines.unlink(missing_ok=True)
        self._remove_further_files()
        for path in self._place.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != NAME:
                path.unlink()
        self._writer = self._make_writer()

    def _open(self) -> None:
        """Go on with a run."""
        if not self.is_complete:
            self._record.write(self._place)
            self._remove_further_files()
        shutil.rmtree(self._place / UNFINISHED, ignore_errors=True)
        for folder in (self._place, self._place / "raw"):
            for broken in folder.glob(".*.partial*"):  # what a killed process was writing
                broken.unlink()
        self.journal.is_begun = True
        self._writer = self._make_writer()

    def _remove_further_files(self) -> None:
        """Remove what was written of the frames that now change, as far as it is on record."""
        for path in self._record.unchanged(self._folder):
            path.unlink(missing_ok=True)

    def _refuse_unfinished(self) -> None:
        raise InputError(
            f"'{self._place}' holds a run that was not finished. Go on with it by adding --resume, "
            f"or begin anew after: rm -r '{self._place}'"
        )

    def _check_same(self, before: RunRecord, now: RunRecord) -> None:
        """Refuse to go on with other options than those of the frames that are there.

        A finished run has let go of what the network found, so that it cannot be refined anew.
        """
        old, new = dict(before.find), dict(now.find)
        if before.finished:
            old, new = {**old, **before.refine}, {**new, **now.refine}
        run = "the finished run" if before.finished else "the run"
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise InputError(
                    f"--resume: {run} in '{self._place}' had {name} = {old.get(name)!r}, now "
                    f"it is {new.get(name)!r}. Give the same, or begin anew without --resume in "
                    "another folder."
                )

    def _kept(self) -> int:
        """How many refined frames are complete."""
        if not self._lines.is_file():
            return 0
        frames = complete_lines(self._lines)[1:]
        arrays = FrameArrays(self._place)
        complete = 0
        for line in frames:
            if not arrays.has(int(line["frame"])):
                break
            complete += 1
        return complete


class _FirstFrame:
    """A journal that is empty until its first frame is written, and calls ``begin`` before it."""

    def __init__(self, arrays: FrameArrays, begin: Callable[[], None]) -> None:
        self._arrays, self._begin = arrays, begin
        self.is_begun = False

    def has(self, index: int) -> bool:
        return self.is_begun and self._arrays.has(index)

    def read(self, index: int) -> VideoFrame:
        return self._arrays.read(index)

    def write(self, frame: VideoFrame) -> None:
        if not self.is_begun:
            self._begin()
            self.is_begun = True
        self._arrays.write(frame)


def _plain(options: Options) -> dict[str, Any]:
    """Options as they come back from a JSON file."""
    return dict(json.loads(json.dumps(dict(options), allow_nan=False)))
