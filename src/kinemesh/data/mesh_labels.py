"""Labels of METRO's and Mesh Graphormer's training data, as the official files hold them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.bodies.topology import Kind
from kinemesh.errors import InputError
from kinemesh.skeletons import HAND21, METRO24, Skeleton

Float = NDArray[np.float64]

SKELETONS: Mapping[Kind, Skeleton] = {"body": METRO24, "hand": HAND21}
POSE_NUMBERS: Mapping[Kind, int] = {"body": 72, "hand": 48}
_BETAS = 10


@dataclass(frozen=True)
class MeshRecord:
    """One row of a data set as it is stored, before anything is decoded.

    Attributes:
        key: Name of the image.
        jpeg: The encoded picture (JPEG, or anything else that OpenCV reads).
        annotation: The label with the official names: ``center`` [x, y] and ``scale`` (side / 200)
            of the box in image pixels; ``2d_joints`` (J, 3) pixels and confidence; ``3d_joints``
            (J, 4) metres in camera axes and confidence; ``pose``, ``betas``; ``has_2d_joints``,
            ``has_3d_joints``, ``has_smpl``; ``gender``. Two names are ours: ``vertices`` (V, 3)
            metres in the frame of the 3D joints, and ``camera`` (3, 3) intrinsics in pixels, given
            only where 3D joints lie in the camera frame (not merely along its axes).
        where: The place of the annotation, to name in a message.
        picture_where: The place of the picture; None where it is that of the annotation.
    """

    key: str
    jpeg: bytes
    annotation: Mapping[str, Any]
    where: str = ""
    picture_where: str | None = None

    @property
    def picture_place(self) -> str:
        """The place of the picture, to name in a message."""
        return self.where if self.picture_where is None else self.picture_where


@dataclass(frozen=True)
class MeshLabel:
    """A checked label; arrays are float64, frames as in `MeshRecord`.

    Attributes:
        center_px: (2,) centre of the box in the image.
        scale: Side of the box in units of 200 px.
        joints_2d: (J, 3) image pixels, confidence.
        joints_3d: (J, 4) metres in camera axes, confidence.
        pose: (P,) axis-angle, radians.
        betas: (10,) shape coefficients.
        has_2d: Whether ``joints_2d`` is labelled.
        has_3d: Whether ``joints_3d`` is labelled.
        has_mesh: Whether ``vertices``, or else ``pose`` and ``betas``, are labelled.
        gender: "none" where it is not told.
        vertices: (V, 3) metres in the frame of ``joints_3d``, or (0, 3).
        camera: (3, 3) intrinsics, or None.
    """

    center_px: Float
    scale: float
    joints_2d: Float
    joints_3d: Float
    pose: Float
    betas: Float
    has_2d: bool
    has_3d: bool
    has_mesh: bool
    gender: str = "none"
    vertices: Float = field(default_factory=lambda: np.zeros((0, 3)))
    camera: Float | None = None


def read_label(annotation: Mapping[str, Any], kind: Kind, where: str) -> MeshLabel:
    """Check an annotation.

    A leading axis of length 1 is dropped. A missing array becomes zeros, if its ``has_*`` flag is
    missing too or 0.

    Args:
        annotation: See `MeshRecord`.
        kind: "body" (24 joints, SMPL pose) or "hand" (21 joints, MANO pose).
        where: The place to name in a message.

    Raises:
        InputError: A value is missing, not finite or of another shape.
    """
    joints = len(SKELETONS[kind])
    reader = _Reader(annotation, where)
    joints_2d, has_2d = reader.labelled("2d_joints", (joints, 3), "has_2d_joints")
    joints_3d, has_3d = reader.labelled("3d_joints", (joints, 4), "has_3d_joints")
    pose, has_mesh = reader.labelled("pose", (POSE_NUMBERS[kind],), "has_smpl")
    betas, _ = reader.labelled("betas", (_BETAS,), "has_smpl")
    scale = float(reader.array("scale", ()))
    if not scale > 0:
        raise reader.error("scale", "a positive number", f"{scale}")
    return MeshLabel(
        center_px=reader.array("center", (2,)),
        scale=scale,
        joints_2d=joints_2d,
        joints_3d=joints_3d,
        pose=pose,
        betas=betas,
        has_2d=has_2d,
        has_3d=has_3d,
        has_mesh=has_mesh,
        gender=str(annotation.get("gender", "none")),
        vertices=reader.array("vertices", (None, 3), missing=np.zeros((0, 3))),
        camera=reader.array("camera", (3, 3)) if "camera" in annotation else None,
    )


def kind_of(annotation: Mapping[str, Any], where: str) -> Kind:
    """Whether an annotation labels a hand or a body, by its numbers of joints and angles.

    Raises:
        InputError: It is neither.
    """
    for name, axis, counts in (
        ("2d_joints", -2, {24: "body", 21: "hand"}),
        ("3d_joints", -2, {24: "body", 21: "hand"}),
        ("pose", -1, {72: "body", 48: "hand"}),
    ):
        try:
            shape = np.shape(annotation.get(name, ()))
        except ValueError as error:  # rows of unequal length
            raise _wrong_value(where, name, "numbers", _shown(annotation[name])) from error
        found = counts.get(shape[axis]) if len(shape) >= -axis else None
        if found is not None:
            return "body" if found == "body" else "hand"
    raise InputError(
        f"{where}: expected 24 joints or 72 angles of a body, or 21 joints or 48 angles of a hand, "
        f"found neither; the label has: {', '.join(annotation)}. Mend the label or say the kind."
    )


def _wrong_value(where: str, name: str, expected: str, found: str) -> InputError:
    return InputError(
        f"{where}: '{name}' of the label: expected {expected}, found {found}. "
        "Mend this row or leave it out of the line list."
    )


def _shown(value: Any) -> str:
    return repr(str(value)[:60])


def label_json(annotation: Mapping[str, Any]) -> str:
    """An annotation as one line of JSON, every number to its last bit."""
    return json.dumps(annotation, default=_plain, separators=(", ", ": "), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is no JSON value")


class _Reader:
    """Takes checked values out of one annotation."""

    def __init__(self, annotation: Mapping[str, Any], where: str) -> None:
        self.annotation, self.where = annotation, where

    def labelled(self, name: str, shape: tuple[int, ...], flag_name: str) -> tuple[Float, bool]:
        """An array and whether it counts as labelled."""
        flag = bool(self.array(flag_name, (), missing=np.array(float(name in self.annotation))))
        if flag and name not in self.annotation:
            raise self.error(name, f"an array, since {flag_name} is set", "none")
        return self.array(name, shape, missing=np.zeros(shape)), flag

    def array(
        self, name: str, shape: tuple[int | None, ...], missing: Float | None = None
    ) -> Float:
        """A finite float64 array of a shape, whose None stands for any length."""
        value = self.annotation.get(name, missing)
        if value is None:
            raise self.error(name, "a value", "none")
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise self.error(name, "numbers", _shown(value)) from error
        if array.ndim == len(shape) + 1 and len(array) == 1:
            array = array[0]
        fits = array.ndim == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
        )
        if not fits:
            wanted = tuple("any" if length is None else length for length in shape)
            raise self.error(name, f"shape {wanted}", f"{array.shape}")
        if not np.isfinite(array).all():
            raise self.error(name, "finite numbers", "NaN or infinity")
        return array

    def error(self, name: str, expected: str, found: str) -> InputError:
        return _wrong_value(self.where, name, expected, found)
