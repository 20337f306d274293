"""POTTER's mesh network as a network of the predictor."""

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology, regress
from kinemesh.data.hybrik_crop import BOX_FACTOR, MEAN, STD
from kinemesh.inference.crop_rule import CropRule
from kinemesh.inference.mesh_networks import CropOutput
from kinemesh.models.potter_body import PotterBody

FOCAL_SIDES = 1000 / 256
"""The network's lens: 1000 pixels for a crop of 256."""


class PotterBodyNetwork(nn.Module):
    """From RGB in 0..1 to joints, mesh and the joints' places in the crop.

    The places are where the network's camera, scale and shift, puts the joints of the mesh: its
    lens has ``FOCAL_SIDES`` sides of the crop, and its axis goes through the middle of the crop, as
    in the official demonstration. One pass, no flip test.

    Args:
        network: With its body.
        topology: The mesh and its joint regressor.
    """

    tells_sides = False
    """Bodies have no side."""

    mean_311: Tensor
    std_311: Tensor
    regressor_index: Tensor
    regressor_weight: Tensor

    def __init__(self, network: PotterBody, topology: Topology) -> None:
        super().__init__()
        self.network = network
        # published labels count pixels from the first one's centre, rendered ones from its corner
        self.first_pixel = 0.5 if topology.name == "smpl" else 0.0
        buffers = {"mean_311": torch.tensor(MEAN), "std_311": torch.tensor(STD)}
        for name, value in buffers.items():
            self.register_buffer(name, value[:, None, None], persistent=False)
        self.register_buffer("regressor_index", topology.regressor_index, persistent=False)
        self.register_buffer("regressor_weight", topology.regressor_weight, persistent=False)

    def forward(self, image_B3SS: Tensor) -> CropOutput:
        """Recover people in (B, 3, S, S) crops of sRGB in 0..1."""
        found = self.network((image_B3SS - self.mean_311) / self.std_311)
        vertices_BV3 = found.mesh.vertices
        joints_BJ3 = regress(vertices_BV3, self.regressor_index, self.regressor_weight)
        seen_BJ3 = joints_BJ3 + found.translation[:, None]
        side = image_B3SS.shape[-1]
        # a camera that was never trained may put a joint behind it
        depth_BJ1 = seen_BJ3[..., 2:].clamp(min=0.05)
        offset_BJ2 = seen_BJ3[..., :2] / depth_BJ1 * (FOCAL_SIDES * side)
        return CropOutput(
            joints_BJ3,
            vertices_BV3,
            offset_BJ2 + (side / 2 + self.first_pixel),
            torch.ones_like(joints_BJ3[..., 0]),
        )


def adapt_potter(network: PotterBody, topology: Topology) -> tuple[PotterBodyNetwork, CropRule]:
    """A loaded network in the form that the predictor takes, and the crops that it wants.

    Args:
        network: As `kinemesh.models.registry.load_model` returned it.
        topology: Its mesh.

    Returns:
        The network, and the crops of the published data sets, 1.25 times the box and black beyond
        the photo, or for Anny's body those of our renders.
    """
    published = CropRule(BOX_FACTOR, "constant", FOCAL_SIDES)
    rule = published if topology.name == "smpl" else CropRule(focal_sides=FOCAL_SIDES)
    return PotterBodyNetwork(network, topology), rule
