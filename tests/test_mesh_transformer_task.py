"""The task of METRO and Mesh Graphormer: targets, masks, initial weights, no waiting, gradients."""

import json
import math
import os
import shutil

import pytest
import torch

from kinemesh.bodies.official_assets import load_body_model
from kinemesh.errors import InputError
from kinemesh.mesh_losses import MeshLossWeights
from kinemesh.models.checkpoints import to_official
from kinemesh.models.variants import get_variant
from kinemesh.skeletons import COCO17, H36M14, HAND21, METRO24, joint_map
from kinemesh.training.batches import StepBatches
from kinemesh.training.initial_weights import load_initial
from kinemesh.training.mesh_objective import JointObjective, MeshObjective
from kinemesh.training.mesh_transformer_task import NetworkChanges
from kinemesh.training.token_masks import draw_keep_mask
from tests.mesh_training_data import SAMPLES
from tests.no_waiting import NoWaiting
from tests.tiny_recipes import NAMES, tiny, write_data
from tests.tolerances import TOL


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    write_data(folder)
    return folder


def task_and_batch(name, data, tmp_path, count=2, **changes):
    task = tiny(name, data, tmp_path, **changes).build_task()
    dataset = task.train_dataset()
    return task, task.collate([dataset[index] for index in range(count)])


# One step --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_step_reaches_every_parameter_and_waits_for_nothing(name, data, tmp_path):
    torch.manual_seed(0)
    task, batch = task_and_batch(name, data, tmp_path)
    network = task.build_model().train()
    with NoWaiting():
        terms = task.loss(network, batch)
        terms["total"].backward()
    assert all(value.isfinite() for value in terms.values())
    without = [name for name, value in network.named_parameters() if value.grad is None]
    assert without == []
    # the published hand-pose run teaches no camera: its gradient is there, and zero
    idle = [name for name, value in network.named_parameters() if not value.grad.any()]
    camera_only = all(parameter.startswith("cam_param") for parameter in idle)
    assert camera_only == (name == "graphormer-handpose") or idle == []


def test_total_is_the_weighted_sum(data, tmp_path):
    torch.manual_seed(0)
    task, batch = task_and_batch("metro-mixed", data, tmp_path)
    terms = task.loss(task.build_model(), batch)
    weighted = 1000 * (terms["loss_3d_token"] + terms["loss_3d_mesh"])
    weighted += 33 * (terms["loss_v_sub2"] + terms["loss_v_sub"] + terms["loss_v_full"])
    weighted += 100 * (terms["loss_2d_token"] + terms["loss_2d_mesh"])
    torch.testing.assert_close(terms["total"], weighted, **TOL[torch.float32])


# Targets ---------------------------------------------------------------------------------------


def test_targets_of_a_body(data, tmp_path):
    """The mesh is the body model's about the regressed pelvis, the joints are the label's."""
    task, batch = task_and_batch("metro-mixed", data, tmp_path, count=3, augment=False)
    assert isinstance(task.objective, MeshObjective)
    targets = task.objective.targets(batch)
    mesh = load_body_model(data / "body" / "assets", "smpl")(batch["pose"], batch["betas"])
    pelvis = task.topology.joints(mesh.vertices)[:, :1]
    torch.testing.assert_close(targets.vertices_BV3, mesh.vertices - pelvis, **TOL[torch.float32])
    order = list(joint_map(METRO24, H36M14))
    assert order == [*range(13), 18]
    assert torch.equal(targets.joints_3d_BT4, batch["joints_3d"][:, order])
    assert targets.has_3d_B.tolist() == [1, 0, 1]
    assert targets.has_mesh_B.tolist() == [1, 1, 0]
    signed = batch["joints_2d"][:, order, :2] / 32 - 1
    torch.testing.assert_close(targets.joints_2d_BT3[..., :2], signed, **TOL[torch.float32])
    assert torch.equal(targets.joints_2d_BT3[..., 2], batch["joints_2d"][:, order, 2])


def test_targets_of_a_hand_are_the_body_models(data, tmp_path):
    """Joints are the layer's with certainty, whatever the label says; the wrist is its own."""
    task, batch = task_and_batch("metro-freihand", data, tmp_path, augment=False)
    batch["joints_3d"] = torch.full_like(batch["joints_3d"], math.nan)
    batch["has_mesh"] = torch.tensor([1.0, 0.0])
    targets = task.objective.targets(batch)
    mesh = load_body_model(data / "hand" / "assets", "mano")(batch["pose"], batch["betas"])
    wrist = mesh.joints[:, :1]
    assert torch.equal(targets.joints_3d_BT4[..., :3], mesh.joints - wrist)
    assert (targets.joints_3d_BT4[..., 3] == 1).all()
    assert torch.equal(targets.vertices_BV3, mesh.vertices - wrist)
    assert torch.equal(targets.has_3d_B, batch["has_mesh"])


def test_labelled_vertices_of_a_hand_do_not_count_in_training(data, tmp_path):
    """FreiHAND brings training_verts.json, too; METRO is trained on MANO's mesh all the same."""
    plain, batch = task_and_batch("metro-freihand", data, tmp_path, augment=False)
    folder = tmp_path / "with-vertices"
    shutil.copytree(data / "hand" / "freihand", folder)
    elsewhere = [[[9.0, 9.0, 9.0]] * 778] * SAMPLES
    (folder / "training_verts.json").write_text(json.dumps(elsewhere))
    settings = {"augment": False, "data": f"freihand:{folder}"}
    task = tiny("metro-freihand", data, tmp_path, **settings).build_task()
    samples = task.train_dataset()
    labelled = task.collate([samples[0], samples[1]])
    assert labelled["vertices"].shape == (2, 778, 3)
    found, expected = task.objective.targets(labelled), plain.objective.targets(batch)
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name


def test_scores_take_labelled_vertices(data, tmp_path):
    """Unlike the loss: a mesh that is nowhere near the labelled one has a large error."""
    errors = []
    for shift in (0.0, 1.0):
        folder = tmp_path / f"shift-{shift}"
        shutil.copytree(data / "hand" / "freihand", folder)
        task, batch = task_and_batch("metro-freihand", data, tmp_path, augment=False)
        mesh = task.objective.targets(batch).vertices_BV3[0]
        stretched = (mesh * (1 + shift)).tolist()
        (folder / "training_verts.json").write_text(json.dumps([stretched] * SAMPLES))
        settings = {"data": f"freihand:{folder}", "validation_data": f"freihand:{folder}"}
        task = tiny("metro-freihand", data, tmp_path, protocol="own", **settings).build_task()
        torch.manual_seed(0)
        errors.append(task.validate(task.build_model().eval(), torch.device("cpu")))
    assert errors[0]["pa_mpjpe_mm"] == errors[1]["pa_mpjpe_mm"]
    assert errors[1]["pa_mpvpe_mm"] > 1.5 * errors[0]["pa_mpvpe_mm"]


def test_without_a_body_model_vertices_are_taken_as_labelled(data, tmp_path):
    task, batch = task_and_batch("metro-freihand-synthetic", data, tmp_path)
    targets = task.objective.targets(batch)
    assert torch.equal(targets.vertices_BV3, batch["vertices"])
    assert torch.equal(targets.joints_3d_BT4, batch["joints_3d"])


def test_a_mesh_without_a_body_model_is_refused(data, tmp_path):
    task, batch = task_and_batch("metro-freihand", data, tmp_path)
    task.objective.body_model = None
    with pytest.raises(InputError, match="--assets"):
        task.objective.targets(batch)


def test_labels_that_lack_joints_are_refused():
    with pytest.raises(InputError, match="lack"):
        JointObjective(COCO17, HAND21)


def test_images_are_normalised_as_imagenets(data, tmp_path):
    task, batch = task_and_batch("graphormer-handpose", data, tmp_path, count=1)
    network, seen = task.build_model(), []
    network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    task.loss(network, dict(batch) | {"image": torch.ones(1, 3, 64, 64)})
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx(expected)


# Masks -----------------------------------------------------------------------------------------


def test_masks_follow_the_published_rule():
    """int(p r J) masked joints and int(p r V) masked vertices, any of them, independently."""
    torch.manual_seed(0)
    mask = draw_keep_mask(20_000, 14, 43, 0.3)
    assert mask.shape == (20_000, 57, 1)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    for tokens, count in ((mask[:, :14, 0], 14), (mask[:, 14:, 0], 43)):
        masked = count - tokens.sum(dim=1)
        largest = 0.3 * count
        shares = torch.bincount(masked.long()) / len(mask)
        assert len(shares) == math.ceil(largest)
        # p falls evenly into steps of 1 / (r count), the last one cut short
        assert shares[:-1].tolist() == pytest.approx([1 / largest] * (len(shares) - 1), abs=0.012)
        chosen = 1 - tokens.mean(dim=0)
        assert chosen.max() - chosen.min() < 0.02  # none is preferred
    joints, vertices = (part.sum(dim=1)[:, 0] for part in mask.split((14, 43), dim=1))
    assert abs(torch.corrcoef(torch.stack([joints, vertices]))[0, 1]) < 0.03


def test_no_share_masks_nothing():
    assert draw_keep_mask(50, 21, 195, 0.0).all()


def test_the_readers_mask_comes_first(data, tmp_path):
    task, batch = task_and_batch("metro-mixed", data, tmp_path)
    queries = 14 + 4
    assert task._keep_mask(batch).shape == (2, queries, 1)  # drawn here
    batch["keep_mask"] = torch.ones(2, queries, 1)
    assert task._keep_mask(batch) is batch["keep_mask"]
    hand, batch = task_and_batch("metro-freihand", data, tmp_path)
    assert hand._keep_mask(batch) is None


def test_samples_vary_with_the_step_and_with_nothing_else(data, tmp_path):
    task, _ = task_and_batch("metro-mixed", data, tmp_path, count=1)
    batches = [
        StepBatches(task.train_dataset(), task.collate, batch_size=8, seed=88) for _ in range(2)
    ]
    first, second = batches[0][0]["image"], batches[0][1]["image"]
    assert not torch.equal(first.sum((1, 2, 3)).sort()[0], second.sum((1, 2, 3)).sort()[0])
    assert torch.equal(batches[1][0]["image"], first)


# Networks and initial weights ------------------------------------------------------------------


def test_changes_of_the_network_stay_consistent():
    changes = NetworkChanges(width=18, head_planes=(4, 4, 4, 16), pooled_channels=96, layers=1)
    assert changes.overrides(get_variant("metro-body-w64"), 64) == {
        "layers": 1,
        "map_channels": 96,
        "cells": 4,
        "backbone": {
            "name": "hrnet",
            "width": 18,
            "head_planes": (4, 4, 4, 16),
            "pooled_channels": 96,
        },
    }
    graph = changes.overrides(get_variant("graphormer-hand-w64"), 64)
    assert (graph["grid_channels"], graph["pooled_channels"]) == (64, 96)
    assert NetworkChanges().overrides(get_variant("metro-body-w64"), 224) == {}


def test_official_weights_start_a_run(data, tmp_path):
    torch.manual_seed(0)
    task, _ = task_and_batch("graphormer-freihand", data, tmp_path, count=1)
    trained, fresh = task.build_model(), task.build_model()
    path = tmp_path / "graphormer_hand_state_dict.bin"
    torch.save(to_official(trained.state_dict(), "graphormer-hand"), path)
    # two heads instead of four: no shape tells, so the recipe's network says it
    said = load_initial(fresh, path)
    assert "graphormer-hand" in said
    assert all(
        torch.equal(value, trained.state_dict()[name]) for name, value in fresh.state_dict().items()
    )


def test_weights_of_other_sizes_and_other_files_are_refused(data, tmp_path):
    small, _ = task_and_batch("metro-freihand", data, tmp_path, count=1)
    path = tmp_path / "metro_hand_state_dict.bin"
    torch.save(to_official(small.build_model().state_dict(), "metro-hand"), path)
    other = tiny("metro-freihand", data, tmp_path, init=path)
    other.network.layers = 2
    with pytest.raises(InputError, match=r"^--init: .*missing: .*layer\.1"):
        other.build_task().build_model()
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match=r"^--init: .*fit none of them: weight"):
        load_initial(torch.nn.Linear(1, 1), path)
    with pytest.raises(InputError, match=r"^--init: .*no such file"):
        load_initial(torch.nn.Linear(1, 1), tmp_path / "absent.bin")


def test_loss_weights_are_the_recipes(data, tmp_path):
    torch.manual_seed(0)
    weights = MeshLossWeights(0.0, 2.0, 0.0, (0.0, 1.0))
    task, batch = task_and_batch("metro-freihand", data, tmp_path, weights=weights)
    terms = task.loss(task.build_model(), batch)
    torch.testing.assert_close(terms["total"], 2 * terms["loss_v_full"])
