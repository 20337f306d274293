"""Where frames come from: a video file, a folder of pictures, or a camera.

One frame is held at a time, whatever the length. Frames are upright (the rotation that a phone
writes into its files is applied), and their times are those of the file, which a phone does not
space evenly.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import ExifTags, Image

from kinemesh.errors import InputError
from kinemesh.inference.images import LoadedImage, find_images, load_image
from kinemesh.optional import require

VIDEO_SUFFIXES = frozenset(
    {".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts"}
    | {".webm", ".wmv", ".3gp"}
)
FOLDER_RATE = 25.0
"""Frames a second that the pictures of a folder are taken for where nothing else is said."""
_LOOSE_END_S = 0.25  # sound is padded, and ends later or earlier than the pictures
_ROUNDING_S = 0.002  # of the lengths and times in a file
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height


_MP4_MARK = b"ftyp"  # bytes 4 to 8 of MP4, MOV and 3GP


class DamagedVideoError(InputError):
    """A video cannot be read on from some frame; those before it came."""


@dataclass(frozen=True, eq=False)
class SourceFrame:
    """One frame.

    Attributes:
        index: Number in the source, from 0.
        time_s: Seconds since the first frame of the source.
        photo: Its pixels; None in front of the frame where the caller wanted them to begin.
    """

    index: int
    time_s: float
    photo: LoadedImage | None


class VideoSource(Protocol):
    """Frames in order.

    Attributes:
        name: File, folder or number of the camera.
        stem: Start of the names of its results.
        image_size: Width and height of the upright frames in pixels.
        frame_rate: Frames a second as far as the source says, None for a camera.
        frame_count: How many frames there are, roughly; None where nothing says it.
        is_counted: Whether this is the exact number.
        is_live: Whether frames come when they come, and never again.
    """

    name: str
    stem: str
    image_size: tuple[int, int]
    frame_rate: float | None
    frame_count: int | None
    is_counted: bool
    is_live: bool

    def frames(self, every: int = 1, first: int = 0) -> Iterator[SourceFrame]:
        """Frames 0, ``every``, 2 ``every``, ...; those before ``first`` come without pixels."""


def open_source(source: str | Path, frame_rate: float = FOLDER_RATE) -> VideoSource:
    """Open a video file, a folder of pictures, or a camera by its number (``"0"``).

    Args:
        source: Which one.
        frame_rate: Frames a second of a folder.

    Raises:
        InputError: It is not there or cannot be read, or ``frame_rate`` is not above 0.
        MissingExtraError: A file is to be read, and PyAV is not installed.
    """
    if is_camera(source):
        return CameraSource(int(str(source).strip()))
    if Path(source).is_dir():
        return FolderSource(source, frame_rate)
    return FileSource(source)


def is_camera(source: str | Path) -> bool:
    """Whether a source is the number of a camera, and there is no file of that name."""
    return re.fullmatch(r"\d{1,3}", str(source).strip()) is not None and not Path(source).exists()


def is_video_name(source: str | Path) -> bool:
    """Whether a source looks like a video file, by its suffix, or is the number of a camera."""
    return is_camera(source) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def check_frame_rate(name: str, value: float) -> None:
    """Refuse frames a second that are none.

    Raises:
        InputError: They are.
    """
    if not 0 < value < 10_000:
        raise InputError(f"{name}: expected frames a second above 0, found {value}.")


@dataclass
class _Extent:
    """How far a file was read, in seconds.

    Attributes:
        packets_s: End of the packet that ends last, of all its streams.
        first_s: Time of the first frame.
        frames_s: Time of the last frame.
        step_s: How long the last frame lasts, at least as long as the one before it did.
    """

    packets_s: float = 0.0
    first_s: float | None = None
    frames_s: float = 0.0
    step_s: float = 0.0

    def add_packet(self, packet: Any) -> None:
        if packet.size and packet.pts is not None:
            end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
            self.packets_s = max(self.packets_s, end)

    def add_frame(self, frame: Any) -> None:
        if frame.time is None:
            return
        lasts = float(frame.duration * frame.time_base) if frame.duration else 0.0
        if self.first_s is None:
            self.first_s = self.frames_s = frame.time
        self.step_s = max(lasts, frame.time - self.frames_s)
        self.frames_s = max(self.frames_s, frame.time)


class FileSource:
    """A video file, decoded by PyAV; see `VideoSource`.

    Attributes:
        has_audio: Whether the file has a sound track.

    Raises:
        InputError: The file is missing, damaged, or holds no video.
    """

    is_live = False

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name, self.stem = str(path), self.path.stem
        with self._open() as container:
            stream = container.streams.video[0]
            self.has_audio = bool(container.streams.audio)
            rate = stream.average_rate or stream.guessed_rate
            self.frame_rate: float | None = float(rate) if rate else None
            counted = int(stream.frames)
            self.frame_count = counted or self._estimate(container, stream)
            self.is_counted = counted > 0
            self.image_size = self._size_of_first(container, stream)

    def frames(self, every: int = 1, first: int = 0) -> Iterator[SourceFrame]:
        """See `VideoSource`.

        Raises:
            DamagedVideoError: The file is damaged, or of another size, from some frame on.
        """
        with self._open() as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            started: float | None = None
            decoded = self._decoded(container, stream)
            for index, frame in enumerate(decoded):
                seconds = frame.time
                if started is None:
                    started = seconds or 0.0
                if index % every:
                    continue
                passed = index / (self.frame_rate or FOLDER_RATE)
                passed = passed if seconds is None else seconds - started
                photo = LoadedImage(upright_pixels(frame)) if index >= first else None
                if photo is not None and photo.size != self.image_size:
                    raise DamagedVideoError(self._changed(index, photo.size))
                yield SourceFrame(index, float(passed), photo)

    def _decoded(self, container: Any, stream: Any) -> Iterator[Any]:
        av = require("av", "video")
        count, extent = 0, _Extent()
        try:
            for packet in container.demux():
                extent.add_packet(packet)
                if packet.stream.index == stream.index:
                    for frame in packet.decode():
                        yield frame
                        count += 1
                        extent.add_frame(frame)
        except av.error.FFmpegError as error:
            raise DamagedVideoError(
                f"'{self.path}' is damaged after frame {count}: {error}. What was found before it "
                "is kept. Copy the file again, or mend it with: ffmpeg -i FILE -c copy NEW"
            ) from error
        self._check_end(container, stream, count, extent)

    def _check_end(self, container: Any, stream: Any, count: int, extent: "_Extent") -> None:
        """Refuse the end of a file that was cut off, which decoders take for a proper end.

        Only containers whose header says how long they are can tell.
        """
        layout, step = container.format.name.split(","), extent.step_s
        if "mp4" in layout and stream.frames and stream.duration:
            # both: a trimmed film holds frames that are not shown, and its duration says so
            promised = float(stream.duration * stream.time_base)
            came = extent.frames_s - min(extent.first_s or 0.0, 0.0) + step
            is_short = count < stream.frames and promised - came > step / 2
        elif "avi" in layout and stream.frames and stream.average_rate:
            promised = float(stream.frames / stream.average_rate)
            came = extent.frames_s + step
            is_short = promised - came > 1.5 * step  # a last frame may be left out, as a repeat
        elif "matroska" in layout and container.duration:
            # the length of the longest stream; nothing says that of the pictures
            promised = container.duration / 1e6
            came = max(extent.packets_s, extent.frames_s + step)
            is_alone = len(container.streams) == 1
            loose = step / 2 + _ROUNDING_S if is_alone else max(2 * step, _LOOSE_END_S)
            is_short = promised - came > loose
        else:
            return
        if is_short:
            raise DamagedVideoError(
                f"'{self.path}' is cut off after frame {count}: it ends at {came:.2f} s of "
                f"{promised:.2f} s. What was found before it is kept. Copy the file again."
            )

    def _open(self) -> Any:
        av = require("av", "video")
        if not self.path.is_file():
            raise InputError(f"There is no video file '{self.path}'.")
        try:
            container = av.open(str(self.path))
        except av.error.InvalidDataError as error:
            raise InputError(_unreadable(self.path)) from error
        except (av.error.FFmpegError, OSError) as error:
            raise InputError(f"Expected a video in '{self.path}': {error}.") from error
        if not container.streams.video:
            container.close()
            raise InputError(f"Expected a video in '{self.path}', found no pictures in it.")
        return container

    def _size_of_first(self, container: Any, stream: Any) -> tuple[int, int]:
        frame = next(self._decoded(container, stream), None)
        if frame is None:
            raise InputError(f"Expected a video in '{self.path}', found no frame in it.")
        height, width = upright_pixels(frame).shape[:2]
        return width, height

    def _estimate(self, container: Any, stream: Any) -> int | None:
        if self.frame_rate is None:
            return None
        if stream.duration is not None:
            return int(float(stream.duration * stream.time_base) * self.frame_rate + 0.5)
        if container.duration is not None:
            return int(container.duration / 1e6 * self.frame_rate + 0.5)
        return None

    def _changed(self, index: int, size: tuple[int, int]) -> str:
        return (
            f"'{self.path}' changes its size at frame {index}, from "
            f"{self.image_size[0]}x{self.image_size[1]} to {size[0]}x{size[1]} pixels. "
            "Convert it to one size first, for example with: ffmpeg -i FILE NEW"
        )


class FolderSource:
    """The pictures of a folder in the natural order of their names (2 before 10).

    Args:
        folder: The folder.
        frame_rate: Frames a second.

    Raises:
        InputError: The folder holds no pictures, the first is damaged, they differ in size, or
            ``frame_rate`` is not above 0.
    """

    is_live = False

    def __init__(self, folder: str | Path, frame_rate: float = FOLDER_RATE) -> None:
        check_frame_rate("frame_rate", frame_rate)
        self.paths = sorted(find_images(folder), key=_natural)
        self.name = str(folder)
        self.stem = Path(folder).absolute().name
        self.frame_rate: float | None = frame_rate
        self.frame_count: int | None = len(self.paths)
        self.is_counted = True
        first = _size_in_header(self.paths[0])
        self.image_size = load_image(self.paths[0]).size if first is None else first
        for path in self.paths[1:]:
            found = _size_in_header(path)
            # a damaged one is told when its turn comes
            if found is not None and found != self.image_size:
                raise InputError(
                    f"The frames of a video have one size: '{self.paths[0].name}' has "
                    f"{self.image_size[0]}x{self.image_size[1]} pixels, '{path.name}' has "
                    f"{found[0]}x{found[1]}. Leave the option out that takes the folder for a "
                    "video, or resize the pictures."
                )

    def frames(self, every: int = 1, first: int = 0) -> Iterator[SourceFrame]:
        """See `VideoSource`.

        Raises:
            InputError: The first picture is damaged.
            DamagedVideoError: A later one is.
        """
        assert self.frame_rate is not None  # a folder always has one
        for index in range(0, len(self.paths), every):
            photo = self._load(index) if index >= first else None
            yield SourceFrame(index, index / self.frame_rate, photo)

    def _load(self, index: int) -> LoadedImage:
        try:
            return load_image(self.paths[index])
        except InputError as error:
            if index == 0:
                raise
            raise DamagedVideoError(
                f"'{self.name}' cannot be read on at frame {index}: {error} What was found before "
                "it is kept."
            ) from error


class CameraSource:
    """A camera of this machine, by its number; see `VideoSource`.

    Args:
        number: 0 for the first camera.
        open_camera: Makes a capture as OpenCV's ``VideoCapture`` does.

    Raises:
        InputError: There is no such camera, or it gives no picture.
    """

    is_live = True
    frame_rate: float | None = None
    frame_count: int | None = None
    is_counted = False

    def __init__(self, number: int, open_camera: Callable[[int], Any] | None = None) -> None:
        self.name, self.stem = str(number), f"camera{number}"
        if open_camera is None:
            import cv2  # noqa: PLC0415

            open_camera = cv2.VideoCapture
        self._capture = open_camera(number)
        picture: Any = None
        if self._capture.isOpened():
            _, picture = self._capture.read()
        if picture is None:
            self._capture.release()
            hint = " Look for one with: ls /dev/video*" if sys.platform == "linux" else ""
            raise InputError(
                f"There is no camera number {number}, or another program has it.{hint}"
            )
        self.image_size = (picture.shape[1], picture.shape[0])

    def frames(self, every: int = 1, first: int = 0) -> Iterator[SourceFrame]:
        """Frames until the camera stops; see `VideoSource`."""
        start, index = time.perf_counter(), 0
        try:
            while True:
                ok, picture = self._capture.read()
                if not ok:
                    return
                seconds = time.perf_counter() - start
                if index % every == 0:
                    pixels = np.ascontiguousarray(picture[:, :, ::-1])
                    yield SourceFrame(index, seconds, LoadedImage(pixels))
                index += 1
        finally:
            self._capture.release()


def upright_pixels(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a decoded frame, turned as the file says."""
    pixels = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4  # counter-clockwise degrees
    return np.ascontiguousarray(np.rot90(pixels, quarters))


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(int(part), "") if part.isdigit() else (-1, part.lower()) for part in parts], path.name


def _unreadable(path: Path) -> str:
    with path.open("rb") as file:
        is_mp4 = file.read(8)[4:] == _MP4_MARK
    if is_mp4:
        return (
            f"Expected a video in '{path}', found an MP4 without a readable index: the file is cut "
            "off or damaged. MP4 and MOV keep their index at the end as a rule, so that nothing of "
            "the rest can be read. Copy the file again, or repair it with a tool for MP4 files."
        )
    return (
        f"Expected a video in '{path}', found a file that is cut off, damaged or no video. "
        f"Copy it again, or look at it with: file '{path}'"
    )


def _size_in_header(path: Path) -> tuple[int, int] | None:
    """Size of the upright picture without decoding it, None if it has no readable header."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # whatever is wrong with the file, `load_image` has its proper message
        return None
    return (height, width) if turned else (width, height)
