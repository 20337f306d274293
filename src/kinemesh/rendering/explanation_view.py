"""What a network looked at, drawn on a photo: sampled points, and the attention of a joint.

The pictures after Lin, Wang and Liu (CVPR 2021, figure 5): lines from a joint to the vertices that
it attends to. Here every vertex is a dot besides, with the colour of its weight. The photo is
darkened and loses most of its colour, so that dots and lines stand out.

Legend of shapes: P points, N coarse vertices.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.rendering.overlay import FINGER_COLORS, Color, Image, draw_disk, draw_line

REGION_COLORS: Mapping[str, Color] = MappingProxyType(
    {
        "head": (1.00, 0.90, 0.30),
        "torso": (0.45, 0.88, 0.45),
        "left arm": (1.00, 0.60, 0.25),
        "right arm": (0.35, 0.70, 1.00),
        "left leg": (1.00, 0.40, 0.55),
        "right leg": (0.70, 0.55, 1.00),
        "palm": (0.90, 0.90, 0.90),
        **FINGER_COLORS,
    }
)
"""By the words of `kinemesh.bodies.regions`."""

MOST_LINES = 40
"""Lines of a joint go to this many vertices at most, those with the largest weights."""
LEAST_WEIGHT = 0.5
"""Vertices below this weight get no line."""
TITLE_PX = 24
_BRIGHTNESS, _SATURATION = 0.5, 0.35
_WHITE: Color = (1.0, 1.0, 1.0)
_BLACK: Color = (0.05, 0.05, 0.05)
_PAPER = (236, 238, 241)
_INK = (40, 42, 46)


def draw_sampled(
    photo: Image, points_px: NDArray[np.floating], regions: Sequence[str], title: str
) -> Image:
    """Draw where features were sampled, in the colours of the parts of the body.

    Args:
        photo: (H, W, 3) uint8 RGB; it is not changed.
        points_px: (P, 2) pixels.
        regions: P keys of `REGION_COLORS`.
        title: Stands above the picture; the colours are explained below it.

    Returns:
        (H + 2 TITLE_PX, W, 3) uint8 RGB.
    """
    canvas = _muted(photo)
    radius = _dot_radius(canvas, len(points_px))
    for point, region in zip(points_px, regions, strict=True):
        if _is_near(point, canvas):
            draw_disk(canvas, point, _BLACK, radius + 1)
            draw_disk(canvas, point, REGION_COLORS[region], radius)
    shown = [region for region in REGION_COLORS if region in regions]
    return np.concatenate([_title(canvas, title), canvas, _legend(canvas, shown)])


def draw_attention(
    photo: Image,
    joint_px: NDArray[np.floating],
    vertices_px: NDArray[np.floating],
    weights: NDArray[np.floating],
    title: str,
) -> Image:
    """Draw how much a joint attends to each vertex.

    Args:
        photo: (H, W, 3) uint8 RGB; it is not changed.
        joint_px: (2,) place of the joint, pixels: a white ring.
        vertices_px: (N, 2) pixels.
        weights: (N,) in 0..1: colour and size of a vertex, and of the line to it.
        title: Stands above the picture; the colours are explained below it.

    Returns:
        (H + 2 TITLE_PX, W, 3) uint8 RGB.
    """
    canvas = _muted(photo)
    colors = _heat_colors(weights)
    radius = _dot_radius(canvas, len(vertices_px))
    rising = [n for n in np.argsort(weights) if _is_near(vertices_px[n], canvas)]
    if _is_near(joint_px, canvas):
        lines = canvas.copy()
        for n in rising[-MOST_LINES:]:
            if weights[n] >= LEAST_WEIGHT:
                ends = np.stack([joint_px, vertices_px[n]]).astype(np.float32)
                draw_line(lines, ends, colors[n], 1)
        canvas = cv2.addWeighted(lines, 0.7, canvas, 0.3, 0).astype(np.uint8)
    for n in rising:
        draw_disk(canvas, vertices_px[n], colors[n], radius * (0.6 + 0.8 * float(weights[n])))
    if _is_near(joint_px, canvas):
        for color, scale in ((_WHITE, 2.6), (_BLACK, 1.9), (_WHITE, 1.0)):
            draw_disk(canvas, joint_px, color, scale * radius)
    return np.concatenate([_title(canvas, title), canvas, _scale(canvas)])


def _muted(photo: Image) -> Image:
    grey = photo.mean(axis=2, keepdims=True)
    muted = _BRIGHTNESS * (grey + _SATURATION * (photo - grey))
    return np.ascontiguousarray(muted.round().astype(np.uint8))


def _dot_radius(canvas: Image, count: int) -> float:
    side: int = min(canvas.shape[:2])
    return max(1.0, side / (90 if count < 50 else 190))


def _is_near(point: NDArray[np.floating], canvas: Image) -> bool:
    # OpenCV's integers overflow far outside the image.
    return bool((np.abs(point) < 16 * max(canvas.shape)).all())


def _heat_colors(weights: NDArray[np.floating]) -> list[Color]:
    """Black and violet for little, orange and yellow for much."""
    levels = (np.clip(weights, 0, 1) * 255).round().astype(np.uint8)
    bgr = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_INFERNO).reshape(-1, 3)
    return [(red / 255, green / 255, blue / 255) for blue, green, red in bgr.tolist()]


def _title(canvas: Image, text: str) -> Image:
    strip = _strip(canvas)
    _write(strip, text, 6, _INK)
    return strip


def _legend(canvas: Image, regions: Sequence[str]) -> Image:
    strip = _strip(canvas)
    step = canvas.shape[1] // max(len(regions), 1)
    for place, region in enumerate(regions):
        middle = np.array([place * step + 6.0, TITLE_PX / 2])
        draw_disk(strip, middle, REGION_COLORS[region], 4)
        _write(strip, region, place * step + 12, _INK, 0.32)
    return strip


def _scale(canvas: Image) -> Image:
    strip = _strip(canvas)
    width = canvas.shape[1]
    left, right = 46, width - 46
    ramp = np.array(_heat_colors(np.linspace(0, 1, right - left))) * 255
    strip[8:-8, left:right] = ramp.round().astype(np.uint8)
    _write(strip, "least", 6, _INK, 0.34)
    _write(strip, "most", right + 8, _INK, 0.34)
    return strip


def _strip(canvas: Image) -> Image:
    return np.full((TITLE_PX, canvas.shape[1], 3), _PAPER, dtype=np.uint8)


def _write(
    strip: Image, text: str, left: int, color: tuple[int, int, int], size: float = 0.45
) -> None:
    where = (left, TITLE_PX - 8)
    cv2.putText(strip, text, where, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1, cv2.LINE_AA)
