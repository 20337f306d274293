"""The recipes of the shipped models: they build, their losses are right, and they overfit."""

import dataclasses

import pytest
import torch

from kinemesh.evaluation import mean_shape
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.models.guided_graphormer import GuidedOutput
from kinemesh.models.registry import load_model
from kinemesh.training import train
from kinemesh.training.mesh_task import FirstSamples, MeshRecipe, MeshTask
from kinemesh.training.recipes import RECIPES, debug_hand


def tiny_task(kind: str) -> MeshTask:
    recipe = debug_hand()
    recipe.kind = kind
    return recipe.build_task()


def perfect_output(batch, task) -> GuidedOutput:
    """What a network would give that knows the answer."""
    size = batch["image"].shape[-1]
    places = batch["joints_2d"][..., :2]
    logits = torch.full((*places.shape[:2], size // 4, size // 4), -50.0)
    inside = batch["joints_2d"][..., 2]
    return GuidedOutput(
        joints=batch["joints_3d"][..., :3],
        coarse=batch["vertices"][:, task.topology.coarse.vertex_index],
        vertices=batch["vertices"],
        joints_2d=places,
        confidence=inside,
        camera=torch.zeros(len(places), 3),
        inside_logits=inside * 40 - 20,
        side_logits=torch.full((len(places),), 20.0),
        heat_map_logits=logits,
    )


@pytest.fixture(scope="module", params=["hand", "body"])
def task_and_batch(request):
    task = tiny_task(request.param)
    return task, task.collate([task.train_dataset()[i] for i in range(2)])


def test_right_answers_cost_nothing(task_and_batch):
    task, batch = task_and_batch
    losses = task.loss(lambda _: perfect_output(batch, task), batch)
    for name in ("joints", "vertices", "edges", "places", "inside"):
        assert losses[name].item() == pytest.approx(0, abs=1e-5), name


def test_total_is_the_weighted_sum(task_and_batch):
    task, batch = task_and_batch
    torch.manual_seed(0)
    losses = task.loss(task.build_model(), batch)
    weights = dataclasses.asdict(task.recipe.weights)
    total = sum(weights[name] * value.item() for name, value in losses.items() if name != "total")
    assert losses["total"].item() == pytest.approx(total, rel=1e-5)


def test_a_shift_in_depth_is_an_error_of_its_size(task_and_batch):
    task, batch = task_and_batch
    output = perfect_output(batch, task)
    output = output._replace(joints=output.joints + torch.tensor([0.0, 0.0, 0.03]))
    losses = task.loss(lambda _: output, batch)
    assert losses["joints"].item() == pytest.approx(0.01 / task.length_scale, rel=1e-4)


def test_the_loss_reaches_every_trainable_parameter(task_and_batch):
    task, batch = task_and_batch
    network = task.build_model().train()
    task.loss(network, batch)["total"].backward()
    without = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_mirrored_hands_count_for_the_side_only():
    recipe = debug_hand()
    recipe.augment_side = True
    task = recipe.build_task()
    batch = task.collate([task.train_dataset()[i] for i in range(8)])
    seen = []

    def network(image):
        seen.append(image)
        output = perfect_output(batch, task)
        wrong = torch.zeros(8, 1, 1)
        wrong[0] = 1.0
        return output._replace(joints=output.joints + wrong)

    losses = task.loss(network, batch)
    assert torch.equal(seen[0][0], batch["image"][0].flip(-1))
    assert torch.equal(seen[0][1:], batch["image"][1:])
    assert losses["joints"].item() == pytest.approx(0, abs=1e-6)
    assert losses["side"].item() == pytest.approx(20 / 8, rel=1e-3)


def test_first_samples_are_rendered_once():
    dataset = debug_hand().build_task()._dataset("train")
    few = FirstSamples(dataset, 2)
    assert len(few) == 2
    assert few[1] is few[1]
    assert torch.equal(few[1]["image"], dataset[1]["image"])


def test_mean_shape_is_a_fixed_point_of_alignment():
    task = tiny_task("hand")
    vertices = task._dataset("train").meshes(range(16))
    mean = mean_shape(vertices, task.topology, rounds=8)
    fit = procrustes_align(vertices, mean.expand_as(vertices), scale=False)
    aligned = fit.apply(vertices).mean(0)
    assert (aligned - mean).norm(dim=-1).mean() < 1e-3


@pytest.mark.parametrize(
    "name", sorted(name for name, recipe in RECIPES.items() if isinstance(recipe(), MeshRecipe))
)
def test_every_recipe_builds_its_task(name):
    recipe = RECIPES[name]()
    task = recipe.build_task()
    assert task.topology.name == f"anny-{recipe.kind}"
    assert recipe.network.resolution % 32 == 0


def test_debug_recipe_overfits_eight_hands(tmp_path):
    recipe = debug_hand()
    recipe.output = tmp_path / "run"
    result = train(recipe)
    network, topology, _ = load_model(result.best)
    task = recipe.build_task()
    batch = task.collate([task.train_dataset()[i] for i in range(8)])
    with torch.inference_mode():
        learned = network(batch["image"]).joints
    error_mm = (learned - batch["joints_3d"][..., :3]).norm(dim=-1).mean() * 1000
    mean = topology.template_joints - topology.template_joints[:1]
    baseline_mm = (mean - batch["joints_3d"][..., :3]).norm(dim=-1).mean() * 1000
    assert error_mm < 12
    assert error_mm < baseline_mm / 5
