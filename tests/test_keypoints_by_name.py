"""``kinemesh eval`` and its relatives on data of 2D keypoints: splits, options, refusals."""

import builtins
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from kinemesh.cli import main
from kinemesh.errors import InputError, MissingExtraError
from kinemesh.evaluation import keypoints_by_name
from kinemesh.evaluation.keypoints_by_name import KeypointEvaluation, evaluate_keypoints
from kinemesh.evaluation.pckh import read_labels
from kinemesh.models.registry import save_model
from tests.test_mpii import structs
from tests.test_pose2d import (
    CORNERS,
    Reader,
    knower,
    painted_people,
    reader_record,
    write_coco,
    write_mpii,
)
from tests.tiny_prtr import tiny_network, tiny_record


@pytest.fixture
def known(monkeypatch):
    """Lets a name stand for a network without a weight file."""

    def register(network, record):
        monkeypatch.setattr(
            keypoints_by_name, "load_keypoint_model", lambda _: (network.eval(), record)
        )
        return network

    return register


@pytest.fixture
def coco_reader(known):
    return known(Reader("coco17", "bgr"), reader_record())


# Test splits -----------------------------------------------------------------------------------


@pytest.fixture
def test_split(tmp_path):
    """COCO's folder with test-dev2017, whose pictures are in test2017 and which has no labels."""
    write_coco(tmp_path)
    labelled = tmp_path / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(labelled.read_text())
    del content["annotations"]
    path = tmp_path / "annotations" / "image_info_test-dev2017.json"
    path.write_text(json.dumps(content))
    shutil.copytree(tmp_path / "val2017", tmp_path / "test2017")
    shutil.rmtree(tmp_path / "val2017")
    return tmp_path


def test_of_a_test_split_the_result_file_is_written(test_split, coco_reader, capsys):
    words = ["eval", "reader", f"coco:{test_split}", "--split", "test-dev2017", "--device", "cpu"]
    words += ["--boxes", str(test_split / "detections.json")]
    out, report = test_split / "results.json", test_split / "report.json"
    assert main([*words, "--results", str(out), "--out", str(report)]) == 0
    shown = capsys.readouterr().out
    assert f"without labels nothing was scored; '{out}' is the file for COCO's server" in shown
    assert "AP" not in shown
    rows = json.loads(out.read_text())
    assert [row["image_id"] for row in rows] == [7, 7]
    assert all(len(row["keypoints"]) == 51 for row in rows)
    assert json.loads(report.read_text())["values"] == {}
    # what the labels, which stay with the server, would have said
    painted = {
        tuple(np.round(person.mean(axis=0))) for person in painted_people("coco17", CORNERS)[1]
    }
    written = {
        tuple(np.round(np.reshape(r["keypoints"], (17, 3))[:, :2].mean(axis=0))) for r in rows
    }
    assert painted == written


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--results FILE.json to write the file for COCO's server"),
        (["--results", "results.json"], "--boxes FILE.json"),
    ],
)
def test_what_a_test_split_lacks_is_said_before_the_network_runs(
    options, message, test_split, coco_reader, monkeypatch, capsys
):
    monkeypatch.chdir(test_split)
    boxes = [] if "--results" in options else ["--boxes", "detections.json"]
    words = ["eval", "reader", "coco:.", "--split", "test-dev2017", *boxes, *options]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert coco_reader.seen == []
    assert not Path("results.json").exists()


def test_without_labels_a_report_is_refused_before_the_network_runs(
    test_split, coco_reader, capsys
):
    pytest.importorskip("matplotlib")
    words = ["eval", "reader", f"coco:{test_split}", "--split", "test-dev2017", "--device", "cpu"]
    words += ["--boxes", str(test_split / "detections.json")]
    out, report = test_split / "results.json", test_split / "report"
    assert main([*words, "--results", str(out), "--report", str(report)]) == 2
    assert "--report: " in capsys.readouterr().err
    assert coco_reader.seen == []
    assert not out.exists()
    assert not report.exists()


def test_without_annotated_people_nothing_runs(tmp_path, coco_reader):
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(InputError, match=r"person_keypoints_val2017.json': expected people in the"):
        evaluate_keypoints("reader", f"coco:{tmp_path}")
    assert coco_reader.seen == []


def test_the_sequential_network_writes_results_of_a_test_split(test_split, known):
    predictor, _, _ = knower([0.9, 0.8, 0.1], jitter=300.0)
    known(predictor.network, tiny_record("prtr-sequential"))
    results = test_split / "results.json"
    options = KeypointEvaluation(split="test", results=results)
    result = evaluate_keypoints("knower", f"coco:{test_split}", options)
    assert result.values == {}
    assert "read out by their logits without a softmax" in str(result)
    assert len(json.loads(results.read_text())) == 3


def test_a_missing_scorer_is_said_before_the_network_runs(tmp_path, coco_reader, monkeypatch):
    write_coco(tmp_path)
    plain = builtins.__import__

    def absent(name, *args, **kwargs):
        if name.startswith("faster_coco_eval"):
            raise ModuleNotFoundError(name=name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(MissingExtraError, match="faster_coco_eval"):
        evaluate_keypoints("reader", f"coco:{tmp_path}")
    assert coco_reader.seen == []


# Read-out --------------------------------------------------------------------------------------


class Doubter(Reader):
    """Has beside each right answer a spare query: background, and if anything then that joint."""

    def forward(self, image_B3HW):
        output = super().forward(image_B3HW)
        count = len(self.skeleton)
        logits = output.logits.new_full((len(image_B3HW), 2 * count, count + 1), -5.0)
        joints = np.arange(count)
        logits[:, joints, joints], logits[:, joints, count] = 5.0, 0.0  # right
        logits[:, count + joints, joints], logits[:, count + joints, count] = 6.0, 12.0  # spare
        coords = output.coords[:, -count:].repeat(1, 2, 1)
        coords[:, count:] = 0.5
        return output._replace(logits=logits, coords=coords)


@pytest.mark.parametrize("include", [False, True])
def test_the_background_can_take_part_in_the_softmax(include, tmp_path, known, capsys):
    pytest.importorskip("faster_coco_eval")
    write_coco(tmp_path)
    known(Doubter("coco17", "bgr"), reader_record())
    words = ["eval", "doubter", f"coco:{tmp_path}", "--device", "cpu"]
    assert main(words + ["--include-background"] * include) == 0
    shown = capsys.readouterr().out
    assert ("background: part of the softmax, NOT as published" in shown) == include
    assert ("background: left out of the softmax" in shown) != include
    assert ("AP  1.0000" in shown) == include


def test_predict_passes_it_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture, _, _ = painted_people("coco17", CORNERS[:1])
    cv2.imwrite("photo.png", picture[:, :, ::-1])
    for kind in ("prtr", "prtr-sequential"):
        network, record = tiny_network(kind)
        save_model(f"{kind}.safetensors", network, None, record, half=False)
    words = ["predict", "photo.png", "--save", "json", "--boxes", "60,40,96,120"]
    scores = []
    for option in ([], ["--include-background"]):
        assert main([*words, "--model", "prtr.safetensors", "--out", "out", *option]) == 0
        (person,) = json.loads(Path("out/photo.json").read_text())["people"]
        scores.append(np.mean([joint["confidence"] for joint in person["joints"]]))
    assert scores[1] < 0.99 * scores[0]
    capsys.readouterr()
    assert main([*words[:4], "--model", "prtr-sequential.safetensors", "--include-background"]) == 2
    assert "without a softmax" in capsys.readouterr().err
    assert main([*words[:4], "--task", "hand", "--include-background"]) == 2
    assert "--include-background is for models of 2D keypoints" in capsys.readouterr().err


# Rendered data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["prtr", "prtr-sequential"])
@pytest.mark.parametrize("dataset", ["synthetic-keypoints", "synthetic-scenes"])
def test_rendered_scenes_are_scored_by_one_command(kind, dataset, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    network, record = tiny_network(kind)
    path = tmp_path / "model.safetensors"
    save_model(path, network, None, record, half=False)
    words = ["eval", str(path), dataset, "--count", "3", "--device", "cpu"]
    assert main([*words, "--results", str(tmp_path / "results.json")]) == 0
    shown = capsys.readouterr().out
    assert f"on {dataset} (3 rendered scenes)" in shown
    assert "counted: 3 images" in shown
    assert "AP  0." in shown
    rows = json.loads((tmp_path / "results.json").read_text())
    assert {row["image_id"] for row in rows} <= {1, 2, 3}
    assert main([*words, "--split", "val"]) == 2
    assert f"--split: {dataset} has no use for it" in capsys.readouterr().err


# MPII's own file -------------------------------------------------------------------------------


def write_release(folder: Path, *, heads: bool = True) -> Path:
    """The people of `write_mpii` in the structure of ``mpii_human_pose_v1_u12_1.mat``."""
    write_mpii(folder)
    people = []
    for row in json.loads((folder / "annot" / "valid.json").read_text()):
        points = [{"x": x, "y": y, "id": j} for j, (x, y) in enumerate(row["joints"])]
        x, y = row["center"]
        person = {
            "scale": row["scale"],
            "objpos": structs([{"x": x, "y": y}]),
            "annopoints": structs([{"point": structs(points)}]),
        }
        corners = dict(zip(("x1", "y1", "x2", "y2"), row["head_box"], strict=True))
        people.append(person | (corners if heads else {}))
    image = {"image": structs([{"name": "1.png"}]), "annorect": structs(people)}
    path = folder / "mpii_human_pose_v1_u12_1.mat"
    release = {"annolist": structs([image]), "img_train": np.array([[1]])}
    savemat(path, {"RELEASE": structs([release])})
    shutil.rmtree(folder / "annot")
    return path


def test_head_boxes_of_mpiis_own_file_are_kept(tmp_path, known):
    path = write_release(tmp_path)
    labels = read_labels(path)
    assert labels.head_px.tolist() == [30.0, 30.0]  # 0.6 of the diagonal of 30 x 40
    assert labels.visible.all()
    record = reader_record("mpii16") | {"resolution": [256, 256]}
    network = known(Reader("mpii16", "bgr"), record)
    result = evaluate_keypoints("r", f"mpii:{path}", KeypointEvaluation(split="train"))
    assert result.values["Mean"] == 100.0
    assert "not the people of published scores" in str(result)
    network.seen.clear()
    for place in (path, tmp_path):
        with pytest.raises(
            InputError, match=r"knows 'train' and 'test', found 'valid'.*valid.json"
        ):
            evaluate_keypoints("r", f"mpii:{place}")
    assert network.seen == []


def test_without_head_boxes_nothing_runs(tmp_path, known):
    path = write_release(tmp_path, heads=False)
    record = reader_record("mpii16") | {"resolution": [256, 256]}
    network = known(Reader("mpii16", "bgr"), record)
    with pytest.raises(InputError, match=r"expected head boxes x1, y1, x2, y2, found none"):
        evaluate_keypoints("r", f"mpii:{path}", KeypointEvaluation(split="train"))
    assert network.seen == []


# Wrong use -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data of both kinds and weight files of small networks, in the present folder."""
    monkeypatch.chdir(tmp_path)
    write_coco(Path("coco"))
    write_mpii(Path("mpii"))
    write_release(Path("official"))
    for name, kind, more in (
        ("two", "prtr", {}),
        ("seq", "prtr-sequential", {}),
        ("mpii16", "prtr", {"skeleton": "mpii16", "joints": 16}),
    ):
        network, record = tiny_network(kind, **more)
        save_model(f"{name}.safetensors", network, None, record, half=False)
    Path("text.json").write_text("no JSON")
    Path("list.json").write_text("[1, 2]")
    Path("empty.json").write_text("[]")
    cv2.imwrite("photo.png", np.zeros((40, 40, 3), np.uint8))
    return tmp_path


WRONG = [
    ("eval two.safetensors coco:absent", "absent"),
    ("eval two.safetensors coco:", "coco:FOLDER"),
    ("eval mpii16.safetensors mpii:", "mpii:FOLDER"),
    ("eval two.safetensors coco:coco --split nosuch", "person_keypoints"),
    ("eval two.safetensors coco:coco --split test-dev2017", "image_info_test"),
    ("eval two.safetensors coco:text.json", "expected JSON"),
    ("eval two.safetensors coco:list.json", "expected an object with 'images'"),
    ("eval two.safetensors coco:coco --images nowhere", "nowhere"),
    ("eval two.safetensors coco:coco --boxes absent.json", "absent.json"),
    ("eval two.safetensors coco:coco --boxes list.json", "row 0: expected an object"),
    ("eval two.safetensors coco:coco --boxes empty.json", "'empty.json': expected boxes of people"),
    ("eval two.safetensors coco", "'coco' names no data: expected coco:FOLDER"),
    ("eval mpii16.safetensors mpii", "'mpii' names no data"),
    ("eval two.safetensors coco:coco --averaging official", "--averaging means nothing"),
    ("eval two.safetensors coco:coco --head-size segment", "--head-size: COCO has no use"),
    ("eval two.safetensors coco:coco --labels x.mat", "--labels: COCO has no use"),
    ("eval two.safetensors coco:coco --protocol own", "--protocol means nothing"),
    ("eval two.safetensors coco:coco --batch-size 0", "--batch-size: expected at least 1"),
    ("eval two.safetensors coco:coco --count 0", "--count: expected at least 1"),
    ("eval two.safetensors coco:coco --workers -1", "--workers: expected at least 0"),
    ("eval two.safetensors mpii:mpii", "joints are those of coco17"),
    ("eval mpii16.safetensors coco:coco", "joints are those of mpii16"),
    ("eval mpii16.safetensors synthetic-scenes", "joints are those of mpii16"),
    ("eval mpii16.safetensors mpii:mpii --boxes empty.json", "--boxes: MPII has no use"),
    ("eval mpii16.safetensors mpii:mpii --labels absent.mat", "absent.mat"),
    ("eval mpii16.safetensors mpii:mpii --split nosuch", "annot/nosuch.json"),
    ("eval mpii16.safetensors mpii:official", "valid.json"),
    ("eval seq.safetensors coco:coco --include-background", "--include-background: a network"),
    ("eval hand coco:coco", "2D keypoints"),
    ("eval absent.safetensors coco:coco", "absent.safetensors"),
    ("predict photo.png --task pose2d --model hand", "recovers a hand"),
    ("predict photo.png --task pose2d --model text.json", "text.json"),
    ("predict photo.png --model two.safetensors --boxes 0,0,0,5", "box"),
    ("predict photo.png --model seq.safetensors --min-score 2", "from 0 to 1"),
    ("data check coco:absent", "absent"),
    ("data check mpii:official/mpii_human_pose_v1_u12_1.mat", "--train"),
    ("data check coco-scenes:text.json", "expected JSON"),
    ("data check mpii:coco", "annot/valid.json"),
    ("train prtr-coco-res50-384x288 --data coco:absent --output run", "absent"),
    ("train prtr-coco-res50-384x288 --data mpii:mpii --output run", "16 joints"),
    ("train prtr-mpii-res50-256x256 --data mpii: --output run", "--data: expected"),
    ("train prtr-sequential-detector --data mpii:mpii --output run", "coco:FOLDER or synthetic"),
]


@pytest.mark.parametrize(("command", "message"), WRONG, ids=lambda value: value[:60])
def test_wrong_use_is_told_in_a_line(command, message, folder, capsys):
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not Path("run").exists()
