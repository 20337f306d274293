"""A whole video as files that other tools open: skeletons, animated meshes, tables.

The frames come from the files that `kinemesh predict VIDEO` writes (`kinemesh.formats.frames`), one
after the other, so that memory does not grow with the pictures; only parameters are kept.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.errors import InputError
from kinemesh.files import atomic_path
from kinemesh.formats import PARAMETER_FORMATS, check_folder
from kinemesh.formats.bvh import encode_bvh
from kinemesh.formats.coco_json import coco_rows
from kinemesh.formats.contents import STILL_S, Bodies, find_body
from kinemesh.formats.joints_csv import encode_joints_csv
from kinemesh.formats.names import check_targets
from kinemesh.formats.skinned_glb import encode_skinned_glb
from kinemesh.formats.video_names import EXPORT_ENDINGS, track_ending
from kinemesh.inference.video_frame import VideoFrame

VideoFormat = Literal["csv", "coco", "bvh", "skinned"]
VIDEO_FORMATS: tuple[VideoFormat, ...] = get_args(VideoFormat)

Tracks = dict[int, dict[int, BodyParameters]]
"""Of each track the parameters by the position of the frame."""


def export_video(
    frames: Iterable[VideoFrame],
    out_dir: str | Path,
    stem: str,
    formats: Sequence[VideoFormat] = VIDEO_FORMATS,
    bodies: Bodies | None = None,
    unfinished: Path | None = None,
) -> list[Path]:
    """Write a video's people as ``<stem>_joints.csv`` and so on; all of the files or none.

    ``_joints.csv`` has the joints of all frames, ``_coco.json`` the 2D keypoints of all frames with
    the number of the frame as image_id, ``_skinned.glb`` all tracks in one animation, and
    ``_track_1.bvh`` one track, from its first frame to its last. Times begin at 0 with the first
    frame. BVH knows one step of time, that between most frames; each frame goes to the nearest
    step, and a step without a frame holds the pose before it.

    Args:
        frames: A `kinemesh.formats.frames.FramesFile`, or frames in their order.
        out_dir: Folder; made if it is not there.
        stem: Start of the file names.
        formats: Which files to write.
        bodies: Bodies of the parameters that are not shipped, by name.
        unfinished: Folder on the same disk in which files lie until they are whole; None lets them
            lie beside their places.

    Returns:
        The written files.

    Raises:
        InputError: A format is unknown; for BVH or GLB, nobody is in any frame, somebody has no
            parameters or changes shape; or a JSON file of that name is not ours.
        OSError: The folder is not writable or the disk is full.
    """
    unknown = [name for name in formats if name not in VIDEO_FORMATS]
    if unknown:
        known = ", ".join(VIDEO_FORMATS)
        raise InputError(f"Unknown format {unknown[0]!r} of a video; expected some of {known}.")
    folder = Path(out_dir)
    check_folder(folder)
    names = [name for name in ("csv", "coco") if name in formats]
    tables = {name: folder / f"{stem}{EXPORT_ENDINGS[name]}" for name in names}
    check_targets(list(tables.values()), [], None)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as moves:  # moves all files when it closes, after the last was written
        streams = {
            name: moves.enter_context(_opened(path, unfinished)) for name, path in tables.items()
        }
        moving = any(name in PARAMETER_FORMATS for name in formats)
        tracks, times_s = _read(frames, streams, moving)
        encoded = _encode(tracks, times_s, formats, bodies or {}) if moving else {}
        paths = {folder / f"{stem}{ending}": content for ending, content in encoded.items()}
        for path, content in paths.items():
            moves.enter_context(atomic_path(path, unfinished)).write_bytes(content)
    return [*tables.values(), *paths]


@contextmanager
def _opened(path: Path, unfinished: Path | None) -> Iterator[BinaryIO]:
    with atomic_path(path, unfinished) as temporary, temporary.open("wb") as stream:
        yield stream


def _read(
    frames: Iterable[VideoFrame], streams: Mapping[str, BinaryIO], moving: bool
) -> tuple[Tracks, np.ndarray]:
    """Write the tables frame by frame, and keep the parameters if they are wanted."""
    tracks: Tracks = {}
    times: list[float] = []
    rows = 0
    for position, frame in enumerate(frames):
        times.append(frame.time_s)
        people = [found.person for found in frame.people]
        if "csv" in streams:
            numbers = [found.track for found in frame.people]
            time_s = frame.time_s - times[0]
            text = encode_joints_csv(people, frame.index, time_s, numbers, header=position == 0)
            streams["csv"].write(text)
        if "coco" in streams:
            for row in coco_rows(people, frame.index):
                start = ",\n" if rows else "["
                streams["coco"].write((start + json.dumps(row, allow_nan=False)).encode())
                rows += 1
        for found in frame.people if moving else ():
            if found.person.parameters is None:
                raise InputError(
                    f"BVH and skinned GLB files hold the pose of a body model, but track "
                    f"{found.track} has no parameters in frame {frame.index}. Predict the video "
                    "with --parameters."
                )
            tracks.setdefault(found.track, {})[position] = found.person.parameters
    if "coco" in streams:
        streams["coco"].write(b"]\n" if rows else b"[]\n")
    return tracks, np.array(times) - (times[0] if times else 0.0)


def _encode(
    tracks: Tracks, times_s: np.ndarray, formats: Sequence[str], bodies: Bodies
) -> dict[str, bytes]:
    """Contents by the ending of the file's name."""
    if not tracks:
        raise InputError("BVH and skinned GLB files need a person, but nobody is in any frame.")
    found = {track: find_body(_any(known).body, bodies) for track, known in tracks.items()}
    encoded = {}
    if "bvh" in formats:
        step_s = float(np.median(np.diff(times_s))) if len(times_s) > 1 else STILL_S
        for track, known in sorted(tracks.items()):
            frames = _even(known, times_s, step_s)
            encoded[track_ending(track)] = encode_bvh(found[track], frames, step_s)
    if "skinned" in formats:
        order = sorted(tracks)
        people = [[tracks[track].get(k) for k in range(len(times_s))] for track in order]
        names = [f"track_{track}" for track in order]
        encoded[EXPORT_ENDINGS["skinned"]] = encode_skinned_glb(
            [found[track] for track in order], people, times_s.tolist(), names
        )
    return encoded


def _any(known: Mapping[int, BodyParameters]) -> BodyParameters:
    return next(iter(known.values()))


def _even(
    known: Mapping[int, BodyParameters], times_s: np.ndarray, step_s: float
) -> list[BodyParameters | None]:
    """A track at even steps of time, from its first frame to its last."""
    start = times_s[min(known)]
    steps = {
        round(float(times_s[position] - start) / step_s): known[position] for position in known
    }
    return [steps.get(step) for step in range(max(steps) + 1)]
