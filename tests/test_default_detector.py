"""Photos and videos without boxes: the shipped detector says where people and hands are."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import kinemesh
from kinemesh.cli import main
from kinemesh.cli.video import VideoOptions, predict_video
from kinemesh.errors import InputError
from kinemesh.evaluation.detection import DetectionResult
from kinemesh.files import sha256
from kinemesh.formats.frames import FramesFile
from kinemesh.formats.people_json import read_people_json
from kinemesh.inference import predictor as predictor_module
from kinemesh.inference.boxes import Box
from kinemesh.inference.default_detector import DefaultDetector, default_detector
from kinemesh.inference.detectors import for_task, load_detector
from kinemesh.inference.images import image_from_array
from kinemesh.inference.own_detector import MIN_SCORE, FoundBoxes, OwnDetector
from kinemesh.inference.people import PeoplePredictor
from kinemesh.inference.video_run import one_by_one
from kinemesh.models import registry
from kinemesh.models.detector import Detector, DetectorConfig
from kinemesh.models.detector_files import SHIPPED_DETECTOR, load_detector_network, save_detector
from kinemesh.skeletons import COCO17
from tests.fake_predictor import fake_predictor, spot_photo
from tests.video_files import spot_frames, write_video

ROOT = Path(__file__).resolve().parents[1]
TINY = DetectorConfig(side=128, channels=16, tower_layers=1)
TRAINING = {"step": 7, "recipe": {"steps": 9, "output": "/home/me/runs", "optim.lr": 0.1}}
SIZE = (400, 300)
PHOTO = spot_photo(*SIZE, 150, 160)
WHOLE = (0, 0, 400, 300)
PERSON = Box(60, 60, 200, 200, 0.9)
AGAIN = Box(62, 60, 200, 200, 0.6)
LEFT, RIGHT = Box(200, 20, 60, 60, 0.8, "left"), Box(20, 200, 70, 70, 0.6, "right")


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("ship", ROOT / "tools" / "ship_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def file(tool, tmp_path_factory):
    """A tiny network with random weights, shipped by the tool that ships the real one."""
    folder = tmp_path_factory.mktemp("weights")

    def evaluate(model, dataset, count=None):
        values = {"AP50 person": 0.5, "AP person": float("nan")}
        return DetectionResult(str(model), dataset, values, {"photos": count or 28}, ("a rule",))

    torch.manual_seed(0)
    network = Detector(TINY)
    torch.nn.init.normal_(network.head.classes.weight)  # scores that differ
    save_detector(folder / "trained", network, TRAINING)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "WEIGHTS_DIR", folder)
        patch.setattr(tool, "evaluate_detector", evaluate)
        return tool.ship(tool.Options(folder / "trained", 2, Path("/data/COCO")))


@pytest.fixture
def shipped(file, monkeypatch):
    """The same, where the package looks for what is shipped."""
    monkeypatch.setattr(registry, "WEIGHTS_DIR", file.parent)
    return file


@pytest.fixture
def networks(monkeypatch):
    """Fake networks of bodies and hands behind `kinemesh.load`."""
    made = {"body": fake_predictor("body"), "hand": fake_predictor("hand")}
    monkeypatch.setattr(predictor_module, "_load", lambda name, *_: made[str(name)])
    return made


@pytest.fixture
def sees(shipped, monkeypatch):
    """Decides what the shipped detector finds."""
    found = {"people": (PERSON, AGAIN), "hands": (LEFT, RIGHT)}

    def find(detector, photo):
        sure = {
            kind: tuple(box for box in boxes if box.score >= detector.min_score)
            for kind, boxes in found.items()
        }
        return FoundBoxes(**sure)

    monkeypatch.setattr(OwnDetector, "find", find)
    return found


@pytest.fixture
def predict(networks, tmp_path, capsys):
    """Runs the command on the photo; returns its people and what it said on stderr."""
    path = tmp_path / "p.png"
    cv2.imwrite(str(path), PHOTO[:, :, ::-1])

    def run(*words, code=0):
        out = tmp_path / "out"
        assert main(["predict", str(path), "--out", str(out), "--save", "json", *words]) == code
        said = capsys.readouterr().err
        return read_people_json(out / "p.json") if code == 0 else [], said

    return run


def places(people):
    return [person.box_px for person in people]


class TestShipping:
    def test_the_card_says_what_it_is(self, shipped, capsys):
        card = json.loads(shipped.with_suffix(".json").read_text("utf-8"))
        assert shipped.name == "kinemesh-detector.safetensors"
        assert card["sha256"] == sha256(shipped)
        assert card["license"] == "Apache-2.0"
        assert card["recipe"] == {
            "name": "synthetic-detector",
            "step": 7,
            "steps": 9,
            "optim.lr": 0.1,
        }
        assert [score["dataset"] for score in card["scores"]] == [
            "synthetic-detection",
            "coco:COCO",
        ]
        assert "/" not in json.dumps([card["scores"], card["recipe"]])  # no folder of a machine
        assert main(["models"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "kinemesh-detector" in text
        wanted = "AP50 person 0.500, AP person - on synthetic-detection (2 photos; a rule)"
        assert wanted in text

    def test_it_is_loaded_by_its_names(self, shipped):
        by_short_name, by_name = load_detector("own"), load_detector(SHIPPED_DETECTOR, "cpu", 0.2)
        assert isinstance(by_short_name, OwnDetector)
        assert isinstance(by_name, OwnDetector)
        assert (by_short_name.min_score, by_name.min_score) == (MIN_SCORE, 0.2)
        network, record = load_detector_network(SHIPPED_DETECTOR)
        assert network.config == TINY
        assert "training" not in record

    def test_a_damaged_file_is_told(self, file, tmp_path, monkeypatch):
        monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / file.name).write_bytes(content)
        (tmp_path / file.name).with_suffix(".json").write_bytes(
            file.with_suffix(".json").read_bytes()
        )
        with pytest.raises(InputError, match="damaged"):
            default_detector("body", "cpu").detect(image_from_array(PHOTO))
        (tmp_path / file.name).unlink()
        with pytest.raises(InputError, match="missing"):
            default_detector("body", "cpu").detect(image_from_array(PHOTO))

    def test_options_of_detectors_are_refused_for_others(self, tool):
        weights = ROOT / "src/kinemesh/weights/guided-graphormer-hand.safetensors"
        with pytest.raises(InputError, match="--coco is for detectors"):
            tool.ship(tool.Options(weights, 2, Path("COCO")))

    def test_the_fast_network_finds_what_the_plain_one_finds(self, shipped):
        photo = image_from_array(np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8))
        network, record = load_detector_network(shipped)
        plain = OwnDetector(network, record, min_score=0.0, kind="both").detect(photo)
        fast = OwnDetector.load(shipped, "cpu", 0.0, "both").detect(photo)
        assert len(plain) == len(fast) > 5
        best, other = ([box.xywh for box in boxes[:5]] for boxes in (plain, fast))
        np.testing.assert_allclose(best, other, atol=0.05)


class TestPhotos:
    def test_people_are_found_by_the_command_and_in_python(self, sees, predict, networks):
        people, said = predict()
        assert places(people) == [PERSON.xywh]  # the second box holds the same person
        assert people[0].score == pytest.approx(0.9)
        assert said == ""
        (same,) = kinemesh.load("body", "cpu").predict(PHOTO)
        np.testing.assert_allclose(same.joints, people[0].joints, atol=1e-4)

    def test_a_photo_without_anybody_is_a_crop(self, sees, predict, caplog):
        sees.update(people=(), hands=())
        people, said = predict()
        assert places(people) == [WHOLE]
        assert "p.png: no person found; the whole photo is taken as one box" in said
        assert "no hand found" in predict("--task", "hand")[1]
        (crop,) = kinemesh.load("body", "cpu").predict(PHOTO)
        np.testing.assert_allclose(crop.joints, people[0].joints, atol=1e-4)
        assert "Nobody was found" in caplog.text

    def test_a_chosen_detector_is_taken_at_its_word(self, sees, predict):
        sees.update(people=())
        people, said = predict("--detector", "own")
        assert people == []
        assert said.strip() == "p.png: no person found"

    def test_none_searches_nothing(self, sees, predict, networks):
        people, said = predict("--detector", "none")
        assert (places(people), said) == ([WHOLE], "")
        (whole,) = kinemesh.load("body", "cpu").predict(PHOTO, "whole")
        np.testing.assert_allclose(whole.joints, people[0].joints, atol=1e-4)

    def test_scores(self, sees, predict):
        assert places(predict("--min-box-score", "0.95")[0]) == [WHOLE]
        assert places(predict("--task", "hand")[0]) == [LEFT.xywh, RIGHT.xywh]
        assert places(predict("--task", "hand", "--min-box-score", "0.7")[0]) == [LEFT.xywh]
        _, said = predict("--min-box-score", "0.5", "--detector", "none", code=2)
        assert "Add --detector or --boxes" in said

    @pytest.mark.parametrize(
        ("words", "sides"),
        [((), ["left", "right"]), (("--side", "left"), ["left"] * 2)],
    )
    def test_sides_of_hands(self, sees, predict, words, sides):
        people, _ = predict("--task", "hand", *words)
        assert [hand.side for hand in people] == sides
        same = kinemesh.load("hand", "cpu").predict(PHOTO, side="left" if words else None)
        for one, other in zip(people, same, strict=True):
            assert one.side == other.side
            np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-4)

    def test_boxes_go_first(self, sees, predict):
        assert places(predict("--boxes", "40,30,200,200")[0]) == [(40, 30, 200, 200)]
        model = kinemesh.load("hand", "cpu")
        assert places(model.predict(PHOTO, [[5, 5, 90, 90]])) == [(5, 5, 90, 90)]

    def test_hands_with_and_without_a_body(self, sees, predict, networks):
        (body,) = networks["body"].predict(PHOTO, [PERSON])
        x, y = body.joints_px[COCO17.index("left_wrist")].tolist()
        held = Box(round(x) - 30, round(y) - 25, 60, 60, 0.7, "left")
        lone = Box(330, 10, 60, 60, 0.6, "right")
        sees.update(people=(PERSON,), hands=(held, lone))
        people, _ = predict("--task", "body,hand")
        found = [(person.side, person.owner, person.box_px) for person in people[:3]]
        assert found == [
            (None, None, PERSON.xywh),
            ("left", 0, held.xywh),
            ("right", None, lone.xywh),
        ]
        assert (people[3].side, people[3].owner) == ("right", 0)  # no box: found at the wrist
        model = PeoplePredictor(kinemesh.load("body", "cpu"), kinemesh.load("hand", "cpu"))
        assert len(model.predict(PHOTO)) == len(people)
        sees.update(people=())
        assert [hand.owner for hand in predict("--task", "body,hand")[0]] == [None, None]

    def test_installations_without_a_detector_say_so(self, predict, tmp_path, monkeypatch):
        monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
        people, said = predict()
        assert places(people) == [WHOLE]
        assert "No detector is shipped" in said

    def test_detectors_are_made_for_tasks(self):
        detector = DefaultDetector("person", "cpu")
        assert [for_task(detector, task).kind for task in ("body", "hand", "body,hand")] == [
            "person",
            "hand",
            "both",
        ]


def spot_place(photo):
    """Middle of the red spot, None where there is none."""
    red = photo.pixels[..., 0] > photo.pixels[..., 1] + 100.0
    return np.argwhere(red).mean(0)[::-1] if red.any() else None


def find_spot(photo):
    place = spot_place(photo)
    return () if place is None else (Box(place[0] - 20, place[1] - 20, 40, 40, 0.9),)


class TestVideos:
    HIDDEN = range(6, 16)
    FRAMES = 22

    @pytest.fixture
    def hide_and_seek(self, tmp_path):
        """Somebody who is hidden for a while and comes out elsewhere."""
        frames = [
            np.full((96, 128, 3), 128, np.uint8)
            if index in self.HIDDEN
            else spot_photo(128, 96, 30 if index < self.HIDDEN.start else 105, 48)
            for index in range(self.FRAMES)
        ]
        return write_video(tmp_path / "hide.mp4", frames)

    def run(self, video, out, **how):
        model = fake_predictor("body")

        def find(photo, boxes):
            people = model.predict(photo, boxes)
            if spot_place(photo) is None:  # a network that is sure of nothing where nobody is
                people = [replace(person, score=0.0) for person in people]
            return people

        options = VideoOptions(offline_smoothing="none", smooth=0.0)
        find_all = one_by_one(find)
        assert predict_video(str(video), options, find=find_all, out=out, overlay=False, **how) == 0
        return FramesFile.find(out)

    def test_who_was_hidden_comes_back_with_a_detector(self, hide_and_seek, tmp_path):
        found = self.run(hide_and_seek, tmp_path / "found", detect=find_spot)
        seen = [len(frame.people) for frame in found]
        assert seen == [0 if index in self.HIDDEN else 1 for index in range(self.FRAMES)]
        middle = found[self.FRAMES - 1].people[0].person.box_px[0] + 20
        assert middle == pytest.approx(105, abs=1)
        followed = self.run(hide_and_seek, tmp_path / "followed", boxes="10,28,40,40")
        last = followed[self.FRAMES - 1].people
        assert not last or abs(last[0].person.box_px[0] + 20 - 105) > 20

    def test_the_default_searches_every_frame(self, shipped, networks, tmp_path, monkeypatch):
        asked = []

        def find(detector, photo):
            asked.append(photo)
            return FoundBoxes(() if len(asked) == 3 else find_spot(photo), ())

        monkeypatch.setattr(OwnDetector, "find", find)
        video = write_video(tmp_path / "walk.mp4", spot_frames(5))
        words = ("--offline-smoothing", "none", "--save", "json,npz")
        assert main(["predict", str(video), "--out", str(tmp_path / "out"), *words]) == 0
        assert len(asked) == 5
        found = FramesFile.find(tmp_path / "out")
        # one frame without anybody is not taken for a crop
        assert [len(frame.people) for frame in found] == [1, 1, 0, 1, 1]
        assert found.tracks == (1,)

    def test_nobody_in_the_whole_video_is_told(self, sees, networks, tmp_path, capsys):
        sees.update(people=())
        video = write_video(tmp_path / "empty.mp4", spot_frames(3))
        words = ("--out", str(tmp_path / "out"), "--save", "json")
        assert main(["predict", str(video), *words]) == 0
        assert "Nobody was found in any frame" in capsys.readouterr().err


@pytest.fixture(scope="module")
def real():
    detector = default_detector("body", "cpu")
    if detector is None:
        pytest.skip("the weights of the detector are not in src/kinemesh/weights yet")
    return detector


def test_the_shipped_file_fits_its_card_and_the_package(real):
    path = registry.weight_path(SHIPPED_DETECTOR)
    card = json.loads(path.with_suffix(".json").read_text("utf-8"))
    assert card["sha256"] == sha256(path)
    assert path.stat().st_size < 16e6
    assert {score["dataset"] for score in card["scores"]} >= {"synthetic-detection"}
    assert not [value for value in card["recipe"].values() if str(value).startswith("/")]


def test_the_shipped_detector_finds_the_astronaut(real):
    photo = kinemesh.load_image(ROOT / "examples" / "astronaut.png")
    best, *_ = real.detect(photo)
    truth = np.array([20, 15, 365, 512])
    x, y, width, height = best.xywh
    found = np.array([x, y, x + width, y + height])
    low, high = np.maximum(truth[:2], found[:2]), np.minimum(truth[2:], found[2:])
    shared = (high - low).clip(min=0).prod()
    union = (truth[2:] - truth[:2]).prod() + width * height - shared
    assert shared / union > 0.5
