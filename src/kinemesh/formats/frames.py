"""The people of a video on disk, written frame by frame: ``kinemesh.frames`` version 1.

Of a video ``walk.mp4`` the folder of results holds:

``walk_frames.jsonl``
    JSON, one line at a time. The first line is the header: what the file is, its units, the source,
    its size and frame rate, and where the arrays lie. Each further line is a frame: its number in
    the source, its time, the camera, and for each person the track, the box, the score and the
    joints. The line of a frame is written after its arrays, in one piece.
``walk_frames/000123.npz``
    All arrays of frame 123, mesh included: a ``kinemesh.people`` .npz as of a photo
    (`kinemesh.formats.people_npz`), with two more arrays, ``tracks`` (N,) int64 and ``seen`` (N,)
    bool. Hands that stand beside bodies are in ``000123_hands.npz``; everybody of a frame is in the
    JSON line, bodies first.

To read them: ``video = FramesFile.find("out/")``, then ``len(video)`` and ``video[position]``. A
last line that is cut short, as after a power cut, is left out.

Nothing but appended lines and whole .npz files is written, so that a run that is killed loses no
frame that was finished, and a reader may look on while it runs.
"""

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kinemesh.errors import InputError
from kinemesh.files import atomic_path, write_bytes
from kinemesh.formats.people_json import FRAMES, METRE_DIGITS, PIXEL_DIGITS, UNITS
from kinemesh.formats.people_npz import encode_people_npz, read_people_npz
from kinemesh.formats.run_record import OVERLAY_ENDING, RunRecord
from kinemesh.inference.person import Person
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from kinemesh.skeletons import get_skeleton

FORMAT = "kinemesh.frames"
VERSION = 1
ENDING = "_frames"
_TIME_DIGITS = 6


@dataclass(frozen=True)
class FramesHeader:
    """The first line of a file of frames.

    Attributes:
        source: File or folder that the frames came from, or the number of a camera.
        image_size: Width and height of the frames in pixels, upright.
        frame_rate: Frames a second of the source, as far as it says; None for a camera.
        every: Every how many frames of the source one was looked at.
        options: What was asked for, for the record.
    """

    source: str
    image_size: tuple[int, int]
    frame_rate: float | None = None
    every: int = 1
    options: Mapping[str, Any] | None = None


class FrameArrays:
    """A folder with the arrays of each frame in a file of its own.

    Args:
        folder: The folder; made when the first frame is written.
        compress: Whether the arrays are compressed, which takes ten times as long.
    """

    def __init__(self, folder: str | Path, *, compress: bool = True) -> None:
        self.folder = Path(folder)
        self._compress = compress

    def write(self, frame: VideoFrame) -> None:
        """Write the arrays of a frame; each file is whole or absent, that of the bodies comes last.

        Raises:
            OSError: The folder is not writable or the disk is full.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        bodies, hands = _by_kind(frame.people)
        if hands:
            write_bytes(self._path(frame.index, hands=True), _encode(hands, frame, self._compress))
        else:
            self._path(frame.index, hands=True).unlink(missing_ok=True)
        write_bytes(self._path(frame.index), _encode(bodies, frame, self._compress))

    def has(self, index: int) -> bool:
        """Whether the frame of this number is complete."""
        return self._path(index).is_file()

    def read(self, index: int) -> VideoFrame:
        """Read a frame back, bit for bit.

        Raises:
            InputError: There is no such frame, or its file is damaged.
        """
        path, hands = self._path(index), self._path(index, hands=True)
        found = read_people_npz(path)
        extras = _extras(path)
        people = list(_tracked(found, extras, path))
        if hands.is_file():
            people += _tracked(read_people_npz(hands), _extras(hands), hands)
        width, height = extras["image_size"].tolist()
        return VideoFrame(index, float(extras["time_s"]), (width, height), tuple(people))

    def _path(self, index: int, *, hands: bool = False) -> Path:
        return self.folder / f"{index:06d}{'_hands' if hands else ''}.npz"


class FramesWriter:
    """Writes the frames of a video one after the other.

    Args:
        folder: Folder of results; made if it is not there.
        stem: Start of the file names.
        header: First line of the file; used where the file is begun.
        keep: How many frames of a file that is there already stay, for a run that goes on; the
            rest is cut off. 0 begins anew.

    Raises:
        InputError: ``keep`` is more than the file has.
    """

    def __init__(self, folder: Path, stem: str, header: FramesHeader, keep: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{stem}{ENDING}.jsonl"
        self.arrays = FrameArrays(folder / f"{stem}{ENDING}")
        if keep:
            _cut_lines(self.path, keep + 1)
        else:
            # a file that a killed process leaves behind is found there and removed
            self.arrays.folder.mkdir(exist_ok=True)
            with atomic_path(self.path, self.arrays.folder) as temporary:
                temporary.write_bytes(_line(_header(header, self.arrays.folder.name)))
        self._stream = self.path.open("ab")

    def write(self, frame: VideoFrame) -> None:
        """Write a frame: first its arrays, then its line.

        Raises:
            OSError: The folder is not writable or the disk is full.
        """
        self.arrays.write(frame)
        self._stream.write(_line(_frame(frame)))
        self._stream.flush()

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._stream.close()

    def __enter__(self) -> "FramesWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FramesFile(Sequence[VideoFrame]):
    """The frames of a video, read back when they are asked for.

    A frame is its position in the file here, which is its number in the source only where none
    was left out.

    Args:
        path: The .jsonl file.

    Attributes:
        path: The .jsonl file.
        header: Its first line.
        indices: Number of each frame in its source.
        times_s: (T,) float64 seconds.
        arrays: Where the arrays lie.

    Raises:
        InputError: The file cannot be read or is not this format and version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        lines = complete_lines(self.path)
        first = lines[0] if lines else None
        if first is None or first.get("format") != FORMAT:
            raise InputError(
                f"Expected a file of format '{FORMAT}', found something else in '{self.path}'. "
                "Such files are written by: kinemesh predict VIDEO --out DIR"
            )
        if first.get("version") != VERSION:
            raise InputError(
                f"'{self.path}' is {FORMAT} version {first.get('version')}; this release reads "
                f"version {VERSION}. Install the release that wrote it, or predict again."
            )
        try:
            self.header = _read_header(first)
            self.arrays = FrameArrays(self.path.parent / first["arrays"])
            self.indices = tuple(int(line["frame"]) for line in lines[1:])
            self.times_s = np.array([float(line["time_s"]) for line in lines[1:]])
            self._tracks = [[int(p["track"]) for p in line["people"]] for line in lines[1:]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{self.path}' says it is {FORMAT}, but a field is missing or wrong: {error!r}. "
                "Predict the video again."
            ) from error

    @classmethod
    def find(cls, place: str | Path) -> "FramesFile":
        """Open the file of frames, or the only one in a folder of results.

        Raises:
            InputError: There is none or more than one.
        """
        place = Path(place)
        if not place.is_dir():
            return cls(place)
        found = sorted(place.glob(f"*{ENDING}.jsonl"))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(
                f"Expected one file '*{ENDING}.jsonl' in '{place}', found {names}. "
                "Name the file itself."
            )
        return cls(found[0])

    @property
    def tracks(self) -> tuple[int, ...]:
        """Numbers of all tracks."""
        return tuple(sorted({track for line in self._tracks for track in line}))

    def positions_of(self, track: int) -> list[int]:
        """Positions of the frames that a track is in."""
        return [position for position, line in enumerate(self._tracks) if track in line]

    @property
    def overlay(self) -> Path | None:
        """The overlay video of these frames; None if there is none, or one of another run."""
        stem = self.path.stem.removesuffix(ENDING)
        path = self.path.with_name(f"{stem}{OVERLAY_ENDING}")
        if not path.is_file() or (self.header.options or {}).get("overlay") is False:
            return None
        try:
            record = RunRecord.read(self.arrays.folder)
        except InputError:  # nothing tells whose it is
            return None
        return path if record is None or record.has_written(path) else None

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [self[each] for each in range(*position.indices(len(self)))]
        return self.arrays.read(self.indices[position])

    def __iter__(self) -> Iterator[VideoFrame]:
        return (self.arrays.read(index) for index in self.indices)


def complete_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a JSONL file; one that ends without a line break was cut short and is left out.

    Raises:
        InputError: The file cannot be read or a complete line is not a JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror}.") from error
    rows = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"Expected JSON in line {number} of '{path}': {error}.") from error
        if not isinstance(rows[-1], dict):
            raise InputError(f"Expected a JSON object in line {number} of '{path}'.")
    return rows


def _by_kind(
    people: Sequence[TrackedPerson],
) -> tuple[list[TrackedPerson], list[TrackedPerson]]:
    """Bodies, and the hands beside them; hands alone take the place of the bodies."""
    bodies = [found for found in people if found.person.side is None]
    hands = [found for found in people if found.person.side is not None]
    return (bodies, hands) if bodies else (hands, [])


def _encode(people: Sequence[TrackedPerson], frame: VideoFrame, compress: bool) -> bytes:
    persons = [found.person for found in people]
    content = encode_people_npz(persons, frame.image_size, compress=compress)
    extras = {
        "tracks": np.array([found.track for found in people], np.int64),
        "seen": np.array([found.seen for found in people], bool),
        "time_s": np.array(frame.time_s, np.float64),
    }
    stream = io.BytesIO(content)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, array in extras.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    return stream.getvalue()


def _extras(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in ("tracks", "seen", "time_s", "image_size")}
    except KeyError as error:
        raise InputError(
            f"Expected the people of a video frame in '{path}', found no array {error}. "
            "It is the .npz of a photo; read it with read_people_npz."
        ) from error


def _tracked(
    people: Sequence[Person], extras: Mapping[str, np.ndarray], path: Path
) -> Iterator[TrackedPerson]:
    tracks, seen = extras["tracks"].tolist(), extras["seen"].tolist()
    if not len(people) == len(tracks) == len(seen):
        raise InputError(f"'{path}' is damaged: {len(people)} people, {len(tracks)} tracks.")
    for person, track, is_seen in zip(people, tracks, seen, strict=True):
        yield TrackedPerson(track, person, is_seen)


def _cut_lines(path: Path, count: int) -> None:
    """Keep the first lines of a file, in place."""
    end = -1
    content = path.read_bytes()
    for _ in range(count):
        end = content.find(b"\n", end + 1)
        if end < 0:
            raise InputError(f"Expected {count} lines in '{path}', found fewer; predict it again.")
    os.truncate(path, end + 1)


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return (text + "\n").encode()


def _header(header: FramesHeader, arrays: str) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "units": UNITS | {"time_s": "s"},
        "frames": FRAMES,
        "source": header.source,
        "width": header.image_size[0],
        "height": header.image_size[1],
        "frame_rate": header.frame_rate,
        "every": header.every,
        "options": dict(header.options or {}),
        "arrays": arrays,
    }


def _read_header(line: Mapping[str, Any]) -> FramesHeader:
    size = (int(line["width"]), int(line["height"]))
    rate, every = line["frame_rate"], int(line["every"])
    if every < 1 or min(size) < 1:
        raise ValueError(f"every {every}, size {size}")
    rate = None if rate is None else float(rate)
    return FramesHeader(str(line["source"]), size, rate, every, dict(line["options"]))


def _frame(frame: VideoFrame) -> dict[str, Any]:
    camera = frame.people[0].person.camera if frame.people else None
    bodies, hands = _by_kind(frame.people)
    return {
        "frame": frame.index,
        "time_s": round(frame.time_s, _TIME_DIGITS),
        "camera": camera
        and {"focal_px": camera.focal_px, "principal_px": list(camera.principal_px)},
        "people": [_person(found) for found in (*bodies, *hands)],
    }


def _person(found: TrackedPerson) -> dict[str, Any]:
    person = found.person
    names = get_skeleton(person.skeleton).joints
    cameras = _rounded(person.joints, METRE_DIGITS) if person.has_depth else [None] * len(names)
    joints = {
        name: {"px": px, "camera": camera, "confidence": confidence}
        for name, px, camera, confidence in zip(
            names,
            _rounded(person.joints_px, PIXEL_DIGITS),
            cameras,
            _rounded(person.joint_confidence, 4),
            strict=True,
        )
    }
    return {
        "track": found.track,
        "seen": found.seen,
        "side": person.side,
        "score": round(float(person.score), 4),
        "box_px": _rounded(np.array(person.box_px), PIXEL_DIGITS),
        "skeleton": person.skeleton,
        "joints": joints,
    }


def _rounded(values: np.ndarray, digits: int) -> Any:
    return np.asarray(values, dtype=np.float64).round(digits).tolist()
