"""Reports of evaluations: what is kept, what is drawn, what is refused."""

import base64
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.errors import InputError, MissingExtraError
from kinemesh.evaluation import EvaluationOptions
from kinemesh.evaluation.by_name import evaluate_model
from kinemesh.evaluation.classification import ClassificationResult, ClassSamples
from kinemesh.evaluation.keypoint_readout import KeypointPerson
from kinemesh.evaluation.keypoint_samples import LabelledPerson, coco_samples
from kinemesh.evaluation.samples import JointSamples
from kinemesh.keypoint_protocols import COCO_KEYPOINTS, KeypointResult
from kinemesh.protocols import PROTOCOLS, Points
from kinemesh.reporting import (
    ClassSummary,
    SampleSummary,
    check_report_folder,
    find_log,
    read_curves,
    report,
    write_report,
)
from kinemesh.reporting.ranking import Ranking
from kinemesh.skeletons import COCO17, HAND21
from tests.test_pose2d import write_coco


def hands(errors_BJ, compared_BJ=None, first=0, shown=None):
    """Samples with given errors; the picture of a sample is filled with its row."""
    errors_BJ = torch.as_tensor(errors_BJ, dtype=torch.float32)
    count = len(errors_BJ)
    compared = torch.ones_like(errors_BJ) > 0 if compared_BJ is None else compared_BJ
    target = torch.randn(count, 21, 3, generator=torch.Generator().manual_seed(first)) / 10

    def picture(row):
        if shown is not None:
            shown.append(first + row)
        return np.full((8, 8, 3), (first + row) % 256, dtype=np.uint8)

    return JointSamples(
        skeleton=HAND21,
        keys=[f"row {first + row}" for row in range(count)],
        errors={"MPJPE": errors_BJ, "PA-MPJPE": errors_BJ / 2},
        compared=compared,
        unit="mm",
        predicted=target + 0.01,
        target=target,
        picture=picture,
    )


# What is kept ----------------------------------------------------------------------------------


def test_ranking_equals_sorting_everything():
    errors = np.random.default_rng(0).permutation(200) / 7
    ranking = Ranking(examples=2, ranked=5)
    for number, error in enumerate(errors):
        ranking.consider(float(error), lambda number=number: number)
    order = np.argsort(errors).tolist()
    assert ranking.first == [0, 1]
    assert ranking.best == order[:5]
    assert ranking.worst == order[::-1][:5]
    assert ranking.count == 200


def test_means_are_those_of_all_batches_at_once():
    errors = np.random.default_rng(1).uniform(1, 50, (40, 21)).astype(np.float32)
    compared = torch.from_numpy(np.random.default_rng(2).uniform(size=(40, 21)) < 0.7)
    compared[:, 4] = False
    summary = SampleSummary()
    for start in range(0, 40, 16):
        rows = slice(start, start + 16)
        summary(hands(errors[rows], compared[rows], first=start))
    means = summary.joint_means()
    expected = np.where(compared, errors, 0).sum(0) / compared.numpy().sum(0).clip(1)
    expected[4] = np.nan
    np.testing.assert_allclose(means["MPJPE"], expected, rtol=1e-5)
    np.testing.assert_allclose(means["PA-MPJPE"], expected / 2, rtol=1e-5)
    per_sample = np.where(compared, errors, 0).sum(1) / compared.numpy().sum(1)
    worst = summary.ranking.worst[0]
    assert worst.key == f"row {per_sample.argmax()}"
    assert worst.errors["MPJPE"] == pytest.approx(per_sample.max(), rel=1e-5)
    assert summary.ranking.best[0].key == f"row {per_sample.argmin()}"
    assert (worst.picture == per_sample.argmax()).all()


def test_memory_and_pictures_stay_few():
    shown = []
    summary = SampleSummary(examples=3, ranked=4)
    rng = np.random.default_rng(3)
    for start in range(0, 2000, 50):
        summary(hands(rng.uniform(0, 9, (50, 21)), first=start, shown=shown))
    ranking = summary.ranking
    assert (len(ranking.first), len(ranking.worst), len(ranking.best)) == (3, 4, 4)
    assert ranking.count == 2000
    assert len(shown) < 120  # about 4 ln(2000 / 4) at each end


def test_nan_is_the_worst_and_unlabelled_samples_do_not_count():
    errors = np.full((3, 21), 5.0)
    errors[1, 7] = np.nan
    compared = torch.ones(3, 21) > 0
    compared[2] = False
    summary = SampleSummary()
    summary(hands(errors, compared))
    assert summary.ranking.worst[0].key == "row 1"
    assert (summary.ranking.count, summary.unlabelled) == (2, 1)
    assert np.isnan(summary.joint_means()["MPJPE"][7])
    assert summary.joint_means()["MPJPE"][6] == 5.0


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"compared: expected one row for each of 2 samples"):
        hands(np.ones((2, 21)), torch.ones(2, 20) > 0)


@pytest.mark.parametrize("protocol", [None, "own"])
def test_bars_agree_with_the_scores(protocol):
    summary = SampleSummary()
    options = EvaluationOptions(batch_size=3, count=4)
    result = evaluate_model("hand", "synthetic-hand", protocol, options, listener=summary)
    rows = result.scores if protocol is None else result.reports
    scores = {row.metric: row.value for row in rows}
    assert summary.ranking.count == 4
    for name, means in summary.joint_means().items():
        assert means.mean() == pytest.approx(scores[name], rel=1e-5)
    assert set(summary.joint_means()) == {"MPJPE", "PA-MPJPE"}
    assert summary.ranking.first[0].key == "row 0"
    assert summary.ranking.first[0].picture.shape == (128, 128, 3)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_errors_of_joints_have_the_mean_that_a_protocol_reports(name):
    protocol = PROTOCOLS[name]
    generator = torch.Generator().manual_seed(0)
    own, true = (
        Points(torch.randn(3, len(protocol.joint_set), 3, generator=generator)) for _ in range(2)
    )
    means = protocol.measure(own, true)
    errors = protocol.joint_errors_mm(own, true)
    assert errors
    for score, values in errors.items():
        torch.testing.assert_close(values.mean(dim=1), means[score])


# People of COCO --------------------------------------------------------------------------------


def test_a_persons_part_of_the_image_shows_its_joints(tmp_path):
    image = np.zeros((90, 120, 3), dtype=np.uint8)
    joints = np.array([[30.0, 40.0], [70.0, 60.0]])
    for x, y in joints.astype(int):
        image[y - 1 : y + 2, x - 1 : x + 2] = 255
    cv2.imwrite(str(tmp_path / "a.png"), image)
    person = LabelledPerson(
        "a", tmp_path / "a.png", joints, np.ones(2) > 0, 50.0, np.array([55.0, 45.0]), 100.0
    )
    bright = person.cut()[..., 0].astype(float)
    for (x, y), half in zip(person.to_picture(joints), (True, False), strict=True):
        columns = np.arange(256) + 0.5
        part = bright.copy()
        part[:, (columns < 128) != half] = 0
        total = part.sum()
        assert (part.sum(0) * columns).sum() / total == pytest.approx(x, abs=0.2)
        assert (part.sum(1) * columns).sum() / total == pytest.approx(y, abs=0.2)


def test_labelled_people_meet_their_nearest_prediction(tmp_path):
    _, joints, _ = write_coco(tmp_path)
    file = CocoKeypoints(tmp_path).file
    moved = joints[::-1] + np.array([6.0, 8.0])  # ten pixels off, in the other order
    people = [KeypointPerson(7, points, np.ones(17), np.zeros(2), np.ones(2)) for points in moved]
    samples = coco_samples(people, file, [7])
    assert samples is not None
    size = np.sqrt(96 * 120 * 0.6)
    np.testing.assert_allclose(samples.errors["distance"], 100 * 10 / size, rtol=1e-4)
    assert samples.skeleton is COCO17
    assert samples.picture(0).shape == (256, 256, 3)
    assert coco_samples(people, file, []) is None


# Curves ----------------------------------------------------------------------------------------


def write_log(path, damaged=None):
    rows = [
        {"event": "train", "step": step, "losses": {"total": 9 / step, "joints": 1 / step}}
        for step in range(1, 40)
    ]
    rows.append({"event": "validation", "step": 39, "metrics": {"pa_mpjpe_mm": 7.0, "loss": 0.3}})
    rows.append({"event": "validation", "step": 40, "metrics": {"pa_mpjpe_mm": None, "loss": 0.2}})
    lines = [json.dumps(row) for row in rows]
    if damaged is not None:
        lines.insert(damaged, '{"event": "tra')
    path.write_text("\n".join(lines))
    return path


def test_curves_are_read_and_a_half_written_row_is_left_out(tmp_path):
    curves = read_curves(write_log(tmp_path / "log.jsonl", damaged=41))
    assert curves.losses["total"].steps == list(range(1, 40))
    assert curves.losses["total"].values[2] == 3.0
    assert curves.metrics["pa_mpjpe_mm"].values == [7.0]
    assert list(curves.validation_losses) == ["loss"]
    assert list(curves.scores) == ["pa_mpjpe_mm"]


def test_something_else_than_a_log_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"line 6: expected a row of a training log"):
        read_curves(write_log(tmp_path / "log.jsonl", damaged=5))
    with pytest.raises(InputError, match="cannot be read as the log"):
        read_curves(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="no row of training"):
        read_curves(tmp_path / "empty.jsonl")


def test_the_log_is_found_beside_the_weights(tmp_path):
    weights = tmp_path / "run" / "best" / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.touch()
    assert find_log(weights) is None
    write_log(tmp_path / "run" / "log.jsonl")
    assert find_log(weights) == tmp_path / "run" / "log.jsonl"
    assert find_log("hand") is None


# The page --------------------------------------------------------------------------------------

RESULT = ClassificationResult(
    "<model>", "data", {"top-1": 50.0, "top-5": 100.0, "loss": 0.5}, 4, 5, "as it is"
)


def heard(count=6):
    summary = SampleSummary()
    summary(hands(np.random.default_rng(5).uniform(1, 9, (count, 21))))
    return summary


def test_a_report_is_one_page_with_its_figures(tmp_path):
    pytest.importorskip("matplotlib")
    curves = read_curves(write_log(tmp_path / "log.jsonl"))
    folder = tmp_path / "report"
    write_report(folder, "<a> & b", RESULT, heard(), curves)
    names = {path.name for path in folder.iterdir()}
    figures = {"curves.png", "examples.png", "joints.png", "worst.png", "best.png"}
    assert names == figures | {"index.html", "report.json"}
    page = (folder / "index.html").read_text()
    assert "<h1>&lt;a&gt; &amp; b</h1>" in page
    assert "&lt;model&gt; on data" in page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert "http" not in re.sub(r"base64,[^\"]*", "", page)
    embedded = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]*)", page)]
    assert sorted(embedded) == sorted((folder / name).read_bytes() for name in figures)
    for name in figures:
        assert min(cv2.imread(str(folder / name)).shape[:2]) > 200
    record = json.loads((folder / "report.json").read_text())
    assert record["samples"]["count"] == 6
    assert record["samples"]["worst"][0]["sample"] in page
    assert set(record["samples"]["joint_errors"]["MPJPE"]) == set(HAND21.joints)
    write_report(folder, "again", RESULT, SampleSummary())  # an earlier report is replaced
    assert {path.name for path in folder.iterdir()} == {"index.html", "report.json"}
    assert "compared no labelled joint" in (folder / "index.html").read_text()


def test_a_report_without_scores_has_no_table_of_them(tmp_path):
    pytest.importorskip("matplotlib")
    nothing = KeypointResult("model", "test", COCO_KEYPOINTS, {}, {"images": 2}, ("unscored",))
    write_report(tmp_path / "report", "no labels", nothing, SampleSummary())
    page = (tmp_path / "report" / "index.html").read_text()
    assert "unscored" in page
    assert "compared no labelled joint" in page
    assert "<table>" not in page


def test_figures_show_truth_left_and_prediction_right():
    """The prediction's bones lie in the right half only where they differ from the labels."""
    pytest.importorskip("matplotlib")
    from kinemesh.reporting.figures import draw_samples

    summary = heard(count=1)
    (sample,) = summary.ranking.first
    other = replace(sample, predicted=sample.target * 0.5)
    pages = [
        cv2.imdecode(np.frombuffer(draw_samples([each], HAND21, "mm"), np.uint8), 1)
        for each in (replace(sample, predicted=sample.target), other)
    ]
    changed = np.abs(pages[0].astype(int) - pages[1]).sum(axis=(0, 2))
    middle = len(changed) * 3 // 5  # picture, two views of the labels, two of the prediction
    assert changed[:middle].sum() == 0
    assert changed[middle:].sum() > 0


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(report, "write_json", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "report", "title", RESULT, heard(2))
    assert list(tmp_path.iterdir()) == []


def test_foreign_folders_are_left_alone(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        check_report_folder(tmp_path)
    with pytest.raises(InputError, match="is a file"):
        check_report_folder(tmp_path / "thesis.tex")
    check_report_folder(tmp_path / "new" / "report")


def test_what_was_put_beside_an_own_report_is_not_lost(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "report"
    write_report(folder, "title", RESULT, heard(2))
    check_report_folder(folder)  # may be replaced
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files"):
        write_report(folder, "title", RESULT, heard(2))
    assert (folder / "notes.txt").read_text() == "mine"
    empty = tmp_path / "here"
    empty.mkdir()
    monkeypatch.chdir(empty)
    with pytest.raises(InputError, match="the folder you are in"):
        check_report_folder(Path())


def test_without_matplotlib_the_extra_is_named_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"kinemesh\[report\]"):
        check_report_folder(tmp_path / "report")
    words = ["eval", "hand", "synthetic-hand", "--report", str(tmp_path / "report")]
    assert main(words) == 1
    assert capsys.readouterr().out == ""


def test_classes_have_their_own_page(tmp_path):
    pytest.importorskip("matplotlib")
    summary = ClassSummary(examples=2, ranked=2)
    probability = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7]])
    summary(
        ClassSamples(
            keys=list("abcd"),
            probability=probability,
            label=torch.tensor([0, 1, 1, 1]),
            names=("cat", "dog"),
            picture=lambda row: np.full((9, 9, 3), row, np.uint8),
        )
    )
    np.testing.assert_allclose(summary.accuracies(), [100, 200 / 3])
    assert [image.key for image in summary.ranking.worst] == ["b", "d"]
    assert [image.key for image in summary.ranking.best] == ["a", "c"]
    assert summary.ranking.worst[0].found == "cat"
    write_report(tmp_path / "report", "classes", RESULT, summary)
    assert (tmp_path / "report" / "classes.png").is_file()
    assert "found" in (tmp_path / "report" / "index.html").read_text()


def test_eval_writes_a_report(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    words = ["eval", "hand", "synthetic-hand", "--count", "3", "--protocol", "own"]
    folder = tmp_path / "report"
    log = write_log(tmp_path / "log.jsonl")
    assert main([*words, "--report", str(folder), "--log", str(log)]) == 0
    assert f"report: {folder / 'index.html'}" in capsys.readouterr().out
    assert (folder / "curves.png").is_file()
    assert main([*words, "--log", str(log)]) == 2
    assert "--report" in capsys.readouterr().err
