"""Joints and bones of a person as points and lines with colours."""

from dataclasses import dataclass

import numpy as np

from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.rendering.overlay import FINGER_COLORS, SIDE_COLORS
from kinemesh.skeletons import Skeleton, get_skeleton

LEAST_CONFIDENCE = 0.3
"""Joints found in the image alone are left out below it, as on overlays. Those in 3D come from one
body as a whole and are all shown, as in views of them."""
_BONE_WIDTH = 0.009
"""Over the extent of the person: 1.5 cm for a body of 1.7 m."""


@dataclass(frozen=True, eq=False)
class SkeletonLines:
    """What is drawn of the J joints and N bones of a person.

    Joints that are left out lie on one that is not, and their bones have no length: the arrays keep
    their shapes, so that a video only ever moves points.

    Attributes:
        points: (J, 3) float32 metres.
        point_colors: (J, 3) uint8.
        lines: (N, 2, 3) float32 ends of the bones.
        line_colors: (N, 2, 3) uint8.
        width_m: Width of a bone.
    """

    points: np.ndarray
    point_colors: np.ndarray
    lines: np.ndarray
    line_colors: np.ndarray
    width_m: float


def skeleton_lines(person: Person, flat_depth_m: float) -> SkeletonLines | None:
    """Lines and points of a person, or None if no joint is sure enough.

    Args:
        person: Anybody; joints that were found in the image alone are put on a plane.
        flat_depth_m: Depth of that plane.
    """
    skeleton = get_skeleton(person.skeleton)
    points = joint_places(person, flat_depth_m)
    sure = np.isfinite(points).all(axis=1)
    if not person.has_depth:
        sure = sure & (person.joint_confidence >= LEAST_CONFIDENCE)
    if not sure.any():
        return None
    points = np.where(sure[:, None], points, points[np.argmax(sure)]).astype(np.float32)
    colors = _joint_colors(skeleton)
    bones = np.array(skeleton.bones, np.int64).reshape(-1, 2)
    both = sure[bones[:, 0]] & sure[bones[:, 1]]
    ends = np.where(both[:, None], bones, bones[:, :1])
    extent = float(np.ptp(points, axis=0).max())
    return SkeletonLines(points, colors, points[ends], colors[bones], _BONE_WIDTH * extent)


def joint_places(person: Person, flat_depth_m: float) -> np.ndarray:
    """(J, 3) joints in the camera frame; those without a depth are put on a plane."""
    return person.joints if person.has_depth else _at_depth(person, flat_depth_m)


def _at_depth(person: Person, depth_m: float) -> np.ndarray:
    """Joints (J, 2) of the image on the plane that is seen there at this depth."""
    camera: PhotoCamera = person.camera
    sideways = (person.joints_px - np.asarray(camera.principal_px)) * (depth_m / camera.focal_px)
    return np.concatenate([sideways, np.full((len(sideways), 1), depth_m)], axis=1)


def _joint_colors(skeleton: Skeleton) -> np.ndarray:
    """(J, 3) uint8: left orange, right blue, the middle green; a colour for each finger."""
    parts = [name.split("_", maxsplit=1)[0] for name in skeleton.joints]
    colors = [FINGER_COLORS.get(part) or SIDE_COLORS.get(part, SIDE_COLORS[""]) for part in parts]
    return np.round(255 * np.array(colors)).astype(np.uint8)
