"""Bodies that hybrid inverse kinematics can pose: SMPL from the user's file.

Legend of shapes: B batch, S shape coefficients, J joints that turn, N joints of the skeleton,
K joints that evaluation compares, V vertices.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kinemesh.bodies.asset_files import AssetFolder
from kinemesh.bodies.hybrik import SMPL_TREE, BoneTree, joint_rotations, signed_quaternion
from kinemesh.bodies.model_files import ModelArrays, read_model_file
from kinemesh.bodies.sampling import read_regressor
from kinemesh.bodies.skinning import Skinning, official_rotations
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import quaternion_to_matrix
from kinemesh.skeletons import H36M17

LEAF_VERTICES = (411, 2445, 5905, 3216, 6617)
"""Head top, left and right middle finger, left and right big toe on SMPL's mesh."""
SMPL_FLIP_PAIRS = (
    *((1, 2), (4, 5), (7, 8), (10, 11), (13, 14), (16, 17), (18, 19), (20, 21), (22, 23)),
    *((25, 26), (27, 28)),
)
"""Left and right among the 29 joints of `kinemesh.bodies.hybrik.SMPL_TREE`."""
HYBRIK17 = (0, 4, 5, 6, 1, 2, 3, *range(7, 17))
"""Rows of `kinemesh.skeletons.H36M17` in the order of HybrIK's 17 joints, whose left leg comes
first; and the other way round, since the two legs change places."""


class HybrikMesh(NamedTuple):
    """A posed body, metres, in the axes of the camera.

    Attributes:
        vertices: (B, V, 3), the first of ``regressed`` in the origin.
        joints: (B, J, 3) joints that turn, the first in the origin.
        regressed: (B, K, 3) joints made of the vertices, the first in the origin.
        rotations: (B, J, 3, 3) relative to the parent joint.
    """

    vertices: Tensor
    joints: Tensor
    regressed: Tensor
    rotations: Tensor

    @property
    def quaternions(self) -> Tensor:
        """(B, J, 4) of the rotations, with the published choice of sign."""
        return signed_quaternion(self.rotations)


class HybrikBody(nn.Module):
    """A body that is posed by the places of its joints, its shape and its twists.

    A subclass gives `rest_joints` and `skin`. No parameters; buffers stay out of state dicts.

    Attributes:
        tree: Which joint turns which bone.
        shapes: S.
        flip_pairs: Left and right joints of the skeleton.
    """

    tree: BoneTree
    shapes: int
    flip_pairs: tuple[tuple[int, int], ...] = SMPL_FLIP_PAIRS

    def rest_joints(self, betas_BS: Tensor) -> Tensor:
        """(B, N, 3) joints of bodies in the rest pose, metres."""
        raise NotImplementedError

    def skin(self, rotations_BJ33: Tensor, betas_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vertices (B, V, 3), joints (B, J, 3) and regressed joints (B, K, 3), metres."""
        raise NotImplementedError

    def forward(
        self, skeleton_BN3: Tensor, betas_BS: Tensor, twists_BK2: Tensor, *, adaptive: bool
    ) -> HybrikMesh:
        """Pose the body; arguments as for `kinemesh.bodies.hybrik.joint_rotations`.

        Raises:
            InputError: A shape does not fit.
        """
        rest_BN3 = self.rest_joints(betas_BS.float())
        rotations_BJ33 = joint_rotations(
            skeleton_BN3, rest_BN3, twists_BK2.float(), self.tree, adaptive=adaptive
        )
        return self.posed(rotations_BJ33, betas_BS)

    def posed(self, rotations_BJ33: Tensor, betas_BS: Tensor) -> HybrikMesh:
        """Skin the body by known rotations, and move the roots to the origin."""
        vertices, joints, regressed = self.skin(rotations_BJ33.float(), betas_BS.float())
        root = regressed[:, :1].detach()
        return HybrikMesh(
            vertices - root, joints - joints[:, :1].detach(), regressed - root, rotations_BJ33
        )

    def posed_by_quaternions(self, quaternions_BJ4: Tensor, betas_BS: Tensor) -> HybrikMesh:
        """Skin the body by labels: quaternions (w, x, y, z) of any length, zero for no turn."""
        length = quaternions_BJ4.norm(dim=-1, keepdim=True)
        return self.posed(quaternion_to_matrix(quaternions_BJ4 / (length + 1e-8)), betas_BS)

    def posed_by_axis_angles(self, axis_angles_BJ3: Tensor, betas_BS: Tensor) -> HybrikMesh:
        """Skin the body by labels: axis times angle in radians."""
        return self.posed(official_rotations(axis_angles_BJ3), betas_BS)


class SmplHybrik(HybrikBody):
    """SMPL with the five ends of its last bones.

    Args:
        arrays: Of SMPL's model file.
        regressor: (17, V) joints of Human3.6M from vertices, pelvis first, then the left leg:
            HybrIK's order, in which its data sets are labelled.

    Raises:
        InputError: Regressor or arrays are of another mesh.
    """

    regressor_KV: Tensor

    def __init__(self, arrays: ModelArrays, regressor: NDArray[np.floating]) -> None:
        super().__init__()
        self.tree = SMPL_TREE
        self.skinning = Skinning(arrays)
        self.shapes = arrays.shape_basis.shape[-1]
        vertices = len(arrays.template)
        if vertices <= max(LEAF_VERTICES):
            raise InputError(
                f"arrays: expected SMPL's mesh, of which vertices {LEAF_VERTICES} end the bones, "
                f"found {vertices} vertices; use the neutral SMPL"
            )
        if regressor.shape[1:] != (vertices,):
            raise InputError(
                f"regressor: expected shape (17, {vertices}) for this mesh, found "
                f"{regressor.shape}; use J_regressor_h36m_correct.npy"
            )
        dense = torch.from_numpy(np.ascontiguousarray(regressor)).float()
        self.register_buffer("regressor_KV", dense, persistent=False)
        ends = list(LEAF_VERTICES)
        template_N3 = torch.cat([self.skinning.joint_template_J3, self.skinning.template_V3[ends]])
        basis_SN3 = torch.cat(
            [self.skinning.joint_shape_basis_SJ3, self.skinning.shape_basis_SV3[:, ends]], dim=1
        )
        self.register_buffer("rest_N3", template_N3, persistent=False)
        self.register_buffer("rest_basis_SN3", basis_SN3, persistent=False)

    rest_N3: Tensor
    rest_basis_SN3: Tensor

    def rest_joints(self, betas_BS: Tensor) -> Tensor:
        """(B, 29, 3) joints of bodies (B, 10) in the rest pose, metres."""
        with torch.autocast(betas_BS.device.type, enabled=False):
            return self.rest_N3 + torch.einsum("bs,snd->bnd", betas_BS, self.rest_basis_SN3)

    def skin(self, rotations_BJ33: Tensor, betas_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vertices (B, V, 3), joints (B, 24, 3) and Human3.6M's (B, 17, 3), metres."""
        mesh = self.skinning(rotations_BJ33, betas_BS)
        with torch.autocast(betas_BS.device.type, enabled=False):
            regressed = torch.einsum("kv,bvd->bkd", self.regressor_KV, mesh.vertices)
        return mesh.vertices, mesh.joints, regressed


def load_smpl_hybrik(folder: str | Path) -> SmplHybrik:
    """Neutral SMPL and Human3.6M's joint regressor from a folder of the user's files.

    The file of the regressor, METRO's, has the right leg first: its rows are brought into HybrIK's
    order.

    Raises:
        InputError: A file is missing or damaged; the message says where it can be had.
    """
    files = AssetFolder(folder)
    arrays = read_model_file(files.require("smpl"), len(SMPL_TREE.guides))
    path = files.require("smpl-regressor")
    regressor = read_regressor(path, len(H36M17), len(arrays.template))
    return SmplHybrik(arrays, regressor[list(HYBRIK17)])
