"""Losses of METRO and Mesh Graphormer: official values, slow twin, masks, no waiting."""

import math

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.mesh_losses import (
    JointTargets,
    MeshLossWeights,
    MeshTargets,
    MeshTransformerLoss,
    PoseTransformerLoss,
)
from kinemesh.models.mesh_transformer import MeshOutput
from kinemesh.skeletons import root_position
from tests.no_waiting import NoWaiting
from tests.parity import losses
from tests.tolerances import TOL

BODY_TERMS = [
    *("loss_3d_token", "loss_3d_mesh", "loss_v_sub2", "loss_v_sub", "loss_v_full"),
    *("loss_2d_token", "loss_2d_mesh", "total"),
]


@pytest.fixture(scope="module", params=["body", "hand"])
def topology(request):
    return load_topology(f"anny-{request.param}")


def drawn(topology, samples=4, dtype=torch.float32):
    """A drawn output that wants gradients, and drawn targets."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    joints = len(topology.token_skeleton)
    levels = [len(level) for level in reversed(topology.levels)]
    output = MeshOutput(
        normal(samples, 3).requires_grad_(),
        normal(samples, joints, 3).requires_grad_(),
        tuple(
            normal(samples, count, 3).requires_grad_()
            for count in (*levels, len(topology.template))
        ),
    )
    confidence = torch.tensor([0.0, 1.0, 0.5], dtype=dtype).repeat(joints)[:joints]
    confidence = confidence.expand(samples, -1)[..., None]
    targets = MeshTargets(
        torch.cat([normal(samples, joints, 2), confidence], dim=-1),
        torch.cat([normal(samples, joints, 3), confidence.flip(1)], dim=-1),
        torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=dtype)[:samples],
        normal(samples, len(topology.template), 3),
        torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=dtype)[:samples],
    )
    return output, targets


def loss_of(topology):
    return (MeshTransformerLoss.body if topology.kind == "body" else MeshTransformerLoss.hand)(
        topology
    )


def slow_terms(topology, output, targets):
    """One sample after the other, as the paper says it."""
    skeleton = topology.token_skeleton
    tokens = output.joints
    regressed = topology.token_joint_positions(output.vertices[-1])
    samples, joints = range(len(tokens)), len(skeleton)
    terms = {}
    for name, predicted in (("token", tokens), ("mesh", regressed)):
        chosen = [b for b in samples if targets.has_3d_B[b] == 1]
        sums = torch.zeros((), dtype=tokens.dtype)
        for b in chosen:
            own = predicted[b] - root_position(predicted[b], skeleton)
            true = targets.joints_3d_BT4[b, :, :3]
            true = true - root_position(true, skeleton)
            for j in range(joints):
                confidence = targets.joints_3d_BT4[b, j, 3]
                sums = sums + confidence * (own[j] - true[j]).square().sum()
        terms[f"loss_3d_{name}"] = sums / max(len(chosen) * joints * 3, 1)
        sums = torch.zeros((), dtype=tokens.dtype)
        for b in samples:
            scale, shift = output.camera[b, 0], output.camera[b, 1:]
            for j in range(joints):
                place = scale * (predicted[b, j, :2] + shift)
                error = (place - targets.joints_2d_BT3[b, j, :2]).square().sum()
                sums = sums + targets.joints_2d_BT3[b, j, 2] * error
        terms[f"loss_2d_{name}"] = sums / (len(tokens) * joints * 2)
    names = ["loss_v_sub2", "loss_v_sub", "loss_v_full"][-len(output.vertices) :]
    selections = [level.vertex_index for level in reversed(topology.levels)] + [slice(None)]
    for name, mesh, selection in zip(names, output.vertices, selections, strict=True):
        errors = [
            (mesh[b] - targets.vertices_BV3[b][selection]).abs().mean()
            for b in samples
            if targets.has_mesh_B[b] == 1
        ]
        terms[name] = sum(errors) / len(errors)
    return terms


def total_of(terms, kind):
    if kind == "body":
        vertices = sum(0.33 * terms[f"loss_v_{level}"] for level in ("sub2", "sub", "full"))
        weight_3d, weight_vertices = 1000, 100
    else:
        vertices = 0.5 * terms["loss_v_sub"] + 0.5 * terms["loss_v_full"]
        weight_3d, weight_vertices = 1, 1
    joints_3d = terms["loss_3d_token"] + terms["loss_3d_mesh"]
    joints_2d = terms["loss_2d_token"] + terms["loss_2d_mesh"]
    return weight_3d * joints_3d + weight_vertices * (vertices + joints_2d)


@pytest.mark.parametrize("system", ["metro", "graphormer"])
def test_official_terms(shared, system):
    cases = losses.compare(shared / "parity" / system / "golden")
    assert [case.name for case in cases] == ["losses_body", "losses_hand"]
    for case in cases:
        case.assert_passed()


def test_equals_slow_twin_in_value_and_gradient(topology):
    loss = loss_of(topology).double()
    output, targets = drawn(topology, dtype=torch.float64)
    slow = slow_terms(topology, output, targets)
    slow["total"] = total_of(slow, topology.kind)
    fast = loss(output, targets)
    assert list(fast) == [name for name in BODY_TERMS if name in slow]
    parts = [output.camera, output.joints, *output.vertices]
    for name, value in fast.items():
        torch.testing.assert_close(value, slow[name], **TOL[torch.float64])
    ours = torch.autograd.grad(fast["total"], parts)
    theirs = torch.autograd.grad(slow["total"], parts)
    for own, other in zip(ours, theirs, strict=True):
        assert own.abs().sum() > 0
        torch.testing.assert_close(own, other, **TOL[torch.float64])


def test_dense_regressor_is_the_topologys(topology):
    loss, mesh = loss_of(topology), torch.randn(2, len(topology.template), 3)
    torch.testing.assert_close(
        loss.joints(mesh), topology.token_joint_positions(mesh), **TOL[torch.float32]
    )
    torch.testing.assert_close(
        loss.root(mesh), topology.root(topology.joints(mesh)), **TOL[torch.float32]
    )


def test_right_answers_cost_nothing(topology):
    loss = loss_of(topology)
    mesh = topology.template + 0.1 * torch.randn(2, 1, 3)
    mesh = mesh - loss.root(mesh)
    joints = loss.joints(mesh)
    camera = torch.tensor([[0.8, 0.1, -0.2], [1.2, 0.0, 0.3]])
    places = camera[:, None, :1] * (joints[..., :2] + camera[:, None, 1:])
    ones = torch.ones_like(joints[..., :1])
    levels = [mesh[:, level.vertex_index] for level in reversed(topology.levels)]
    targets = MeshTargets(
        torch.cat([places, ones], dim=-1),
        torch.cat([joints + 5.0, ones], dim=-1),  # any origin
        torch.ones(2),
        mesh,
        torch.ones(2),
    )
    terms = loss(MeshOutput(camera, joints, (*levels, mesh)), targets)
    assert all(value.item() == pytest.approx(0, abs=1e-9) for value in terms.values())


def test_unlabelled_samples_may_be_nan_and_give_no_gradient(topology):
    loss = loss_of(topology)
    output, targets = drawn(topology)
    targets.vertices_BV3[targets.has_mesh_B == 0] = math.nan
    targets.joints_3d_BT4[targets.has_3d_B == 0, :, :3] = math.nan
    targets.joints_2d_BT3[0, 0, :2] = math.nan  # confidence 0
    loss(output, targets)["total"].backward()
    parts = (output.camera, output.joints, *output.vertices)
    assert all(part.grad.isfinite().all() for part in parts)
    for level in output.vertices[:-1]:
        assert not level.grad[targets.has_mesh_B == 0].any()
        assert level.grad[targets.has_mesh_B == 1].any()


def test_nothing_labelled_is_zero_and_keeps_the_graph(topology):
    output, targets = drawn(topology, 2)
    none = torch.zeros(2)
    targets.joints_2d_BT3[..., 2] = 0
    empty = MeshTargets(
        targets.joints_2d_BT3, targets.joints_3d_BT4, none, targets.vertices_BV3, none
    )
    terms = loss_of(topology)(output, empty)
    assert all(value.item() == 0 for value in terms.values())
    terms["total"].backward()
    assert output.joints.grad is not None
    assert not output.joints.grad.any()


def test_nothing_waits_for_the_device(topology):
    loss = loss_of(topology)
    output, targets = drawn(topology)
    with NoWaiting():
        loss(output, targets)["total"].backward()


def test_the_guard_against_waiting_can_fail():
    x = torch.arange(4.0)
    for waits in (lambda: x.sum().item(), lambda: bool(x.any()), lambda: x[x > 1], x.nonzero):
        with pytest.raises(AssertionError, match=r"waits|boolean"), NoWaiting():
            waits()


def test_weights_must_fit_the_levels(topology):
    with pytest.raises(InputError, match=r"weights\.levels: expected"):
        MeshTransformerLoss(topology, MeshLossWeights(levels=(1.0,)))


def test_another_network_is_refused(topology):
    output, targets = drawn(topology)
    with pytest.raises(InputError, match=r"output\.vertices"):
        loss_of(topology)(output._replace(vertices=output.vertices[-1:]), targets)


def test_pose_loss_is_the_plain_squared_error():
    torch.manual_seed(0)
    camera, joints = torch.randn(2, 3), torch.randn(2, 21, 3, requires_grad=True)
    targets = JointTargets(torch.ones(2, 21, 3), torch.ones(2, 21, 4), torch.ones(2))
    terms = PoseTransformerLoss()(camera, joints, targets)
    torch.testing.assert_close(terms["loss_3d_token"], (joints - 1).square().mean())
    torch.testing.assert_close(terms["total"], terms["loss_3d_token"])
    both = PoseTransformerLoss(2.0, 0.5)(camera, joints, targets)
    places = camera[:, None, :1] * (joints[..., :2] + camera[:, None, 1:])
    expected = 2 * (joints - 1).square().mean() + 0.5 * (places - 1).square().mean()
    torch.testing.assert_close(both["total"], expected)
