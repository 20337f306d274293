"""The two sides of a comparison: what a network predicts and what a data set labels."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.protocols import Known, Points, Protocol
from kinemesh.skeletons import Skeleton

Batch = Mapping[str, Tensor]
BodyModel = Callable[[Tensor, Tensor], Any]
"""Pose (B, P) and betas (B, 10) to an object with ``vertices`` (B, V, 3), metres."""


class NetworkSide:
    """Points that any of our networks predicts, ready to be scored.

    METRO's and Mesh Graphormer's joints are those that the topology's regressor makes of the
    predicted full mesh, as in the published scores, and not the joint tokens. Networks that give
    the joints of the topology's skeleton themselves (guided-graphormer) are scored on these, one
    without a mesh (graphormer-pose) on its tokens.

    Args:
        network: In eval mode, on the device of the images.
        topology: Its mesh, on the same device.
        metadata: The record of its weight file: architecture and how images are normalised.
    """

    def __init__(self, network: nn.Module, topology: Topology, metadata: Mapping[str, Any]) -> None:
        self.network, self.topology = network, topology
        self.normalise = metadata.get("normalisation") == "imagenet"
        self.architecture = metadata.get("architecture")

    @property
    def has_mesh(self) -> bool:
        """Whether the network predicts vertices."""
        return self.architecture != "graphormer-pose"

    @property
    def own_joints(self) -> str | None:
        """What the joints are, in words, where they do not come from the mesh."""
        names = {
            "graphormer-pose": "the network's joint tokens",
            "guided-graphormer": "the network itself",
        }
        return names.get(str(self.architecture))

    @property
    def skeleton(self) -> Skeleton:
        """Joint set of `joints`."""
        return self.topology.skeleton if self.has_mesh else self.topology.token_skeleton

    def run(self, image_B3SS: Tensor) -> Any:
        """The network's output for crops of sRGB in 0..1."""
        return self.network(normalise_imagenet(image_B3SS) if self.normalise else image_B3SS)

    def joints(self, output: Any) -> Tensor:
        """The joints (B, J, 3) of an output that are scored, in metres."""
        if self.own_joints is None:
            return self.topology.joints(full_mesh(output).float())
        joints: Tensor = output.joints.float()
        return joints

    @torch.inference_mode()
    def __call__(self, image_B3SS: Tensor, protocol: Protocol) -> Points:
        """Points of crops of sRGB in 0..1."""
        output = self.run(image_B3SS)
        if self.own_joints is None:
            return protocol.points_of_mesh(full_mesh(output).float(), self.topology)
        joints = self.joints(output)
        compared = protocol.joints_of(joints, self.skeleton)
        if not self.has_mesh:
            return Points(compared)
        return Points(compared, full_mesh(output).float(), self.topology.root(joints))


def full_mesh(output: Any) -> Tensor:
    """Vertices (B, V, 3) of the full mesh; networks with several levels give it last."""
    found = output.vertices
    vertices: Tensor = found if isinstance(found, Tensor) else found[-1]
    return vertices


class LabelSide(NamedTuple):
    """Points that a data set labels.

    Attributes:
        topology: The mesh that is scored, on the device of the batches.
        skeleton: Joint set of the labels.
        body_model: Makes vertices where only pose and betas are labelled; None leaves them out.
    """

    topology: Topology
    skeleton: Skeleton
    body_model: BodyModel | None = None

    @torch.inference_mode()
    def __call__(self, batch: Batch, protocol: Protocol) -> tuple[Points, Known]:
        """Points and flags of a batch of records."""
        joints = protocol.joints_of(batch["joints_3d"][..., :3], self.skeleton)
        known = Known(batch["has_3d"], batch["has_mesh"])
        vertices = self.vertices(batch)
        if vertices is None or vertices.shape[1] != len(self.topology.template):
            return Points(joints), known
        root = self.topology.root(self.topology.joints(vertices))
        return Points(joints, vertices, root), known

    def vertices(self, batch: Batch) -> Tensor | None:
        """Labelled vertices (B, V, 3), those of the body model, or None."""
        if batch["vertices"].shape[1]:
            return batch["vertices"]
        if self.body_model is None or not batch["pose"].shape[1]:
            return None
        mesh: Tensor = self.body_model(batch["pose"], batch["betas"]).vertices
        return mesh

    def why_no_mesh(self, batch: Batch) -> str | None:
        """Why vertices cannot be scored with such a batch; None if they can."""
        vertices = self.vertices(batch)
        if vertices is None:
            if not batch["pose"].shape[1]:
                return "the data set labels no mesh"
            return "the labels hold pose and shape only; name the body model's folder (--assets)"
        count = len(self.topology.template)
        if vertices.shape[1] == count:
            return None
        return f"the labels' mesh has {vertices.shape[1]} vertices, the model's {count}"
