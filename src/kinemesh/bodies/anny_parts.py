"""Cut the whole body or the right arm out of Anny, and make a compact rig of it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemesh.bodies.anny_source import AnnyShapes, AnnySource
from kinemesh.bodies.rig import Rig

BASIS_SAMPLES = 1024
SKIN_BONES = 8
BONE_IMPORTANCE = 100.0  # a bone head moves many vertices, a vertex only itself
ARM_BONES = ("lowerarm", "wrist", "metacarpal", "finger")


@dataclass(frozen=True)
class Part:
    """Which bones, vertices and faces of the full body a rig is made of.

    Attributes:
        name: Name of the asset.
        bones: Kept bones, by index in the full body; the first is the root of the part.
        vertices: (V,) kept vertices of the full body, rising.
        faces: (F, 3) faces among the kept vertices.
        topology_index: (Vt,) vertices of the topology among the kept ones, rising.
        topology_faces: (Ft, 3) faces among those of the topology.
        anchor: Bone of the full body that all shapes are aligned at, by index.
    """

    name: str
    bones: list[int]
    vertices: Tensor
    faces: Tensor
    topology_index: Tensor
    topology_faces: Tensor
    anchor: int

    def of(self, shapes: AnnyShapes) -> AnnyShapes:
        """The part of full bodies, each with its anchor at the origin."""
        anchor = shapes.bones[:, self.anchor, None]
        return AnnyShapes(
            shapes.vertices[:, self.vertices] - anchor, shapes.bones[:, self.bones] - anchor
        )

    def skin_weights(self, source: AnnySource) -> Tensor:
        """(V, N) weights of the kept bones; what other bones moved follows the part's root."""
        skin = source.skin_weights()[self.vertices][:, self.bones]
        skin[:, 0] += 1 - skin.sum(1)
        return skin

    def parents(self, source: AnnySource) -> tuple[int, ...]:
        """Parent of each kept bone among the kept ones, -1 where it is not kept."""
        place = {bone: n for n, bone in enumerate(self.bones)}
        return tuple(place.get(source.parents[bone], -1) for bone in self.bones)


def whole_body(source: AnnySource) -> Part:
    """The full mesh with all bones, aligned at the root bone."""
    bones = list(range(len(source.bones)))
    vertices = torch.arange(len(source.skin_weights()))
    return Part("anny-body", bones, vertices, source.faces, vertices, source.faces, 0)


def right_arm(source: AnnySource) -> Part:
    """Right forearm and hand, aligned at the wrist; the topology is the hand alone."""
    bones = [
        n
        for n, bone in enumerate(source.bones)
        if bone.startswith(ARM_BONES) and bone.endswith(".R")
    ]
    hand_F = source.faces_of("hand.R")
    arm_V = source.skin_weights()[:, bones].sum(1) > 0.5
    arm_F = arm_V[source.faces].all(1) | hand_F
    vertices, faces = torch.unique(source.faces[arm_F], return_inverse=True)
    hand, hand_faces = torch.unique(source.faces[hand_F], return_inverse=True)
    hand_index = torch.searchsorted(vertices, hand)
    wrist = source.bones.index("wrist.R")
    return Part("anny-hand", bones, vertices, faces, hand_index, hand_faces, wrist)


def build_rig(source: AnnySource, part: Part, phenotypes_SP: Tensor, rank: int) -> Rig:
    """Compact rig of a part, from bodies with given phenotypes; masks and joints are empty yet.

    The shape space is the principal components of the displacements from the neutral body,
    vertices and bone heads together, scaled so that coefficients have unit root mean square.
    """
    neutral = part.of(source.neutral())
    vertex_basis, bone_basis, bank = _shape_space(
        part.of(source.shapes(phenotypes_SP)), neutral, rank
    )
    weight, index = part.skin_weights(source).topk(SKIN_BONES, dim=1)
    empty = torch.zeros(0, dtype=torch.long)
    return Rig(
        name=part.name,
        skeleton="",
        bones=tuple(source.bones[bone] for bone in part.bones),
        parents=part.parents(source),
        faces=part.faces,
        template=neutral.vertices[0],
        shape_basis=vertex_basis,
        bone_template=neutral.bones[0],
        bone_basis=bone_basis,
        skin_index=index,
        skin_weight=weight / weight.sum(1, keepdim=True),
        shape_bank=bank,
        bank_phenotypes=phenotypes_SP,
        phenotype_names=tuple(source.phenotypes),
        masks={},
        topology_index=part.topology_index,
        joint_bones=(),
        regressor_index=empty,
        regressor_weight=empty.float(),
        tip_index=empty.reshape(5, 0),
    )


def _shape_space(
    shapes: AnnyShapes, neutral: AnnyShapes, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Bases (K, V, 3) and (K, N, 3), and the coefficients (S, K) of all shapes."""
    vertex_SD = (shapes.vertices - neutral.vertices).flatten(1)
    bone_SD = (shapes.bones - neutral.bones).flatten(1) * BONE_IMPORTANCE**0.5
    data_SD = torch.cat([vertex_SD, bone_SD], 1)
    train = data_SD[:BASIS_SAMPLES].double()
    value, vector = torch.linalg.eigh(train @ train.T)
    value, vector = value.flip(0)[:rank], vector.flip(1)[:, :rank]
    direction_KD = (vector / value.sqrt()).T @ train
    # The sign of an eigenvector is arbitrary; a fixed rule makes the file reproducible.
    peak = direction_KD.gather(1, direction_KD.abs().argmax(1, keepdim=True))
    direction_KD = direction_KD * peak.sign()
    scale_K = (value / len(train)).sqrt()
    bank_SK = (data_SD @ direction_KD.T.float()) / scale_K.float()
    basis_KD = (direction_KD * scale_K[:, None]).float()
    split = vertex_SD.shape[1]
    vertices, bones = basis_KD[:, :split], basis_KD[:, split:] / BONE_IMPORTANCE**0.5
    return vertices.unflatten(1, (-1, 3)), bones.unflatten(1, (-1, 3)), bank_SK
