"""What the detector's locations shall say, and how its losses measure it, against slow twins."""

import pytest
import torch

from kinemesh.detector_losses import (
    BACKGROUND,
    DetectorTargets,
    assign_targets,
    detector_losses,
    giou_loss,
)
from kinemesh.models.detector import (
    CLASSES,
    LEFT_HAND,
    PERSON,
    RIGHT_HAND,
    DetectorOutput,
    locations,
)
from tests import slow_detector

SIDE = 128


def random_scene(seed, count=7):
    generator = torch.Generator().manual_seed(seed)
    middle = torch.rand(count, 2, generator=generator) * SIDE
    half = torch.exp(torch.rand(count, 2, generator=generator) * 3 + 1.2)
    boxes = torch.cat([(middle - half).clamp(min=0), (middle + half).clamp(max=SIDE)], dim=1)
    labels = torch.randint(-1, 3, (count,), generator=generator)
    ignored = torch.rand(count, generator=generator) < 0.3
    return boxes, labels, ignored


@pytest.mark.parametrize("seed", range(4))
def test_targets_equal_their_slow_twin(seed):
    scenes = [random_scene(seed), random_scene(seed + 100)]
    boxes, labels, ignored = (torch.stack(values) for values in zip(*scenes, strict=True))
    targets = assign_targets(boxes, labels, ignored, SIDE)
    assert (targets.labels >= 0).any()
    assert not targets.counted.all()
    for row, scene in enumerate(scenes):
        twin = slow_detector.targets(*(values.tolist() for values in scene), SIDE)
        expected = [list(column) for column in zip(*twin, strict=True)]
        assert targets.labels[row].tolist() == expected[0]
        torch.testing.assert_close(targets.distances[row], torch.tensor(expected[1]))
        torch.testing.assert_close(targets.centreness[row], torch.tensor(expected[2]))
        assert targets.counted[row].tolist() == expected[3]


def test_which_locations_serve_a_box():
    box = torch.tensor([[[32.0, 32, 64, 64]]])
    targets = assign_targets(box, torch.tensor([[PERSON]]), torch.zeros(1, 1, dtype=bool), SIDE)
    places, strides = locations(SIDE)
    served = targets.labels[0] == PERSON
    # within 12 px of (48, 48) on stride 8; the next level begins beyond a reach of 32 px
    near = [36.0, 44.0, 52.0, 60.0]
    assert sorted(places[served].tolist()) == [[x, y] for x in near for y in near]
    assert set(strides[served].tolist()) == {8.0}


@pytest.mark.parametrize("size", [8.5, 10, 16, 31, 33, 62, 63, 64, 66, 90, 126, 127, 129, 200, 256])
def test_every_box_is_served(size):
    for shift in (0.0, 3.0, 7.5, 20.0):
        low = max(0.0, 128 - size / 2 - shift)
        box = torch.tensor([[[low, low, min(low + size, 256.0), min(low + size, 256.0)]]])
        targets = assign_targets(box, torch.tensor([[0]]), torch.zeros(1, 1, dtype=bool), 256)
        assert (targets.labels == 0).any(), (size, shift)


def test_the_smaller_of_two_boxes_is_served():
    boxes = torch.tensor([[[20.0, 20, 50, 50], [24, 24, 46, 46]]])
    targets = assign_targets(
        boxes, torch.tensor([[PERSON, LEFT_HAND]]), torch.zeros(1, 2, dtype=bool), SIDE
    )
    places, _ = locations(SIDE)
    at = (places == torch.tensor([36.0, 36.0])).all(dim=1)
    assert targets.labels[0, at].tolist()[0] == LEFT_HAND


def test_an_ignored_hand_leaves_both_sides_open_and_people_not():
    boxes = torch.tensor([[[20.0, 20, 50, 50]]])
    targets = assign_targets(
        boxes, torch.tensor([[RIGHT_HAND]]), torch.ones(1, 1, dtype=bool), SIDE
    )
    places, _ = locations(SIDE)
    inside = ((places > 20) & (places < 50)).all(dim=1)
    assert (targets.labels == BACKGROUND).all()
    assert targets.counted[0, :, PERSON].all()
    for hand in (LEFT_HAND, RIGHT_HAND):
        assert torch.equal(~targets.counted[0, :, hand], inside)


def random_output(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return DetectorOutput(
        torch.randn(1, count, len(CLASSES), generator=generator, dtype=torch.float64),
        torch.exp(torch.randn(1, count, 4, generator=generator, dtype=torch.float64) + 2),
        torch.randn(1, count, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_their_slow_twin(seed):
    scene = random_scene(seed)
    targets = assign_targets(*(values[None] for values in scene), SIDE)
    output = random_output(seed, len(locations(SIDE)[0]))
    losses = detector_losses(output, targets)
    rows = slow_detector.targets(*(values.tolist() for values in scene), SIDE)
    twin = slow_detector.losses(*(values[0].tolist() for values in output), rows)
    assert losses.keys() == twin.keys()
    for name, value in twin.items():
        assert float(losses[name]) == pytest.approx(value, rel=1e-4), name


def test_a_photo_without_anybody_has_finite_losses_and_gradients():
    nobody = torch.zeros(1, 1, 4), torch.full((1, 1), BACKGROUND), torch.zeros(1, 1, dtype=bool)
    targets = assign_targets(*nobody, SIDE)
    parts = [
        values.float().requires_grad_() for values in random_output(0, len(locations(SIDE)[0]))
    ]
    losses = detector_losses(DetectorOutput(*parts), targets)
    assert losses["boxes"].item() == losses["centres"].item() == 0
    sum(losses.values()).backward()
    assert all(part.grad is not None and part.grad.isfinite().all() for part in parts)


def test_giou_of_equal_and_of_far_boxes():
    one = torch.tensor([[4.0, 5, 6, 7]])
    assert float(giou_loss(one, one)) == pytest.approx(0, abs=1e-6)
    small, large = torch.full((1, 4), 0.01), torch.full((1, 4), 100.0)
    assert 0.99 < float(giou_loss(small, large)) <= 2


def test_losses_shrink_as_boxes_are_found():
    scene = random_scene(5)
    targets: DetectorTargets = assign_targets(*(values[None] for values in scene), SIDE)
    right = torch.nn.functional.one_hot(targets.labels + 1, 4)[..., 1:].float() * 16 - 8
    output = DetectorOutput(right, targets.distances, torch.logit(targets.centreness, eps=1e-6))
    losses = detector_losses(output, targets)
    assert float(losses["boxes"]) < 1e-5
    assert float(losses["classes"]) < 1e-2
