"""Recipes of PointHMR: published numbers, learning against a blind output, resuming, processes.

As a program it runs two steps of each recipe: ``python -m tests.test_point_hmr_recipes DATA OUT``.
"""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.models.checkpoints import to_official
from kinemesh.models.point_hmr import PointHmrOutput
from kinemesh.models.point_sampling import heat_maps
from kinemesh.models.registry import load_model
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.config import flatten
from kinemesh.training.point_hmr_task import (
    PointHmrRecipe,
    PointHmrTask,
    PointNetworkChanges,
)
from kinemesh.training.recipes import RECIPES
from tests.mesh_training_data import SAMPLES, write_body_data
from tests.no_waiting import NoWaiting
from tests.two_processes import run_pair

NAMES = tuple(name for name in RECIPES if name.startswith("point-hmr"))
SYNTHETIC = "point-hmr-synthetic"


def tiny(name: str, data: Path, output: Path, **changes: object) -> PointHmrRecipe:
    """A recipe with every number published but those of size, data and intervals."""
    recipe = RECIPES[name]()
    assert isinstance(recipe, PointHmrRecipe)
    recipe.network = PointNetworkChanges(
        width=4,
        stem_width=4,
        modules=(1, 1, 1),
        feature_width=16,
        position_width=8,
        second_width=16,
        feed_forward=(32, 32),
        layers=1,
        heads=2,
    )
    if name != SYNTHETIC:
        recipe.assets, recipe.data = data / "assets", str(data / "tsv" / "people.yaml")
        recipe.validation_data = recipe.data
    recipe.fine_tune = False
    recipe.resolution = 64
    recipe.samples = recipe.batch_size = SAMPLES
    recipe.validation_samples = 2
    recipe.workers, recipe.threads, recipe.device = 0, 1, "cpu"
    recipe.log_every = 1
    recipe.validate_every = recipe.checkpoint_every = 1000
    recipe.output = output
    for field, value in changes.items():
        assert hasattr(recipe, field)
        setattr(recipe, field, value)
    return recipe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    write_body_data(folder)
    return folder


@pytest.fixture
def thin(monkeypatch):
    """One residual block where HRNet has four: the smallest backbone is mostly overhead."""
    monkeypatch.setattr("kinemesh.models.hrnet._BLOCKS", 1)


def losses(output):
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row["losses"] for row in rows if row["event"] == "train"]


# Published numbers -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lr", "epochs"),
    [
        ("point-hmr-mixed", 1e-5, 60),
        ("point-hmr-3dpw", 1e-4, 5),
        ("point-hmr-mixed-exchanged-lr", 1e-4, 60),
        ("point-hmr-3dpw-exchanged-lr", 1e-5, 5),
    ],
)
def test_recipes_have_the_published_numbers(name, lr, epochs):
    recipe = RECIPES[name]()
    fields = flatten(recipe)
    assert (fields["optim.lr"], fields["schedule.epochs"]) == (lr, epochs)
    assert (recipe.batch_size, recipe.run.processes) == (12, 2)
    assert fields["optim.betas"] == [0.9, 0.999]
    assert (fields["optim.weight_decay"], fields["optim.clip_norm"]) == (0, None)
    assert (fields["seed"], fields["resolution"], fields["ema_decay"]) == (88, 224, 0)
    assert fields["schedule.kind"] == "epochs"
    weights = [fields[f"weights.{n}"] for n in ("joints_3d", "vertices", "joints_2d", "heat")]
    assert weights == [1000, 100, 100, 10]
    assert fields["weights.cross_entropy"] == 1000
    assert all(value is None for value in vars(recipe.network).values())
    assert recipe.fine_tune == ("3dpw" in name)
    recipe.data, recipe.init = "people.yaml", Path("start.pth")
    stated = not name.endswith("lr")
    assert [note.split(",")[0] for note in recipe.departures(2)] == (
        [] if stated else [f"learning rate {lr}"]
    )


def test_steps_follow_from_the_data(data, tmp_path):
    recipe = tiny("point-hmr-mixed", data, tmp_path, batch_size=2, validate_every=0)
    completed = recipe.completed(processes=2)
    assert (completed.steps, completed.schedule.steps_per_epoch) == (60 * 2, 2)
    assert completed.validate_every == 2


# Refusals --------------------------------------------------------------------------------------


def test_missing_data_assets_and_weights_name_their_options(data, tmp_path, capsys):
    assert main(["train", "point-hmr-mixed", "--output", str(tmp_path / "run")]) != 0
    assert "--data" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"SMPL.*--assets"):
        train(tiny("point-hmr-mixed", data, tmp_path, assets=None))
    for spec in ("ego-exo4d:EGO", "freihand:FreiHAND", "synthetic-hand"):
        recipe = tiny("point-hmr-mixed", data, tmp_path, assets=None)
        recipe.data = spec
        with pytest.raises(InputError, match=rf"'{spec}' does not fit.*\.yaml.*synthetic-body"):
            train(recipe)
    with pytest.raises(InputError, match=r"the model of the mixed run.*--init"):
        train(tiny("point-hmr-3dpw", data, tmp_path, fine_tune=True))
    path = tmp_path / "odd.pth"
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"^--init: .*PointHRNet.*missing"):
        tiny("point-hmr-mixed", data, tmp_path, init=path).build_task().build_model()


# One step --------------------------------------------------------------------------------------


def first_batch(task: PointHmrTask, count: int = SAMPLES):
    dataset = task.train_dataset()
    return task.collate([dataset[index] for index in range(count)])


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize("name", ["point-hmr-mixed", SYNTHETIC])
def test_a_step_reaches_every_parameter_and_waits_for_nothing(name, data, tmp_path):
    torch.manual_seed(0)
    task = tiny(name, data, tmp_path).build_task()
    batch, network = first_batch(task, 3), task.build_model().train()
    with NoWaiting():
        terms = task.loss(network, batch)
        terms["total"].backward()
    assert all(value.isfinite() for value in terms.values())
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_marked_samples_can_lose_their_2d_joints(data, tmp_path):
    counted, heeded = (
        tiny("point-hmr-mixed", data, tmp_path, heed_has_2d=heed).build_task()
        for heed in (False, True)
    )
    batch = first_batch(counted, 2)
    batch["has_2d"] = torch.tensor([1.0, 0.0])
    every = counted.objective.targets(batch).joints_2d_BT3
    some = heeded.objective.targets(batch).joints_2d_BT3
    assert every[1, :, 2].any()
    assert torch.equal(some[0], every[0])
    assert not some[1, :, 2].any()


# Learning --------------------------------------------------------------------------------------


def best_blind_loss(task: PointHmrTask, batch) -> float:
    """Loss of the best output that is the same for all pictures, heat maps included."""
    targets = task.objective.targets(batch)
    full = targets.vertices_BV3[targets.has_mesh_B > 0].median(0, keepdim=True).values
    levels = [level.vertex_index for level in reversed(task.topology.levels)]
    joints = targets.joints_3d_BT4[targets.has_3d_B > 0][..., :3].mean(0, keepdim=True)
    side = batch["image"].shape[-1] // 4
    free = [torch.tensor([[1.0, 0.0, 0.0]]), joints, *(full[:, index] for index in levels), full]
    free.append(torch.zeros(1, len(levels[0]), side, side))
    free = [value.clone().requires_grad_() for value in free]
    groups = [
        {"params": free[:1], "lr": 0.05},
        {"params": free[1:-1]},
        {"params": free[-1:], "lr": 1},
    ]
    optimiser = torch.optim.Adam(groups, lr=1e-3)
    best = float("inf")
    for _ in range(100):
        camera, joints, *vertices, logits = (
            value.expand(len(batch["image"]), *value.shape[1:]) for value in free
        )
        output = PointHmrOutput(camera, joints, tuple(vertices), heat_maps(logits))
        total = task.objective(output, batch)["total"]
        best = min(best, total.item())
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    return best


def least_heat_loss(recipe: PointHmrRecipe) -> float:
    """What heat maps cost that have everything in the right cell, a quarter of it in the position.

    For the small pictures of this test it is a third of the loss of a blind output.
    """
    positions = (recipe.resolution // 4 * 2) ** 2
    cross_entropy = (math.log(4) - 3 * math.log(3 / 4)) / positions
    return recipe.weights.heat * (3 / 4 + recipe.weights.cross_entropy * cross_entropy)


@torch.no_grad()
def trained_losses(task: PointHmrTask, checkpoint, batch) -> tuple[float, float]:
    """Total loss of trained weights, and with each picture in the place of the next."""
    network = task.build_model().train()  # with the statistics of the batch, as it was trained
    tensors = read_checkpoint(checkpoint)[0]
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    swapped = dict(batch) | {"image": batch["image"].roll(1, dims=0)}
    return tuple(task.loss(network, each)["total"].item() for each in (batch, swapped))


@pytest.mark.usefixtures("thin")
@pytest.mark.parametrize(
    "name", ["point-hmr-mixed", pytest.param(SYNTHETIC, marks=pytest.mark.slow)]
)
def test_eight_samples_are_learned_by_heart(name, data, tmp_path):
    """Well below the best output that sees no picture, and only with the right pictures."""
    recipe = tiny(name, data, tmp_path, steps=240, augment=False, resolution=32)
    recipe.network.dropout = 0.0
    recipe.optim.lr = 4e-3
    recipe.schedule.kind = "step"
    recipe.schedule.step_at, recipe.schedule.factor = (0.6, 0.75, 0.9), 0.4
    train(recipe)
    task = recipe.build_task()
    batch = first_batch(task)
    least = least_heat_loss(recipe)
    blind = best_blind_loss(task, batch) - least
    right, swapped = (total - least for total in trained_losses(task, tmp_path / "last", batch))
    print(f"{name}: {right / blind:.2f} of the best blind output, {swapped / right:.1f} swapped")
    assert right < blind / 2
    assert swapped > 2 * right


@pytest.mark.usefixtures("thin")
def test_a_run_that_died_resumes_exactly(data, tmp_path, monkeypatch):
    """With dropout and varied samples, as published."""
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 4, "resolution": 32}
    loss, calls = PointHmrTask.loss, []

    def dies(task, model, batch):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(task, model, batch)

    monkeypatch.setattr(PointHmrTask, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny("point-hmr-mixed", data, tmp_path / "died", **settings))
    monkeypatch.setattr(PointHmrTask, "loss", loss)
    assert read_checkpoint(tmp_path / "died" / "last")[1]["step"] == 2
    for run in ("died", "whole"):
        train(tiny("point-hmr-mixed", data, tmp_path / run, **settings))
    assert losses(tmp_path / "died") == losses(tmp_path / "whole")
    first, second = (read_checkpoint(tmp_path / run / "last")[0] for run in ("died", "whole"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_share_a_run(data, tmp_path):
    run_pair("tests.test_point_hmr_recipes", data, tmp_path)
    assert len(losses(tmp_path / "run")) == 2
    assert all(math.isfinite(row["total"]) for row in losses(tmp_path / "run"))
    assert read_checkpoint(tmp_path / "run" / "last")[1]["processes"] == 2


# What is left behind ---------------------------------------------------------------------------


@pytest.mark.usefixtures("thin")
def test_weights_load_and_start_a_fine_tuning(data, tmp_path):
    settings = {"steps": 1, "resolution": 32}
    own = train(tiny("point-hmr-mixed", data, tmp_path / "own", **settings))
    assert own.best_metrics.keys() >= {"pa_mpjpe_mm", "mpjpe_mm", "mpvpe_mm"}
    network, topology, record = load_model(own.best, data / "assets")
    assert (topology.name, record["resolution"]) == ("smpl", 32)
    official = tmp_path / "official.pth"
    torch.save(to_official(network.state_dict(), "point-hmr"), official)
    for start in (own.best, official):
        tuned = tiny("point-hmr-3dpw", data, tmp_path / "t", init=start, resolution=32)
        begun = tuned.build_task().build_model().state_dict()
        assert all(torch.equal(begun[name], v) for name, v in network.state_dict().items())


if __name__ == "__main__":
    recipe = tiny("point-hmr-mixed", Path(sys.argv[1]), Path(sys.argv[2]) / "run", steps=2)
    recipe.batch_size = SAMPLES // 2
    train(recipe)
