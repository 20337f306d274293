"""Loss of POTTER's mesh network: HybrIK's, with a camera (`L1LossDimSMPLCam`).

Source: Zheng et al., POTTER (CVPR 2023), and Li et al., HybrIK (CVPR 2021), section 3.4.

Legend of shapes: B batch, N joints of the skeleton, J joints that turn, K shape coefficients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

L1_FACTOR = 64.0
"""What both sides of an L1 term are multiplied by."""
LEAST_LABELLED = 3.0
"""A camera counts where the weights of the places in space sum to more than this."""


class BodyPrediction(NamedTuple):
    """What is learned, of a network in training mode.

    Attributes:
        uvd: (B, N, 3) places in the crop, shares of its side, and depth in units of 2.2 m.
        xyz: (B, N, 3) places in space, units of 2.2 m.
        quaternions: (B, J, 4) rotations (w, x, y, z) of inverse kinematics.
        shape: (B, K).
        twist: (B, J - 1, 2) cosine and sine as the network predicts them.
        camera_scale: (B, 1).
        camera_shift: (B, 2).
    """

    uvd: Tensor
    xyz: Tensor
    quaternions: Tensor
    shape: Tensor
    twist: Tensor
    camera_scale: Tensor
    camera_shift: Tensor


@dataclass(kw_only=True)
class PotterLossWeights:
    """Weights of the terms; the defaults are published."""

    shape: float = 1.0
    """Of the shape coefficients."""
    rotations: float = 0.01
    """Of the quaternions of all joints."""
    twist: float = 0.01
    """Of the cosines and sines of the twists."""
    uvd: float = 1.0
    """Of places in the crop and depth."""
    xyz: float = 1.0
    """Of places in space, in the second part of the training."""
    camera: float = 1.0
    """Of the camera in the first part."""
    late_camera: float = 0.1
    """Of the camera in the second part."""
    first_epochs: int = 40
    """Last epoch, counted from 0, of the first part."""


def body_loss(
    prediction: BodyPrediction,
    target: Mapping[str, Tensor],
    weights: PotterLossWeights,
    *,
    late: bool | Tensor,
) -> dict[str, Tensor]:
    """All terms of a batch.

    Means are taken over all numbers, the unlabelled ones (counted as zero error) included; L1 terms
    over the labelled ones. Quaternions are compared as they are: q and -q are different.

    Args:
        prediction: Of the network.
        target: ``uvd``, ``uvd_weight`` (B, N, 3); ``xyz``, ``xyz_weight`` (B, J, 3); ``theta``,
            ``theta_weight`` (B, J, 4); ``betas`` (B, K); ``twist``, ``twist_weight``
            (B, J - 1, 2); ``smpl_weight`` (B, 1); ``camera_scale`` (B, 1); ``camera_shift`` (B, 2).
        weights: Of the terms.
        late: Whether the training is in its second part, see `is_late`; a tensor () of that on the
            device, so that nothing waits for it.

    Returns:
        Each term without its weight, and ``total``.
    """
    xyz_weight = target["xyz_weight"]
    labelled_B1 = (xyz_weight.flatten(1).sum(dim=1, keepdim=True) > LEAST_LABELLED).float()
    known_B1 = target["smpl_weight"]
    theta_weight = known_B1[..., None] * target["theta_weight"]
    places = prediction.xyz[:, : xyz_weight.shape[1]]
    terms = {
        "shape": _squared(prediction.shape, target["betas"], known_B1),
        "rotations": _squared(prediction.quaternions, target["theta"], theta_weight),
        "twist": _squared(prediction.twist, target["twist"], target["twist_weight"]),
        "uvd": _absolute(prediction.uvd, target["uvd"], target["uvd_weight"]),
        "xyz": _absolute(places, target["xyz"], xyz_weight),
        "camera": _squared(prediction.camera_shift, target["camera_shift"], labelled_B1)
        + _squared(prediction.camera_scale, target["camera_scale"], labelled_B1),
    }
    total = sum(getattr(weights, name) * terms[name] for name in _ALWAYS)
    first = weights.camera * terms["camera"]
    second = weights.xyz * terms["xyz"] + weights.late_camera * terms["camera"]
    chosen = torch.where(torch.as_tensor(late, device=first.device), second, first)
    return {"total": total + chosen, **terms}


_ALWAYS = ("shape", "rotations", "twist", "uvd")


def is_late(epoch: int, weights: PotterLossWeights) -> bool:
    """Whether an epoch, counted from 0, belongs to the second part of the training."""
    return epoch > weights.first_epochs


def _squared(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    return (weight * prediction - weight * target).square().mean()


def _absolute(prediction: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    summed = ((L1_FACTOR * prediction - L1_FACTOR * target).abs() * weight).sum()
    count = weight.sum()
    return summed / torch.where(count > 0, count, 1.0)
