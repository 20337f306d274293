"""Learning to classify: numbers of the recipe, schedule, learning, resuming, two processes."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kinemesh.cli import main
from kinemesh.data.classification_augmentation import ClassificationAugmentation
from kinemesh.data.mixing import NO_MIXING, Mixing
from kinemesh.errors import InputError
from kinemesh.evaluation.classification import (
    ClassificationEvaluation,
    evaluate_images,
    score_classes,
)
from kinemesh.models.classifiers import load_classifier
from kinemesh.models.potter_classifier import PotterClassifierConfig
from kinemesh.models.registry import save_model
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.classifier_task import ClassifierTask
from kinemesh.training.config import EpochCosineConfig
from kinemesh.training.recipes import RECIPES
from kinemesh.training.schedules import lr_factor
from kinemesh.training.task import default_parameter_groups
from tests.labelled_images import CLASSES, tiny, write_folders
from tests.two_processes import run_pair


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pictures of each of four classes."""
    return write_folders(tmp_path_factory.mktemp("images") / "data")


# The published numbers ---------------------------------------------------------------------------


def test_the_recipe_has_the_published_numbers(tmp_path):
    write_folders(tmp_path / "train", classes=[f"n{number:04d}" for number in range(1000)], count=2)
    recipe = RECIPES["potter-classifier"]()
    recipe.data, recipe.batch_size, recipe.mixed_precision = f"imagenet:{tmp_path}", 128, "fp16"
    done = recipe.completed(8)
    assert done.departures(8) == []
    assert done.schedule.steps_per_epoch == 2000 // 1024
    assert done.steps == 310 * done.schedule.steps_per_epoch
    assert done.optim.lr == 2e-3
    assert (done.optim.weight_decay, done.optim.clip_norm, done.ema_decay) == (0.05, None, 0.0)
    assert recipe.completed(4).optim.lr == 1e-3
    assert replace(recipe, optim=replace(recipe.optim, lr=5e-4)).completed(8).optim.lr == 5e-4
    assert done.network == PotterClassifierConfig(
        layers=(2, 2, 6, 2), widths=(64, 128, 320, 512), dropout=0.0, drop_path=0.1, classes=1000
    )
    assert done.mixing == Mixing(0.8, 1.0, 1.0, 0.5, 0.1)
    notes = replace(done, mixing=NO_MIXING, batch_size=64, augment=False).departures(8)
    assert [note.split(":")[0] for note in notes] == [
        "batch over all processes",
        "peak learning rate",
        "mixing",
        "images are not varied",
    ]


def test_the_rate_of_every_epoch():
    """Against the published numbers: 5 epochs of warm-up, 300 of the cosine, 10 at the end."""
    peak, lowest, updates = 2e-3, 1e-6, 3
    schedule = EpochCosineConfig(
        steps_per_epoch=updates, first_lr_ratio=lowest / peak, final_lr_ratio=lowest / peak
    )
    steps = 310 * updates
    rates = [peak * lr_factor(schedule, step, steps, step / steps) for step in range(steps)]
    for epoch in range(310):
        assert len(set(rates[epoch * updates : (epoch + 1) * updates])) == 1
    by_epoch = rates[::updates]
    warm = [lowest + (peak - lowest) * epoch / 5 for epoch in range(5)]
    assert by_epoch[:5] == pytest.approx(warm)
    cosine = [
        lowest + (peak - lowest) * (1 + math.cos(math.pi * epoch / 300)) / 2
        for epoch in range(5, 300)
    ]
    assert by_epoch[5:300] == pytest.approx(cosine)
    assert by_epoch[300:] == pytest.approx([lowest] * 10)


def test_norms_biases_and_scales_do_not_decay(folder, tmp_path):
    recipe = tiny(folder, tmp_path, steps=1)
    model = ClassifierTask(recipe).build_model()
    decay = {
        id(parameter): group["weight_decay"]
        for group in default_parameter_groups(model, recipe.optim)
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        spared = "norm" in name or name.endswith("bias") or "layer_scale" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name


def test_batches_are_mixed_and_their_loss_is_soft(folder, tmp_path):
    task = tiny(folder, tmp_path).build_task()
    data = task.train_dataset()
    torch.manual_seed(0)
    batch = task.collate([data[row] for row in range(8)])
    torch.manual_seed(0)
    again = task.collate([data[row] for row in range(8)])
    assert torch.equal(batch["image"], again["image"])
    assert batch["target"].sum(dim=1).tolist() == pytest.approx([1.0] * 8)
    assert (batch["target"] > 0.3).sum(dim=1).max() <= 2
    logits = torch.randn(8, 4)
    found = task.loss(lambda _: logits, batch)["total"]
    slow = sum(
        -batch["target"][b, k] * math.log(math.exp(logits[b, k]) / logits[b].exp().sum())
        for b in range(8)
        for k in range(4)
    )
    assert found.item() == pytest.approx(slow.item() / 8, rel=1e-4)


# Refusals ----------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_before_any_work(folder, tmp_path):
    with pytest.raises(InputError, match=r"--data: expected imagenet:FOLDER"):
        train(tiny(folder, tmp_path / "run", data=""))
    network = PotterClassifierConfig(classes=7)
    with pytest.raises(InputError, match="tells 7 classes apart, but the data have 4"):
        train(tiny(folder, tmp_path / "run", network=network))
    write_folders(tmp_path / "data" / "train")
    write_folders(tmp_path / "data" / "val")
    (tmp_path / "data" / "val" / "rising").rename(tmp_path / "data" / "val" / "zigzag")
    with pytest.raises(InputError, match="'zigzag' of the data"):
        train(tiny(tmp_path / "data", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Learning ----------------------------------------------------------------------------------------


def rows_of(output, event="train"):
    lines = (output / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


LEARNING = {
    "mixing": NO_MIXING,
    "augment": False,
    "schedule": EpochCosineConfig(epochs=150, warmup_epochs=5, cooldown_epochs=0),
}


def test_eight_images_are_learned_by_heart(folder, tmp_path):
    """The best answer that sees no image is wrong three times of four, at a loss of ln 4."""
    recipe = tiny(folder, tmp_path / "run", steps=150, **LEARNING)
    recipe.optim.lr = 3e-3
    train(recipe)
    assert rows_of(tmp_path / "run")[-1]["losses"]["total"] < 0.1 * math.log(4)
    weights = tmp_path / "run" / "best" / "weights.safetensors"
    result = evaluate_images(weights, f"imagenet:{folder}")
    assert result.values["top-1"] > 60  # the views of evaluation are cut closer
    network, record = load_classifier(weights)
    assert record["class_names"] == list(CLASSES)
    task = recipe.build_task()
    data = task.train_dataset()
    images = torch.stack([data[row]["image"] for row in range(8)])
    assert network(images).argmax(dim=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.slow
def test_unseen_stripes_are_told_apart(tmp_path):
    folder = write_folders(tmp_path / "data", count=30)
    still = ClassificationAugmentation(mirror=0.0, rand_augment=False, scale=(0.5, 1.0), erase=0.0)
    recipe = tiny(
        folder,
        tmp_path / "run",
        hold_out_every=5,
        augmentation=still,
        batch_size=16,
        schedule=EpochCosineConfig(epochs=60, cooldown_epochs=0),
        measure_epochs=20,
        mixing=replace(NO_MIXING, smoothing=0.1),
        steps=0,
        validate_every=0,
        checkpoint_every=0,
    )
    recipe.optim.lr = 2e-3
    result = train(recipe)
    assert result.best_metrics["top1_error"] < 25  # a guess: 75


def test_a_run_that_died_resumes_exactly(folder, tmp_path, monkeypatch):
    """With varied and mixed images, and dropped branches."""
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 4}
    loss, calls = ClassifierTask.loss, []

    def dies(task, model, batch):
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(task, model, batch)

    monkeypatch.setattr(ClassifierTask, "loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(folder, tmp_path / "died", **settings))
    monkeypatch.undo()
    assert read_checkpoint(tmp_path / "died" / "last")[1]["step"] == 2
    train(tiny(folder, tmp_path / "died", **settings))
    train(tiny(folder, tmp_path / "whole", **settings))
    first, second = (read_checkpoint(tmp_path / name / "last")[0] for name in ("died", "whole"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    ends = [rows_of(tmp_path / name)[-1]["losses"] for name in ("died", "whole")]
    assert ends[0] == ends[1]


def test_it_runs_in_two_processes(folder, tmp_path):
    run_pair("tests.labelled_images", folder, tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == 2
    assert read_checkpoint(tmp_path / "run" / "last")[1]["processes"] == 2


# Scores ------------------------------------------------------------------------------------------


def test_scores_equal_counting_by_hand():
    logits = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    label = torch.randint(9, (40,), generator=torch.Generator().manual_seed(1))
    batches = [{"image": logits[k : k + 16], "label": label[k : k + 16]} for k in (0, 16, 32)]
    found = score_classes(nn.Identity(), batches, torch.device("cpu"))
    places = [sorted(range(9), key=lambda k: -logits[b, k]).index(int(label[b])) for b in range(40)]
    assert found["top-1"] == pytest.approx(100 * sum(p < 1 for p in places) / 40)
    assert found["top-5"] == pytest.approx(100 * sum(p < 5 for p in places) / 40)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, label).item(), rel=1e-5)


def test_eval_prints_scores_and_writes_a_report(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    recipe = tiny(folder, tmp_path / "run", steps=1)
    task = recipe.build_task()
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    task.save_weights(task.build_model().eval(), weights, {"step": 1})
    words = ["eval", str(weights), f"imagenet:{folder}", "--device", "cpu"]
    report = tmp_path / "report"
    assert main([*words, "--report", str(report), "--out", str(tmp_path / "s.json")]) == 0
    shown = capsys.readouterr().out
    assert "8 images, 4 classes (chance: 25.00 % top-1)" in shown
    assert "top-5  100.00 %" in shown
    assert json.loads((tmp_path / "s.json").read_text())["count"] == 8
    assert (report / "classes.png").is_file()
    assert main([*words, "--hold-out-every", "2", "--count", "3"]) == 0
    assert "3 images" in capsys.readouterr().out
    assert main([*words, "--tta"]) == 2
    assert "--tta means nothing" in capsys.readouterr().err
    assert main(["eval", "hand", f"imagenet:{folder}"]) == 2
    assert "expected an image classifier" in capsys.readouterr().err
    assert main(["eval", "hand", "synthetic-hand", "--hold-out-every", "2"]) == 2


def test_other_classes_are_refused(folder, tmp_path):
    recipe = tiny(folder, tmp_path)
    task = recipe.build_task()
    task.save_weights(task.build_model(), tmp_path / "w.safetensors", {})
    other = write_folders(tmp_path / "other", classes=("across", "down", "falling"))
    with pytest.raises(InputError, match="tells 4 classes apart, but the data have 3"):
        evaluate_images(tmp_path / "w.safetensors", f"imagenet:{other}")
    with pytest.raises(InputError, match="count must be at least 1"):
        ClassificationEvaluation(count=0)
    damaged = tmp_path / "damaged.safetensors"
    record = load_classifier(tmp_path / "w.safetensors")[1]
    save_model(damaged, nn.Linear(2, 2), None, record, half=False)
    with pytest.raises(InputError, match="does not fit the architecture"):
        load_classifier(damaged)


# A real one --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_ten_signs_are_learned(shared, tmp_path):
    """Fifty photos of five people; a sixth person's ten photos are held out."""
    digits = shared / "data" / "sign_digits" / "Dataset"
    recipe = RECIPES["potter-classifier-small"]()
    recipe.data, recipe.hold_out_every = f"imagenet:{digits}", 6
    recipe.device, recipe.threads, recipe.output = "cpu", 1, tmp_path / "run"
    result = train(recipe)
    assert result.best_metrics["top1_error"] <= 40  # a guess: 90
    weights = tmp_path / "run" / "best" / "weights.safetensors"
    assert evaluate_images(weights, f"imagenet:{digits}").values["top-1"] >= 85
