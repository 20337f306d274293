"""Per-vertex masks that rendering paints skin, hair, nails and clothes by; made when baking."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kinemesh.bodies.anny_source import AnnySource
from kinemesh.bodies.rig import Rig

HAIR_ORIGIN_M = (-0.03, -0.045)  # y and z of the hair line relative to the head bone
HAIR_SLOPE = (-4.0, 9.0)  # per metre upward (y is down) and backward


def body_masks(
    source: AnnySource, bones: Sequence[str], template: Tensor, heads: Tensor
) -> dict[str, Tensor]:
    """Masks of the body mesh; meanings and ranges are listed in ``docs/bodies.md``."""
    skin = source.skin_weights()

    def moved_by(*prefixes: str) -> Tensor:
        return skin[:, [n for n, bone in enumerate(bones) if bone.startswith(prefixes)]].sum(1)

    eyes = [f"eye_{side}.{letter}" for side in ("front", "back") for letter in "LR"]
    _, y, z = (template - heads[bones.index("head")]).unbind(1)
    hair = HAIR_SLOPE[0] * (y - HAIR_ORIGIN_M[0]) + HAIR_SLOPE[1] * (z - HAIR_ORIGIN_M[1])
    return {
        "head": source.vertices_of("head").float(),
        "hands": source.vertices_of("hand.L", "hand.R").float(),
        "feet": source.vertices_of("foot.L", "foot.R").float(),
        "eyes": source.vertices_of(*eyes).float(),
        "mouth": source.vertices_of("mouth_cavity", "tongue").float(),
        "arm": moved_by("upperarm", "lowerarm", "wrist", "finger", "metacarpal"),
        "leg": moved_by("upperleg", "lowerleg"),
        "torso": moved_by("spine", "clavicle", "shoulder"),
        "hip": moved_by("root", "pelvis"),
        "arm_coord": limb_coordinate(template, heads, bones, ("upperarm01", "lowerarm01", "wrist")),
        "leg_coord": limb_coordinate(template, heads, bones, ("upperleg01", "lowerleg01", "foot")),
        "hair": hair,
    }


def limb_coordinate(
    template: Tensor, heads: Tensor, bones: Sequence[str], chain: tuple[str, str, str]
) -> Tensor:
    """(V,) place along a limb of two segments: 0 at its first bone, 1 at its last.

    Beyond the ends the coordinate goes on below 0 and above 1. The left limb measures the vertices
    at x > 0, the right limb the others.
    """
    sides = []
    for side in "LR":
        start, middle, end = (heads[bones.index(f"{name}.{side}")] for name in chain)
        upper, lower = (middle - start).norm(), (end - middle).norm()
        along_upper = (template - start) @ (middle - start) / upper
        along_lower = (template - middle) @ (end - middle) / lower
        first = along_upper.clamp(max=upper.item())
        length = torch.where(along_lower > 0, upper + along_lower, first)
        sides.append(length / (upper + lower))
    left, right = sides
    return torch.where(template[:, 0] > 0, left, right)


def palm_mask(template: Tensor, faces: Tensor, normal: Tensor) -> Tensor:
    """(V,) in [0, 1]: how far a vertex faces out of the palm; 1 from about 48 degrees on."""
    first, second, third = template[faces].unbind(1)
    face_normal = torch.linalg.cross(second - first, third - first)
    vertex_normal = torch.zeros_like(template)
    for corner in faces.unbind(1):
        vertex_normal.index_add_(0, corner, face_normal)
    facing = torch.nn.functional.normalize(vertex_normal, dim=1) @ normal
    return (1.5 * facing).clamp(0, 1)


def sleeve_coordinate(rig: Rig) -> Tensor:
    """(V,) place along the forearm: 0 at the elbow, 1 at the wrist, more along the hand."""
    elbow, wrist = (rig.bone_template[rig.bone_index(f"{n}.R")] for n in ("lowerarm01", "wrist"))
    axis = wrist - elbow
    return (rig.template - elbow) @ axis / axis.dot(axis)
