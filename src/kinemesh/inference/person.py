"""What a prediction is: one person or hand in the camera frame of the photo."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.errors import InputError
from kinemesh.inference.boxes import Side
from kinemesh.inference.explanation import Explanation

LOW_SCORE = 0.05
"""Below this score there is probably nobody in the crop."""


def check_focal_px(focal_px: float) -> None:
    """Refuse a focal length that no camera has.

    Raises:
        InputError: It is not finite or not above 0.
    """
    if not (math.isfinite(focal_px) and focal_px > 0):
        raise InputError(f"focal_px must be a number of pixels above 0, found {focal_px}.")


@dataclass(frozen=True)
class PhotoCamera:
    """Pinhole camera of a whole photo, without lens distortion.

    Attributes:
        focal_px: Focal length in pixels, equal in x and y.
        principal_px: Where the optical axis meets the image, pixels from the upper left corner.
        image_size: Width and height in pixels.
    """

    focal_px: float
    principal_px: tuple[float, float]
    image_size: tuple[int, int]

    def project(self, points_m: np.ndarray) -> np.ndarray:
        """Project camera-frame points (..., 3) in metres to image pixels (..., 2)."""
        centre = np.asarray(self.principal_px)
        return np.asarray(self.focal_px * points_m[..., :2] / points_m[..., 2:3] + centre)


@dataclass(frozen=True, eq=False)
class Person:
    """One recovered person or hand.

    The camera frame is that of the whole photo and the same for all of its people: x right, y down,
    z forward, origin at the camera, metres. Its scale along z rests on the focal length; see
    ``camera``.

    Attributes:
        vertices: (V, 3) float32, camera frame, metres; V is 0 where the network has no mesh.
        faces: (F, 3) int64 into ``vertices``, counter-clockwise seen from outside.
        joints: (J, 3) float32, camera frame, metres; (0, 3) where the network finds them in
            the image alone.
        joints_px: (J, 2) float32 found in the image, pixels from its upper left corner.
        joint_confidence: (J,) float32 in 0..1.
        skeleton: Name of the joint set, a key of ``kinemesh.skeletons.SKELETONS``.
        box_px: x, y, width and height in pixels: the box asked for, or the whole image.
        side: "left" or "right" for a hand, None for a body.
        score: Score of the box where a detector gave one, else the mean joint confidence.
        camera: The camera of the photo, shared by all of its people.
        explanation: What the network looked at, if it was asked; no file but the picture holds it.
        owner: For a hand beside bodies the position of its person in the list of people of the
            photo; None for a body and for a hand whose person is not known.
        parameters: Pose and shape of a body model fitted to ``vertices``, if that was asked
            (`kinemesh.inference.fitting`).
        joint_spread_m: (J,) float32, how far the network expects each of ``joints`` to be from the
            truth, metres, with the roots moved together: it says nothing of the place in the
            camera. None where the network does not say, and for joints changed after it (a
            smoothed video).
        keypoint_spread_px: (J,) float32, the same for ``joints_px``, pixels of the photo. It was
            learned from joints inside the crop; that of others has no meaning.
    """

    vertices: np.ndarray
    faces: np.ndarray
    joints: np.ndarray
    joints_px: np.ndarray
    joint_confidence: np.ndarray
    skeleton: str
    box_px: tuple[float, float, float, float]
    side: Side | None
    score: float
    camera: PhotoCamera
    explanation: Explanation | None = None
    owner: int | None = None
    parameters: BodyParameters | None = None
    joint_spread_m: np.ndarray | None = None
    keypoint_spread_px: np.ndarray | None = None

    @property
    def kind(self) -> Literal["body", "hand"]:
        """What it is: hands have a side, bodies have none."""
        return "body" if self.side is None else "hand"

    @property
    def has_mesh(self) -> bool:
        """Whether there are vertices and faces."""
        return len(self.vertices) > 0

    @property
    def has_depth(self) -> bool:
        """Whether the joints have a place in the camera frame, and not in the image alone."""
        return len(self.joints) > 0
