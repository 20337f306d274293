"""Rotations of a body's joints from their places: hybrid analytical inverse kinematics.

A joint's rotation is a *swing*, which its bone shows, followed in the rest frame by a *twist* about
the bone, which no place of a joint shows and which a network has to tell. Source: Li et al., HybrIK
(CVPR 2021), sections 3.2 and 3.3; POTTER (Zheng et al., CVPR 2023) uses it unchanged.

Legend of shapes: B batch, J joints that turn, N joints of the skeleton (the J, then the ends of
bones), D joints of one tree depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kinemesh.bodies.skinning import take, tree_depths
from kinemesh.errors import InputError
from kinemesh.geometry.closest_rotation import closest_rotation
from kinemesh.geometry.rotations import skew

EPSILON = 1e-8
REACH_M = 0.015
"""A bone whose end is farther than this from where its joint can carry it keeps its direction."""


@dataclass(frozen=True)
class BoneTree:
    """Which joint turns which bone.

    Attributes:
        parents: N parents, -1 for the root; the joints that turn come first, parents before
            children, then the ends of their last bones.
        guides: J children, one for each joint that turns: the end of the bone that shows how the
            joint swings.
        hips: The two children of the root that, with its guide, show how the whole body is turned.
    """

    parents: tuple[int, ...]
    guides: tuple[int, ...]
    hips: tuple[int, int]

    @property
    def turning(self) -> int:
        """J, how many joints turn."""
        return len(self.guides)

    @cached_property
    def depths(self) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        """The joints that turn by depth, as `kinemesh.bodies.skinning.tree_depths` has them."""
        return tree_depths(self.parents[: self.turning])


SMPL_TREE = BoneTree(
    parents=(
        *(-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21),
        *(15, 22, 23, 10, 11),
    ),
    guides=(
        *(3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 27, 28),
        *(15, 16, 17, 24, 18, 19, 20, 21, 22, 23, 25, 26),
    ),
    hips=(1, 2),
)
"""SMPL's 24 joints, then head top, middle fingers and big toes (left before right)."""


def joint_rotations(
    skeleton_BN3: Tensor,
    rest_BN3: Tensor,
    twists_BK2: Tensor,
    tree: BoneTree,
    *,
    adaptive: bool,
) -> Tensor:
    """Rotations of all joints that turn.

    Args:
        skeleton_BN3: (B, N, 3) places of the joints, metres, any origin; no gradient passes
            through them, so that they are learned by their own loss alone.
        rest_BN3: (B, N, 3) the same joints of this body in its rest pose, metres.
        twists_BK2: (B, J - 1, 2) cosine and sine of the twist of each joint but the root, of any
            length.
        tree: Which joint turns which bone.
        adaptive: Aim each bone from where the joints before it came to lie, as evaluation does;
            otherwise copy the direction of each bone, as training does.

    Returns:
        (B, J, 3, 3) rotation of each joint relative to its parent, in the axes of the rest pose.

    Raises:
        InputError: A shape does not fit.
    """
    _check(skeleton_BN3, rest_BN3, twists_BK2, tree)
    with torch.autocast(rest_BN3.device.type, enabled=False):
        bones_BN3 = _bones(skeleton_BN3.detach().to(rest_BN3.dtype), tree)
        rest_bones_BN3 = _bones(rest_BN3, tree)
        find_root = _fitted_root if adaptive else _copied_root
        root_B33 = find_root(bones_BN3, rest_bones_BN3, tree)
        twists_BK2 = twists_BK2 / (twists_BK2.norm(dim=-1, keepdim=True) + EPSILON)
        goal_BN3 = None
        if adaptive:
            places_BN3 = skeleton_BN3.detach()
            goal_BN3 = places_BN3 - places_BN3[:, :1] + rest_BN3[:, :1]
        return _follow(root_B33, bones_BN3, rest_bones_BN3, twists_BK2, goal_BN3, tree)


def _bones(joints_BN3: Tensor, tree: BoneTree) -> Tensor:
    """From each joint's parent to the joint; of the root, its place."""
    above = take(joints_BN3, tree.parents[1:])
    return torch.cat([joints_BN3[:, :1], joints_BN3[:, 1:] - above], dim=1)


def _follow(
    root_B33: Tensor,
    bones_BN3: Tensor,
    rest_BN3: Tensor,
    twists_BK2: Tensor,
    goal_BN3: Tensor | None,
    tree: BoneTree,
) -> Tensor:
    """Local rotations down the tree, all joints of one depth together."""
    depths, order = tree.depths
    world_BD33, place_BD3 = root_B33[:, None], rest_BN3[:, :1]
    locals_BJ33 = [world_BD33]
    for joints, above in depths:
        parent_BD33 = take(world_BD33, above)
        ends = [tree.guides[joint] for joint in joints]
        bone_BD3, rest_BD3 = take(bones_BN3, ends), take(rest_BN3, ends)
        if goal_BN3 is not None:
            reach_BD3 = (parent_BD33 @ take(rest_BN3, joints)[..., None])[..., 0]
            place_BD3 = take(place_BD3, above) + reach_BD3
            bone_BD3 = _aim(take(goal_BN3, ends) - place_BD3, bone_BD3, rest_BD3)
        target_BD3 = (parent_BD33.mT @ bone_BD3[..., None])[..., 0]
        axis_BD3 = rest_BD3 / (rest_BD3.norm(dim=-1, keepdim=True) + EPSILON)
        twist_BD2 = take(twists_BK2, [joint - 1 for joint in joints])
        local_BD33 = swing(rest_BD3, target_BD3) @ turn_about(
            axis_BD3, twist_BD2[..., 0], twist_BD2[..., 1]
        )
        world_BD33 = parent_BD33 @ local_BD33
        locals_BJ33.append(local_BD33)
    return take(torch.cat(locals_BJ33, dim=1), order)


def _aim(target_BD3: Tensor, bone_BD3: Tensor, rest_BD3: Tensor) -> Tensor:
    """Where a bone points: to its goal, unless the goal is out of reach."""
    lengths = rest_BD3.norm(dim=-1, keepdim=True) / (bone_BD3.norm(dim=-1, keepdim=True) + EPSILON)
    copied_BD3 = bone_BD3 * lengths
    far_BD1 = (target_BD3 - copied_BD3).norm(dim=-1, keepdim=True) > REACH_M
    return torch.where(far_BD1, copied_BD3, target_BD3)


def _fitted_root(bones_BN3: Tensor, rest_BN3: Tensor, tree: BoneTree) -> Tensor:
    """The rotation that best takes the root's three bones to where they are seen."""
    ends = (tree.guides[0], *tree.hips)
    rest_B33, seen_B33 = take(rest_BN3, ends), take(bones_BN3, ends)
    return closest_rotation(seen_B33.mT @ rest_B33)


def _copied_root(bones_BN3: Tensor, rest_BN3: Tensor, tree: BoneTree) -> Tensor:
    """The spine's swing, then a turn about the spine that lines up the middle of the hips."""
    spine = tree.guides[0]
    first_B33 = swing(rest_BN3[:, spine], bones_BN3[:, spine])
    axis_B3 = bones_BN3[:, spine]
    axis_B3 = axis_B3 / (axis_B3.norm(dim=-1, keepdim=True) + EPSILON)
    rest_B3, seen_B3 = (take(bones, tree.hips).mean(dim=1) for bones in (rest_BN3, bones_BN3))
    rest_B3 = (first_B33 @ rest_B3[..., None])[..., 0]
    rest_B3, seen_B3 = (_across(vector_B3, axis_B3) for vector_B3 in (rest_B3, seen_B3))
    return swing(rest_B3, seen_B3) @ first_B33


def _across(vector_B3: Tensor, axis_B3: Tensor) -> Tensor:
    """The part of a vector at a right angle to a unit axis."""
    return vector_B3 - (vector_B3 * axis_B3).sum(dim=-1, keepdim=True) * axis_B3


def swing(source: Tensor, target: Tensor) -> Tensor:
    """The shortest rotation (..., 3, 3) from the direction of one (..., 3) vector to another's.

    Parallel vectors, of the same or the opposite direction, give the identity.
    """
    cross = torch.linalg.cross(source, target)
    area = cross.norm(dim=-1, keepdim=True)
    lengths = source.norm(dim=-1) * target.norm(dim=-1) + EPSILON
    cosine = (source * target).sum(dim=-1) / lengths
    return turn_about(cross / (area + EPSILON), cosine, area[..., 0] / lengths)


def turn_about(axis: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotations (..., 3, 3) about unit axes (..., 3) by Rodrigues' formula, from (...) numbers."""
    cross = skew(axis)
    identity = torch.eye(3, dtype=axis.dtype, device=axis.device)
    return identity + sine[..., None, None] * cross + (1 - cosine)[..., None, None] * cross @ cross


def fit_twists(
    world_BJ33: Tensor, skeleton_BN3: Tensor, rest_BN3: Tensor, tree: BoneTree
) -> Tensor:
    """The twists with which the directions of bones give rotations nearest to known ones.

    Args:
        world_BJ33: (B, J, 3, 3) rotation of each joint from the rest pose to the camera's axes.
        skeleton_BN3: (B, N, 3) places of the joints, metres.
        rest_BN3: (B, N, 3) of the same body in the rest pose.
        tree: Which joint turns which bone.

    Returns:
        (B, J - 1, 2) cosine and sine.
    """
    bones_BN3, rest_bones_BN3 = _bones(skeleton_BN3, tree), _bones(rest_BN3, tree)
    worlds = {0: _copied_root(bones_BN3, rest_bones_BN3, tree)}
    twists = {}
    for joint in (joint for joints, _ in tree.depths[0] for joint in joints):
        parent_B33 = worlds[tree.parents[joint]]
        rest_B3 = rest_bones_BN3[:, tree.guides[joint]]
        bone_B3 = bones_BN3[:, tree.guides[joint]]
        axis_B3 = rest_B3 / (rest_B3.norm(dim=-1, keepdim=True) + EPSILON)
        swung_B33 = swing(rest_B3, (parent_B33.mT @ bone_B3[..., None])[..., 0])
        twists[joint] = _twist_in((parent_B33 @ swung_B33).mT @ world_BJ33[:, joint], axis_B3)
        local_B33 = swung_B33 @ turn_about(axis_B3, *twists[joint].unbind(dim=-1))
        worlds[joint] = parent_B33 @ local_B33
    return torch.stack([twists[joint] for joint in range(1, tree.turning)], dim=1)


def _twist_in(rotation: Tensor, axis: Tensor) -> Tensor:
    """Unit cosine and sine (..., 2) of the turn about an axis that is nearest to a rotation."""
    trace = rotation.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    along = (axis * (rotation @ axis[..., None])[..., 0]).sum(dim=-1)
    x, y, z = axis.unbind(dim=-1)
    sine = (
        x * (rotation[..., 2, 1] - rotation[..., 1, 2])
        + y * (rotation[..., 0, 2] - rotation[..., 2, 0])
        + z * (rotation[..., 1, 0] - rotation[..., 0, 1])
    )
    both = torch.stack([trace - along, sine], dim=-1)
    unit: Tensor = both / (both.norm(dim=-1, keepdim=True) + EPSILON)
    return unit


def signed_quaternion(rotation: Tensor) -> Tensor:
    """Rotations (..., 3, 3) to quaternions (..., 4) (w, x, y, z), signed as published.

    One component is computed from the diagonal and is positive: x, y or z where the diagonal says
    that it is large, else w. So w may be negative, and a loss of quaternions depends on it.
    """
    m = rotation
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    wx, wy, wz = (m[..., j, i] - m[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1)))
    rows = torch.stack(
        [
            torch.stack([wx, 1 + xx - yy - zz, xy, xz], dim=-1),
            torch.stack([wy, xy, 1 - xx + yy - zz, yz], dim=-1),
            torch.stack([wz, xz, yz, 1 - xx - yy + zz], dim=-1),
            torch.stack([1 + xx + yy + zz, wx, wy, wz], dim=-1),
        ],
        dim=-2,
    )
    low = zz < 1e-6
    branch = torch.where(low, torch.where(xx > yy, 0, 1), torch.where(xx < -yy, 2, 3))
    row = rows.take_along_dim(branch[..., None, None], dim=-2)[..., 0, :]
    own = row.take_along_dim(torch.where(branch == 3, 0, branch + 1)[..., None], dim=-1)
    return row / (2 * own.sqrt())


def _check(skeleton_BN3: Tensor, rest_BN3: Tensor, twists_BK2: Tensor, tree: BoneTree) -> None:
    joints: Sequence[int] = (len(tree.parents), 3)
    for name, value, expected in (
        ("skeleton_BN3", skeleton_BN3, tuple(joints)),
        ("rest_BN3", rest_BN3, tuple(joints)),
        ("twists_BK2", twists_BK2, (tree.turning - 1, 2)),
    ):
        if value.shape[1:] != expected or value.ndim != 3:
            raise InputError(
                f"{name}: expected shape (B, {expected[0]}, {expected[1]}), found "
                f"{tuple(value.shape)}; pass the joints in the order of the tree"
            )
