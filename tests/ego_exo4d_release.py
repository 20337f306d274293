"""A tiny Ego-Exo4D download: two hands that move before a fisheye camera, in the official form.

Its videos show a bright dot at each joint, where the fisheye camera sees it, so a prepared picture
must have the dot where the pin-hole camera of the labels sees the joint.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.geometry.fisheye import Fisheye624
from kinemesh.skeletons import HAND21

RADIAL = [0.4, -0.48, 0.17, 1.13, -1.54, 0.58]
SMALL = [5e-4, -3e-4, 7e-4, -2e-4, -4e-4, 1e-4]
SENSOR = [1220.0, 1458.3, 1449.1, *RADIAL, *SMALL]
VIDEO = [610.0, (1458.3 - 32.5) / 2, (1449.1 - 32.5) / 2, *RADIAL, *SMALL]
"""The same camera in pixels of the released video."""
INTRINSICS = [[150.0, 0.0, 255.5], [0.0, 150.0, 255.5], [0.0, 0.0, 1.0]]
VIDEO_FRAMES = 4
FRAMES = (0, 2, 3)
SIDES = ("right", "left")


def hand(side: str, frame: int = 0, take: int = 0) -> NDArray[np.float64]:
    """(21, 3) metres, camera frame: fingers spread like a fan, a little bent."""
    joints = np.zeros((21, 3))
    for finger in range(5):
        angle = np.radians(-50 + 22 * finger)
        direction = np.array([np.sin(angle), -np.cos(angle), 0.2])
        direction /= np.linalg.norm(direction)
        lengths = [0.045, 0.035, 0.03, 0.025] if finger == 0 else [0.085, 0.035, 0.025, 0.02]
        place = np.zeros(3)
        for bone, length in enumerate(lengths):
            place = place + length * (direction + np.array([0, 0, 0.15 * bone]))
            joints[1 + 4 * finger + bone] = place
    if side == "left":
        joints[:, 0] *= -1
    sign = 1 if side == "right" else -1
    turn = np.radians(8.0 * frame + 5 * take) * sign
    cos, sin = np.cos(turn), np.sin(turn)
    joints = joints @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1.0]])
    return joints + np.array([0.13 * sign, 0.06, 0.33 + 0.01 * frame])


def extrinsics(frame: int) -> NDArray[np.float64]:
    """(3, 4) world to camera."""
    angle = 0.3 + 0.1 * frame
    cos, sin = np.cos(angle), np.sin(angle)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])
    return np.concatenate([rotation, [[0.2], [-0.1], [0.5]]], axis=1)


def pixels(joints: NDArray) -> NDArray[np.float64]:
    """Where the pin-hole camera of the labels sees points (N, 3)."""
    return joints[:, :2] / joints[:, 2:] * 150 + 255.5


@dataclass(frozen=True)
class FakeTake:
    """One take to write."""

    uid: str
    name: str
    split: str
    number: int


TAKES = (
    FakeTake("uid-b", "site_cooking_2", "train", 1),
    FakeTake("uid-a", "site_cooking_1", "train", 0),
    FakeTake("uid-c", "site_music_1", "val", 2),
    FakeTake("uid-d", "site_bike_1", "test", 3),
)


def write_release(folder: Path, videos: bool = True) -> Path:
    """Write the download and return its folder."""
    root = folder / "release"
    _write(root / "takes.json", [_take_entry(take) for take in TAKES])
    splits = {
        split: [t.uid for t in TAKES if t.split == split] for split in ("train", "val", "test")
    }
    splits["train"].append("uid-elsewhere")
    benchmark = {take.uid: ["ego_pose", "keystep"] for take in TAKES} | {"uid-elsewhere": []}
    _write(
        root / "annotations" / "splits.json",
        {"split_to_take_uids": splits, "take_uid_to_benchmark": benchmark},
    )
    for take in TAKES:
        ego_pose = root / "annotations" / "ego_pose" / take.split
        _write(ego_pose / "hand" / "annotation" / f"{take.uid}.json", annotation(take.number))
        if take.split != "test":
            auto = annotation(take.number, views=2)
            _write(ego_pose / "hand" / "automatic" / f"{take.uid}.json", auto)
        _write(ego_pose / "camera_pose" / f"{take.uid}.json", camera_pose())
        _write(folder / "calibrations" / f"{take.name}.json", calibration())
        if videos:
            write_video(root / "takes" / take.name / "frame_aligned_videos", take.number)
    return root


def annotation(take: int, views: int = 4) -> dict[str, Any]:
    """Raw annotation of a take; frame 7 has no camera pose and frame 8 nothing in 3D."""
    frames: dict[str, Any] = {}
    for frame in (*FRAMES, 7, 8):
        marks: dict[str, Any] = {}
        joints: dict[str, Any] = {}
        for side in SIDES:
            seen = hand(side, frame, take)
            world = (seen - extrinsics(frame)[:, 3]) @ extrinsics(frame)[:, :3]
            for joint, place, pixel in zip(HAND21.joints, world, pixels(seen), strict=True):
                x, y, z = place.tolist()
                joints[f"{side}_{joint}"] = {"x": x, "y": y, "z": z, "num_views_for_3d": views}
                marks[f"{side}_{joint}"] = {"x": pixel[0], "y": pixel[1], "placement": "manual"}
        if frame == FRAMES[1]:  # too few cameras saw this one
            joints["right_pinky_4"]["num_views_for_3d"] = 2
        frames[str(frame)] = [{"annotation2D": {"aria01": marks, "cam01": {}}}]
        if frame != 8:
            frames[str(frame)][0]["annotation3D"] = joints
    frames["9"] = []
    return frames


def camera_pose() -> dict[str, Any]:
    """Camera poses of a take."""
    poses = {str(frame): extrinsics(frame).tolist() for frame in (*FRAMES, 8)}
    camera = {"camera_intrinsics": INTRINSICS, "camera_extrinsics": poses}
    return {"metadata": {}, "aria01": camera, "cam01": {"camera_intrinsics": INTRINSICS}}


def calibration(parameters: list[float] | None = None) -> dict[str, Any]:
    """The device's own JSON, in pixels of the sensor."""
    projection = {"Name": "FisheyeRadTanThinPrism", "Params": parameters or SENSOR}
    slam = {"Label": "camera-slam-left", "Projection": {"Name": "x", "Params": []}}
    return {"CameraCalibrations": [slam, {"Label": "camera-rgb", "Projection": projection}]}


def write_video(folder: Path, take: int) -> Path:
    """The upright video of the glasses."""
    import av

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "aria01_214-1.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=30)
        stream.width = stream.height = 1408
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 40_000_000
        for number in range(VIDEO_FRAMES):
            upright = np.ascontiguousarray(np.rot90(fisheye_picture(number, take), -1))
            frame = av.VideoFrame.from_ndarray(upright, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def fisheye_picture(frame: int, take: int) -> NDArray[np.uint8]:
    """Landscape picture (1408, 1408, 3): white dots on grey at the joints of both hands."""
    picture = np.full((1408, 1408, 3), 70, dtype=np.uint8)
    rows, columns = np.mgrid[-8:9, -8:9]
    for side in SIDES:
        for x, y in Fisheye624(np.array(VIDEO)).project(hand(side, frame, take)):
            dot = np.hypot(columns + round(x) - x, rows + round(y) - y) <= 6
            part = picture[round(y) - 8 : round(y) + 9, round(x) - 8 : round(x) + 9]
            part[dot] = 250
    return picture


def _take_entry(take: FakeTake) -> dict[str, Any]:
    cameras = [
        {"cam_id": "aria01", "is_ego": "True"},
        {"cam_id": "aria02", "is_ego": "True"},
        {"cam_id": "cam01", "is_ego": "False"},
    ]
    return {
        "take_uid": take.uid,
        "take_name": take.name,
        "capture": {"cameras": cameras},
        "frame_aligned_videos": {"aria01": {}, "cam01": {}},
    }


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), "utf-8")
