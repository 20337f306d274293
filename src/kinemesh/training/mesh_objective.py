"""From a batch of records to loss terms: what METRO and Mesh Graphormer are asked for.

An objective lives on the device of the batch, so body models pose their meshes there and no step
waits for a copy. Legend: B batch, J joints of the labels, T joints that are tokens, V vertices.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from kinemesh.bodies.skinning import BodyMesh
from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.geometry.crops import to_signed
from kinemesh.mesh_losses import (
    JointTargets,
    MeshLossWeights,
    MeshTargets,
    MeshTransformerLoss,
    PoseTransformerLoss,
)
from kinemesh.models.graphormer_pose import PoseOutput
from kinemesh.models.mesh_transformer import MeshOutput
from kinemesh.skeletons import Skeleton, joint_map

Batch = Mapping[str, Tensor]


class JointObjective(nn.Module):
    """What is known of joints, in the order of a network's tokens.

    Args:
        labels: Joint set of the data.
        tokens: Joint set of the network.

    Raises:
        InputError: The data do not label a joint of the network.
    """

    order_T: Tensor

    def __init__(self, labels: Skeleton, tokens: Skeleton) -> None:
        super().__init__()
        order = joint_map(labels, tokens)
        missing = [tokens.joints[i] for i, source in enumerate(order) if source is None]
        if missing:
            raise InputError(
                f"data: '{labels.name}' lacks {', '.join(missing)}, which the network predicts "
                f"('{tokens.name}'); choose data and mesh that fit."
            )
        self.register_buffer("order_T", torch.tensor(order), persistent=False)

    def joint_targets(self, batch: Batch) -> JointTargets:
        """Joints as the batch labels them."""
        labels_BJ3, side = batch["joints_2d"], batch["image"].shape[-1]
        signed_BJ2 = to_signed(labels_BJ3[..., :2], side)
        joints_2d_BJ3 = torch.cat([signed_BJ2, labels_BJ3[..., 2:]], dim=-1)
        return JointTargets(
            joints_2d_BJ3.index_select(1, self.order_T),
            batch["joints_3d"].index_select(1, self.order_T),
            batch["has_3d"],
        )


class PoseObjective(JointObjective):
    """Joints alone, for a network without a mesh.

    Args:
        labels: Joint set of the data.
        tokens: Joint set of the network.
        weights: Weights of the joints; those of vertices do not count.
    """

    def __init__(self, labels: Skeleton, tokens: Skeleton, weights: MeshLossWeights) -> None:
        super().__init__(labels, tokens)
        self.loss = PoseTransformerLoss(weights.joints_3d, weights.joints_2d)

    def forward(self, output: PoseOutput, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of `PoseTransformerLoss`."""
        terms: dict[str, Tensor] = self.loss(
            output.camera, output.joints, self.joint_targets(batch)
        )
        return terms


class MeshObjective(JointObjective):
    """Joints and mesh.

    With a body model the mesh is the one that it makes of pose and shape, as METRO is trained:
    vertices that a data set brings besides (FreiHAND's ``training_verts.json``) do not count.

    Args:
        labels: Joint set of the data.
        topology: The mesh that the network predicts.
        weights: Weights of the terms.
        body_model: `SmplModel` or `ManoModel`; without it the batch's vertices are the target.
    """

    def __init__(
        self,
        labels: Skeleton,
        topology: Topology,
        weights: MeshLossWeights,
        body_model: nn.Module | None = None,
    ) -> None:
        super().__init__(labels, topology.token_skeleton)
        self.loss = MeshTransformerLoss(topology, weights)
        self.kind = topology.kind
        self.body_model = body_model

    def targets(self, batch: Batch) -> MeshTargets:
        """Joints and mesh as the batch labels them."""
        known, vertices_BV3 = self._labelled(batch)
        return MeshTargets(
            known.joints_2d_BT3,
            known.joints_3d_BT4,
            known.has_3d_B,
            vertices_BV3,
            batch["has_mesh"],
        )

    @torch.no_grad()
    def _labelled(self, batch: Batch) -> tuple[JointTargets, Tensor]:
        known = self.joint_targets(batch)
        if self.body_model is not None:
            return self._posed(known, self.body_model(batch["pose"], batch["betas"]), batch)
        if not batch["vertices"].shape[1]:
            raise InputError(
                "batch: expected vertices, found none and no body model to make them of pose and "
                "betas; name the folder of SMPL or MANO with --assets."
            )
        return known, batch["vertices"]

    def _posed(
        self, known: JointTargets, mesh: BodyMesh, batch: Batch
    ) -> tuple[JointTargets, Tensor]:
        """Labels of the body model, about their root.

        METRO takes the root of a body from the mesh and its joints from the label; of a hand, both
        root and joints are the model's own.
        """
        if self.kind == "body":
            return known, mesh.vertices - self.loss.root(mesh.vertices)
        root_B13 = mesh.joints[:, :1]
        certain_BJ1 = torch.ones_like(mesh.joints[..., :1])
        joints_BJ4 = torch.cat([mesh.joints - root_B13, certain_BJ1], dim=-1)
        known = replace(known, joints_3d_BT4=joints_BJ4, has_3d_B=batch["has_mesh"])
        return known, mesh.vertices - root_B13

    def forward(self, output: MeshOutput, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of `MeshTransformerLoss`."""
        terms: dict[str, Tensor] = self.loss(output, self.targets(batch))
        return terms
