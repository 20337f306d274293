"""Parts of a body or a hand in words: which vertices are its head, its left arm, its thumb.

A vertex belongs to the bone of the skeleton that is nearest in the template, and a bone to the part
that its outer joint is named after. So parts follow from any mesh and any joint set, and their
borders are those of a sketch, not of anatomy.

Legend of shapes: J joints, N coarse vertices, E bones.
"""

import torch
from torch import Tensor

from kinemesh.bodies.topology import Topology
from kinemesh.skeletons import Skeleton

_PARTS = {
    "head": ("nose", "eye", "ear", "head", "jaw", "neck"),
    "arm": ("elbow", "wrist", "hand"),
    "leg": ("knee", "ankle", "foot"),
}
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")


def joint_regions(skeleton: Skeleton) -> tuple[str, ...]:
    """The part of each joint.

    Returns:
        J words: "head", "torso", "left arm", "right arm", "left leg" and "right leg" of a body;
        "palm" and the fingers' names of a hand.
    """
    return tuple(_region(joint, skeleton) for joint in skeleton.joints)


def vertex_regions(topology: Topology) -> tuple[str, ...]:
    """The part of each of the N coarse vertices, in the words of `joint_regions`."""
    of_joint = joint_regions(topology.skeleton)
    bones = list(topology.skeleton.bones)
    vertices_N3 = topology.template[topology.coarse.vertex_index]
    distance_NE = _distance_to_bones(vertices_N3, topology.template_joints, bones)
    nearest = distance_NE.argmin(dim=1).tolist()
    return tuple(of_joint[bones[bone][0]] for bone in nearest)


def _distance_to_bones(
    vertices_N3: Tensor, joints_J3: Tensor, bones: list[tuple[int, int]]
) -> Tensor:
    ends = joints_J3[torch.tensor(bones)]
    start_E3, along_E3 = ends[:, 1], ends[:, 0] - ends[:, 1]
    offset_NE3 = vertices_N3[:, None] - start_E3
    length_E = along_E3.square().sum(-1).clamp(min=1e-12)
    share_NE = ((offset_NE3 * along_E3).sum(-1) / length_E).clamp(0, 1)
    gap_NE3 = offset_NE3 - share_NE[..., None] * along_E3
    gap_NE: Tensor = torch.linalg.vector_norm(gap_NE3, dim=-1)
    return gap_NE


def _region(joint: str, skeleton: Skeleton) -> str:
    words = joint.split("_")
    if words[0] in _FINGERS:
        return words[0]
    if skeleton.joints[0] == "wrist":
        return "palm"
    for part, names in _PARTS.items():
        if any(word in names for word in words):
            has_side = part != "head" and words[0] in ("left", "right")
            return f"{words[0]} {part}" if has_side else part
    return "torso"
