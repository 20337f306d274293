"""POTTER's whole body network: scores, losses, training, resuming, two processes, evaluation."""

import json

import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.evaluation.hybrik import (
    AUC_MM,
    HybrikColumns,
    axis_errors_mm,
    pck_and_auc,
    place_accuracy,
    protocol_errors_mm,
    score_hybrik,
)
from kinemesh.evaluation.hybrik_by_name import (
    HybrikEvaluation,
    evaluate_hybrik,
    load_potter_body,
)
from kinemesh.models.potter_body import PotterBody, PotterBodyOutput, merge_mirrored
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig, PotterMeshRaw
from kinemesh.potter_losses import BodyPrediction, PotterLossWeights, body_loss, is_late
from kinemesh.training import train
from kinemesh.training.checkpoints import read_checkpoint
from kinemesh.training.config import flatten
from kinemesh.training.potter_mesh_task import PotterBodyTask, clip_each_gradient
from kinemesh.training.potter_published import POTTER_RUNS
from kinemesh.training.recipes import RECIPES
from kinemesh.training.schedules import lr_factor
from tests.hybrik_files import PUBLISHED, SAMPLES, TINY, body, tiny, write_data
from tests.no_waiting import NoWaiting
from tests.two_processes import run_pair


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("hybrik"))


@pytest.fixture(scope="module")
def network(data):
    torch.manual_seed(0)
    return PotterBody(PotterMesh(TINY), body(data / "assets")).eval()


# Network -------------------------------------------------------------------------------------


def test_a_flip_test_of_mirrored_crops_gives_the_mirror_image(network):
    """Merging is symmetric: the mirrored crop gives the mirrored joints and twists."""
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        one = network(image, flip_test=True).raw
        other = network(image.flip(-1), flip_test=True).raw
        plain = network(image).raw
    again = merge_mirrored(one, other, network.body.flip_pairs)
    torch.testing.assert_close(again.joints_xyz, one.joints_xyz, rtol=0, atol=1e-6)
    torch.testing.assert_close(again.twist, one.twist, rtol=0, atol=1e-6)
    torch.testing.assert_close(other.shape, one.shape)
    torch.testing.assert_close(one.joints_uvd, plain.joints_uvd)
    assert not torch.allclose(one.joints_xyz, plain.joints_xyz, atol=1e-4)


def test_training_gives_no_mesh_and_evaluation_does(network):
    image = torch.randn(1, 3, 64, 64)
    output = network(image)
    assert isinstance(output, PotterBodyOutput)
    assert output.mesh.vertices.shape == (1, 6890, 3)
    assert output.mesh.regressed.shape == (1, 17, 3)
    network.train()
    raw, quaternions = network(image)
    network.eval()
    assert isinstance(raw, PotterMeshRaw)
    assert quaternions.shape == (1, 24, 4)
    assert set(network.network.state_dict()) == {
        name.removeprefix("network.") for name in network.state_dict()
    }


def test_a_network_of_another_body_is_refused(data):
    config = PotterMeshConfig(**{**vars(TINY), "joints": 24})
    with pytest.raises(InputError, match="expected 29 joints, 23 twists and 10 shape"):
        PotterBody(PotterMesh(config), body(data / "assets"))


# Loss ----------------------------------------------------------------------------------------


def perfect(people: int = 2) -> tuple[BodyPrediction, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(people, *shape, generator=generator)

    target = {"uvd": draw(29, 3), "xyz": draw(24, 3), "theta": draw(24, 4), "betas": draw(10)}
    target |= {"twist": draw(23, 2), "camera_scale": draw(1), "camera_shift": draw(2)}
    target |= {f"{k}_weight": torch.ones_like(target[k]) for k in ("uvd", "xyz", "theta", "twist")}
    target["smpl_weight"] = torch.ones(people, 1)
    xyz = torch.cat([target["xyz"], torch.zeros(people, 5, 3)], dim=1)
    names = ("theta", "betas", "twist", "camera_scale", "camera_shift")
    return BodyPrediction(target["uvd"], xyz, *(target[name] for name in names)), target


def test_each_term_sees_its_own_error_and_weights_hide_it():
    weights = PotterLossWeights()
    prediction, target = perfect()
    assert body_loss(prediction, target, weights, late=True)["total"] == 0
    changes = {"quaternions": "rotations", "shape": "shape", "uvd": "uvd", "xyz": "xyz"}
    changes |= {"twist": "twist", "camera_scale": "camera", "camera_shift": "camera"}
    for field, term in changes.items():
        wrong = prediction._replace(**{field: getattr(prediction, field) + 1})
        losses = body_loss(wrong, target, weights, late=False)
        seen = {k for k, v in losses.items() if v > 0}
        assert seen == ({term} if term == "xyz" else {term, "total"})
        late = body_loss(wrong, target, weights, late=torch.tensor(True))
        assert late["total"] > 0
    hidden = dict(target) | {k: torch.zeros_like(v) for k, v in target.items() if "weight" in k}
    lost = BodyPrediction(*(torch.randn_like(value) for value in prediction))
    assert body_loss(lost, hidden, weights, late=True)["total"] == 0
    assert [is_late(epoch, weights) for epoch in (0, 40, 41)] == [False, False, True]


def test_quaternions_of_opposite_sign_differ():
    prediction, target = perfect()
    opposite = prediction._replace(quaternions=-prediction.quaternions)
    assert body_loss(opposite, target, PotterLossWeights(), late=False)["rotations"] > 0


# Scores --------------------------------------------------------------------------------------


def columns(people: int = 5) -> HybrikColumns:
    generator = torch.Generator().manual_seed(0)
    target = 0.4 * torch.randn(people, 17, 3, generator=generator)
    noise = 0.05 * torch.randn(people, 17, 3, generator=generator)
    return HybrikColumns(
        predicted=target + noise + 1.0,
        target=target,
        predicted_24=target[:, :12] * 1.1,
        target_24=target[:, :12],
        vertex_error_m=torch.tensor([0.01, 0.03, float("nan"), 0.02, 0.04]),
        activity=torch.tensor([2, 2, 3, -1, 3]),
        sequence=torch.tensor([1, 1, 1, 5, 5]),
    )


def test_the_two_protocols_differ_in_the_alignment_alone():
    given = columns()
    plain, aligned = protocol_errors_mm(given.predicted, given.target, "h36m")
    other_plain, other = protocol_errors_mm(given.predicted, given.target, "3dpw")
    torch.testing.assert_close(plain, other_plain)
    assert plain.shape == (5, 14)
    assert other.square().sum() < aligned.square().sum()  # 14 by themselves fit better
    assert axis_errors_mm(given.predicted, given.target, "3dpw").shape == (3,)


def test_scores_say_what_they_are():
    result = score_hybrik(columns(), "h36m", ("a model", "some people"))
    values = {report.metric: report for report in result.reports}
    assert set(values) == {"MPJPE", "PA-MPJPE", "MPJPE-24", "PA-MPJPE-24", "PVE"}
    assert values["PVE"].value == pytest.approx(25.0)
    assert values["PVE"].sample_count == 4
    assert values["PA-MPJPE-24"].value == pytest.approx(0.0, abs=1e-3)  # a mere scale
    assert "similarity of all 17 joints" in str(result)
    assert set(result.activities) == {"Discussion", "Directions"}
    assert json.loads(json.dumps(result.to_dict()))["protocol"] == "h36m"


def test_3dhp_counts_strictly_below():
    pck, auc = pck_and_auc(torch.tensor([[0.0, 149.9], [150.0, 75.0]]))
    assert pck == 0.75
    # below 5, 10, ...: 30 of 31; below 150 alone; never; below 80, ..., 150: 15
    assert auc == pytest.approx((30 + 1 + 0 + 15) / 4 / len(AUC_MM))
    names = {r.metric + r.joint_set for r in score_hybrik(columns(), "3dhp", ("", "")).reports}
    assert {"PCK@15017 joints", "AUCknees"} <= names


def test_3dhp_is_scored_by_activity_and_sequence():
    given = columns()
    result = score_hybrik(given, "3dhp", ("a", "b"))
    assert list(result.parts) == ["activity 2", "activity 3", "sequence 1", "sequence 5"]
    alone = [
        score_hybrik(
            HybrikColumns(**{name: values[rows] for name, values in vars(given).items()}),
            "3dhp",
            ("a", "b"),
        )
        for rows in ([2, 4], [0, 1, 2])
    ]
    for name, part in zip(("activity 3", "sequence 1"), alone, strict=True):
        whole = {
            f"{r.metric} {r.joint_set}".removesuffix(" 17 joints"): r.value
            for r in part.reports
            if r.metric in {"MPJPE", "PCK@150", "AUC"}
        }
        found = result.parts[name]
        assert {key: found[key] for key in whole} == pytest.approx(whole)
        assert f"{name}: MPJPE {found['MPJPE']:.1f} mm, PCK@150" in str(result)
        assert found["AUC knees"] != found["AUC"]
    assert result.activities["activity 3"] == pytest.approx(result.parts["activity 3"]["MPJPE"])
    assert json.loads(json.dumps(result.to_dict()))["parts"] == result.parts
    assert score_hybrik(given, "h36m", ("a", "b")).parts == {}


def test_place_accuracy_counts_labelled_joints():
    target = torch.rand(4, 29, 3) * 0.8 - 0.4
    weight = torch.ones(4, 29, 3)
    assert place_accuracy(target, target, weight) == 1
    moved = target + torch.tensor([0.2, 0.0, 0.0])
    assert place_accuracy(moved, target, weight) == 0
    weight[:, :10] = 0
    moved[:, 10:] = target[:, 10:]
    assert place_accuracy(moved, target, weight) == 1


# Recipes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch", "rate", "epochs"),
    [
        ("potter-hmr", 24, 1e-4, 200),
        ("potter-hmr-short", 24, 1e-4, 20),
        ("potter-hmr-log", 28, 2e-4, 105),  # of 200 that were planned
    ],
)
def test_recipes_have_the_published_numbers(name, batch, rate, epochs):
    recipe = RECIPES[name]()
    fields = flatten(recipe)
    assert (recipe.batch_size, fields["optim.lr"], fields["schedule.epochs"]) == (
        batch,
        rate,
        epochs,
    )
    assert recipe.drop_epochs == (50, 80)
    assert (fields["clip_each"], fields["optim.clip_norm"], fields["ema_decay"]) == (5.0, None, 0)
    assert recipe.network == PotterMeshConfig()


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("potter-hmr", {}),
        ("potter-hmr", {"steps": 210}),
        ("potter-hmr", {"schedule.epochs": 105}),
        ("potter-hmr", {"time_limit_minutes": 10.0}),
        ("potter-hmr-log", {}),
        ("potter-hmr-log", {"schedule.epochs": 200}),
        ("potter-hmr-short", {"schedule.epochs": 90}),
    ],
)
def test_the_rate_drops_after_epochs_50_and_80_of_any_run(name, changes, data, tmp_path):
    recipe = tiny(name, data, tmp_path)
    recipe.batch_size = 8  # two updates in an epoch of sixteen
    for field, value in changes.items():
        owner = recipe.schedule if "." in field else recipe
        setattr(owner, field.split(".")[-1], value)
    recipe = recipe.completed(1).completed(1)
    assert recipe.schedule.steps_per_epoch == 2
    epochs = {"potter-hmr": 200, "potter-hmr-log": 105, "potter-hmr-short": 20}[name]
    assert recipe.steps == changes.get("steps", 2 * changes.get("schedule.epochs", epochs))
    # late in its time limit a run is far in fractions
    factors = [
        lr_factor(recipe.schedule, step, recipe.steps, 0.9) for step in (99, 100, 159, 160, 400)
    ]
    assert factors == pytest.approx([1.0, 0.2, 0.2, 0.04, 0.04])


def test_published_runs_name_their_departures(data, tmp_path):
    recipe = tiny("potter-hmr-log", data, tmp_path).completed(1)
    notes = recipe.departures(4)
    assert [note.split(" ")[0] for note in notes] == ["network", *_WITHOUT_START]
    assert "batch per process 8, published 28" in notes
    assert "validates on no data, published on Human3.6M and 3DPW" in notes


_WITHOUT_START = ("batch", "starts", "shapes", "validates")


@pytest.mark.parametrize(("name", "processes"), [("potter-hmr", 8), ("potter-hmr-log", 4)])
def test_only_what_differs_is_a_departure(name, processes, data, tmp_path):
    run = POTTER_RUNS[name]
    updates = 3
    recipe = tiny(name, data, tmp_path, network=PotterMeshConfig(), validate_every=updates)
    recipe.validation_data, recipe.also_validate = "3dpw-hybrik:A", "h36m-hybrik:B"
    recipe.schedule.steps_per_epoch = updates
    recipe = recipe.completed(1)
    recipe.batch_size, recipe.init, recipe.mean_shape = run.batch_size, tmp_path, tmp_path
    best = "keeps the best weights on 3dpw-hybrik alone, published on each set"
    assert recipe.departures(processes) == [best]
    recipe.steps = 50 * updates
    assert recipe.departures(processes) == [f"updates 150, published {run.stopped_after * 3}", best]
    recipe.steps, recipe.schedule.step_at = run.stopped_after * updates, (0.25, 0.4)
    notes = recipe.departures(processes)
    assert notes[0] == "drops of the learning rate (0.25, 0.4), published (150.0, 240.0)"
    recipe.ema_decay, recipe.mixed_precision, recipe.schedule.kind = 0.9, "bf16", "cosine"
    recipe.optim.betas = (0.5, 0.9)
    found = " ".join(recipe.departures(processes))
    for word in ("averaging", "precision", "schedule ('cosine', 0)", "betas"):
        assert word in found


def test_what_is_missing_is_named(data, tmp_path):
    recipe = RECIPES["potter-hmr"]()
    with pytest.raises(InputError, match="Say where they are with --h36m, --coco"):
        recipe.completed(1)
    recipe = tiny("potter-hmr", data, tmp_path, assets=None)
    with pytest.raises(InputError, match="with --assets"):
        recipe.completed(1)
    recipe = tiny("potter-hmr", data, tmp_path, init=tmp_path / "no.pth")
    with pytest.raises(InputError, match="--init: there is no file"):
        recipe.completed(1)
    recipe = tiny("potter-hmr", data, tmp_path, validation_data=f"coco-hybrik:{data / 'coco'}")
    with pytest.raises(InputError, match="expected a data set with labels in space"):
        recipe.completed(1)
    recipe = tiny("potter-hmr", data, tmp_path, also_validate="3dpw-hybrik:A")
    with pytest.raises(InputError, match="--also-validate: expected a data set beside another"):
        recipe.completed(1)
    recipe = tiny("potter-body", data, tmp_path, data="other")
    with pytest.raises(InputError, match=r"'other' does not fit.*'synthetic-hybrik'.*--h36m"):
        recipe.completed(1)


def losses(output):
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    return [row["losses"] for row in rows if row["event"] == "train"]


def loss_of(task, output, batch, *, swapped: bool = False) -> float:
    """Loss of trained weights, or with each picture in the place of the next."""
    network = task.build_model().train()
    tensors = read_checkpoint(output / "last")[0]
    network.load_state_dict(
        {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    )
    image = batch["image"].roll(1, dims=0) if swapped else batch["image"]
    with torch.no_grad():
        return task.loss(network, {**batch, "image": image})["total"].item()


@pytest.mark.parametrize(
    ("name", "steps"),
    [("potter-body", 50), pytest.param("potter-hmr", 100, marks=pytest.mark.slow)],
)
def test_eight_samples_are_learned_by_heart(name, steps, data, tmp_path):
    """Better by far than the best guess that never sees a picture.

    With the published draws the residual branches of a network without ImageNet's weights add next
    to nothing for hundreds of updates.
    """
    settings = {"steps": steps, "augment": False, "layer_scale": 0.5}
    if name == "potter-hmr":  # one data set, so that the same eight come again and again
        settings |= {"coco": None, "hp3d": None, "pw3d": None}
    recipe = tiny(name, data, tmp_path, **settings)
    recipe.optim.lr = 3e-3
    recipe.schedule.kind, recipe.schedule.warmup_steps = "constant", 10
    recipe.weights.first_epochs = steps  # one loss from beginning to end
    train(recipe)
    task = PotterBodyTask(recipe.completed(1))
    dataset = task.train_dataset()
    dataset.set_step(0)
    batch = task.collate([dataset[index] for index in range(SAMPLES)])
    learned = loss_of(task, tmp_path, batch)
    assert learned < 0.5 * blind_loss(task, batch)
    assert learned < 0.4 * loss_of(task, tmp_path, batch, swapped=True)


def blind_loss(task, batch) -> float:
    """Places: the median of each; the rest: no error at all, in favour of the blind one."""
    known = batch["uvd_weight"] > 0
    values = torch.where(known, batch["uvd"], float("nan"))
    median = values.nanmedian(dim=0, keepdim=True).values.nan_to_num()
    error = 64 * (batch["uvd"] - median).abs() * batch["uvd_weight"]
    return float(error.sum() / batch["uvd_weight"].sum())


def test_the_second_part_begins_at_its_epoch(data, tmp_path):
    recipe = tiny("potter-body", data, tmp_path, steps=1).completed(1)
    task = recipe.build_task()
    assert task.late_step == 4  # 3 is the last of the first part, of one step each
    network = task.build_model()
    dataset = task.train_dataset()
    totals = []
    for step in (3, 4):
        dataset.set_step(step)
        batch = task.collate([dataset[0], dataset[1]])
        terms = task.loss(network.train(), batch)
        totals.append((terms["total"], terms["xyz"], terms["camera"]))
    difference = totals[1][0] - totals[0][0]
    torch.testing.assert_close(difference, totals[0][1] - 0.9 * totals[0][2], rtol=1e-4, atol=1e-4)


def test_every_parameter_learns_and_nothing_waits(data, tmp_path):
    task = tiny("potter-hmr", data, tmp_path, steps=1).completed(1).build_task()
    network = task.build_model().train()
    dataset = task.train_dataset()
    batch = task.collate([dataset[index] for index in range(2)])
    with NoWaiting():
        total = task.loss(network, batch)["total"]
        total.backward()
        task.clip_gradients(network)
    assert all(p.grad is not None for p in network.parameters())


def test_each_gradient_is_clipped_by_itself():
    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in (3, 4)]
    parameters[0].grad, parameters[1].grad = torch.full((3,), 100.0), torch.full((4,), 0.1)
    clip_each_gradient([*parameters, torch.nn.Parameter(torch.zeros(1))], 5.0)
    assert parameters[0].grad.norm() == pytest.approx(5.0, rel=1e-4)
    torch.testing.assert_close(parameters[1].grad, torch.full((4,), 0.1))


@pytest.mark.parametrize("name", ["potter-hmr", "potter-body"])
def test_a_run_that_died_resumes_exactly(name, data, tmp_path, monkeypatch):
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 4}
    loss, calls = PotterBodyTask.loss, []

    def dying(self, model, batch):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return loss(self, model, batch)

    monkeypatch.setattr(PotterBodyTask, "loss", dying)
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(name, data, tmp_path / "died", **settings))
    monkeypatch.setattr(PotterBodyTask, "loss", loss)
    train(tiny(name, data, tmp_path / "died", **settings))
    train(tiny(name, data, tmp_path / "whole", **settings))
    assert losses(tmp_path / "died") == losses(tmp_path / "whole")
    first, second = (read_checkpoint(tmp_path / n / "last")[0] for n in ("died", "whole"))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_two_processes_train_every_recipe(data, tmp_path):
    run_pair("tests.hybrik_files", data, tmp_path)
    for name in ("potter-hmr", "potter-body"):
        assert len(losses(tmp_path / name)) == 2


# From training to scores ---------------------------------------------------------------------


def test_weights_of_training_are_scored(data, tmp_path, capsys):
    recipe = tiny("potter-hmr", data, tmp_path / "run", steps=1)
    test_file = next((data / "3dpw" / "json").glob("*.json"))
    recipe.validation_data = f"3dpw-hybrik:{test_file}"
    second = next((data / "h36m" / "annotations").glob("*.json"))
    recipe.also_validate = f"h36m-hybrik:{second}"
    result = train(recipe)
    scores = result.metrics
    names = {"mpjpe_mm", "pa_mpjpe_mm", "mpjpe_24_mm", "pa_mpjpe_24_mm", "pve_mm"}
    assert set(scores) == names | {f"h36m_{name}" for name in names}
    # the same people in tighter crops
    assert scores["h36m_mpjpe_24_mm"] != scores["mpjpe_24_mm"]
    options = [
        "--assets",
        str(data / "assets"),
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "a.json"),
    ]
    assert main(["eval", str(result.best), recipe.validation_data, *options]) == 0
    printed = capsys.readouterr().out
    assert "3DPW: 14 joints selected, then aligned" in printed
    assert "with flip test" in printed
    written = json.loads((tmp_path / "a.json").read_text())
    found = {score["metric"]: score["value"] for score in written["scores"]}
    assert found["PA-MPJPE"] == pytest.approx(scores["pa_mpjpe_mm"], rel=1e-4)
    plain = evaluate_hybrik(
        result.best,
        recipe.validation_data,
        HybrikEvaluation(flip_test=False, count=3),
        assets=data / "assets",
    )
    assert plain.reports[0].sample_count == 3
    assert plain.notes == ("without flip test",)
    with pytest.raises(InputError, match="Name the folder that holds SMPL"):
        load_potter_body(result.best)
    with pytest.raises(InputError, match="poses SMPL, but synthetic-hybrik is labelled with Anny"):
        evaluate_hybrik(result.best, "synthetic-hybrik", assets=data / "assets")
    with pytest.raises(InputError, match="expected a data set with labels in space"):
        evaluate_hybrik(result.best, f"coco-hybrik:{data / 'coco'}", assets=data / "assets")


def test_names_of_published_runs_are_recipes():
    assert set(PUBLISHED) <= set(RECIPES)
