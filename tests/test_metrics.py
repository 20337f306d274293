import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.metrics import (
    MetricReport,
    area_under,
    best_aligned,
    f_scores,
    f_scores_of,
    keypoint_error_px,
    mesh_reports,
    mpjpe_mm,
    mpvpe_mm,
    nearest_distances,
    pa_mpjpe_mm,
    pa_mpvpe_mm,
    pck,
    pck_auc,
    pck_of_samples,
    point_distances,
)
from kinemesh.skeletons import COCO17, HAND21
from tests.no_waiting import NoWaiting
from tests.parity import metrics as parity_metrics


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _slow_mpjpe(prediction, target, root, valid):
    errors = []
    for sample, truth, counts in zip(prediction, target, valid, strict=True):
        origin, true_origin = sample[root].mean(axis=0), truth[root].mean(axis=0)
        distances = [
            math.dist(p - origin, t - true_origin)
            for p, t, ok in zip(sample, truth, counts, strict=True)
            if ok
        ]
        errors.append(1000 * sum(distances) / len(distances))
    return errors


def test_mpjpe_equals_slow_twin():
    prediction, target = torch.randn(5, 14, 3), torch.randn(5, 14, 3)
    valid = torch.rand(5, 14) > 0.3
    fast = mpjpe_mm(prediction, target, (2, 3), valid)
    slow = _slow_mpjpe(prediction.numpy(), target.numpy(), [2, 3], valid.numpy())
    np.testing.assert_allclose(fast.numpy(), slow, rtol=1e-5)


def test_mpjpe_in_place_and_empty():
    target = torch.randn(2, 4, 3)
    shifted = target + torch.tensor([0.003, 0.0, 0.004])
    torch.testing.assert_close(mpjpe_mm(shifted, target), torch.full((2,), 5.0), rtol=1e-3, atol=0)
    assert mpjpe_mm(shifted, target, (0,)).max() < 1e-3
    assert mpjpe_mm(shifted, target, valid=torch.zeros(2, 4)).isnan().all()


def test_pa_mpjpe_equals_slow_twin():
    prediction, target = torch.randn(4, 14, 3), torch.randn(4, 14, 3)
    fast = pa_mpjpe_mm(prediction, target)
    for i in range(4):
        s, t = prediction[i].double().numpy(), target[i].double().numpy()
        s, t = s - s.mean(axis=0), t - t.mean(axis=0)
        u, d, vt = np.linalg.svd(s.T @ t)
        sign = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
        aligned = (d * sign).sum() / (s**2).sum() * s @ (u * sign) @ vt
        slow = 1000 * np.mean([math.dist(a, b) for a, b in zip(aligned, t, strict=True)])
        assert fast[i].item() == pytest.approx(slow, rel=1e-4)


def test_pa_ignores_invalid_joints_even_nan():
    target = torch.randn(2, 10, 3)
    prediction = 3 * target + 1
    prediction[:, 0], target[:, 1] = math.nan, math.inf
    valid = torch.ones(2, 10)
    valid[:, :2] = 0
    assert pa_mpjpe_mm(prediction, target, valid).max() < 0.01


def test_pa_is_not_touched_by_autocast():
    prediction, target = torch.randn(3, 21, 3), torch.randn(3, 21, 3)
    expected = pa_mpjpe_mm(prediction, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(pa_mpjpe_mm(prediction, target), expected)


def test_vertex_errors():
    target = torch.randn(2, 50, 3)
    moved = target + 0.001
    origin = torch.zeros(2, 1, 3)
    torch.testing.assert_close(
        mpvpe_mm(moved, target), torch.full((2,), math.sqrt(3)), rtol=1e-3, atol=0
    )
    assert mpvpe_mm(moved, target, origin + 0.001, origin).max() < 1e-3
    assert pa_mpvpe_mm(2 * moved, target).max() < 1e-2


def test_keypoint_error():
    target = torch.zeros(1, 3, 2)
    prediction = torch.tensor([[[3.0, 4.0], [6.0, 8.0], [99.0, 0.0]]])
    valid = torch.tensor([[1, 1, 0]])
    assert keypoint_error_px(prediction, target, valid).item() == pytest.approx(7.5)


def test_pck_and_auc():
    distances = torch.tensor([[1.0, 2.0], [3.0, 40.0]])
    thresholds = torch.tensor([0.0, 1.0, 2.5, 3.0])
    torch.testing.assert_close(pck(distances, thresholds), torch.tensor([0.0, 0.25, 0.5, 0.75]))
    valid = torch.tensor([[1, 1], [1, 0]])
    torch.testing.assert_close(
        pck(distances, thresholds, valid), torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])
    )
    # trapezoids by hand: 0.125 + 0.5625 + 0.3125
    assert pck_auc(distances, thresholds).item() == pytest.approx(1.0 / 3)
    assert pck_auc(torch.zeros(2, 2), torch.linspace(0, 50, 100)).item() == pytest.approx(1)


def test_report_prints_its_protocol():
    report = MetricReport.from_values(
        "PA-MPJPE",
        torch.tensor([10.0, 20.0, 99.0]),
        joint_set="hand21",
        root="none",
        alignment="similarity",
        has=torch.tensor([1, 1, 0]),
        dataset="synthetic-hand/val",
    )
    assert str(report) == (
        "PA-MPJPE 15.00 mm on synthetic-hand/val "
        "(hand21, root: none, alignment: similarity, 2 samples)"
    )
    assert report.to_dict()["sample_count"] == 2
    assert MetricReport(**report.to_dict()) == report
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.value = 1.0


def test_report_of_nothing_is_nan():
    report = MetricReport.from_values(
        "MPJPE", torch.zeros(0), joint_set="hand21", root="wrist", alignment="none"
    )
    assert math.isnan(report.value)
    assert "0 samples" in str(report)


@pytest.mark.parametrize(
    ("skeleton", "root"), [(HAND21, "wrist"), (COCO17, "left_hip and right_hip")]
)
def test_mesh_reports(skeleton, root):
    joints, vertices = torch.randn(3, len(skeleton), 3), torch.randn(3, 40, 3)
    reports = mesh_reports(
        1.1 * joints + 1, joints, 1.1 * vertices + 1, vertices, skeleton, "mesh", "data"
    )
    assert [r.metric for r in reports] == ["MPJPE", "PA-MPJPE", "MPVPE", "PA-MPVPE"]
    assert [r.root for r in reports] == [root, "none", root, "none"]
    assert [r.joint_set for r in reports] == [skeleton.name] * 2 + ["mesh"] * 2
    index = list(skeleton.root_indices())
    origin = joints[:, index].mean(dim=1, keepdim=True)
    for report, points in ((reports[0], joints), (reports[2], vertices)):
        expected = 100 * (points - origin).norm(dim=-1).mean().item()
        assert report.value == pytest.approx(expected, rel=1e-4)
    assert reports[1].value < 0.01
    assert reports[3].value < 0.01


def test_refuses_different_shapes():
    with pytest.raises(InputError, match="same shape"):
        point_distances(torch.zeros(1, 3, 3), torch.zeros(1, 4, 3))


def _slow_pa_mpjpe(prediction, target, reflection=False):
    """One sample, straight from the formulas, in the type of the input."""
    s, t = prediction - prediction.mean(dim=0), target - target.mean(dim=0)
    u, d, vt = torch.linalg.svd(t.T @ s)
    signs = torch.ones(3, dtype=d.dtype)
    if not reflection:
        signs[2] = torch.det(u @ vt).sign()
    scale = (d * signs).sum() / s.square().sum()
    return 1000 * (scale * s @ (u * signs @ vt).T - t).norm(dim=1).mean()


@pytest.mark.parametrize("reflection", [False, True])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_pa_mpjpe_and_its_gradient_equal_slow_twin(reflection, mirror):
    prediction = torch.randn(6, 14, 3) * 0.3
    target = (prediction + 0.05 * torch.randn(6, 14, 3)) * torch.tensor([mirror, 1.0, 1.0])
    fast = prediction.clone().requires_grad_()
    values = pa_mpjpe_mm(fast, target, reflection=reflection)
    values.sum().backward()
    slow = prediction.double().requires_grad_()
    expected = torch.stack(
        [_slow_pa_mpjpe(p, t, reflection) for p, t in zip(slow, target.double(), strict=True)]
    )
    expected.sum().backward()
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=1e-3, atol=1e-2)


def test_mpjpe_gradient_equals_slow_twin():
    prediction, target = torch.randn(3, 14, 3), torch.randn(3, 14, 3)
    fast, slow = prediction.clone().requires_grad_(), prediction.double().requires_grad_()
    mpjpe_mm(fast, target, (2, 3)).sum().backward()
    rooted = slow - slow[:, 2:4].mean(dim=1, keepdim=True)
    true = target.double() - target.double()[:, 2:4].mean(dim=1, keepdim=True)
    (1000 * (rooted - true).norm(dim=-1).mean(dim=1)).sum().backward()
    torch.testing.assert_close(fast.grad.double(), slow.grad, rtol=1e-4, atol=1e-3)


def test_pa_of_collinear_planar_and_single_points():
    line = torch.linspace(-1, 1, 14)[:, None]
    collinear = line * torch.tensor([0.1, 0.2, 0.3])
    planar = torch.randn(14, 3) * torch.tensor([1.0, 1.0, 0.0])
    point = torch.full((14, 3), 0.7)
    prediction = torch.stack([collinear, planar, point, torch.randn(14, 3)])
    target = torch.stack(
        [line * torch.tensor([0.0, 0.0, 2.0]), planar[:, [2, 0, 1]] * 3, point + 1, point]
    )
    errors = pa_mpjpe_mm(prediction, target)
    assert errors.isfinite().all()
    assert errors.max() < 1e-3


def test_nan_stays_in_its_sample():
    prediction, target = torch.randn(3, 14, 3), torch.randn(3, 14, 3)
    clean = pa_mpjpe_mm(prediction, target)
    prediction[1, 4, 0] = math.nan
    found = pa_mpjpe_mm(prediction, target)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert found[1].isnan()


def test_alignment_far_from_the_origin():
    """A camera frame, where hands are ten times farther away than they are large."""
    target = 0.05 * torch.randn(4, 21, 3)
    prediction = target + 0.005 * torch.randn(4, 21, 3)
    near = pa_mpjpe_mm(prediction, target)
    far = pa_mpjpe_mm(prediction + torch.tensor([0.3, -0.2, 5.0]), target)
    torch.testing.assert_close(far, near, rtol=0, atol=2e-3)


def _slow_f_score(prediction, target, threshold):
    precision = sum(min(math.dist(p, t) for t in target) < threshold for p in prediction)
    recall = sum(min(math.dist(p, t) for p in prediction) < threshold for t in target)
    precision, recall = precision / len(prediction), recall / len(target)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("pairs_at_once", [1, 3000, 1 << 24])
def test_f_scores_equal_slow_twin(pairs_at_once):
    target = torch.rand(4, 40, 3, dtype=torch.float64) * 0.1
    prediction = target[:, :30] + 0.004 * torch.randn(4, 30, 3, dtype=torch.float64)
    prediction[3] += 10  # nothing is near
    thresholds = torch.tensor([0.005, 0.015])
    nearest = nearest_distances(prediction, target, pairs_at_once)
    fast = f_scores_of(*nearest, thresholds)
    assert torch.equal(fast, f_scores(prediction, target, thresholds))
    slow = [
        [_slow_f_score(p.tolist(), t.tolist(), limit) for limit in (0.005, 0.015)]
        for p, t in zip(prediction, target, strict=True)
    ]
    torch.testing.assert_close(fast, torch.tensor(slow), rtol=1e-6, atol=1e-6)
    assert torch.equal(fast[3], torch.zeros(2))


def test_pck_of_samples_equals_slow_twin():
    distances = torch.rand(5, 21) * 50
    distances[0, 0], distances[1, 1] = 50.0, 0.0  # a threshold itself is within
    thresholds = torch.linspace(0, 50, 11)
    valid = (torch.rand(5, 21) > 0.3).float()
    fast = pck_of_samples(distances, thresholds, valid)
    for i in range(5):
        kept = [d for d, v in zip(distances[i].tolist(), valid[i].tolist(), strict=True) if v]
        slow = [sum(d <= limit for d in kept) / len(kept) for limit in thresholds.tolist()]
        assert fast[i].tolist() == pytest.approx(slow)
        area = sum((a + b) / 2 for a, b in itertools.pairwise(slow)) / 10
        assert area_under(fast[i], thresholds).item() == pytest.approx(area, rel=1e-5)


def test_nan_is_within_no_threshold():
    curve = pck_of_samples(torch.tensor([[math.nan, 1.0]]), torch.tensor([0.0, 2.0]))
    assert curve.tolist() == [[0.0, 0.5]]


def test_nothing_waits_for_the_device():
    joints, target, vertices = torch.randn(3, 14, 3), torch.randn(3, 14, 3), torch.randn(3, 99, 3)
    valid, limits = torch.ones(3, 14), torch.linspace(0, 1, 5)
    with NoWaiting():
        mpjpe_mm(joints, target, (2, 3), valid)
        pa_mpjpe_mm(joints, target, valid, reflection=True)
        pa_mpvpe_mm(vertices, vertices + 0.1)
        f_scores(vertices, vertices, limits)
        pck(point_distances(joints, target), limits, valid)


def test_scores_of_the_official_code(shared):
    """Every golden of metrics, validation, fusion and benchmark."""
    for comparison in parity_metrics.compare(shared / "parity" / "metro" / "golden"):
        comparison.assert_passed()
        assert comparison.absolute < 1e-5


def test_alignment_to_a_mirrored_target_is_unique_and_official(shared):
    """A mirror image aligns to one rotation alone: the middle singular value exceeds the last."""
    golden = np.load(shared / "parity" / "metro" / "golden" / "metrics.npz")
    prediction = parity_metrics.draw("m_pred", (5, 14, 3), "", 0.3)
    noise = parity_metrics.draw("m_gt", (5, 14, 4), "", 0.3)[..., :3]
    target = (prediction + 0.3 * noise) * torch.tensor([-1.0, 1.0, 1.0])
    s, t = (points - points.mean(dim=1, keepdim=True) for points in (prediction, target))
    k = (t.mT @ s).double()
    assert torch.det(k).max() < 0
    values = torch.linalg.svdvals(k)
    assert (values[:, 1] - values[:, 2]).min() > 0.1
    aligned, _ = best_aligned(prediction, target)
    np.testing.assert_allclose(aligned.numpy(), golden["pa_aligned_mirrored"], rtol=0, atol=1e-6)
