"""Anny's body posed as SMPL is by hybrid inverse kinematics: 24 joints that turn, 29 in all.

Anny has 104 bones. Of them those are kept that stand where SMPL's joints do; the others (parts of
limbs and spine, fingers, toes, eyes) follow the kept bone above them. Its 44 shape coefficients are
replaced by the ten directions in which its own bank of bodies differs most.
"""

import torch
from torch import Tensor

from kinemesh.bodies.hybrik import SMPL_TREE
from kinemesh.bodies.hybrik_bodies import HybrikBody
from kinemesh.bodies.rig import Rig

SHAPES = 10
_PAIRED = {
    "hip": "upperleg01",
    "knee": "lowerleg01",
    "ankle": "foot",
    "foot": "toe2-1",
    "collar": "clavicle",
    "shoulder": "upperarm01",
    "elbow": "lowerarm01",
    "wrist": "wrist",
    "hand": "finger3-1",
    "finger_end": "finger3-3",
    "toe_end": "toe2-3",
}


def _pair(name: str) -> tuple[str, str]:
    return f"{_PAIRED[name]}.L", f"{_PAIRED[name]}.R"


BONES = (
    *("root", *_pair("hip"), "spine04", *_pair("knee"), "spine02", *_pair("ankle"), "spine01"),
    *(*_pair("foot"), "neck01", *_pair("collar"), "head", *_pair("shoulder"), *_pair("elbow")),
    *(*_pair("wrist"), *_pair("hand")),
)
"""The bone whose head is each of the 24 joints, in SMPL's order."""
END_BONES = (*_pair("finger_end"), *_pair("toe_end"))
"""Heads of bones that end the hands and feet; the head ends in the topmost vertex."""


class AnnyHybrik(HybrikBody):
    """Anny's body, 24 joints, ten shape coefficients of unit variance.

    Args:
        rig: Anny's body.
    """

    template_N3: Tensor
    basis_SN3: Tensor
    mean_shape_K: Tensor
    directions_SK: Tensor
    reading_KS: Tensor

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self.tree = SMPL_TREE
        self.shapes = SHAPES
        self.bones = [rig.bone_index(name) for name in BONES]
        self.ends = [rig.bone_index(name) for name in END_BONES]
        self.top = int(rig.template[:, 1].argmin())
        self._rig = rig
        mean_K, directions_SK, reading_KS = principal_shapes(rig, SHAPES)
        self.register_buffer("reading_KS", reading_KS, persistent=False)
        self.register_buffer("mean_shape_K", mean_K, persistent=False)
        self.register_buffer("directions_SK", directions_SK, persistent=False)
        rest = rig.rest(torch.cat([mean_K[None], mean_K + directions_SK]))
        joints = self.joints_of(rest.vertices, rest.bones)
        self.register_buffer("template_N3", joints[0], persistent=False)
        self.register_buffer("basis_SN3", joints[1:] - joints[0], persistent=False)

    def joints_of(self, vertices_BV3: Tensor, heads_BM3: Tensor) -> Tensor:
        """The 29 joints (B, 29, 3) of a body of the whole rig, posed or not."""
        bones = [heads_BM3[:, bone] for bone in self.bones]
        ends = [vertices_BV3[:, self.top], *(heads_BM3[:, bone] for bone in self.ends)]
        return torch.stack([*bones, *ends], dim=1)

    def coefficients(self, shape_BK: Tensor) -> Tensor:
        """The ten coefficients (B, 10) of the body nearest to that of Anny's own (B, 44)."""
        return (shape_BK - self.mean_shape_K) @ self.reading_KS

    def own_shape(self, betas_BS: Tensor) -> Tensor:
        """Anny's own coefficients (B, 44) of ten (B, 10)."""
        return self.mean_shape_K + betas_BS @ self.directions_SK

    def pose_whole(self, rotations_BM33: Tensor, shape_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Pose all of Anny's bones.

        Args:
            rotations_BM33: (B, 104, 3, 3) as `Rig.pose` takes them.
            shape_BK: (B, 44) Anny's own coefficients.

        Returns:
            The 29 joints (B, 29, 3), metres, and the rotations (B, 24, 3, 3) of the 24 that turn
            from the rest pose to that of the body.
        """
        posed = self._rig.pose(rotations_BM33, shape_BK)
        world_BM33 = self._rig.world_rotations(rotations_BM33)
        world = torch.stack([world_BM33[:, bone] for bone in self.bones], dim=1)
        return self.joints_of(posed.vertices, posed.bones), world

    def rest_joints(self, betas_BS: Tensor) -> Tensor:
        """(B, 29, 3) joints of bodies in the rest pose, metres."""
        return self.template_N3 + torch.einsum("bs,snd->bnd", betas_BS, self.basis_SN3)

    def skin(self, rotations_BJ33: Tensor, betas_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Vertices of the topology (B, V, 3), and the 24 joints twice, metres."""
        eye_B33 = torch.eye(3, device=betas_BS.device).expand(len(betas_BS), 3, 3)
        rows = {bone: rotations_BJ33[:, joint] for joint, bone in enumerate(self.bones)}
        whole = [rows.get(bone, eye_B33) for bone in range(len(self._rig.bones))]
        posed = self._rig.pose(torch.stack(whole, dim=1), self.own_shape(betas_BS))
        joints = torch.stack([posed.bones[:, bone] for bone in self.bones], dim=1)
        return self._rig.topology_vertices(posed), joints, joints


def principal_shapes(rig: Rig, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The directions in which the bodies of a rig's bank differ most, by their vertices.

    Returns:
        Mean (K,) of the bank's coefficients, directions (count, K) of unit variance, and what
        reads (K, count) the amount of each direction out of coefficients.
    """
    flat_KD = rig.shape_basis.flatten(1).double()
    values, vectors = torch.linalg.eigh(flat_KD @ flat_KD.T)
    roots = values.clamp(min=values.max() * 1e-12).sqrt()
    # in these coordinates the distance of two bodies is that of their vertices
    to_metric_KK, from_metric_KK = vectors * roots, vectors / roots
    bank_SK = rig.shape_bank.double()
    mean_K = bank_SK.mean(dim=0)
    metric_SK = (bank_SK - mean_K) @ to_metric_KK
    _, spread, axes_KK = torch.linalg.svd(metric_SK, full_matrices=False)
    deviation = spread[:count] / len(bank_SK) ** 0.5
    directions = (axes_KK[:count] * deviation[:, None]) @ from_metric_KK.T
    reading = to_metric_KK @ axes_KK[:count].T / deviation
    return mean_K.float(), directions.float(), reading.float()
