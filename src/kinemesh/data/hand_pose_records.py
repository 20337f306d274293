"""The record of 3D hand pose data: one hand in one square crop, and how records become a batch."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from kinemesh.errors import InputError

RIGHT, LEFT = 0, 1
"""Values of `HandPoseSample.side`."""


class HandPoseSample(TypedDict):
    """One hand in one square crop of S x S pixels.

    Joints are those of `kinemesh.skeletons.HAND21`: the wrist, then each finger from the palm to
    its tip, thumb first. 3D joints have the camera's axes (x right, y down, z away from the viewer)
    and their origin in the wrist. Crop pixels run right and down, integer coordinates on pixel
    centres. Left hands are not mirrored.
    """

    image: Tensor
    """(3, S, S) float32 RGB, normalised by ImageNet's statistics."""
    joints_m: Tensor
    """(21, 3) float32 metres from the wrist; zeros where not ``visible``."""
    visible: Tensor
    """(21,) bool: which joints are labelled in 3D. The wrist may be False though it is at zero."""
    joints_2d_px: Tensor
    """(21, 2) float32 crop pixels; zeros where not ``visible_2d``."""
    visible_2d: Tensor
    """(21,) bool: which joints are labelled in the picture."""
    side: Tensor
    """() int64: `RIGHT` or `LEFT`."""
    center_px: Tensor
    """(2,) float32: centre of the crop in the source image, pixels."""
    side_px: Tensor
    """() float32: side of the crop in the source image, pixels."""
    take: Tensor
    """() int64: which recording of the data set the hand is from."""
    frame: Tensor
    """() int64: number of the frame in the recording."""


HAND_POSE_FIELDS: tuple[str, ...] = tuple(HandPoseSample.__annotations__)


def collate_hand_poses(samples: Sequence[HandPoseSample]) -> dict[str, Tensor]:
    """Stack samples to a batch: the same fields, each with a leading axis.

    Raises:
        InputError: There is no sample, or their crops differ in size.
    """
    if not samples:
        raise InputError("collate_hand_poses: expected at least one sample, found none.")
    sizes = {tuple(sample["image"].shape) for sample in samples}
    if len(sizes) > 1:
        raise InputError(
            f"collate_hand_poses: 'image' has different shapes in one batch: {sorted(sizes)}. "
            "Use one size of crop."
        )
    rows = [dict(sample) for sample in samples]
    return {name: torch.stack([row[name] for row in rows]) for name in HAND_POSE_FIELDS}  # type: ignore[misc]
