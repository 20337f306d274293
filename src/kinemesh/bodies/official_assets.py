"""SMPL and MANO from a folder of the user's own files: models, topologies, and what is missing.

The topologies are those that METRO (Lin et al., CVPR 2021) and Mesh Graphormer (Lin et al., ICCV
2021) were trained with, so that networks built from them take the published weights.

Legend of shapes: V vertices, J joints, F faces.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.bodies.asset_files import AssetFolder, Family
from kinemesh.bodies.mano import ManoModel
from kinemesh.bodies.model_files import checked_faces
from kinemesh.bodies.sampling import (
    MeshSampling,
    padded_rows,
    read_array,
    read_edges,
    read_regressor,
    read_sampling,
)
from kinemesh.bodies.smpl import SmplModel
from kinemesh.bodies.topology import Topology, regress
from kinemesh.errors import InputError
from kinemesh.skeletons import H36M14, H36M17, HAND21, joint_map

Gender = Literal["neutral", "male", "female"]
UPRIGHT_TURN_RAD = 3.1416  # not pi: the published networks were trained with this template
J14_IN_H36M17 = tuple(index for index in joint_map(H36M17, H36M14) if index is not None)
LEVELS: dict[Family, int] = {"smpl": 2, "mano": 1}
METRO24_ROWS = (
    *(8, 5, 29, 30, 4, 7, 21, 19, 17, 16, 18, 20),
    *(31, 32, 33, 34, 35, 36, 37, 24, 26, 25, 28, 27),
)
"""Rows of SMPL's 24 joints followed by the 14 of J_regressor_extra that make METRO24."""


def load_body_model(
    folder: str | Path, family: Family, gender: Gender = "neutral"
) -> SmplModel | ManoModel:
    """The body model of a folder.

    Args:
        folder: Searched with its sub-folders for the official file names.
        family: ``"smpl"`` or ``"mano"``, a right hand.
        gender: Which SMPL. Published networks, labels and errors use the neutral one throughout,
            and so does all of this library; the others are for comparing with gendered labels.

    Raises:
        InputError: The file is missing or damaged; the message says where it can be had.
    """
    files = AssetFolder(folder)
    if family == "mano":
        return ManoModel.load(files.require("mano"))
    return SmplModel.load(files.require("smpl" if gender == "neutral" else f"smpl-{gender}"))


def smpl_topology(folder: str | Path) -> Topology:
    """SMPL's mesh with its levels of 1723 and 431 vertices and the Human3.6M joints.

    The neutral body stands as published templates do: turned by 3.1416 about x, so that y points
    down and it faces the viewer, and its pelvis (row 0 of the regressor) is the origin.

    Raises:
        InputError: A file is missing, damaged, or belongs to another mesh.
    """
    files = AssetFolder(folder)
    model = SmplModel.load(files.require("smpl"))
    sampling = _sampling(files, "smpl", len(model.skinning.template_V3))
    regressor = read_regressor(files.require("smpl-regressor"), len(H36M17), sampling.vertices)
    pose_B72 = torch.zeros(1, 72)
    pose_B72[0, 0] = UPRIGHT_TURN_RAD
    vertices_V3 = model(pose_B72, torch.zeros(1, 10)).vertices[0]
    return smpl_topology_of(vertices_V3, model.faces, sampling, regressor)


def mano_topology(folder: str | Path) -> Topology:
    """MANO's right hand with its level of 195 vertices and 21 joints.

    The hand has the mean pose, the axes of the file, and its wrist at the origin.

    Raises:
        InputError: A file is missing, damaged, or belongs to another mesh.
    """
    files = AssetFolder(folder)
    model = ManoModel.load(files.require("mano"))
    sampling = _sampling(files, "mano", len(model.skinning.template_V3))
    posed = model(torch.zeros(1, 48), torch.zeros(1, 10))
    return mano_topology_of(
        posed.vertices[0], posed.joints[0], model.faces, sampling, model.joint_regressor
    )


def smpl_topology_of(
    vertices_V3: Tensor,
    faces_F3: Tensor,
    sampling: MeshSampling,
    regressor_JV: NDArray[np.float64],
) -> Topology:
    """Topology of a body whose vertices are given, in the rest frame, wherever its origin is.

    Networks carry 14 of the 17 joints. Their template places are those of the body relative to its
    pelvis, regressed before the pelvis is subtracted: the published regressor's rows do not sum to
    one, so that afterwards they would come out up to 0.1 mm elsewhere.
    """
    index, weight = padded_rows(regressor_JV)
    joints_J3 = regress(vertices_V3[None], index, weight)[0]
    pelvis_13 = joints_J3[:1]
    plain = _topology("smpl", vertices_V3 - pelvis_13, faces_F3, sampling, regressor_JV)
    tokens_J3 = joints_J3[list(J14_IN_H36M17)] - pelvis_13
    return replace(plain, token_joints=J14_IN_H36M17, token_template=tokens_J3)


def mano_topology_of(
    vertices_V3: Tensor,
    joints_J3: Tensor,
    faces_F3: Tensor,
    sampling: MeshSampling,
    regressor_JV: NDArray[np.float64],
) -> Topology:
    """Topology of a hand whose vertices and joints are given, wherever the origin is.

    The joints, which come from the hand's bones, are the template places of the tokens; the
    regressor's are slightly others (`ManoModel.joint_regressor`).
    """
    wrist_13 = joints_J3[:1]
    plain = _topology("mano", vertices_V3 - wrist_13, faces_F3, sampling, regressor_JV)
    return replace(plain, token_template=joints_J3 - wrist_13)


def _topology(
    name: Family,
    template_V3: Tensor,
    faces_F3: Tensor,
    sampling: MeshSampling,
    regressor_JV: NDArray[np.float64],
) -> Topology:
    index, weight = padded_rows(regressor_JV)
    return Topology(
        name=name,
        kind="body" if name == "smpl" else "hand",
        template=template_V3,
        faces=faces_F3,
        levels=sampling.levels(LEVELS[name]),
        regressor_index=index,
        regressor_weight=weight,
        skeleton=H36M17 if name == "smpl" else HAND21,
    )


def metro24_regressor(folder: str | Path) -> NDArray[np.float64]:
    """(24, V) regressor of the METRO24 joints, to label SMPL meshes of your own for training.

    Published label files hold these joints already; nothing in this library makes them again.

    Raises:
        InputError: A file is missing, damaged, or belongs to another mesh.
    """
    files = AssetFolder(folder)
    own_JV = SmplModel.load(files.require("smpl")).joint_regressor
    extra_JV = read_array(files.require("smpl-label-regressor"), 14, own_JV.shape[1])
    rows: NDArray[np.float64] = np.concatenate([own_JV, extra_JV])[list(METRO24_ROWS)]
    return rows


def _sampling(files: AssetFolder, family: Family, vertices: int) -> MeshSampling:
    """The sampling of a mesh, compared with the other files that speak of it."""
    path = files.require(f"{family}-sampling")
    sampling = read_sampling(path, LEVELS[family])
    if sampling.vertices != vertices:
        raise InputError(
            f"{path}: expected a mesh of {vertices} vertices, as the model file has, found "
            f"{sampling.vertices}; the two files belong to different models"
        )
    adjacency = files.get(f"{family}-adjacency")
    if adjacency and not torch.equal(read_edges(adjacency), sampling.edges[LEVELS[family]]):
        raise InputError(
            f"{adjacency[0]}: expected the edges of {path.name}, found others; take all files from "
            "the same repository, or remove this one, which nothing needs"
        )
    return _with_coarse_faces(sampling, files) if family == "smpl" else sampling


def _with_coarse_faces(sampling: MeshSampling, files: AssetFolder) -> MeshSampling:
    """Faces of the level of 431 from their own file, if the sampling file has none.

    The sampling file's are better: they all have the orientation of the full mesh.
    """
    paths = files.get("smpl-coarse-faces")
    if len(sampling.faces[2]) or paths is None:
        return sampling
    faces_F3 = checked_faces(read_array(paths[0], columns=3), len(sampling.kept[1]), paths[0])
    return replace(sampling, faces=(*sampling.faces[:2], torch.from_numpy(faces_F3)))
