"""Set losses: against a slow twin, the official numbers, and what must not matter."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from kinemesh.errors import InputError
from kinemesh.keypoint_losses import (
    DetectionSetLoss,
    DetectionTargets,
    KeypointSetLoss,
    KeypointTargets,
)
from kinemesh.matching import generalised_iou, match, match_boxes
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_sequential import Detections
from tests.parity import prtr_losses

LAYERS, PEOPLE, QUERIES, JOINTS = 3, 4, 9, 5


def draws(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, PEOPLE, QUERIES, JOINTS + 1, generator=generator)
    coords = torch.rand(LAYERS, PEOPLE, QUERIES, 2, generator=generator)
    places = torch.rand(PEOPLE, JOINTS, 2, generator=generator)
    weight = (torch.rand(PEOPLE, JOINTS, 1, generator=generator) > 0.3).float()
    return logits, coords, KeypointTargets(places * weight, weight)


def slow_keypoint_loss(logits_BQK, coords_BQ2, targets):
    """Person by person, joint by joint."""
    query = match(logits_BQK, coords_BQ2, targets.places_BJ2)
    surprise, weights, distance = 0.0, 0.0, 0.0
    for person, one in itertools.product(range(PEOPLE), range(QUERIES)):
        joints = query[person].tolist()
        label = joints.index(one) if one in joints else JOINTS
        weight = 1.0 if label < JOINTS else 0.1
        surprise -= weight * float(logits_BQK[person, one].log_softmax(-1)[label])
        weights += weight
    for person, joint in itertools.product(range(PEOPLE), range(JOINTS)):
        found = coords_BQ2[person, query[person, joint]]
        error = (found - targets.places_BJ2[person, joint]).abs()
        distance += float(targets.weight_BJ1[person, joint, 0] * error.sum())
    return surprise / weights, distance / (2 * PEOPLE)


def test_keypoint_loss_equals_its_slow_twin():
    logits, coords, targets = draws()
    losses = KeypointSetLoss()(KeypointSetOutput.of_layers(logits, coords), targets)
    total = 0.0
    for layer, suffix in enumerate(["_0", "_1", ""]):
        classes, places = slow_keypoint_loss(logits[layer], coords[layer], targets)
        assert float(losses[f"loss_ce{suffix}"]) == pytest.approx(classes, rel=1e-5)
        assert float(losses[f"loss_kpts{suffix}"]) == pytest.approx(places, rel=1e-5)
        total += classes + 5 * places
    assert float(losses["total"]) == pytest.approx(total, rel=1e-5)


def test_losses_and_matches_equal_the_official_ones(shared):
    folder = shared / "parity" / "prtr" / "golden"
    results = [prtr_losses.compare_losses(p) for p in sorted(folder.glob("np_loss_*.npz"))]
    assert len(results) == 2
    for result in [*results, prtr_losses.compare_groups(folder / "np_optim.json")]:
        result.assert_passed()


@pytest.mark.slow
def test_a_training_step_equals_the_official_one(shared):
    results = prtr_losses.compare(shared / "parity" / "prtr" / "golden")
    assert {"np_trainstep_res50_mpii", "np_trainstep_hrnet_mpii"} <= {r.name for r in results}
    for result in results:
        result.assert_passed()


def test_an_invisible_joint_has_a_class_but_no_place():
    logits, coords, targets = draws()
    coords.requires_grad_()
    logits.requires_grad_()
    hidden = KeypointTargets(targets.places_BJ2, torch.zeros(PEOPLE, JOINTS, 1))
    losses = KeypointSetLoss()(KeypointSetOutput.of_layers(logits, coords), hidden)
    losses["total"].backward()
    assert float(losses["loss_kpts"].detach()) == 0
    assert not coords.grad.any()
    query = match(logits, coords, targets.places_BJ2)
    for layer, person, joint in itertools.product(range(LAYERS), range(PEOPLE), range(JOINTS)):
        # the matched query is drawn towards the joint, not towards the background
        assert logits.grad[layer, person, query[layer, person, joint], joint] < 0


def test_people_without_labels_have_no_part():
    logits, coords, targets = draws()
    some = torch.tensor([1.0, 0.0, 1.0, 0.0])
    masked = KeypointTargets(targets.places_BJ2, targets.weight_BJ1, some)
    losses = KeypointSetLoss()(KeypointSetOutput.of_layers(logits, coords), masked)
    kept = KeypointTargets(targets.places_BJ2[::2], targets.weight_BJ1[::2])
    output = KeypointSetOutput.of_layers(logits[:, ::2], coords[:, ::2])
    expected = KeypointSetLoss()(output, kept)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5), name


def test_nobody_with_a_label_gives_a_loss_of_zero_in_the_graph():
    logits, coords, targets = draws()
    logits.requires_grad_()
    nobody = KeypointTargets(targets.places_BJ2, targets.weight_BJ1, torch.zeros(PEOPLE))
    losses = KeypointSetLoss()(KeypointSetOutput.of_layers(logits, coords), nobody)
    losses["total"].backward()
    assert float(losses["total"].detach()) == 0
    assert not logits.grad.any()


def test_a_perfect_answer_has_no_errors():
    target = torch.rand(2, JOINTS, 2, generator=torch.Generator().manual_seed(3))
    logits = torch.full((2, JOINTS + 2, JOINTS + 1), -20.0)
    logits[:, torch.arange(JOINTS), torch.arange(JOINTS)] = 20.0
    logits[:, JOINTS:, JOINTS] = 20.0
    coords = torch.cat([target, torch.rand(2, 2, 2)], dim=1)
    losses = KeypointSetLoss()(
        KeypointSetOutput(logits, coords), KeypointTargets(target, torch.ones(2, JOINTS, 1))
    )
    assert all(float(value) == pytest.approx(0, abs=1e-6) for value in losses.values())


def detections(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(LAYERS, 3, 6, 2, generator=generator)
    boxes = torch.rand(LAYERS, 3, 6, 4, generator=generator) * 0.5 + 0.2
    targets = torch.rand(3, 2, 4, generator=generator) * 0.5 + 0.2
    people = torch.tensor([[True, True], [True, False], [False, False]])
    *before, last = (Detections(*layer) for layer in zip(logits, boxes, strict=True))
    return last._replace(auxiliary=tuple(before)), DetectionTargets(targets, people)


def test_detection_loss_equals_its_slow_twin():
    output, targets = detections()
    losses = DetectionSetLoss()(output, targets)
    for suffix, layer in zip(["_0", "_1", ""], [*output.auxiliary, output], strict=True):
        query = match_boxes(layer.logits, layer.boxes, targets.boxes_BN4, targets.people_BN)
        label, distance, gap = torch.ones(3, 6, dtype=torch.int64), 0.0, 0.0
        for image, row in targets.people_BN.nonzero().tolist():
            found, wanted = layer.boxes[image, query[image, row]], targets.boxes_BN4[image, row]
            label[image, query[image, row]] = 0
            distance += float((found - wanted).abs().sum()) / 3
            gap += (1 - float(generalised_iou(found, wanted))) / 3
        classes = F.cross_entropy(
            layer.logits.flatten(0, 1), label.flatten(), torch.tensor([1.0, 0.1])
        )
        assert float(losses[f"loss_ce{suffix}"]) == pytest.approx(float(classes), rel=1e-5)
        assert float(losses[f"loss_bbox{suffix}"]) == pytest.approx(distance, rel=1e-5)
        assert float(losses[f"loss_giou{suffix}"]) == pytest.approx(gap, rel=1e-5)
        found = (layer.logits.argmax(-1) == 0).sum(-1)
        error = (found - torch.tensor([2, 1, 0])).abs().float().mean()
        assert float(losses[f"cardinality_error{suffix}"]) == pytest.approx(float(error))
    terms = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    total = sum(
        weight * float(losses[name + suffix])
        for name, weight in terms.items()
        for suffix in ("", "_0", "_1")
    )
    assert float(losses["total"]) == pytest.approx(total, rel=1e-5)


def test_images_without_people_teach_the_background_alone():
    output, targets = detections()
    empty = DetectionTargets(targets.boxes_BN4, torch.zeros(3, 2, dtype=torch.bool))
    losses = DetectionSetLoss()(output, empty)
    assert float(losses["loss_bbox"]) == float(losses["loss_giou"]) == 0
    assert float(losses["class_error"]) == 0
    expected = F.cross_entropy(output.logits.flatten(0, 1), torch.ones(18, dtype=torch.int64))
    assert float(losses["loss_ce"]) == pytest.approx(float(expected), rel=1e-5)


def test_half_precision_is_scored_in_float32():
    logits, coords, targets = draws()
    output = KeypointSetOutput.of_layers(logits.bfloat16(), coords.bfloat16())
    losses = KeypointSetLoss()(output, targets)
    assert all(value.dtype == torch.float32 for value in losses.values())


def test_shapes_that_do_not_fit_are_refused():
    logits, coords, targets = draws()
    with pytest.raises(InputError, match=r"weight.*\(4, 5, 1\).*\(4, 5\)"):
        KeypointTargets(targets.places_BJ2, targets.weight_BJ1[..., 0])
    fewer = KeypointTargets(targets.places_BJ2[:, :3], targets.weight_BJ1[:, :3])
    with pytest.raises(InputError, match="4 classes for 3 joints, found 6"):
        KeypointSetLoss()(KeypointSetOutput.of_layers(logits, coords), fewer)
