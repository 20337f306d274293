"""From a picture to what a classifier sees: the published variation, and the plain view.

In training: a random part of the picture at a random aspect, enlarged or reduced bilinearly or
bicubically by chance, mirrored half of the time, varied by RandAugment, normalised, and with a
random rectangle of noise. Colour jitter belongs to the same
list of numbers, but training scripts leave it out wherever a RandAugment policy is given, and so
does this one; without the policy it takes its place.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.random import RandomState
from PIL import Image, ImageEnhance
from torch import Tensor

from kinemesh.data.rand_augment import Picture, RandAugment, drawn_filter
from kinemesh.errors import InputError
from kinemesh.models.imagenet import normalise_imagenet

CROP_SHARE = 0.9
"""Side of the plain view over the shorter side of the resized picture."""
_ATTEMPTS = 10
_ERASED = (0.02, 1 / 3)  # area of the rectangle over that of the image
_ERASED_LOG_ASPECT = (math.log(0.3), -math.log(0.3))


@dataclass(frozen=True)
class ClassificationAugmentation:
    """Strength of the variation; the defaults are those that POTTER's classifiers saw.

    Attributes:
        scale: Smallest and largest area of the part over the picture's.
        ratio: Smallest and largest width over height of the part.
        mirror: Probability of mirroring.
        rand_augment: Whether RandAugment is carried out;
        policy: and its numbers.
        color_jitter: Largest relative change of brightness, contrast and saturation, used where
            RandAugment is off.
        erase: Probability of the rectangle of noise.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: float = 0.5
    rand_augment: bool = True
    policy: RandAugment = field(default_factory=RandAugment)
    color_jitter: float = 0.4
    erase: float = 0.25

    def __post_init__(self) -> None:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise InputError(f"{name}: expected 0 < low <= high, found {low} and {high}.")
        if not 0 <= self.color_jitter < 1:
            raise InputError(f"color_jitter: expected [0, 1), found {self.color_jitter}.")


def varied_view(
    image: Picture, side: int, augmentation: ClassificationAugmentation, rng: RandomState
) -> Tensor:
    """A training view (3, side, side) float32, normalised as ImageNet's, of an RGB picture."""
    box = random_part(image.size, augmentation.scale, augmentation.ratio, rng)
    view = image.resize((side, side), drawn_filter(rng), box=box)
    if rng.uniform() < augmentation.mirror:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.rand_augment:
        view = augmentation.policy(view, rng)
    elif augmentation.color_jitter > 0:
        view = jitter_color(view, augmentation.color_jitter, rng)
    tensor = to_input(view)
    if rng.uniform() < augmentation.erase:
        erase(tensor, rng)
    return tensor


def plain_view(image: Picture, side: int) -> Tensor:
    """The view of evaluation: the shorter side to side / 0.9 (248 for 224), the middle cut out."""
    shorter = math.floor(side / CROP_SHARE)
    zoom = shorter / min(image.size)
    width, height = (max(shorter, int(extent * zoom)) for extent in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return to_input(resized.crop((left, top, left + side, top + side)))


def to_input(image: Picture) -> Tensor:
    """(3, H, W) float32 of an RGB picture, normalised as ImageNet's."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)
    return normalise_imagenet(pixels[None].float() / 255)[0]


def random_part(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: RandomState,
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a random part of a picture (Szegedy et al. 2015).

    Area and logarithm of the aspect are uniform. Where ten draws do not fit, it is the largest part
    in the middle whose aspect is within the limits.
    """
    width, height = size
    for _ in range(_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(width - w + 1), rng.randint(height - h + 1)
            return left, top, left + w, top + h
    aspect = min(max(width / height, ratio[0]), ratio[1])
    w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def jitter_color(image: Picture, strength: float, rng: RandomState) -> Picture:
    """Change brightness, contrast and saturation in random order, each by 1 ± strength."""
    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for number in rng.permutation(len(kinds)):
        image = kinds[number](image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


def erase(image_3HW: Tensor, rng: RandomState) -> None:
    """Fill a random rectangle of a normalised image with N(0, 1), in place (Zhong et al. 2020)."""
    height, width = image_3HW.shape[1:]
    for _ in range(_ATTEMPTS):
        area = height * width * rng.uniform(*_ERASED)
        aspect = math.exp(rng.uniform(*_ERASED_LOG_ASPECT))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = rng.randint(height - h + 1), rng.randint(width - w + 1)
            noise = rng.standard_normal((3, h, w)).astype(np.float32)
            image_3HW[:, top : top + h, left : left + w] = torch.from_numpy(noise)
            return
