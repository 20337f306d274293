"""Objects before, behind and inside the subject: sticks, boxes, discs and ragged blobs.

An occluder is a flat picture with a plane of depth, so that a pen can pass over the palm and under
the fingers.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.data.synthetic.appearance import sample_cloth_rgb, sample_skin_rgb, to_linear
from kinemesh.data.synthetic.backgrounds import fractal_noise

Array = NDArray[np.float32]

_CHANCE = {"hand": 0.4, "body": 0.3}
_SHARE_IN_FRONT = {"hand": 0.4, "body": 0.85}


@dataclass(frozen=True)
class Occluder:
    """One object in crop pixels.

    Attributes:
        colour: (S, S, 3) float32, linear light.
        alpha: (S, S) float32 in [0, 1].
        depth_m: (S, S) float32, depth relative to the middle of the subject; negative is nearer.
    """

    colour: Array
    alpha: Array
    depth_m: Array


def sample_occluders(
    rng: np.random.Generator, size: int, kind: Literal["hand", "body"]
) -> list[Occluder]:
    """Draw none (most often), one or two occluders for a crop of side ``size`` pixels."""
    if rng.random() >= _CHANCE[kind]:
        return []
    return [_sample_one(rng, size, kind) for _ in range(1 + int(rng.random() < 0.25))]


def cover(image: Array, subject_depth_m: Array, occluder: Occluder) -> Array:
    """Lay an occluder over linear light wherever it is nearer than the subject.

    Args:
        image: (S, S, 3) float32, linear light.
        subject_depth_m: (S, S) float32, depth relative to the middle of the subject; inf beside it.
        occluder: the object.

    Returns:
        (S, S, 3) float32.
    """
    visible = occluder.alpha * (occluder.depth_m < subject_depth_m)
    return image + visible[..., None] * (occluder.colour - image)


def _sample_one(rng: np.random.Generator, size: int, kind: Literal["hand", "body"]) -> Occluder:
    alpha = _sample_mask(rng, size, long_objects=kind == "hand")
    if rng.random() < _SHARE_IN_FRONT[kind]:
        depth = np.full((size, size), -np.inf, dtype=np.float32)
    else:
        depth = _sample_plane(rng, size, spread_m=0.03 if kind == "hand" else 0.2)
    return Occluder(_sample_surface(rng, size), alpha, depth)


def _sample_plane(rng: np.random.Generator, size: int, *, spread_m: float) -> Array:
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    offset, slope_x, slope_y = rng.normal(0, spread_m, 3).astype(np.float32)
    plane = offset + slope_x * axis[None, :] + slope_y * axis[:, None]
    return np.asarray(plane, dtype=np.float32)


def _sample_mask(rng: np.random.Generator, size: int, *, long_objects: bool) -> Array:
    mask = np.zeros((size, size), dtype=np.uint8)
    centre = rng.uniform(0.1, 0.9, 2) * size
    reach = np.exp(rng.uniform(np.log(0.06), np.log(0.32))) * size
    kind = rng.random() * (1.0 if long_objects else 0.75)
    turn = rng.uniform(0, 180)
    if kind < 0.2:
        axes = (int(reach) + 1, int(reach * rng.uniform(0.3, 1.0)) + 1)
        origin = (int(centre[0]), int(centre[1]))
        cv2.ellipse(mask, origin, axes, turn, 0, 360, 255, -1, cv2.LINE_AA)
    elif kind < 0.45:
        sides = (2 * reach, 2 * reach * rng.uniform(0.2, 1.0))
        corners = cv2.boxPoints(((centre[0], centre[1]), sides, turn))
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 255, cv2.LINE_AA)
    elif kind < 0.65:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(5, 14))))
        radii = reach * rng.uniform(0.4, 1.2, len(angles))
        ragged = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [np.round(ragged).astype(np.int32)], 255, cv2.LINE_AA)
    else:
        along = np.array([np.cos(np.radians(turn)), np.sin(np.radians(turn))])
        length = size * rng.uniform(0.2, 0.8)
        width = max(1, int(size * np.exp(rng.uniform(np.log(0.015), np.log(0.12)))))
        ends = np.round([centre - along * length, centre + along * length]).astype(int).tolist()
        cv2.line(mask, ends[0], ends[1], 255, width, cv2.LINE_AA)
    return mask.astype(np.float32) * np.float32(1 / 255)


def _sample_surface(rng: np.random.Generator, size: int) -> Array:
    """Two colours of one print, with a gradient of light and some grain."""
    draw = sample_skin_rgb if rng.random() < 0.2 else sample_cloth_rgb
    first, second = to_linear(draw(rng)), to_linear(draw(rng))
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    turn = rng.uniform(0, 2 * np.pi)
    across = axis[None, :] * np.float32(np.cos(turn)) + axis[:, None] * np.float32(np.sin(turn))
    share = np.zeros_like(across)
    if rng.random() < 0.35:
        share = (np.sin(across * rng.uniform(5, 60)) > rng.uniform(-0.5, 0.9)).astype(np.float32)
    colour = first + (second - first) * share[..., None]
    light = rng.uniform(0.5, 1.3) * (1 + rng.uniform(0, 0.6) * across)
    grain = 1 + rng.uniform(0, 0.25) * fractal_noise(rng, size, gain=rng.uniform(0.4, 0.9))
    return np.asarray(np.clip(colour * light[..., None] * grain, 0, 2), dtype=np.float32)
