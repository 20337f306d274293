"""Labels of the Ego-Exo4D hand pose benchmark, made of the release's raw annotations.

A raw annotation has joints in the world frame (metres) and their marks in the pictures of several
cameras. The benchmark keeps those of the person's own camera, checked three ways: bones and angles
of a human hand, projection into the picture, and agreement with the marks.

Camera pixels put integers on pixel centres. Arrays are in the joint order of
`kinemesh.skeletons.HAND21`; NaN stands for a joint that is not there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError
from kinemesh.geometry.fisheye import EGO_EXO4D_VIEW
from kinemesh.skeletons import HAND21

Float = NDArray[np.floating]
Annotations = Literal["manual", "auto"]
Hand = dict[str, Any]

SIDES = ("right", "left")
"""In the order of the files and of the samples."""
JOINTS = len(HAND21)
SIZE_PX = EGO_EXO4D_VIEW.size
MIN_VIEWS = 3
"""A joint that people marked counts if it was seen from so many cameras."""
_LAST_PX = SIZE_PX - 1

_BASES = np.array([5, 9, 13, 17])  # of the four fingers; the thumb's base has a short bone
_SHORT_M, _PALM_M = (0.005, 0.08), (0.06, 0.12)
_PARENTS = np.array(HAND21.parents[1:])
_BENT = np.array([j for j in range(1, JOINTS) if j % 4])  # joints with a next one on their finger
_MIN_ANGLES_DEG = np.array([100, 90, 90] + 4 * [60, 70, 80], dtype=np.float64)
_TEST_ENLARGED, _TEST_VARIED = 1.5, 0.1


@dataclass(frozen=True)
class LabelRules:
    """What decides which joints and hands are kept.

    Attributes:
        annotations: "manual" (marked by people) or "auto" (found by a program).
        portrait: Labels for upright pictures; the raw ones lie on their side. 3D joints stay in the
            camera's axes.
        min_joints: Valid joints that a hand needs.
        padding_px: Added around the joints to make the box (training and validation).
        max_reprojection_px: Largest distance between a mark and the projected joint.

    Raises:
        InputError: A value makes no sense.
    """

    annotations: Annotations = "manual"
    portrait: bool = False
    min_joints: int = 10
    padding_px: float = 20.0
    max_reprojection_px: float = 30.0

    def __post_init__(self) -> None:
        if self.annotations not in get_args(Annotations):
            raise InputError(f"annotations: expected manual or auto, found {self.annotations!r}.")
        if not 1 <= self.min_joints <= JOINTS:
            raise InputError(f"min_joints: expected 1 to {JOINTS}, found {self.min_joints}.")
        if min(self.padding_px, self.max_reprojection_px) < 0:
            raise InputError("padding_px, max_reprojection_px: expected numbers from 0 up.")


@dataclass(frozen=True, eq=False)
class EgoCamera:
    """The person's own camera in one take.

    Attributes:
        name: Its name in the annotations, for example ``"aria01"``.
        intrinsics: (3, 3) of the undistorted picture.
        extrinsics: (3, 4) world to camera, by frame number.
        shown: (512, 512) bool: which pixels of the landscape picture show something.
    """

    name: str
    intrinsics: Float
    extrinsics: Mapping[str, Float]
    shown: NDArray[np.bool_]


def label_frame(
    frame: str,
    annotation: Mapping[str, Any],
    camera: EgoCamera,
    rules: LabelRules,
    draw: np.random.RandomState | None = None,
) -> dict[str, Any] | None:
    """The benchmark's entry of one frame, without its metadata.

    Args:
        frame: Its number, as a key of the annotation file.
        annotation: Its raw annotation with ``annotation2D`` and ``annotation3D``.
        camera: The camera of the picture.
        rules: What is kept.
        draw: Varies the boxes at random, as the test split needs it: their size tells nothing of
            the joints then. None makes the boxes of training and validation.

    Returns:
        ``<side>_hand_3d``, ``_2d``, ``_bbox`` and ``_valid_3d`` of both sides, right first; empty
        lists for a hand that is not kept. None where no hand is kept, or nothing is known.
    """
    joints = annotation.get("annotation3D") or {}
    if not joints or frame not in camera.extrinsics:
        return None
    marks = (annotation.get("annotation2D") or {}).get(camera.name) or {}
    entry: dict[str, Any] = {}
    for side in SIDES:
        least = MIN_VIEWS if rules.annotations == "manual" else None
        world = plausible_joints(read_joints(joints, side, "xyz", least))
        marked = read_joints(marks, side, "xy")
        hand = label_hand(world, marked, camera, camera.extrinsics[frame], rules, draw)
        entry |= {f"{side}_hand_{name}": value for name, value in hand.items()}
    return entry if any(entry[f"{side}_hand_bbox"] for side in SIDES) else None


def read_joints(
    joints: Mapping[str, Any], side: str, axes: str, min_views: int | None = None
) -> Float:
    """Points (21, D) float32 of one hand; NaN where a joint is missing or seen by too few cameras.

    Args:
        joints: ``{"right_wrist": {"x": ..., "y": ...}, ...}``.
        side: "right" or "left".
        axes: "xy" or "xyz".
        min_views: Least ``num_views_for_3d``; None: any.

    Raises:
        InputError: A joint has no numbers.
    """
    points = np.full((JOINTS, len(axes)), np.nan, dtype=np.float32)
    for row, joint in enumerate(HAND21.joints):
        entry = joints.get(f"{side}_{joint}")
        if entry is None:
            continue
        try:
            if min_views is None or entry["num_views_for_3d"] >= min_views:
                points[row] = [entry[axis] for axis in axes]
        except (KeyError, TypeError, ValueError) as error:
            wanted = [*axes, *(["num_views_for_3d"] if min_views is not None else [])]
            raise InputError(
                f"joint {side}_{joint}: expected numbers {', '.join(wanted)}, found "
                f"{str(entry)[:60]}. Download the annotation again."
            ) from error
    return points


def plausible_joints(points_m: Float) -> Float:
    """Joints (21, 3) of a hand with NaN for those that no human hand could have.

    A bone's length and the angle at a joint must lie within limits; both are judged by the joints
    as they came. What depends on a missing joint is not judged. Without a wrist nothing is left.
    """
    if np.isnan(points_m[0]).any():
        return np.full_like(points_m, np.nan)
    to_parent = points_m[_PARENTS] - points_m[1:]
    length = np.linalg.norm(to_parent, axis=-1)
    low, high = np.full((2, JOINTS - 1), np.array(_SHORT_M)[:, None])
    low[_BASES - 1], high[_BASES - 1] = _PALM_M
    wrong = np.zeros(JOINTS, dtype=bool)
    wrong[1:] = (length < low) | (length > high)  # false for NaN
    first, second = to_parent[_BENT - 1], points_m[_BENT + 1] - points_m[_BENT]
    first, second = (
        v / (np.linalg.norm(v, axis=-1, keepdims=True) + 1e-8) for v in (first, second)
    )
    angle = np.degrees(np.arccos(np.clip((first * second).sum(-1), -1, 1)))
    wrong[_BENT] |= angle < _MIN_ANGLES_DEG
    return np.where(wrong[:, None], np.float32(np.nan), points_m)


def label_hand(
    world_m: Float,
    marked_px: Float,
    camera: EgoCamera,
    extrinsics: Float,
    rules: LabelRules,
    draw: np.random.RandomState | None = None,
) -> Hand:
    """``3d``, ``2d``, ``bbox`` and ``valid_3d`` of one hand, or empty lists.

    Args:
        world_m: (21, 3) metres, world frame.
        marked_px: (21, 2) marks in the landscape picture.
        camera: The camera.
        extrinsics: (3, 4) of the frame.
        rules: What is kept.
        draw: As for `label_frame`.
    """
    camera_m = world_m @ extrinsics[:, :3].T + extrinsics[:, 3]
    projected = camera_m @ camera.intrinsics.T
    with np.errstate(divide="ignore", invalid="ignore"):
        projected_px: Float = projected[:, :2] / projected[:, 2:]
    shown = np.rot90(camera.shown, -1) if rules.portrait else camera.shown
    if rules.portrait:
        projected_px, marked_px = to_portrait(projected_px), to_portrait(marked_px)
    projected_px, marked_px = (_keep_shown(px, shown) for px in (projected_px, marked_px))
    gap = np.linalg.norm(projected_px - marked_px, axis=-1)
    gap[0] = 0.0  # the wrist is kept wherever it was marked
    valid = ~np.isnan(projected_px).any(axis=-1) & (gap <= rules.max_reprojection_px)
    if valid.sum() < rules.min_joints:
        return {"3d": [], "2d": [], "bbox": [], "valid_3d": []}
    kept_m = np.where(valid[:, None], camera_m, np.nan)
    kept_m[0] = camera_m[0]
    seen_px = projected_px[valid]
    box = padded_box(seen_px, rules.padding_px) if draw is None else varied_box(seen_px, draw)
    return {
        "3d": kept_m.tolist(),
        "2d": marked_px.tolist(),
        "bbox": box.tolist(),
        "valid_3d": valid.tolist(),
    }


def to_portrait(points_px: Float) -> Float:
    """Pixels (N, 2) of the landscape picture in the upright one, turned clockwise."""
    return np.stack([_LAST_PX - points_px[:, 1], points_px[:, 0]], axis=-1)


def _keep_shown(points_px: Float, shown: NDArray[np.bool_]) -> Float:
    """Points (N, 2) with NaN for those outside of the picture, or where it shows nothing."""
    within = (points_px >= 0) & (points_px < SIZE_PX)  # false for NaN
    inside = within[:, 0] & within[:, 1]
    x, y = np.where(inside[:, None], points_px, 0).astype(np.int64).T
    return np.where((inside & shown[y, x])[:, None], points_px, np.nan)


def padded_box(points_px: Float, padding_px: float) -> Float:
    """Box (4,) x1, y1, x2, y2 of training and validation around points (N, 2)."""
    corners = [points_px.min(axis=0) - padding_px, points_px.max(axis=0) + padding_px]
    box: Float = np.clip(np.concatenate(corners), 0, _LAST_PX)
    return box


def varied_box(points_px: Float, draw: np.random.RandomState) -> Float:
    """Box (4,) float32 of the test split: half as large again, then varied by up to a tenth.

    Four numbers are drawn: size and shift along x, then along y.
    """
    corners = np.zeros((2, 2))
    for axis in range(2):
        low, high = points_px[:, axis].min(), points_px[:, axis].max()
        size = (high - low) * _TEST_ENLARGED
        varied = size * draw.uniform(1 - _TEST_VARIED, 1 + _TEST_VARIED)
        center = (low + high) / 2 + size * draw.uniform(-_TEST_VARIED, _TEST_VARIED)
        corners[:, axis] = center - varied / 2, center + varied / 2
    return np.clip(corners.reshape(4), 0, _LAST_PX).astype(np.float32)
