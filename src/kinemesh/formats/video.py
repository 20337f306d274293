"""The overlay as a video: people drawn on the frames, with the sound of the source.

The pictures are encoded in parts of some seconds, each a file of its own; at the end the parts are
joined without being encoded again. A run that was killed goes on with the part that it was in.
"""

import heapq
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kinemesh.errors import InputError
from kinemesh.files import atomic_path
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.tracking import seen_box
from kinemesh.inference.video_frame import VideoFrame
from kinemesh.optional import require
from kinemesh.rendering.overlay import TINTS, draw_mesh, draw_skeleton
from kinemesh.skeletons import get_skeleton

PART_FRAMES = 100
_TIME_BASE = Fraction(1, 90_000)
_COPIED_SOUND = frozenset({"aac", "ac3", "alac", "eac3", "flac", "mp3", "opus"})
"""Sound that an MP4 file can hold as it is; other sound becomes AAC."""


def draw_frame(
    pixels: np.ndarray, frame: VideoFrame, *, skeleton: bool = False, numbers: bool = True
) -> np.ndarray:
    """Draw the people of a frame, each track in its own colour.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        frame: Who is in it.
        skeleton: Whether to draw the joints too; those of people without a mesh always are.
        numbers: Whether the number of the track is written above everybody.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = pixels
    meshes = [found for found in frame.people if found.person.has_mesh]
    if meshes:
        camera = meshes[0].person.camera
        picture = draw_mesh(
            picture,
            [found.person.vertices for found in meshes],
            [found.person.faces for found in meshes],
            camera.focal_px,
            camera.principal_px,
            colors=[TINTS[(found.track - 1) % len(TINTS)] for found in meshes],
        )
    for found in frame.people:
        person = found.person
        if skeleton or not person.has_mesh:
            picture = draw_skeleton(
                picture, person.joints_px, get_skeleton(person.skeleton), person.joint_confidence
            )
    if not numbers or not frame.people:
        return picture
    picture = np.array(picture)
    for found in frame.people:
        _write_number(picture, found.track, seen_box(found.person).xywh)
    return picture


class OverlayVideo:
    """Encodes the pictures of a run; see `kinemesh.inference.video_run.Overlay`.

    Args:
        path: The MP4 file.
        parts: Folder for the parts, which is gone in the end.
        frame_rate: Frames a second, for the encoder; the times of the frames are kept exactly.
        sound: File whose sound track is taken; None for none.
        keep_parts: Whether parts that are there already are gone on from, or removed.
        skeleton: Whether the joints are drawn too.
        part_frames: Pictures in a part.

    Attributes:
        path: The MP4 file.
        written: Whether this object has written it.

    Raises:
        MissingExtraError: PyAV is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        parts: str | Path,
        frame_rate: float,
        sound: Path | None = None,
        *,
        keep_parts: bool = False,
        skeleton: bool = False,
        part_frames: int = PART_FRAMES,
    ) -> None:
        require("av", "video")
        self.path, self._parts = Path(path), Path(parts)
        self._rate = Fraction(frame_rate).limit_denominator(1000)
        self._sound, self._skeleton, self._part_frames = sound, skeleton, part_frames
        if not keep_parts:
            shutil.rmtree(self._parts, ignore_errors=True)
        for broken in self._parts.glob(".*"):  # a part that a killed run was in
            broken.unlink()
        self._done = len(self._finished_parts())
        self._open: _Part | None = None
        self.written = False

    @property
    def finished(self) -> int:
        """How many pictures are in finished parts."""
        return self._done * self._part_frames

    def draw(self, photo: LoadedImage, frame: VideoFrame) -> np.ndarray:
        """The picture of a frame (`draw_frame`)."""
        return draw_frame(photo.pixels, frame, skeleton=self._skeleton)

    def add(self, time_s: float, pixels: np.ndarray) -> None:
        """Encode the next picture (H, W, 3), shown from ``time_s`` on."""
        if self._open is None:
            self._parts.mkdir(parents=True, exist_ok=True)
            name = f"{self._done:05d}_{round(time_s * 1e6)}.mp4"
            self._open = _Part(self._parts / name, time_s, pixels, self._rate)
        self._open.add(time_s, pixels)
        if self._open.count == self._part_frames:
            self._close_part()

    def finish(self) -> None:
        """Join the parts and the sound, and remove the parts."""
        if self._open is not None:
            self._close_part()
        parts = self._finished_parts()
        if parts:
            with atomic_path(self.path, self._parts) as target:
                _join(target, parts, self._sound, float(1 / self._rate))
            self.written = True
        shutil.rmtree(self._parts, ignore_errors=True)  # there is none where no frame came

    def _close_part(self) -> None:
        assert self._open is not None  # only called while a part is open
        self._open.close()
        self._open = None
        self._done += 1

    def _finished_parts(self) -> list[Path]:
        return sorted(path for path in self._parts.glob("*.mp4") if not path.name.startswith("."))


class _Part:
    """One file of consecutive pictures, there under its name once it is closed."""

    def __init__(self, path: Path, start_s: float, pixels: np.ndarray, rate: Fraction) -> None:
        av = require("av", "video")
        self.count = 0
        self._start_s = start_s
        self._files = ExitStack()
        target = self._files.enter_context(atomic_path(path))
        self._container = av.open(str(target), "w", format="mp4")
        coder = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        self._stream = self._container.add_stream(coder, rate=rate)
        height, width = _even(pixels).shape[:2]
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = _TIME_BASE
        # without B-frames the parts can be joined packet by packet
        fast = {"crf": "20", "preset": "veryfast", "bf": "0"}
        self._stream.options = fast if coder == "libx264" else {"qscale": "4"}

    def add(self, time_s: float, pixels: np.ndarray) -> None:
        av = require("av", "video")
        frame = av.VideoFrame.from_ndarray(_even(pixels), format="rgb24")
        frame.pts = round((time_s - self._start_s) / _TIME_BASE)
        frame.time_base = _TIME_BASE
        self._container.mux(self._stream.encode(frame))
        self.count += 1

    def close(self) -> None:
        with self._files:
            self._container.mux(self._stream.encode())
            self._container.close()


def _join(target: Path, parts: list[Path], sound: Path | None, frame_s: float) -> None:
    """Write the pictures of all parts and the sound into one file, in the order of time."""
    av = require("av", "video")
    with ExitStack() as files:
        first = files.enter_context(av.open(str(parts[0])))
        output = files.enter_context(av.open(str(target), "w", format="mp4"))
        pictures = output.add_stream_from_template(first.streams.video[0])
        streams: list[Iterable[tuple[float, Any]]] = [_pictures(parts, pictures)]
        if sound is not None:
            source = files.enter_context(av.open(str(sound)))
            if source.streams.audio:
                end_s = _last_time(parts[-1]) + frame_s
                streams.append(_sound(source, output, end_s))
        for _, packet in heapq.merge(*streams, key=lambda entry: entry[0]):
            output.mux(packet)


def _pictures(parts: list[Path], stream: Any) -> Iterator[tuple[float, Any]]:
    av = require("av", "video")
    for path in parts:
        start_s = _start_of(path)
        with av.open(str(path)) as container:
            for packet in container.demux(container.streams.video[0]):
                if packet.dts is None:
                    continue
                shift = round(start_s / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                packet.stream = stream
                yield float(packet.dts * packet.time_base), packet


def _sound(source: Any, output: Any, end_s: float) -> Iterator[tuple[float, Any]]:
    """Packets of the sound from the first picture of the source to ``end_s`` after it."""
    stream = source.streams.audio[0]
    video = source.streams.video[0]
    start_s = float((video.start_time or 0) * video.time_base)
    copied = stream.codec_context.name in _COPIED_SOUND
    if copied:
        return _copied_sound(
            source, stream, output.add_stream_from_template(stream), start_s, end_s
        )
    coded = output.add_stream("aac", rate=stream.rate, layout=_layout(stream))
    return _coded_sound(source, stream, coded, start_s, end_s)


def _copied_sound(
    source: Any, stream: Any, target: Any, start_s: float, end_s: float
) -> Iterator[tuple[float, Any]]:
    for packet in source.demux(stream):
        if packet.pts is None:
            continue
        shift = round(start_s / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        seconds = float(packet.pts * packet.time_base)
        if seconds >= end_s:
            return
        if seconds >= 0:
            packet.stream = target
            yield seconds, packet


def _coded_sound(
    source: Any, stream: Any, target: Any, start_s: float, end_s: float
) -> Iterator[tuple[float, Any]]:
    av = require("av", "video")
    resampler = av.AudioResampler(format="fltp", layout=_layout(stream), rate=stream.rate)

    def packets(frame: Any) -> Iterator[tuple[float, Any]]:
        for packet in target.encode(frame):
            yield float(packet.pts * packet.time_base), packet

    for frame in source.decode(stream):
        seconds = float(frame.time or 0.0) - start_s
        if seconds >= end_s:
            break
        if seconds < 0:
            continue
        frame.pts = round(seconds / frame.time_base)
        for piece in resampler.resample(frame):
            yield from packets(piece)
    yield from packets(None)


def _layout(stream: Any) -> str:
    """Name of the arrangement of the channels; some files only say how many there are."""
    return {1: "mono", 2: "stereo"}.get(stream.channels, str(stream.layout.name))


def _start_of(part: Path) -> float:
    return int(part.stem.split("_")[1]) / 1e6


def _last_time(part: Path) -> float:
    av = require("av", "video")
    with av.open(str(part)) as container:
        stream = container.streams.video[0]
        times = [p.pts * p.time_base for p in container.demux(stream) if p.pts is not None]
    return _start_of(part) + float(max(times))


def _even(pixels: np.ndarray) -> np.ndarray:
    """The picture with an even number of rows and columns, as video coders want them."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)


def _write_number(picture: np.ndarray, number: int, box: tuple[float, ...]) -> None:
    height, width = picture.shape[:2]
    scale = max(min(height, width) / 600, 0.35)
    text, line = str(number), max(1, round(2 * scale))
    (text_width, text_height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, line)
    x = int(np.clip(box[0] + box[2] / 2 - text_width / 2, 0, max(width - text_width, 0)))
    y = int(np.clip(box[1] - 3, text_height + 2, height - 1))
    for colour, extra in (((20, 20, 20), 2), ((255, 255, 255), 0)):
        place = (x, y)
        cv2.putText(
            picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, line + extra, cv2.LINE_AA
        )


def check_video_target(path: Path, source: str) -> None:
    """Refuse to write the overlay over the video that it is made from, or over a folder.

    Raises:
        InputError: It would.
    """
    if path.is_dir():
        raise InputError(f"Expected to write the file '{path}', found a folder of that name.")
    if path.exists() and Path(source).exists() and path.samefile(source):
        raise InputError(
            f"The overlay would overwrite the video '{source}'. Choose another folder with --out."
        )
