"""The loss of hand joints."""

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.hand_losses import pose3d_loss


def example():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 21, 3, generator=generator)
    visible = torch.rand(3, 21, generator=generator) > 0.4
    return prediction, target, visible


def test_the_loss_is_the_mean_over_visible_joints_of_all_hands():
    prediction, target, visible = example()
    costs = [
        float((prediction[b, j] - target[b, j]).square().mean())
        for b in range(3)
        for j in range(21)
        if visible[b, j]
    ]
    loss = pose3d_loss(prediction, target, visible)
    assert float(loss) == pytest.approx(sum(costs) / len(costs), rel=1e-6)


def test_what_is_not_visible_changes_neither_value_nor_gradient():
    prediction, target, visible = example()
    target[~visible] = float("nan")
    prediction.requires_grad_()
    loss = pose3d_loss(prediction, target, visible)
    loss.backward()
    assert loss.isfinite()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[~visible] == 0).all()
    assert (prediction.grad[visible] != 0).all()


def test_a_batch_without_labels_costs_nothing():
    prediction, target, _ = example()
    prediction.requires_grad_()
    loss = pose3d_loss(prediction, target, torch.zeros(3, 21, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


def test_shapes_that_do_not_fit_are_refused():
    prediction, target, visible = example()
    with pytest.raises(InputError, match=r"visible \(B, J\)"):
        pose3d_loss(prediction[:, :20], target, visible)
