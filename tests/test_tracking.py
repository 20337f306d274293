"""Identities over time: noise, drop-outs, crossings, people found twice, and the Kalman filter."""

import numpy as np
import pytest

from kinemesh.inference.boxes import Box
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.inference.tracking import BoxFilter, Tracker, box_overlap, likeness, seen_box
from kinemesh.motion_metrics import identity_switches

CAMERA = PhotoCamera(500.0, (320.0, 240.0), (640, 480))
LAYOUT = np.random.default_rng(5).uniform(0.1, 0.9, (17, 2))
LAYOUT[:4] = [[0, 0], [1, 1], [0, 1], [1, 0]]


def person_at(x, y, width=60.0, height=160.0, *, layout=LAYOUT, side=None, score=0.9):
    """Somebody without a mesh whose joints fill a box."""
    joints = (np.array([x, y]) + layout * [width, height]).astype(np.float32)
    return Person(
        vertices=np.zeros((0, 3), np.float32),
        faces=np.zeros((0, 3), np.int64),
        joints=np.zeros((0, 3), np.float32),
        joints_px=joints,
        joint_confidence=np.ones(17, np.float32),
        skeleton="coco17",
        box_px=(x, y, width, height),
        side=side,
        score=score,
        camera=CAMERA,
    )


def follow(frames, dt=1 / 25):
    """Track numbers of frames, each a mapping from a true identity to a person or None."""
    tracker, matches = Tracker(), []
    for index, frame in enumerate(frames):
        there = {who: person for who, person in frame.items() if person is not None}
        numbers = tracker.update(list(there.values()), index * dt)
        matches.append({who: n for who, n in zip(there, numbers, strict=True) if n is not None})
    return matches


def crossing(seed, drop=0.1, noise=0.04, frames=80):
    """Two people who pass through each other and one who stands, with noise and drop-outs."""
    rng = np.random.default_rng(seed)
    poses = [LAYOUT, LAYOUT[::-1].copy(), LAYOUT[:, ::-1].copy()]
    for index in range(frames):
        places = [(40 + 5.5 * index, 150), (480 - 5.5 * index, 158), (300, 120)]
        frame = {}
        for who, ((x, y), layout) in enumerate(zip(places, poses, strict=True)):
            wobble = rng.normal(0, noise * 100, 4)
            found = person_at(
                x + wobble[0],
                y + wobble[1],
                60 + wobble[2],
                160 + wobble[3],
                layout=layout + rng.normal(0, 0.03, (17, 2)),
            )
            frame[who] = None if rng.random() < drop else found
        yield frame


@pytest.mark.parametrize("seed", range(6))
def test_crossing_with_noise_and_drop_outs(seed):
    matches = follow(crossing(seed))
    assert identity_switches(matches) == 0
    assert len({number for frame in matches for number in frame.values()}) == 3


def test_boxes_alone_would_not_be_enough():
    """The poses tell apart who stands in the same box."""
    frames = [{0: person_at(100, 100), 1: person_at(104, 100, layout=LAYOUT[::-1])}]
    frames += [{1: person_at(102, 100, layout=LAYOUT[::-1]), 0: person_at(102, 100)}]
    first, second = follow(frames)
    assert first == second


def test_lost_and_found_within_two_seconds():
    there = [{0: person_at(100 + 3 * i, 100)} for i in range(20)]
    away = [{0: None}] * 15
    back = [{0: person_at(100 + 3 * i, 100)} for i in range(35, 45)]
    matches = follow(there + away + back)
    assert {n for frame in matches for n in frame.values()} == {1}
    late = follow(there + [{0: None}] * 60 + back)
    assert {n for frame in late for n in frame.values()} == {1, 2}


def test_somebody_found_twice_is_one():
    frames = [{0: person_at(100, 100)}, {0: person_at(101, 100), 1: person_at(103, 101, score=0.8)}]
    assert follow(frames)[1] == {0: 1}


def test_doubtful_people_begin_no_track_but_keep_one():
    tracker = Tracker()
    assert tracker.update([person_at(100, 100, score=0.01)], 0.0) == [None]
    assert tracker.update([person_at(100, 100)], 0.1) == [1]
    assert tracker.update([person_at(100, 100, score=0.01)], 0.2) == [1]


def test_hands_keep_their_side():
    tracker = Tracker()
    left, right = person_at(100, 100, side="left"), person_at(130, 100, side="right")
    assert tracker.update([left, right], 0.0) == [1, 2]
    assert tracker.update([right, left], 0.1) == [2, 1]
    assert tracker.update([person_at(100, 100, side="right")], 0.2) == [2]
    assert {box.side for box in tracker.expected_boxes(0.2)} == {"left", "right"}


def test_filter_learns_the_speed_and_grows_unsure():
    kalman = BoxFilter.of(Box(0, 0, 50, 100))
    for step in range(1, 40):
        kalman = kalman.predict(0.04).update(Box(4 * step, 0, 50, 100))
    later = kalman.predict(0.4)
    assert later.box.x == pytest.approx(4 * 39 + 40, abs=1.5)
    assert later.box.width == pytest.approx(50, rel=0.01)
    assert later.sigma > kalman.sigma
    for axis in kalman.covariance:
        assert np.linalg.eigvalsh(axis).min() > 0


def test_filter_is_that_of_the_matrices():
    """The four axes at once give what the equations of Kalman give for one after the other."""
    kalman = BoxFilter.of(Box(10, 20, 50, 100)).predict(0.04)
    measured = Box(14, 19, 52, 98)
    done = kalman.update(measured)
    value = [14 + 26, 19 + 49, np.log(52), np.log(98)]
    size = np.sqrt(50 * 100)
    for axis in range(4):
        H, P = np.array([[1.0, 0.0]]), kalman.covariance[axis]
        R = (BoxFilter.MEASURED * (size if axis < 2 else 1)) ** 2
        K = P @ H.T / (H @ P @ H.T + R)
        mean = kalman.mean[axis] + K[:, 0] * (value[axis] - kalman.mean[axis, 0])
        assert done.mean[axis] == pytest.approx(mean)
        np.testing.assert_allclose(done.covariance[axis], (np.eye(2) - K @ H) @ P, rtol=1e-9)


def test_overlap_and_likeness():
    assert box_overlap(Box(0, 0, 2, 2), Box(1, 0, 2, 2)) == pytest.approx(1 / 3)
    assert box_overlap(Box(0, 0, 2, 2), Box(5, 0, 2, 2)) == 0
    points = np.zeros((2, 2))
    moved = np.array([[0.0, 0.0], [3.0, 4.0]])
    expected = (1 + np.exp(-25 / 50)) / 2
    assert likeness(points, moved, 5.0, np.ones(2)) == pytest.approx(expected)
    assert likeness(points, moved, 5.0, np.array([1.0, 0.0])) == 1


def test_seen_box_has_a_margin_without_a_mesh():
    box = seen_box(person_at(100, 100, 60, 160))
    assert box.xywh == pytest.approx((94, 84, 72, 192), abs=1e-3)
