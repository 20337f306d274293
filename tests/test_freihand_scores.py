"""The FreiHAND benchmark: scores against a per-sample loop, and the submission file."""

import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.evaluation.freihand import (
    SubmissionWriter,
    check_submission,
    read_points,
    read_submission,
    score_points,
    score_submission,
)
from kinemesh.evaluation.json_rows import json_rows

COUNT = 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def hands():
    """Joints and vertices of labels and of predictions, float32 metres in a camera frame."""
    rng, place = np.random.default_rng(0), np.array([0.02, 0.0, 0.7])
    joints = rng.normal(0, 0.04, (COUNT, 21, 3)) + place
    vertices = rng.normal(0, 0.04, (COUNT, 778, 3)) + place
    own_joints = 1.1 * (joints + rng.normal(0, 0.006, joints.shape))
    own_vertices = 1.1 * (vertices + rng.normal(0, 0.006, vertices.shape))
    own_joints[1] *= [-1.0, 1.0, 1.0]  # a mirrored hand, which the benchmark forgives
    own_vertices[1] *= [-1.0, 1.0, 1.0]
    return tuple(a.astype(np.float32) for a in (joints, vertices, own_joints, own_vertices))


def _slow_aligned(prediction, label):
    """The benchmark's alignment: Frobenius norms, then an orthogonal matrix, mirrored or not."""
    t1, t2 = label.mean(axis=0), prediction.mean(axis=0)
    a, b = label - t1, prediction - t2
    s1, s2 = np.linalg.norm(a) + 1e-8, np.linalg.norm(b) + 1e-8
    u, w, vt = np.linalg.svd((b / s2).T @ (a / s1))
    return (b / s2) @ (u @ vt) * w.sum() * s1 + t1


def _slow_scores(predictions, labels):
    """Mean error in mm, area under the curve, F-scores at 5 and 15 mm; one sample a time."""
    limits = np.linspace(0, 0.05, 100)
    distances, f = [], {0.005: [], 0.015: []}
    for prediction, label in zip(predictions, labels, strict=True):
        distances.append(np.linalg.norm(prediction - label, axis=1))
        pairs = np.linalg.norm(prediction[:, None] - label[None], axis=2)
        for limit, values in f.items():
            precision = np.mean(pairs.min(axis=1) < limit)
            recall = np.mean(pairs.min(axis=0) < limit)
            both = precision + recall
            values.append(2 * precision * recall / both if both else 0.0)
    distances = np.stack(distances)
    curve = np.array(
        [
            np.mean([np.mean(distances[:, j] <= limit) for j in range(distances.shape[1])])
            for limit in limits
        ]
    )
    area = np.sum((curve[1:] + curve[:-1]) / 2) / 99
    return 1000 * distances.mean(axis=0).mean(), area, np.mean(f[0.005]), np.mean(f[0.015])


@pytest.mark.parametrize("batch_size", [2, 64])
def test_scores_equal_slow_twin(hands, batch_size):
    joints, vertices, own_joints, own_vertices = hands
    _, reports = score_points(own_joints, own_vertices, joints, vertices, batch_size=batch_size)
    found = {report.metric: report.value for report in reports}
    for part, mean, own, true in (
        ("joints", "MPJPE", own_joints, joints),
        ("vertices", "MPVPE", own_vertices, vertices),
    ):
        label = true.astype(np.float64)
        plain = own.astype(np.float64)
        aligned = np.stack([_slow_aligned(p, t) for p, t in zip(plain, label, strict=True)])
        # rounding may move a point over a threshold
        one_point = 1 / (COUNT * len(label[0]))
        for prefix, points in (("", plain), ("PA-", aligned)):
            error, area, f5, f15 = _slow_scores(points, label)
            assert found[f"{prefix}{mean}"] == pytest.approx(error, abs=1e-3)
            assert found[f"{prefix}AUC of {part}"] == pytest.approx(area, abs=3 * one_point / 99)
            if part == "vertices":
                assert found[f"{prefix}F@5"] == pytest.approx(f5, abs=2 * one_point)
                assert found[f"{prefix}F@15"] == pytest.approx(f15, abs=2 * one_point)
    assert found["PA-MPJPE"] < 15
    assert found["MPJPE"] > 60


def _write(path, joints, vertices, batch=2, count=COUNT):
    with SubmissionWriter(path, count) as writer:
        for start in range(0, len(joints), batch):
            chunk = slice(start, start + batch)
            writer.add(torch.from_numpy(joints[chunk]), torch.from_numpy(vertices[chunk]))


def test_submission_is_what_the_benchmark_reads(tmp_path, hands):
    joints, vertices = hands[2:]
    path = tmp_path / "new folder" / "pred.zip"
    _write(path, joints, vertices)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["pred.json"]
        content = json.loads(archive.read("pred.json"))
    assert len(content) == 2
    for values, wanted in zip(content, (joints, vertices), strict=True):
        assert np.array_equal(np.asarray(values, np.float32), wanted)
    found = read_submission(path)
    assert np.array_equal(found[0], joints)
    assert np.array_equal(found[1], vertices)
    assert [entry.name for entry in path.parent.iterdir()] == ["pred.zip"]


def test_reads_a_submission_of_the_official_writer(tmp_path, hands):
    """Plain json of nested lists of doubles."""
    joints, vertices = hands[2:]
    path = tmp_path / "pred.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pred.json", json.dumps([joints.tolist(), vertices.tolist()]))
    assert np.array_equal(read_submission(path)[1], vertices)
    check_submission(path, COUNT)


def test_scores_of_a_file(tmp_path, hands):
    joints, vertices, own_joints, own_vertices = hands
    _write(tmp_path / "pred.zip", own_joints, own_vertices)
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(joints.tolist()))
    (tmp_path / "evaluation_verts.json").write_text(json.dumps(vertices.tolist()))
    protocol, reports = score_submission(tmp_path / "pred.zip", tmp_path)
    assert reports == score_points(own_joints, own_vertices, joints, vertices)[1]
    assert protocol.name == "freihand"
    assert {report.root for report in reports} == {"none"}
    assert {report.sample_count for report in reports} == {COUNT}
    (tmp_path / "evaluation_xyz.json").write_text(json.dumps(joints[:3].tolist()))
    with pytest.raises(InputError, match=r"holds 5 samples.* labels 3"):
        score_submission(tmp_path / "pred.zip", tmp_path)
    (tmp_path / "evaluation_xyz.json").unlink()
    with pytest.raises(InputError, match="no file"):
        score_submission(tmp_path / "pred.zip", tmp_path)


def test_another_count_is_refused_and_leaves_nothing(tmp_path, hands):
    path = tmp_path / "pred.zip"
    with pytest.raises(InputError, match=r"expected 3960 samples.*found 5"):
        _write(path, *hands[2:], count=3960)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_the_old_file(tmp_path, hands):
    path = tmp_path / "pred.zip"
    path.write_bytes(b"old")

    def interrupted():
        with SubmissionWriter(path, COUNT) as writer:
            writer.add(torch.from_numpy(hands[2][:2]), torch.from_numpy(hands[3][:2]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_bad_predictions_are_refused(tmp_path, hands):
    joints, vertices = (torch.from_numpy(points) for points in hands[2:])
    with pytest.raises(InputError, match=r"ends in \.zip"):
        SubmissionWriter(tmp_path / "pred.json")
    with SubmissionWriter(tmp_path / "pred.zip", COUNT) as writer:
        writer.add(joints[:1], vertices[:1])
        with pytest.raises(InputError, match="MANO's mesh"):
            writer.add(joints, vertices[:, :700])
        with pytest.raises(InputError, match="5 samples of joints, 4 of vertices"):
            writer.add(joints, vertices[:4])
        vertices[3, 0, 0] = torch.nan
        with pytest.raises(InputError, match="sample 3 holds NaN"):
            writer.add(joints[1:], vertices[1:])
        writer.add(joints[1:], torch.nan_to_num(vertices[1:]))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "damaged or cut short"),
        (lambda text: text.replace("0.", "NaN, 0.", 1), "3 finite numbers"),
        (lambda text: text[:-1] + ", [1]]", "two lists, found more"),
        (lambda text: text + "]", "expected nested JSON lists"),
        (lambda text: "{" + text, "expected nested JSON lists"),
        (lambda text: "[" + text[text.index("], [") + 3 :], "found"),
    ],
    ids=["cut", "NaN", "third list", "goes on", "object", "vertices only"],
)
def test_damaged_submissions_are_named(tmp_path, hands, damage, message):
    joints, vertices = hands[2:]
    text = damage(json.dumps([joints.tolist(), vertices.tolist()]))
    path = tmp_path / "pred.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pred.json", text)
    with pytest.raises(InputError, match=message):
        check_submission(path, COUNT)


def test_other_files_are_named(tmp_path):
    path = tmp_path / "pred.zip"
    with pytest.raises(InputError, match="expected a zip"):
        read_submission(path)
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="expected a zip"):
        read_submission(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("result.json", "[]")
    with pytest.raises(InputError, match=r"pred\.json.*result\.json"):
        read_submission(path)
    (tmp_path / "evaluation_xyz.json").write_text("[[[1, 2]]]")
    with pytest.raises(InputError, match="21 points"):
        read_points(tmp_path / "evaluation_xyz.json", 21)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1000])
def test_rows_do_not_depend_on_where_chunks_end(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("kinemesh.evaluation.json_rows.CHUNK", chunk)
    content = [[[1.5, -20], [3e-7]], [], [[[4]], 12345]]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content, indent=1))
    with path.open("rb") as file:
        found = list(json_rows(file, 2, "rows"))
    assert found == [((0,), [1.5, -20]), ((0,), [3e-7]), ((2,), [[4]]), ((2,), 12345)]
    with path.open("rb") as file:
        assert [value for _, value in json_rows(file, 1, "rows")] == content


@pytest.mark.slow
def test_memory_does_not_grow_with_the_samples(tmp_path):
    """20 MB of text; only a chunk of it is held at a time."""
    joints, vertices = torch.rand(20, 21, 3), torch.rand(20, 778, 3)
    tracemalloc.start()
    with SubmissionWriter(tmp_path / "pred.zip", count=600) as writer:
        for _ in range(30):
            writer.add(joints, vertices)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    with zipfile.ZipFile(tmp_path / "pred.zip") as archive:
        assert archive.getinfo("pred.json").file_size > 15e6
    assert peak < 10e6
