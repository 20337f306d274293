"""Protocols against per-sample loops, and how they print themselves."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemesh.bodies.assets import load_topology
from kinemesh.bodies.official_assets import smpl_topology
from kinemesh.errors import InputError
from kinemesh.protocols import (
    FREIHAND,
    HUMAN36M_P2,
    PROTOCOLS,
    THREEDPW,
    Known,
    Points,
    get_protocol,
    human36m_p2_rows,
    overall,
    overall_official,
    own_protocol,
    without_root,
)
from kinemesh.skeletons import COCO17, H36M14, METRO24
from tests.body_fixtures import write_smpl_assets
from tests.no_waiting import NoWaiting

MPVPE, MPJPE, PA_MPJPE = HUMAN36M_P2.scores


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def smpl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smpl")
    write_smpl_assets(folder, vertices=60)
    return smpl_topology(folder)


def _known(has_3d, has_mesh):
    return Known(torch.tensor(has_3d).float(), torch.tensor(has_mesh).float())


def test_body_scores_equal_slow_twin(smpl):
    """One sample after the other: regress, root at the pelvis, then at the hips, align."""
    own, true = torch.randn(4, 60, 3), torch.randn(4, 60, 3)
    labels = torch.randn(4, 24, 3)
    target = HUMAN36M_P2.points_of_mesh(true, smpl)
    target = target._replace(joints=HUMAN36M_P2.joints_of(labels, METRO24))
    found = HUMAN36M_P2.measure(HUMAN36M_P2.points_of_mesh(own, smpl), target)
    regressor = torch.zeros(17, 60)
    regressor.scatter_add_(1, smpl.regressor_index, smpl.regressor_weight)
    matrix = regressor.double().numpy()
    to_14 = [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]
    from_24 = [*range(13), 18]
    for i in range(4):
        mesh, true_mesh = own[i].double().numpy(), true[i].double().numpy()
        j17, true_j17 = matrix @ mesh, matrix @ true_mesh
        mesh, true_mesh = mesh - j17[0], true_mesh - true_j17[0]
        joints = j17[to_14] - j17[0]
        true_joints = labels[i].double().numpy()[from_24] - labels[i].double().numpy()[14]
        mpvpe = 1000 * np.mean(np.linalg.norm(mesh - true_mesh, axis=1))
        hips, true_hips = joints[2:4].mean(axis=0), true_joints[2:4].mean(axis=0)
        mpjpe = 1000 * np.mean(np.linalg.norm(joints - hips - true_joints + true_hips, axis=1))
        x, y = joints - joints.mean(axis=0), true_joints - true_joints.mean(axis=0)
        u, s, vt = np.linalg.svd(y.T @ x)
        signs = np.array([1, 1, np.sign(np.linalg.det(u @ vt))])
        moved = (s * signs).sum() / (x**2).sum() * x @ (u * signs @ vt).T
        pa = 1000 * np.mean(np.linalg.norm(moved - y, axis=1))
        for name, value in (("MPVPE", mpvpe), ("MPJPE", mpjpe), ("PA-MPJPE", pa)):
            assert found[name][i].item() == pytest.approx(value, rel=1e-4)


def test_nothing_waits_for_the_device(smpl):
    own, true = torch.randn(2, 60, 3), torch.randn(2, 60, 3)
    hand = Points(torch.randn(2, 21, 3), own, torch.zeros(2, 1, 3))
    with NoWaiting():
        points = [HUMAN36M_P2.points_of_mesh(mesh, smpl) for mesh in (own, true)]
        HUMAN36M_P2.measure(*points)
        FREIHAND.measure(hand, hand)


def test_a_perfect_prediction_scores_zero(smpl):
    points = HUMAN36M_P2.points_of_mesh(torch.randn(3, 60, 3), smpl)
    for values in HUMAN36M_P2.measure(points, points).values():
        assert values.max() < 1e-3
    joints = 0.1 * torch.randn(3, 21, 3)
    hand = Points(joints, 0.1 * torch.randn(3, 50, 3), joints[:, :1])
    columns = FREIHAND.measure(hand, hand)
    known = _known([1, 1, 1], [1, 1, 1])
    for score in FREIHAND.scores:
        value, count = overall(score, columns[score.metric], known)
        assert count == 3
        # rounding alone keeps aligned points from being within the first threshold, 0 mm
        perfect = {"error": 0.0, "auc": 1 - 0.5 / 99, "f": 1.0}[score.kind]
        assert value == pytest.approx(perfect, abs=1e-3 if score.kind == "error" else 0.0051)


def test_only_the_benchmark_s_alignment_may_mirror():
    """A left hand is no answer to a right one, but FreiHAND's official scores take it."""
    hand = 0.1 * torch.randn(2, 21, 3)
    left = Points(hand * torch.tensor([-1.0, 1.0, 1.0]))
    mirrored = FREIHAND.measure(left, Points(hand))["PA-MPJPE"]
    assert mirrored.max() < 1e-2
    proper = own_protocol(load_topology("anny-hand")).measure(left, Points(hand))["PA-MPJPE"]
    assert proper.min() > 1


def test_vertices_are_left_out_without_a_mesh():
    joints = torch.randn(2, 14, 3)
    assert set(HUMAN36M_P2.measure(Points(joints), Points(joints))) == {"MPJPE", "PA-MPJPE"}


def test_roots():
    """Moving one side changes only what is compared where it lies."""
    joints = torch.randn(2, 21, 3)
    hand = Points(joints, torch.randn(2, 30, 3), joints[:, :1])
    moved = Points(*(points + 1.0 for points in hand))
    rooted = FREIHAND.measure(moved, hand)
    assert max(rooted["MPJPE"].max(), rooted["MPVPE"].max()) < 1e-2
    raw = without_root(FREIHAND).measure(moved, hand)
    assert raw["MPJPE"].tolist() == pytest.approx([1000 * math.sqrt(3)] * 2)
    assert raw["PA-MPJPE"].max() < 1e-2


def test_samples_that_count():
    values = torch.tensor([10.0, 20.0, 60.0])
    known = _known([1, 1, 0], [0, 0, 1])
    assert overall(MPJPE, values, known) == (15.0, 2)
    assert overall(MPVPE, values, known) == (60.0, 1)
    assert overall(PA_MPJPE, values, known) == (30.0, 3)
    value, count = overall(MPJPE, values, _known([0, 0, 0], [1, 1, 1]))
    assert math.isnan(value)
    assert count == 0


def _slow_official(values, counts, weighs, batch_size, processes):
    """As a loop over processes and batches, with sums as the official meters keep them."""
    dealt = list(range(len(values)))
    while len(dealt) % processes:
        dealt.append(dealt[len(dealt) - len(values)])
    means = []
    for rank in range(processes):
        rows = dealt[rank::processes]
        total, weight = 0.0, 0
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            kept = [values[i] for i in batch if counts[i]]
            mean = sum(kept) / len(kept) if kept else 0.0
            n = sum(weighs[i] for i in batch)
            total, weight = total + mean * n, weight + n
        means.append(total / weight)
    return sum(means) / processes


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("score", HUMAN36M_P2.scores, ids=lambda s: s.metric)
def test_official_averaging_equals_slow_twin(score, batch_size, processes):
    values = torch.rand(25) * 100
    has_3d, has_mesh = ((torch.rand(25) > 0.4).int().tolist() for _ in range(2))
    flags = {"has_3d": has_3d, "has_mesh": has_mesh, "all": [1] * 25}
    counts, weighs = flags[score.samples], flags[score.official_weight or score.samples]
    found, count = overall_official(score, values, _known(has_3d, has_mesh), batch_size, processes)
    expected = _slow_official(values.tolist(), counts, weighs, batch_size, processes)
    assert found == pytest.approx(expected, rel=1e-6)
    assert count == sum(counts)


def test_official_and_exact_mean_differ_only_where_said():
    values, has_3d = torch.tensor([10.0, 20, 30, 90]), [1, 1, 1, 0]
    known = _known(has_3d, [1, 1, 1, 1])
    for score in (MPVPE, MPJPE):
        exact = overall(score, values, known)[0]
        assert overall_official(score, values, known, 2)[0] == pytest.approx(exact)
    assert overall(PA_MPJPE, values, known)[0] == 37.5
    # batches (15, 60) weigh 2 and 1
    assert overall_official(PA_MPJPE, values, known, 2)[0] == pytest.approx(30.0)
    everywhere = _known([1, 1, 1, 1], [1, 1, 1, 1])
    assert overall_official(PA_MPJPE, values, everywhere, 3)[0] == pytest.approx(37.5)


def test_area_is_that_of_the_mean_curve():
    curves = torch.zeros(2, 100)
    curves[0, 50:] = 1.0
    (score,) = (s for s in FREIHAND.scores if s.metric == "AUC of joints")
    value, _ = overall(score, curves, _known([1, 1], [1, 1]))
    assert value == pytest.approx(0.5 * (49 + 0.5) / 99)


def test_protocol_2_of_human36m():
    keys = [
        "S9_Directions_1.60457274_000001.jpg",  # belongs
        "images/S11_WalkTogether 1.60457274_000006.jpg",  # belongs
        "S9_Directions_1.60457274_000002.jpg",  # another frame
        "S9_Directions_1.54138969_000001.jpg",  # another camera
        "S1_Directions_1.60457274_000001.jpg",  # a training subject
        "S9_Photo.60457274_000011",  # belongs
        "something else.jpg",
    ]
    assert human36m_p2_rows(keys) == [0, 1, 5]
    assert human36m_p2_rows(["3dpw_test1", "courtyard/image_00001.jpg"]) is None
    # keys of a composite set begin with the name of a file, whatever that begins with
    for prefix in ("valid.hw.tsv_", "S1_all.60457274_valid.hw.tsv_"):
        assert human36m_p2_rows([prefix + key for key in keys]) == [0, 1, 5]


def test_own_protocol(smpl):
    assert own_protocol(smpl).scores == HUMAN36M_P2.scores
    assert own_protocol(smpl).keep == "all"
    body = own_protocol(load_topology("anny-body"))
    assert body.joint_set == COCO17
    assert [score.metric for score in body.scores] == ["MPJPE", "PA-MPJPE", "MPVPE", "PA-MPVPE"]


def test_names(smpl):
    assert get_protocol("3dpw", smpl) is THREEDPW
    assert get_protocol("own", smpl).name == "own"
    with pytest.raises(InputError, match=r"no protocol 'h36m'.*human36m-p2, 3dpw, freihand, own"):
        get_protocol("h36m", smpl)
    assert {name: protocol.name for name, protocol in PROTOCOLS.items()} == {
        name: name for name in PROTOCOLS
    }


def test_joints_that_are_missing_are_named():
    with pytest.raises(InputError, match=r"'coco17' has no neck, head"):
        HUMAN36M_P2.joints_of(torch.zeros(1, 17, 3), COCO17)


def test_a_score_prints_its_protocol(smpl):
    report = THREEDPW.report(MPVPE, 88.28, 35515, smpl, "3dpw/test.yaml")
    assert str(report) == (
        "MPVPE 88.28 mm on 3dpw/test.yaml (smpl, root: pelvis, alignment: none, "
        "samples: has_mesh, averaging: mean over samples, 35515 samples)"
    )
    report = HUMAN36M_P2.report(PA_MPJPE, 36.75, 9, smpl, "valid.yaml", "official, batches of 30")
    assert str(report) == (
        "PA-MPJPE 36.75 mm on valid.yaml (h36m14 from J_regressor_h36m_correct on the predicted "
        "mesh, root: none, alignment: similarity, samples: all, averaging: official, batches of "
        "30, 9 samples)"
    )
    report = HUMAN36M_P2.report(MPJPE, 54.04, 9, smpl, "valid.yaml")
    assert "root: left_hip and right_hip" in str(report)
    (score,) = (s for s in FREIHAND.scores if s.metric == "PA-F@5")
    assert str(FREIHAND.report(score, 0.7214, 3960, "mano", "")) == (
        "PA-F@5 0.7214 (mano, root: none, alignment: similarity, may mirror, samples: has_mesh, "
        "averaging: mean over samples, 3960 samples)"
    )


def test_every_score_of_a_protocol_has_its_own_name():
    for protocol in PROTOCOLS.values():
        names = [score.metric for score in protocol.scores]
        assert len(set(names)) == len(names)
        twice = replace(protocol, scores=protocol.scores * 2)
        assert len(twice.measure(*[_points(protocol)] * 2)) == len(names)


def _points(protocol):
    return Points(
        torch.randn(1, len(protocol.joint_set), 3), torch.randn(1, 9, 3), torch.zeros(1, 1, 3)
    )


def test_body_joint_set():
    assert THREEDPW.joint_set == HUMAN36M_P2.joint_set == H36M14
