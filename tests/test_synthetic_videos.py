"""Rendered videos: the truth fits the pictures, people cross, and the same seed gives the same."""

import numpy as np
import pytest

from kinemesh.data.synthetic.motions import read_amc, read_asf
from kinemesh.data.synthetic.videos import SyntheticVideo, detections_of
from kinemesh.errors import InputError


@pytest.fixture(scope="module")
def video():
    return SyntheticVideo(3, frames=30, size=(64, 48), people=2, frame_rate=15.0)


def test_truth_fits_the_picture(video):
    frame = video[15]
    assert frame.picture.shape == (48, 64, 3)
    assert frame.time_s == 1.0
    assert frame.joints.shape == (2, 17, 3)
    np.testing.assert_allclose(frame.joints_px, video.project(frame.joints), atol=1e-4)
    for box, joints in zip(frame.boxes_px, frame.joints_px, strict=True):
        inside = (joints > box[:2] - 1) & (joints < box[:2] + box[2:] + 1)
        assert inside.all()
    # who is in front of the background changes the picture there, and nothing elsewhere
    changed = np.abs(frame.picture.astype(int) - video[0].picture).max(-1) > 60
    rows, columns = np.nonzero(changed)
    boxes = np.concatenate([frame.boxes_px, video[0].boxes_px])
    covered = [
        any(b[0] - 2 <= x <= b[0] + b[2] + 2 and b[1] - 2 <= y <= b[1] + b[3] + 2 for b in boxes)
        for x, y in zip(columns, rows, strict=True)
    ]
    assert len(covered) > 20
    assert np.mean(covered) > 0.98


def test_people_cross(video):
    x = np.stack([video._walkers[k].path[:, 0] for k in range(2)])
    assert x[0, 0] < x[1, 0]
    assert x[0, -1] > x[1, -1]


def test_motion_is_smooth(video):
    joints = np.stack(
        [[walker.placed(i, video._pitch)[2] for walker in video._walkers] for i in range(12)]
    )
    speed = np.linalg.norm(np.diff(joints, axis=0), axis=-1) * video.frame_rate
    change = np.linalg.norm(np.diff(joints, n=2, axis=0), axis=-1) * video.frame_rate
    assert 0.2 < speed.mean() < 3
    assert change.mean() < 0.5 * speed.mean()


def test_same_seed_same_video(video):
    again = SyntheticVideo(3, frames=30, size=(64, 48), people=2, frame_rate=15.0)
    np.testing.assert_array_equal(again[4].picture, video[4].picture)
    other = SyntheticVideo(4, frames=6, size=(64, 48), people=2, frame_rate=15.0)
    assert not np.array_equal(other[4].picture, video[4].picture)


def test_captured_motion(shared):
    folder = shared / "data" / "cmu_mocap" / "asfamc" / "walk"
    motion = read_amc(folder / "walk_03.amc", read_asf(folder / "walk.asf"))
    video = SyntheticVideo(1, 20, (64, 48), 1, 15.0, [motion], captured_rate=30.0)
    path = video._walkers[0].path
    assert 1.0 < np.linalg.norm(path[-1] - path[0]) < 3.0  # a walk of 1.3 s
    assert abs(path[-1, 1] - path[0, 1]) < 0.5 * abs(path[-1, 0] - path[0, 0])
    assert video[0].picture.shape == (48, 64, 3)


def test_detections(video):
    frame, rng = video[5], np.random.default_rng(0)
    exact = detections_of(frame, rng, noise=0.0, drop_outs=0.0)
    np.testing.assert_allclose(exact[:, :4], frame.boxes_px[frame.seen > 1 / 3])
    many = [detections_of(frame, rng, drop_outs=0.5) for _ in range(200)]
    assert np.mean([len(rows) for rows in many]) == pytest.approx(0.5 * len(exact), abs=0.2)
    assert len(detections_of(frame, rng, drop_outs=1.0, false_alarms=1.0)) == 1


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"frames": 0}, {"people": 0}, {"size": (8, 8)}])
def test_wrong_arguments(wrong):
    with pytest.raises(InputError, match="seed, frames"):
        SyntheticVideo(**({"seed": 1} | wrong))
    with pytest.raises(IndexError):
        SyntheticVideo(1, frames=1, size=(32, 32), people=1)[1]
