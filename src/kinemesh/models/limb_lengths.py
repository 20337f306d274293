"""Joints with the limb lengths of a person: directions are kept, lengths are set.

Where an image leaves a limb's direction open, the prediction of least error is the mean of the
possible places, which lies near the limb's root: limbs shrink and fingers collapse. After Sun et
al. (Compositional Human Pose Regression, ICCV 2017) the pose is therefore read as a tree of bone
vectors; here each keeps its direction and takes the template's length times a predicted factor. The
palm, whose bones hardly move against each other, turns as one piece.

Shapes: B batch, J joints, M means of joints, P places (the joints, then
the means), E edges of the tree.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.geometry.rotations import rotation_6d_to_matrix
from kinemesh.skeletons import Skeleton, mean_of

Joints = tuple[str, ...]
Tree = tuple[tuple[str, str], ...]

_MEANS: dict[str, dict[str, tuple[str, ...]]] = {
    "coco17": {"pelvis": ("left_hip", "right_hip"), "neck": ("left_shoulder", "right_shoulder")},
    "hand21": {},
}
_COCO_TREE: Tree = (
    ("pelvis", "neck"),
    ("neck", "nose"),
    *(
        edge
        for side in ("left", "right")
        for edge in (
            ("nose", f"{side}_eye"),
            (f"{side}_eye", f"{side}_ear"),
            ("neck", f"{side}_shoulder"),
            (f"{side}_shoulder", f"{side}_elbow"),
            (f"{side}_elbow", f"{side}_wrist"),
            ("pelvis", f"{side}_hip"),
            (f"{side}_hip", f"{side}_knee"),
            (f"{side}_knee", f"{side}_ankle"),
        )
    ),
)


@dataclass(frozen=True)
class RigidPiece:
    """Joints that turn together, and the two directions that tell how.

    Attributes:
        joints: Joints whose limbs belong to the piece.
        axis: Joints (from, to), each a mean, of the first direction.
        across: Joints (from, to) of the second direction.
    """

    joints: Joints
    axis: tuple[Joints, Joints]
    across: tuple[Joints, Joints]


_KNUCKLES = ("index_1", "middle_1", "ring_1", "pinky_1")
_RIGID = {
    "hand21": RigidPiece(
        ("thumb_1", *_KNUCKLES), (("wrist",), _KNUCKLES), (("index_1",), ("pinky_1",))
    )
}


class LimbLengths(nn.Module):
    """Rebuild joints along a tree with given limb lengths.

    Args:
        skeleton: "coco17" or "hand21".
        joints_J3: Template joints, which give the lengths.
        softness: Limbs predicted shorter than this share of their length stay shorter, which
            bounds the gradient where a prediction has collapsed.
    """

    means_MJ: Tensor
    length_E: Tensor
    rigid_E: Tensor
    rigid_E3: Tensor
    directions_2J: Tensor

    def __init__(self, skeleton: Skeleton, joints_J3: Tensor, softness: float = 0.05) -> None:
        super().__init__()
        if skeleton.name not in _MEANS:
            raise InputError(
                f"No limb tree is known for the skeleton '{skeleton.name}'; expected one of "
                f"{', '.join(_MEANS)}. Add it to kinemesh.models.limb_lengths."
            )
        means = _MEANS[skeleton.name]
        names = [*skeleton.joints, *means]
        tree = _COCO_TREE if skeleton.name == "coco17" else _skeleton_tree(skeleton)
        self.edge_starts = [names.index(parent) for parent, _ in tree]
        self.edge_ends = [names.index(child) for _, child in tree]
        self.joints = len(skeleton)
        means_MJ = torch.zeros(len(means), len(skeleton))
        for row, joints in enumerate(means.values()):
            means_MJ[row] = mean_of(skeleton, joints)
        self.softness = softness
        self.register_buffer("means_MJ", means_MJ, persistent=False)
        length_E = self._vectors(joints_J3[None])[0].norm(dim=-1)
        self.register_buffer("length_E", length_E, persistent=False)
        self._register_piece(skeleton, joints_J3, [child for _, child in tree])

    def _register_piece(
        self, skeleton: Skeleton, joints_J3: Tensor, children: Sequence[str]
    ) -> None:
        """Keep the rigid limbs of the template in the axes of their piece."""
        piece = _RIGID.get(skeleton.name)
        self.has_piece = piece is not None
        rigid_E = torch.tensor([piece is not None and child in piece.joints for child in children])
        directions_2J = torch.zeros(2, len(skeleton))
        rigid_E3 = torch.zeros(len(children), 3)
        if piece is not None:
            for row, (start, end) in enumerate((piece.axis, piece.across)):
                directions_2J[row] = mean_of(skeleton, end) - mean_of(skeleton, start)
            axes = rotation_6d_to_matrix((directions_2J @ joints_J3).flatten())
            rigid_E3 = self._vectors(joints_J3[None])[0] @ axes
        self.register_buffer("rigid_E", rigid_E, persistent=False)
        self.register_buffer("rigid_E3", rigid_E3, persistent=False)
        self.register_buffer("directions_2J", directions_2J, persistent=False)

    def forward(self, joints_BJ3: Tensor, factor_BJ: Tensor) -> Tensor:
        """Set the limb lengths.

        Args:
            joints_BJ3: (B, J, 3) metres, any frame.
            factor_BJ: (B, J) factors on the template's length of the limb that ends in each joint.

        Returns:
            (B, J, 3) in the same axes, with the root of the tree at the origin.
        """
        factor_BE = self._places(factor_BJ[..., None])[:, self.edge_ends, 0]
        length_BE = self.length_E * factor_BE
        vector_BE3 = self._vectors(joints_BJ3)
        soft = (self.softness * self.length_E).square()
        norm_BE = (vector_BE3.square().sum(-1) + soft).sqrt()
        bone_BE3 = vector_BE3 * (length_BE / norm_BE)[..., None]
        if self.has_piece:
            turned_BE3 = self.rigid_E3 @ self._piece_axes(joints_BJ3).mT
            rigid_BE3 = turned_BE3 * factor_BE[..., None]
            bone_BE3 = torch.where(self.rigid_E[:, None], rigid_BE3, bone_BE3)
        places: dict[int, Tensor] = {self.edge_starts[0]: torch.zeros_like(joints_BJ3[:, 0])}
        for number, (parent, child) in enumerate(
            zip(self.edge_starts, self.edge_ends, strict=True)
        ):
            places[child] = places[parent] + bone_BE3[:, number]
        return torch.stack([places[joint] for joint in range(self.joints)], dim=1)

    def _piece_axes(self, joints_BJ3: Tensor) -> Tensor:
        """Axes (B, 3, 3) of the rigid piece as columns, by Gram and Schmidt, softly normalised."""
        axis_B3, across_B3 = (self.directions_2J @ joints_BJ3).unbind(1)
        soft = (self.softness * self.length_E.mean()).square()
        x_B3 = axis_B3 / (axis_B3.square().sum(-1, keepdim=True) + soft).sqrt()
        side_B3 = across_B3 - (across_B3 * x_B3).sum(-1, keepdim=True) * x_B3
        y_B3 = side_B3 / (side_B3.square().sum(-1, keepdim=True) + soft).sqrt()
        return torch.stack([x_B3, y_B3, torch.linalg.cross(x_B3, y_B3)], dim=-1)

    def _places(self, values_BJD: Tensor) -> Tensor:
        """(B, P, D): the joints as they are, then the means of joints."""
        return torch.cat([values_BJD, self.means_MJ @ values_BJD], dim=1)

    def _vectors(self, joints_BJ3: Tensor) -> Tensor:
        places_BP3 = self._places(joints_BJ3)
        return places_BP3[:, self.edge_ends] - places_BP3[:, self.edge_starts]


def _skeleton_tree(skeleton: Skeleton) -> Tree:
    """Edges (parent, child) of a skeleton whose joints stand after their parents."""
    return tuple(
        (skeleton.joints[parent], joint)
        for joint, parent in zip(skeleton.joints, skeleton.parents, strict=True)
        if parent >= 0
    )
