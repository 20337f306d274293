"""Synthetic hands as records of hand pose."""

import numpy as np
import pytest
import torch

from kinemesh.data.hand_pose_records import HAND_POSE_FIELDS, LEFT, RIGHT, collate_hand_poses
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.synthetic.hand_pose_samples import (
    JointNoise,
    SyntheticHandJoints,
    SyntheticHandPoses,
    mirrored,
)
from kinemesh.errors import InputError
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from kinemesh.models.joint_lifter import box_coordinates

SIDE = 32


@pytest.fixture(scope="module")
def hands():
    return SyntheticHandPoses(3, SIDE, 50, "val")


def test_hands_are_those_of_the_mesh_data(hands):
    sample, mesh = hands[7], SyntheticDataset("hand", 3, SIDE, 50, "val")[7]
    assert tuple(sample) == HAND_POSE_FIELDS
    pixels = sample["image"] * torch.tensor(IMAGENET_STD)[:, None, None]
    pixels += torch.tensor(IMAGENET_MEAN)[:, None, None]
    torch.testing.assert_close(pixels, mesh["image"], atol=1e-6, rtol=0)
    assert torch.equal(sample["joints_m"], mesh["joints_3d"][:, :3])
    assert torch.equal(sample["joints_m"][0], torch.zeros(3))
    # integer coordinates are centres of pixels here
    assert torch.equal(sample["joints_2d_px"], mesh["joints_2d"][:, :2] - 0.5)
    assert sample["visible"].all()
    assert (int(sample["side"]), int(sample["frame"])) == (RIGHT, 7)
    assert torch.equal(hands.joints_m([7])[0], sample["joints_m"])
    assert collate_hand_poses([sample, hands[8]])["image"].shape == (2, 3, SIDE, SIDE)


def test_a_mirror_swaps_the_sides_and_twice_is_nothing(hands):
    sample = hands[0]
    other = mirrored(sample)
    assert int(other["side"]) == LEFT
    assert torch.equal(other["image"], sample["image"].flip(-1))
    # the pixel under a joint stays under it
    x, y = sample["joints_2d_px"][9].round().long().clamp(0, SIDE - 1)
    assert torch.equal(other["image"][:, y, SIDE - 1 - x], sample["image"][:, y, x])
    back = mirrored(other)
    for name in HAND_POSE_FIELDS:
        torch.testing.assert_close(back[name], sample[name], atol=1e-5, rtol=0)


def test_both_sides_by_a_draw_of_each_sample(hands):
    both = SyntheticHandPoses(3, SIDE, 50, "val", sides="both")
    samples = [both[index] for index in range(8)]
    sides = {int(sample["side"]) for sample in samples}
    assert sides == {LEFT, RIGHT}
    for index, sample in enumerate(samples):
        right = sample if int(sample["side"]) == RIGHT else mirrored(sample)
        torch.testing.assert_close(right["joints_m"], hands[index]["joints_m"])
        torch.testing.assert_close(both.joints_m([index])[0], sample["joints_m"])


def test_joints_alone_have_the_poses_and_views_of_the_pictures(hands):
    joints = SyntheticHandJoints(3, 50, "val")
    drawn, plain = hands[5], joints[5]
    assert plain["image"].shape == (3, 0, 0)
    torch.testing.assert_close(plain["joints_m"], drawn["joints_m"])
    boxes = [
        box_coordinates(sample["joints_2d_px"][None], sample["visible_2d"][None])
        for sample in (drawn, plain)
    ]
    torch.testing.assert_close(boxes[0], boxes[1], atol=1e-5, rtol=0)


def bone_lengths(sample):
    joints = sample["joints_m"]
    return (joints[1:] - joints[:-1]).norm(dim=-1)


def test_training_looks_at_a_hand_anew_each_step():
    joints = SyntheticHandJoints(3, 50)
    first, again = joints[2], joints[2]
    joints.set_step(1)
    second = joints[2]
    assert all(torch.equal(first[name], again[name]) for name in HAND_POSE_FIELDS)
    assert (first["joints_m"] - second["joints_m"]).abs().max() > 0.005
    torch.testing.assert_close(bone_lengths(first), bone_lengths(second), atol=1e-6, rtol=0)


def test_noise_and_missing_joints():
    clean = SyntheticHandJoints(3, 50, noise=JointNoise(0.0, 0.0))
    noisy = SyntheticHandJoints(3, 50, noise=JointNoise(0.02, 0.3))
    shifts, shares = [], []
    for index in range(50):
        one, other = clean[index], noisy[index]
        torch.testing.assert_close(one["joints_m"], other["joints_m"])
        assert one["visible_2d"].all()
        known = other["visible_2d"]
        extent = (one["joints_2d_px"].amax(0) - one["joints_2d_px"].amin(0)).max()
        shifts.append((other["joints_2d_px"] - one["joints_2d_px"])[known] / extent)
        shares.append(known.float().mean())
        assert (other["joints_2d_px"][~known] == 0).all()
    assert torch.cat(shifts).std() == pytest.approx(0.02, rel=0.1)
    assert np.mean(shares) == pytest.approx(0.7, abs=0.05)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="sides: expected 'right' or 'both'"):
        SyntheticHandPoses(sides="left")
    with pytest.raises(InputError, match="jitter, dropout"):
        JointNoise(-1.0)
    for short in (SyntheticHandPoses(length=3), SyntheticHandJoints(length=3)):
        with pytest.raises(IndexError):
            short[3]
