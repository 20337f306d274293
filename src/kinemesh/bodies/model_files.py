"""The arrays of a SMPL or MANO model file, from any of the forms in which people hold them.

Legend of shapes: V vertices, F faces, J joints, S shape coefficients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from kinemesh.bodies.pickles import SparseMatrix, Unreadable, load_npz, load_pickle
from kinemesh.errors import InputError

SHAPES = 10  # coefficients that the published networks and labels use
SUFFIXES = (".safetensors", ".npz", ".pkl")
_KEYS = ("v_template", "f", "shapedirs", "posedirs", "weights", "J_regressor", "kintree_table")
_OPTIONAL = ("hands_mean",)
MOST_VALUES = 10**8
"""Of a dense array; the largest of SMPL, its pose basis, has 4 million."""
WEIGHT_SUM = 1e-3
"""How far the skin weights of a vertex may be from a sum of one; float32 needs 1e-6."""

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
        InputError: No such file, another type of file, or an array is missing, has another shape,
            or holds what it cannot: infinite values, weights that do not sum to one, faces of
            vertices that are not there.
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
        except Exception as error:  # damaged, or of a type that NumPy lacks, such as bfloat16
            raise InputError(
                f"{path}: expected a safetensors file of float32 arrays, found: "
                f"{error or type(error).__name__}; is the file complete?"
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
    V = len(arrays["v_template"]) if arrays["v_template"].ndim else 0
    if V == 0:
        raise InputError(
            f"{path}: expected 'v_template' of shape (vertices, 3), found "
            f"{arrays['v_template'].shape}; the file is damaged"
        )
    mean_pose = arrays.get("hands_mean")
    shapes = arrays["shapedirs"].size // (3 * V)
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
        faces=checked_faces(take("f", faces, 3), V, path),
        shape_basis=take("shapedirs", V, 3, shapes)[..., :SHAPES],
        pose_basis=take("posedirs", V, 3, poses),
        skin_weights=_skin_weights(take("weights", V, joints), path),
        joint_regressor=take("J_regressor", joints, V),
        parents=_parents(take("kintree_table", 2, joints), path),
        mean_pose=None if mean_pose is None else take("hands_mean", 3 * (joints - 1)),
    )


def _dense(value: Any, key: str, path: Path) -> NDArray[Any]:
    if isinstance(value, np.ndarray) and value.dtype == object and value.shape == ():
        value = value.item()
    if isinstance(value, SparseMatrix) and prod(value.shape) <= MOST_VALUES:
        value = value.toarray()
    try:
        array = np.asarray(value)
    except ValueError:  # lists of different lengths
        array = np.array(None)
    if array.dtype.kind not in "biuf":
        found = _kind_of(value, array)
    elif not np.isfinite(array).all():
        found = "values that are infinite or not a number"
    else:
        return array
    raise InputError(
        f"{path}: expected an array of numbers as '{key}', found {found}; "
        "use the file from the official site"
    )


def _kind_of(value: Any, array: NDArray[Any]) -> str:
    if isinstance(value, Unreadable):
        return value.origin
    if isinstance(value, SparseMatrix):
        return f"a sparse matrix of shape {value.shape}"
    return f"type {array.dtype}"


def checked_faces(faces_F3: NDArray[Any], vertices: int, path: Path) -> NDArray[np.int64]:
    """Triangles (F, 3) int64 of a mesh.

    Raises:
        InputError: A number is no index of a vertex.
    """
    if faces_F3.size and not 0 <= faces_F3.min() <= faces_F3.max() < vertices:  # nor NaN
        raise InputError(
            f"{path}: expected faces of vertices from 0 to {vertices - 1}, found "
            f"{faces_F3.min():.0f} to {faces_F3.max():.0f}; the file is damaged or belongs to "
            "another mesh"
        )
    return faces_F3.astype(np.int64)


def _skin_weights(weights_VJ: Array, path: Path) -> Array:
    sums_V = weights_VJ.sum(1)
    if np.abs(sums_V - 1).max() > WEIGHT_SUM:
        raise InputError(
            f"{path}: expected 'weights' that sum to one for each vertex, found sums from "
            f"{sums_V.min():.4g} to {sums_V.max():.4g}; the file is damaged"
        )
    return weights_VJ


def _parents(table: Array, path: Path) -> tuple[int, ...]:
    """The parents; the file holds the root's as -1 or as 2**32 - 1."""
    parents = (-1, *(int(parent) for parent in table[0, 1:]))
    if any(not 0 <= parent < joint for joint, parent in enumerate(parents) if joint):
        raise InputError(
            f"{path}: expected each joint after its parent in kintree_table, found {parents}; "
            "the file is damaged"
        )
    return parents
