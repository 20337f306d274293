"""The crop of a person in the "200-pixel" convention of MPII, as HRNet and PRTR train on it.

A person is a centre c (pixels) and a scale (s_x, s_y) in units of 200 px. The crop is 200 s_x wide;
its height follows from the aspect ratio of the output, so s_y is carried along but never used. With
a = W / (200 s_x) and a turn of r degrees, T(p) = a R(r) (p - c) + (W/2, H/2).

Integer coordinates are the centres of pixels, as in OpenCV and unlike `kinemesh.geometry.crops`,
and nothing is shifted by half a pixel: whoever trains or scores against published numbers needs
exactly this. Sizes are (width, height), as the published configurations write them.
"""

from typing import Literal, NamedTuple, cast, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD

Float = NDArray[np.float64]
Picture = NDArray[np.uint8]
Size = tuple[int, int]
ColorOrder = Literal["bgr", "rgb"]
"""Order of the channels that a network sees. The published ResNets see blue first."""

PIXELS_OF_SCALE = 200.0
PADDING = 1.25
"""Side of the crop over that of the box."""
_NO_PLACE = -1.0
"""A centre with this x counts as none in the published runs, and its crop is not padded."""
PIXEL_CENTER = 0.5
"""From coordinates here and in the files of COCO, where the first pixel's centre is at 0, to those
of whole images and of results, which count from the picture's corner."""


class Placement(NamedTuple):
    """Where a person is in the source image.

    Attributes:
        center: (2,) float32, pixels.
        scale: (2,) float32, width and height of the crop in units of 200 px.
    """

    center: NDArray[np.float32]
    scale: NDArray[np.float32]


def crop_affine(center: NDArray, scale: NDArray, size: Size, rotation_deg: float = 0.0) -> Float:
    """Affine map (2, 3) float64 from image pixels to crop pixels.

    Args:
        center: (2,) pixels.
        scale: (2,) units of 200 px; only the first, the width, counts.
        size: Width and height of the crop.
        rotation_deg: Turn of the picture, counter-clockwise as seen on the screen.

    Raises:
        InputError: The width is not positive, or a number is not finite.
    """
    linear, center = _linear(center, scale, size, rotation_deg)
    offset = np.array(size) / 2 - linear @ center
    return np.concatenate([linear, offset[:, None]], axis=1)


def crop_affine_inverse(
    center: NDArray, scale: NDArray, size: Size, rotation_deg: float = 0.0
) -> Float:
    """Affine map (2, 3) float64 from crop pixels back to image pixels; arguments as above."""
    linear, center = _linear(center, scale, size, rotation_deg)
    back = linear.T / (linear[0] @ linear[0])  # a rotation times a number
    offset = center - back @ (np.array(size) / 2)
    return np.concatenate([back, offset[:, None]], axis=1)


def _linear(
    center: NDArray, scale: NDArray, size: Size, rotation_deg: float
) -> tuple[Float, Float]:
    center, width = np.asarray(center, dtype=np.float64), float(scale[0]) * PIXELS_OF_SCALE
    if not (np.isfinite(center).all() and 0 < width < np.inf and np.isfinite(rotation_deg)):
        raise InputError(
            f"center, scale: expected finite numbers and a positive width, found {center.tolist()} "
            f"and a width of {width:.4g} px. Mend or drop this box."
        )
    zoom, angle = size[0] / width, rotation_deg * np.pi / 180
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    return np.array([[cos, sin], [-sin, cos]]), center


def map_points(affine: NDArray, points: NDArray) -> Float:
    """Apply an affine map (2, 3) to points (..., 2)."""
    return np.asarray(points @ affine[:, :2].T + affine[:, 2], dtype=np.float64)


def warp_picture(picture: Picture, affine: NDArray, size: Size) -> Picture:
    """Cut a crop (H, W, 3) of the given size out of a picture: bilinear, black outside.

    The rounding is that of the installed OpenCV; releases differ by up to 4 levels in some pixels.
    """
    return cast(Picture, cv2.warpAffine(picture, affine, size, flags=cv2.INTER_LINEAR))


def normalise_picture(picture: Picture) -> NDArray[np.float32]:
    """(H, W, 3) uint8 to (3, H, W) float32, normalised by ImageNet's statistics.

    Their numbers for red, green and blue go to channels 0, 1 and 2 whatever the order of the
    channels is: the published networks were trained so.
    """
    image = picture.astype(np.float32) / np.float32(255)
    image -= np.array(IMAGENET_MEAN, dtype=np.float32)
    image /= np.array(IMAGENET_STD, dtype=np.float32)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def denormalise_picture(image: NDArray[np.float32], order: ColorOrder) -> Picture:
    """The RGB picture (H, W, 3) uint8 of a normalised image (3, H, W) in an order of channels."""
    std, mean = (np.array(x, dtype=np.float32) for x in (IMAGENET_STD, IMAGENET_MEAN))
    unit = image.transpose(1, 2, 0) * std + mean
    picture = np.clip(unit * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(picture[:, :, ::-1] if order == "bgr" else picture)


def decode_picture(content: bytes, where: str, order: ColorOrder = "bgr") -> Picture:
    """Decode a picture file to (H, W, 3) uint8; a turn noted in its EXIF data is ignored.

    Raises:
        InputError: It is no picture that OpenCV reads, or a JPEG that ends early.
    """
    if order not in get_args(ColorOrder):
        raise InputError(f"order: expected 'bgr' or 'rgb', found {order!r}.")
    # OpenCV fills the missing end of a JPEG with grey and only prints a warning
    is_jpeg = content.startswith(b"\xff\xd8")
    cut = is_jpeg and content.rfind(b"\xff\xd9") < content.rfind(b"\xff\xda")
    pixels = np.frombuffer(content, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = None if cut or not len(pixels) else cv2.imdecode(pixels, flags)
    if picture is None:
        found = "a JPEG that ends early" if cut else f"{len(content)} bytes of something else"
        raise InputError(f"{where}: expected a complete picture, found {found}. Copy it again.")
    if order == "rgb":
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return cast(Picture, picture)


def place_box(
    box: NDArray, aspect: float, padding: float = PADDING, offset: Float | None = None
) -> Placement:
    """Centre and scale of a box: the aspect ratio by enlarging, then the padding.

    A box whose centre has x = -1 is not padded, as in the published runs (in COCO: a detector's box
    that lies half outside of the picture).

    Args:
        box: (4,) x, y, width, height in pixels.
        aspect: Width over height of the crop.
        padding: Factor of both sides.
        offset: (2,) place of the centre, if it is not that of the box.
    """
    x, y, width, height = (float(value) for value in box)
    center = np.asarray(
        [x + width * 0.5, y + height * 0.5] if offset is None else offset, dtype=np.float32
    )
    if width > aspect * height:
        height = width / aspect
    elif width < aspect * height:
        width = height * aspect
    scale = np.array([width / PIXELS_OF_SCALE, height / PIXELS_OF_SCALE], dtype=np.float32)
    padded = offset is not None or center[0] != _NO_PLACE
    return Placement(center, scale * np.float32(padding) if padded else scale)


def clean_box(box: NDArray, width: int, height: int) -> Float | None:
    """Cut a labelled box (x, y, w, h) to its image, the way the published scores were computed.

    The far corner is x + w - 1, so a cleaned box is a pixel smaller than its label.

    Returns:
        (4,) x, y, w, h; None where nothing is left.
    """
    x, y, w, h = (float(value) for value in box)
    x1, y1 = max(0.0, x), max(0.0, y)
    x2 = min(width - 1.0, x1 + max(0.0, w - 1))
    y2 = min(height - 1.0, y1 + max(0.0, h - 1))
    if x2 < x1 or y2 < y1:
        return None
    return np.array([x1, y1, x2 - x1, y2 - y1])
