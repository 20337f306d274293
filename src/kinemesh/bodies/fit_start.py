"""Where a fit starts: the rotation of each bone in closed form, from the vertices that it moves.

Legend of shapes: B batch, M vertices, N bones.
"""

import torch
from torch import Tensor

from kinemesh.bodies.posable import PosableBody
from kinemesh.geometry.closest_rotation import closest_rotation

LEAST_SHARE = 0.5
"""A bone with less skin than this (sum of squared weights) takes that of its children too."""


def bone_weights(body: PosableBody) -> Tensor:
    """(N, M) how much each vertex says about each bone: skinning weights, squared.

    Squares favour the vertices that follow one bone alone. A bone without skin of its own, such as
    the root, is given that of the bones that hang on it, tips first.
    """
    weights_NM = body.skin_weights.T.square().clone()
    for bone in range(len(body.parents) - 1, -1, -1):
        if weights_NM[bone].sum() < LEAST_SHARE:
            children = [i for i, parent in enumerate(body.parents) if parent == bone]
            weights_NM[bone] += weights_NM[children].sum(0)
    return weights_NM


def closest_rotations(matrix_BN33: Tensor) -> Tensor:
    """Rotations closest to (B, N, 3, 3) matrices; along a chain of bones rounding would grow."""
    return closest_rotation(matrix_BN33.flatten(0, 1)).view_as(matrix_BN33)


def turned_toward(
    body: PosableBody,
    weights_NM: Tensor,
    rotations_BN33: Tensor,
    posed_BM3: Tensor,
    target_BM3: Tensor,
) -> Tensor:
    """Local rotations (B, N, 3, 3) after each bone has turned its vertices toward the targets.

    Each bone's vertices are aligned by themselves, about their means (Kabsch 1976), wherever the
    bones around it go. A few such turns come close to a pose from any other.

    Args:
        body: Whose bones these are.
        weights_NM: (N, M) of `bone_weights`.
        rotations_BN33: (B, N, 3, 3) local rotations of the pose to begin with.
        posed_BM3: (B, M, 3) vertices in that pose.
        target_BM3: (B, M, 3) where they should be.
    """
    share_NM = weights_NM / weights_NM.sum(1, keepdim=True).clamp(min=1e-9)
    posed_mean_BN3, target_mean_BN3 = share_NM @ posed_BM3, share_NM @ target_BM3
    # E (t - mean)(s - mean)^T = E t s^T - mean mean^T; few products for many bones
    outer_BM9 = (target_BM3[..., None] * posed_BM3[..., None, :]).flatten(2)
    moment_BN33 = (share_NM @ outer_BM9).view(len(posed_BM3), -1, 3, 3)
    covariance_BN33 = moment_BN33 - target_mean_BN3[..., None] * posed_mean_BN3[..., None, :]
    origin_BN3 = torch.zeros_like(posed_mean_BN3)
    world_BN33, _ = body.kinematics(rotations_BN33, origin_BN3)
    world_BN33 = closest_rotations(closest_rotations(covariance_BN33) @ world_BN33)
    parents = [max(parent, 0) for parent in body.parents]
    local_BN33 = world_BN33[:, parents].mT @ world_BN33
    return torch.cat([world_BN33[:, :1], local_BN33[:, 1:]], 1)
