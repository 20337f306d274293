"""The template that follows joints: exact where it must be, and right in its parts."""

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix
from kinemesh.models.posed_template import SEGMENTS, PosedTemplate, segment_weights
from kinemesh.skeletons import get_skeleton


@pytest.fixture(scope="module", params=["anny-hand", "anny-body"])
def topology(request):
    return load_topology(request.param)


@pytest.fixture
def posed(topology):
    vertices = topology.template[topology.coarse.vertex_index]
    return PosedTemplate(topology.skeleton, topology.template_joints, vertices), vertices


def test_template_joints_give_the_template(topology, posed):
    follow, vertices = posed
    assert torch.allclose(follow(topology.template_joints[None])[0], vertices, atol=1e-5)


def test_it_turns_moves_and_grows_with_the_joints(topology, posed):
    follow, vertices = posed
    turn = axis_angle_to_matrix(torch.tensor([0.7, -1.1, 0.4]))
    shift = torch.tensor([0.1, -0.2, 2.0])
    joints = 1.3 * topology.template_joints @ turn.T + shift
    expected = 1.3 * vertices @ turn.T + shift
    assert torch.allclose(follow(joints[None])[0], expected, atol=1e-4)


def test_a_bent_finger_takes_its_vertices_along():
    topology = load_topology("anny-hand")
    vertices = topology.template[topology.coarse.vertex_index]
    follow = PosedTemplate(topology.skeleton, topology.template_joints, vertices)
    joints, index = topology.template_joints.clone(), topology.skeleton.index
    moved = [index("index_3"), index("index_4")]
    knuckle = joints[index("index_2")]
    turn = axis_angle_to_matrix(torch.tensor([0.9, 0.0, 0.0]))
    joints[moved] = (joints[moved] - knuckle) @ turn.T + knuckle
    change = (follow(joints[None])[0] - vertices).norm(dim=-1)
    nearest = torch.cdist(vertices, topology.template_joints).argmin(1)
    assert change[nearest == index("index_4")].min() > 0.01
    assert change[nearest == index("ring_4")].max() < 0.001
    assert change[nearest == index("wrist")].max() < 0.001


def test_gradient_is_finite_and_reaches_the_joints(topology, posed):
    follow, _ = posed
    torch.manual_seed(0)
    noise = 0.01 * torch.randn(2, *topology.template_joints.shape)
    joints = (topology.template_joints + noise).requires_grad_()
    follow(joints).square().sum().backward()
    assert torch.isfinite(joints.grad).all()
    assert (joints.grad.abs().sum((0, 2)) > 0).sum() > len(topology.skeleton) // 2


def test_segment_weights_against_distances_by_hand():
    axis, length = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, 1.0, 1.0])
    starts = torch.tensor([[0.0, 0, 0], [3.0, 0, 0], [6.0, 0, 0]])
    points = torch.tensor([[1.0, 0.5, 0.0], [3.0, 2.0, 0.0]])
    reach = points[:, None] - starts
    along = (reach * axis).sum(-1)
    weights = segment_weights(reach, along, length, 2)
    distance = torch.tensor([[1.0, 2.0], [1.0, 10**0.5]])
    by_hand = (distance + 0.01) ** -6
    by_hand = by_hand / by_hand.sum(1, keepdim=True)
    assert torch.allclose(weights[0], torch.tensor([*by_hand[0], 0.0]), atol=1e-6)
    assert weights[1, 1].item() == pytest.approx(by_hand[1, 0].item(), abs=1e-5)


def test_carriers_come_first():
    for segments in SEGMENTS.values():
        for number, segment in enumerate(segments):
            earlier = [other.end for other in segments[:number]]
            assert (segment.parent is None) == (segment.across is not None)
            assert segment.parent is None or segment.parent in earlier


def test_unknown_skeleton_is_refused():
    with pytest.raises(InputError, match="segments"):
        PosedTemplate(get_skeleton("lsp14"), torch.zeros(14, 3), torch.zeros(1, 3))
