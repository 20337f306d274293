"""The recipes of the shipped models: they build, their losses are right, and they overfit."""

import dataclasses
import math

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.evaluation import mean_shape
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.models.guided_graphormer import GuidedOutput
from kinemesh.models.registry import load_model, weight_path
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
        lifted=batch["joints_3d"][..., :3],
        spread=None,
    )


@pytest.fixture(scope="module", params=["hand", "body"])
def task_and_batch(request):
    task = tiny_task(request.param)
    return task, task.collate([task.train_dataset()[i] for i in range(2)])


def test_right_answers_cost_nothing(task_and_batch):
    task, batch = task_and_batch
    losses = task.loss(lambda _: perfect_output(batch, task), batch)
    for name in ("joints", "lifted", "vertices", "edges", "places", "inside"):
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


def test_a_part_of_the_batch_has_a_mesh(task_and_batch):
    """The loss compares the coarse vertices with those of the last samples."""
    task, batch = task_and_batch
    output = perfect_output(batch, task)
    output = output._replace(coarse=output.coarse[-1:])
    losses = task.loss(lambda _: output, batch)
    assert losses["vertices"].item() == pytest.approx(0, abs=1e-6)
    wrong = output._replace(coarse=perfect_output(batch, task).coarse[:1])
    assert task.loss(lambda _: wrong, batch)["vertices"].item() > 0.01
    assert all(math.isfinite(value.item()) for value in losses.values())


def test_the_spread_costs_least_at_the_mean_distance(task_and_batch):
    """A quarter of the joints is 4 units away and the others 1: the best single guess is 1.75."""
    task, batch = task_and_batch
    size, joints = batch["image"].shape[-1], batch["joints_3d"].shape[1] // 4 * 4
    batch = batch | {name: batch[name].clone() for name in ("joints_2d", "joints_3d")}
    for name, column in (("joints_2d", 2), ("joints_3d", 3)):
        batch[name][..., column] = (torch.arange(batch[name].shape[1]) < joints).float()
    away = torch.where(torch.arange(batch["joints_3d"].shape[1]) % 4 == 0, 4.0, 1.0)
    units = torch.tensor([task.length_scale, size / 2])
    perfect = perfect_output(batch, task)
    move = away[None, :, None] * torch.tensor([0.6, 0.8, 0.0])
    output = perfect._replace(
        joints=perfect.joints + units[0] * move,
        joints_2d=perfect.joints_2d + units[1] * move[..., :2],
    )
    costs = {}
    for guess in (1.0, 1.6, 1.75, 1.9, 4.0):
        spread = (guess * units).expand(*perfect.joints.shape[:2], 2)
        costs[guess] = task.loss(lambda _, s=spread: output._replace(spread=s), batch)["spread"]
    assert min(costs, key=lambda guess: costs[guess].item()) == 1.75
    assert costs[1.75].item() == pytest.approx(2 * (math.log(1.75) + 1), rel=1e-4)


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


def tiny_hand(**network) -> MeshRecipe:
    recipe = debug_hand()
    recipe.network = dataclasses.replace(recipe.network, resolution=32, **network)
    return recipe


@pytest.fixture(scope="module")
def stored_weights(tmp_path_factory):
    task = tiny_hand().build_task()
    torch.manual_seed(1)
    network = task.build_model()
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    task.save_weights(network, path, {})
    return path


def test_a_run_starts_from_a_weight_file(stored_weights):
    torch.manual_seed(2)
    recipe = tiny_hand(spread=True)
    recipe.init = stored_weights
    task = recipe.build_task()
    found, given = task.build_model().state_dict(), load_model(stored_weights)[0].state_dict()
    for name, value in given.items():
        assert torch.equal(found[name], value), name
    # what the file lacks begins anew
    assert set(found) - set(given) == {"spread_head.weight", "spread_head.bias"}
    assert task.started_from == "all weights from weights.safetensors"


def test_weights_of_another_network_are_refused(stored_weights, tmp_path):
    recipe = tiny_hand(neck_dim=16)
    recipe.init = stored_weights
    with pytest.raises(InputError, match=r"--init.*tensors differ, the first is '[a-z_.]+"):
        recipe.build_task().build_model()
    recipe.init = tmp_path / "nowhere.safetensors"
    with pytest.raises(InputError, match="--init: there is no file"):
        recipe.completed(1)
    recipe.init = weight_path("kinemesh-detector")
    with pytest.raises(InputError, match="--init: expected a weight file of a hand"):
        recipe.build_task().build_model()


def test_a_share_of_no_photos_is_refused():
    recipe = tiny_hand()
    recipe.photo_share = 0.3
    with pytest.raises(InputError, match=r"--photo-share 0\.3 .* Add --photos"):
        recipe.completed(1)


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
