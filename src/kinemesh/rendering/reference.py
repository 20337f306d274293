"""The slow, obvious twin of :mod:`kinemesh.rendering.rasterizer`: one face and one pixel at a time.

It works in doubles and is meant for tests and for reading.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kinemesh.rendering.rasterizer import NEAR_M

Array = NDArray[np.float64]


class Picture(NamedTuple):
    """One image: face (H, W) int64, barycentric (H, W, 3) and depth (H, W) in doubles."""

    face: NDArray[np.int64]
    barycentric: Array
    depth: Array


def rasterize(
    points_px: Array, faces: NDArray[np.int64], height: int, width: int, *, cull: bool = False
) -> Picture:
    """Rasterise one mesh; arguments as in the fast twin, without the batch axis."""
    face_map = np.full((height, width), -1, dtype=np.int64)
    weight_map = np.zeros((height, width, 3))
    depth_map = np.full((height, width), np.inf)
    for index, face in enumerate(faces):
        corners = np.asarray(points_px, dtype=np.float64)[face]
        if not is_drawn(corners, cull=cull):
            continue
        for row, column in np.ndindex(height, width):
            weight = screen_weights(corners, column + 0.5, row + 0.5)
            if weight.min() < 0:
                continue
            surface_weight, depth = to_surface(weight, corners)
            if depth < depth_map[row, column]:
                face_map[row, column] = index
                weight_map[row, column] = surface_weight
                depth_map[row, column] = depth
    return Picture(face_map, weight_map, depth_map)


def is_drawn(corners: Array, *, cull: bool) -> bool:
    """Whether a triangle (3, 3) is in front of the near plane, not degenerate, and not culled."""
    if not np.isfinite(corners).all() or corners[:, 2].min() <= NEAR_M:
        return False
    area = signed_area(corners[0], corners[1], corners[2])
    return bool(area < 0 if cull else area != 0)


def signed_area(a: Array, b: Array, c: Array) -> float:
    """Twice the signed area of a screen triangle; negative for a front face, as y points down."""
    return float((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))


def screen_weights(corners: Array, x: float, y: float) -> Array:
    """(3,) barycentric weights of a pixel position within the flat screen triangle."""
    position = np.array([x, y, 0.0])
    a, b, c = corners
    parts = (
        signed_area(position, b, c),
        signed_area(a, position, c),
        signed_area(a, b, position),
    )
    return np.array(parts) / signed_area(a, b, c)


def to_surface(weight: Array, corners: Array) -> tuple[Array, float]:
    """Weights on the surface in space, and depth, of screen weights.

    1/z is linear on the screen (e.g. Heckbert, "Fundamentals of texture mapping", 1989), so each
    weight is divided by its vertex's depth and the sum is scaled to one.
    """
    over_depth = weight / corners[:, 2]
    return over_depth / over_depth.sum(), float(1 / over_depth.sum())
