"""Random variation of HybrIK's and POTTER's training samples, and what it does to labels."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

SCALE_SPREAD, ROTATION_SPREAD_DEG = 0.3, 30.0
ROTATION_PROBABILITY = 0.6
COLOR_RANGE = (0.8, 1.2)
_MOST_TRIES = 1000  # a box that is nearly outside of its picture may have no room for a rectangle


@dataclass(frozen=True)
class HybrikAugmentation:
    """How strongly the samples of one data set vary.

    Attributes:
        flip_probability: Share of mirrored samples.
        occluder_area: Largest share of the box that the occluding rectangle covers; 0: none.
        occluder_aspect: Range of the rectangle's height over its width.
    """

    flip_probability: float
    occluder_area: float
    occluder_aspect: tuple[float, float] = (0.5, 2.0)

    def draw(self, rng: np.random.RandomState) -> "HybrikVariation":
        """Draw what happens to one sample, apart from the rectangle."""
        scale = np.clip(1 + SCALE_SPREAD * rng.randn(), 1 - SCALE_SPREAD, 1 + SCALE_SPREAD)
        turn = np.clip(rng.randn() * ROTATION_SPREAD_DEG, *(-60.0, 60.0))
        turns = rng.random_sample() <= ROTATION_PROBABILITY
        red, green, blue = rng.uniform(*COLOR_RANGE, 3).tolist()
        return HybrikVariation(
            scale=float(scale),
            rotation_deg=float(turn) if turns else 0.0,
            flip=bool(rng.random_sample() < self.flip_probability),
            color=(red, green, blue),
        )

    def draw_occluder(
        self, rng: np.random.RandomState, corners: Float, width: int, height: int
    ) -> tuple[int, int, int, int] | None:
        """A rectangle inside the box and the picture: left, top, width and height in pixels.

        Returns:
            None where nothing is to be covered, or no try lay inside of the picture.
        """
        left, top, right, bottom = corners
        if not self.occluder_area or right <= left or bottom <= top:
            return None
        for _ in range(_MOST_TRIES):
            area = rng.random_sample() * self.occluder_area * (right - left) * (bottom - top)
            aspect = rng.uniform(*self.occluder_aspect)
            high, wide = np.sqrt(area * aspect), np.sqrt(area / aspect)
            x = rng.random_sample() * (right - left - wide - 1) + left
            y = rng.random_sample() * (bottom - top - high - 1) + top
            if x >= 0 and y >= 0 and x + wide < width and y + high < height:
                return int(x), int(y), int(wide), int(high)
        return None


@dataclass(frozen=True)
class HybrikVariation:
    """How one sample departs from the plain crop of its label.

    Attributes:
        scale: Side of the crop over that of the plain one.
        rotation_deg: See `kinemesh.data.hybrik_crop.crop_affine`.
        flip: Mirror picture and labels left to right, before the crop is cut.
        color: Factors of red, green and blue.
    """

    scale: float = 1.0
    rotation_deg: float = 0.0
    flip: bool = False
    color: tuple[float, float, float] = (1.0, 1.0, 1.0)


PLAIN = HybrikVariation()

FULLY_LABELLED = HybrikAugmentation(flip_probability=0.25, occluder_area=0.3)
"""Of Human3.6M and 3DPW."""
LABELLED_2D = HybrikAugmentation(0.5, occluder_area=0.7, occluder_aspect=(0.3, 1 / 0.3))
"""Of COCO."""
WITHOUT_OCCLUDER = HybrikAugmentation(flip_probability=0.5, occluder_area=0.0)
"""Of MPI-INF-3DHP."""

Pairs = tuple[tuple[int, int], ...]


def swap_pairs(values: Float, pairs: Pairs) -> Float:
    """The same rows with left and right exchanged."""
    order = list(range(len(values)))
    for first, second in pairs:
        order[first], order[second] = second, first
    return values[order]


def flip_places(points: Float, visible: Float, width: int, pairs: Pairs) -> tuple[Float, Float]:
    """Mirror places (N, D) in a picture; the visibility (N, D) goes along and hidden ones are 0."""
    flipped = points.copy()
    flipped[:, 0] = width - 1 - flipped[:, 0]
    seen = swap_pairs(visible, pairs)
    return swap_pairs(flipped, pairs) * seen, seen


def flip_camera_points(points: Float, root: int, pairs: Pairs) -> Float:
    """Mirror points (N, 3) in the camera's frame about the root joint."""
    flipped = points.copy()
    flipped[:, 0] = 2 * points[root, 0] - points[:, 0]
    return swap_pairs(flipped, pairs)


def flip_axis_angles(theta: Float, pairs: Pairs) -> Float:
    """Mirror rotations (J, 3): a mirror in x keeps turns about x and reverses the others."""
    return swap_pairs(theta * np.array([1.0, -1.0, -1.0]), pairs)


def flip_twists(twist: Float, weight: Float, pairs: Pairs) -> tuple[Float, Float]:
    """Mirror twists (J - 1, 2), cosine and sine, and their weights; pairs count from the root."""
    below = tuple((first - 1, second - 1) for first, second in pairs)
    return swap_pairs(twist * np.array([1.0, -1.0]), below), swap_pairs(weight, below)


def turn_points(points: Float, rotation_deg: float) -> Float:
    """Turn points (N, 3) about the camera's axis as the picture in a turned crop turns."""
    return points @ _turn(rotation_deg).T


def turn_axis_angle(root: Float, rotation_deg: float) -> Float:
    """Turn the rotation (3,) of the whole body likewise."""
    matrix, _ = cv2.Rodrigues(root)
    turned, _ = cv2.Rodrigues(_turn(rotation_deg) @ matrix)
    return np.asarray(turned[:, 0], dtype=np.float64)


def _turn(rotation_deg: float) -> Float:
    angle = -rotation_deg * np.pi / 180
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
