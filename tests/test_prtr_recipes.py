"""PRTR's recipes: published numbers, refusals, learning, resuming, two processes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import read_out
from kinemesh.matching import assign, keypoint_cost
from kinemesh.models.registry import load_keypoint_model, read_weights
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.config import ScheduleConfig, flatten
from kinemesh.training.prtr_published import PROCESSES
from kinemesh.training.prtr_task import PrtrTask
from kinemesh.training.recipes import RECIPES
from kinemesh.training.schedules import lr_factor, run_fraction
from kinemesh.training.sequential_task import SequentialTask, in_label_frame, keypoint_targets
from tests.tiny_prtr_recipes import (
    NAMES,
    PUBLISHED_NAMES,
    SAMPLES,
    SEQUENTIAL_NAMES,
    tiny,
    write_data,
)
from tests.two_processes import run_pair

FAMILIES = (
    "prtr-coco-res50-384x288",
    "prtr-mpii-w32-256x256",
    "prtr-coco-deform-res50-384x288",
    "prtr-sequential-detector",
    "prtr-sequential",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


def losses(output):
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row["losses"] for row in rows if row["event"] == "train"]


# Published numbers -----------------------------------------------------------------------------

TABLE = """
prtr-coco-res50-384x288         resnet 50  False 288 384 bgr 0.1 32 64 200 120,140
prtr-coco-res50-512x384         resnet 50  False 384 512 bgr 0.1 32 32 200 120,140
prtr-coco-res101-384x288        resnet 101 False 288 384 bgr 0.1 32 32 200 120,140
prtr-coco-res101-512x384        resnet 101 False 384 512 bgr 0.1 32 32 200 120,140
prtr-coco-w32-384x288           hrnet  50  False 288 384 rgb 1.0 16 32 200 70,95
prtr-coco-w32-512x384           hrnet  50  False 384 512 rgb 1.0 16 32 200 70,95
prtr-coco-deform-res50-384x288  resnet 50  True  288 384 bgr 0.1 16 32 100 50,70
prtr-coco-deform-res101-384x288 resnet 101 True  288 384 bgr 0.1 16 32 100 50,70
prtr-mpii-res50-256x256         resnet 50  False 256 256 bgr 0.1 32 64 200 130
prtr-mpii-res50-384x384         resnet 50  False 384 384 bgr 0.1 32 64 200 130
prtr-mpii-res50-512x512         resnet 50  False 512 512 bgr 0.1 32 16 200 130
prtr-mpii-res101-256x256        resnet 101 False 256 256 bgr 0.1 32 64 200 130
prtr-mpii-res101-384x384        resnet 101 False 384 384 bgr 0.1 32 64 200 130
prtr-mpii-res101-512x512        resnet 101 False 512 512 bgr 0.1 16 32 200 130
prtr-mpii-res152-256x256        resnet 152 False 256 256 bgr 0.1 32 64 200 130
prtr-mpii-res152-384x384        resnet 152 False 384 384 bgr 0.1 32 64 200 130
prtr-mpii-w32-256x256           hrnet  50  False 256 256 rgb 1.0 16 32 200 60
prtr-mpii-w32-384x384           hrnet  50  False 384 384 rgb 1.0 16 16 200 60
"""
ROWS = [line.split() for line in TABLE.strip().splitlines()]


def test_the_table_is_complete():
    assert tuple(row[0] for row in ROWS) == PUBLISHED_NAMES
    assert len(ROWS) == 18


def test_a_network_of_published_size_says_so():
    recipe = RECIPES["prtr-coco-w32-512x384"]()
    assert recipe.is_published_network
    assert recipe.backbone.spec() == {"name": "hrnet", "width": 32}
    recipe.order = "bgr"
    assert not recipe.is_published_network


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_recipes_have_the_published_numbers(row):
    name, backbone, depth, deformable, width, height, order, scale, batch, test, epochs, drops = row
    recipe = RECIPES[name]()
    fields = flatten(recipe)
    assert (fields["backbone.name"], fields["backbone.depth"]) == (backbone, int(depth))
    assert fields["backbone.width"] == (64 if backbone == "resnet" else 32)
    assert ("network.levels" in fields) == (deformable == "True")
    assert tuple(recipe.size) == (int(width), int(height))
    assert recipe.order == order
    assert fields["optim.backbone_lr_scale"] == float(scale)
    assert (recipe.batch_size, recipe.validation_batch_size) == (int(batch), int(test))
    assert recipe.schedule.epochs == int(epochs)
    expected = {
        "optim.lr": 1e-4,
        "optim.weight_decay": 1e-4,
        "optim.betas": [0.9, 0.999],
        "optim.clip_norm": 0.1,
        "schedule.kind": "step",
        "schedule.factor": 0.5,
        "schedule.warmup_steps": 0,
        "ema_decay": 0.0,
        "mixed_precision": "no",
        "network.joints": 17 if "coco" in name else 16,
        "network.queries": 100,
        "network.width": 256,
        "network.heads": 8,
        "network.encoder_layers": 6,
        "network.decoder_layers": 6,
        "network.feed_forward": 2048,
        "network.dropout": 0.0,
        "network.pre_norm": False,
        "network.positions": "sine",
        "weights.coordinates": 5.0,
        "weights.background": 0.1,
    }
    assert {key: fields[key] for key in expected} == expected
    # a drop takes effect with the first update after so many whole epochs
    updates = 1171
    steps = recipe.schedule.epochs * updates
    seen = [
        lr_factor(recipe.schedule, step, steps, run_fraction(step, steps))
        for drop in drops.split(",")
        for step in (int(drop) * updates - 1, int(drop) * updates)
    ]
    assert seen == [0.5**k for k in range(len(drops.split(",")) + 1) for _ in "ab"][1:-1]


def test_a_published_run_departs_in_nothing_with_its_gpus_and_weights(data):
    recipe = RECIPES["prtr-coco-w32-384x288"]()
    recipe.data, recipe.validation_data = f"coco:{data / 'coco'}", "coco:person_keypoints_val.json"
    recipe.init = Path("hrnet.pth")
    assert recipe.departures(PROCESSES) == []
    assert recipe.departures(2) == ["processes 2, published 4"]
    recipe.optim.clip_norm, recipe.augment = 1.0, False
    recipe.network = replace(recipe.network, queries=50)
    assert [note.split()[0] for note in recipe.departures(4)] == ["network", "largest", "samples"]


@pytest.mark.parametrize(
    "name", ["prtr-coco-w32-384x288", "prtr-mpii-w32-256x256", "prtr-sequential"]
)
def test_validation_on_the_training_data_is_said(name, data, tmp_path):
    """A folder with the annotations for training alone gives them for either split."""
    recipe = tiny(name, data, tmp_path)
    kind, _, place = recipe.data.partition(":")
    if kind == "mpii":
        place = f"{place}/annot/train.json"
        recipe.data = f"mpii:{place}"
    recipe.validation_data = f"{kind}:{place}"
    assert sum("chosen on the training data" in note for note in recipe.departures(1)) == 1
    recipe.validation_data = f"{kind}:elsewhere.json"
    assert not any("training data" in note for note in recipe.departures(1))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("prtr-coco-res50-384x288", {"queries": 10}, "--network.queries: expected at least 17"),
        ("prtr-mpii-res50-256x256", {"queries": 15}, "--network.queries: expected at least 16"),
        ("prtr-sequential", {"keypoint_queries": 16}, "--network.keypoint-queries: expected"),
    ],
)
def test_too_few_queries_are_refused_before_the_first_step(name, changes, message, data, tmp_path):
    recipe = tiny(name, data, tmp_path)
    recipe.network = replace(recipe.network, **changes)
    with pytest.raises(InputError, match=message):
        recipe.completed(1)


def test_a_size_that_hrnet_cannot_see_is_refused_before_the_first_step(data, tmp_path):
    recipe = tiny("prtr-coco-w32-384x288", data, tmp_path, size=(63, 95))
    with pytest.raises(InputError, match=r"--size: .* multiples of 32 px.* found 63 x 95"):
        recipe.completed(1)
    assert tiny("prtr-coco-res50-384x288", data, tmp_path, size=(63, 95)).completed(1).steps


def test_steps_and_intervals_follow_from_the_data(data, tmp_path):
    changes = {"batch_size": 2, "validate_every": 0, "checkpoint_every": 0}
    recipe = tiny("prtr-mpii-w32-256x256", data, tmp_path, **changes)
    completed = recipe.completed(processes=2)
    assert completed.schedule.steps_per_epoch == 2  # 8 samples, 2 for each of 2 processes
    assert completed.steps == 200 * 2
    assert (completed.validate_every, completed.checkpoint_every) == (2, 2)
    assert recipe.steps == 0  # the recipe itself is left alone


# Refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PUBLISHED_NAMES[::5], *SEQUENTIAL_NAMES])
def test_missing_data_is_said_before_any_work(name, tmp_path, capsys):
    assert main(["train", name, "--output", str(tmp_path / "run")]) != 0
    said = capsys.readouterr().err
    assert "--data" in said
    assert ("MPII" in said) == ("mpii" in name)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_named_with_its_option(data, tmp_path):
    name = "prtr-coco-res50-384x288"
    with pytest.raises(InputError, match=r"--data: expected coco:FOLDER.*found 'nonsense'"):
        train(tiny(name, data, tmp_path, data="nonsense"))
    with pytest.raises(InputError, match=r"has 16 joints.*has 17"):
        train(tiny(name, data, tmp_path, data=f"mpii:{data / 'mpii'}"))
    with pytest.raises(InputError, match=r"--init.*absent\.pth"):
        train(tiny(name, data, tmp_path, init=tmp_path / "absent.pth"))
    with pytest.raises(InputError, match=r"trained detector.*--init"):
        train(tiny("prtr-sequential", data, tmp_path, fine_tune=True))
    hrnet = tiny("prtr-mpii-w32-256x256", data, tmp_path).backbone
    for other in ("prtr-coco-deform-res50-384x288", "prtr-sequential"):
        with pytest.raises(InputError, match=r"runs on resnet, found.*hrnet"):
            train(tiny(other, data, tmp_path, backbone=hrnet))


def test_all_recipes_are_listed(capsys):
    assert main(["train"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in NAMES)


@pytest.mark.parametrize("name", ["prtr-coco-deform-res50-384x288", "prtr-sequential"])
def test_numbers_can_be_changed_on_the_command_line(name, tmp_path, capsys):
    """The network of a recipe keeps its kind."""
    with pytest.raises(SystemExit) as left:
        main(["train", name, "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert "--network.levels" in said
    assert "--backbone.depth" in said


# Learning --------------------------------------------------------------------------------------


LEARNED = 2.0
"""Largest mean distance, in percent of the crop or box, of joints that have been learned."""


def learn_by_heart(name, data, output, steps, lr, network, backbone):
    """The task, the network and the batch after training on eight samples without variation."""
    recipe = tiny(name, data, output, steps=steps, augment=False)
    recipe.network = replace(recipe.network, dropout=0.0, **network)
    recipe.backbone = replace(recipe.backbone, **backbone)
    recipe.schedule = ScheduleConfig(kind="cosine", warmup_steps=20)
    recipe.optim.lr, recipe.optim.backbone_lr_scale = lr, 1.0
    recipe.log_every = steps
    best = train(recipe).best
    task = recipe.build_task()
    samples = task.train_dataset()
    batch = task.collate([samples[index] for index in range(SAMPLES)])
    return task, load_keypoint_model(best)[0], batch


def joint_distances(task, network, batch):
    """Of all labelled joints from the labels, and from the mean place of each joint: percent.

    Two-stage: of the crop's longer side, after the read-out. Sequential: of the enlarged box of the
    person, with the queries matched as in training: which joint a query says is learned later.
    """
    with torch.no_grad():
        if isinstance(task, PrtrTask):
            target, weight = batch["target"], batch["weight"][..., 0]
            output = network(batch["image"])
            sides = torch.tensor(batch["image"].shape[:1:-1])
            extent = sides / sides.max()
            found = read_out(output.logits, output.coords).coords
        else:
            _, scene, _ = task.terms(network, batch, None, None)
            labels = keypoint_targets(batch, None)
            weight = labels.weight_BJ1[..., 0] * labels.has_B[:, None]
            target, output = labels.places_BJ2, in_label_frame(scene, batch["boxes"])
            extent = torch.ones(2)
            [[query]] = assign([keypoint_cost(output.logits[None], output.coords[None], target)])
            found = output.coords.gather(1, query[..., None].expand(-1, -1, 2))
    mean = (target * weight[..., None]).sum(0) / weight.sum(0)[:, None].clamp(min=1)
    return [
        float(100 * (((places - target) * extent).norm(dim=-1) * weight).sum() / weight.sum())
        for places in (found, mean)
    ]


SEQUENTIAL_SIZES = dict.fromkeys(("width", "keypoint_width", "feed_forward"), 64)
LEARNERS = {
    "prtr-mpii-w32-256x256": (
        *(300, 1e-3, {"queries": 16, "width": 128, "feed_forward": 128}),
        {"width": 8, "stem_width": 16, "head_planes": (8, 8, 16, 32), "pooled_channels": 128},
    ),
    "prtr-coco-deform-res50-384x288": (150, 2e-3, {}, {}),
    "prtr-sequential": (300, 1e-3, SEQUENTIAL_SIZES | {"keypoint_queries": 17}, {"width": 8}),
}
"""One of each kind of network: steps, learning rate, sizes that are not tiny's."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (v[0] > 150)) for n, v in LEARNERS.items()],
)
def test_eight_samples_are_learned_by_heart(name, data, tmp_path):
    """What sees no picture is far off, and so is what sees the wrong one."""
    task, network, batch = learn_by_heart(name, data, tmp_path, *LEARNERS[name])
    learned, blind = joint_distances(task, network, batch)
    image = "image" if "image" in batch else "images"
    swapped, _ = joint_distances(task, network, batch | {image: batch[image].roll(1, dims=0)})
    print(f"{name}: {learned:.2f} %, blind {blind:.1f} %, wrong picture {swapped:.1f} %")
    assert learned < LEARNED
    assert min(blind, swapped) > 5 * LEARNED


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_takes_a_step_with_its_own_settings(name, data, tmp_path):
    """Groups, rates, clipping, schedule, variation and loss as published; only sizes are small."""
    recipe = tiny(name, data, tmp_path, steps=1)
    own = flatten(RECIPES[name]())
    kept = ("optim.", "schedule.", "weights.", "order", "published", "learns", "augment", "empty")
    for field, value in flatten(recipe).items():
        assert value == own[field] or not field.startswith(kept), field
    task = recipe.build_task()
    torch.manual_seed(0)
    network = task.build_model().train()
    before = {key: value.clone() for key, value in network.named_parameters()}
    groups = task.parameter_groups(network, recipe.optim)
    optimiser = torch.optim.AdamW(groups, betas=recipe.optim.betas)
    samples = task.train_dataset()
    samples.set_step(0) if hasattr(samples, "set_step") else None
    batch = task.collate([samples[index] for index in range(2)])
    total = task.loss(network, batch)["total"]
    total.backward()
    learning = [p for p in network.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in learning)
    torch.nn.utils.clip_grad_norm_(learning, recipe.optim.clip_norm)
    optimiser.step()
    assert total.isfinite()
    frozen = {key for key, p in network.named_parameters() if not p.requires_grad}
    for key, value in network.named_parameters():
        assert value.isfinite().all()
        assert key not in frozen or torch.equal(value, before[key])
    moved = {
        key for key, value in network.named_parameters() if not torch.equal(value, before[key])
    }
    assert len(moved) > 0.9 * len(learning)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_learns(name, data, tmp_path):
    recipe = tiny(name, data, tmp_path, steps=150, augment=False)
    recipe.network = replace(recipe.network, dropout=0.0)
    recipe.schedule.kind = "constant"
    recipe.optim.lr, recipe.optim.backbone_lr_scale = 2e-3, 1.0
    train(recipe)
    totals = [row["total"] for row in losses(tmp_path)]
    assert totals[0] / (sum(totals[-5:]) / 5) > 3


def assert_same_run(one, other):
    assert losses(one) == losses(other)
    first, second = read_checkpoint(one / "last")[0], read_checkpoint(other / "last")[0]
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    "name",
    [
        *FAMILIES,
        *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES if name not in FAMILIES),
    ],
)
def test_a_run_that_died_resumes_exactly(name, data, tmp_path, monkeypatch):
    """With varied samples and, in the sequential network, dropout."""
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 4}
    kind = SequentialTask if "sequential" in name else PrtrTask
    loss, calls = kind.loss, []

    def dies(task, model, batch):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(task, model, batch)

    monkeypatch.setattr(kind, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(name, data, tmp_path / "died", **settings))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "died" / "last")[1]["step"] == 2
    train(tiny(name, data, tmp_path / "died", **settings))
    train(tiny(name, data, tmp_path / "whole", **settings))
    assert_same_run(tmp_path / "died", tmp_path / "whole")


def run_in_two_processes(names, data, output):
    run_pair("tests.tiny_prtr_recipes", data, output, *names)
    for name in names:
        assert len(losses(output / name)) == 2
        assert all(math.isfinite(row["total"]) for row in losses(output / name))
        assert read_checkpoint(output / name / "last")[1]["processes"] == 2
        assert not RECIPES[name]().find_unused_parameters


def test_a_recipe_runs_in_two_processes(data, tmp_path):
    run_in_two_processes(["prtr-coco-res50-384x288"], data, tmp_path)


@pytest.mark.slow
def test_every_recipe_runs_in_two_processes(data, tmp_path):
    run_in_two_processes(NAMES, data, tmp_path)


# What is left behind ---------------------------------------------------------------------------


def test_a_detector_starts_the_whole_sequential_network(data, tmp_path):
    detector = train(tiny("prtr-sequential-detector", data, tmp_path / "one", steps=1))
    begun = tiny("prtr-sequential", data, tmp_path, init=detector.best, fine_tune=True)
    network = begun.build_task().build_model()
    assert all(p.requires_grad for p in network.transformer_kpt.parameters())
    saved, record = read_weights(detector.best)
    for name, value in network.state_dict().items():
        assert torch.equal(value, saved[f"model.{name}"])
    assert record["architecture"] == "prtr-sequential"
    assert record["config"]["person_queries"] == 8


def test_a_detector_alone_leaves_the_keypoints_as_they_were(data, tmp_path):
    train(tiny("prtr-sequential-detector", data, tmp_path, steps=2))
    state = read_checkpoint(tmp_path / "last")[0]
    moments = {key for key in state if key.startswith("optimizer.")}
    assert any(key.startswith("optimizer.bbox_embed") for key in moments)
    for part in ("transformer_kpt", "row_embed", "col_embed", "backbone.0.body.layer1"):
        assert not any(key.startswith(f"optimizer.{part}") for key in moments)


def test_weights_tell_what_they_need(data, tmp_path):
    best = train(tiny("prtr-coco-deform-res50-384x288", data, tmp_path, steps=1)).best
    tensors, record = read_weights(best)
    assert record["architecture"] == "prtr-deformable"
    assert record["backbone"] == {"name": "resnet", "depth": 50, "width": 4}
    assert (record["color_order"], record["resolution"]) == ("bgr", [64, 96])
    assert record["joints"][0] == "nose"
    assert record["variant"] is None
    assert record["config"]["levels"] == 4
    assert tensors["model.transformer.level_embed"].shape == (4, 32)


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_networks_load_again(name, data, tmp_path):
    best = train(tiny(name, data, tmp_path, steps=1)).best
    network = load_keypoint_model(best)[0]
    trained = read_checkpoint(tmp_path / "last")[0]
    for key, value in network.state_dict().items():
        assert torch.equal(value, trained[f"model.{key}"])
