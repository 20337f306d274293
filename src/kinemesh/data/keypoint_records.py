"""The record of 2D keypoint data: one person in one crop, and how records become a batch."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from kinemesh.errors import InputError


class KeypointSample(TypedDict):
    """One person in one crop of W x H pixels; the convention is `kinemesh.data.keypoint_crop`'s."""

    image: Tensor
    """(3, H, W) float32, normalised; channels in the order of the data set's options."""
    target: Tensor
    """(J, 2) float32: x over the width and y over the height of the crop. Not cut to [0, 1]; a
    joint that is not labelled holds a filler."""
    weight: Tensor
    """(J, 1) float32: 1 where the joint is labelled, hidden or not."""
    center: Tensor
    """(2,) float32: centre of the crop in the source image, pixels; of the mirrored image in a
    mirrored sample."""
    scale: Tensor
    """(2,) float32: width and height of the crop in the source image, in units of 200 px."""
    score: Tensor
    """() float32: score of the detected box, 1 for a labelled one."""
    area: Tensor
    """() float32: area of the crop in the source image, square pixels."""
    image_id: Tensor
    """() int64: COCO's id of the image; elsewhere a number that the image's samples share."""
    annotation_id: Tensor
    """() int64: COCO's id of the label, else the row in the file."""


KEYPOINT_FIELDS: tuple[str, ...] = tuple(KeypointSample.__annotations__)


def collate_keypoints(samples: Sequence[KeypointSample]) -> dict[str, Tensor]:
    """Stack samples to a batch: the same fields, each with a leading axis.

    Raises:
        InputError: There is no sample, or they differ in size or joints.
    """
    if not samples:
        raise InputError("collate_keypoints: expected at least one sample, found none.")
    rows = [dict(sample) for sample in samples]
    for name in ("image", "target"):
        shapes = {tuple(row[name].shape) for row in rows}  # type: ignore[attr-defined]
        if len(shapes) > 1:
            raise InputError(
                f"collate_keypoints: '{name}' has different shapes in one batch: {sorted(shapes)}. "
                "Use one size of crop and one joint set."
            )
    return {name: torch.stack([row[name] for row in rows]) for name in KEYPOINT_FIELDS}  # type: ignore[misc]
