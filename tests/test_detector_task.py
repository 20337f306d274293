"""Training and scoring of the detector: recipes, resuming, learning scenes by heart, AP."""

import json

import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.evaluation.detection import (
    DetectionTable,
    evaluate_coco_people,
    evaluate_detector,
)
from kinemesh.models.detector import CLASSES, PERSON, Detector, DetectorConfig
from kinemesh.models.detector_files import load_detector_network, save_detector
from kinemesh.models.registry import load_model
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.recipes import RECIPES

pytest.importorskip("accelerate")
pytest.importorskip("faster_coco_eval")


@pytest.fixture(scope="module")
def cut_outs(tmp_path_factory):
    """One folder for all runs: rendering is what takes time."""
    return tmp_path_factory.mktemp("cut-outs")


def tiny(folder, cut_outs, **changes):
    recipe = RECIPES["debug-detector"]()
    recipe.network = DetectorConfig(side=128, channels=16, tower_layers=1, batch_norm_momentum=0.1)
    recipe.imagenet = False
    recipe.samples = recipe.validation_samples = 4
    recipe.batch_size = 2
    recipe.bodies, recipe.hands = 2, 1
    recipe.steps = 4
    recipe.threads, recipe.device = 1, "cpu"
    recipe.log_every = 1
    recipe.validate_every = recipe.checkpoint_every = 2
    recipe.output, recipe.cut_outs = folder, cut_outs
    for name, value in changes.items():
        setattr(recipe, name, value)
    return recipe


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, cut_outs):
    whole = train(tiny(tmp_path / "whole", cut_outs))
    parts = tiny(tmp_path / "parts", cut_outs, steps=4, checkpoint_every=2)
    parts.steps = 2
    parts.schedule.kind = "constant"
    whole_constant = tiny(tmp_path / "constant", cut_outs)
    whole_constant.schedule.kind = "constant"
    expected = train(whole_constant)
    train(parts)
    parts.steps = 4
    resumed = train(parts)
    assert resumed.step == expected.step == whole.step == 4
    one, other = (read_checkpoint(run.output / "last")[0] for run in (expected, resumed))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = (resumed.output / "log.jsonl").read_text().splitlines()
    steps = [row["step"] for row in map(json.loads, rows) if row["event"] == "train"]
    assert steps == [1, 2, 3, 4]
    network, record = load_detector_network(resumed.best)
    assert record["classes"] == list(CLASSES)
    assert network.config.side == 128
    assert (resumed.output / "pictures").is_dir()


def test_starts_from_a_detector(tmp_path, cut_outs):
    first = train(tiny(tmp_path / "first", cut_outs, steps=1))
    recipe = tiny(tmp_path / "second", cut_outs, steps=1, init=first.best)
    task = recipe.build_task()
    network = task.build_model()
    expected, _ = load_detector_network(first.best)
    for name, value in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], value), name
    recipe.network = DetectorConfig(side=128, channels=32)
    with pytest.raises(InputError, match="same sizes"):
        recipe.build_task().build_model()
    with pytest.raises(InputError, match="no file"):
        train(tiny(tmp_path / "third", cut_outs, init=tmp_path / "none.safetensors"))
    random = tiny(tmp_path / "fourth", cut_outs)
    random.network = DetectorConfig(side=128, channels=16, frozen_blocks=2)
    with pytest.raises(InputError, match="random weights"):
        train(random)


def test_a_tiny_network_begins_to_learn(tmp_path, cut_outs):
    recipe = tiny(tmp_path, cut_outs, steps=12, batch_size=4, validate_every=100)
    recipe.schedule.warmup_steps = 2
    recipe.optim.lr = 4e-3
    train(recipe)
    rows = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    totals = [row["losses"]["total"] for row in rows if row["event"] == "train"]
    assert np.mean(totals[-3:]) < 0.8 * np.mean(totals[:3])


@pytest.mark.slow
def test_learns_eight_scenes_by_heart(tmp_path):
    recipe = RECIPES["debug-detector"]()
    recipe.output, recipe.threads, recipe.device = tmp_path, 1, "cpu"
    metrics = train(recipe).metrics
    assert all(metrics[f"AP50 {name}"] > 0.95 for name in CLASSES), metrics


def test_scores_of_perfect_of_half_and_of_ignored_boxes():
    table = DetectionTable()
    boxes = np.array([[0, 0, 20, 20], [30, 30, 60, 80], [70, 0, 90, 40.0]])
    labelled = (boxes, np.array([0, 0, 1]), np.array([False, False, False]))
    table.add((100, 100), labelled, (boxes, np.array([0, 0, 1]), np.array([0.9, 0.8, 0.7])))
    scores = table.scores()
    assert scores["AP50 person"] == scores["AP left hand"] == pytest.approx(1)
    assert np.isnan(scores["AP50 right hand"])
    # one of two found, and one wrong box that is surer: precision 1/2 up to recall 1/2
    half = DetectionTable()
    found = np.array([[0, 50, 20, 90], [30, 30, 60, 80.0]])
    half.add((100, 100), labelled, (found, np.array([0, 0]), np.array([0.9, 0.8])))
    assert half.scores()["AP50 person"] == pytest.approx(0.5 * 51 / 101)
    # the wrong box lies in somebody who is ignored
    ignored = DetectionTable()
    more = np.concatenate([boxes[:2], [[0, 45, 25, 95.0]]])
    marks = np.array([False, False, True])
    ignored.add((100, 100), (more, np.zeros(3, int), marks), (found, np.zeros(2, int), np.ones(2)))
    assert ignored.scores()["AP50 person"] == pytest.approx(51 / 101)


def test_a_weight_file_is_scored_by_the_name_of_the_data(tmp_path, capsys):
    path = tmp_path / "tiny.safetensors"
    network = Detector(DetectorConfig(side=128, channels=16, tower_layers=1))
    save_detector(path, network.eval(), {})
    words = ["eval", str(path), "synthetic-detection", "--count", "2", "--device", "cpu"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "AP50 left hand" in printed
    assert "2 photos" in printed
    with pytest.raises(InputError, match="synthetic-detection or coco:FOLDER"):
        evaluate_detector(path, "synthetic-body")
    with pytest.raises(InputError, match="OwnDetector"):
        load_model(path)


def test_scores_without_any_detection():
    table = DetectionTable()
    nothing = (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0))
    labelled = (np.array([[0, 0, 9, 9.0]]), np.array([PERSON]), np.array([False]))
    table.add((20, 20), labelled, nothing)
    scores = table.scores()
    assert scores["AP50 person"] == 0
    assert np.isnan(scores["AP50 left hand"])


def test_people_of_coco(shared):
    folder = shared / "data" / "coco_train2017_subset"
    recipe = RECIPES["debug-detector"]()
    recipe.imagenet = False
    recipe.network = DetectorConfig(side=128, channels=16, tower_layers=1)
    network = recipe.build_task().build_model().eval()
    result = evaluate_coco_people(network, folder, side=128, count=2)
    assert result.counts["images"] == 2
    assert result.counts["labelled people"] > 0
    assert 0 <= result.values["AP50 person"] < 0.5
    assert "AP50 person" in str(result)
    assert json.loads(json.dumps(result.to_dict()))["counts"] == dict(result.counts)
