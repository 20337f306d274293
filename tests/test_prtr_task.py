"""PRTR's tasks: groups, initial weights, targets, validation."""

import os
from dataclasses import replace

import pytest
import torch

from kinemesh.data.detection_scenes import collate_scenes
from kinemesh.data.keypoint_crop import PADDING
from kinemesh.data.keypoint_dataset import mirror_sample
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import Keypoints, unflip
from kinemesh.keypoint_losses import KeypointSetLoss, KeypointTargets
from kinemesh.models.frozen_batch_norm import FrozenBatchNorm2d
from kinemesh.models.prtr import KeypointSetOutput, body_of
from kinemesh.models.prtr_sequential import SequentialOutput
from kinemesh.skeletons import COCO17
from kinemesh.training import train
from kinemesh.training.config import OptimConfig
from kinemesh.training.prtr_networks import (
    build_prtr,
    measure_frozen_norms,
    prtr_parameter_groups,
    shared_count,
)
from kinemesh.training.prtr_task import PrtrTask
from kinemesh.training.sequential_task import (
    background_last,
    in_label_frame,
    keypoint_targets,
    to_box_frame,
)
from tests.tiny_prtr_recipes import tiny, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    write_data(folder)
    return folder


def network_of(name, data, tmp_path):
    recipe = tiny(name, data, tmp_path)
    return build_prtr(recipe.network, recipe.backbone)


# Optimiser -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("prtr-coco-res50-384x288", {1e-4, 1e-5}),
        ("prtr-coco-deform-res50-384x288", {1e-4, 1e-5}),
        ("prtr-sequential", {1e-4, 1e-5}),
    ],
)
def test_groups_hold_every_parameter_that_learns_once(name, rates, data, tmp_path):
    network = network_of(name, data, tmp_path)
    optim = OptimConfig(lr=1e-4, weight_decay=1e-4, backbone_lr_scale=0.1)
    groups = prtr_parameter_groups(network, optim)
    members = [p for group in groups for p in group["params"]]
    learning = [p for p in network.parameters() if p.requires_grad]
    assert len(members) == len(learning) == len({id(p) for p in members})
    assert {id(p) for p in members} == {id(p) for p in learning}
    assert {round(group["lr"], 12) for group in groups} == rates
    assert all(group["weight_decay"] == 1e-4 for group in groups)
    assert any(p.ndim == 1 for p in members)


def test_offsets_and_references_learn_slowly(data, tmp_path):
    network = network_of("prtr-coco-deform-res50-384x288", data, tmp_path)
    rate = {
        id(p): group["lr"]
        for group in prtr_parameter_groups(network, OptimConfig(lr=1.0, backbone_lr_scale=0.5))
        for p in group["params"]
    }
    for name, parameter in network.named_parameters():
        slow = "sampling_offsets" in name or "reference_points" in name
        expected = 0.5 if name.startswith("backbone") else 0.1 if slow else 1.0
        if parameter.requires_grad:
            assert rate[id(parameter)] == pytest.approx(expected), name


# Initial weights -------------------------------------------------------------------------------


def saved(state, path):
    torch.save(state, path)
    return path


def test_a_backbone_alone_is_taken(data, tmp_path):
    """Torchvision's files count batches and have a classifier's place; frozen norms do not."""
    source = body_of(network_of("prtr-coco-res50-384x288", data, tmp_path).backbone).state_dict()
    counted = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(3)
        for name in source
        if name.endswith("running_var")
    }
    path = saved(dict(source) | counted, tmp_path / "backbone.pth")
    network = PrtrTask(tiny("prtr-coco-res50-384x288", data, tmp_path, init=path)).build_model()
    loaded = body_of(network.backbone).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in source.items())


def test_whole_networks_are_taken_under_old_names_too(data, tmp_path):
    network = network_of("prtr-coco-res50-384x288", data, tmp_path)
    old = {
        name.replace("backbone.0.body", "backbone.body"): value
        for name, value in network.state_dict().items()
    }
    path = saved(old, tmp_path / "old.pth")
    loaded = PrtrTask(tiny("prtr-coco-res50-384x288", data, tmp_path, init=path)).build_model()
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_weights_of_another_network_are_refused(data, tmp_path):
    recipe = tiny("prtr-coco-res50-384x288", data, tmp_path)
    other = build_prtr(replace(recipe.network, queries=7), recipe.backbone)
    recipe.init = saved(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"query_embed.weight.*\(20, 32\).*\(7, 32\)"):
        PrtrTask(recipe).build_model()


def test_frozen_norms_of_random_weights_are_measured(data, tmp_path):
    torch.manual_seed(0)
    network = network_of("prtr-coco-res50-384x288", data, tmp_path)
    image = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    body = body_of(network.backbone)
    before = float(body(image).detach().abs().max())
    measure_frozen_norms(network, image)
    outputs = []
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    assert float(body(image).detach().abs().max()) < before / 10
    for output in outputs:
        spread, mean = torch.var_mean(output, dim=(0, 2, 3), correction=0)
        assert float(mean.detach().abs().max()) < 1e-3
        assert float((spread.detach() - 1).abs().max()) < 0.05


# Losses of the tasks ---------------------------------------------------------------------------


def test_the_task_scores_a_batch_as_the_loss_does(data, tmp_path):
    torch.manual_seed(0)
    recipe = tiny("prtr-mpii-res50-256x256", data, tmp_path)
    task = recipe.build_task()
    network = task.build_model()
    dataset = task.train_dataset()
    batch = task.collate([dataset[0], dataset[1]])
    losses = task.loss(network, batch)
    expected = KeypointSetLoss()(
        network(batch["image"]), KeypointTargets(batch["target"], batch["weight"])
    )
    assert losses.keys() == expected.keys()
    assert float(losses["total"].detach()) == float(expected["total"].detach())


def scenes(people=(2, 1)):
    generator = torch.Generator().manual_seed(5)
    samples = []
    for number, count in enumerate(people):
        boxes = torch.rand(count, 4, generator=generator) * 0.3 + 0.3
        places = torch.rand(count, 17, 2, generator=generator)
        flags = torch.randint(0, 3, (count, 17, 1), generator=generator)
        samples.append(
            {
                "image": torch.randn(3, 64, 64 + 32 * number, generator=generator),
                "boxes": boxes,
                "keypoints": torch.cat([places * (flags > 0), flags], dim=-1),
                "areas": torch.ones(count),
                "hand_boxes": torch.zeros(0, 4),
                "hand_keypoints": torch.zeros(0, 21, 3),
                "image_id": torch.tensor(number),
                "original_size": torch.tensor([64, 64]),
            }
        )
    return collate_scenes(samples)


def test_the_frame_of_a_box_is_that_of_the_two_stage_crop():
    boxes = torch.tensor([[[0.5, 0.4, 0.2, 0.4]]])
    corner = torch.tensor([0.5 - 0.1 * PADDING, 0.4 - 0.2 * PADDING])
    points = torch.stack([corner, torch.tensor([0.5, 0.4])])[None, None]
    expected = torch.tensor([[0.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(to_box_frame(points, boxes)[0, 0], expected)
    tiny_box = torch.tensor([[[0.5, 0.4, 0.0, 0.0]]])
    assert to_box_frame(points, tiny_box).isfinite().all()


def test_keypoint_targets_of_scenes():
    batch = scenes()
    targets = keypoint_targets(batch, None)
    assert targets.places_BJ2.shape == (4, 17, 2)
    assert targets.has_B.tolist() == [1, 1, 1, 0]  # the last is padding
    hidden = targets.weight_BJ1[..., 0] == 0
    assert hidden.any()
    assert not targets.places_BJ2[hidden].any()


def test_background_moves_to_the_end():
    logits = torch.tensor([0.0, 1.0, 2.0])
    assert background_last(logits).tolist() == [1.0, 2.0, 0.0]


def test_perfect_keypoints_cost_nothing():
    batch = scenes()
    count = batch["people"].shape[1]
    logits = torch.full((2, count, 19, 18), -30.0)
    logits[:, :, torch.arange(17), torch.arange(1, 18)] = 30.0
    logits[:, :, 17:, 0] = 30.0
    coords = torch.zeros(2, count, 19, 2)
    coords[:, :, :17] = batch["keypoints"][..., :2]
    coords[:, :, 17:] = 1.0
    # joints without a label are matched at the corner of the box's frame
    corner = batch["boxes"][..., :2] - PADDING / 2 * batch["boxes"][..., 2:].clamp(min=0.05)
    hidden = batch["keypoints"][..., 2:] == 0
    coords[:, :, :17] = torch.where(hidden, corner[:, :, None], coords[:, :, :17])
    nothing = torch.zeros(2, 3, 2), torch.zeros(2, 3, 4)
    output = SequentialOutput(*nothing, coords, logits, torch.zeros(2, count, dtype=torch.int64))
    losses = KeypointSetLoss()(
        in_label_frame(output, batch["boxes"]), keypoint_targets(batch, None)
    )
    assert float(losses["loss_ce"]) == pytest.approx(0, abs=1e-5)
    assert float(losses["loss_kpts"]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("name", ["prtr-sequential-detector", "prtr-sequential"])
def test_sequential_losses_reach_every_parameter_that_learns(name, data, tmp_path):
    torch.manual_seed(0)
    task = tiny(name, data, tmp_path).build_task()
    network = task.build_model().train()
    losses = task.loss(network, scenes())
    losses["total"].backward()
    lacking = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    suffixes = {key.split("_")[-1] for key in losses if "loss_ce" in key}
    assert suffixes == {"ce", "0"}  # two decoder layers


def test_an_image_without_people_is_no_obstacle(data, tmp_path):
    torch.manual_seed(0)
    task = tiny("prtr-sequential", data, tmp_path).build_task()
    network = task.build_model().train()
    losses = task.loss(network, scenes(people=(0, 0)))
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert float(losses["box_loss_bbox"].detach()) == 0
    assert float(losses["keypoint_loss_ce"].detach()) == 0


def test_a_step_copies_to_the_cpu_once_for_each_thing_that_has_to_wait(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    copies, cpu = [], torch.Tensor.cpu
    for name, expected in (("prtr-sequential-detector", 1), ("prtr-sequential", 2)):
        task = tiny(name, data, tmp_path).build_task()
        network, batch = task.build_model().train(), scenes()
        copies.clear()
        monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x) or cpu(x))
        task.loss(network, batch)
        monkeypatch.undo()
        assert len(copies) == expected


def test_counts_of_one_process_are_its_own():
    assert float(shared_count(torch.tensor(7))) == 7
    assert float(shared_count(torch.tensor(0))) == 1


# Validation ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "metric", "scores"),
    [
        ("prtr-coco-res50-384x288", "missing", {"AP", "AR"}),
        ("prtr-mpii-w32-256x256", "missing", {"Mean", "PCKh@0.11", "Ankle"}),
        ("prtr-sequential", "total", {"keypoint_loss_kpts", "box_loss_giou"}),
        ("prtr-sequential-detector", "total", {"box_loss_ce"}),
    ],
)
def test_held_out_data_choose_the_best_weights(name, metric, scores, data, tmp_path):
    if "coco" in name:
        pytest.importorskip("faster_coco_eval")
    recipe = tiny(name, data, tmp_path, steps=1)
    recipe.validation_data = recipe.data
    task = recipe.build_task()
    assert task.metric == metric
    result = train(recipe)
    assert result.metrics.keys() >= scores | {metric}
    assert result.best is not None
    pictures = list((tmp_path / "pictures").glob("*.png"))
    assert bool(pictures) == (name != "prtr-sequential-detector")


def test_the_mean_distance_is_measured_on_its_own(data, tmp_path):
    recipe = tiny("prtr-coco-res50-384x288", data, tmp_path, steps=1, protocol="own")
    recipe.validation_data = recipe.data
    metrics = train(recipe).metrics
    assert 1 < metrics["distance_percent"] < 100


def test_mirroring_can_be_the_only_variation(data, tmp_path):
    recipe = tiny("prtr-coco-res50-384x288", data, tmp_path, mirror_only=True)
    varied, plain = recipe.open_training(), replace(recipe, augment=False).open_training()
    mirrored = 0
    for step in range(12):
        varied.set_step(step)
        sample, expected = varied[0], plain[0]
        if not torch.equal(sample["image"], expected["image"]):
            mirrored += 1
            assert torch.equal(sample["image"], expected["image"].flip(-1))
            # what the flip test makes of a perfect answer is the plain answer
            found = unflip(Keypoints(sample["target"][None], sample["weight"][None, :, 0]), COCO17)
            assert torch.equal(found.scores[0], expected["weight"][:, 0])
            expected["target"] = torch.where(
                expected["weight"] > 0, expected["target"], found.coords[0]
            )
            sample["target"], sample["weight"] = found.coords[0], found.scores[0, :, None]
        for name in ("target", "weight", "center", "scale", "score"):
            torch.testing.assert_close(sample[name], expected[name])
    assert 0 < mirrored < 12
    fillers = mirror_sample(plain[0], COCO17)
    assert not fillers["target"][fillers["weight"][:, 0] == 0].any()
    assert "finished crops are mirrored, and neither scaled nor turned" in recipe.departures(1)


def test_a_perfect_network_has_no_distance(data, tmp_path):
    from kinemesh.training.prtr_task import mean_distance

    recipe = tiny("prtr-coco-res50-384x288", data, tmp_path, augment=False)
    dataset = recipe.open_training()
    batch = recipe.build_task().collate([dataset[k] for k in range(4)])

    class Oracle(torch.nn.Module):
        def forward(self, image):
            logits = torch.full((len(image), 17, 18), -9.0)
            logits[:, torch.arange(17), torch.arange(17)] = 9.0
            return KeypointSetOutput(logits, batch["target"])

    assert mean_distance(Oracle(), [batch], torch.device("cpu")) == pytest.approx(0, abs=1e-4)
