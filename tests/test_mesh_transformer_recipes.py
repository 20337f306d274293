"""Recipes of METRO and Mesh Graphormer: published numbers, refusals, learning, two processes."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.models.registry import load_model
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.config import flatten
from kinemesh.training.mesh_transformer_task import MeshTransformerTask
from kinemesh.training.published import PUBLISHED
from kinemesh.training.recipes import RECIPES
from tests.overfitting import (
    CAMERA_SCALE,
    best_blind_loss,
    build_with_head_start,
    trained_losses,
)
from tests.tiny_recipes import NAMES, PUBLISHED_NAMES, tiny, write_data
from tests.two_processes import run_pair


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    write_data(folder)
    return folder


def losses(output):
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row["losses"] for row in rows if row["event"] == "train"]


# Published numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch_size", "processes", "epochs", "masked"),
    [
        ("metro-mixed", 30, 8, 200, 0.3),
        ("metro-3dpw", 30, 8, 5, 0.3),
        ("metro-freihand", 32, 8, 200, 0.0),
        ("graphormer-mixed", 25, 8, 200, 0.3),
        ("graphormer-3dpw", 20, 8, 5, 0.3),
        ("graphormer-freihand", 32, 8, 200, 0.0),
        ("graphormer-handpose", 32, 1, 100, 0.0),
    ],
)
def test_recipes_have_the_published_numbers(name, batch_size, processes, epochs, masked):
    recipe = RECIPES[name]()
    assert (recipe.batch_size, recipe.schedule.epochs) == (batch_size, epochs)
    assert PUBLISHED[name].processes == processes
    assert recipe.masked_share == masked
    fields = flatten(recipe)
    assert fields["optim.lr"] == 1e-4
    assert fields["optim.betas"] == [0.9, 0.999]
    assert fields["optim.weight_decay"] == 0
    assert fields["optim.clip_norm"] is None
    assert fields["optim.backbone_lr_scale"] == 1
    assert (fields["seed"], fields["resolution"], fields["ema_decay"]) == (88, 224, 0)
    assert fields["mixed_precision"] == "no"
    assert all(value is None for value in vars(recipe.network).values())
    if recipe.kind == "body":
        assert fields["weights.levels"] == [0.33, 0.33, 0.33]
        assert (fields["weights.joints_3d"], fields["weights.vertices"]) == (1000, 100)
        assert fields["weights.joints_2d"] == 100


def test_adam_is_what_the_optimiser_does():
    """AdamW without decay in any number of groups equals Adam with one, to the bit."""
    runs = []
    for kind in (torch.optim.Adam, torch.optim.AdamW):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8))
        parameters = list(model.parameters())
        groups = [parameters] if kind is torch.optim.Adam else [parameters[:1], parameters[1:]]
        optimiser = kind([{"params": group} for group in groups], lr=1e-2, weight_decay=0.0)
        for _ in range(20):
            model(torch.randn(5, 4)).square().sum().backward()
            optimiser.step()
            optimiser.zero_grad()
        runs.append(parameters)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_a_published_run_departs_in_nothing_with_its_gpus_and_weights(data):
    recipe = RECIPES["metro-mixed"]()
    recipe.data, recipe.init = str(data / "body" / "tsv" / "people.yaml"), Path("hrnet.pth")
    assert recipe.departures(8) == []
    assert recipe.departures(4) == ["processes 4, published 8"]
    recipe.init = None
    recipe.optim.lr = 2e-4
    assert [note.split()[0] for note in recipe.departures(8)] == ["learning", "starts"]


def test_steps_and_intervals_follow_from_the_data(data, tmp_path):
    recipe = tiny("metro-mixed", data, tmp_path, batch_size=2, validate_every=0, checkpoint_every=0)
    completed = recipe.completed(processes=2)
    assert completed.schedule.steps_per_epoch == 2  # 8 samples, 2 for each of 2 processes
    assert completed.steps == 200 * 2
    assert (completed.validate_every, completed.checkpoint_every) == (2, 2)
    hand = tiny("metro-freihand", data, tmp_path, validate_every=0, checkpoint_every=0)
    completed = hand.completed(processes=1)
    assert (completed.validate_every, completed.checkpoint_every) == (10, 10)
    assert recipe.steps == 0  # the recipe itself is left alone
    with pytest.raises(InputError, match="lower --batch-size"):
        tiny("metro-mixed", data, tmp_path).completed(processes=2)


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_missing_data_is_said_before_any_work(name, tmp_path, capsys):
    assert main(["train", name, "--output", str(tmp_path / "run")]) != 0
    said = capsys.readouterr().err
    assert "--data" in said
    assert ("FreiHAND" in said) == (RECIPES[name]().kind == "hand")
    assert not (tmp_path / "run").exists()


def test_missing_assets_and_weights_name_their_options(data, tmp_path):
    recipe = tiny("metro-mixed", data, tmp_path, assets=None)
    with pytest.raises(InputError, match=r"SMPL.*--assets"):
        train(recipe)
    recipe = tiny("graphormer-freihand", data, tmp_path, assets=tmp_path / "absent")
    with pytest.raises(InputError, match=r"MANO.*absent.*--assets"):
        train(recipe)
    for name in ("metro-3dpw", "graphormer-3dpw-synthetic"):
        with pytest.raises(InputError, match=r"the model of the mixed run.*--init"):
            train(tiny(name, data, tmp_path, fine_tune=True))
    recipe = tiny("metro-3dpw", data, tmp_path, init=tmp_path / "absent.bin")
    with pytest.raises(InputError, match=r"--init.*absent\.bin"):
        train(recipe)
    recipe = tiny("metro-mixed", data, tmp_path, data="nowhere.yaml")
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        train(recipe)


def test_all_recipes_are_listed(capsys):
    assert main(["train"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in NAMES)


# Learning --------------------------------------------------------------------------------------


QUICK = ("metro-mixed", "graphormer-freihand", "graphormer-handpose")
"""A body, a hand and a network without a mesh; the others are these with other numbers or data."""
RECIPES_BY_TIME = [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES
]


@pytest.fixture
def thin(monkeypatch):
    """One residual block where HRNet has four: the smallest backbone is mostly overhead."""
    monkeypatch.setattr("kinemesh.models.hrnet._BLOCKS", 1)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("name", RECIPES_BY_TIME)
def test_eight_samples_are_learned_by_heart(name, data, tmp_path, monkeypatch):
    """Half the loss of the best output that sees no picture, and only with the right pictures."""
    monkeypatch.setattr(MeshTransformerTask, "build_model", build_with_head_start)
    settings = {"steps": 90, "augment": False, "masked_share": 0.0, "resolution": 32}
    recipe = tiny(name, data, tmp_path, **settings)
    recipe.network.dropout = 0.0
    recipe.optim.lr = 6e-3 if "handpose" in name else 4e-3
    recipe.schedule.kind = "step"
    recipe.schedule.step_at, recipe.schedule.factor = (0.6, 0.75, 0.9), 0.4
    train(recipe)
    task = recipe.build_task()
    samples = task.train_dataset()
    batch = task.collate([samples[index] for index in range(len(samples))])
    blind = best_blind_loss(task.objective, batch, CAMERA_SCALE[recipe.kind])
    right, swapped = trained_losses(task, tmp_path / "last", batch)
    print(f"{name}: {right / blind:.2f} of the best blind output, {swapped / right:.1f} swapped")
    assert right < blind / 2
    assert swapped > 2 * right


def assert_same_run(one, other):
    assert losses(one) == losses(other)
    first, second = read_checkpoint(one / "last")[0], read_checkpoint(other / "last")[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("name", RECIPES_BY_TIME)
def test_a_run_that_died_resumes_exactly(name, data, tmp_path, monkeypatch):
    """With dropout, masks and varied samples, as published."""
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 4, "resolution": 32}
    loss, calls = MeshTransformerTask.loss, []

    def dies(task, model, batch):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(task, model, batch)

    monkeypatch.setattr(MeshTransformerTask, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(name, data, tmp_path / "died", **settings))
    monkeypatch.setattr(MeshTransformerTask, "loss", loss)
    assert read_checkpoint(tmp_path / "died" / "last")[1]["step"] == 2
    train(tiny(name, data, tmp_path / "died", **settings))
    train(tiny(name, data, tmp_path / "whole", **settings))
    assert_same_run(tmp_path / "died", tmp_path / "whole")


PAIRED = (*QUICK, "graphormer-mixed", "metro-mixed-synthetic", "graphormer-handpose-synthetic")
"""Those, a graph convolution between the others, and rendered data of each kind."""


@pytest.mark.parametrize(
    "names",
    [PAIRED, pytest.param(sorted({*NAMES} - {*PAIRED}), marks=pytest.mark.slow)],
    ids=["some", "others"],
)
def test_recipes_run_in_two_processes(names, data, tmp_path):
    run_pair("tests.tiny_recipes", data, tmp_path, *names)
    for name in names:
        assert len(losses(tmp_path / name)) == 2
        assert all(math.isfinite(row["total"]) for row in losses(tmp_path / name))
        assert read_checkpoint(tmp_path / name / "last")[1]["processes"] == 2


def test_processes_need_not_look_for_parameters_without_a_gradient():
    assert not any(RECIPES[name]().find_unused_parameters for name in NAMES)


# What is left behind ---------------------------------------------------------------------------


def test_weights_load_and_start_a_fine_tuning(data, tmp_path):
    """A synthetic run's weights hold Anny's mesh; a published run's need the user's assets."""
    own = train(tiny("metro-mixed", data, tmp_path / "own", steps=1))
    assert own.best_metrics.keys() >= {"pa_mpjpe_mm", "mpjpe_mm", "mpvpe_mm"}
    with pytest.raises(InputError, match="--assets"):
        load_model(own.best)
    network, topology, record = load_model(own.best, data / "body" / "assets")
    assert topology.name == "smpl"
    assert record["resolution"] == 64
    tuned = tiny("metro-3dpw", data, tmp_path / "tuned", init=own.best, fine_tune=True)
    started = tuned.build_task().build_model().state_dict()
    assert all(torch.equal(started[name], value) for name, value in network.state_dict().items())
    tuned.steps = 1
    train(tuned)
    for output, origin in (("own", None), ("tuned", own.best.name)):
        recipe = json.loads((tmp_path / output / "recipe.json").read_text())
        assert ("started_from" in recipe) == (origin is not None)
        assert origin is None or origin in recipe["started_from"]


def test_a_run_without_validation_keeps_its_last_weights(data, tmp_path):
    result = train(tiny("graphormer-freihand", data, tmp_path, steps=2))
    network, topology, _ = load_model(result.best, data / "hand" / "assets")
    trained = read_checkpoint(tmp_path / "last")[0]
    for name, value in network.state_dict().items():
        assert torch.equal(value, trained[f"model.{name}"])
    assert topology.name == "mano"


def test_a_synthetic_hand_is_measured_and_saved_with_its_mesh(data, tmp_path):
    result = train(tiny("graphormer-freihand-synthetic", data, tmp_path, steps=1))
    assert result.best_metrics.keys() >= {"pa_mpjpe_mm", "pa_mpvpe_mm"}
    assert load_model(result.best)[1].name == "anny-hand"
    assert json.loads((tmp_path / "recipe.json").read_text())["departures"]
    assert list((tmp_path / "pictures").glob("*.png"))
