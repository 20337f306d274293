import dataclasses
import importlib.util
import math

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.metrics import (
    MetricReport,
    keypoint_error_px,
    mesh_reports,
    mpjpe_mm,
    mpvpe_mm,
    pa_mpjpe_mm,
    pa_mpvpe_mm,
    pck,
    pck_auc,
    point_distances,
)
from kinemesh.skeletons import COCO17, H36M14, H36M17, HAND21, joint_map


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


@pytest.fixture(scope="module")
def draw(shared):
    """The reference data's rule for tensors drawn from a name."""
    spec = importlib.util.spec_from_file_location("seeded", shared / "parity" / "seeded.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda name, *shape: torch.from_numpy(module.draw(name, shape))


def test_official_metro_metrics(shared, draw):
    golden = np.load(shared / "parity" / "metro" / "golden" / "metrics.npz")
    prediction = draw("m_pred", 5, 14, 3) * 0.3
    target = prediction + 0.3 * (draw("m_gt", 5, 14, 4) * 0.3)[..., :3]
    has = torch.tensor([1, 1, 0, 1, 0], dtype=torch.bool)
    close = {"rtol": 1e-4, "atol": 1e-3}  # the golden is float32 metres
    hips = H36M14.root_indices()
    rooted = mpjpe_mm(prediction, target, hips)[has]
    np.testing.assert_allclose(rooted.numpy(), golden["mpjpe"] * 1000, **close)
    aligned = pa_mpjpe_mm(prediction, target)
    np.testing.assert_allclose(aligned.numpy(), golden["pampjpe"] * 1000, **close)
    mirrored = pa_mpjpe_mm(prediction, target * torch.tensor([-1.0, 1, 1]))
    np.testing.assert_allclose(mirrored.numpy(), golden["pampjpe_mirrored_gt"] * 1000, **close)
    moved = procrustes_align(prediction, target).apply(prediction)
    np.testing.assert_allclose(moved.numpy(), golden["pa_aligned"], atol=2e-6)


def test_official_metro_vertex_metrics(shared, draw):
    golden = np.load(shared / "parity" / "metro" / "golden" / "metrics.npz")
    prediction = draw("m_predv", 5, 6890, 3) * 0.3
    target = prediction + draw("m_gtv", 5, 6890, 3) * 0.03
    has = torch.tensor([1, 1, 0, 1, 0], dtype=torch.bool)
    close = {"rtol": 1e-4, "atol": 1e-3}
    np.testing.assert_allclose(mpvpe_mm(prediction, target)[has], golden["mpve"] * 1000, **close)
    np.testing.assert_allclose(pa_mpvpe_mm(prediction, target), golden["pampve"] * 1000, **close)


def test_official_metro_validation(shared, draw):
    """Regressor, joint choice, pelvis and hip roots, and the masks, as one loop."""
    golden = np.load(shared / "parity" / "metro" / "golden" / "metrics.npz")
    regressor = torch.from_numpy(
        np.load(shared / "data" / "official_assets" / "J_regressor_h36m_correct.npy")
    ).float()
    to_14, from_24 = list(joint_map(H36M17, H36M14)), [*range(13), 18]
    rows = []
    for i in range(1, 8):
        target = draw(f"val_gtv_{i}", 1, 6890, 3) * 0.3
        prediction = target + draw(f"val_noise_{i}", 1, 6890, 3) * 0.05 + 0.2
        own, true = (regressor @ v for v in (prediction, target))
        joints, true_joints = own[:, to_14], draw(f"val_gtj_{i}", 1, 24, 4)[..., :3] * 0.3
        rows.append(
            (
                i % 4 != 0,
                i % 3 != 0,
                mpvpe_mm(prediction, target, own[:, :1], true[:, :1]),
                mpjpe_mm(joints, true_joints[:, from_24], H36M14.root_indices()),
                pa_mpjpe_mm(joints, true_joints[:, from_24]),
            )
        )
    meshes = torch.tensor([r[0] for r in rows])
    joints = torch.tensor([r[1] for r in rows])
    mpve, mpjpe, pa = (torch.cat([r[k] for r in rows]) / 1000 for k in (2, 3, 4))
    expected = golden["validate_mpve_mpjpe_pampjpe_count"]
    assert mpve[meshes].mean().item() == pytest.approx(expected[0], rel=1e-4)
    assert mpjpe[joints].mean().item() == pytest.approx(expected[1], rel=1e-4)
    # the official loop averages PA over all of a batch, then weighs batches by their has_3d
    batches = ((0, 4), (4, 7))
    weighted = sum(pa[a:b].mean() * joints[a:b].sum() for a, b in batches) / joints.sum()
    assert weighted.item() == pytest.approx(expected[2], rel=1e-4)


def test_official_freihand_scores(shared, draw):
    golden = np.load(shared / "parity" / "metro" / "golden" / "freihand_scores.npz")
    angle = 0.7
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    for name, count, key in (("xyz", 21, "kp"), ("verts", 778, "mesh")):
        target = draw(f"fh_{name}", 4, count, 3) * 0.04
        noisy = target + draw(f"fh_{name}_noise", 4, count, 3) * 0.006
        prediction = noisy @ turn.T * 1.1 + 0.3
        error = pa_mpjpe_mm(prediction, target, reflection=True).mean().item() / 10
        assert error == pytest.approx(golden[f"{key}_aligned"][0], rel=1e-4)
        moved = procrustes_align(prediction, target, reflection=True).apply(prediction)
        distances = point_distances(moved, target) * 1000
        area = pck_auc(distances, torch.linspace(0, 50, 100)).item()
        assert area == pytest.approx(golden[f"{key}_aligned"][1], abs=2e-4)
