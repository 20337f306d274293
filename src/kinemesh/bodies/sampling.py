"""The official coarse levels of SMPL and MANO: sampling matrices, adjacency, joint regressors.

``mesh_downsampling.npz`` and ``mano_downsampling.npz`` hold, for a mesh and ever coarser levels of
it, adjacency (A) and faces (F) of each level and the maps down (D) and up (U) between neighbouring
levels, as pickled sparse matrices (Ranjan et al., CoMA, ECCV 2018; Kolotouros et al., GraphCMR,
CVPR 2019).

Legend of shapes: V vertices of the full mesh, C vertices of a level, R rows, K entries of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.bodies.model_files import checked_faces
from kinemesh.bodies.pickles import SparseMatrix, load_npz
from kinemesh.bodies.topology import CoarseLevel
from kinemesh.errors import InputError

REGRESSOR_SUM_SLACK = 0.01
"""How far the rows of a joint regressor may be from one; the published ones are within 0.0004."""
NO_FACES = torch.zeros(0, 3, dtype=torch.int64)


@dataclass(frozen=True)
class MeshSampling:
    """A mesh and its coarser levels; entry 0 of a tuple belongs to the full mesh or leads from it.

    Attributes:
        kept: (C,) int64 for each step down: which vertices of the finer level stay.
        up_index: (C_fine, K) int64 for each step: the coarse vertices that make each finer one.
        up_weight: (C_fine, K) float32 for each step: their weights.
        edges: (E, 2) int64 for each level, smaller index first.
        faces: (F, 3) int64 for each level; no rows where the file has none.
    """

    kept: tuple[Tensor, ...]
    up_index: tuple[Tensor, ...]
    up_weight: tuple[Tensor, ...]
    edges: tuple[Tensor, ...]
    faces: tuple[Tensor, ...]

    @property
    def vertices(self) -> int:
        """Vertices of the full mesh."""
        return len(self.up_index[0])

    def levels(self, count: int) -> tuple[CoarseLevel, ...]:
        """The first ``count`` coarse levels, finest first, each with a map up to the full mesh."""
        vertex_index = torch.arange(self.vertices)
        up_index, up_weight = vertex_index[:, None], torch.ones(self.vertices, 1)
        levels = []
        for step in range(count):
            vertex_index = vertex_index[self.kept[step]]
            # Every full vertex is made of finer ones, and each of those of coarser ones.
            up_weight = (up_weight[..., None] * self.up_weight[step][up_index]).flatten(1)
            up_index = self.up_index[step][up_index].flatten(1)
            edges, faces = self.edges[step + 1], self.faces[step + 1]
            levels.append(CoarseLevel(vertex_index, edges, faces, up_index, up_weight))
        return tuple(levels)


def read_sampling(path: str | Path, levels: int = 1) -> MeshSampling:
    """Read ``mesh_downsampling.npz`` or ``mano_downsampling.npz``, without running its pickles.

    Args:
        path: The file.
        levels: How many coarse levels it must have at least.

    Raises:
        InputError: The file is damaged, lacks A, U or D, has fewer levels, or a map down is not a
            plain selection.
    """
    path = Path(path)
    held = load_npz(path, ("A", "U", "D", "F"))
    missing = {"A", "U", "D"} - set(held)
    if missing:
        raise InputError(
            f"{path}: expected the arrays A, U and D, found {sorted(held)}; use the file from the "
            "Mesh Graphormer repository"
        )
    adjacency, up, down = (_matrices(held[name], name, path) for name in "AUD")
    steps = len(down)
    if len(up) != steps or len(adjacency) != steps + 1:
        raise InputError(
            f"{path}: expected one more matrix in A than in U and D, found {len(adjacency)}, "
            f"{len(up)} and {steps}; the file is damaged"
        )
    if steps < levels:
        raise InputError(
            f"{path}: expected {levels} or more coarse levels, found {steps}; use the file from "
            "the Mesh Graphormer repository"
        )
    _check_shapes(adjacency, up, down, path)
    rows = [padded_rows(matrix) for matrix in up]
    return MeshSampling(
        kept=tuple(_selection(matrix, path) for matrix in down),
        up_index=tuple(index for index, _ in rows),
        up_weight=tuple(weight for _, weight in rows),
        edges=tuple(_edges(matrix.row, matrix.column) for matrix in adjacency),
        faces=tuple(
            _faces(held.get("F"), level, matrix.shape[0], path)
            for level, matrix in enumerate(adjacency)
        ),
    )


def _check_shapes(
    adjacency: list[SparseMatrix], up: list[SparseMatrix], down: list[SparseMatrix], path: Path
) -> None:
    """That the matrices fit each other, and that those of weights hold numbers."""
    for level, matrix in enumerate(adjacency):
        if matrix.shape[0] != matrix.shape[1]:
            raise InputError(
                f"{path}: expected A[{level}] to be square, found {matrix.shape}; the file is "
                "damaged"
            )
    for step, weights in enumerate(up):
        if not np.isfinite(weights.value).all():
            raise InputError(
                f"{path}: expected numbers in U[{step}], found values that are infinite or not a "
                "number; the file is damaged"
            )
    for step in range(len(down)):
        fine, coarse = adjacency[step].shape[0], adjacency[step + 1].shape[0]
        if down[step].shape != (coarse, fine) or up[step].shape != (fine, coarse):
            raise InputError(
                f"{path}: expected D[{step}] of shape {(coarse, fine)} and U[{step}] transposed, "
                f"found {down[step].shape} and {up[step].shape}; the file is damaged"
            )


def read_edges(paths: Sequence[Path]) -> Tensor:
    """Edges (E, 2) int64 from ``*_adjmat_{indices,size,values}.pt``, read without running code.

    The values themselves are not needed: they are the row-normalised neighbourhood with self
    loops, which `CoarseLevel.adjacency` gives.

    Raises:
        InputError: A file is damaged or the three do not fit together.
    """
    indices, size, values = (_load_whole_tensor(path) for path in paths)
    fits = size.shape == (2,) and values.ndim == 1 and indices.shape == (2, len(values))
    count = int(size[0]) if fits else 0
    if not fits or size.tolist() != [count, count] or not _in_range(indices, count):
        raise InputError(
            f"{paths[0]}: expected indices (2, N) of a square matrix with N values, found shapes "
            f"{tuple(indices.shape)}, {size.tolist()} and {tuple(values.shape)}; use the files "
            "from the Mesh Graphormer repository"
        )
    return _edges(*indices.numpy())


def _in_range(indices: Tensor, count: int) -> bool:
    if indices.is_floating_point() or not indices.numel():
        return False
    return 0 <= int(indices.min()) <= int(indices.max()) < count


def read_array(
    path: str | Path, rows: int | None = None, columns: int | None = None
) -> NDArray[np.float64]:
    """Read a two-dimensional .npy file of numbers, as float64; None stands for any size.

    Raises:
        InputError: The file is damaged, has another shape, or holds no finite numbers.
    """
    try:
        with Path(path).open("rb") as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # a damaged file may end in an error of any type
        raise InputError(
            f"{path}: expected an array in a .npy file, found: {error or type(error).__name__}; "
            "is the file complete?"
        ) from error
    expected = (rows, columns)
    fits = array.ndim == 2 and all(
        size in {None, found} for size, found in zip(expected, array.shape, strict=True)
    )
    if not fits or array.dtype.kind not in "iuf":
        raise InputError(
            f"{path}: expected numbers of shape ({rows or 'any'}, {columns or 'any'}), found "
            f"{array.dtype} of shape {array.shape}; does the file belong to this model?"
        )
    if not np.isfinite(array).all():
        raise InputError(
            f"{path}: expected numbers, found values that are infinite or not a number; the file "
            "is damaged"
        )
    return np.asarray(array, dtype=np.float64)


def read_regressor(
    path: str | Path, joints: int, vertices: int | None = None
) -> NDArray[np.float64]:
    """Read a (J, V) joint regressor, whose rows are weights of vertices and sum to about one.

    Raises:
        InputError: As `read_array`, or a row sums to something else.
    """
    regressor_JV = read_array(path, joints, vertices)
    sums_J = regressor_JV.sum(axis=1)
    worst = int(np.abs(sums_J - 1).argmax())
    if not abs(sums_J[worst] - 1) <= REGRESSOR_SUM_SLACK:
        raise InputError(
            f"{path}: expected weights that sum to about 1 in each row, found {sums_J[worst]:.4g} "
            f"in row {worst}; the file is damaged, take it from its source again"
        )
    return regressor_JV


def padded_rows(matrix: SparseMatrix | NDArray[np.float64]) -> tuple[Tensor, Tensor]:
    """Columns (R, K) int64 and values (R, K) float32 of the entries of each row.

    Rows with fewer than K entries end in entries of weight zero.
    """
    if isinstance(matrix, np.ndarray):
        row, column = np.nonzero(matrix)
        matrix = SparseMatrix(matrix.shape, row, column, matrix[row, column])
    order = np.argsort(matrix.row, kind="stable")
    row = matrix.row[order]
    counts = np.bincount(row, minlength=matrix.shape[0])
    place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    index = torch.zeros(matrix.shape[0], int(counts.max(initial=1)), dtype=torch.int64)
    weight = torch.zeros(index.shape)
    index[row, place] = torch.from_numpy(matrix.column[order])
    weight[row, place] = torch.from_numpy(matrix.value[order]).float()
    return index, weight


def _matrices(held: NDArray[Any], name: str, path: Path) -> list[SparseMatrix]:
    if not all(isinstance(matrix, SparseMatrix) for matrix in held.flat):
        raise InputError(f"{path}: expected sparse matrices in '{name}'; the file is damaged")
    return list(held.flat)


def _selection(matrix: SparseMatrix, path: Path) -> Tensor:
    order = np.argsort(matrix.row, kind="stable")
    rows = np.arange(matrix.shape[0])
    if not np.array_equal(matrix.row[order], rows) or not (matrix.value == 1).all():
        raise InputError(
            f"{path}: expected a single one in each row of D, a selection of vertices, found "
            f"{len(matrix.value)} entries in {len(rows)} rows; the file is damaged"
        )
    return torch.from_numpy(matrix.column[order])


def _edges(row: NDArray[np.int64], column: NDArray[np.int64]) -> Tensor:
    pairs = np.stack([np.minimum(row, column), np.maximum(row, column)], axis=1)
    return torch.from_numpy(np.unique(pairs[row != column], axis=0).astype(np.int64))


def _faces(held: NDArray[Any] | None, level: int, vertices: int, path: Path) -> Tensor:
    if held is None or (held.ndim and level >= len(held)):
        return NO_FACES
    entry = held[level] if held.ndim else held.item()
    try:
        faces_F3 = np.asarray(entry)
    except ValueError:  # lists of different lengths
        faces_F3 = np.array(None)
    if faces_F3.dtype.kind not in "iu" or faces_F3.ndim != 2 or faces_F3.shape[1] != 3:
        raise InputError(
            f"{path}: expected the triangles (F, 3) of each level in 'F', found "
            f"{faces_F3.dtype} of shape {faces_F3.shape}; the file is damaged"
        )
    return torch.from_numpy(checked_faces(faces_F3, vertices, path))


def _load_whole_tensor(path: Path) -> Tensor:
    """A tensor, or a size as one."""
    try:
        held = torch.load(path, weights_only=True)
    except Exception as error:  # a damaged file may end in an error of any type
        raise InputError(
            f"{path}: expected a tensor saved by PyTorch, found: {error}; download the file again"
        ) from error
    if isinstance(held, torch.Size):
        return torch.tensor(held)
    if not isinstance(held, Tensor) or held.layout != torch.strided:
        raise InputError(
            f"{path}: expected a tensor saved by PyTorch, found {type(held).__name__}; use the "
            "files from the Mesh Graphormer repository"
        )
    return held
