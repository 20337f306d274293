import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from kinemesh.errors import InputError, KinemeshError, MissingExtraError
from kinemesh.training import (
    OptimConfig,
    Recipe,
    ScheduleConfig,
    TrainingDiverged,
    default_parameter_groups,
    train,
)
from kinemesh.training.batches import StepBatches, shuffled, step_loader
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.log import LossWindow, RunLog
from kinemesh.training.progress import ProgressBar, Throughput
from kinemesh.training.randomness import preserved_random_state, random_state
from tests.training_worker import TRUE_WEIGHT, Plane, PlaneRecipe, Points, plane
from tests.two_processes import free_port, start_pair

REPOSITORY = Path(__file__).resolve().parents[1]


def rows(output, event="train"):
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row for row in lines if row["event"] == event]


# The loop ------------------------------------------------------------------------------------


def test_it_learns_the_plane(tmp_path):
    recipe = plane(tmp_path, linear=True, noise=0.0, steps=300, validate_every=100)
    recipe.optim = OptimConfig(lr=0.1, weight_decay=0.0, clip_norm=None)
    result = train(recipe)
    assert result.step == 300
    assert result.metrics["error"] < 1e-4
    weights = load_file(result.best)
    torch.testing.assert_close(weights["weight"], TRUE_WEIGHT, atol=0.01, rtol=0)


def test_what_a_run_leaves_behind(tmp_path):
    result = train(plane(tmp_path, checkpoint_every=15, keep_history=2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("best", "last", "log.jsonl", "pictures", "recipe.json", "step-0000030", "step-0000040")
    ]
    first = rows(tmp_path)[0]
    assert first.keys() == {"event", "step", "losses", "lr", "images_per_second", "seconds"}
    assert first["losses"].keys() == {"total", "largest", "grad_norm"}
    assert first["lr"] == pytest.approx(0.01 / 5)  # first of five warm-up steps
    validations = rows(tmp_path, "validation")
    assert [row["step"] for row in validations] == [15, 30, 40]
    scores = [row["metrics"]["error"] for row in validations]
    assert result.metrics["error"] == scores[-1]
    assert result.best_metrics["error"] == min(scores)
    assert json.loads((tmp_path / "best" / "metrics.json").read_text())["metrics"] == {
        "error": min(scores)
    }
    picture = np.asarray(Image.open(tmp_path / "pictures" / "step-0000030.png"))
    assert picture.shape == (4, 6, 3)
    assert json.loads((tmp_path / "recipe.json").read_text())["optim.lr"] == 0.01


def test_best_holds_the_averaged_weights(tmp_path):
    result = train(plane(tmp_path, steps=12, linear=True, validate_every=100))
    tensors, _ = read_checkpoint(tmp_path / "last")
    saved = load_file(result.best)
    assert torch.equal(saved["weight"], tensors["ema.weight"])
    assert not torch.equal(saved["weight"], tensors["model.weight"])


def test_validation_and_logging_do_not_change_training(tmp_path):
    train(plane(tmp_path / "often", validate_every=1))
    train(plane(tmp_path / "seldom", validate_every=100, log_every=8))
    often, seldom = rows(tmp_path / "often"), rows(tmp_path / "seldom")
    assert [row["step"] for row in seldom] == [8, 16, 24, 32, 40]
    for number, row in enumerate(seldom):
        window = often[8 * number : 8 * number + 8]
        for name, value in row["losses"].items():
            assert value == pytest.approx(np.mean([w["losses"][name] for w in window]), rel=1e-12)


def test_gradients_are_clipped(tmp_path):
    """AdamW ignores a constant factor, so what clipping changes is seen in its first moment."""
    recipe = plane(tmp_path, steps=1, linear=True)
    recipe.optim.clip_norm = 0.01
    train(recipe)
    tensors, _ = read_checkpoint(tmp_path / "last")
    moments = [tensors[f"optimizer.{name}.exp_avg"] / (1 - 0.9) for name in ("weight", "bias")]
    assert torch.cat([m.flatten() for m in moments]).norm() == pytest.approx(0.01, rel=1e-3)
    assert rows(tmp_path)[0]["losses"]["grad_norm"] > 1  # logged as it was before clipping


def test_time_limit_anneals_and_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Plane, "seconds_a_step", 0.01)
    recipe = plane(tmp_path, steps=10**6, time_limit_minutes=0.5 / 60, validate_every=10**6)
    recipe.schedule = ScheduleConfig()
    result = train(recipe)
    assert 5 < result.step < 60
    rates = [row["lr"] for row in rows(tmp_path)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.1 * rates[0]
    assert rows(tmp_path, "validation")[-1]["step"] == result.step
    assert train(recipe) == result  # the spent time is remembered


@pytest.mark.parametrize("log_every", [1, 10])
def test_non_finite_loss_names_step_and_term_and_keeps_the_checkpoint(
    tmp_path, monkeypatch, log_every
):
    monkeypatch.setattr(Plane, "nan_at", 13)
    with pytest.raises(TrainingDiverged, match=r"'total' is nan at step 13"):
        train(plane(tmp_path, log_every=log_every))
    tensors, state = read_checkpoint(tmp_path / "last")
    assert state["step"] == 10
    assert all(bool(t.isfinite().all()) for t in tensors.values() if t.is_floating_point())


def test_validation_without_its_metric_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Plane, "metric", "accuracy")
    with pytest.raises(InputError, match=r"returned \['error'\], but its metric is 'accuracy'"):
        train(plane(tmp_path))


def test_a_metric_that_is_nan_is_never_best(tmp_path, monkeypatch):
    monkeypatch.setattr(Plane, "validate", lambda *_: {"error": float("nan")})
    result = train(plane(tmp_path, steps=5))
    assert result.best is None
    assert rows(tmp_path, "validation")[0]["metrics"] == {"error": None}


def test_loss_without_total_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Plane, "loss", lambda *_: {"square": torch.zeros(())})
    with pytest.raises(InputError, match="'total' is needed"):
        train(plane(tmp_path))


def test_tensorboard_gets_numbers_and_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(plane(tmp_path, trackers=("tensorboard",), log_every=10))
    file = next(tmp_path.rglob("events.out.tfevents*"))
    events = EventAccumulator(str(file)).Reload()
    totals = events.Scalars("train/losses/total")
    assert [event.step for event in totals] == [10, 20, 30, 40]
    assert totals[0].value == pytest.approx(rows(tmp_path)[0]["losses"]["total"])
    assert [event.step for event in events.Images("predictions")] == [15, 30, 40]


def test_a_missing_tracker_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises((MissingExtraError, ModuleNotFoundError), match="wandb"):
        train(plane(tmp_path, trackers=("wandb",)))


# Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"workers": -1}, "workers"),
        ({"time_limit_minutes": 0.0}, "time_limit_minutes"),
        ({"optim": OptimConfig(lr=-1.0)}, r"optim\.lr"),
        ({"optim": OptimConfig(clip_norm=0.0)}, r"optim\.clip_norm"),
        ({"schedule": ScheduleConfig(step_at=(-0.5,))}, r"schedule\.step_at"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, change, named):
    with pytest.raises(InputError, match=named):
        train(replace(plane(tmp_path), **change))


def test_output_that_cannot_be_created_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot create the folder"):
        train(plane(tmp_path / "file" / "run"))


def test_a_bare_recipe_has_no_task():
    with pytest.raises(NotImplementedError, match="build_task"):
        Recipe().build_task()


def test_the_command_line_is_made_from_the_recipe(tmp_path):
    arguments = "--steps 7 --optim.lr 1e-4 --schedule.step-at 0.3 0.6 --resume runs/a/last"
    recipe = tyro.cli(PlaneRecipe, default=plane(tmp_path), args=arguments.split())
    assert (recipe.steps, recipe.optim.lr, recipe.schedule.step_at) == (7, 1e-4, (0.3, 0.6))
    assert recipe.resume == Path("runs/a/last")
    assert recipe.batch_size == 8
    again = tyro.cli(PlaneRecipe, default=plane(tmp_path), args=["--resume", "never"])
    assert again.resume == "never"


def test_parameter_groups_spare_vectors_and_slow_the_backbone():
    model = nn.ModuleDict(
        {"backbone": nn.Conv2d(3, 4, 1), "head": nn.Linear(4, 2), "frozen": nn.Linear(2, 2)}
    )
    model["frozen"].requires_grad_(False)
    groups = default_parameter_groups(model, OptimConfig(lr=1.0, backbone_lr_scale=0.1))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        id(model["backbone"].weight): (0.1, 0.05),
        id(model["backbone"].bias): (0.1, 0.0),
        id(model["head"].weight): (1.0, 0.05),
        id(model["head"].bias): (1.0, 0.0),
    }


def test_a_task_may_group_its_parameters(tmp_path):
    class Halved(Plane):
        def parameter_groups(self, model, optim):
            return [{"params": list(model.parameters()), "lr": optim.lr / 2, "weight_decay": 0.0}]

    class HalvedRecipe(PlaneRecipe):
        def build_task(self):
            return Halved(self)

    settings = plane(tmp_path / "own", steps=1, linear=True)
    train(HalvedRecipe(**vars(settings)))
    whole = plane(tmp_path / "default", steps=1, linear=True)
    whole.optim = OptimConfig(lr=0.005, weight_decay=0.0)
    train(whole)
    weights = [read_checkpoint(tmp_path / run / "last")[0] for run in ("own", "default")]
    torch.testing.assert_close(weights[0]["model.weight"], weights[1]["model.weight"])


# Data ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 5, 64, 97, 1000])
def test_every_pass_visits_every_sample_once_in_its_own_order(length):
    order = shuffled(np.arange(3 * length), length, seed=4).reshape(3, length)
    assert (np.sort(order, axis=1) == np.arange(length)).all()
    if length >= 64:
        assert not (order[0] == order[1]).all()
        assert not (order[0] == np.arange(length)).all()
        assert not (order[0] == shuffled(np.arange(length), length, seed=5)).all()


def test_order_does_not_depend_on_how_it_is_asked_for():
    together = shuffled(np.arange(50), 10**7, seed=1)
    alone = [int(shuffled(np.array([p]), 10**7, seed=1)[0]) for p in range(50)]
    assert together.tolist() == alone


def batches_of(**changes):
    settings = {"batch_size": 4, "seed": 3} | changes
    return StepBatches(Points(), torch.utils.data.default_collate, **settings)


def test_processes_share_the_batch_of_one():
    whole = batches_of(batch_size=8)
    parts = [batches_of(process=rank, processes=2) for rank in (0, 1)]
    for step in range(30):
        assert whole.indices(step) == parts[0].indices(step) + parts[1].indices(step)


@pytest.mark.parametrize("workers", [0, 1])
def test_batch_is_a_function_of_the_step(workers):
    batches = batches_of()
    before = random_state()
    streamed = list(step_loader(batches, 5, 9, workers=workers, pin_memory=False))
    for step, batch in zip(range(5, 9), streamed, strict=True):
        assert torch.equal(batch["y"], batches[step]["y"])
    after = random_state()
    assert before.plain == after.plain
    assert torch.equal(before.tensors["torch"], after.tensors["torch"])


class Threads(Points):
    """Samples tell how many threads their process may use."""

    def __getitem__(self, index):
        return torch.tensor([cv2.getNumThreads(), torch.get_num_threads()])


def test_a_worker_has_one_thread():
    before = (cv2.getNumThreads(), torch.get_num_threads())
    batches = StepBatches(Threads(), torch.utils.data.default_collate, batch_size=1, seed=0)
    assert next(step_loader(batches, 0, 1, workers=1, pin_memory=False)).tolist() == [[1, 1]]
    assert (cv2.getNumThreads(), torch.get_num_threads()) == before


def test_samples_are_fetched_together_where_the_dataset_can():
    class Together(Points):
        def __getitems__(self, indices):
            return [("together", index) for index in indices]

    batches = StepBatches(Together(), list, batch_size=2, seed=0)
    assert batches[0] == [("together", index) for index in batches.indices(0)]


def test_empty_dataset_is_refused():
    with pytest.raises(InputError, match="empty"):
        StepBatches(Points(length=0), list, batch_size=2, seed=0)


def test_random_states_are_put_back():
    with preserved_random_state():
        first = (np.random.rand(), float(torch.rand(())))  # noqa: NPY002
    assert first == (np.random.rand(), float(torch.rand(())))  # noqa: NPY002


# Log and progress ----------------------------------------------------------------------------


def test_loss_terms_must_stay_the_same():
    window = LossWindow()
    window.add({"total": torch.zeros(())})
    with pytest.raises(KinemeshError, match="same terms"):
        window.add({"total": torch.zeros(()), "extra": torch.zeros(())})


def test_rewinding_drops_later_and_broken_rows(tmp_path):
    log = RunLog(tmp_path / "log.jsonl", [])
    for step in range(1, 5):
        log.write("train", step, {"lr": 0.1})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')
    log.rewind(3)
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3]


def test_progress_is_plain_lines_without_a_terminal():
    out = io.StringIO()
    with ProgressBar(100, console=Console(file=out, width=40)) as progress:
        progress.advance(10, 0.1)
        progress.report(10, 0.25, 123.4, 3725)
    assert out.getvalue() == "step 10/100  loss 0.25  123.4 images/s  1:02:05 left\n"


def test_progress_is_a_bar_on_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with ProgressBar(100, console=console) as progress:
        progress.advance(10, 0.1)
        progress.report(10, 0.25, 123.4, 59)
    assert "step 10/100" in out.getvalue()
    assert "0:00:59 left" in out.getvalue()


def test_other_processes_are_silent():
    out = io.StringIO()
    with ProgressBar(100, visible=False, console=Console(file=out)) as progress:
        progress.report(10, 0.25, 123.4, 59)
    assert out.getvalue() == ""


def test_throughput_leaves_pauses_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("kinemesh.training.progress.time.monotonic", lambda: now[0])
    throughput = Throughput(images_per_step=8, step=0)
    now[0] = 2.0
    with throughput.paused():
        now[0] = 100.0
    assert throughput.rate(5) == pytest.approx(8 * 5 / 2)


# Many processes ------------------------------------------------------------------------------


def start_workers(output, changes):
    return start_pair("tests.training_worker", output, json.dumps(changes), "0")


def test_two_processes_share_the_batch_and_average(tmp_path):
    changes = {"linear": True, "noise": 0.0, "batch_size": 4, "steps": 3}
    pair = start_workers(tmp_path / "two", changes | {"device": "auto"})  # as a user starts it
    train(plane(tmp_path / "one", linear=True, noise=0.0, batch_size=8, steps=3))
    says = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], says
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in two] == [1, 2, 3]
    for name in ("total", "grad_norm"):
        losses = [[row["losses"][name] for row in run] for run in (two, one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(read_checkpoint(tmp_path / "two" / "last")[1]["random"]) == 2
    assert "step 3/3" in says[0]
    assert "step 3/3" not in says[1]  # the main process alone speaks


def launch(output, changes):
    options = f"--nproc_per_node 2 --master_port {free_port()} -m tests.training_worker"
    command = [sys.executable, "-m", "torch.distributed.run", *options.split()]
    finished = subprocess.run(
        [*command, str(output), json.dumps(changes), "0"],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stderr


@pytest.mark.slow
def test_two_processes_equal_one_with_twice_the_batch(tmp_path):
    changes = {"linear": True, "noise": 0.0, "batch_size": 4}
    launch(tmp_path / "two", changes | {"steps": 20})
    says = launch(tmp_path / "two", changes)  # resumes
    assert says.count("Resuming from") == 1  # the main process alone speaks
    train(plane(tmp_path / "one", linear=True, noise=0.0, batch_size=8, steps=20))
    train(plane(tmp_path / "one", linear=True, noise=0.0, batch_size=8))
    two, one = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert [row["step"] for row in two] == list(range(1, 41))
    for name in ("total", "grad_norm"):
        losses = [[row["losses"][name] for row in run] for run in (two, one)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert len(read_checkpoint(tmp_path / "two" / "last")[1]["random"]) == 2
    with pytest.raises(InputError, match="processes: 2 in the checkpoint, 1 now"):
        train(plane(tmp_path / "two", **changes))
