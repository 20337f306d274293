import math

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.geometry.rotations import axis_angle_to_matrix
from tests.tolerances import TOL


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _slow(source, target, weights, scale, reflection):
    """One sample in numpy, straight from the normal equations."""
    w = weights / weights.sum()
    mean_s, mean_t = w @ source, w @ target
    s, t = source - mean_s, target - mean_t
    k = sum(wi * np.outer(si, ti) for wi, si, ti in zip(w, s, t, strict=True))
    u, _, vt = np.linalg.svd(k)
    z = np.eye(3)
    if not reflection:
        z[2, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = vt.T @ z @ u.T
    factor = np.trace(rotation @ k) / sum(w * (s**2).sum(axis=1)) if scale else 1.0
    return factor, rotation, mean_t - factor * rotation @ mean_s


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("reflection", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_equals_slow_twin(scale, reflection, weighted, mirror):
    source = torch.randn(6, 14, 3, dtype=torch.float64)
    target = source * torch.tensor([mirror, 1.0, 1.0]) + 0.3 * torch.randn_like(source)
    weights = torch.rand(6, 14, dtype=torch.float64) if weighted else None
    fit = procrustes_align(source, target, weights, scale=scale, reflection=reflection)
    for i in range(6):
        w = np.ones(14) if weights is None else weights[i].numpy()
        expected = _slow(source[i].numpy(), target[i].numpy(), w, scale, reflection)
        for found, value in zip((fit.scale, fit.rotation, fit.translation), expected, strict=True):
            np.testing.assert_allclose(found[i].numpy(), value, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recovers_a_similarity(dtype):
    source = torch.randn(5, 21, 3, dtype=dtype)
    rotation = axis_angle_to_matrix(torch.randn(5, 3, dtype=dtype))
    target = 1.7 * source @ rotation.mT + torch.tensor([3.0, -1.0, 0.5], dtype=dtype)
    fit = procrustes_align(source, target)
    torch.testing.assert_close(fit.rotation, rotation, **TOL[dtype])
    torch.testing.assert_close(fit.scale, torch.full((5,), 1.7, dtype=dtype), **TOL[dtype])
    torch.testing.assert_close(fit.apply(source), target, **TOL[dtype])


def test_no_small_change_does_better():
    source, target = torch.randn(1, 9, 3).double(), torch.randn(1, 9, 3).double()
    weights = torch.rand(1, 9).double()
    fit = procrustes_align(source, target, weights)

    def error(turn, grow, shift):
        points = (1 + grow) * fit.apply(source) @ axis_angle_to_matrix(turn).mT + shift
        return (weights * (points - target).square().sum(-1)).sum()

    best = error(torch.zeros(3).double(), 0.0, 0.0)
    for _ in range(50):
        step = 1e-3 * torch.randn(7).double()
        assert error(step[:3], step[3], step[4:]) >= best


def test_weights_ignore_outliers_and_their_size():
    source = torch.randn(2, 8, 3)
    target = source + 1
    target[:, 0] = 1e5
    weights = torch.ones(2, 8)
    weights[:, 0] = 0
    fit = procrustes_align(source, target, weights)
    torch.testing.assert_close(fit.apply(source)[:, 1:], target[:, 1:], rtol=1e-4, atol=1e-4)
    again = procrustes_align(source, target, weights * 1e-6)
    torch.testing.assert_close(again.rotation, fit.rotation, rtol=1e-4, atol=1e-4)


def test_mirrored_points_need_a_reflection():
    source = torch.randn(1, 10, 3)
    target = source * torch.tensor([-1.0, 1, 1])
    proper = procrustes_align(source, target)
    assert torch.det(proper.rotation).item() == pytest.approx(1, abs=1e-5)
    mirrored = procrustes_align(source, target, reflection=True)
    assert torch.det(mirrored.rotation).item() == pytest.approx(-1, abs=1e-5)
    torch.testing.assert_close(mirrored.apply(source), target, rtol=1e-4, atol=1e-5)


def _is_finite_rotation(fit):
    eye = torch.eye(3).expand_as(fit.rotation)
    torch.testing.assert_close(fit.rotation @ fit.rotation.mT, eye, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.det(fit.rotation), torch.ones(len(eye)), rtol=1e-4, atol=1e-4)
    return bool(fit.scale.isfinite().all() and fit.translation.isfinite().all())


@pytest.mark.parametrize("offset", [0.0, 0.1, 1000.3])
def test_source_in_one_point(offset):
    source, target = torch.full((1, 7, 3), offset), torch.randn(1, 7, 3)
    fit = procrustes_align(source, target)
    assert _is_finite_rotation(fit)
    assert fit.scale.item() == 1
    assert torch.equal(fit.rotation[0], torch.eye(3))
    moved = fit.apply(source).mean(dim=1)
    torch.testing.assert_close(moved, target.mean(dim=1), rtol=1e-3, atol=1e-3)


def test_target_in_one_point():
    fit = procrustes_align(torch.randn(1, 7, 3), torch.full((1, 7, 3), 0.3))
    assert _is_finite_rotation(fit)
    assert fit.scale.item() == 0
    torch.testing.assert_close(fit.translation, torch.full((1, 3), 0.3))
    rigid = procrustes_align(torch.randn(1, 7, 3), torch.full((1, 7, 3), 0.3), scale=False)
    assert rigid.scale.item() == 1


def test_zero_weights_give_the_identity():
    source = torch.randn(1, 5, 3)
    fit = procrustes_align(source, torch.randn(1, 5, 3), torch.zeros(1, 5))
    assert torch.equal(fit.apply(source), source)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_points(count):
    source, target = torch.randn(4, count, 3), torch.randn(4, count, 3)
    fit = procrustes_align(source, target)
    assert _is_finite_rotation(fit)
    if count < 3:
        torch.testing.assert_close(fit.apply(source), target, rtol=1e-4, atol=1e-4)


def test_collinear_points():
    line = torch.linspace(-1, 1, 9)[None, :, None]
    source, target = line * torch.tensor([1.0, 0, 0]), line * torch.tensor([0, 2.0, 0]) + 5
    fit = procrustes_align(source, target)
    assert _is_finite_rotation(fit)
    torch.testing.assert_close(fit.apply(source), target, rtol=1e-4, atol=1e-4)


def test_degenerate_samples_leave_the_others_alone():
    source, target = torch.randn(3, 6, 3), torch.randn(3, 6, 3)
    alone = procrustes_align(source[1:2], target[1:2])
    source[0], target[2] = 0, 0
    fit = procrustes_align(source, target)
    torch.testing.assert_close(fit.rotation[1:2], alone.rotation)


def test_gradient():
    source = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 6, dtype=torch.float64) + 0.1

    def aligned(s, t):
        return procrustes_align(s, t, weights).apply(s)

    assert torch.autograd.gradcheck(aligned, (source, target), atol=1e-5)


def test_refuses_bad_input():
    good = torch.randn(2, 5, 3)
    with pytest.raises(InputError, match="source"):
        procrustes_align(good[0], good[0])
    with pytest.raises(InputError, match="source"):
        procrustes_align(good[:, :0], good[:, :0])
    with pytest.raises(InputError, match="target"):
        procrustes_align(good, good[:, :4])
    with pytest.raises(InputError, match=r"target.*NaN"):
        procrustes_align(good, good * math.nan)
    with pytest.raises(InputError, match="weights"):
        procrustes_align(good, good, torch.ones(5))
    with pytest.raises(InputError, match="negative"):
        procrustes_align(good, good, -torch.ones(2, 5))
