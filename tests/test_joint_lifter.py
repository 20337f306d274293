"""The lifter: what it takes out of its input, missing joints, refusals."""

import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.models.joint_lifter import JointLifter, JointLifterConfig, box_coordinates
from kinemesh.models.lifter_variants import LIFTER_VARIANTS

SMALL = JointLifterConfig(width=16, layers=2, heads=2, feed_forward=32)


@pytest.fixture
def lifter():
    torch.manual_seed(0)
    return JointLifter(SMALL).eval()


def places(count=3):
    return torch.randn(count, 21, 2, generator=torch.Generator().manual_seed(1)) * 40 + 100


def test_place_and_size_in_the_picture_do_not_matter(lifter):
    joints = places()
    expected = lifter(joints)
    assert expected.shape == (3, 21, 3)
    moved = joints * 3.5 + torch.tensor([200.0, -70.0])
    torch.testing.assert_close(lifter(moved), expected, atol=1e-5, rtol=0)
    turned = joints.flip(-1)
    assert (lifter(turned) - expected).abs().max() > 1e-3


def test_joints_are_told_apart_and_see_each_other(lifter):
    joints = places(1)
    swapped = joints.clone()
    swapped[:, [5, 9]] = joints[:, [9, 5]]
    change = (lifter(swapped) - lifter(joints)).abs().amax(-1)[0]
    assert (change > 1e-5).all()


def test_what_stands_in_a_missing_joint_does_not_matter(lifter):
    joints, visible = places(), torch.ones(3, 21, dtype=torch.bool)
    visible[0, 4] = visible[1, 8:] = False
    hidden = joints.masked_fill(~visible[..., None], float("nan"))
    expected = lifter(joints, visible)
    torch.testing.assert_close(lifter(hidden, visible), expected, atol=0, rtol=0)
    assert (expected[0] - lifter(joints)[0]).abs().max() > 1e-4
    torch.testing.assert_close(lifter(joints)[2], expected[2], atol=1e-6, rtol=0)
    assert lifter(joints, torch.zeros(3, 21)).isfinite().all()


def test_box_coordinates():
    joints = torch.tensor([[[10.0, 20.0], [30.0, 25.0], [99.0, 99.0]]])
    visible = torch.tensor([[1, 1, 0]])
    expected = torch.tensor([[[-1.0, -0.25], [1.0, 0.25], [0.0, 0.0]]])
    torch.testing.assert_close(box_coordinates(joints, visible), expected)
    one = box_coordinates(joints, torch.tensor([[0, 1, 0]]))
    assert torch.equal(one, torch.zeros(1, 3, 2))


def test_gradients_reach_all_parameters():
    torch.manual_seed(0)
    lifter, visible = JointLifter(SMALL), torch.ones(3, 21)
    visible[:, 3] = 0
    lifter(places(), visible).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in lifter.parameters())


def test_layers_begin_apart():
    first, second = JointLifter(SMALL).encoder.layers
    assert not torch.equal(first.linear1.weight, second.linear1.weight)


def test_what_does_not_fit_is_refused(lifter):
    with pytest.raises(InputError, match=r"joints_2d: expected shape \(B, 21, 2\)"):
        lifter(torch.zeros(2, 20, 2))
    with pytest.raises(InputError, match=r"visible: expected shape \(3, 21\)"):
        lifter(places(), torch.ones(3, 20))
    for wrong in ({"width": 15}, {"layers": 0}, {"dropout": 1.0}):
        with pytest.raises(InputError, match="expected"):
            JointLifterConfig(**wrong)


def test_its_card_is_listed_with_its_number_of_parameters(capsys):
    variant = LIFTER_VARIANTS["joint-lifter"]
    assert sum(p.numel() for p in variant.build().parameters()) == variant.parameters
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert "joint-lifter" in shown
    assert f"{variant.parameters:,}" in shown
