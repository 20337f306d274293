"""RandAugment with increasing severity, as image classifiers are trained with it.

Two operations are drawn for each picture, with repeats, and each is carried out with probability
one half, at a magnitude of N(9, 0.5) on a scale from 0 to 10 (Cubuk et al., CVPRW 2020; the policy
that training scripts call ``rand-m9-mstd0.5-inc1``). "Increasing" means that a larger magnitude
never changes a picture less: enhancements move away from the picture in both directions, and
solarisation and posterisation grow with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from PIL import Image, ImageEnhance, ImageOps

from kinemesh.errors import InputError

LARGEST = 10.0
FILL = (124, 116, 104)
"""ImageNet's mean colour, which fills what a rotation or a shift uncovers."""
_ROTATION_DEG = 30.0
_SHEAR = 0.3
_SHIFT = 0.45  # of the extent
_ENHANCEMENT = 0.9
_SOLARIZE_ADD = 110
_HALF = 128
_POSTERIZE_BITS = 4

Picture = Image.Image
Operation = Callable[[Picture, float, RandomState], Picture]
"""Takes a picture, the magnitude as a part of the largest in [0, 1], and where signs come from."""


@dataclass(frozen=True)
class RandAugment:
    """The policy.

    Attributes:
        magnitude: Mean, 0 to 10.
        deviation: Standard deviation; draws are cut to 0 to 10.
        operations: How many are drawn for a picture.
        probability: That a drawn one is carried out.
    """

    magnitude: float = 9.0
    deviation: float = 0.5
    operations: int = 2
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.magnitude <= LARGEST and 0 <= self.probability <= 1):
            raise InputError(
                f"magnitude, probability: expected 0 to {LARGEST:g} and 0 to 1, found "
                f"{self.magnitude} and {self.probability}."
            )

    def __call__(self, image: Picture, rng: RandomState) -> Picture:
        """Vary an RGB picture; its size stays."""
        names = list(OPERATIONS)
        for name in rng.choice(names, self.operations):
            if rng.uniform() < self.probability:
                magnitude = float(np.clip(rng.normal(self.magnitude, self.deviation), 0, LARGEST))
                image = OPERATIONS[str(name)](image, magnitude / LARGEST, rng)
        return image


def drawn_filter(rng: RandomState) -> Image.Resampling:
    """Bilinear or bicubic interpolation, as training scripts draw it where none is named."""
    return Image.Resampling.BILINEAR if rng.uniform() < 0.5 else Image.Resampling.BICUBIC


def _sign(rng: RandomState) -> float:
    return 1.0 if rng.uniform() < 0.5 else -1.0


def _mapped(
    image: Picture, affine: tuple[float, float, float, float, float, float], rng: RandomState
) -> Picture:
    """Each output pixel (x, y) is taken from (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        affine,
        resample=drawn_filter(rng),
        fillcolor=FILL,
    )


def _shear_x(image: Picture, part: float, rng: RandomState) -> Picture:
    return _mapped(image, (1, _sign(rng) * _SHEAR * part, 0, 0, 1, 0), rng)


def _shear_y(image: Picture, part: float, rng: RandomState) -> Picture:
    return _mapped(image, (1, 0, 0, _sign(rng) * _SHEAR * part, 1, 0), rng)


def _translate_x(image: Picture, part: float, rng: RandomState) -> Picture:
    return _mapped(image, (1, 0, _sign(rng) * _SHIFT * part * image.width, 0, 1, 0), rng)


def _translate_y(image: Picture, part: float, rng: RandomState) -> Picture:
    return _mapped(image, (1, 0, 0, 0, 1, _sign(rng) * _SHIFT * part * image.height), rng)


def _rotate(image: Picture, part: float, rng: RandomState) -> Picture:
    angle = _sign(rng) * _ROTATION_DEG * part
    return image.rotate(angle, resample=drawn_filter(rng), fillcolor=FILL)


def _enhance(kind: Callable[[Picture], ImageEnhance._Enhance]) -> Operation:
    def apply(image: Picture, part: float, rng: RandomState) -> Picture:
        return kind(image).enhance(max(0.1, 1.0 + _sign(rng) * _ENHANCEMENT * part))

    return apply


def _auto_contrast(image: Picture, part: float, rng: RandomState) -> Picture:
    return ImageOps.autocontrast(image)


def _equalize(image: Picture, part: float, rng: RandomState) -> Picture:
    return ImageOps.equalize(image)


def _invert(image: Picture, part: float, rng: RandomState) -> Picture:
    return ImageOps.invert(image)


def _posterize(image: Picture, part: float, rng: RandomState) -> Picture:
    # at the very largest magnitude no bit would stay, and the picture would be black
    return ImageOps.posterize(image, max(1, _POSTERIZE_BITS - int(part * _POSTERIZE_BITS)))


def _solarize(image: Picture, part: float, rng: RandomState) -> Picture:
    return ImageOps.solarize(image, 256 - int(part * 256))


def _solarize_add(image: Picture, part: float, rng: RandomState) -> Picture:
    """Brighten the dark half."""
    added = int(part * _SOLARIZE_ADD)
    table = [min(255, value + added) if value < _HALF else value for value in range(256)]
    return image.point(table * 3)


OPERATIONS: Mapping[str, Operation] = {
    "auto contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": _invert,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear x": _shear_x,
    "shear y": _shear_y,
    "translate x": _translate_x,
    "translate y": _translate_y,
}
"""Every operation, drawn with equal probability."""
