"""POTTER's mesh network whole: joints, twists and shape, inverse kinematics, and the body's mesh.

Source: Zheng et al., POTTER (CVPR 2023); Li et al., HybrIK (CVPR 2021).

Legend of shapes: B batch, S image side, N joints of the skeleton, J joints that turn, V vertices,
K regressed joints.
"""

from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.bodies.hybrik import joint_rotations, signed_quaternion
from kinemesh.bodies.hybrik_bodies import HybrikBody, HybrikMesh
from kinemesh.errors import InputError
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig, PotterMeshRaw

ARCHITECTURE = "potter-mesh"


class PotterBodyOutput(NamedTuple):
    """What the whole network finds in evaluation.

    Attributes:
        raw: What the network predicts; with a flip test joints in space, twists and shape are the
            means of both passes, and places in the crop and camera those of the plain one.
        mesh: The posed body.
        translation: (B, 3) metres, what places the mesh in the camera's frame.
    """

    raw: PotterMeshRaw
    mesh: HybrikMesh
    translation: Tensor


class PotterBody(nn.Module):
    """A `PotterMesh` and the body that it poses.

    In training mode it returns what the loss needs, without skinning; in eval mode the mesh.

    Args:
        network: Its state dict alone is worth keeping; it has the official names.
        body: Poses itself by joints, shape and twists.

    Raises:
        InputError: Network and body have different numbers of joints or shape coefficients.
    """

    def __init__(self, network: PotterMesh, body: HybrikBody) -> None:
        super().__init__()
        config = network.config
        found = (config.joints, config.twists, config.shapes)
        wanted = (len(body.tree.parents), body.tree.turning - 1, body.shapes)
        if found != wanted:
            raise InputError(
                f"network: expected {wanted[0]} joints, {wanted[1]} twists and {wanted[2]} shape "
                f"coefficients for this body, found {found}; build the network for the body"
            )
        self.network = network
        self.body = body

    @property
    def unit_m(self) -> float:
        """Metres of the unit of the network's places in space."""
        return self.network.config.depth_range_m

    def forward(
        self, image_B3SS: Tensor, *, flip_test: bool = False
    ) -> tuple[PotterMeshRaw, Tensor] | PotterBodyOutput:
        """Recover bodies.

        Args:
            image_B3SS: Crops, normalised as `kinemesh.data.hybrik_crop` does.
            flip_test: In eval mode, average with the mirrored crops, as published scores do.

        Returns:
            In training mode the network's output and the quaternions (B, J, 4) of the rotations;
            in eval mode all of it.
        """
        raw: PotterMeshRaw = self.network(image_B3SS)
        if self.training:
            return raw, self.train_quaternions(raw)
        if flip_test:
            mirrored: PotterMeshRaw = self.network(image_B3SS.flip(-1))
            raw = merge_mirrored(raw, mirrored, self.body.flip_pairs)
        return self.complete(raw)

    def train_quaternions(self, raw: PotterMeshRaw) -> Tensor:
        """(B, J, 4) rotations by the solution that training uses."""
        shape_BK = raw.shape.float()
        rotations_BJ33 = joint_rotations(
            raw.joints_xyz.float() * self.unit_m,
            self.body.rest_joints(shape_BK),
            raw.twist.float(),
            self.body.tree,
            adaptive=False,
        )
        return signed_quaternion(rotations_BJ33)

    def complete(self, raw: PotterMeshRaw) -> PotterBodyOutput:
        """Solve for the rotations and pose the body, as evaluation does."""
        places_BN3 = raw.joints_xyz.float() * self.unit_m
        mesh: HybrikMesh = self.body(places_BN3, raw.shape, raw.twist, adaptive=True)
        distance_B1 = 1000.0 / (256.0 * raw.camera_scale + 1e-9)
        camera_B3 = torch.cat([raw.camera_shift, distance_B1], dim=1)
        return PotterBodyOutput(raw, mesh, places_BN3[:, 0] + camera_B3)


def merge_mirrored(
    plain: PotterMeshRaw, mirrored: PotterMeshRaw, pairs: tuple[tuple[int, int], ...]
) -> PotterMeshRaw:
    """The means of a crop's and its mirror image's joints in space, twists and shape.

    Args:
        plain: Of the crop, in eval mode.
        mirrored: Of the crop mirrored left to right.
        pairs: Left and right joints.

    Returns:
        ``plain`` with these three replaced.
    """
    joints, twists = plain.joints_xyz.shape[1], plain.twist.shape[1]
    below = tuple((i - 1, j - 1) for i, j in pairs if max(i, j) <= twists)
    xyz = _swap(mirrored.joints_xyz, pairs, joints) * _sign(mirrored.joints_xyz, 0)
    twist = _swap(mirrored.twist, below, twists) * _sign(mirrored.twist, 1)
    return plain._replace(
        joints_xyz=(plain.joints_xyz + xyz) / 2,
        twist=(plain.twist + twist) / 2,
        shape=(plain.shape + mirrored.shape) / 2,
    )


def _swap(values: Tensor, pairs: tuple[tuple[int, int], ...], count: int) -> Tensor:
    order = list(range(count))
    for first, second in pairs:
        order[first], order[second] = second, first
    return torch.stack([values[:, row] for row in order], dim=1)


def _sign(like: Tensor, negative: int) -> Tensor:
    """Ones with a minus one in one column; made of ranges, for which no host has to wait."""
    columns = torch.arange(like.shape[-1], device=like.device)
    return 1 - 2 * (columns == negative).to(like.dtype)


def potter_mesh_record(config: PotterMeshConfig, body: str) -> dict[str, Any]:
    """The metadata of a weight file.

    Args:
        config: Sizes of the network.
        body: "smpl" or "anny-body".
    """
    return {
        "architecture": ARCHITECTURE,
        "config": asdict(config),
        "task": "body",
        "resolution": config.side,
        "body": body,
        "normalisation": "hybrik",
    }
