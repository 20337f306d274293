"""What POTTER's mesh network learns from one label: places, rotations, twists and a camera.

Legend of shapes: N joints of a label, J joints that turn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

DEPTH_UNIT_M = 2.2
"""Unit of depths and of places in space."""
CROP_PX, FOCAL_PX = 256.0, 1000.0
"""Of the camera that the network speaks about, whatever the picture's own was."""
MOST_CAMERA_ERROR_M = 0.07


class CameraTarget(NamedTuple):
    """Scale s and shift (2,) in metres of the camera, whether it fits, and the mean miss in mm."""

    scale: float
    shift: Float
    valid: bool
    error_mm: float


UNKNOWN_CAMERA = CameraTarget(0.0, np.zeros(2), False, 0.0)
CAMERA_OF_PLACES = CameraTarget(1.0, np.zeros(2), False, 0.0)
"""Where nothing but places in the picture is labelled (COCO)."""


def place_targets(places: Float, visible: Float, size: int = int(CROP_PX)) -> tuple[Float, Float]:
    """Places as shares of the crop.

    Args:
        places: (N, 3) x and y in crop pixels, and depth about the root in metres; or (N, 2).
        visible: The same shape, whether each number is labelled.
        size: Side of the crop.

    Returns:
        (N, D) in -0.5 to 0.5 where inside, depth in units of 2.2 m; and weights (N, D), zero for
        the whole joint if it lies outside in any direction.
    """
    target = places.copy()
    target[:, :2] = places[:, :2] / size - 0.5
    target[:, 2:] = places[:, 2:] / DEPTH_UNIT_M
    inside = (np.abs(target) <= 0.5).all(axis=1, keepdims=True)
    return target, visible * inside


def camera_target(xyz_m: Float, uvd: Float, weight: Float) -> CameraTarget:
    """The camera that best explains places in the crop by points in space, by least squares.

    With Z = 1000 / (256 s) the camera sees ``x = 256 u (z + Z) / 1000 - tx``, which is linear in
    1 / s and tx, and likewise for y.

    Args:
        xyz_m: (N, 3) metres about the root, camera axes.
        uvd: (N, 3) targets of `place_targets`.
        weight: (N, 3) their weights; a joint counts where all three numbers do.
    """
    counts = weight.sum(axis=1) >= 3
    if counts.sum() < 2:
        return UNKNOWN_CAMERA
    uv, xyz = uvd[counts, :2], xyz_m[counts]
    known = xyz[:, :2] - CROP_PX * uv * xyz[:, 2:] / FOCAL_PX
    rows = np.zeros((2 * len(uv), 3))
    rows[0::2, 0], rows[0::2, 1] = uv[:, 0], -1
    rows[1::2, 0], rows[1::2, 2] = uv[:, 1], -1
    normal = rows.T @ rows
    if np.linalg.matrix_rank(normal) < 3:
        return UNKNOWN_CAMERA
    solution = np.linalg.solve(normal, rows.T @ known.reshape(-1))
    if not np.isfinite(solution).all() or solution[0] == 0:
        return UNKNOWN_CAMERA
    seen = CROP_PX * uv / FOCAL_PX * xyz[:, 2:] + uv * solution[0] - solution[1:]
    error = float(np.linalg.norm(seen - xyz[:, :2], axis=1).mean())
    return CameraTarget(
        float(1 / solution[0]), solution[1:], error < MOST_CAMERA_ERROR_M, 1000 * error
    )


def rotation_matrices(theta: Float) -> Float:
    """Axis times angle (J, 3) in radians to matrices (J, 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(theta, axis=1)[:, None, None]
    axis = theta / np.maximum(angle[:, :, 0], 1e-12)
    cross = np.zeros((len(theta), 3, 3))
    cross[:, 2, 1], cross[:, 0, 2], cross[:, 1, 0] = axis.T
    cross -= cross.transpose(0, 2, 1)
    identity: Float = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return identity


def quaternion_targets(theta: Float) -> Float:
    """Axis times angle (J, 3) to quaternions (J, 4) (w, x, y, z) with w of at least 5e-5."""
    m = rotation_matrices(theta)
    w = np.sqrt(np.maximum(m.trace(axis1=1, axis2=2) + 1, 1e-8)) / 2
    vector = np.stack(
        [m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], axis=1
    )
    return np.concatenate([w[:, None], vector / (4 * w[:, None])], axis=1)
