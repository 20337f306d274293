"""The focal length of a photo, told, known from EXIF or guessed, and the camera that has it."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from kinemesh.errors import InputError
from kinemesh.geometry.cameras import default_focal_px, focal_from_fov
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.person import PhotoCamera, check_focal_px

PLAUSIBLE_FOCAL = (0.1, 100.0)
"""Shortest and longest focal length that is taken, over the diagonal of the image."""
_FORM = re.compile(r"(?P<number>[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(?P<unit>px|deg|°)?")


@dataclass(frozen=True)
class FocalLength:
    """What somebody says of the lens of their photos.

    Attributes:
        value: Number of the unit; 0 for "auto".
        unit: "auto" (from EXIF or a guess), "px", or "deg", the field of view in degrees across the
            longer side of the image.
    """

    value: float
    unit: Literal["auto", "px", "deg"]

    def in_pixels(self, image_size: tuple[int, int]) -> float | None:
        """Focal length for an image of a width and height in pixels; None for "auto"."""
        if self.unit == "auto":
            return None
        if self.unit == "px":
            return self.value
        return focal_from_fov(math.radians(self.value), max(image_size))


AUTO = FocalLength(0.0, "auto")


def read_focal(focal: str | float) -> FocalLength:
    """Read ``"auto"``, pixels (``1200``, ``"1200"``, ``"1200px"``) or degrees (``"60deg"``).

    Raises:
        InputError: It is none of these, not above 0, or an angle of 180 degrees or more.
    """
    text = str(focal).strip().lower()
    if text == "auto":
        return AUTO
    match = _FORM.fullmatch(text)
    value = float(match["number"]) if match else math.nan
    degrees = match is not None and match["unit"] in ("deg", "°")
    if not (math.isfinite(value) and value > 0 and (value < 180 or not degrees)):
        raise InputError(
            f"focal: expected auto, a number of pixels such as 1200, or the field of view across "
            f"the longer side such as 60deg, found '{focal}'."
        )
    return FocalLength(value, "deg" if degrees else "px")


def told_focal_px(
    focal: str | float, focal_px: float | None, image_size: tuple[int, int]
) -> float | None:
    """The focal length in pixels that two arguments tell, of which one may be left out.

    Args:
        focal: See `read_focal`.
        focal_px: Pixels; None where ``focal`` says it.
        image_size: Width and height in pixels.

    Returns:
        None if neither tells it.

    Raises:
        InputError: Both tell it, or ``focal`` is not readable.
    """
    told = read_focal(focal)
    if focal_px is None:
        return told.in_pixels(image_size)
    if told != AUTO:
        raise InputError("focal and focal_px say the same thing. Give one of them.")
    return focal_px


def photo_camera(
    photo: LoadedImage,
    focal_px: float | None = None,
    focal_sides: float = 0.0,
    crop_side_px: float = 0.0,
) -> PhotoCamera:
    """Camera of a photo: centred principal point; focal length given, from EXIF, or a guess.

    The guess is the diagonal of the image, a field of view of 2 atan(1/2) = 53 degrees across it,
    which is a 43 mm lens on 35-mm film, or, if that is longer, ``focal_sides`` times the side of
    the largest crop (of which no more than the diagonal counts).

    Raises:
        InputError: ``focal_px`` is not a positive finite number, or not plausible for the size of
            the photo (``PLAUSIBLE_FOCAL``).
    """
    width, height = photo.size
    if focal_px is None:
        diagonal = default_focal_px(photo.size)
        guess = max(diagonal, focal_sides * min(crop_side_px, diagonal))
        focal_px = photo.focal_px or guess
    else:
        check_focal_px(focal_px)
        _check_plausible(focal_px, photo.size)
    return PhotoCamera(float(focal_px), (width / 2, height / 2), (width, height))


def _check_plausible(focal_px: float, image_size: tuple[int, int]) -> None:
    shortest, longest = (factor * math.hypot(*image_size) for factor in PLAUSIBLE_FOCAL)
    if not shortest <= focal_px <= longest:
        width, height = image_size
        raise InputError(
            f"A focal length of {focal_px:g} pixels is not plausible for an image of "
            f"{width}x{height}; expected {shortest:.0f} to {longest:.0f} (0.1 to 100 times its "
            "diagonal). Give pixels, not millimetres, or leave it out."
        )
