"""Hybrid inverse kinematics: it gives back the rotations that made the joints."""

import pytest
import torch

from kinemesh.bodies import load_rig
from kinemesh.bodies.hybrik import (
    REACH_M,
    SMPL_TREE,
    fit_twists,
    joint_rotations,
    signed_quaternion,
    swing,
    turn_about,
)
from kinemesh.bodies.hybrik_anny import AnnyHybrik
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix, quaternion_to_matrix

TURNING = SMPL_TREE.turning


@pytest.fixture(scope="module")
def anny():
    return AnnyHybrik(load_rig("anny-body"))


def draw(people: int, angle: float = 0.5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    vectors = angle * torch.randn(people, TURNING, 3, generator=generator)
    return axis_angle_to_matrix(vectors), torch.randn(people, 10, generator=generator)


def follow(rotations, rest):
    """Places of all joints and world rotations, one joint after the other: the slow twin."""
    places, worlds = [rest[:, 0]], [rotations[:, 0]]
    for joint in range(1, len(SMPL_TREE.parents)):
        parent = SMPL_TREE.parents[joint]
        bone = (rest[:, joint] - rest[:, parent])[..., None]
        places.append(places[parent] + (worlds[parent] @ bone)[..., 0])
        if joint < TURNING:
            worlds.append(worlds[parent] @ rotations[:, joint])
    return torch.stack(places, dim=1), torch.stack(worlds, dim=1)


@pytest.mark.parametrize("adaptive", [True, False])
def test_true_places_and_twists_give_the_true_rotations(anny, adaptive):
    rotations, betas = draw(4)
    rest = anny.rest_joints(betas)
    places, worlds = follow(rotations, rest)
    twists = fit_twists(worlds, places, rest, SMPL_TREE)
    found = joint_rotations(places, rest, 3 * twists, SMPL_TREE, adaptive=adaptive)
    torch.testing.assert_close(found, rotations, rtol=0, atol=2e-3)
    # the published formula of a swing divides by lengths with 1e-8 added, which the hips' small
    # parts at a right angle to the spine feel
    assert torch.linalg.det(found).sub(1).abs().max() < 1e-3


def test_a_wrong_twist_moves_no_joint_but_the_rotation(anny):
    rotations, betas = draw(3)
    rest = anny.rest_joints(betas)
    places, worlds = follow(rotations, rest)
    twists = fit_twists(worlds, places, rest, SMPL_TREE)
    # joints 18 and 19 are the elbows, whose bones are single: their ends stay in place
    twists[:, 17] = twists[:, 17] * torch.tensor([1.0, -1.0])
    found = joint_rotations(places, rest, twists, SMPL_TREE, adaptive=True)
    moved, _ = follow(found, rest)
    assert (moved[:, 20] - places[:, 20]).norm(dim=-1).max() < 1e-3
    assert (found[:, 18] - rotations[:, 18]).abs().max() > 0.05


def test_adaptive_solution_reaches_joints_of_another_shape_better(anny):
    """Lengths that do not fit: the adaptive solution keeps the error from growing down the tree."""
    rotations, betas = draw(6, angle=0.4)
    places, worlds = follow(rotations, anny.rest_joints(betas))
    rest = anny.rest_joints(betas * 0.8)
    twists = fit_twists(worlds, places, rest, SMPL_TREE)
    errors = {}
    for adaptive in (True, False):
        found = joint_rotations(places, rest, twists, SMPL_TREE, adaptive=adaptive)
        reached, _ = follow(found, rest)
        both = (reached - reached[:, :1], places - places[:, :1])
        errors[adaptive] = float((both[0] - both[1]).norm(dim=-1).mean())
    assert errors[True] < 0.9 * errors[False]


def test_goals_out_of_reach_are_not_chased(anny):
    _, betas = draw(1)
    rest = anny.rest_joints(betas)
    places = rest.clone()
    places[:, 18] += torch.tensor([0.0, 0.0, 2 * REACH_M])  # the left elbow, and all below
    places[:, [20, 22, 25]] += torch.tensor([0.0, 0.0, 2 * REACH_M])
    straight = torch.tensor([1.0, 0.0]).expand(1, TURNING - 1, 2)
    near = joint_rotations(places, rest, straight, SMPL_TREE, adaptive=True)
    copied = joint_rotations(places, rest, straight, SMPL_TREE, adaptive=False)
    # what is not chased is copied in the direction of its own bone, below the shoulder in both
    torch.testing.assert_close(near[:, 19], copied[:, 19], rtol=0, atol=1e-4)
    assert (near[:, 16] - torch.eye(3)).abs().max() > 1e-2


def test_gradients_pass_through_twists_and_shape_but_not_through_places(anny):
    rotations, betas = draw(2)
    betas.requires_grad_()
    rest = anny.rest_joints(betas)
    places, _ = follow(rotations, rest.detach())
    places.requires_grad_()
    twists = torch.randn(2, TURNING - 1, 2, requires_grad=True)
    for adaptive in (True, False):
        found = joint_rotations(places, rest, twists, SMPL_TREE, adaptive=adaptive)
        signed_quaternion(found).square().mul(torch.arange(4.0)).sum().backward(retain_graph=True)
        assert places.grad is None
        assert twists.grad.isfinite().all()
        assert twists.grad.abs().sum() > 0
        assert betas.grad.isfinite().all()


def test_signed_quaternions_are_the_rotations():
    rotations, _ = draw(20, angle=2.0)
    quaternions = signed_quaternion(rotations)
    torch.testing.assert_close(quaternion_to_matrix(quaternions), rotations, rtol=0, atol=1e-5)
    assert (quaternions[..., 0] < 0).any()
    torch.testing.assert_close(quaternions.norm(dim=-1), torch.ones(20, TURNING))


def test_swing_and_turn_by_hand():
    x, y = torch.tensor([2.0, 0, 0]), torch.tensor([0.0, 3, 0])
    torch.testing.assert_close((swing(x, y) @ x), torch.tensor([0.0, 2, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(swing(x, x), torch.eye(3))
    quarter = turn_about(torch.tensor([0.0, 0, 1]), torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]))


def test_shapes_are_refused(anny):
    _, betas = draw(1)
    rest = anny.rest_joints(betas)
    twists = torch.ones(1, TURNING - 1, 2)
    with pytest.raises(InputError, match=r"skeleton_BN3: expected shape \(B, 29, 3\)"):
        joint_rotations(rest[:, :24], rest, twists, SMPL_TREE, adaptive=True)
    with pytest.raises(InputError, match=r"twists_BK2: expected shape \(B, 23, 2\)"):
        joint_rotations(rest, rest, twists[:, 1:], SMPL_TREE, adaptive=True)


# Anny's body ---------------------------------------------------------------------------------


def test_annys_kept_bones_and_shapes_say_nearly_all(anny):
    """Places, twists and ten numbers of shape give a real pose's mesh back to a centimetre."""
    import numpy as np

    from kinemesh.data.synthetic.body_poses import sample_body_pose

    rig, rng = load_rig("anny-body"), np.random.default_rng(0)
    pose = torch.stack([sample_body_pose(rng, rig) for _ in range(6)])
    shape = torch.stack([rig.sample_shape(rng) for _ in range(6)])
    posed = rig.pose(pose, shape)
    places, worlds = anny.pose_whole(pose, shape)
    betas = anny.coefficients(shape)
    twists = fit_twists(worlds, places, anny.rest_joints(betas), SMPL_TREE)
    mesh = anny(places, betas, twists, adaptive=True)
    truth = rig.topology_vertices(posed) - places[:, :1]
    error = (mesh.vertices - truth).norm(dim=-1).mean()
    assert error < 0.012
    plain = anny(places, betas, torch.tensor([1.0, 0.0]).expand_as(twists), adaptive=True)
    assert (plain.vertices - truth).norm(dim=-1).mean() > 1.5 * error  # twists matter
    still = anny.posed(torch.eye(3).expand(6, TURNING, 3, 3), betas)
    assert (still.vertices - truth).norm(dim=-1).mean() > 10 * error


def test_annys_shapes_are_read_back(anny):
    betas = torch.randn(5, 10)
    torch.testing.assert_close(anny.coefficients(anny.own_shape(betas)), betas, rtol=0, atol=1e-4)
    rest = load_rig("anny-body").rest(anny.own_shape(betas))
    joints = anny.joints_of(rest.vertices, rest.bones)
    torch.testing.assert_close(anny.rest_joints(betas), joints, rtol=0, atol=1e-5)
