"""The sequential network's losses in several processes are those of the whole batch."""

import json
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from kinemesh.data.detection_scenes import collate_scenes
from kinemesh.training.sequential_task import SequentialTask
from tests.tiny_prtr_recipes import tiny, write_data

SHARED = ("box_loss_bbox", "box_loss_giou", "keypoint_loss_ce", "keypoint_loss_kpts")
"""Losses whose sums are divided by what all processes have."""


def make_task(folder: Path) -> tuple[SequentialTask, torch.nn.Module, dict[str, torch.Tensor]]:
    """Four images, of which the last two show nobody."""
    recipe = tiny("prtr-sequential", folder, folder / "run", augment=False, batch_size=4)
    recipe.network = type(recipe.network)(**(vars(recipe.network) | {"dropout": 0.0}))
    task = SequentialTask(recipe)
    torch.manual_seed(0)
    network = task.build_model().train()
    with torch.no_grad():  # so that no two queries are nearly as cheap to match
        for parameter in (network.query_embed.weight, network.transformer_kpt.query_embed.weight):
            parameter.mul_(16)
        network.transformer_kpt.class_predictor.weight.mul_(4)
    dataset = task.train_dataset()
    batch = collate_scenes([dataset[index] for index in range(4)])
    batch["people"][2:] = False
    return task, network, batch


def keypoint_gradient(network: torch.nn.Module, losses: dict[str, torch.Tensor]) -> torch.Tensor:
    network.zero_grad()
    (losses["keypoint_loss_ce"] + losses["keypoint_loss_kpts"]).backward()
    return network.transformer_kpt.class_predictor.weight.grad.clone()


def half(rank: int, port: int, folder: Path) -> None:
    """One of two processes, with half of the batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    task, network, batch = make_task(folder)
    part = {name: values[2 * rank : 2 * rank + 2] for name, values in batch.items()}
    losses = task.loss(network, part)
    gradient = keypoint_gradient(network, losses)
    values = torch.stack([losses[name].detach() for name in SHARED])
    for tensor in (values, gradient):
        torch.distributed.all_reduce(tensor)
        tensor.div_(2)
    if rank == 0:
        torch.save((values, gradient), folder / "mean.pt")
    torch.distributed.destroy_process_group()


def test_the_mean_over_processes_is_the_loss_of_the_whole_batch(tmp_path):
    """Also where one process has nobody, as half of COCO's images do."""
    write_data(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(half, (port, tmp_path), nprocs=2)
    values, gradient = torch.load(tmp_path / "mean.pt")
    task, network, batch = make_task(tmp_path)
    losses = task.loss(network, batch)
    whole = torch.stack([losses[name].detach() for name in SHARED])
    assert bool((whole > 0.01).all())
    torch.testing.assert_close(values, whole, rtol=1e-5, atol=1e-6)
    expected = keypoint_gradient(network, losses)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    # in one process the shared divisor is the plain mean over the queries of labelled people
    alone = task.terms(network, batch, None, None)[0]
    for name in SHARED:
        torch.testing.assert_close(alone[name], losses[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "empty"), [("detector", True), ("both", False)])
def test_images_without_people_are_for_the_detector(name, empty, tmp_path):
    """The recipes leave them out where the keypoints are learned; held-out images are all kept."""

    write_data(tmp_path)
    folder = tmp_path / "coco" / "annotations"
    file = folder / "person_keypoints_train2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:5]
    file.write_text(json.dumps(content))
    (folder / "person_keypoints_val2017.json").write_text(json.dumps(content))
    (tmp_path / "coco" / "train2017").rename(tmp_path / "coco" / "images")
    recipe = tiny(
        {"detector": "prtr-sequential-detector", "both": "prtr-sequential"}[name],
        tmp_path,
        tmp_path / "run",
    )
    recipe.validation_data = recipe.data
    assert recipe.empty is empty
    assert len(recipe.open_training()) == (8 if empty else 5)
    assert len(recipe.open_validation()) == 8
