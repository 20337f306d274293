"""Linear blend skinning as SMPL and MANO define it, batched and differentiable.

Source: Loper et al., SMPL: A Skinned Multi-Person Linear Model (SIGGRAPH Asia 2015), eqs. 2 to 10;
Romero et al., Embodied Hands (SIGGRAPH Asia 2017) for MANO.

Legend of shapes: B batch, V vertices, J joints, S shape coefficients, D joints of one tree depth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.bodies.model_files import SHAPES, Array, ModelArrays
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import quaternion_to_matrix

ANGLE_OFFSET_RAD = 1e-8


class BodyMesh(NamedTuple):
    """Posed vertices (B, V, 3) and joints (B, J, 3): metres, in the axes of the model file."""

    vertices: Tensor
    joints: Tensor


def official_rotations(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis times angle in radians to (..., 3, 3), as the labels' own code has it.

    The angle is the norm of the vector with 1e-8 added to each component, the axis is the vector
    divided by that angle, and the matrix is made by way of a quaternion. This differs from
    Rodrigues' formula by about 1e-8 and has a gradient at the zero rotation.
    """
    with torch.autocast(axis_angle.device.type, enabled=False):
        angle = (axis_angle + ANGLE_OFFSET_RAD).norm(dim=-1, keepdim=True)
        axis = axis_angle / angle
        quaternion = torch.cat([torch.cos(angle / 2), torch.sin(angle / 2) * axis], dim=-1)
        return quaternion_to_matrix(quaternion)


class Skinning(nn.Module):
    """Shape, pose and skin a template.

    All buffers stay out of state dicts: a checkpoint must not carry somebody's model file.
    """

    template_V3: Tensor
    shape_basis_SV3: Tensor
    pose_basis_PV3: Tensor
    joint_template_J3: Tensor
    joint_shape_basis_SJ3: Tensor
    skin_weights_VJ: Tensor
    faces_F3: Tensor

    def __init__(self, arrays: ModelArrays) -> None:
        """Keep the arrays as float32 buffers; products of them are made in float64 first."""
        super().__init__()
        self.parents = arrays.parents
        regressor_JV = arrays.joint_regressor
        joint_shapes = np.einsum("jv,vds->sjd", regressor_JV, arrays.shape_basis)
        self._constant("template_V3", arrays.template)
        self._constant("shape_basis_SV3", arrays.shape_basis.transpose(2, 0, 1))
        self._constant("pose_basis_PV3", arrays.pose_basis.transpose(2, 0, 1))
        self._constant("joint_template_J3", regressor_JV @ arrays.template)
        self._constant("joint_shape_basis_SJ3", joint_shapes)
        self._constant("skin_weights_VJ", arrays.skin_weights)
        self.register_buffer("faces_F3", torch.from_numpy(arrays.faces), persistent=False)
        self._depths, self._joint_order = tree_depths(arrays.parents)

    def _constant(self, name: str, value: Array) -> None:
        tensor = torch.from_numpy(np.ascontiguousarray(value)).float()
        self.register_buffer(name, tensor, persistent=False)

    def forward(self, rotations_BJ33: Tensor, betas_BS: Tensor) -> BodyMesh:
        """Pose the body.

        Args:
            rotations_BJ33: (B, J, 3, 3) rotation of each joint relative to its parent; the first
                turns the body about its root joint.
            betas_BS: (B, 10) shape coefficients.

        Raises:
            InputError: A shape does not fit.
        """
        expected = (len(self.parents), 3, 3)
        _check("rotations", rotations_BJ33, expected)
        _check("betas", betas_BS, (SHAPES,))
        # bfloat16 has 8 bits: about 4 mm at a metre.
        with torch.autocast(betas_BS.device.type, enabled=False):
            return self._pose(rotations_BJ33, betas_BS)

    def _pose(self, rotations_BJ33: Tensor, betas_BS: Tensor) -> BodyMesh:
        pose_BP = (rotations_BJ33[:, 1:] - _identity(rotations_BJ33)).flatten(1)
        shaped_BV3 = (
            self.template_V3
            + torch.einsum("bs,svd->bvd", betas_BS, self.shape_basis_SV3)
            + torch.einsum("bp,pvd->bvd", pose_BP, self.pose_basis_PV3)
        )
        rest_BJ3 = self.joint_template_J3 + torch.einsum(
            "bs,sjd->bjd", betas_BS, self.joint_shape_basis_SJ3
        )
        world_BJ33, joints_BJ3 = self._follow_chain(rotations_BJ33, rest_BJ3)
        shift_BJ3 = joints_BJ3 - (world_BJ33 @ rest_BJ3[..., None])[..., 0]
        rotation_BV33 = torch.einsum("vj,bjde->bvde", self.skin_weights_VJ, world_BJ33)
        shift_BV3 = torch.einsum("vj,bjd->bvd", self.skin_weights_VJ, shift_BJ3)
        vertices_BV3 = (rotation_BV33 * shaped_BV3[..., None, :]).sum(-1) + shift_BV3
        return BodyMesh(vertices_BV3, joints_BJ3)

    def _follow_chain(self, rotations_BJ33: Tensor, rest_BJ3: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations and places of all joints in the model's frame, one tree depth at a time."""
        bones_BJ3 = torch.cat(
            [rest_BJ3[:, :1], rest_BJ3[:, 1:] - take(rest_BJ3, self.parents[1:])], dim=1
        )
        world_BD33, place_BD3 = rotations_BJ33[:, :1], bones_BJ3[:, :1]
        worlds, places = [world_BD33], [place_BD3]
        for joints, above in self._depths:
            parent_BD33 = take(world_BD33, above)
            offset_BD3 = (parent_BD33 @ take(bones_BJ3, joints)[..., None])[..., 0]
            place_BD3 = take(place_BD3, above) + offset_BD3
            world_BD33 = parent_BD33 @ take(rotations_BJ33, joints)
            worlds.append(world_BD33)
            places.append(place_BD3)
        return (
            take(torch.cat(worlds, dim=1), self._joint_order),
            take(torch.cat(places, dim=1), self._joint_order),
        )


def take(values_BJ: Tensor, joints: Sequence[int]) -> Tensor:
    """``values_BJ[:, joints]`` without a copy of the list, for which the host would wait."""
    return torch.stack([values_BJ[:, joint] for joint in joints], dim=1)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(3, dtype=like.dtype, device=like.device)


class BodyModel(nn.Module):
    """What SMPL and MANO share: a skinned mesh, and joints as a linear map of its vertices.

    Args:
        arrays: Of the model file.
        joint_regressor: (J, V) float64 joints from vertices, see the subclass.
    """

    def __init__(self, arrays: ModelArrays, joint_regressor: Array) -> None:
        super().__init__()
        self.joint_regressor = joint_regressor
        self.skinning = Skinning(arrays)

    @property
    def faces(self) -> Tensor:
        """(F, 3) int64 triangles, counter-clockwise seen from outside."""
        return self.skinning.faces_F3

    def posed(self, pose_BP: Tensor, betas_B10: Tensor) -> BodyMesh:
        """The mesh and the joints of the file, from axis-angle vectors (B, 3 J) in radians."""
        rotations_BJ33 = official_rotations(pose_BP.reshape(len(pose_BP), -1, 3))
        mesh: BodyMesh = self.skinning(rotations_BJ33, betas_B10)
        return mesh


def check_pose(name: str, pose_BP: Tensor, joints: int) -> None:
    """Raise an `InputError` unless a pose has three values for each joint."""
    if pose_BP.shape[1:] != (3 * joints,):
        raise InputError(
            f"{name}: expected shape (B, {3 * joints}), found {tuple(pose_BP.shape)}; pass the "
            f"axis-angle vectors of the {joints} joints in one row, not principal components"
        )


def tree_depths(parents: tuple[int, ...]) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
    """Joints below the root by depth, and where each joint stands in that order.

    Returns:
        For each depth from 1 on its joints, and each one's parent by its place in the depth above;
        for each joint its place in the order root, depth 1, depth 2, ...
    """
    above, order, depths = [0], [0], []
    while len(order) < len(parents):
        joints = [joint for joint, parent in enumerate(parents) if joint and parent in above]
        depths.append((joints, [above.index(parents[joint]) for joint in joints]))
        order += joints
        above = joints
    return depths, [order.index(joint) for joint in range(len(parents))]


def _check(argument: str, value: Tensor, expected: tuple[int, ...]) -> None:
    if value.shape[1:] != expected:
        shape = ", ".join(map(str, expected))
        raise InputError(
            f"{argument}: expected shape (B, {shape}), found {tuple(value.shape)}; "
            "pass one row for each body of the batch"
        )
