"""3D joints as pictures: seen from the camera, from the right and from above, on plain ground.

The projection is parallel and the scale the same in all views, so lengths can be compared.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError
from kinemesh.rendering.overlay import Image, draw_skeleton
from kinemesh.skeletons import Skeleton

View = Literal["camera", "right", "above"]
Points = NDArray[np.floating]

_BACKGROUND = (236, 238, 241)
_INK = (70, 74, 82)
_BARS_CM = (1, 2, 5, 10, 20, 50, 100)
_GAP = 2
_FILL = 0.84  # of a view's side that the longest extent takes
_LEAST_M = 1e-6
VIEWS: Mapping[View, NDArray[np.float64]] = MappingProxyType(
    {
        "camera": np.array([[1.0, 0, 0], [0, 1, 0]]),
        "right": np.array([[0, 0, 1.0], [0, 1, 0]]),
        "above": np.array([[1.0, 0, 0], [0, 0, -1]]),
    }
)
"""Rows: what of x (right), y (down), z (away) runs to the right and down in a view's picture."""
_PLACES: Mapping[View, str] = MappingProxyType(
    {"camera": "the camera", "right": "the right", "above": "above"}
)


def extent_m(joints_m: Points) -> float:
    """Longest side of the box of joints (..., 3) that are finite: the measure of a view's scale."""
    rows = np.asarray(joints_m, dtype=float).reshape(-1, 3)
    rows = rows[np.isfinite(rows).all(axis=1)]
    return float((rows.max(0) - rows.min(0)).max()) if len(rows) else 0.0


def draw_joints(
    joints_m: Points,
    skeleton: Skeleton,
    view: View = "camera",
    side_px: int = 256,
    extent: float | None = None,
) -> Image:
    """Draw one set of joints.

    Args:
        joints_m: (J, 3) metres, axes of the camera: x right, y down, z away from the viewer. Joints
            that are not finite are left out with their bones.
        skeleton: The joint set.
        view: Where it is looked at from.
        side_px: Side of the picture.
        extent: Metres that fill the picture, the same for pictures that are compared; None takes
            `extent_m` of these joints.

    Returns:
        (side_px, side_px, 3) uint8 RGB; the middle of the joints' box is in the middle.

    Raises:
        InputError: The view is unknown, or the joints do not fit the skeleton.
    """
    if view not in VIEWS:
        raise InputError(f"view: expected one of {', '.join(VIEWS)}, found {view!r}.")
    joints = np.asarray(joints_m, dtype=float)
    if joints.shape != (len(skeleton), 3):
        raise InputError(
            f"joints_m: expected ({len(skeleton)}, 3) for skeleton '{skeleton.name}', found "
            f"{joints.shape}."
        )
    flat = joints @ VIEWS[view].T
    seen = flat[np.isfinite(flat).all(axis=1)]
    middle = (seen.max(0) + seen.min(0)) / 2 if len(seen) else np.zeros(2)
    scale = _FILL * side_px / max(extent_m(joints) if extent is None else extent, _LEAST_M)
    canvas = np.full((side_px, side_px, 3), _BACKGROUND, dtype=np.uint8)
    return draw_skeleton(canvas, (flat - middle) * scale + side_px / 2, skeleton)


def draw_views(joints_m: Points, skeleton: Skeleton, side_px: int = 256) -> Image:
    """All of `VIEWS` of one set of joints (J, 3), side by side: (side_px, 3 side_px + gaps, 3).

    Each says where it is looked at from; the first has a bar that tells the scale of all.
    """
    extent = extent_m(joints_m)
    pictures = [draw_joints(joints_m, skeleton, view, side_px, extent) for view in VIEWS]
    for view, picture in zip(VIEWS, pictures, strict=True):
        _write(picture, f"from {_PLACES[view]}", (6, 16))
    _draw_scale(pictures[0], _FILL * side_px / max(extent, _LEAST_M))
    return _row(pictures)


def _draw_scale(picture: Image, px_per_m: float) -> None:
    """A bar in the lower left corner, of the longest round length up to a third of the side."""
    side_px = picture.shape[0]
    fitting = [length for length in _BARS_CM if length / 100 * px_per_m <= side_px / 3]
    if not fitting:
        return
    end = 6 + round(fitting[-1] / 100 * px_per_m)
    cv2.line(picture, (6, side_px - 8), (end, side_px - 8), _INK, 2)
    _write(picture, f"{fitting[-1]} cm", (6, side_px - 14))


def _write(picture: Image, text: str, place: tuple[int, int]) -> None:
    cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, _INK, 1, cv2.LINE_AA)


def draw_comparison(
    target_m: Points, predicted_m: Points, visible: NDArray[np.bool_], skeleton: Skeleton
) -> Image:
    """Columns of hands or people: from the camera labelled and predicted, then from the right.

    Args:
        target_m: (N, J, 3) metres.
        predicted_m: (N, J, 3) metres, same frame.
        visible: (N, J), which joints are labelled; the others are left out of the labelled ones.
        skeleton: The joint set.

    Returns:
        uint8 RGB of four rows and N columns.
    """
    target = np.where(visible[..., None], target_m, np.nan)
    columns = []
    for true, own in zip(target, predicted_m, strict=True):
        extent = max(extent_m(true), extent_m(own))
        views: tuple[View, ...] = ("camera", "right")
        cells = [
            draw_joints(points, skeleton, view, 160, extent)
            for view in views
            for points in (true, own)
        ]
        columns.append(_row([cell.transpose(1, 0, 2) for cell in cells]).transpose(1, 0, 2))
    return _row(columns)


def _row(pictures: list[Image]) -> Image:
    """Pictures of one height side by side with white gaps."""
    gap = np.full((pictures[0].shape[0], _GAP, 3), 255, dtype=np.uint8)
    spaced = [part for picture in pictures for part in (picture, gap)][:-1]
    return np.ascontiguousarray(np.concatenate(spaced, axis=1))
