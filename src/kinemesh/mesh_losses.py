"""Losses of METRO and Mesh Graphormer (Lin, Wang and Liu, CVPR and ICCV 2021).

The objective is an L1 error of the vertices and squared errors of 3D joints and of projected
joints. Joints count twice: as the network's own tokens and as regressed from its full mesh, so that
mesh and joints agree. Divisors, filters and weights are those of the official code:

- joints in 3D: both sides are moved to their own root; only samples with the label count;
- projected joints: *all* samples stay in the divisor, joints without confidence add nothing;
- vertices: the target is about its root, the prediction is taken as it is.

Everything is masked instead of selected, so no step waits for the device.

Legend: B batch, T joints that are tokens, V vertices, N coarse vertices, L meshes of the output.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.losses import joints_loss, vertices_loss
from kinemesh.models.mesh_transformer import MeshOutput


@dataclass(frozen=True)
class JointTargets:
    """What is known of the joints of a batch.

    Attributes:
        joints_2d_BT3: (B, T, 3) signed crop coordinates [-1, 1] and confidence; the confidence of
            a joint without a label is 0.
        joints_3d_BT4: (B, T, 4) metres, camera axes, about any origin, and confidence.
        has_3d_B: (B,) 1 for samples whose 3D joints are labelled, else 0.
    """

    joints_2d_BT3: Tensor
    joints_3d_BT4: Tensor
    has_3d_B: Tensor


@dataclass(frozen=True)
class MeshTargets(JointTargets):
    """What is known of the joints and of the mesh of a batch.

    Attributes:
        vertices_BV3: (B, V, 3) full mesh about its root, metres; see `MeshTransformerLoss.root`.
        has_mesh_B: (B,) 1 for samples whose mesh is labelled, else 0.
    """

    vertices_BV3: Tensor
    has_mesh_B: Tensor


@dataclass(frozen=True)
class MeshLossWeights:
    """Weights of the terms; the defaults are those of the published bodies.

    Attributes:
        joints_3d: Of 3D joints, tokens and regressed alike.
        vertices: Of the vertices of all levels together.
        joints_2d: Of projected joints, tokens and regressed alike.
        levels: Within the vertices, one for each mesh of the output, coarse to full.
    """

    joints_3d: float = 1000.0
    vertices: float = 100.0
    joints_2d: float = 100.0
    levels: tuple[float, ...] = (0.33, 0.33, 0.33)

    @classmethod
    def hand(cls) -> Self:
        """The weights of the published hands."""
        return cls(1.0, 1.0, 1.0, (0.5, 0.5))


class MeshTransformerLoss(nn.Module):
    """All loss terms of a network that gives a `MeshOutput`.

    Args:
        topology: The mesh that the network predicts.
        weights: Weights of the terms.

    Raises:
        InputError: There is not one level weight for each mesh of the topology.
    """

    regressor_TV: Tensor
    root_V: Tensor

    def __init__(self, topology: Topology, weights: MeshLossWeights) -> None:
        super().__init__()
        meshes = len(topology.levels) + 1
        if len(weights.levels) != meshes:
            raise InputError(
                f"weights.levels: expected {meshes} numbers, one for each mesh of topology "
                f"'{topology.name}' from coarse to full, found {weights.levels}."
            )
        self.weights = weights
        self.root_joints = topology.token_skeleton.root_indices()
        self.vertex_terms = _vertex_terms(meshes)
        regressor_JV = _dense_regressor(topology)
        tokens = topology.token_joints
        regressor_TV = regressor_JV if tokens is None else regressor_JV[list(tokens)]
        root_V = regressor_JV[list(topology.skeleton.root_indices())].mean(dim=0)
        self.register_buffer("regressor_TV", regressor_TV, persistent=False)
        self.register_buffer("root_V", root_V, persistent=False)
        for number, level in enumerate(topology.levels):
            self.register_buffer(f"level_{number}", level.vertex_index, persistent=False)
        self._levels = [f"level_{number}" for number in reversed(range(len(topology.levels)))]

    @classmethod
    def body(cls, topology: Topology) -> Self:
        """With the weights of the published bodies, for a topology of two coarse levels."""
        return cls(topology, MeshLossWeights())

    @classmethod
    def hand(cls, topology: Topology) -> Self:
        """With the weights of the published hands, for a topology of one coarse level."""
        return cls(topology, MeshLossWeights.hand())

    def root(self, vertices_BV3: Tensor) -> Tensor:
        """Root (B, 1, 3) of full meshes (B, V, 3), as the topology's regressor places it."""
        return torch.einsum("v,bvd->bd", self.root_V, vertices_BV3)[:, None]

    def joints(self, vertices_BV3: Tensor) -> Tensor:
        """Joints (B, T, 3) of full meshes (B, V, 3), in the order of the tokens.

        The slow twin is `Topology.token_joint_positions`. One product with a matrix that is mostly
        zeros costs little beside the network and needs no scattered additions on the way back.
        """
        return self.regressor_TV @ vertices_BV3

    def forward(self, output: MeshOutput, targets: MeshTargets) -> dict[str, Tensor]:
        """Compute every term.

        Args:
            output: What the network predicts.
            targets: What is known.

        Returns:
            Scalars: ``loss_3d_token`` and ``loss_3d_mesh`` (square metres), ``loss_v_sub2``
            (coarsest of three meshes), ``loss_v_sub`` and ``loss_v_full`` (metres),
            ``loss_2d_token`` and ``loss_2d_mesh`` (squared crop units), and their weighted sum
            ``total``.

        Raises:
            InputError: Shapes of prediction and target differ.
        """
        regressed_BT3 = self.joints(output.vertices[-1])
        joints_3d = {
            "loss_3d_token": joints_3d_loss(output.joints, targets, self.root_joints),
            "loss_3d_mesh": joints_3d_loss(regressed_BT3, targets, self.root_joints),
        }
        vertices = self._vertices(output.vertices, targets)
        joints_2d = {
            "loss_2d_token": joints_2d_loss(output.joints, output.camera, targets),
            "loss_2d_mesh": joints_2d_loss(regressed_BT3, output.camera, targets),
        }
        weights = self.weights
        weighted = [weights.joints_3d * term for term in joints_3d.values()]
        weighted += [
            weights.vertices * weight * term
            for weight, term in zip(weights.levels, vertices.values(), strict=True)
        ]
        weighted += [weights.joints_2d * term for term in joints_2d.values()]
        return joints_3d | vertices | joints_2d | {"total": torch.stack(weighted).sum()}

    def _vertices(self, predicted: tuple[Tensor, ...], targets: MeshTargets) -> dict[str, Tensor]:
        full_BV3 = targets.vertices_BV3
        coarse = [full_BV3.index_select(1, self.get_buffer(name)) for name in self._levels]
        if len(predicted) != len(coarse) + 1:
            raise InputError(
                f"output.vertices: expected {len(coarse) + 1} meshes, coarse to full, found "
                f"{len(predicted)}; build the network from the topology of the loss."
            )
        return {
            name: vertices_loss(mesh, target, targets.has_mesh_B)
            for name, mesh, target in zip(
                self.vertex_terms, predicted, (*coarse, full_BV3), strict=True
            )
        }


class PoseTransformerLoss(nn.Module):
    """Squared errors of joints alone, for the hand-pose network without a mesh.

    Target and prediction are compared as they are: the network learns joints about the wrist.

    Args:
        joints_3d: Weight of the 3D joints.
        joints_2d: Weight of the projected joints; with 0, the default of the network's source,
            nothing teaches the camera.
    """

    def __init__(self, joints_3d: float = 1.0, joints_2d: float = 0.0) -> None:
        super().__init__()
        self.joints_3d, self.joints_2d = joints_3d, joints_2d

    def forward(
        self, camera_B3: Tensor, joints_BT3: Tensor, targets: JointTargets
    ) -> dict[str, Tensor]:
        """Compute ``loss_3d_token``, ``loss_2d_token`` and their weighted sum ``total``.

        Args:
            camera_B3: Weak perspective (s, tx, ty).
            joints_BT3: Predicted joints, metres, about the root.
            targets: Joints about the root.
        """
        loss_3d = joints_loss(joints_BT3, targets.joints_3d_BT4, targets.has_3d_B)
        loss_2d = joints_2d_loss(joints_BT3, camera_B3, targets)
        total = self.joints_3d * loss_3d + self.joints_2d * loss_2d
        return {"loss_3d_token": loss_3d, "loss_2d_token": loss_2d, "total": total}


def joints_3d_loss(
    joints_BT3: Tensor, targets: JointTargets, root_joints: tuple[int, ...]
) -> Tensor:
    """Squared error of joints about their root, in square metres.

    ``sum(has * c * |error|^2) / (sum(has) * T * 3)``: uncertain joints stay in the divisor.

    Args:
        joints_BT3: Predicted joints, about any origin.
        targets: Known joints.
        root_joints: Joints whose mean is the root of either side.
    """
    known_BT4 = targets.joints_3d_BT4
    target_BT3 = _about_root(known_BT4[..., :3], root_joints)
    target_BT4 = torch.cat((target_BT3, known_BT4[..., 3:]), dim=-1)
    return joints_loss(_about_root(joints_BT3, root_joints), target_BT4, targets.has_3d_B)


def joints_2d_loss(joints_BT3: Tensor, camera_B3: Tensor, targets: JointTargets) -> Tensor:
    """Squared error of projected joints, ``sum(c * |error|^2) / (B * T * 2)``, crop units squared.

    Args:
        joints_BT3: Predicted joints, not moved to their root.
        camera_B3: Weak perspective (s, tx, ty).
        targets: Known joints.
    """
    projected_BT2 = WeakPerspective.from_vector(camera_B3).project(joints_BT3)
    return joints_loss(projected_BT2, targets.joints_2d_BT3)


def _about_root(joints_BT3: Tensor, root_joints: tuple[int, ...]) -> Tensor:
    # Joints are selected one by one: a list of indices would be copied to the device.
    root_B3 = torch.stack([joints_BT3[:, joint] for joint in root_joints]).mean(dim=0)
    return joints_BT3 - root_B3[:, None]


def _dense_regressor(topology: Topology) -> Tensor:
    shape = (len(topology.skeleton), len(topology.template))
    weight_JK = topology.regressor_weight
    return weight_JK.new_zeros(shape).scatter_add_(1, topology.regressor_index, weight_JK)


def _vertex_terms(meshes: int) -> tuple[str, ...]:
    """``loss_v_sub2``, ``loss_v_sub``, ``loss_v_full``: names count up from the full mesh."""
    coarse = [f"loss_v_sub{number if number > 1 else ''}" for number in range(meshes - 1, 0, -1)]
    return (*coarse, "loss_v_full")
