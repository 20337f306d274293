"""Pose and shape parameters as JSON values; docs/parameters.md describes them."""

from typing import Any

import numpy as np
import torch

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import bone_names
from kinemesh.geometry.rotations import axis_angle_to_matrix, matrix_to_axis_angle

ANGLE_DIGITS = 6  # along a chain of 17 bones, 0.01 mm
SHAPE_DIGITS = 5
METRE_DIGITS = 5


def parameters_record(parameters: BodyParameters) -> dict[str, Any]:
    """Plain values of the parameters, with rotations as axis times angle in radians."""
    vectors_N3 = matrix_to_axis_angle(torch.from_numpy(parameters.rotations).double()).numpy()
    return {
        "body": parameters.body,
        "side": parameters.side,
        "translation_m": _rounded(parameters.translation_m, METRE_DIGITS),
        "rotations_rad": _rounded(vectors_N3, ANGLE_DIGITS),
        "shape": _rounded(parameters.shape, SHAPE_DIGITS),
        "residual_mm": round(parameters.residual_mm, 3),
    }


def read_parameters(record: dict[str, Any]) -> BodyParameters:
    """Inverse of `parameters_record`, up to the rounding.

    Raises:
        KeyError: A field is missing.
        TypeError: A field is not a list.
        ValueError: A list does not hold numbers or is not a table; also as `InputError`.
    """
    vectors_N3 = torch.from_numpy(np.array(record["rotations_rad"], np.float64).reshape(-1, 3))
    return BodyParameters(
        body=record["body"],
        rotations=axis_angle_to_matrix(vectors_N3).numpy().astype(np.float32),
        shape=np.array(record["shape"], np.float32),
        translation_m=np.array(record["translation_m"], np.float32),
        residual_mm=float(record["residual_mm"]),
        side=record["side"],
    )


def body_record(name: str) -> dict[str, Any]:
    """What readers must know of a body: the bones that the rotations belong to, in order."""
    return {"bones": list(bone_names(name))}


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    rounded: list[Any] = np.round(values.astype(float), digits).tolist()
    return rounded
