"""A person's parameters over time as files of animation need them: y up, one skeleton.

Legend of shapes: T times, N bones, V vertices, K displacements.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kinemesh.bodies.parameters import BodyParameters, place, stack
from kinemesh.bodies.posable import PosableBody, mirrored_rotations
from kinemesh.errors import InputError
from kinemesh.formats.correctives import find_correctives
from kinemesh.formats.glb import to_y_up

SAME_SHAPE = 1e-4
"""Coefficients that differ by no more are one shape: a change of less than 0.01 mm."""


@dataclass(frozen=True, eq=False)
class Motion:
    """One person or hand that moves: metres, y up, the camera at the origin, looking along -z.

    In the rest pose a body stands upright and faces +z, the viewer; the axes of all bones are then
    those of the file.

    Attributes:
        body: The body; of a left hand its mirror image.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        rest_vertices: (V, 3) float64 of the person's shape.
        rest_heads: (N, 3) float64 bone heads of the person's shape.
        rotations: (T, N, 3, 3) float64 of each bone relative to its parent.
        places: (T, 3) float64 where the head of the first bone is.
        displacements: (K, V, 3) float64 that are added to the rest vertices before the skin, for
            bodies whose surface is corrected for its pose; else K is 0.
        weights: (T, K) float64 of the displacements, 0..1.
        present: (T,) bool; where it is false, the person is not there and the last pose is held.
    """

    body: PosableBody
    faces: np.ndarray
    rest_vertices: np.ndarray
    rest_heads: np.ndarray
    rotations: np.ndarray
    places: np.ndarray
    displacements: np.ndarray
    weights: np.ndarray
    present: np.ndarray


def read_motion(body: PosableBody, frames: Sequence[BodyParameters | None]) -> Motion:
    """Turn parameters in the camera frame to a motion with y up.

    Args:
        body: The body of all frames; of a left hand the right one, as the parameters have it.
        frames: T times of one person, at least one of them not None.

    Raises:
        InputError: Nobody is there, the body is another one, or shape or side change.
    """
    known = [frame for frame in frames if frame is not None]
    if not known:
        raise InputError("frames: expected the parameters of a person, found none at any time.")
    _check_constant(known)
    heads_TN3 = place(body, known).bones.double()
    rotations = stack([frame.rotations for frame in known], (len(body.bones), 3, 3))
    if known[0].side == "left":
        body, rotations = body.mirrored(), mirrored_rotations(rotations)
    rest = body.rest(torch.from_numpy(known[0].shape).float()[None])
    correctives = find_correctives(body, rotations)
    held = _held([frame is not None for frame in frames])
    turn = np.array([1.0, -1.0, -1.0])
    return Motion(
        body=body,
        faces=body.faces.numpy(),
        rest_vertices=to_y_up(rest.vertices[0].double().numpy() + correctives.base),
        rest_heads=to_y_up(rest.bones[0].double().numpy()),
        rotations=(rotations.double().numpy() * np.outer(turn, turn))[held],
        places=to_y_up(heads_TN3[:, 0].numpy())[held],
        displacements=to_y_up(correctives.displacements),
        weights=correctives.weights[held],
        present=np.array([frame is not None for frame in frames]),
    )


def _check_constant(known: Sequence[BodyParameters]) -> None:
    shapes = np.stack([frame.shape for frame in known])
    spread = float(np.abs(shapes - shapes[0]).max(initial=0))
    if spread > SAME_SHAPE:
        raise InputError(
            "frames: an animated skeleton has one shape, found coefficients that change by "
            f"{spread:.3g}. Fit all frames of a person with the same shape (fit_bodies(..., shape="
            "...)), or export each frame by itself."
        )
    sides = {frame.side for frame in known}
    if len(sides) > 1:
        raise InputError(f"frames: expected one hand, found both sides: {sorted(map(str, sides))}.")


def _held(present: Sequence[bool]) -> np.ndarray:
    """For each time the index, among the times that are known, of the last one (or the first)."""
    return np.asarray(np.maximum(np.cumsum(present) - 1, 0))
