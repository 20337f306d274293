"""METRO, Mesh Graphormer and its pose-only variant as networks of the predictor.

They want images normalised as ImageNet's, answer with a weak-perspective camera, and say nothing
of how sure they are.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology, regress
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.inference.crop_rule import PUBLISHED_RULES, WEAK_PERSPECTIVE_SIDES, CropRule
from kinemesh.models.attention_maps import Evidence, joint_attention
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.models.point_sampling import mean_places

ARCHITECTURES = ("metro", "graphormer", "graphormer-pose", "point-hmr")
"""Values of a weight file's ``architecture`` that `MeshNetwork` takes."""


class CropOutput(NamedTuple):
    """What the predictor asks of a network (`kinemesh.inference.crop_prediction.NetworkOutput`).

    Attributes:
        joints: (B, J, 3) metres, root frame.
        vertices: (B, V, 3) metres, root frame; V is 0 where the network has no mesh.
        joints_2d: (B, J, 2) crop pixels, 0 to S.
        confidence: (B, J), all ones.
    """

    joints: Tensor
    vertices: Tensor
    joints_2d: Tensor
    confidence: Tensor


class MeshNetwork(nn.Module):
    """A network with a weak-perspective camera, from RGB in 0..1 to joints, mesh and 2D joints.

    The joints are regressed from the predicted mesh, as METRO's published scores are computed, and
    not read from the joint tokens. Joints and mesh stay in the frame of the network's output (about
    the root joint, as it was trained), since its camera speaks of that frame. The 2D joints are
    their projection ``p = s (X_xy + t)``, in crop pixels ``(p + 1) / 2 * S``.

    Args:
        network: Module whose output has ``camera`` (B, 3) and ``joints`` (B, J, 3), and with a mesh
            ``vertices``, a level each, the full mesh last.
        topology: The mesh and its joint regressor.
        has_mesh: Whether the output has ``vertices``; without them its ``joints`` are taken, which
            must be those of ``topology``'s skeleton.
        normalise: Whether the network wants images normalised as ImageNet's.
    """

    tells_sides = False
    """The confidence says nothing, so left and right hands cannot be told apart by it."""

    regressor_index: Tensor
    regressor_weight: Tensor

    def __init__(
        self,
        network: nn.Module,
        topology: Topology,
        *,
        has_mesh: bool = True,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        self.network = network
        self.has_mesh = self.explains = has_mesh
        self.normalise = normalise
        self.register_buffer("regressor_index", topology.regressor_index, persistent=False)
        self.register_buffer("regressor_weight", topology.regressor_weight, persistent=False)

    def forward(self, image_B3SS: Tensor) -> CropOutput:
        """Recover people in (B, 3, S, S) crops of sRGB in 0..1."""
        output = self.network(self._pixels(image_B3SS))
        return self._crop_output(output, image_B3SS.shape[-1])

    def explain(self, image_B3SS: Tensor) -> tuple[CropOutput, Evidence]:
        """As `forward`, and what was looked at; only where ``explains`` is true."""
        output = self.network(self._pixels(image_B3SS), return_attention=True)
        return self._crop_output(output, image_B3SS.shape[-1]), self._evidence(output)

    def _pixels(self, image_B3SS: Tensor) -> Tensor:
        return normalise_imagenet(image_B3SS) if self.normalise else image_B3SS

    def _crop_output(self, output: Any, side: int) -> CropOutput:
        if self.has_mesh:
            vertices_BV3 = output.vertices[-1]
            joints_BJ3 = regress(vertices_BV3, self.regressor_index, self.regressor_weight)
        else:
            joints_BJ3 = output.joints
            vertices_BV3 = joints_BJ3[:, :0]
        camera = WeakPerspective.from_vector(output.camera)
        return CropOutput(
            joints_BJ3,
            vertices_BV3,
            camera.project_px(joints_BJ3, side),
            torch.ones_like(joints_BJ3[..., 0]),
        )

    def _evidence(self, output: Any) -> Evidence:
        """What the joint tokens attended to; PointHMR also has heat maps, and grid tokens first."""
        first: int = getattr(self.network, "joint_tokens", slice(0, None)).start
        second = first + output.joints.shape[1]
        vertices = slice(second, second + output.vertices[0].shape[1])
        attention_BJN = joint_attention(output.attention[-1], slice(first, second), vertices)
        heat_BNHW = getattr(output, "heat", None)
        return Evidence(attention_BJN, None if heat_BNHW is None else mean_places(heat_BNHW))


def adapt_network(
    network: nn.Module, topology: Topology, metadata: Mapping[str, Any]
) -> tuple[nn.Module, CropRule]:
    """A loaded network in the form that the predictor takes, and the crops that it wants.

    Args:
        network: As `kinemesh.models.registry.load_model` returned it.
        topology: Its mesh.
        metadata: The record of its weight file.

    Returns:
        The network, in a `MeshNetwork` if its architecture asks for one, and its rule for crops:
        that of the published data sets (`PUBLISHED_RULES`), or our own for a network that was
        trained on our renders. Those are known by their mesh, which their file holds and which is
        neither SMPL's nor MANO's.
    """
    architecture = metadata.get("architecture")
    if architecture not in ARCHITECTURES:
        return network, CropRule()
    adapted = MeshNetwork(
        network,
        topology,
        has_mesh=architecture != "graphormer-pose",
        normalise=metadata.get("normalisation") == "imagenet",
    )
    if metadata.get("topology") is None or topology.name in ("smpl", "mano"):
        return adapted, PUBLISHED_RULES[topology.kind]
    return adapted, CropRule(focal_sides=WEAK_PERSPECTIVE_SIDES)
