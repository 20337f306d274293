"""Predictions and labels joint by joint, as evaluations hand them to whoever wants to look.

A protocol's score is one number over a data set. A report also wants the error of each joint, the
best and the worst samples, and their pictures. Every evaluation therefore takes a
:data:`SampleListener` and calls it with one :class:`JointSamples` after the other; none of them is
kept, so that a data set may be of any size.

Shape legend: B samples, J joints, D = 2 or 3 coordinates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.metrics import MM_PER_M, best_aligned, point_distances
from kinemesh.skeletons import Skeleton, root_position

Picture = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class JointSamples:
    """What a model said of B samples, and what is labelled.

    Attributes:
        skeleton: The joints.
        keys: For each sample what finds it again: a file, an id, a row.
        errors: (B, J) each, on any device, by the name of the score whose mean over samples and
            joints the protocol reports; the first one ranks the samples.
        compared: (B, J) bool: joints that are labelled and count.
        unit: Of the errors, for example ``"mm"``.
        predicted: (B, J, D). D = 3: metres in the axes of the camera (x right, y down, z away).
            D = 2: pixels of the sample's picture, the first pixel's corner at (0, 0).
        target: (B, J, D), the same for the labels.
        picture: Gives the picture (H, W, 3) uint8 RGB of sample b; called for the few that are
            shown.

    Raises:
        InputError: Shapes do not fit.
    """

    skeleton: Skeleton
    keys: Sequence[str]
    errors: Mapping[str, Tensor]
    compared: Tensor
    unit: str
    predicted: Tensor
    target: Tensor
    picture: Callable[[int], Picture]

    def __post_init__(self) -> None:
        shape = (len(self.keys), len(self.skeleton))
        named = {"compared": self.compared, **self.errors}
        named |= {"predicted": self.predicted[..., 0], "target": self.target[..., 0]}
        for name, values in named.items():
            if tuple(values.shape) != shape or not self.errors:
                raise InputError(
                    f"{name}: expected one row for each of {shape[0]} samples and one column for "
                    f"each of the {shape[1]} joints of '{self.skeleton.name}', found "
                    f"{tuple(values.shape)}."
                )


SampleListener = Callable[[JointSamples], None]
"""Called with the samples of each batch, in the order of the data set; needs a single process."""


def joint_errors_mm(
    predicted_BJ3: Tensor, target_BJ3: Tensor, skeleton: Skeleton, compared: Tensor | None = None
) -> dict[str, Tensor]:
    """Distances (B, J) of root-relative joints, and after a similarity that may not mirror.

    Args:
        predicted_BJ3: Metres.
        target_BJ3: Metres; the root is labelled.
        skeleton: The joints; its root is moved to the origin on both sides.
        compared: (B, J) joints that are labelled; all if None. The others have no meaning in the
            result.

    Returns:
        ``MPJPE`` and ``PA-MPJPE`` in mm.
    """
    own = predicted_BJ3 - root_position(predicted_BJ3, skeleton)
    true = target_BJ3 - root_position(target_BJ3, skeleton)
    aligned = point_distances(*best_aligned(predicted_BJ3, target_BJ3, compared))
    return {"MPJPE": point_distances(own, true) * MM_PER_M, "PA-MPJPE": aligned * MM_PER_M}


def to_picture(image_3HW: Tensor) -> Picture:
    """(H, W, 3) uint8 of sRGB (3, H, W) in 0..1 on any device."""
    pixels = (image_3HW.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
