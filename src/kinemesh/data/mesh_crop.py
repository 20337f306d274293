"""The square crop of METRO's and Mesh Graphormer's training data, to the last bit.

It differs from `kinemesh.geometry.crops.warp_crop` on purpose: corners are truncated to whole
pixels, a turned crop is cut from a padded canvas, and shrinking is plain bilinear. Whoever trains
or scores against published numbers needs exactly these pixels. Angles are in degrees, since the
published settings are; positive turns the picture counter-clockwise as seen on the screen.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kinemesh.errors import InputError

Float = NDArray[np.float64]
Picture = NDArray[np.uint8]

RESOLUTION = 224
PIXELS_OF_SCALE = 200.0
"""Labels give the side of a box in units of 200 px, as MPII did for the height of a person."""
_MOST_CANVAS_PIXELS = 100_000_000
_PART_BITS = 5
_PARTS, _UNIT = 32, 1024  # steps of OpenCV's sampling in a pixel, and of its coordinates
_STRIP = 64  # rows


@dataclass(frozen=True)
class CropParameters:
    """How one crop departs from the plain box of its label.

    Attributes:
        flip: Mirror the picture left to right, after it was turned.
        noise: Factors of red, green and blue.
        rotation_deg: Turn of the picture, counter-clockwise as seen.
        scale: Side of the crop over the side of the label's box; below 1 zooms in.
    """

    flip: bool = False
    noise: tuple[float, float, float] = (1.0, 1.0, 1.0)
    rotation_deg: float = 0.0
    scale: float = 1.0


PLAIN_CROP = CropParameters()


def crop_affine(
    center_px: Float, scale: float, rotation_deg: float = 0.0, resolution: int = RESOLUTION
) -> Float:
    """Affine map (3, 3) from image pixels to crop pixels.

    Args:
        center_px: (2,) centre of the box in the image.
        scale: Side of the box in units of 200 px.
        rotation_deg: Turn of the picture about the centre of the crop.
        resolution: Side of the crop in its own pixels.
    """
    side = PIXELS_OF_SCALE * scale
    matrix = np.diag((resolution / side, resolution / side, 1.0))
    matrix[:2, 2] = [resolution * (0.5 - float(c) / side) for c in center_px]
    if rotation_deg == 0:
        return matrix
    to_middle, back = np.eye(3), np.eye(3)
    to_middle[:2, 2], back[:2, 2] = -resolution / 2, resolution / 2
    return back @ (turn_about_z(rotation_deg) @ (to_middle @ matrix))


def turn_about_z(rotation_deg: float) -> Float:
    """Rotation (3, 3) of image or camera coordinates that belongs to a turn of the picture.

    The y axis points down, so a counter-clockwise turn has a negative angle in these coordinates.
    """
    angle = -rotation_deg * np.pi / 180
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def crop_corners(
    center_px: Float, scale: float, resolution: int = RESOLUTION
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole-pixel corners (2,) of the box: upper left, and lower right (exclusive).

    Both are truncated towards zero, so a box that begins left of the image loses a fraction there
    and one that begins inside of it gains one.
    """
    to_image = np.linalg.inv(crop_affine(center_px, scale, resolution=resolution))
    first, last = (
        (to_image @ np.array([c, c, 1.0]))[:2].astype(np.int64) for c in (0.0, float(resolution))
    )
    return first, last


def crop_picture(
    picture: Picture,
    center_px: Float,
    scale: float,
    parameters: CropParameters = PLAIN_CROP,
    resolution: int = RESOLUTION,
) -> NDArray[np.float32]:
    """Cut, turn, shrink, mirror and tint one square crop.

    Args:
        picture: (H, W, 3) uint8 RGB.
        center_px: (2,) centre of the label's box.
        scale: Side of the label's box in units of 200 px, before ``parameters.scale``.
        parameters: Departures from the plain crop.
        resolution: Side S of the crop.

    Returns:
        (3, S, S) float32 sRGB in [0, 1]; black outside the image.

    Raises:
        InputError: The box is smaller than a pixel, or absurdly large.
    """
    canvas = _cut(picture, center_px, scale * parameters.scale, parameters.rotation_deg, resolution)
    crop = cv2.resize(canvas, (resolution, resolution), interpolation=cv2.INTER_LINEAR)
    if parameters.flip:
        crop = crop[:, ::-1]
    image = np.empty((3, resolution, resolution), dtype=np.float32)
    for channel, factor in enumerate(parameters.noise):
        image[channel] = np.clip(crop[:, :, channel] * factor, 0.0, 255.0)
    image /= 255.0  # in float32: dividing before the rounding differs in the last bit
    return image


def misses_picture(picture: Picture, center_px: Float, scale: float) -> bool:
    """Whether a label's box lies wholly beside a picture (H, W, 3), so that its crop is black."""
    _, inner = _overlap(picture, *crop_corners(center_px, scale))
    return not inner.size


def _cut(
    picture: Picture, center_px: Float, scale: float, rotation_deg: float, resolution: int
) -> Float:
    """The box in float64, (h, w, 3) in 0..255, turned but not yet resized."""
    first, last = crop_corners(center_px, scale, resolution)
    size = last - first
    if (size < 1).any() or size.prod() > _MOST_CANVAS_PIXELS:
        raise InputError(
            "scale: expected a box between 1 px and 10,000 px wide, found "
            f"{size[0]} x {size[1]} px at {center_px} (scale {scale:.4g}, in units of 200 px). "
            "Mend or drop this label."
        )
    if rotation_deg != 0:
        return _turned(picture, first, last, rotation_deg)
    origin, inner = _overlap(picture, first, last)
    canvas = np.zeros((size[1], size[0], 3))
    canvas[origin[1] : origin[1] + len(inner), origin[0] : origin[0] + inner.shape[1]] = inner
    return canvas


def _overlap(
    picture: Picture, first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.int64], Picture]:
    """The part of a picture between two corners, and where it begins, counted from the first."""
    extent = np.array(picture.shape[1::-1])
    low = np.clip(first, 0, extent)
    high = np.maximum(low, np.minimum(last, extent))
    return low - first, picture[low[1] : high[1], low[0] : high[0]]


def _turned(
    picture: Picture, first: NDArray[np.int64], last: NDArray[np.int64], rotation_deg: float
) -> Float:
    """The box (h, w, 3) after a turn of its surroundings.

    The published code pads the box so that its turned corners are still covered, turns this canvas
    with ``cv2.warpAffine`` and cuts the padding off. Here the same fixed-point coordinates are
    computed for the box alone, and read from the picture itself: the same bits for half of the
    time. Weights are multiples of 1/1024 and pixels whole numbers, so float32 holds every sum.
    """
    width, height = last - first
    pad = int(np.linalg.norm(last - first) / 2 - height / 2)
    origin, inner = _overlap(picture, first - pad, last + pad)
    if not inner.size:
        return np.zeros((height, width, 3))
    middle = ((width + 2 * pad - 1) * 0.5, (height + 2 * pad - 1) * 0.5)
    turn = cv2.getRotationMatrix2D(middle, rotation_deg, 1.0)
    back = cv2.invertAffineTransform(turn).astype(np.float64, copy=False)
    columns, source = np.arange(pad, pad + width), inner.astype(np.float32)
    turned = np.empty((height, width, 3))
    for top in range(0, height, _STRIP):  # in strips, so that what is between stays in the cache
        rows = np.arange(pad + top, pad + min(top + _STRIP, height))
        pixels, weights = _fixed_point(back, columns, rows, origin)
        strip = cv2.remap(source, pixels, weights, cv2.INTER_LINEAR)
        turned[top : top + len(rows)] = strip
    return turned


def _fixed_point(
    back: Float,
    columns: NDArray[np.int64],
    rows: NDArray[np.int64],
    origin: NDArray[np.int64],
) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """OpenCV's rounding of mapped coordinates: whole pixels (h, w, 2), and 32nds of both axes."""
    pixels = np.empty((len(rows), len(columns), 2), dtype=np.int16)
    parts = []
    for axis in (0, 1):
        along = np.rint(back[axis, 0] * columns * _UNIT).astype(np.int32) + _UNIT // _PARTS // 2
        start = np.rint((back[axis, 1] * rows + back[axis, 2]) * _UNIT) - origin[axis] * _UNIT
        place = start.astype(np.int32)[:, None] + along
        place >>= _PART_BITS  # from 1024ths to 32nds of a pixel
        np.right_shift(place, _PART_BITS, out=pixels[..., axis], casting="unsafe")
        place &= _PARTS - 1
        parts.append(place)
    parts[1] <<= _PART_BITS
    parts[1] |= parts[0]
    return pixels, parts[1].astype(np.uint16)


def demo_crop(picture: Picture, resolution: int = RESOLUTION) -> tuple[Picture, Float, float]:
    """The crop of the official demos: shorter side to ``resolution``, then its middle.

    Args:
        picture: (H, W, 3) uint8 RGB.
        resolution: Side S of the crop.

    Returns:
        (S, S, 3) uint8 RGB, and centre (2,) and side of the crop in pixels of ``picture``.
    """
    height, width = picture.shape[:2]
    shorter = min(height, width)
    size = (int(resolution * width / shorter), int(resolution * height / shorter))
    small = Image.fromarray(picture)
    if size != (width, height):
        small = small.resize(size, Image.Resampling.BILINEAR)  # Pillow averages when it shrinks
    left, top = (round((extent - resolution) / 2) for extent in size)
    crop = np.asarray(small)[top : top + resolution, left : left + resolution]
    middle = np.array([left, top]) + resolution / 2
    return crop, middle * np.array([width, height]) / np.array(size), float(shorter)
