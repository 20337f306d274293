"""Mixup and CutMix: batches whose images and labels are mixtures of two.

Each image is mixed with its counterpart in the reversed batch, by one share for the whole batch
(Zhang et al., ICLR 2018; Yun et al., ICCV 2019). Targets are smoothed first (Szegedy et al. 2016).

Shape legend: B batch, K classes, H and W of the image.
"""

import math
from dataclasses import dataclass

import torch
from numpy.random import RandomState
from torch import Tensor

from kinemesh.errors import InputError


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed; the defaults are those that POTTER's classifiers saw.

    Attributes:
        mixup: Both parameters of the beta distribution of Mixup's share; 0 for no Mixup.
        cutmix: Those of CutMix; 0 for no CutMix.
        probability: That a batch is mixed at all.
        switch: Probability of CutMix where both are on.
        smoothing: Probability that a label gives to all classes alike.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    probability: float = 1.0
    switch: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if min(self.mixup, self.cutmix) < 0 or not 0 <= self.smoothing < 1:
            raise InputError(
                "mixup, cutmix, smoothing: expected 0 or more, and [0, 1) for the smoothing, found "
                f"{self.mixup}, {self.cutmix} and {self.smoothing}."
            )


NO_MIXING = Mixing(mixup=0.0, cutmix=0.0, smoothing=0.0)


def smoothed_targets(label_B: Tensor, classes: int, smoothing: float) -> Tensor:
    """(B, K) float32: smoothing / K everywhere, and 1 - smoothing more at the label."""
    target = torch.full((len(label_B), classes), smoothing / classes)
    return target.scatter_add(1, label_B[:, None], torch.full((len(label_B), 1), 1.0 - smoothing))


def mix(
    image_B3HW: Tensor, label_B: Tensor, classes: int, mixing: Mixing, rng: RandomState
) -> tuple[Tensor, Tensor]:
    """Mix a batch.

    Args:
        image_B3HW: Normalised images; they are not changed.
        label_B: int64 in [0, K).
        classes: K.
        mixing: How.
        rng: Where the draws come from.

    Returns:
        Images (B, 3, H, W) and targets (B, K), whose rows sum to 1.
    """
    target_BK = smoothed_targets(label_B, classes, mixing.smoothing)
    kinds = [kind for kind in ("mixup", "cutmix") if getattr(mixing, kind) > 0]
    if not kinds or rng.uniform() >= mixing.probability:
        return image_B3HW, target_BK
    cut = kinds == ["cutmix"] or (len(kinds) == 2 and rng.uniform() < mixing.switch)
    parameter = mixing.cutmix if cut else mixing.mixup
    share = float(rng.beta(parameter, parameter))
    other_B3HW = image_B3HW.flip(0)
    if cut:
        top, bottom, left, right = random_box(image_B3HW.shape[-2:], 1.0 - share, rng)
        image_B3HW = image_B3HW.clone()
        image_B3HW[..., top:bottom, left:right] = other_B3HW[..., top:bottom, left:right]
        area = (bottom - top) * (right - left)
        share = 1.0 - area / (image_B3HW.shape[-2] * image_B3HW.shape[-1])
    else:
        image_B3HW = share * image_B3HW + (1.0 - share) * other_B3HW
    return image_B3HW, share * target_BK + (1.0 - share) * target_BK.flip(0)


def random_box(size: tuple[int, ...], area: float, rng: RandomState) -> tuple[int, int, int, int]:
    """Top, bottom, left, right of a box with the image's aspect around a uniform centre.

    Args:
        size: Height and width.
        area: Of the box over the image, before it is cut to the image.
        rng: Where the centre comes from.
    """
    spans = []
    for extent in size:
        length = int(extent * math.sqrt(area))
        centre = rng.randint(extent)
        spans += [max(0, centre - length // 2), min(extent, centre + length // 2)]
    top, bottom, left, right = spans
    return top, bottom, left, right
