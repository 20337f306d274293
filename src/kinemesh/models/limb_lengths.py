"""Joints with the limb lengths of a person: directions are kept, lengths are set.

Where an image leaves a limb's direction open, the prediction of least error is the mean of the
possible places, which lies near the limb's root: limbs shrink and fingers collapse. After Sun et
al. (Compositional Human Pose Regression, ICCV 2017) the pose is therefore read as a tree of bone
vectors; here each keeps its direction and takes the template's length times a predicted factor.

Shapes: B batch, J joints, P places (the joints, then means of joints), E edges of the tree.
"""

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.skeletons import Skeleton

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


class LimbLengths(nn.Module):
    """Rebuild joints along a tree with given limb lengths.

    Args:
        skeleton: "coco17" or "hand21".
        joints_J3: Template joints, which give the lengths.
        softness: Limbs predicted shorter than this share of their length stay shorter, which
            bounds the gradient where a prediction has collapsed.
    """

    places_PJ: Tensor
    length_E: Tensor

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
        self.edges = tuple((names.index(parent), names.index(child)) for parent, child in tree)
        self.joints = len(skeleton)
        places_PJ = torch.zeros(len(names), len(skeleton))
        places_PJ[: len(skeleton)] = torch.eye(len(skeleton))
        for row, joints in enumerate(means.values(), start=len(skeleton)):
            places_PJ[row, [skeleton.index(joint) for joint in joints]] = 1 / len(joints)
        self.softness = softness
        self.register_buffer("places_PJ", places_PJ, persistent=False)
        length_E = self._vectors(joints_J3[None])[0].norm(dim=-1)
        self.register_buffer("length_E", length_E, persistent=False)

    def forward(self, joints_BJ3: Tensor, factor_BJ: Tensor) -> Tensor:
        """Set the limb lengths.

        Args:
            joints_BJ3: (B, J, 3) metres, any frame.
            factor_BJ: (B, J) factors on the template's length of the limb that ends in each joint.

        Returns:
            (B, J, 3) in the same axes, with the root of the tree at the origin.
        """
        factor_BE = self._at_children(factor_BJ @ self.places_PJ.T)
        length_BE = self.length_E * factor_BE
        vector_BE3 = self._vectors(joints_BJ3)
        soft = (self.softness * self.length_E).square()
        norm_BE = (vector_BE3.square().sum(-1) + soft).sqrt()
        bone_BE3 = vector_BE3 * (length_BE / norm_BE)[..., None]
        places: dict[int, Tensor] = {self.edges[0][0]: torch.zeros_like(joints_BJ3[:, 0])}
        for number, (parent, child) in enumerate(self.edges):
            places[child] = places[parent] + bone_BE3[:, number]
        return torch.stack([places[joint] for joint in range(self.joints)], dim=1)

    def _vectors(self, joints_BJ3: Tensor) -> Tensor:
        places_BP3 = self.places_PJ @ joints_BJ3
        parents = [parent for parent, _ in self.edges]
        children = [child for _, child in self.edges]
        return places_BP3[:, children] - places_BP3[:, parents]

    def _at_children(self, values_BP: Tensor) -> Tensor:
        return values_BP[:, [child for _, child in self.edges]]


def _skeleton_tree(skeleton: Skeleton) -> Tree:
    """Edges (parent, child) of a skeleton whose joints stand after their parents."""
    return tuple(
        (skeleton.joints[parent], joint)
        for joint, parent in zip(skeleton.joints, skeleton.parents, strict=True)
        if parent >= 0
    )
