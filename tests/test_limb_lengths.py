"""Limbs keep their direction and get their length."""

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix
from kinemesh.models.limb_lengths import LimbLengths
from kinemesh.skeletons import get_skeleton


@pytest.fixture(scope="module", params=["anny-hand", "anny-body"])
def topology(request):
    return load_topology(request.param)


def rooted(joints, topology):
    return joints - topology.root(joints)


def test_the_template_stays(topology):
    joints = topology.template_joints[None]
    lengths = LimbLengths(topology.skeleton, joints[0], softness=1e-4)
    rebuilt = lengths(joints, torch.ones(1, joints.shape[1]))
    assert torch.allclose(rooted(rebuilt, topology), rooted(joints, topology), atol=1e-5)


def test_factors_scale_every_limb(topology):
    joints = topology.template_joints[None]
    turn = axis_angle_to_matrix(torch.tensor([0.3, 1.0, -0.5]))
    lengths = LimbLengths(topology.skeleton, joints[0], softness=1e-4)
    rebuilt = lengths(0.2 * joints @ turn.T, torch.full((1, joints.shape[1]), 1.25))
    expected = 1.25 * rooted(joints, topology) @ turn.T
    assert torch.allclose(rooted(rebuilt, topology), expected, atol=1e-5)


def test_a_shrunken_finger_is_stretched_and_its_neighbour_stays():
    topology = load_topology("anny-hand")
    joints, index = topology.template_joints.clone(), topology.skeleton.index
    tip, before = index("ring_4"), index("ring_3")
    joints[tip] = joints[before] + 0.3 * (joints[tip] - joints[before])
    lengths = LimbLengths(topology.skeleton, topology.template_joints, softness=1e-4)
    rebuilt = lengths(joints[None], torch.ones(1, 21))[0]
    assert torch.allclose(rebuilt - rebuilt[:1], topology.template_joints, atol=1e-5)


def test_the_palm_turns_as_one_piece():
    topology = load_topology("anny-hand")
    joints, index = topology.template_joints, topology.skeleton.index
    turn = axis_angle_to_matrix(torch.tensor([1.2, 0.4, -0.3]))
    narrow = joints @ turn.T
    knuckles = [index(f"{name}_1") for name in ("index", "middle", "ring", "pinky")]
    middle = narrow[knuckles].mean(0)
    narrow[knuckles] = middle + 0.3 * (narrow[knuckles] - middle)
    lengths = LimbLengths(topology.skeleton, joints, softness=1e-4)
    rebuilt = lengths(narrow[None], torch.ones(1, 21))[0]
    assert torch.allclose(rebuilt[knuckles] - rebuilt[0], joints[knuckles] @ turn.T, atol=1e-5)


def test_collapsed_joints_have_finite_gradients(topology):
    joints = torch.zeros(2, len(topology.skeleton), 3, requires_grad=True)
    lengths = LimbLengths(topology.skeleton, topology.template_joints)
    lengths(joints, torch.ones(2, len(topology.skeleton))).sum().backward()
    assert torch.isfinite(joints.grad).all()
    assert joints.grad.abs().sum() > 0


def test_unknown_skeleton_is_refused():
    with pytest.raises(InputError, match="limb tree"):
        LimbLengths(get_skeleton("lsp14"), torch.zeros(14, 3))
