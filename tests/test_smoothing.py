"""Filters over time, gaps, sizes: known answers, and that smoothing helps and does no harm."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.errors import InputError
from kinemesh.inference.gaps import runs_without_long_gaps
from kinemesh.inference.motion_state import TrackSize, body_size, person_of, stack_states, state_of
from kinemesh.inference.refinement import OnlineRefiner, TrackSizes, refine_offline
from kinemesh.inference.smoothing import OfflineSmoothing, OneEuro, OnlineSmoothing
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame
from kinemesh.metrics import pa_mpjpe_mm
from kinemesh.motion_metrics import acceleration_error_mm, jitter_m_s3
from tests.fake_predictor import fake_people

RATE = 25.0
BASE = fake_people("body")[0]


def moved(shift, turn=0.0, scale=1.0):
    """The fake body turned about its own middle, scaled about the camera, then moved."""
    middle = BASE.vertices.mean(0)
    cos, sin = np.cos(turn), np.sin(turn)
    rotation = np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    vertices, joints = (
        (((points - middle) @ rotation.T + middle + shift) * scale).astype(np.float32)
        for points in (BASE.vertices, BASE.joints)
    )
    return replace(
        BASE,
        vertices=vertices,
        joints=joints,
        joints_px=BASE.camera.project(joints).astype(np.float32),
    )


def walk(frames, noise_m=0.0, scale=0.0, seed=0):
    """A body that turns and walks to the right, with noise in each joint and in its depth."""
    rng = np.random.default_rng(seed)
    people = []
    for t in np.arange(frames) / RATE:
        person = moved(np.array([0.5 * t, 0, 1.0]), t, float(np.exp(rng.normal(0, scale))))
        jumps = rng.normal(0, noise_m, person.joints.shape).astype(np.float32)
        people.append(replace(person, joints=person.joints + jumps))
    return people


def video_of(people, missing=()):
    """Frames of one track."""
    return [
        VideoFrame(
            index, index / RATE, (300, 200), () if index in missing else (TrackedPerson(1, person),)
        )
        for index, person in enumerate(people)
    ]


def refine(video, smoothing, block=64):
    sizes = TrackSizes()
    for frame in video:
        sizes.add(frame)
    made = refine_offline(
        video.__getitem__, len(video), RATE, sizes.lasting(), smoothing, block=block
    )
    return list(made)


def joints_of(frames):
    return torch.from_numpy(np.stack([frame.people[0].person.joints for frame in frames]))


def test_state_and_back():
    back = person_of(state_of(BASE), BASE)
    np.testing.assert_allclose(back.vertices, BASE.vertices, atol=1e-6)
    np.testing.assert_allclose(back.joints, BASE.joints, atol=1e-6)
    np.testing.assert_array_equal(back.joints_px, BASE.joints_px)
    assert (back.box_px, back.score) == (BASE.box_px, BASE.score)


def test_size_is_changed_without_moving_anything_in_the_picture():
    size = body_size(BASE)
    larger = person_of(state_of(BASE, TrackSize(2 * size)), BASE)
    assert body_size(larger) == pytest.approx(2 * size, rel=1e-5)
    camera = BASE.camera
    np.testing.assert_allclose(
        camera.project(larger.vertices), camera.project(BASE.vertices), atol=1e-3
    )


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_one_size_for_a_track(strength):
    """A filter, too, leaves the size: a mean of turned bodies would be smaller than each."""
    video = video_of(walk(30, scale=0.1))
    sizes = [body_size(frame.people[0].person) for frame in video]
    refined = refine(video, OfflineSmoothing("gaussian", strength))
    made = [body_size(frame.people[0].person) for frame in refined]
    assert np.ptp(sizes) > 0.1 * np.median(sizes)
    assert made == pytest.approx([np.median(sizes)] * 30, rel=1e-4)


@pytest.mark.parametrize("kind", ["gaussian", "savgol"])
def test_noise_is_taken_away(kind):
    truth = joints_of(video_of(walk(60)))
    noisy = video_of(walk(60, noise_m=0.01, scale=0.02))
    smooth = refine(noisy, OfflineSmoothing(kind, 0.5))
    before, after = (
        acceleration_error_mm(joints_of(video), truth, root=(11, 12)).mean()
        for video in (noisy, smooth)
    )
    assert after < 0.4 * before
    assert (
        jitter_m_s3(joints_of(smooth), RATE).mean()
        < 0.2 * jitter_m_s3(joints_of(noisy), RATE).mean()
    )
    assert (
        pa_mpjpe_mm(joints_of(smooth), truth).mean() < pa_mpjpe_mm(joints_of(noisy), truth).mean()
    )


def test_online_takes_noise_away():
    truth = joints_of(video_of(walk(60)))
    noisy = video_of(walk(60, noise_m=0.01, scale=0.02))
    refiner = OnlineRefiner(0.5)
    smooth = [refiner.refine(frame) for frame in noisy]
    before, after = (
        acceleration_error_mm(joints_of(video), truth, root=(11, 12)).mean()
        for video in (noisy, smooth)
    )
    assert after < 0.5 * before
    assert (
        pa_mpjpe_mm(joints_of(smooth), truth).mean() < pa_mpjpe_mm(joints_of(noisy), truth).mean()
    )


def test_steady_walk_is_left_alone():
    """A straight walk at an even speed is not held back, not even at its ends."""
    people = [moved(np.array([0.02 * t, 0.0, 1.0])) for t in range(40)]
    for kind in ("gaussian", "savgol"):
        smooth = refine(video_of(people), OfflineSmoothing(kind, 1.0))
        error = (joints_of(smooth) - joints_of(video_of(people))).norm(dim=-1).max()
        assert error < 2e-3  # log depth and directions are not quite linear in time


@pytest.mark.parametrize("kind", ["gaussian", "savgol"])
@pytest.mark.parametrize("missing", [(), (20, 21, 22, 50, 51, 52, 53)])
def test_blocks_do_not_show(kind, missing):
    video = video_of(walk(90, noise_m=0.01, scale=0.02), missing)
    whole = refine(video, OfflineSmoothing(kind, 0.6), block=1000)
    parts = refine(video, OfflineSmoothing(kind, 0.6), block=7)
    torch.testing.assert_close(joints_of(parts), joints_of(whole), atol=1e-6, rtol=0)


def test_strength_zero_changes_nothing():
    video = video_of(walk(10, noise_m=0.01))
    sizes = {1: TrackSize()}
    made = list(refine_offline(video.__getitem__, 10, RATE, sizes, OfflineSmoothing("gaussian", 0)))
    torch.testing.assert_close(joints_of(made), joints_of(video), atol=1e-6, rtol=0)
    online = OnlineSmoothing(0.0)
    state = state_of(BASE)
    assert online(state, 0.04) is state


def test_short_gaps_are_filled_and_long_ones_stay():
    people = [moved(np.array([0.02 * t, 0.0, 1.0])) for t in range(60)]
    missing = (10, 11, 12, *range(25, 45))
    made = refine(video_of(people, missing), OfflineSmoothing("none", 0.5))
    there = [bool(frame.people) for frame in made]
    assert there == [index not in range(25, 45) for index in range(60)]
    assert [made[i].people[0].seen for i in (9, 10, 12, 13)] == [True, False, False, True]
    np.testing.assert_allclose(made[11].people[0].person.joints, people[11].joints, atol=1e-3)


def test_runs():
    assert runs_without_long_gaps([1, 2, 5, 9], 2) == [[1, 2, 5], [9]]
    assert runs_without_long_gaps([], 2) == []


def test_somebody_of_a_moment_is_left_out():
    video = video_of(walk(20), missing=range(2, 20))
    assert all(not frame.people for frame in refine(video, OfflineSmoothing()))
    assert [len(f.people) for f in refine(video[:2], OfflineSmoothing())] == [1, 1]


def test_one_euro_by_hand():
    filter_ = OneEuro(cutoff=1.0, speed_gain=0.5, speed_cutoff=1.0)
    dt = 0.1
    a = 1 / (1 + 1 / (2 * np.pi * 1.0 * dt))
    assert filter_(np.array([0.0]), 0.0) == 0
    speed = a * (2.0 / dt)
    b = 1 / (1 + 1 / (2 * np.pi * (1.0 + 0.5 * speed) * dt))
    assert filter_(np.array([2.0]), dt) == pytest.approx(b * 2.0)


def test_parameters_follow_the_mesh():
    """Rotations stay rotations, the shape is one for the track, and the origin moves along."""
    rng = np.random.default_rng(0)
    people = []
    for t, person in enumerate(walk(30)):
        turn = 0.1 * t + rng.normal(0, 0.05)
        cos, sin = np.cos(turn), np.sin(turn)
        rotation = np.array([[[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]], np.float32)
        shape = np.array([1.0, -2.0], np.float32) + rng.normal(0, 0.1, 2).astype(np.float32)
        where = person.vertices.mean(0)
        fitted = BodyParameters("fake", rotation, shape, where, 3.0)
        people.append(replace(person, parameters=fitted))
    for made in (
        refine(video_of(people, missing=(9,)), OfflineSmoothing("gaussian", 0.7)),
        [OnlineRefiner(0.0).refine(frame) for frame in video_of(people)],
    ):
        for frame in made:
            person = frame.people[0].person
            found = person.parameters.rotations[0]
            np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-5)
            middle = person.vertices.mean(0)
            np.testing.assert_allclose(person.parameters.translation_m, middle, atol=1e-3)
    smooth = refine(video_of(people), OfflineSmoothing("gaussian", 0.7))
    shapes = np.stack([frame.people[0].person.parameters.shape for frame in smooth])
    assert np.ptp(shapes, axis=0).max() == 0
    assert shapes[0] == pytest.approx([1, -2], abs=0.1)
    turns = [np.arctan2(*f.people[0].person.parameters.rotations[0][0, [2, 0]]) for f in smooth]
    assert np.diff(np.unwrap(turns)).std() < 0.02


def test_hands_keep_their_owner():
    """However the tracks are numbered, a hand names the place of its person in the frame."""
    hand = replace(fake_people("hand")[0], owner=1)
    other = moved(np.array([0.3, 0.0, 1.0]))
    people = (TrackedPerson(5, other), TrackedPerson(2, BASE), TrackedPerson(1, hand))
    video = [VideoFrame(i, i / RATE, (300, 200), people) for i in range(8)]
    for frame in refine(video, OfflineSmoothing("gaussian", 0.3)):
        assert [found.track for found in frame.people] == [2, 5, 1]
        assert frame.people[2].person.owner == 0
        assert frame.owners() == {1: 2}


def test_people_without_depth():
    flat = replace(BASE, joints=np.zeros((0, 3), np.float32), vertices=np.zeros((0, 3), np.float32))
    people = [replace(flat, joints_px=flat.joints_px + t) for t in range(8)]
    made = refine(video_of(people, missing=(4,)), OfflineSmoothing("gaussian", 0.5))
    assert not made[4].people[0].person.has_depth
    np.testing.assert_allclose(made[4].people[0].person.joints_px, flat.joints_px + 4, atol=1e-3)
    assert OnlineRefiner().refine(made[0]).people[0].person.joints.shape == (0, 3)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_strength_out_of_range(strength):
    with pytest.raises(InputError, match="0 to 1"):
        OfflineSmoothing("gaussian", strength)
    with pytest.raises(InputError, match="0 to 1"):
        OnlineSmoothing(strength)


def test_unknown_filter():
    with pytest.raises(InputError, match="gaussian"):
        OfflineSmoothing("median")


def test_stack():
    state = stack_states([state_of(BASE)] * 3)
    assert len(state) == 3
    assert state.at(2).local.shape == (1, len(BASE.joints) + len(BASE.vertices), 3)
