"""Where the subject stands before the camera, and which part of it fills the crop.

A view turns the posed rest-frame points about the middle of the wanted part, moves them along the
principal axis and chooses the focal length such that this part fills a share of the crop. The
principal point stays in the centre of the crop; the jitter of the crop is a shift of the subject.
"""

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError

Array = NDArray[np.float32]

NEAREST_M = 0.2  # no rendered point comes closer to the camera than this


@dataclass(frozen=True)
class View:
    """A rigid placement in the camera frame and the camera itself.

    Attributes:
        rotation: (3, 3) float32, rest axes to camera axes.
        translation_m: (3,) float32; a camera point is ``rotation @ rest_point + translation_m``.
        focal_px: focal length in crop pixels; the principal point is the centre of the crop.
    """

    rotation: Array
    translation_m: Array
    focal_px: float

    def place(self, points: Array) -> Array:
        """Rest-frame points (..., 3) in the camera frame, metres."""
        return cast(Array, points @ self.rotation.T + self.translation_m)


@dataclass(frozen=True)
class Framing:
    """How a part of the subject is framed.

    Attributes:
        distance_m: depth of the middle of the part.
        fill: longer side of the part's bounding box over the side of the crop.
        shift: (2,) offset of the part from the centre, over the side of the crop.
    """

    distance_m: float
    fill: float
    shift: Array


def frame_subject(
    points: Array, part: Array, rotation: Array, framing: Framing, resolution: int
) -> View:
    """Solve for the translation and the focal length that frame ``part``.

    Args:
        points: (N, 3) points that must stay in front of the camera, rest frame, metres.
        part: (M, 3) points that shall fill the crop, rest frame, metres.
        rotation: (3, 3) rest axes to camera axes.
        framing: distance, fill and shift.
        resolution: side S of the crop in pixels.

    Raises:
        InputError: The part has no extent across the line of sight.
    """
    turned = part @ rotation.T
    middle = (turned.min(0) + turned.max(0)) / 2
    nearest = float(((points @ rotation.T)[:, 2] - middle[2]).min())
    distance = max(framing.distance_m, NEAREST_M - nearest)
    offset = turned - middle
    seen = offset[:, :2] / (offset[:, 2:] + distance)
    low, high = seen.min(0), seen.max(0)
    half = float((high - low).max()) / 2
    if not half > 0:
        raise InputError("frame_subject: the part is a single point; give at least two points.")
    focal = framing.fill * resolution / 2 / half
    shift = (framing.shift * resolution / focal - (low + high) / 2) * distance
    translation = np.array([*shift, distance], dtype=np.float32) - middle
    return View(rotation, translation.astype(np.float32), focal)


def sample_hand_view(
    rng: np.random.Generator, joints: Array, points: Array, resolution: int
) -> View:
    """View a hand from any side, most often with the fingers up.

    Args:
        rng: The only source of chance.
        joints: (21, 3) hand joints, rest frame; joint 0 is the wrist, joint 9 the middle knuckle.
        points: (N, 3) rendered points, rest frame.
        resolution: side S of the crop in pixels.
    """
    rotation = sample_hand_rotation(rng, joints)
    framing = Framing(
        distance_m=rng.uniform(0.35, 1.5),
        fill=rng.uniform(0.55, 0.95) if rng.random() < 0.93 else rng.uniform(0.95, 1.2),
        shift=np.clip(rng.normal(0, 0.06, 2), -0.15, 0.15).astype(np.float32),
    )
    return frame_subject(points, joints, rotation, framing, resolution)


def sample_hand_rotation(rng: np.random.Generator, joints: Array) -> Array:
    """Any rotation; most often palm or back to the viewer and the fingers up.

    Args:
        rng: The only source of chance.
        joints: (21, 3) hand joints, rest frame.

    Returns:
        (3, 3) float32, rest axes to camera axes.
    """
    rotation = _random_rotation(rng)
    if rng.random() < 0.6:
        rotation = _face_palm_or_back(rng, joints)
    along = rotation @ (joints[9] - joints[0])
    current = np.arctan2(along[0], -along[1])
    upright = rng.random() < 0.85
    wanted = rng.normal(0, np.radians(40)) if upright else rng.uniform(-np.pi, np.pi)
    return np.asarray(_about_z(wanted - current) @ rotation, dtype=np.float32)


def sample_body_rotation(rng: np.random.Generator) -> Array:
    """Any yaw, half of them near the front; mild pitch, mostly from above; roll with tails.

    Returns:
        (3, 3) float32, rest axes to camera axes.
    """
    yaw = rng.uniform(-np.pi, np.pi) if rng.random() < 0.5 else rng.normal(0, np.radians(45))
    pitch = np.radians(rng.normal(6, 9) if rng.random() < 0.85 else rng.normal(10, 28))
    roll = np.radians(rng.normal(0, 8) if rng.random() < 0.95 else rng.normal(0, 35))
    pitch = np.clip(pitch, -np.pi / 3, np.pi / 2.2)
    return body_rotation(yaw, float(pitch), float(roll))


def body_rotation(yaw_rad: float, pitch_rad: float, roll_rad: float) -> Array:
    """Rotation (3, 3) of somebody who turned by ``yaw`` and is seen by a tilted camera."""
    turned = _about_z(roll_rad) @ _about_x(pitch_rad) @ _about_y(yaw_rad)
    return np.asarray(turned, dtype=np.float32)


class BodyFramer:
    """Chooses the part of a body that a crop shows: all of it, a portrait, or another cut.

    Args:
        template: (V, 3) rest-pose vertices, rest frame (y down).
        landmarks: heights (rest-frame y, metres) named "neck", "hip".
        arms: (V,) mask of the arms and hands, which a portrait need not contain.
    """

    def __init__(self, template: Array, landmarks: dict[str, float], arms: Array) -> None:
        self._order = np.arange(0, len(template), 5)  # a bounding box needs no more
        self._height = template[self._order, 1]
        self._trunk = arms[self._order] < 0.5
        self._neck, self._hip = landmarks["neck"], landmarks["hip"]

    def sample(
        self, rng: np.random.Generator, vertices: Array, rotation: Array, resolution: int
    ) -> View:
        """Frame the posed ``vertices`` (V, 3), rest frame, seen under ``rotation``."""
        points = vertices[self._order]
        chance = rng.random()
        if chance < 0.55:
            part, framing = points, _body_framing(rng, (2.0, 9.0), (0.72, 1.02), 0.04)
        elif chance < 0.9:
            part = points[self._portrait(rng)]
            framing = _body_framing(rng, (1.0, 5.0), (0.75, 1.3), 0.08)
        else:
            part = points[self._cut(rng, points)]
            framing = _body_framing(rng, (1.5, 6.0), (0.8, 1.1), 0.06)
        return frame_subject(points, part, rotation, framing, resolution)

    def _portrait(self, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Everything of head and trunk above a cut between the chest and below the hips."""
        bottom = self._neck + rng.uniform(0.35, 1.15) * (self._hip - self._neck)
        keep = self._height < bottom
        if rng.random() < 0.6:
            keep &= self._trunk
        return cast(NDArray[np.bool_], keep)

    def _cut(self, rng: np.random.Generator, points: Array) -> NDArray[np.bool_]:
        """The legs alone, or everything near one random vertex."""
        if rng.random() < 0.4:
            return cast(NDArray[np.bool_], self._height > self._hip - rng.uniform(0.0, 0.3))
        centre = points[rng.integers(len(points))]
        return cast(
            NDArray[np.bool_], np.linalg.norm(points - centre, axis=1) < rng.uniform(0.45, 0.8)
        )


def _body_framing(
    rng: np.random.Generator,
    distance_m: tuple[float, float],
    fill: tuple[float, float],
    jitter: float,
) -> Framing:
    low, high = np.log(distance_m)
    shift = np.clip(rng.normal(0, jitter, 2), -2.5 * jitter, 2.5 * jitter)
    distance = float(np.exp(rng.uniform(low, high)))
    return Framing(distance, rng.uniform(*fill), shift.astype(np.float32))


def _face_palm_or_back(rng: np.random.Generator, joints: Array) -> Array:
    """Turn the palm or the back of the hand to the camera, give or take 35 degrees."""
    along = joints[9] - joints[0]
    normal = np.cross(along, joints[17] - joints[5])
    forward = normal / max(float(np.linalg.norm(normal)), 1e-9) * rng.choice([-1.0, 1.0])
    down = -along / max(float(np.linalg.norm(along)), 1e-9)
    right = np.cross(down, forward)
    facing = np.stack([right / max(float(np.linalg.norm(right)), 1e-9), down, forward])
    tilt = _about_x(rng.normal(0, np.radians(35))) @ _about_y(rng.normal(0, np.radians(35)))
    return np.asarray(tilt @ facing, dtype=np.float32)


def _random_rotation(rng: np.random.Generator) -> Array:
    """Uniform over all rotations, from a normalised Gaussian quaternion."""
    w, x, y, z = (quaternion := rng.normal(size=4)) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=np.float32,
    )


def _about_x(angle_rad: float) -> NDArray[np.floating]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def _about_y(angle_rad: float) -> NDArray[np.floating]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def _about_z(angle_rad: float) -> NDArray[np.floating]:
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
