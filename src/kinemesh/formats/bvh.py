"""Skeletons that move as BVH text, for Blender, MotionBuilder and game engines."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import PosableBody
from kinemesh.errors import InputError
from kinemesh.formats.motion import Motion, read_motion

ORDER = "ZXY"
"""Channels of a rotation in the file's order: turn by Z, then the turned X, then the turned Y."""
_SHORT_M = 0.01


def encode_bvh(
    body: PosableBody,
    frames: Sequence[BodyParameters | None],
    frame_time_s: float,
    *,
    units_per_metre: float = 1.0,
) -> bytes:
    """One person as a BVH file: a hierarchy in the rest pose, and a line of motion for each frame.

    y is up, x is the viewer's right, the camera of the photo is at the origin and looks along -z.
    With all angles 0 a body stands in its rest pose (Anny: an A-pose) and faces +z. The first
    bone has six channels and OFFSET 0, so that its position is where its head is; all others have
    three. Angles are degrees. Between frames that are None and the next, the last pose is held.

    Args:
        body: The body of the parameters.
        frames: The person at equal steps of time; their shape is one and the same.
        frame_time_s: Seconds from one frame to the next.
        units_per_metre: 1 for Blender; 100 for tools that count in centimetres.

    Raises:
        InputError: There is no frame with a person, the shape changes, or a number is not above 0.
    """
    for name, value in (("frame_time_s", frame_time_s), ("units_per_metre", units_per_metre)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name}: expected a number above 0, found {value}.")
    motion = read_motion(body, frames)
    order = _depth_first(motion.body.parents)
    lines = ["HIERARCHY", *_bone_lines(motion, 0, units_per_metre)]
    lines += ["MOTION", f"Frames: {len(frames)}", f"Frame Time: {frame_time_s:.8g}"]
    angles = _angles_deg(motion.rotations)[:, order].reshape(len(frames), -1)
    rows = np.concatenate([motion.places * units_per_metre, angles], axis=1)
    lines += [" ".join(f"{value:.6f}" for value in row) for row in rows.tolist()]
    return ("\n".join(lines) + "\n").encode()


def _angles_deg(rotations_TN33: np.ndarray) -> np.ndarray:
    """(T, N, 3) angles in the order of the channels, without jumps of a whole turn over time."""
    T, N = rotations_TN33.shape[:2]
    turns = Rotation.from_matrix(rotations_TN33.reshape(-1, 3, 3))
    # At the pole of the angles scipy warns that one of them is chosen; the rotation is the same.
    angles = turns.as_euler(ORDER, degrees=True, suppress_warnings=True)
    return np.unwrap(angles.reshape(T, N, 3), period=360, axis=0)


def _depth_first(parents: Sequence[int], bone: int = 0) -> list[int]:
    """Bones in the order in which a BVH file lists them."""
    children = [child for child, parent in enumerate(parents) if parent == bone]
    return [bone, *(below for child in children for below in _depth_first(parents, child))]


def _bone_lines(motion: Motion, bone: int, scale: float, indent: str = "") -> list[str]:
    parent = motion.body.parents[bone]
    inner = indent + "  "
    turns = " ".join(f"{axis}rotation" for axis in ORDER)
    if parent < 0:
        word, offset, channels = "ROOT", np.zeros(3), f"6 Xposition Yposition Zposition {turns}"
    else:
        offset = motion.rest_heads[bone] - motion.rest_heads[parent]
        word, channels = "JOINT", f"3 {turns}"
    lines = [f"{indent}{word} {motion.body.bones[bone]}", indent + "{"]
    lines += [f"{inner}OFFSET {_numbers(offset * scale)}", f"{inner}CHANNELS {channels}"]
    children = [child for child, above in enumerate(motion.body.parents) if above == bone]
    for child in children:
        lines += _bone_lines(motion, child, scale, inner)
    if not children:
        end = _numbers(_tail(motion, bone) * scale)
        lines += [f"{inner}End Site", inner + "{", f"{inner}  OFFSET {end}", inner + "}"]
    return [*lines, indent + "}"]


def _tail(motion: Motion, bone: int) -> np.ndarray:
    """Where the last bone of a chain ends, from its head: amid the surface that it moves."""
    weights = motion.body.skin_weights[:, bone].double().numpy()
    if weights.sum() > 0:
        tail = weights @ motion.rest_vertices / weights.sum() - motion.rest_heads[bone]
        if np.linalg.norm(tail) > 1e-4:
            return np.asarray(2 * tail)
    return np.array([0.0, _SHORT_M, 0.0])


def _numbers(values: np.ndarray) -> str:
    return " ".join(f"{value:.6f}" for value in values.tolist())
