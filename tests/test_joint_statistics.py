"""Mean and spread of root-relative joints."""

import json

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.models.joint_statistics import JointStatistics


def test_published_constants(shared):
    published = json.loads((shared / "parity/potter/constants.json").read_text())
    record = JointStatistics.EGOEXO4D.record()
    assert record["mean_mm"] == published["joint_mean_mm"]
    assert record["std_mm"] == published["joint_std_mm"]


def test_the_way_back_is_the_same_and_the_wrist_stays_where_it_is():
    statistics = JointStatistics.EGOEXO4D
    outputs = torch.randn(4, 21, 3)
    joints_mm = statistics.denormalise(outputs)
    assert torch.equal(joints_mm[:, 0], torch.zeros(4, 3))
    again = statistics.normalise(joints_mm)
    assert torch.equal(again[:, 0], torch.zeros(4, 3))
    torch.testing.assert_close(again[:, 1:], outputs[:, 1:], atol=1e-5, rtol=1e-5)
    expected = torch.tensor([-3.950165 + 17.266953, -0.86685377, 24.517984])
    one = torch.zeros(21, 3)
    one[1, 0] = 1.0
    torch.testing.assert_close(statistics.denormalise(one)[1], expected)


def test_unlabelled_joints_stay_nan():
    joints = torch.zeros(1, 21, 3)
    joints[0, 4] = float("nan")
    out = JointStatistics.EGOEXO4D.normalise(joints)
    assert out[0, 4].isnan().all()
    assert out.isnan().sum() == 3


def test_numbers_made_in_inference_mode_serve_training():
    statistics = JointStatistics(((1.0, 2.0, 3.0),), ((4.0, 5.0, 6.0),))
    with torch.inference_mode():
        statistics.denormalise(torch.ones(1, 3))
    outputs = torch.ones(1, 3, requires_grad=True)
    statistics.denormalise(outputs).sum().backward()
    assert outputs.grad is not None
    assert torch.equal(outputs.grad, torch.tensor([[4.0, 5.0, 6.0]]))


def test_statistics_of_data_leave_out_what_is_not_seen():
    joints = torch.randn(50, 3, 3) * torch.tensor([2.0, 3.0, 4.0]) + 7
    joints[:, 0] = 0
    visible = torch.rand(50, 3) > 0.4
    found = JointStatistics.of(joints.masked_fill(~visible[..., None], float("nan")), visible)
    for joint in range(3):
        seen = joints[visible[:, joint], joint]
        torch.testing.assert_close(torch.tensor(found.mean_mm[joint]), seen.mean(0))
        torch.testing.assert_close(torch.tensor(found.std_mm[joint]), seen.std(0, correction=0))
    assert found.std_mm[0] == (0.0, 0.0, 0.0)
    assert JointStatistics.from_record(json.loads(json.dumps(found.record()))) == found
    assert len(found) == 3


def test_what_does_not_fit_is_refused():
    zeros = [[0.0, 0.0, 0.0]]
    with pytest.raises(InputError, match="statistics: expected finite numbers"):
        JointStatistics(zeros, [[1.0, -1.0, 0.0]])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="statistics: expected mean and std"):
        JointStatistics(zeros, zeros * 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="without \\['std_mm'\\]"):
        JointStatistics.from_record({"mean_mm": zeros})
    with pytest.raises(InputError, match=r"joints \[1\]; give more samples"):
        JointStatistics.of(torch.zeros(2, 2, 3), torch.tensor([[True, False]] * 2))
    with pytest.raises(InputError, match=r"expected \(N,J,3\)"):
        JointStatistics.of(torch.zeros(2, 2))
    with pytest.raises(InputError, match=r"visible: expected \(2, 2\)"):
        JointStatistics.of(torch.zeros(2, 2, 3), torch.zeros(2, dtype=torch.bool))
