"""Test-time augmentation against the official fusion and a loop that keeps everything."""

import numpy as np
import pytest
import torch

from kinemesh.data.freihand import FreiHandDataset
from kinemesh.evaluation.tta import TTA_SETTINGS, TtaFusion, TtaSetting, views
from tests.mesh_training_data import write_hand_data
from tests.no_waiting import NoWaiting


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _slow_aligned(source, target):
    """One sample by the published formulas, double precision."""
    x, y = source - source.mean(axis=0), target - target.mean(axis=0)
    u, s, vt = np.linalg.svd(y.T @ x)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    return (s * signs).sum() / (x**2).sum() * x @ (u * signs @ vt).T + target.mean(axis=0)


def test_settings_are_the_official_ones(shared):
    golden = np.load(shared / "parity" / "metro" / "golden" / "tta_fusion.npz")
    assert [setting.name for setting in TTA_SETTINGS] == golden["settings"].tolist()


def test_settings():
    assert len(TTA_SETTINGS) == len(set(TTA_SETTINGS)) == 95
    assert TtaSetting(0.0, 1.0) in TTA_SETTINGS
    setting = TtaSetting(-30.0, 0.7)
    assert setting.name == "sc07_rot-30"
    assert (setting.view.rotation_deg, setting.view.scale) == (-30.0, 0.7)
    assert not setting.view.flip


def test_fusion_equals_slow_twin():
    base = torch.randn(3, 21, 3)
    predictions = [base + 0.1 * torch.randn(3, 21, 3) for _ in range(95)]
    reference = predictions[57]
    fusion = TtaFusion(reference)
    with NoWaiting():
        for points in predictions:
            fusion.add(points)
    for i in range(3):
        target = reference[i].double().numpy()
        aligned = [_slow_aligned(points[i].double().numpy(), target) for points in predictions]
        expected = (target + sum(aligned)) / 96
        np.testing.assert_allclose(fusion.result()[i].numpy(), expected, atol=1e-6)


def test_fusion_forgets_turns_sizes_and_places():
    reference = torch.randn(2, 21, 3)
    angle = torch.tensor(0.8)
    c, s = angle.cos(), angle.sin()
    turn = torch.stack([c, -s, s * 0, s, c, s * 0, s * 0, s * 0, s * 0 + 1]).reshape(3, 3)
    fusion = TtaFusion(reference)
    fusion.add(1.3 * reference @ turn.T + 4)
    torch.testing.assert_close(fusion.result(), reference, rtol=0, atol=1e-5)


def test_fusion_does_not_mirror():
    """Unlike the benchmark's scores: a mirrored prediction must not be turned inside out."""
    reference = torch.randn(1, 21, 3)
    fusion = TtaFusion(reference)
    fusion.add(reference * torch.tensor([-1.0, 1.0, 1.0]))
    assert (fusion.result() - reference).abs().max() > 0.05


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_views_are_the_crops_of_the_settings(tmp_path, workers):
    _, folder = write_hand_data(tmp_path)
    dataset = FreiHandDataset(folder, cache=tmp_path / "cache")
    settings = TTA_SETTINGS[::20]
    batches = [[0, 3], [5]]
    found = list(views(dataset, settings, batches, workers))
    assert len(found) == len(settings) * len(batches)
    expected = [
        torch.stack([dataset.with_view(setting.view)[row]["image"] for row in batch])
        for batch in batches
        for setting in settings
    ]
    for image, wanted in zip(found, expected, strict=True):
        assert torch.equal(image, wanted)
