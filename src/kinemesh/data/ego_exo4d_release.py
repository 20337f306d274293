"""The files of an Ego-Exo4D download that its hand pose benchmark is made of.

=====================================================  ============================================
``takes.json``                                         takes with their cameras
``annotations/splits.json``                            which take belongs to which split
``annotations/ego_pose/<split>/hand/annotation``       raw annotations by people, ``<uid>.json``
``annotations/ego_pose/<split>/hand/automatic``        raw annotations by a program
``annotations/ego_pose/<split>/camera_pose``           camera poses, ``<uid>.json``
``takes/<name>/frame_aligned_videos/<cam>_214-1.mp4``  the video of the glasses
``takes/<name>/<cam>*.vrs``                            their recording, which has the calibration
=====================================================  ============================================
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.data.aria_calibration import (
    Calibration,
    calibration_of_recording,
    read_calibration,
)
from kinemesh.data.ego_exo4d import Split
from kinemesh.data.ego_exo4d_labels import Annotations, EgoCamera
from kinemesh.errors import InputError

BENCHMARK = "ego_pose"
_VIDEO = "frame_aligned_videos/{camera}_214-1.mp4"


@dataclass(frozen=True)
class Take:
    """One take of the release.

    Attributes:
        uid: Its key in all files.
        name: Its folder.
        camera: Name of the glasses' camera.
    """

    uid: str
    name: str
    camera: str


class Release:
    """An unpacked download.

    Args:
        folder: The one with ``takes.json``, ``annotations`` and ``takes``.
        calibrations: Folder with ``<take name>.json`` for takes whose recording is not there, as
            the tag ``calib_json`` of the recording has it; None: only recordings.

    Raises:
        InputError: The folder has no ``takes.json``.
    """

    def __init__(self, folder: str | Path, calibrations: str | Path | None = None) -> None:
        self.folder = Path(folder)
        self.calibrations = None if calibrations is None else Path(calibrations)
        if not (self.folder / "takes.json").is_file():
            raise InputError(
                f"'{folder}': expected takes.json of an Ego-Exo4D download, found no such file. "
                "Name the folder that the downloader wrote to."
            )

    @cached_property
    def takes(self) -> Mapping[str, Mapping[str, Any]]:
        """The entries of ``takes.json`` by uid."""
        path = self.folder / "takes.json"
        entries = _read_json(path)
        if not isinstance(entries, list) or not all("take_uid" in entry for entry in entries):
            raise InputError(f"'{path}': expected a list of takes, each with take_uid.")
        return {entry["take_uid"]: entry for entry in entries}

    def take(self, uid: str) -> Take:
        """A take by its uid.

        Raises:
            InputError: There is no such take, or it has no camera of its own.
        """
        if uid not in self.takes:
            raise InputError(
                f"'{self.folder / 'takes.json'}' has no take {uid}. Download the metadata again."
            )
        return Take(uid, self.takes[uid]["take_name"], ego_camera(self.takes[uid]))

    def uids(self, split: Split, annotations: Annotations) -> tuple[str, ...]:
        """Takes of a split with annotations and camera poses, sorted.

        Raises:
            InputError: ``splits.json`` is missing or damaged.
        """
        path = self.folder / "annotations" / "splits.json"
        splits = _read_json(path)
        try:
            listed = set(splits["split_to_take_uids"][split])
            benchmarks = splits["take_uid_to_benchmark"]
            posed = {uid for uid in listed if BENCHMARK in benchmarks.get(uid, ())}
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"'{path}': expected split_to_take_uids with {split}, and take_uid_to_benchmark, "
                f"found no {error}. Download the annotations again."
            ) from error
        folders = (self._annotations(split, annotations), self._poses(split))
        return tuple(sorted(posed.intersection(*map(_uids_in, folders))))

    def annotation(self, split: Split, annotations: Annotations, take: Take) -> dict[str, Any]:
        """Raw annotation of a take, ``{frame: {"annotation2D": ..., "annotation3D": ...}}``.

        Raises:
            InputError: It is missing or damaged.
        """
        path = self._annotations(split, annotations) / f"{take.uid}.json"
        content = _read_json(path)
        if not (isinstance(content, dict) and all(isinstance(x, list) for x in content.values())):
            raise InputError(f"'{path}': expected {{frame: [{{...}}]}}. Download it again.")
        # a frame holds a list of one; the list of a frame without annotation is empty
        return {frame: rows[0] for frame, rows in content.items() if rows}

    def camera(self, split: Split, take: Take, shown: NDArray[np.bool_]) -> EgoCamera:
        """The glasses' camera of a take.

        Args:
            split: Its split.
            take: The take.
            shown: (512, 512) which pixels of the landscape picture show something.

        Raises:
            InputError: The poses are missing or damaged.
        """
        path = self._poses(split) / f"{take.uid}.json"
        content = _read_json(path)
        try:
            entry = content[take.camera]
            intrinsics = np.array(entry["camera_intrinsics"], dtype=np.float32).reshape(3, 3)
            extrinsics = {
                frame: np.array(pose, dtype=np.float32).reshape(3, 4)
                for frame, pose in entry["camera_extrinsics"].items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"'{path}': expected camera_intrinsics (3 x 3) and camera_extrinsics (3 x 4 a "
                f"frame) of {take.camera}, found {error}. Download the camera poses again."
            ) from error
        return EgoCamera(take.camera, intrinsics, extrinsics, shown)

    def calibration(self, take: Take) -> Calibration | None:
        """The calibration in video pixels; None where there is neither file nor recording.

        Raises:
            InputError: The file is damaged.
            MissingExtraError: There is a recording alone, and ``projectaria-tools`` is missing.
        """
        if self.calibrations is not None:
            path = self.calibrations / f"{take.name}.json"
            if path.is_file():
                return read_calibration(path)
        recordings = sorted((self.folder / "takes" / take.name).glob(f"{take.camera}*.vrs"))
        return calibration_of_recording(recordings[0]) if recordings else None

    def video(self, take: Take) -> Path:
        """The frame-aligned video of the glasses; it need not be there."""
        return self.folder / "takes" / take.name / _VIDEO.format(camera=take.camera)

    def _annotations(self, split: Split, annotations: Annotations) -> Path:
        kind = "automatic" if annotations == "auto" else "annotation"
        return self._ego_pose(split) / "hand" / kind

    def _poses(self, split: Split) -> Path:
        return self._ego_pose(split) / "camera_pose"

    def _ego_pose(self, split: Split) -> Path:
        return self.folder / "annotations" / BENCHMARK / split


def ego_camera(take: Mapping[str, Any]) -> str:
    """Name of the glasses' camera of an entry of ``takes.json``.

    Raises:
        InputError: There is none, or several that cannot be told apart.
    """
    cameras = (take.get("capture") or {}).get("cameras") or []
    # some releases write the flag as text
    own = [camera["cam_id"] for camera in cameras if str(camera.get("is_ego")).lower() == "true"]
    found = own
    if len(found) > 1:
        found = [name for name in found if name in (take.get("frame_aligned_videos") or {})]
    if len(found) > 1:
        found = [name for name in found if "aria" in name.lower()]
    if len(found) != 1:
        raise InputError(
            f"takes.json, take {take.get('take_uid')}: expected one camera of the person (is_ego) "
            f"with a frame-aligned video, found {', '.join(own) or 'none'}."
        )
    return str(found[0])


def _uids_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.json")}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"Cannot read '{path}': {error.strerror}. Download this part of Ego-Exo4D, too."
        ) from error
    except ValueError as error:
        raise InputError(f"'{path}': expected JSON, found a damaged file ({error}).") from error
