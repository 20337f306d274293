"""The arrays of a SMPL or MANO model file, from any of the forms in which people hold them.

Legend of shapes: V vertices, F faces, J joints, S shape coefficients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from kinemesh.bodies.pickles import SparseMatrix, Unreadable, load_npz, load_pickle
from kinemesh.errors import InputError

SHAPES = 10  # coefficients that the published networks and labels use
SUFFIXES = (".safetensors", ".npz", ".pkl")
_KEYS = ("v_template", "f", "shapedirs", "posedirs", "weights", "J_regressor", "kintree_table")
_OPTIONAL = ("hands_mean",)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ModelArrays:
    """What linear blend skinning needs (Loper et al., SMPL, 2015), checked; float64.

    Attributes:
        template: (V, 3) rest shape, metres, in the axes of the file.
        faces: (F, 3) int64 triangles.
        shape_basis: (V, 3, 10) displacement per shape coefficient.
        pose_basis: (V, 3, 9 (J - 1)) displacement per entry of the joints' rotations.
        skin_weights: (V, J), rows sum to one.
        joint_regressor: (J, V) rest joints from rest vertices.
        parents: Parent of each joint, -1 for the first.
        mean_pose: (3 (J - 1),) axis-angle vectors added to the pose of a hand; None for a body.
    """

    template: Array
    faces: NDArray[np.int64]
    shape_basis: Array
    pose_basis: Array
    skin_weights: Array
    joint_regressor: Array
    parents: tuple[int, ...]
    mean_pose: Array | None = None


def read_model_file(path: str | Path, joints: int) -> ModelArrays:
    """Read a model with ``joints`` joints from a .pkl, .npz or .safetensors file.

    Pickles are read without running them (`kinemesh.bodies.pickles`). Of more than ten shape
    coefficients the first ten are kept.

    Raises:
        InputError: No such file, another type of file, or an array is missing or has another shape.
    """
    path = Path(path)
    return _checked(_read(path), joints, path)


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: expected a model file, found none; check the path")
    if path.suffix == ".npz":
        return load_npz(path, (*_KEYS, *_OPTIONAL))
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(
                f"{path}: expected a safetensors file, found: {error}; is the file complete?"
            ) from error
    if path.suffix != ".pkl":
        raise InputError(f"{path}: expected one of {', '.join(SUFFIXES)}, found '{path.suffix}'")
    held = load_pickle(path)
    if not isinstance(held, dict):
        raise InputError(f"{path}: expected a dictionary of arrays, found {type(held).__name__}")
    return held


def _checked(held: Mapping[str, Any], joints: int, path: Path) -> ModelArrays:
    missing = [key for key in _KEYS if key not in held]
    if missing:
        raise InputError(
            f"{path}: expected a model with {', '.join(_KEYS)}, found no {', '.join(missing)}; "
            "use the file from the official site"
        )
    arrays = {key: _dense(held[key], key, path) for key in (*_KEYS, *_OPTIONAL) if key in held}
    V = len(arrays["v_template"])
    mean_pose = arrays.get("hands_mean")
    shapes = arrays["shapedirs"].size // max(3 * V, 1)
    poses, faces = 9 * (joints - 1), arrays["f"].size // 3
    if shapes < SHAPES:
        raise InputError(f"{path}: expected {SHAPES} or more shapes in shapedirs, found {shapes}")

    def take(key: str, *shape: int) -> Array:
        if arrays[key].size != np.prod(shape):
            raise InputError(
                f"{path}: expected '{key}' of shape {shape} for {joints} joints and {V} vertices, "
                f"found {arrays[key].shape}; is this a model of another kind?"
            )
        return arrays[key].reshape(shape).astype(np.float64)

    return ModelArrays(
        template=take("v_template", V, 3),
        faces=_faces(take("f", faces, 3), V, path),
        shape_basis=take("shapedirs", V, 3, shapes)[..., :SHAPES],
        pose_basis=take("posedirs", V, 3, poses),
        skin_weights=take("weights", V, joints),
        joint_regressor=take("J_regressor", joints, V),
        parents=_parents(take("kintree_table", 2, joints), path),
        mean_pose=None if mean_pose is None else take("hands_mean", 3 * (joints - 1)),
    )


def _dense(value: Any, key: str, path: Path) -> NDArray[Any]:
    if isinstance(value, np.ndarray) and value.dtype == object and value.shape == ():
        value = value.item()
    if isinstance(value, SparseMatrix):
        return value.toarray()
    array = np.asarray(value)
    if isinstance(value, Unreadable) or array.dtype.kind not in "biuf":
        found = value.origin if isinstance(value, Unreadable) else f"type {array.dtype}"
        raise InputError(
            f"{path}: expected an array of numbers as '{key}', found {found}; "
            "use the file from the official site"
        )
    return array


def _faces(faces_F3: Array, vertices: int, path: Path) -> NDArray[np.int64]:
    if faces_F3.size and not 0 <= faces_F3.min() <= faces_F3.max() < vertices:
        raise InputError(
            f"{path}: expected faces of vertices below {vertices}, found {faces_F3.max():.0f}; "
            "the file is damaged"
        )
    return faces_F3.astype(np.int64)


def _parents(table: Array, path: Path) -> tuple[int, ...]:
    """The parents; the file holds the root's as -1 or as 2**32 - 1."""
    parents = (-1, *(int(parent) for parent in table[0, 1:]))
    if any(not 0 <= parent < joint for joint, parent in enumerate(parents) if joint):
        raise InputError(
            f"{path}: expected each joint after its parent in kintree_table, found {parents}; "
            "the file is damaged"
        )
    return parents
