"""From photos and data sets to 2D keypoints: crops, joints, people, files and scores.

The network reads the answer from the picture: every joint is painted in a colour of its own, and a
slope of blue tells whether the crop is mirrored. So a wrong crop, a wrong order of colours or
joints, or a shift shows in the result.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import kinemesh
from kinemesh.cli import main
from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.data.detection_scenes import CocoScenes, SceneOptions
from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.errors import InputError
from kinemesh.evaluation import keypoints_by_name
from kinemesh.evaluation.keypoint_readout import scene_people
from kinemesh.evaluation.keypoints_by_name import KeypointEvaluation, evaluate_keypoints
from kinemesh.formats.people_json import read_people_json
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.inference.keypoints import KeypointPredictor
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_sequential import SequentialOutput, SequentialPrtr
from kinemesh.models.prtr_variants import build_keypoint_backbone, keypoint_config_from
from kinemesh.models.registry import save_model
from kinemesh.skeletons import get_skeleton
from tests.tiny_prtr import tiny_network, tiny_record

SIZE = (192, 256)
WIDTH, HEIGHT = 420, 360
SPOT = 4  # pixels from the middle of a painted joint to its edge


def code(joint: int) -> tuple[int, int]:
    """Red and green of a joint; of one sum, so that no mixture with black is another's colour."""
    return 40 + 9 * joint, 255 - 9 * joint


def painted_people(skeleton: str, corners) -> tuple[np.ndarray, np.ndarray, list[list[float]]]:
    """A picture (RGB), joints (N, J, 2) at centres of pixels, and a box around each person."""
    rng = np.random.RandomState(0)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[..., 2] = np.linspace(20, 220, WIDTH)
    count = len(get_skeleton(skeleton))
    people, boxes = [], []
    for left, top in corners:
        cells = [(12 + 24 * (k % 4), 12 + 24 * (k // 4)) for k in range(20)]
        chosen = rng.permutation(20)[:count]
        joints = np.array([(left + cells[k][0], top + cells[k][1]) for k in chosen])
        for joint, (x, y) in enumerate(joints):
            picture[y - SPOT : y + SPOT + 1, x - SPOT : x + SPOT + 1, :2] = code(joint)
        people.append(joints)
        boxes.append([left, top, 96, 120])
    return picture, np.array(people, dtype=float), boxes


class Reader(nn.Module):
    """Finds the painted joints in a normalised crop."""

    def __init__(self, skeleton: str, order: str) -> None:
        super().__init__()
        self.skeleton = get_skeleton(skeleton)
        self.order = order
        self.seen: list[torch.Tensor] = []

    def forward(self, image_B3HW):
        self.seen.append(image_B3HW)
        found = [self._read(image) for image in image_B3HW]
        count = len(self.skeleton)
        logits = torch.full((len(found), count + 3, count + 1), -5.0)
        joints = torch.arange(count)
        logits[:, joints + 3, joints] = 5.0
        coords = torch.zeros(len(found), count + 3, 2)
        coords[:, 3:] = torch.stack(found)
        return KeypointSetOutput(logits, coords)

    def _read(self, image_3HW):
        pixels = image_3HW.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN
        pixels = pixels * 255
        red, green, blue = (
            pixels[..., k] for k in ((2, 1, 0) if self.order == "bgr" else (0, 1, 2))
        )
        height, width = red.shape
        inside = blue > 10
        middle = np.flatnonzero(inside[height // 2])
        mirrored = blue[height // 2, middle[0]] > blue[height // 2, middle[-1]]
        places = np.full((len(self.skeleton), 2), 0.5)
        for joint in range(len(self.skeleton)):
            # a network sees a mirrored left elbow as a right one
            painted = self.skeleton.flip_permutation[joint] if mirrored else joint
            r, g = code(painted)
            rows, columns = np.nonzero((abs(red - r) < 4) & (abs(green - g) < 4) & inside)
            if len(rows):
                # crops have their first pixel's centre at 0, and mirroring keeps no pixel aligned
                x, y = np.median(columns) + mirrored, np.median(rows)
                places[joint] = x / width, y / height
        return torch.tensor(places, dtype=torch.float32)


def reader_record(skeleton="coco17", order="bgr") -> dict:
    joints = {"skeleton": skeleton, "joints": len(get_skeleton(skeleton))}
    return tiny_record("prtr", order=order, size=SIZE, queries=30, **joints)


def reader(skeleton="coco17", order="bgr") -> KeypointPredictor:
    return KeypointPredictor(Reader(skeleton, order), reader_record(skeleton, order), "cpu")


CORNERS = [(60, 40), (200, 90)]


# The predictor ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["bgr", "rgb"])
@pytest.mark.parametrize("skeleton", ["coco17", "mpii16"])
@pytest.mark.parametrize("flip_test", [False, True])
def test_joints_are_found_where_they_are_painted(order, skeleton, flip_test):
    picture, joints, boxes = painted_people(skeleton, CORNERS)
    people = reader(skeleton, order).predict(picture, boxes, flip_test=flip_test)
    assert len(people) == 2
    for person, true, box in zip(people, joints, boxes, strict=True):
        # results count from the corner of the first pixel
        assert np.abs(person.joints_px - (true + 0.5)).max() < 0.6
        assert person.joint_confidence.shape == (len(true),)
        assert person.joint_confidence.min() > 0.9
        assert person.box_px == tuple(box)
        assert person.skeleton == skeleton
        assert not person.has_mesh
        assert not person.has_depth
        assert person.score == pytest.approx(person.joint_confidence.mean())


def test_without_boxes_the_image_is_one_person():
    picture, joints, _ = painted_people("coco17", CORNERS[:1])
    (person,) = reader().predict(picture)
    assert person.box_px == (0, 0, WIDTH, HEIGHT)
    assert (
        np.abs(person.joints_px - (joints[0] + 0.5)).max() < 3
    )  # a pixel of the crop is 2.7 pixels here


def test_scores_of_boxes_are_kept_and_nobody_is_fine():
    picture, _, boxes = painted_people("coco17", CORNERS[:1])
    (person,) = reader().predict(picture, [{"bbox": boxes[0], "score": 0.25}])
    assert person.score == 0.25
    assert reader().predict(picture, []) == []


def write_coco(folder: Path, skeleton="coco17") -> tuple[np.ndarray, np.ndarray, list]:
    """A data set of one picture in COCO's form, with detections beside it."""
    picture, joints, boxes = painted_people(skeleton, CORNERS)
    (folder / "val2017").mkdir(parents=True)
    (folder / "annotations").mkdir()
    cv2.imwrite(str(folder / "val2017" / "000000000007.png"), picture[:, :, ::-1])
    rows = [
        {
            "id": number,
            "image_id": 7,
            "category_id": 1,
            "iscrowd": 0,
            "bbox": box,
            "area": box[2] * box[3] * 0.6,
            "num_keypoints": len(person),
            "keypoints": np.column_stack([person, np.full(len(person), 2)]).ravel().tolist(),
        }
        for number, (person, box) in enumerate(zip(joints, boxes, strict=True), start=1)
    ]
    image = {"id": 7, "file_name": "000000000007.png", "width": WIDTH, "height": HEIGHT}
    content = {
        "images": [image],
        "annotations": rows,
        "categories": [
            {"id": 1, "name": "person", "keypoints": list(get_skeleton("coco17").joints)}
        ],
    }
    path = folder / "annotations" / "person_keypoints_val2017.json"
    path.write_text(json.dumps(content))
    found = [
        {"image_id": 7, "category_id": 1, "bbox": box, "score": 0.5 + 0.1 * k}
        for k, box in enumerate(boxes)
    ]
    (folder / "detections.json").write_text(json.dumps(found))
    return picture, joints, boxes


@pytest.mark.parametrize("order", ["bgr", "rgb"])
def test_crops_are_those_of_the_evaluation(order, tmp_path):
    _, _, boxes = write_coco(tmp_path)
    boxes = [[x + 0.25, y - 30.5, w, h * 0.6] for x, y, w, h in boxes]  # wider than the crop
    rows = [{"image_id": 7, "category_id": 1, "bbox": box, "score": 1.0} for box in boxes]
    (tmp_path / "wide.json").write_text(json.dumps(rows))
    options = KeypointOptions(size=SIZE, order=order)
    samples = CocoKeypoints(tmp_path, boxes=tmp_path / "wide.json", options=options)
    predictor = reader(order=order)
    predictor.predict(tmp_path / "val2017" / "000000000007.png", boxes)
    (seen,) = predictor.network.seen
    assert torch.equal(seen, torch.stack([samples[k]["image"] for k in range(2)]))


# The sequential network ------------------------------------------------------------------------


class Knower(SequentialPrtr):
    """Says what it was told: scores, boxes (cxcywh in [0, 1]) and joints (x, y in [0, 1]).

    As whole images' labels do, its places count from the corner of the image.
    """

    def __init__(self, scores, boxes, joints) -> None:
        record = tiny_record("prtr-sequential")
        backbone = build_keypoint_backbone(record["backbone"], "prtr-sequential")
        super().__init__(keypoint_config_from(record), backbone)
        self.scores, self.boxes = torch.tensor(scores), torch.tensor(boxes, dtype=torch.float32)
        self.joints = torch.tensor(np.asarray(joints), dtype=torch.float32)
        self.seen: list[torch.Tensor] = []

    def forward(self, images, padding_mask=None, sizes=None, choose_persons=None):
        self.seen.append(images)
        score = self.scores[None]
        logits = torch.stack([torch.log(score), torch.log(1 - score)], dim=-1)
        persons = torch.arange(len(self.scores))[None]
        if choose_persons is not None:
            persons = choose_persons(logits, self.boxes[None])
        count = self.joints.shape[1]
        coords = self.joints[persons[0]][None]
        classes = torch.full((1, persons.shape[1], count, count + 1), -5.0)
        joint = torch.arange(count)
        classes[:, :, joint, joint + 1] = 5.0  # class 0 is the background
        return SequentialOutput(logits, self.boxes[None], coords, classes, persons)


def knower(scores, jitter=0.0) -> tuple[KeypointPredictor, np.ndarray, np.ndarray]:
    """Two people, the second of them found twice; and picture and joints."""
    picture, joints, boxes = painted_people("coco17", CORNERS)
    size = np.array([WIDTH, HEIGHT])
    people = np.stack([*joints, joints[1] + jitter])
    corners = np.array([*boxes, boxes[1]], dtype=float)
    middle = (corners[:, :2] + corners[:, 2:] / 2) / size
    relative = np.concatenate([middle, corners[:, 2:] / size], axis=1)
    network = Knower(scores, relative.tolist(), (people + 0.5) / size)
    return KeypointPredictor(network, tiny_record("prtr-sequential"), "cpu"), picture, people


def test_people_are_found_without_boxes_and_only_once():
    predictor, picture, joints = knower([0.7, 0.9, 0.8], jitter=1.0)
    people = predictor.predict(picture)
    assert [round(person.score, 4) for person in people] == [0.9, 0.7]
    for person, row in zip(people, (1, 0), strict=True):
        assert np.abs(person.joints_px - (joints[row] + 0.5)).max() < 1e-3
        left, top = CORNERS[row]
        assert person.box_px == pytest.approx((left, top, 96, 120), abs=1e-3)
    (image,) = predictor.network.seen
    assert image.shape[-2:] == (64, 75)  # the shorter side resized to the record's 64


class Teller(nn.Module):
    """Says the same normalised joints of any crop."""

    def __init__(self, joints_J2: torch.Tensor) -> None:
        super().__init__()
        self.joints = joints_J2

    def forward(self, image_B3HW):
        count = len(self.joints)
        logits = torch.full((1, count, count + 1), -9.0)
        logits[0, torch.arange(count), torch.arange(count)] = 9.0
        return KeypointSetOutput(logits, self.joints[None])


def test_labels_come_back_from_both_kinds_of_network_at_one_place(tmp_path):
    """Whoever learns its labels perfectly predicts them, to a hundredth of a pixel."""
    picture, joints, boxes = write_coco(tmp_path)
    crops = CocoKeypoints(tmp_path, options=KeypointOptions(size=SIZE))
    scene = CocoScenes(tmp_path, options=SceneOptions(shortest=64, longest=75))[0]
    count, keypoints = len(boxes), scene["keypoints"][..., :2]
    network = Knower([0.9] * count, scene["boxes"].tolist(), keypoints)
    sequential = KeypointPredictor(network, tiny_record("prtr-sequential"), "cpu")
    with torch.no_grad():
        output = network(scene["image"][None])
    scored = scene_people(output, [7], torch.tensor([[HEIGHT, WIDTH]]))
    for number, person in enumerate(sequential.predict(picture)):
        # what is scored counts like COCO's file, what is predicted from the picture's corner
        assert np.abs(scored[number].keypoints_px - joints[number]).max() < 0.01
        assert np.abs(person.joints_px - (joints[number] + 0.5)).max() < 0.01
        sample = crops[number]
        teller = KeypointPredictor(Teller(sample["target"]), reader_record(), "cpu")
        # the crop of a label is a pixel smaller than its box
        x, y, width, height = boxes[number]
        (same,) = teller.predict(picture, [[x, y, width - 1, height - 1]])
        assert np.abs(same.joints_px - person.joints_px).max() < 0.01


def test_people_below_the_least_score_are_left_out():
    predictor, picture, _ = knower([0.45, 0.9, 0.2], jitter=200.0)
    assert len(predictor.predict(picture)) == 1
    assert len(predictor.predict(picture, min_score=0.3)) == 2
    assert len(predictor.predict(picture, min_score=0.1)) == 3
    assert predictor.predict(picture, min_score=0.95) == []


def test_a_real_sequential_network_runs_from_file_to_people(tmp_path):
    network, record = tiny_network("prtr-sequential")
    path = tmp_path / "sequential.safetensors"
    save_model(path, network, None, record, half=False)
    predictor = kinemesh.load(path, "cpu")
    assert isinstance(predictor, KeypointPredictor)
    assert predictor.finds_people
    picture, _, _ = painted_people("coco17", CORNERS)
    people = predictor.predict(picture, min_score=0.0)
    assert 1 <= len(people) <= 6
    assert all(person.joints_px.shape == (17, 2) for person in people)
    assert all((person.joints_px <= (WIDTH, HEIGHT)).all() for person in people)
    assert predictor.predict(picture, min_score=1.0) == []


# Options ---------------------------------------------------------------------------------------


def test_options_of_the_other_kind_are_refused():
    picture, _, boxes = painted_people("coco17", CORNERS)
    with pytest.raises(InputError, match="min score: this network looks for one person"):
        reader().predict(picture, boxes, min_score=0.5)
    sequential, _, _ = knower([0.5, 0.5, 0.5])
    with pytest.raises(InputError, match="boxes: this network sees whole images"):
        sequential.predict(picture, boxes)
    with pytest.raises(InputError, match="flip test: this network"):
        sequential.predict(picture, flip_test=True)
    with pytest.raises(InputError, match="from 0 to 1, found 2"):
        sequential.predict(picture, min_score=2)
    with pytest.raises(InputError, match="outside the image"):
        reader().predict(picture, [[900, 0, 10, 10]])


# The command line ------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path, monkeypatch):
    """A photo and weight files of small networks, in the present folder."""
    monkeypatch.chdir(tmp_path)
    picture, _, _ = painted_people("coco17", CORNERS)
    cv2.imwrite("photo.png", picture[:, :, ::-1])
    for kind in ("prtr", "prtr-deformable", "prtr-sequential"):
        network, record = tiny_network(kind)
        save_model(f"{kind}.safetensors", network, None, record, half=False)
    return picture


BOXES = ";".join(f"{x},{y},96,120" for x, y in CORNERS)


@pytest.mark.parametrize("model", ["prtr", "prtr-deformable"])
def test_predict_writes_pictures_and_numbers_and_no_mesh(model, photo, capsys):
    words = ["predict", "photo.png", "--task", "pose2d", "--model", f"{model}.safetensors"]
    assert main([*words, "--boxes", BOXES, "--flip-test", "--overlay", "jpg"]) == 0
    assert "no glb, obj" in capsys.readouterr().err
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "photo.json",
        "photo.npz",
        "photo_overlay.jpg",
    ]
    content = json.loads(Path("out/photo.json").read_text())
    assert list(content["skeletons"]) == ["coco17"]
    first = content["people"][0]
    assert first["skeleton"] == "coco17"
    assert first["joints"][0].keys() == {"name", "px", "camera", "confidence"}
    assert first["joints"][0]["camera"] is None
    assert 0 < first["score"] <= 1
    from_json, from_npz = read_people_json("out/photo.json"), read_people_npz("out/photo.npz")
    people = kinemesh.load(f"{model}.safetensors", "cpu").predict(
        "photo.png", BOXES, flip_test=True
    )
    for one, two, three in zip(people, from_json, from_npz, strict=True):
        assert np.array_equal(one.joints_px, three.joints_px)
        assert np.allclose(one.joints_px, two.joints_px, atol=0.006)
        assert two.joints.shape == three.joints.shape == (0, 3)
        assert not two.has_depth
    assert cv2.imread("out/photo_overlay.jpg").shape[:2] == (438, 512)


def test_predict_finds_people_with_the_sequential_network(photo):
    words = ["predict", "photo.png", "--model", "prtr-sequential.safetensors", "--save", "json"]
    assert main([*words, "--min-score", "0"]) == 0
    assert len(read_people_json("out/photo.json")) >= 1
    assert main([*words, "--min-score", "1"]) == 0
    assert read_people_json("out/photo.json") == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--task pose2d", "no model of 2D keypoints is shipped"),
        ("--task hand --model prtr.safetensors", "recovers a pose2d"),
        ("--task hand --flip-test", "--flip-test is for models of 2D keypoints"),
        ("--min-score 0.5", "--min-score is for models of 2D keypoints"),
        ("--model prtr.safetensors --min-score 0.5", "one person in each box"),
        ("--model prtr.safetensors --focal-px 500", "no use for a focal length"),
        ("--model prtr.safetensors --side left", "--side left is for hands"),
        ("--model prtr.safetensors --save glb", "holds a mesh"),
        ("--model prtr-sequential.safetensors --flip-test", "sees whole images"),
        ("--model prtr-sequential.safetensors --boxes 1,1,9,9", "finds the people itself"),
    ],
)
def test_options_without_meaning_are_refused(options, message, photo, capsys):
    assert main(["predict", "photo.png", *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


# Scores ----------------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch):
    """Lets a name stand for a network without a weight file."""

    def register(network, record):
        monkeypatch.setattr(
            keypoints_by_name, "load_keypoint_model", lambda _: (network.eval(), record)
        )

    return register


@pytest.mark.parametrize("flip_test", [False, True])
@pytest.mark.parametrize("boxes", [None, "detections.json"])
def test_reading_coco_right_scores_one(flip_test, boxes, tmp_path, known):
    pytest.importorskip("faster_coco_eval")
    write_coco(tmp_path)
    known(Reader("coco17", "bgr"), reader_record())
    options = KeypointEvaluation(
        boxes=None if boxes is None else tmp_path / boxes,
        flip_test=flip_test,
        results=tmp_path / "results.json",
    )
    result = evaluate_keypoints("reader", f"coco:{tmp_path}", options)
    assert result.values["AP"] == 1.0
    shown = str(result)
    assert f"boxes: {'ground truth' if boxes is None else 'detector (detections.json)'}" in shown
    assert f"flip test: {'yes' if flip_test else 'no'}" in shown
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [row["image_id"] for row in rows] == [7, 7]


def test_reading_coco_in_wrong_colours_scores_nothing(tmp_path, known):
    pytest.importorskip("faster_coco_eval")
    write_coco(tmp_path)
    known(Reader("coco17", "rgb"), reader_record(order="bgr"))
    assert evaluate_keypoints("reader", f"coco:{tmp_path}").values["AP"] < 0.1


def test_the_sequential_network_is_scored_on_whole_images(tmp_path, known):
    pytest.importorskip("faster_coco_eval")
    write_coco(tmp_path)
    predictor, _, _ = knower([0.9, 0.8, 0.1], jitter=300.0)
    known(predictor.network, tiny_record("prtr-sequential"))
    result = evaluate_keypoints("knower", f"coco:{tmp_path}")
    assert result.values["AP"] == 1.0
    assert "boxes: none: the network sees whole images" in str(result)
    assert "flip test: no" in str(result)
    with pytest.raises(InputError, match="--boxes: a network that finds people"):
        evaluate_keypoints(
            "knower", f"coco:{tmp_path}", KeypointEvaluation(boxes=tmp_path / "detections.json")
        )


def write_mpii(folder: Path) -> None:
    """A data set of one picture in the form of HRNet's files, which count from 1."""
    picture, joints, boxes = painted_people("mpii16", CORNERS)
    (folder / "annot").mkdir(parents=True)
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images" / "1.png"), picture[:, :, ::-1])
    rows = [
        {
            "image": "1.png",
            "center": [box[0] + 49, box[1] + 54],
            "scale": 0.6,
            "joints": (person + 1).tolist(),
            "joints_vis": [1] * 16,
            "head_box": [0, 0, 30, 40],
        }
        for person, box in zip(joints, boxes, strict=True)
    ]
    (folder / "annot" / "valid.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("flip_test", [False, True])
def test_reading_mpii_right_scores_a_hundred(flip_test, tmp_path, known):
    write_mpii(tmp_path)
    record = reader_record("mpii16")
    known(Reader("mpii16", "bgr"), record | {"resolution": [256, 256]})
    result = evaluate_keypoints("r", f"mpii:{tmp_path}", KeypointEvaluation(flip_test=flip_test))
    assert result.values["Mean"] == 100.0
    assert result.values["PCKh@0.1"] == 100.0
    counted = evaluate_keypoints("r", f"mpii:{tmp_path}", KeypointEvaluation(count=1)).counts
    assert counted["people"] == 1


def test_models_and_data_that_do_not_fit_are_told(tmp_path, known):
    write_coco(tmp_path)
    known(Reader("mpii16", "bgr"), reader_record("mpii16"))
    with pytest.raises(InputError, match=r"mpii16, but .* has those of coco17"):
        evaluate_keypoints("reader", f"coco:{tmp_path}")
    with pytest.raises(InputError, match=r"coco:FOLDER.* or mpii:FOLDER.*, found 'freihand:x'"):
        evaluate_keypoints("reader", "freihand:x")


def test_eval_prints_the_protocol_and_writes_the_report(photo, tmp_path, capsys):
    pytest.importorskip("faster_coco_eval")
    write_coco(tmp_path / "coco")
    words = ["eval", "prtr.safetensors", "coco:coco", "--no-flip", "--device", "cpu"]
    assert main([*words, "--boxes", "coco/detections.json", "--out", "report.json"]) == 0
    shown = capsys.readouterr().out
    assert "boxes: detector (detections.json)" in shown
    assert "flip test: no" in shown
    report = json.loads(Path("report.json").read_text())
    assert report["protocol"]["flip_test"] is False
    assert set(report["values"]) >= {"AP", "AR(L)"}
    assert main([*words, "--tta"]) == 2
    assert "--tta means nothing on coco:coco" in capsys.readouterr().err
    assert main(["eval", "hand", "synthetic-hand", "--boxes", "coco/detections.json"]) == 2
    assert "--boxes means nothing on synthetic-hand" in capsys.readouterr().err
    assert main(["eval", "prtr.safetensors", "synthetic-hand"]) == 2
    assert "a network of 2D keypoints" in capsys.readouterr().err
