"""PointHMR's mesh constants: up- and down-sampling, joints, hop masks and position codes.

The meshes are the official ones without their shapes: templates are zero, since nothing here asks
for one.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.asset_files import AssetFolder
from kinemesh.bodies.official_assets import J14_IN_H36M17, LEVELS
from kinemesh.bodies.sampling import padded_rows, read_regressor, read_sampling
from kinemesh.bodies.topology import Topology
from kinemesh.models.hop_masks import hop_mask, vertex_hops
from kinemesh.models.point_hmr import MeshConstants
from kinemesh.models.position_encoding import sine_position_code
from kinemesh.skeletons import H36M17, HAND21
from tests import parity
from tests.parity import EXACT, Comparison, Tolerance
from tests.parity.topology import ASSETS
from tests.seeded_weights import normal

ROUNDING = Tolerance(2e-6)  # sums of up to nine extrapolating weights, in another order
CODES = Tolerance(1e-6)
FIRST_ROWS = 16
EVERY = 7


@functools.cache
def body_topology() -> Topology:
    """SMPL's levels and the Human3.6M regressor, from the official files."""
    files = AssetFolder(ASSETS)
    sampling = read_sampling(files.require("smpl-sampling"), LEVELS["smpl"])
    regressor = read_regressor(files.require("smpl-regressor"), len(H36M17), sampling.vertices)
    index, weight = padded_rows(regressor)
    return Topology(
        name="smpl",
        kind="body",
        template=torch.zeros(sampling.vertices, 3),
        faces=sampling.faces[0],
        levels=sampling.levels(LEVELS["smpl"]),
        regressor_index=index,
        regressor_weight=weight,
        skeleton=H36M17,
        token_joints=J14_IN_H36M17,
    )


@functools.cache
def hand_topology() -> Topology:
    """MANO's level from the official file; there is no regressor for its joints."""
    sampling = read_sampling(AssetFolder(ASSETS).require("mano-sampling"), LEVELS["mano"])
    return Topology(
        name="mano",
        kind="hand",
        template=torch.zeros(sampling.vertices, 3),
        faces=sampling.faces[0],
        levels=sampling.levels(LEVELS["mano"]),
        regressor_index=torch.zeros(len(HAND21), 1, dtype=torch.int64),
        regressor_weight=torch.ones(len(HAND21), 1),
        skeleton=HAND21,
    )


def topology_of(vertices: int) -> Topology:
    """The official mesh whose coarsest level has this many vertices."""
    for topology in (body_topology(), hand_topology()):
        if len(topology.coarse) == vertices:
            return topology
    raise ValueError(f"num_vertices: there is no official mesh with a level of {vertices} vertices")


def draw(name: str, shape: tuple[int, ...], salt: str, factor: float = 1.0) -> Tensor:
    """An input: ``seeded.image`` times a float32 factor."""
    return torch.from_numpy(normal("input:" + name, shape, salt) * np.float32(factor))


def salt_of(golden_folder: Path, name: str) -> str:
    """What the draws of a golden file are salted with, as the manifest beside the folder says."""
    manifest = golden_folder.parent / "manifest.json"
    entries = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    return str(entries.get(name, {}).get("salt", ""))


def compare(golden_folder: Path) -> list[Comparison]:
    """``mesh_ops``, ``attention_masks`` and ``positional_encoding`` of a folder, if there."""
    parts: dict[str, Callable[[dict[str, np.ndarray]], tuple[dict[str, object], Tolerance]]] = {
        "mesh_ops": lambda golden: (
            _mesh_operations(golden, salt_of(golden_folder, "mesh_ops")),
            ROUNDING,
        ),
        "attention_masks": lambda golden: (_masks(golden), EXACT),
        "positional_encoding": lambda golden: (_codes(golden), CODES),
    }
    found = []
    for name, part in parts.items():
        path = golden_folder / f"{name}.npz"
        if path.is_file():
            with np.load(path) as file:
                golden = dict(file)
            ours, tolerance = part(golden)
            found.append(parity.compare(name, ours, golden, tolerance))
    return found


def _mesh_operations(golden: dict[str, np.ndarray], salt: str) -> dict[str, object]:
    topology = body_topology()
    middle, coarse = (level.vertex_index for level in topology.levels)
    place = {int(vertex): row for row, vertex in enumerate(middle)}
    batch = len(golden["down_coarse"])
    full_BV3 = draw("mesh.vertices", (batch, len(topology.template), 3), salt)
    coarse_BN3 = draw("mesh.coarse", (batch, len(coarse), 3), salt)
    up_mid, up_full = (level @ coarse_BN3 for level in MeshConstants.of(topology).upsampling)
    wide = up_full.double()
    return {
        "mid_vertex_ids_in_full": middle,
        "coarse_vertex_ids_in_full": coarse,
        "coarse_vertex_ids_in_mid": np.array([place[int(vertex)] for vertex in coarse]),
        "down_mid_first16": full_BV3[:, middle][:, :FIRST_ROWS],
        "down_coarse": full_BV3[:, coarse],
        "up_mid": up_mid,
        "up_full_every7": up_full[:, ::EVERY],
        "up_full_mean_std": torch.stack([wide.mean(), wide.std()]),
        "joints17": topology.joints(full_BV3),
        "joints14": topology.token_joint_positions(full_BV3),
    }


def _masks(golden: dict[str, np.ndarray]) -> dict[str, object]:
    """Masks of all distances that the golden file names."""
    hops_NN = vertex_hops(body_topology().coarse)
    arrays: dict[str, object] = {}
    for key in golden:
        reach = int(key.removeprefix("allowed_hop").partition("_")[0])
        allowed_NN = hop_mask(hops_NN, reach, free=3)[3:, 3:]
        if key.endswith("_packed"):
            arrays[key] = np.packbits(allowed_NN.numpy())
        else:
            arrays[key] = allowed_NN.sum(dim=1)
    return arrays


def _codes(golden: dict[str, np.ndarray]) -> dict[str, object]:
    arrays: dict[str, object] = {}
    for key in golden:  # pe_d<width>_<side>
        width, side = (int(part.lstrip("d")) for part in key.split("_")[1:])
        code_DHW = sine_position_code(torch.ones(1, side, side, dtype=torch.bool), width)[0]
        # large maps were thinned out in all axes, small ones in the channels alone
        arrays[key] = code_DHW[::8, ::8, ::8] if side > 7 else code_DHW[::4]
    return arrays
