"""Mesh constants read from the official asset files against those that the official code used."""

from pathlib import Path

import numpy as np

from kinemesh.bodies.asset_files import AssetFolder
from kinemesh.bodies.official_assets import LEVELS
from kinemesh.bodies.sampling import MeshSampling, read_array, read_sampling
from tests import parity
from tests.parity import EXACT, Comparison, Tolerance

ASSETS = Path(__file__).resolve().parents[3] / "shared" / "data" / "official_assets"
REGRESSORS = {
    "J_regressor_h36m_correct": ("smpl-regressor", 17),
    "J_regressor_extra": ("smpl-label-regressor", 14),
}


def compare(golden_folder: Path) -> list[Comparison]:
    """``topology.npz`` of a folder, if it is there."""
    path = golden_folder / "topology.npz"
    if not path.is_file():
        return []
    with np.load(path) as arrays:
        golden = {key: _sorted(arrays[key]) if "adj_i" in key else arrays[key] for key in arrays}
        values = {
            kind: arrays[f"{kind}/adj_values"][_order(arrays[f"{kind}/adj_indices"])]
            for kind in ("body", "hand")
            if f"{kind}/adj_indices" in arrays
        }
    golden |= {f"{kind}/adj_values": value for kind, value in values.items()}
    files = AssetFolder(ASSETS)
    ours = _sampling("body", read_sampling(files.require("smpl-sampling")), LEVELS["smpl"])
    ours |= _sampling("hand", read_sampling(files.require("mano-sampling")), LEVELS["mano"])
    # The faces in the sampling file are others: all have the orientation of the full mesh.
    ours["body/coarse_faces"] = read_array(files.require("smpl-coarse-faces"), columns=3)
    for name, (asset, rows) in REGRESSORS.items():
        ours |= _regressor(name, read_array(files.require(asset), rows))
    ours = {key: value for key, value in ours.items() if key in golden}
    # The published weights of the neighbours are 1 / degree, rounded once more.
    rounding = {f"{kind}/adj_values": Tolerance(1e-7) for kind in ("body", "hand")}
    return [parity.compare("topology", ours, golden, EXACT, rounding)]


def _sampling(kind: str, sampling: MeshSampling, levels: int) -> dict[str, object]:
    coarse = sampling.levels(levels)[-1]
    adjacency = coarse.adjacency().numpy()
    indices = np.stack(np.nonzero(adjacency))
    return {f"{kind}/down{step}": sampling.kept[step] for step in range(levels)} | {
        f"{kind}/coarse_edges": coarse.edges,
        f"{kind}/adj_indices": indices,
        f"{kind}/adj_values": adjacency[tuple(indices)],
    }


def _regressor(name: str, matrix: np.ndarray) -> dict[str, object]:
    """Rows, columns and the bits of the non-zero entries."""
    row, column = np.nonzero(matrix)
    values = np.ascontiguousarray(matrix[row, column]).view(np.int64)
    prefix = f"body/{name}"
    return {f"{prefix}/row": row, f"{prefix}/col": column, f"{prefix}/val64": values}


def _order(indices: np.ndarray) -> np.ndarray:
    return np.lexsort(indices[::-1])


def _sorted(indices: np.ndarray) -> np.ndarray:
    return indices[:, _order(indices)]
