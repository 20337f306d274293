"""Random variation of keypoint samples, as HRNet and PRTR train: half body, scale, turn, mirror.

What is drawn (`KeypointVariation`) is kept apart from what it does (`vary_person`): the first is
chance alone, the second is a function. Draws come from an explicit `numpy.random.RandomState`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kinemesh.data.keypoint_crop import Placement, place_box
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17, MPII16, Skeleton

Float = NDArray[np.float32]

HALF_BODY_PADDING = 1.5
_FEWEST_VISIBLE = 8
"""Half of a body is only cut out where more joints than these are visible."""
UPPER_BODY: dict[str, tuple[int, ...]] = {
    COCO17.name: tuple(range(11)),
    MPII16.name: tuple(range(7, 16)),
}
"""Joints of the upper body; the others are the lower body."""


@dataclass(frozen=True)
class KeypointVariation:
    """How one sample departs from its label.

    Attributes:
        half_body: Number that chooses the half to cut out, the upper one below 0.5; None keeps the
            whole person.
        scale: Factor of the crop's sides; above 1 shows more.
        rotation_deg: Turn of the picture, counter-clockwise as seen.
        flip: Mirror the picture left to right, before it is cropped.
    """

    half_body: float | None = None
    scale: float = 1.0
    rotation_deg: float = 0.0
    flip: bool = False


PLAIN = KeypointVariation()


@dataclass(frozen=True)
class KeypointAugmentation:
    """How strongly training samples vary; `coco` and `mpii` are the published settings.

    Attributes:
        scale: Deviation of the factor of the sides from 1, which is cut at this value.
        rotation_deg: Deviation of the turn, which is cut at twice this angle.
        rotated_share: Share of the samples that are turned.
        flip_share: Share of the samples that are mirrored.
        half_body_share: Share of the persons with more than 8 visible joints of whom only one half
            is shown. The published recipes never do so.
    """

    scale: float = 0.3
    rotation_deg: float = 40.0
    rotated_share: float = 0.6
    flip_share: float = 0.5
    half_body_share: float = 0.0

    @classmethod
    def coco(cls) -> "KeypointAugmentation":
        """Published setting for COCO."""
        return cls()

    @classmethod
    def mpii(cls) -> "KeypointAugmentation":
        """Published setting for MPII."""
        return cls(scale=0.25, rotation_deg=30.0)

    def draw(self, rng: np.random.RandomState, visible: int) -> KeypointVariation:
        """Parameters of one sample of a person with so many visible joints."""
        half_body = None
        if visible > _FEWEST_VISIBLE and rng.random_sample() < self.half_body_share:
            half_body = float(rng.randn())
        scale = float(np.clip(1 + self.scale * rng.randn(), 1 - self.scale, 1 + self.scale))
        rotation = 0.0
        if rng.random_sample() <= self.rotated_share:
            limit = 2 * self.rotation_deg
            rotation = float(np.clip(self.rotation_deg * rng.randn(), -limit, limit))
        flip = bool(rng.random_sample() <= self.flip_share)
        return KeypointVariation(half_body, scale, rotation, flip)


class VariedPerson(NamedTuple):
    """A person in the source image, which is mirrored where the variation says so.

    Attributes:
        placement: The crop.
        joints: (J, 2) float32, image pixels.
        visible: (J,) float32, 1 where a joint is labelled.
    """

    placement: Placement
    joints: Float
    visible: Float


def vary_person(
    placement: Placement,
    joints: Float,
    visible: Float,
    skeleton: Skeleton,
    variation: KeypointVariation,
    image_width: int,
    aspect: float,
) -> VariedPerson:
    """Do to a person what was drawn, but for the turn, which the crop does.

    Args:
        placement: Centre and scale of the label's box.
        joints: (J, 2) image pixels.
        visible: (J,) 1 where labelled.
        skeleton: The joint set.
        variation: What was drawn.
        image_width: Width of the source image, about which it is mirrored.
        aspect: Width over height of the crop.
    """
    if variation.half_body is not None:
        half = half_body(joints, visible, skeleton, variation.half_body, aspect)
        placement = placement if half is None else half
    center, scale = placement.center, placement.scale * np.float32(variation.scale)
    if variation.flip:
        order = list(skeleton.flip_permutation)
        mirrored = joints.copy()
        mirrored[:, 0] = image_width - joints[:, 0] - 1
        visible = visible[order]
        # invisible joints become (0, 0), as published
        joints = mirrored[order] * visible[:, None]
        center = np.array([image_width - center[0] - 1, center[1]], dtype=np.float32)
    return VariedPerson(Placement(center, scale), joints, visible)


def half_body(
    joints: Float, visible: Float, skeleton: Skeleton, draw: float, aspect: float
) -> Placement | None:
    """Crop of the upper or lower half of a person.

    Args:
        joints: (J, 2) image pixels.
        visible: (J,) positive where labelled.
        skeleton: COCO's or MPII's joint set.
        draw: The upper half is preferred below 0.5.
        aspect: Width over height of the crop.

    Returns:
        The mean of the half's visible joints, and their box enlarged by 1.5; None where fewer than
        two of them are visible.

    Raises:
        InputError: The halves of this joint set are not known.
    """
    upper = _members(_upper_body(skeleton), visible)
    lower = _members(set(range(len(skeleton))) - set(_upper_body(skeleton)), visible)
    chosen = upper
    if not (draw < 0.5 and len(upper) > 2) and len(lower) > 2:
        chosen = lower
    if len(chosen) < 2:
        return None
    points = joints[chosen].astype(np.float32)
    low, high = points.min(0), points.max(0)
    box = np.concatenate([low, high - low])
    return place_box(box, aspect, HALF_BODY_PADDING, offset=points.mean(0))


def _upper_body(skeleton: Skeleton) -> Sequence[int]:
    if skeleton.name not in UPPER_BODY:
        raise InputError(
            f"half_body: the upper half of skeleton '{skeleton.name}' is not known, only that of "
            f"{', '.join(UPPER_BODY)}. Set half_body_share to 0."
        )
    return UPPER_BODY[skeleton.name]


def _members(joints: Sequence[int] | set[int], visible: Float) -> list[int]:
    return [joint for joint in sorted(joints) if visible[joint] > 0]
