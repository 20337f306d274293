"""Scores of motion against hand-made motions whose scores are known."""

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.motion_metrics import (
    acceleration_error_mm,
    identity_switches,
    jitter_m_s3,
    match_frames,
)


def parabola(acceleration, frames=6):
    """Two joints with a constant acceleration along x, in metres a squared frame."""
    t = torch.arange(frames, dtype=torch.float64)
    x = acceleration * t**2 / 2
    return torch.stack([x, torch.zeros_like(x), torch.ones_like(x)], -1)[:, None].repeat(1, 2, 1)


def test_acceleration_error():
    errors = acceleration_error_mm(parabola(0.003), parabola(0.001))
    assert errors.tolist() == pytest.approx([2.0] * 4)
    assert acceleration_error_mm(parabola(0.003), parabola(0.003)).max() == 0
    with pytest.raises(InputError):
        acceleration_error_mm(parabola(1), parabola(1, 5))


def test_root_takes_common_motion_away():
    moving = parabola(0.5)
    assert acceleration_error_mm(moving, parabola(0.0), root=(0, 1)).max() < 1e-9


def test_only_frames_that_count():
    prediction = parabola(0.0)
    prediction[1] += 5.0
    valid = torch.tensor([True, False, True, True, True, True])
    errors = acceleration_error_mm(prediction, parabola(0.0), valid=valid)
    assert errors.tolist() == [0.0, 0.0]
    assert acceleration_error_mm(prediction[:2], prediction[:2]).shape == (0,)


def test_jitter():
    t = torch.arange(8, dtype=torch.float64)
    points = torch.stack([t**3 / 6, 0 * t, 0 * t], -1)[:, None]
    assert jitter_m_s3(points, 1.0).tolist() == pytest.approx([1.0] * 5)
    assert jitter_m_s3(points, 2.0).tolist() == pytest.approx([8.0] * 5)


def test_matches_and_switches():
    frames = match_frames(
        [
            {(1, 7): 0.9, (1, 8): 0.6, (2, 8): 0.8},
            {(1, 8): 0.3, (2, 8): 0.7},
            {(1, 8): 0.9, (2, 7): 0.9},
            {},
            {(1, 7): 0.9, (2, 8): 0.9},
        ]
    )
    assert frames == [{1: 7, 2: 8}, {2: 8}, {1: 8, 2: 7}, {}, {1: 7, 2: 8}]
    assert identity_switches(frames) == 4
    assert identity_switches(frames[:2]) == 0
