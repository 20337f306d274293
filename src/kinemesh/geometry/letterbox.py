"""Whole photos in a square: how networks that search a photo see it, and the way back.

Pixel coordinates run from (0, 0) to (W, H), with pixel centres at +0.5.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError

Picture = NDArray[np.uint8]
Boxes = NDArray[np.float32]

PADDING_LEVEL = 127
"""Grey level beside and below the photo."""


@dataclass(frozen=True)
class Letterbox:
    """A photo resized to the upper left corner of a square; the rest of it is grey.

    Attributes:
        size: Width and height of the photo in pixels.
        side: Of the square in pixels.

    Raises:
        InputError: A length is below 1.
    """

    size: tuple[int, int]
    side: int

    def __post_init__(self) -> None:
        if min(*self.size, self.side) < 1:
            raise InputError(
                f"size, side: expected at least 1 px, found {self.size} and {self.side}."
            )

    @property
    def zoom(self) -> tuple[float, float]:
        """Pixels of the square for one pixel of the photo, across and down."""
        width, height = self.inner
        return width / self.size[0], height / self.size[1]

    @property
    def inner(self) -> tuple[int, int]:
        """Width and height of the resized photo in whole pixels."""
        share = self.side / max(self.size)
        width, height = (max(1, round(length * share)) for length in self.size)
        return width, height

    def fill(self, photo: Picture) -> Picture:
        """The photo (H, W, 3) in its square (S, S, 3).

        Raises:
            InputError: The photo has another size.
        """
        if photo.shape != (self.size[1], self.size[0], 3):
            raise InputError(
                f"photo: expected {(self.size[1], self.size[0], 3)}, found {photo.shape}."
            )
        width, height = self.inner
        way = cv2.INTER_AREA if width < self.size[0] else cv2.INTER_LINEAR
        square = np.full((self.side, self.side, 3), PADDING_LEVEL, dtype=np.uint8)
        square[:height, :width] = cv2.resize(photo, (width, height), interpolation=way)
        return square

    def to_photo(self, boxes: Boxes) -> Boxes:
        """Left, top, right, bottom (N, 4) in the square to those in the photo, cut to it."""
        corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 2, 2) / self.zoom
        inside = np.clip(corners, 0, self.size)
        return np.asarray(inside.reshape(-1, 4), dtype=np.float32)

    def to_square(self, boxes: Boxes) -> Boxes:
        """Left, top, right, bottom (N, 4) in the photo to those in the square."""
        corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 2, 2) * self.zoom
        return np.asarray(corners.reshape(-1, 4), dtype=np.float32)
