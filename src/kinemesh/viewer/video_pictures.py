"""Single frames of the video that results were made from, in any order."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from kinemesh.errors import InputError, MissingExtraError
from kinemesh.inference.video_source import VIDEO_SUFFIXES, FolderSource, upright_pixels
from kinemesh.optional import require
from kinemesh.viewer.backdrops import read_pixels

_FORWARD_S = 3.0
"""Up to this far ahead decoding is quicker than jumping to a key frame."""
_TOLERANCE_S = 1e-3


class Pictures(Protocol):
    """The frames of a video."""

    def at(self, index: int, time_s: float) -> np.ndarray | None:
        """(H, W, 3) uint8 RGB of a frame by its number and its time; None if it cannot be had."""
        ...


class FolderPictures:
    """Frames that are the pictures of a folder.

    Raises:
        InputError: The folder is not readable or its pictures differ in size.
    """

    def __init__(self, folder: Path) -> None:
        source = FolderSource(folder)
        self._paths, self.image_size = source.paths, source.image_size

    def at(self, index: int, time_s: float) -> np.ndarray | None:
        """See `Pictures`."""
        return read_pixels(self._paths[index]) if index < len(self._paths) else None


class FilePictures:
    """Frames of a video file, by their times.

    Args:
        path: The file.

    Raises:
        InputError: It holds no video that can be read.
        MissingExtraError: PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        av = require("av", "video")
        self._unreadable: type[Exception] = av.error.FFmpegError
        try:
            self._container: Any = av.open(str(path))
            self._stream: Any = self._container.streams.video[0]
            self._stream.thread_type = "AUTO"
            self._frames = self._decode()
            first = next(self._frames)
        except (self._unreadable, OSError, IndexError, StopIteration) as error:
            raise InputError(f"Expected a video in '{path}', found none.") from error
        self._start_s = first.time or 0.0
        self._current = first
        self.image_size: tuple[int, int] = upright_pixels(first).shape[1::-1]

    def at(self, index: int, time_s: float) -> np.ndarray | None:
        """See `Pictures`."""
        try:
            self._go_to(time_s + self._start_s)
        except self._unreadable:  # the file is damaged at this place
            return None
        return upright_pixels(self._current)

    def _go_to(self, time_s: float) -> None:
        """Make the frame of a time the current one, or the last if the video is shorter."""
        now = self._time(self._current)
        if not now - _TOLERANCE_S <= time_s <= now + _FORWARD_S:
            self._container.seek(int(time_s / self._stream.time_base), stream=self._stream)
            self._frames = self._decode()
            self._current = next(self._frames, self._current)
        while self._time(self._current) < time_s - _TOLERANCE_S:
            following = next(self._frames, None)
            if following is None:
                return
            self._current = following

    def _decode(self) -> Iterator[Any]:
        return iter(self._container.decode(self._stream))

    def _time(self, frame: Any) -> float:
        return self._start_s if frame.time is None else float(frame.time)


def find_pictures(source: str, image_size: tuple[int, int], folders: list[Path]) -> Pictures | None:
    """The video that results were made from, or None if it is nowhere.

    Args:
        source: What it was called then: a file, a folder, or the number of a camera.
        image_size: Width and height of its frames; another video of the same name is left aside.
        folders: Where to look for its file name too.
    """
    for place in [Path(source), *(folder / Path(source).name for folder in folders)]:
        pictures = _open(place)
        if pictures is not None and pictures.image_size == image_size:
            return pictures
    return None


def _open(place: Path) -> FilePictures | FolderPictures | None:
    try:
        if place.is_dir():
            return FolderPictures(place)
        if place.is_file() and place.suffix.lower() in VIDEO_SUFFIXES:
            return FilePictures(place)
    except (InputError, MissingExtraError):  # without a backdrop the people are still worth seeing
        return None
    return None
