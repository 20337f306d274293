"""Square crops of a photo, one around each box."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinemesh.geometry.crops import (
    Border,
    box_to_square,
    crop_matrix,
    invert_affine,
    transform_points,
    warp_crop,
)
from kinemesh.inference.boxes import Box


@dataclass(frozen=True, eq=False)
class PhotoCrops:
    """B square crops of one photo.

    Attributes:
        centers_px: (B, 2) middles in photo pixels.
        sides_px: (B,) sides in photo pixels.
        matrices: (B, 2, 3) maps from photo pixels to crop pixels.
        size: Side of each crop in its own pixels.
    """

    centers_px: Tensor
    sides_px: Tensor
    matrices: Tensor
    size: int

    @classmethod
    def around(cls, boxes: Sequence[Box], margin: float, size: int) -> "PhotoCrops":
        """Crops whose side is ``margin`` times the longer side of their box."""
        corners = torch.tensor([box.xywh for box in boxes]).reshape(-1, 4)
        centers, sides = box_to_square(corners, margin)
        return cls(centers, sides, crop_matrix(centers, sides, size), size)

    def cut(self, pixels: np.ndarray, border: Border) -> list[np.ndarray]:
        """(S, S, 3) uint8 crops."""
        return [warp_crop(pixels, map_, self.size, border=border) for map_ in self.matrices]

    @property
    def largest_px(self) -> float:
        """Longest side of a crop in photo pixels; 0 without crops."""
        return max(self.sides_px.tolist(), default=0.0)

    def square(self, index: int) -> tuple[float, float, float]:
        """Middle and side of one crop in photo pixels."""
        x, y = self.centers_px[index].tolist()
        return x, y, float(self.sides_px[index])

    def photo_px(self, index: int) -> float:
        """Length in photo pixels of one pixel of a crop."""
        return float(self.sides_px[index]) / self.size

    def to_photo(self, index: int, points_px: np.ndarray) -> np.ndarray:
        """Pixels (N, 2) of one crop as photo pixels."""
        back = invert_affine(self.matrices[index].double())
        return np.asarray(transform_points(back, torch.from_numpy(points_px)).numpy())
