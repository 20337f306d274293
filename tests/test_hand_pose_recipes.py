"""Recipes of hand pose: published numbers, refusals, learning, resuming, two processes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinemesh.cli import main
from kinemesh.data import ego_exo4d
from kinemesh.data.ego_exo4d import open_ego_exo4d
from kinemesh.errors import InputError
from kinemesh.evaluation.hand_pose import HandRun, evaluate_hands
from kinemesh.hand_losses import pose3d_loss
from kinemesh.models.hand_pose_networks import HandPoseNetwork, network_inputs
from kinemesh.models.joint_statistics import JointStatistics
from kinemesh.models.potter_hand import PotterHandConfig
from kinemesh.models.registry import load_hand_pose_model, load_model, read_weights
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.config import flatten
from kinemesh.training.hand_pose_task import HandPoseTask
from kinemesh.training.recipes import RECIPES
from tests.tiny_hand_recipes import NAMES, PUBLISHED_NAMES, SAMPLES, tiny, write_data
from tests.two_processes import run_pair

KINDS = ("potter-egoexo4d", "potter-hand", "hand-lifting")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def rows(output, event):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def losses(output):
    return [row["losses"] for row in rows(output, "train")]


# Published numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "epochs"), [("potter-egoexo4d", 64, 70), ("potter-egoexo4d-course", 16, 15)]
)
def test_recipes_have_the_published_numbers(name, batch, epochs, data):
    recipe = RECIPES[name]()
    assert recipe.network == PotterHandConfig()
    assert recipe.network.dropout == recipe.network.drop_path == 0.1
    fields = flatten(recipe)
    expected = {
        "batch_size": batch,
        "validation_batch_size": batch,
        "schedule.epochs": epochs,
        "schedule.kind": "constant",
        "schedule.warmup_steps": 0,
        "optim.lr": 1e-4,
        "optim.weight_decay": 0.0,
        "optim.betas": [0.9, 0.999],
        "optim.clip_norm": None,
        "ema_decay": 0.0,
        "choose_by": "loss",
        "layer_scale": None,
        "mixed_precision": "no",
    }
    assert {key: fields[key] for key in expected} == expected
    assert recipe.statistics() == JointStatistics.EGOEXO4D
    recipe.data, recipe.init = f"ego-exo4d:{data}", Path("cls_s12.pth")
    assert recipe.departures(1) == []
    recipe.optim.lr, recipe.init = 1e-3, None
    notes = recipe.departures(2)
    assert [note.split()[0] for note in notes] == ["processes", "learning", "starts"]


def test_steps_and_intervals_follow_from_the_data(data, tmp_path):
    changes = {"batch_size": 2, "steps": 0, "validate_every": 0, "checkpoint_every": 0}
    recipe = tiny("potter-egoexo4d-course", data, tmp_path, **changes).completed(processes=2)
    assert recipe.schedule.steps_per_epoch == 2  # 8 samples, 2 for each of 2 processes
    assert recipe.steps == 15 * 2
    assert (recipe.validate_every, recipe.checkpoint_every) == (2, 2)


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_missing_data_is_said_before_any_work(name, tmp_path, capsys):
    assert main(["train", name, "--output", str(tmp_path / "run")]) != 0
    assert "--data ego-exo4d:FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_named_with_its_option(data, tmp_path):
    with pytest.raises(InputError, match=r"--data: expected ego-exo4d:FOLDER.*found 'nonsense'"):
        train(tiny("potter-hand", data, tmp_path, data="nonsense"))
    with pytest.raises(InputError, match=r"--validation-data: expected.*'nonsense'"):
        train(tiny("potter-hand", data, tmp_path, validation_data="nonsense"))
    with pytest.raises(InputError, match=r"--init.*absent\.pth"):
        train(tiny("potter-hand", data, tmp_path, init=tmp_path / "absent.pth"))
    with pytest.raises(InputError, match=r"--data: expected synthetic-hand, found 'ego-exo4d"):
        train(tiny("hand-lifting", data, tmp_path, data=f"ego-exo4d:{data}"))
    with pytest.raises(InputError, match="--layer-scale"):
        train(tiny("hand-lifting", data, tmp_path, layer_scale=0.1))
    assert not list(tmp_path.glob("*/last"))


@pytest.mark.parametrize("name", ["potter-hand", "hand-lifting"])
def test_numbers_can_be_changed_on_the_command_line(name, capsys):
    with pytest.raises(SystemExit) as left:
        main(["train", name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert ("--network.widths" in said) == (name == "potter-hand")
    assert ("--network.heads" in said) == (name == "hand-lifting")


# Learning --------------------------------------------------------------------------------------


def blind_loss(task, batch):
    """Loss of the best output that is the same for all samples: the mean of each joint's labels.

    The loss is a mean of squares over labelled joints, so no constant does better.
    """
    target = task.statistics.normalise(batch["joints_m"] * 1000)
    seen = batch["visible"][..., None]
    mean = (target * seen).sum(0) / seen.sum(0).clamp(min=1)
    return pose3d_loss(mean.expand_as(target), target, batch["visible"]).item()


def overfit(name, data, output, steps):
    """Losses of the blind constant, of the trained network, and with samples swapped."""
    recipe = tiny(name, data, output, steps=steps)
    recipe.network = replace(recipe.network, dropout=0.0)
    if name != "hand-lifting":
        recipe.network = replace(recipe.network, drop_path=0.0)
    recipe.schedule.kind, recipe.schedule.warmup_steps = "constant", 0
    recipe.optim.lr, recipe.ema_decay = 3e-3, 0.0
    train(recipe)
    task = HandPoseTask(recipe)
    dataset = task.train_dataset()
    batch = task.collate([dataset[index] for index in range(SAMPLES)])
    network = load_hand_pose_model(output / "best" / "weights.safetensors")[0].network
    swapped = {key: value.roll(1, dims=0) for key, value in batch.items()}
    labels = {key: batch[key] for key in ("joints_m", "visible")}
    with torch.inference_mode():
        right, wrong = (
            task._cost(network(*network_inputs(recipe.architecture, seen)), labels).item()
            for seen in (batch, swapped)
        )
    return blind_loss(task, batch), right, wrong


def test_eight_samples_are_learned_by_heart(data, tmp_path):
    """Far below what any output reaches that sees no picture; swapped pictures are no help."""
    blind, right, wrong = overfit("potter-egoexo4d", data, tmp_path, 60)
    assert right < 0.2 * blind
    assert wrong > blind


def test_eight_views_are_lifted_by_heart(data, tmp_path, monkeypatch):
    """With the views of step 0 at every step: a lifter sees each hand anew in training."""
    monkeypatch.setattr(
        "kinemesh.data.synthetic.hand_pose_samples.SyntheticHandJoints.set_step", lambda *_: None
    )
    blind, right, wrong = overfit("hand-lifting", data, tmp_path, 150)
    assert right < 0.2 * blind
    assert wrong > blind


@pytest.mark.slow
@pytest.mark.parametrize("name", ["potter-egoexo4d-course", "potter-hand"])
def test_other_recipes_learn_eight_samples(name, data, tmp_path):
    blind, right, wrong = overfit(name, data, tmp_path, 150)
    assert right < 0.1 * blind
    assert wrong > blind


def assert_same_run(one, other):
    assert losses(one) == losses(other)
    first, second = read_checkpoint(one / "last")[0], read_checkpoint(other / "last")[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_died_resumes_exactly(name, data, tmp_path, monkeypatch):
    """With dropout and, in lifting, with views that are drawn anew."""
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 4}
    loss, calls = HandPoseTask.loss, []

    def dies(task, model, batch):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(task, model, batch)

    monkeypatch.setattr(HandPoseTask, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(name, data, tmp_path / "died", **settings))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "died" / "last")[1]["step"] == 2
    train(tiny(name, data, tmp_path / "died", **settings))
    train(tiny(name, data, tmp_path / "whole", **settings))
    assert_same_run(tmp_path / "died", tmp_path / "whole")


@pytest.mark.parametrize("names", [KINDS, pytest.param(NAMES[1:2], marks=pytest.mark.slow)])
def test_recipes_run_in_two_processes(names, data, tmp_path):
    run_pair("tests.tiny_hand_recipes", data, tmp_path, *names)
    for name in names:
        assert len(losses(tmp_path / name)) == 2
        assert all(math.isfinite(row["total"]) for row in losses(tmp_path / name))
        assert read_checkpoint(tmp_path / name / "last")[1]["processes"] == 2
        assert not RECIPES[name]().find_unused_parameters


# What is left behind ---------------------------------------------------------------------------


def test_validation_measures_loss_and_millimetres_and_draws(data, tmp_path):
    train(tiny("potter-egoexo4d", data, tmp_path, steps=2, validate_every=1))
    (first, last) = (row["metrics"] for row in rows(tmp_path, "validation"))
    assert first.keys() == {"loss", "mpjpe_mm", "pa_mpjpe_mm"}
    assert 0 < last["pa_mpjpe_mm"] < last["mpjpe_mm"] < 300
    assert len(list((tmp_path / "pictures").iterdir())) == 2


@pytest.mark.parametrize("name", KINDS)
def test_weights_tell_what_they_need_and_load_again(name, data, tmp_path):
    best = train(tiny(name, data, tmp_path, steps=1, ema_decay=0.0)).best
    tensors, record = read_weights(best)
    assert record["task"] == "hand"
    assert record["architecture"] == ("joint-lifter" if name == "hand-lifting" else "potter-hand")
    assert record["sides"] == ("both" if name == "potter-egoexo4d" else "right")
    assert record["crops"] == ("ego-exo4d" if name == "potter-egoexo4d" else "synthetic")
    assert record.get("resolution") == (None if name == "hand-lifting" else 32)
    network, _ = load_hand_pose_model(best)
    assert not network.training
    trained = read_checkpoint(tmp_path / "last")[0]
    for key, value in network.network.state_dict().items():
        assert torch.equal(value, trained[f"model.{key}"])
        assert torch.equal(value, tensors[f"model.{key}"])
    is_published = network.statistics == JointStatistics.EGOEXO4D
    assert is_published == (name == "potter-egoexo4d")
    with pytest.raises(InputError, match="has no mesh"):
        load_model(best)


def test_a_run_begins_with_the_weights_of_another(data, tmp_path):
    first = train(tiny("potter-egoexo4d", data, tmp_path / "one", steps=1, ema_decay=0.0)).best
    second = tiny("potter-hand", data, tmp_path / "two", init=first)
    task = HandPoseTask(second)
    network = task.build_model()
    assert "weights.safetensors" in task.started_from
    saved = read_weights(first)[0]
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="--init:"):
        HandPoseTask(replace(second, init=tmp_path / "bad.pth")).build_model()


def test_a_start_under_other_statistics_is_told(data, tmp_path):
    """Output in other units than the weights were trained for is no continuation."""
    first = train(tiny("potter-egoexo4d", data, tmp_path / "one", steps=1, ema_decay=0.0)).best
    same = HandPoseTask(tiny("potter-egoexo4d", data, tmp_path / "same", init=first))
    same.build_model()
    assert "statistics" not in same.started_from
    other = HandPoseTask(tiny("potter-hand", data, tmp_path / "other", init=first))
    other.build_model()
    assert "other statistics of joints" in other.started_from


def test_annotations_are_read_once(data, tmp_path, monkeypatch):
    read, calls = ego_exo4d.read_annotations, []
    monkeypatch.setattr(ego_exo4d, "read_annotations", lambda p: calls.append(p) or read(p))
    train(tiny("potter-egoexo4d", data, tmp_path, steps=1))
    assert sorted(path.name.split("_")[4] for path in calls) == ["train", "val"]


class Sees(torch.nn.Module):
    """Answers with the mean of the left half of the crop minus that of the right, along x."""

    def forward(self, image):
        half = image.shape[-1] // 2
        gap = image[..., :half].mean((1, 2, 3)) - image[..., half:].mean((1, 2, 3))
        return torch.stack([gap, gap * 0, gap * 0], dim=-1)[:, None].expand(-1, 21, 3)


def test_validation_mirrors_left_hands_as_evaluation_does(data, tmp_path):
    """A run on rendered right hands, validated on real hands of both sides."""
    changes = {"validation_data": f"ego-exo4d:{data}", "choose_by": "mpjpe_mm"}
    task = tiny("potter-hand", data, tmp_path, **changes).completed(1).build_task()
    network = HandPoseNetwork(Sees(), task.statistics)
    found = task.validate(network.network, torch.device("cpu"))
    hands = open_ego_exo4d(f"ego-exo4d:{data}", "val", size=32, crops="synthetic")
    one, other = (
        evaluate_hands(network, hands, HandRun(sides=sides)).reports for sides in ("right", "both")
    )
    assert found["mpjpe_mm"] == pytest.approx(one[0].value, rel=1e-5)
    assert found["pa_mpjpe_mm"] == pytest.approx(one[1].value, rel=1e-4)
    assert abs(one[0].value - other[0].value) > 1e-3


def test_lifting_is_scored_beside_networks_on_pictures(data, tmp_path, capsys):
    """By the same protocol, which says that the 2D joints of the labels went in."""
    said = {}
    for name in ("potter-hand", "hand-lifting"):
        best = train(tiny(name, data, tmp_path / name, steps=1)).best
        capsys.readouterr()
        assert main(["eval", str(best), "synthetic-hand", "--count", "3", "--device", "cpu"]) == 0
        said[name] = capsys.readouterr().out
        assert "protocol hand-pose" in said[name]
        assert "PA-MPJPE" in said[name]
    assert "given those of the labels" in said["hand-lifting"]
    assert "given" not in said["potter-hand"]
