import importlib.util
import math

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.geometry.heat_maps import soft_argmax
from kinemesh.losses import (
    edge_length_loss,
    heatmap_cross_entropy,
    joints_loss,
    masked_error,
    normal_consistency_loss,
    vertices_loss,
)
from kinemesh.skeletons import H36M14, METRO24, joint_map, root_position

FACES = torch.tensor([[0, 1, 2], [1, 3, 2], [0, 4, 1]])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind", ["l1", "mse"])
def test_masked_error_equals_slow_twin(kind):
    prediction, target = torch.randn(4, 6, 3), torch.randn(4, 6, 3)
    confidence, has = torch.rand(4, 6), torch.tensor([1.0, 0, 1, 1])
    total, count = 0.0, 0
    for b in range(4):
        if not has[b]:
            continue
        for n in range(6):
            for d in range(3):
                difference = (prediction[b, n, d] - target[b, n, d]).item()
                value = abs(difference) if kind == "l1" else difference**2
                total += confidence[b, n].item() * value
                count += 1
    found = masked_error(prediction, target, kind, confidence, has).item()
    assert found == pytest.approx(total / count, rel=1e-5)


def test_plain_errors_are_the_means():
    prediction, target = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    torch.testing.assert_close(
        vertices_loss(prediction, target), torch.nn.functional.l1_loss(prediction, target)
    )
    full = torch.cat((target, torch.ones(2, 5, 1)), dim=-1)
    torch.testing.assert_close(
        joints_loss(prediction, full), torch.nn.functional.mse_loss(prediction, target)
    )


def test_masked_parts_may_be_nan_and_give_no_gradient():
    prediction = torch.randn(2, 4, 3, requires_grad=True)
    target = torch.randn(2, 4, 4)
    target[..., 3] = 1
    target[1] = math.nan
    target[0, 2] = torch.tensor([math.nan, math.inf, 0, 0])
    target[1, :, 3] = 1
    loss = joints_loss(prediction, target, torch.tensor([1.0, 0.0]))
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()
    assert not prediction.grad[1].any()
    assert not prediction.grad[0, 2].any()
    assert prediction.grad[0, 0].all()


def test_empty_selection_is_zero_and_keeps_the_graph():
    prediction = torch.randn(2, 5, 3, requires_grad=True)
    target, none = torch.full((2, 5, 3), math.nan), torch.zeros(2)
    loss = (
        vertices_loss(prediction, target, none)
        + edge_length_loss(prediction, target, FACES, none)
        + normal_consistency_loss(prediction, target, FACES, none)
    )
    loss.backward()
    assert loss.item() == 0
    assert not prediction.grad.any()


def _slow_surface(prediction, target, has):
    lengths, cosines = [], []
    for p, t, known in zip(prediction.numpy(), target.numpy(), has, strict=True):
        if not known:
            continue
        for face in FACES.numpy():
            a, b, c = t[face]
            normal = np.cross(b - a, c - a)
            normal /= np.linalg.norm(normal)
            for i, j in ((0, 1), (1, 2), (2, 0)):
                edge, true = p[face[j]] - p[face[i]], t[face[j]] - t[face[i]]
                lengths.append(abs(np.linalg.norm(edge) - np.linalg.norm(true)))
                cosines.append(abs(edge @ normal) / np.linalg.norm(edge))
    return np.mean(lengths), np.mean(cosines)


@pytest.mark.parametrize("size", [1.0, 0.003])
def test_surface_losses_equal_slow_twin(size):
    prediction, target = size * torch.randn(3, 5, 3), size * torch.randn(3, 5, 3)
    has = torch.tensor([1.0, 0.0, 1.0])
    edge, normal = _slow_surface(prediction, target, has)
    assert edge_length_loss(prediction, target, FACES, has).item() == pytest.approx(edge, rel=1e-4)
    found = normal_consistency_loss(prediction, target, FACES, has).item()
    assert found == pytest.approx(normal, rel=1e-4)


def test_surface_losses_vanish_for_moved_meshes():
    target = 0.01 * torch.randn(1, 5, 3)
    assert edge_length_loss(target + 1, target, FACES).item() < 1e-6
    assert normal_consistency_loss(2 * target, target, FACES).item() < 1e-5


def test_surface_gradients_of_a_collapsed_mesh_are_finite():
    prediction = torch.zeros(1, 5, 3, requires_grad=True)
    target = torch.randn(1, 5, 3)
    loss = edge_length_loss(prediction, target, FACES)
    loss = loss + normal_consistency_loss(prediction, target, FACES)
    loss.backward()
    assert prediction.grad.isfinite().all()


def _log_softmax(logits):
    return logits.flatten(2).log_softmax(-1).view_as(logits)


def _slow_cross_entropy(log_probability, target, weight):
    """Every cell weighs by the bilinear tent around the target."""
    batch, joints, height, width = log_probability.shape
    total = 0.0
    for b in range(batch):
        for j in range(joints):
            x = (target[b, j, 0].item() + 1) / 2 * width - 0.5
            y = (target[b, j, 1].item() + 1) / 2 * height - 0.5
            x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
            for row in range(height):
                for column in range(width):
                    tent = max(0, 1 - abs(column - x)) * max(0, 1 - abs(row - y))
                    total -= weight[b, j].item() * tent * log_probability[b, j, row, column].item()
    return total / weight.sum().item()


def test_heatmap_cross_entropy_equals_slow_twin():
    log_probability = _log_softmax(torch.randn(3, 4, 5, 7))
    target = torch.rand(3, 4, 2) * 2 - 1
    target[0, 0] = torch.tensor([1.0, -1.0])  # a corner of the map
    confidence, has = torch.rand(3, 4), torch.tensor([1.0, 1.0, 0.0])
    found = heatmap_cross_entropy(log_probability, target, confidence, has)
    expected = _slow_cross_entropy(log_probability, target, confidence * has[:, None])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_heatmap_targets_outside_or_nan_do_not_count():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    target = torch.tensor([[[0.1, 0.2], [1.5, 0.0], [math.nan, 0.0]]])
    loss = heatmap_cross_entropy(_log_softmax(logits), target)
    loss.backward()
    alone = heatmap_cross_entropy(_log_softmax(logits)[:, :1], target[:, :1])
    torch.testing.assert_close(loss, alone)
    assert not logits.grad[:, 1:].any()
    assert heatmap_cross_entropy(_log_softmax(logits), target + 5).item() == 0


def test_heatmap_minimum_is_the_target():
    """The best map's soft-argmax is the sub-pixel target."""
    target = torch.tensor([[[0.31, -0.47]]])
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(300):
        optimizer.zero_grad()
        heatmap_cross_entropy(_log_softmax(logits), target).backward()
        optimizer.step()
    torch.testing.assert_close(soft_argmax(logits.detach()), target, rtol=0, atol=0.01)


def test_soft_argmax_equals_slow_twin():
    logits = torch.randn(2, 3, 4, 6)
    found = soft_argmax(logits)
    for b in range(2):
        for j in range(3):
            weight = logits[b, j].exp().numpy()
            weight = weight / weight.sum()
            x = sum(weight[r, c] * ((c + 0.5) / 6 * 2 - 1) for r in range(4) for c in range(6))
            y = sum(weight[r, c] * ((r + 0.5) / 4 * 2 - 1) for r in range(4) for c in range(6))
            np.testing.assert_allclose(found[b, j].numpy(), [x, y], rtol=1e-4, atol=1e-6)


def test_soft_argmax_of_a_peak_and_its_gradient():
    logits = torch.full((1, 1, 4, 8), -100.0)
    logits[0, 0, 3, 0] = 100
    assert soft_argmax(logits)[0, 0].tolist() == pytest.approx([1 / 8 - 1, 1 - 1 / 4])
    inputs = torch.randn(1, 2, 3, 3, requires_grad=True)
    soft_argmax(inputs).sum().backward()
    assert inputs.grad.isfinite().all()
    assert inputs.grad.abs().sum() > 0


def test_refuses_different_shapes():
    with pytest.raises(InputError, match="same shape"):
        masked_error(torch.zeros(1, 3, 3), torch.zeros(1, 3, 2), "l1")


def test_official_metro_losses(shared):
    """Terms of the official body loss, with its targets drawn from names."""
    spec = importlib.util.spec_from_file_location("seeded", shared / "parity" / "seeded.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    golden = np.load(shared / "parity" / "metro" / "golden" / "losses_body.npz")

    def draw(name, *shape):
        return torch.from_numpy(seeded.draw(name, shape))

    to_14 = list(joint_map(METRO24, H36M14))
    joints = draw("pred_joints", 4, 14, 3) * 0.3
    raw = draw("gt_joints_3d", 4, 24, 4)
    target = torch.cat((raw[..., :3] * 0.3, (raw[..., 3:] > -0.5).float()), dim=-1)[:, to_14]
    rooted = target.clone()
    rooted[..., :3] -= root_position(target[..., :3], H36M14)
    has_3d = torch.tensor([1.0, 0.0, 1.0, 1.0])
    loss = joints_loss(joints - root_position(joints, H36M14), rooted, has_3d)
    assert loss.item() == pytest.approx(golden["loss_3d_token"].item(), rel=1e-5)

    weak = WeakPerspective.from_vector(draw("pred_cam", 4, 3) * 0.5)
    raw = draw("gt_joints_2d", 4, 24, 3)
    flat = torch.cat((raw[..., :2] * 0.5, (raw[..., 2:] > -0.5).float()), dim=-1)[:, to_14]
    np.testing.assert_allclose(weak.project(joints).numpy(), golden["joints2d"], atol=1e-6)
    loss = joints_loss(weak.project(joints), flat)
    assert loss.item() == pytest.approx(golden["loss_2d_token"].item(), rel=1e-5)
