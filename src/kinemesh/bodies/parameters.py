"""Pose and shape of one person or hand: what a fit gives, and what animates.

Legend of shapes: B people, V vertices, N bones, K shape coefficients.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.posable import PosableBody
from kinemesh.bodies.rig import Posed
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import matrix_to_axis_angle

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class BodyParameters:
    """Parameters of a `PosableBody` in the camera frame (x right, y down, z forward, metres).

    The vertices are ``pose(rotations, shape).vertices + translation_m``. For a left hand they are
    those of the right hand with x negated, and then moved: ``side`` says which, and rotations and
    shape are always those of the right hand. `place` computes both.

    Attributes:
        body: Name of the posable body.
        rotations: (N, 3, 3) float32, of each bone relative to its parent, rest-frame axes; the
            first turns the whole body in the camera frame.
        shape: (K,) float32 coefficients; 1 is about one root mean square of people.
        translation_m: (3,) float32, camera frame, metres: where the origin of the body is. It is
            not the head of the first bone.
        residual_mm: Mean distance of these vertices from those that were fitted, millimetres.
        side: "left" or "right" for a hand, None for a body.
    """

    body: str
    rotations: np.ndarray
    shape: np.ndarray
    translation_m: np.ndarray
    residual_mm: float
    side: Side | None = None

    def __post_init__(self) -> None:
        if self.rotations.ndim != 3 or self.rotations.shape[1:] != (3, 3):
            raise InputError(
                f"rotations: expected shape (N, 3, 3), found {self.rotations.shape}; give a matrix "
                "for each bone"
            )
        if self.shape.ndim != 1 or self.translation_m.shape != (3,):
            raise InputError(
                f"shape and translation_m: expected shapes (K,) and (3,), found {self.shape.shape} "
                f"and {self.translation_m.shape}; give one person at a time"
            )


def place(body: PosableBody, people: Sequence[BodyParameters]) -> Posed:
    """Vertices (B, V, 3) and bone heads (B, N, 3) in the camera frame, metres.

    Args:
        body: The body of all of them.
        people: B people, or one person at B times.

    Raises:
        InputError: Somebody has another body, or an array does not fit it.
    """
    others = sorted({person.body for person in people} - {body.name})
    if others:
        raise InputError(
            f"people: expected parameters of body '{body.name}', found {', '.join(others)}; "
            "place each kind with its own body"
        )
    device = body.template.device
    rotations_BN33 = stack([person.rotations for person in people], (len(body.bones), 3, 3))
    shape_BK = stack([person.shape for person in people], (len(body.shape_basis),))
    posed = body.pose(rotations_BN33.to(device), shape_BK.to(device))
    shift_B13 = stack([person.translation_m for person in people], (3,))[:, None].to(device)
    flip_B13 = mirror_signs([person.side for person in people])[:, None].to(device)
    return Posed(posed.vertices * flip_B13 + shift_B13, posed.bones * flip_B13 + shift_B13)


def official_pose(body: PosableBody, person: BodyParameters) -> tuple[Tensor, Tensor, Tensor]:
    """Parameters of SMPL or MANO as its own code takes them.

    Args:
        body: The body of the user's file.
        person: A body or a right hand.

    Returns:
        Axis times angle of all joints (3 N,) in radians, with MANO's mean pose in it, shape
        coefficients (K,) and the translation (3,) in metres that is added to the model's vertices.
        They then are those of `place`: in the camera frame, y down.

    Raises:
        InputError: The person has another body or is a left hand.
    """
    if person.side == "left":
        raise InputError(
            "person: expected a body or a right hand, found a left hand, which the right hand's "
            "model gives only in a mirror; negate x of its vertices, or use place()"
        )
    head_3 = place(body, [person]).bones[0, 0]
    rotations_N33 = torch.from_numpy(person.rotations) @ body.axes
    rotations_N33[1:] = body.axes.T @ rotations_N33[1:]
    shape_K = torch.from_numpy(person.shape)
    # the model turns its vertices about its first joint, where the file has it
    file_head_3 = body.rest(shape_K[None]).bones[0, 0] @ body.axes
    return matrix_to_axis_angle(rotations_N33).flatten(), shape_K, head_3 - file_head_3


def mirror_signs(sides: Sequence[Side | None]) -> Tensor:
    """(B, 3) factors of x, y and z: -1, 1, 1 for a left hand, else ones."""
    return torch.tensor([[-1.0 if side == "left" else 1.0, 1.0, 1.0] for side in sides]).view(-1, 3)


def stack(arrays: Sequence[np.ndarray], shape: tuple[int, ...]) -> Tensor:
    """Arrays of one shape as a float32 tensor (B, ...); without any it has that ``shape``.

    Raises:
        InputError: They have different shapes.
    """
    found = sorted({array.shape for array in arrays})
    if len(found) > 1:
        raise InputError(f"people: expected arrays of one shape, found {found}; is it one body?")
    if not arrays:
        return torch.zeros(0, *shape)
    return torch.from_numpy(np.stack(arrays).astype(np.float32))
