"""The square crop of HybrIK's and POTTER's training data.

Pixel coordinates are OpenCV's: pixel centres lie on whole numbers. Source: Li et al., HybrIK (CVPR
2021); Zheng et al., POTTER (CVPR 2023).
"""

from typing import cast

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import InputError

Float = NDArray[np.float64]
Picture = NDArray[np.uint8]

SIDE = 256
BOX_FACTOR = 1.25
MEAN = (0.406, 0.457, 0.480)
STD = (0.225, 0.224, 0.229)
"""Statistics in the order blue, green, red, applied to red, green, blue: the published weights
were trained so, and read no other pictures well."""


def corners_of_box(box_xywh: Float, width: int, height: int) -> Float:
    """A labelled box as corners inside the picture.

    Args:
        box_xywh: (4,) left, top, width and height in pixels.
        width: Of the picture.
        height: Of the picture.

    Returns:
        (4,) left, top, right and bottom, the last pixels included.
    """
    left, top, wide, high = box_xywh
    right, bottom = left + max(wide - 1, 0), top + max(high - 1, 0)
    most = np.array([width - 1, height - 1, width - 1, height - 1], dtype=np.float64)
    return np.clip(np.array([left, top, right, bottom], dtype=np.float64), 0, most)


def square_of(corners: Float, factor: float = BOX_FACTOR) -> tuple[Float, float]:
    """The square about a box: its centre (2,) and its side in pixels.

    Args:
        corners: (4,) left, top, right, bottom.
        factor: Side of the square over the longer side of the box.

    Raises:
        InputError: The box has no extent.
    """
    extent = corners[2:] - corners[:2]
    side = float(extent.max()) * factor
    if not side > 0:
        raise InputError(
            f"box: expected left, top, right, bottom of a box with an extent, found "
            f"{corners.tolist()}. Mend or drop this label."
        )
    return (corners[:2] + corners[2:]) / 2, side


def crop_affine(
    center_px: Float, side_px: float, rotation_deg: float = 0.0, size: int = SIDE
) -> Float:
    """Affine map (2, 3) from image pixels to crop pixels, by three pairs of float32 points.

    Args:
        center_px: (2,) centre of the square, which goes to (size / 2, size / 2).
        side_px: Side of the square in the image.
        rotation_deg: Turn of the square in the image, clockwise as seen; what is drawn in the crop
            turns the other way.
        size: Side of the crop.
    """
    from_image, to_crop = _corner_pairs(center_px, side_px, rotation_deg, size)
    return cast(Float, cv2.getAffineTransform(from_image, to_crop))


def inverse_affine(
    center_px: Float, side_px: float, rotation_deg: float = 0.0, size: int = SIDE
) -> Float:
    """Affine map (2, 3) from crop pixels to image pixels; arguments as for `crop_affine`."""
    from_image, to_crop = _corner_pairs(center_px, side_px, rotation_deg, size)
    return cast(Float, cv2.getAffineTransform(to_crop, from_image))


def _corner_pairs(
    center_px: Float, side_px: float, rotation_deg: float, size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    angle = rotation_deg * np.pi / 180
    up_px = np.array([np.sin(angle), -np.cos(angle)]) * side_px / 2
    return _three_points(center_px, up_px), _three_points(
        np.array([size / 2, size / 2]), np.array([0.0, -size / 2])
    )


def _three_points(center: Float, up: Float) -> NDArray[np.float32]:
    """Centre, the middle of the upper side, and the point beside it at a right angle."""
    points = np.zeros((3, 2), dtype=np.float32)
    points[0], points[1] = center, center + up
    across = points[0] - points[1]
    points[2] = points[1] + np.array([-across[1], across[0]], dtype=np.float32)
    return points


def warp(picture: NDArray[np.uint8], affine: Float, size: int = SIDE) -> NDArray[np.uint8]:
    """Cut a crop (size, size, 3) of a picture (H, W, 3), bilinear, black outside of the picture."""
    crop = cv2.warpAffine(
        np.ascontiguousarray(picture), affine, (size, size), flags=cv2.INTER_LINEAR
    )
    return cast(NDArray[np.uint8], crop)


def normalised(crop: NDArray[np.generic]) -> NDArray[np.float32]:
    """An RGB crop (S, S, 3) in 0..255 as the network wants it, (3, S, S) float32."""
    image = np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32)
    if image.max() > 1:
        image /= 255
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (MEAN, STD))
    return cast(NDArray[np.float32], (image - mean) / std)


def pictured(image_3SS: Tensor) -> Picture:
    """An image as `normalised` made it, on any device, as an RGB picture (S, S, 3)."""
    mean, std = (image_3SS.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = ((image_3SS * std + mean) * 255).round().clamp(0, 255).byte()
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def move_points(points: Float, affine: Float, visible: Float | None = None) -> Float:
    """Map x and y of points (N, 2+) by an affine (2, 3); further columns travel along.

    Points that are not ``visible`` (N, 2+) in their first number stay where they are.
    """
    moved = points.copy()
    moved[:, :2] = points[:, :2] @ affine[:, :2].T + affine[:, 2]
    return moved if visible is None else np.where(visible[:, :1] > 0, moved, points)
