"""From a crop's root frame to the camera frame of the whole photo: where the person stands."""

import numpy as np
import torch

from kinemesh.errors import InputError
from kinemesh.geometry.cameras import PerspectiveCamera, solve_translation

NEAR_M = 0.05  # no joint comes closer to the camera than this
FAR_M = 1000.0


def place_in_camera(
    joints: np.ndarray,
    joints_px: np.ndarray,
    focal_px: float,
    principal_px: tuple[float, float],
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Find the translation that makes 3D joints project on 2D joints, always before the camera.

    The answer is that of `kinemesh.geometry.cameras.solve_translation`, which is exact for joints
    and pixels that agree. Where it has none, or puts a joint nearer than ``NEAR_M`` or farther than
    ``FAR_M`` (joints and pixels contradict each other), the depth comes from weak perspective, the
    focal length times the ratio of the spreads in metres and pixels, cut to these limits.

    Args:
        joints: (J, 3) metres, camera axes, any origin.
        joints_px: (J, 2) image pixels.
        focal_px: Focal length of the photo in pixels.
        principal_px: Principal point of the photo in pixels.
        weights: (J,) not negative, None for equal; all zeros count as equal.

    Returns:
        (3,) translation in metres; every joint plus it has z >= ``NEAR_M``.
    """
    joints = np.asarray(joints, dtype=float)
    offset_px = np.asarray(joints_px, dtype=float) - np.asarray(principal_px)
    if weights is None or not np.any(weights > 0):
        weights = np.ones(len(joints))
    nearest = float(joints[:, 2].min())
    translation = _solve(joints, offset_px, focal_px, weights)
    if translation is not None and NEAR_M - nearest <= translation[2] <= FAR_M:
        return translation
    depth = _depth_from_spread(joints, offset_px, focal_px, weights)
    depth = float(np.clip(depth, NEAR_M - nearest, max(FAR_M, NEAR_M - nearest)))
    sideways = offset_px * (joints[:, 2:] + depth) / focal_px - joints[:, :2]
    return np.array([*np.average(sideways, axis=0, weights=weights), depth])


def _solve(
    joints: np.ndarray, offset_px: np.ndarray, focal_px: float, weights: np.ndarray
) -> np.ndarray | None:
    camera = PerspectiveCamera(
        torch.full((2,), focal_px, dtype=torch.float64),
        torch.zeros(2, dtype=torch.float64),
        (1, 1),
    )
    points, pixels, weighting = (
        torch.from_numpy(np.asarray(values, dtype=float))[None]
        for values in (joints, offset_px, weights)
    )
    try:
        solved = solve_translation(points, pixels, camera, weighting)
    except InputError:  # all pixels coincide: there is no depth to solve for
        return None
    return np.asarray(solved[0].numpy())


def _depth_from_spread(
    joints: np.ndarray, offset_px: np.ndarray, focal_px: float, weights: np.ndarray
) -> float:
    spread_m, spread_px = _spread(joints[:, :2], weights), _spread(offset_px, weights)
    mean = float(np.average(joints[:, 2], weights=weights))
    return focal_px * spread_m / max(spread_px, 1e-6) - mean


def _spread(points: np.ndarray, weights: np.ndarray) -> float:
    centred = points - np.average(points, axis=0, weights=weights)
    return float(np.sqrt(np.average((centred**2).sum(1), weights=weights)))
