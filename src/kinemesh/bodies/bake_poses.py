"""Random poses for the up-sampling fit and its held-out error: broad, not natural.

They only have to bend every joint of interest through its range; training data has its own
samplers. All rotations are deltas in rest-frame axes (:mod:`kinemesh.bodies.rig`).
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.bodies.rig import Rig

Array = NDArray[np.float64]

# Standard deviation in degrees of a random rotation about a random axis.
BODY_SPREAD_DEG = {
    "spine": 8.0,
    "neck": 8.0,
    "head": 12.0,
    "clavicle": 8.0,
    "upperarm01": 40.0,
    "lowerarm02": 15.0,
    "wrist": 20.0,
    "upperleg01": 30.0,
    "foot": 15.0,
    "toe": 4.0,
    "finger": 5.0,
}
ELBOW_DEG, KNEE_DEG = (-20.0, 100.0), (0.0, 120.0)
FLEXION_DEG = {1: (-15.0, 85.0), 2: (-5.0, 105.0), 3: (-5.0, 75.0)}
THUMB_DEG = {1: (-20.0, 35.0), 2: (-15.0, 45.0), 3: (-20.0, 70.0)}
HAND_SPREAD_DEG = {
    "finger1-1": 12.0,
    "-1": 7.0,
    "metacarpal": 2.5,
    "lowerarm02": 15.0,
    "wrist": 20.0,
}


def rotation_matrices(rotvec: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) of rotation vectors (..., 3) in radians.

    The matrix exponential of the cross-product matrix: exact, and fast enough offline.
    """
    x, y, z = rotvec.unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1)
    rotation: Tensor = torch.linalg.matrix_exp(cross.reshape(*x.shape, 3, 3))
    return rotation


def random_body_poses(rig: Rig, count: int, rng: np.random.Generator) -> Tensor:
    """(B, N, 3, 3) poses of the body: limbs and spine moved, fingers nearly relaxed."""
    rotvec = _spread(rig, count, BODY_SPREAD_DEG, rng)
    for side in "LR":
        shoulder, elbow, wrist = (
            rig.bone_template[rig.bone_index(f"{name}.{side}")].double().numpy()
            for name in ("upperarm01", "lowerarm01", "wrist")
        )
        hinge = _unit(np.cross(elbow - shoulder, wrist - elbow))
        bend = rng.uniform(*ELBOW_DEG, (count, 1))
        rotvec[:, rig.bone_index(f"lowerarm01.{side}")] = np.radians(bend) * hinge
        # About +x the shin, which points down, swings backward.
        bend = rng.uniform(*KNEE_DEG, (count, 1))
        rotvec[:, rig.bone_index(f"lowerleg01.{side}")] = np.radians(bend) * np.array([1.0, 0, 0])
    return rotation_matrices(torch.from_numpy(rotvec).float())


def random_hand_poses(rig: Rig, count: int, rng: np.random.Generator) -> Tensor:
    """(B, N, 3, 3) poses of the hand: every finger curled by its own random amount."""
    rotvec = _spread(rig, count, HAND_SPREAD_DEG, rng)
    normal = palm_normal(rig)
    for finger in range(1, 6):
        curl = rng.uniform(0, 1, (count, 1))
        for segment, (low, high) in (THUMB_DEG if finger == 1 else FLEXION_DEG).items():
            hinge = flexion_axis(rig, finger, segment, normal)
            share = np.clip(curl + rng.normal(0, 0.15, (count, 1)), 0, 1)
            bone = rig.bone_index(f"finger{finger}-{segment}.R")
            rotvec[:, bone] += np.radians(low + (high - low) * share) * hinge
    return rotation_matrices(torch.from_numpy(rotvec).float())


def palm_normal(rig: Rig) -> Array:
    """(3,) unit normal of the right palm in the rest frame, pointing out of the palm.

    Fingers hang slightly curled at rest, so their ends lie on the palm's side of the plane through
    the wrist and the knuckles of index and little finger.
    """
    heads = rig.bone_template.double().numpy()
    wrist, index, little = (
        heads[rig.bone_index(f"{name}.R")] for name in ("wrist", "finger2-1", "finger5-1")
    )
    normal = _unit(np.cross(index - wrist, little - wrist))
    ends = np.mean([heads[rig.bone_index(f"finger{finger}-3.R")] for finger in range(2, 6)], axis=0)
    outward: Array = normal if (ends - wrist) @ normal > 0 else -normal
    return outward


def flexion_axis(rig: Rig, finger: int, segment: int, normal: Array) -> Array:
    """(3,) unit axis about which a positive angle bends a finger bone toward the palm.

    The thumb (finger 1) bends toward the knuckle of the ring finger.
    """
    heads = rig.bone_template.double().numpy()
    first = min(segment, 2)
    near, far = (heads[rig.bone_index(f"finger{finger}-{first + step}.R")] for step in (0, 1))
    target = normal
    if finger == 1:
        ring, thumb = (heads[rig.bone_index(f"finger{name}.R")] for name in ("4-1", "1-2"))
        target = ring - thumb
    return _unit(np.cross(far - near, target))


def _spread(rig: Rig, count: int, spread_deg: dict[str, float], rng: np.random.Generator) -> Array:
    """(B, N, 3) random rotation vectors; a bone takes the first entry its name contains."""
    sigma = [
        next((value for part, value in spread_deg.items() if part in bone), 0.0)
        for bone in rig.bones
    ]
    # Three independent components of this size have the wanted root-mean-square angle.
    scale = np.radians(sigma)[:, None] / math.sqrt(3)
    draws: Array = rng.normal(size=(count, len(rig.bones), 3)) * scale
    return draws


def _unit(vector: Array) -> Array:
    unit: Array = vector / np.linalg.norm(vector)
    return unit
