"""The square crop of a hand, as POTTER is trained and scored on Ego-Exo4D.

The crop is a quarter larger than the longer side of the hand's box, and is not turned. Integer
coordinates are the centres of pixels and nothing is shifted by half a pixel, unlike in
`kinemesh.geometry.crops`: whoever compares with published numbers needs exactly this.
"""

from typing import NamedTuple, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.data.keypoint_crop import PIXELS_OF_SCALE, Picture
from kinemesh.errors import InputError

Float = NDArray[np.float64]

SIZE = 224
PADDING = 1.25
"""Side of the crop over the longer side of the box."""


class HandPlacement(NamedTuple):
    """Where a crop is in its picture.

    Attributes:
        center_px: (2,) float32.
        scale: () float32, side of the crop in units of 200 px.
    """

    center_px: NDArray[np.float32]
    scale: np.float32

    @property
    def side_px(self) -> np.float32:
        """Side of the crop in the picture."""
        return np.float32(self.scale * np.float32(PIXELS_OF_SCALE))


def has_extent(box_px: NDArray) -> bool:
    """Whether `place_hand` takes a box (4,) x1, y1, x2, y2."""
    low, high = np.asarray(box_px, dtype=np.float64).reshape(2, 2)
    return bool(np.isfinite([low, high]).all() and (high >= low).all() and (high > low).any())


def place_hand(box_px: NDArray) -> HandPlacement:
    """The crop of a box (4,) x1, y1, x2, y2 in pixels.

    Raises:
        InputError: The box is empty or not finite.
    """
    corners = np.asarray(box_px, dtype=np.float64)
    if corners.shape != (4,) or not np.isfinite(corners).all():
        raise InputError(f"box: expected four finite numbers x1, y1, x2, y2, found {box_px}.")
    low, high = corners[:2], corners[2:]
    longer = float((high - low).max())
    if (high < low).any() or longer <= 0:
        raise InputError(f"box: expected x1 < x2 and y1 < y2, found {corners.tolist()}.")
    scale = np.float32(longer / PIXELS_OF_SCALE) * np.float32(PADDING)
    return HandPlacement(((low + high) * 0.5).astype(np.float32), np.float32(scale))


def hand_affine(placement: HandPlacement, size: int = SIZE) -> Float:
    """Affine map (2, 3) from the pixels of the picture to those of the crop.

    It is solved from three pairs of points that are rounded to float32, as published.
    """
    center, half = placement.center_px, placement.side_px * np.float32(0.5)
    away = np.array([[0, 0], [0, -half], [-half, 0]], dtype=np.float32)
    middle = size / 2
    target = np.array([[middle, middle], [middle, 0], [0, middle]], dtype=np.float32)
    return cast(Float, cv2.getAffineTransform(center + away, target))


def crop_hand(picture: Picture, affine: Float, size: int = SIZE) -> Picture:
    """The crop (size, size, 3) of a picture (H, W, 3): bilinear, black outside."""
    return cast(Picture, cv2.warpAffine(picture, affine, (size, size), flags=cv2.INTER_LINEAR))
