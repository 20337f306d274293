"""Matching of queries and labels: against all permutations, in one copy, with refusals."""

import itertools

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.matching import (
    assign,
    box_cost,
    generalised_iou,
    keypoint_cost,
    match,
    match_boxes,
)


def hypotheses(layers=2, people=3, queries=6, joints=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(layers, people, queries, joints + 1, generator=generator)
    coords = torch.rand(layers, people, queries, 2, generator=generator)
    return logits, coords, torch.rand(people, joints, 2, generator=generator)


def slow_match(logits_QK, coords_Q2, target_J2):
    """The cheapest of all ways, with the cost written out."""
    probability = logits_QK.softmax(-1)

    def cost(queries):
        return sum(
            5 * float((coords_Q2[q] - target_J2[j]).abs().sum()) - float(probability[q, j])
            for j, q in enumerate(queries)
        )

    return min(itertools.permutations(range(len(coords_Q2)), len(target_J2)), key=cost)


def test_the_match_is_the_cheapest_of_all():
    logits, coords, target = hypotheses()
    found = match(logits, coords, target)
    assert found.shape == (2, 3, 4)
    assert found.dtype == torch.int64
    for layer, person in itertools.product(range(2), range(3)):
        expected = slow_match(logits[layer, person], coords[layer, person], target[person])
        assert tuple(found[layer, person].tolist()) == expected


def test_a_layer_alone_is_matched_as_among_others():
    logits, coords, target = hypotheses()
    assert torch.equal(match(logits[1], coords[1], target), match(logits, coords, target)[1])


def test_probability_decides_between_equal_places():
    logits = torch.zeros(1, 3, 3)
    logits[0, 2, 0] = logits[0, 0, 1] = 3.0
    coords = torch.full((1, 3, 2), 0.5)
    assert match(logits, coords, torch.zeros(1, 2, 2)).tolist() == [[2, 0]]


def test_a_joint_without_a_label_occupies_the_query_at_its_filler():
    """The published rule: dummy targets at (0, 0) take part."""
    coords = torch.tensor([[[0.0, 0.0], [0.1, 0.1], [0.9, 0.9]]])
    target = torch.tensor([[[0.0, 0.0], [0.08, 0.08]]])
    assert match(torch.zeros(1, 3, 3), coords, target).tolist() == [[0, 1]]


def test_everything_is_solved_after_one_copy(monkeypatch):
    logits, coords, target = hypotheses()
    boxes = torch.rand(2, 3, 7, 4)
    people = torch.tensor([[True, False], [True, True], [False, False]])
    costs = [
        keypoint_cost(logits, coords, target),
        box_cost(torch.randn(2, 3, 7, 2), boxes, torch.rand(3, 2, 4), people),
        torch.zeros(0, 3, 7, 2),
    ]
    copies, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda x: copies.append(x) or cpu(x))
    found = assign(costs)
    assert len(copies) == 1
    monkeypatch.undo()
    assert [tuple(query.shape) for query in found] == [(2, 3, 4), (2, 3, 2), (0, 3, 2)]
    for cost, query in zip(costs, found, strict=True):
        assert torch.equal(query, assign([cost])[0])


def test_rows_that_are_no_person_change_nothing():
    generator = torch.Generator().manual_seed(1)
    logits, boxes = torch.randn(1, 6, 2, generator=generator), torch.rand(1, 6, 4)
    target = torch.rand(1, 2, 4, generator=generator)
    alone = match_boxes(logits, boxes, target, torch.ones(1, 2, dtype=torch.bool))
    padded = torch.cat([target, torch.full((1, 2, 4), torch.nan)], dim=1)
    people = torch.tensor([[True, True, False, False]])
    found = match_boxes(logits, boxes, padded, people)
    assert torch.equal(found[:, :2], alone)
    assert len(set(found[0].tolist())) == 4


def test_box_cost_is_detrs():
    logits = torch.tensor([[[2.0, 0.0]]])
    box, target = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]]), torch.tensor([[[0.6, 0.5, 0.2, 0.2]]])
    person = torch.ones(1, 1, dtype=torch.bool)
    probability = float(torch.sigmoid(torch.tensor(2.0)))
    overlap = 1 / 3  # half of either box, and the hull is their union
    expected = 5 * 0.1 - probability - 2 * overlap
    assert float(box_cost(logits, box, target, person)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((0.5, 0.5, 0.2, 0.2), 1.0),
        ((0.7, 0.5, 0.2, 0.2), 0.0),  # side by side
        ((0.9, 0.5, 0.2, 0.2), -1 / 3),  # a gap of one box between
        ((0.5, 0.5, 0.4, 0.4), 0.25),  # inside
        ((0.5, 0.5, 0.0, 0.0), 0.0),
    ],
)
def test_generalised_overlap(other, expected):
    box = torch.tensor([0.5, 0.5, 0.2, 0.2])
    assert float(generalised_iou(box, torch.tensor(other))) == pytest.approx(expected, abs=1e-5)
    assert float(generalised_iou(torch.tensor(other), box)) == pytest.approx(expected, abs=1e-5)


def test_overlap_of_empty_boxes_is_finite_with_its_gradient():
    box = torch.zeros(4, requires_grad=True)
    overlap = generalised_iou(box, torch.zeros(4))
    overlap.backward()
    assert float(overlap.detach()) == 0
    assert box.grad.isfinite().all()


def test_hypotheses_that_are_not_finite_are_matched_somehow():
    """The loss that follows is not finite, and the loop stops with a message of its own."""
    logits, coords, target = hypotheses()
    logits[0, 0], coords[1, 1, 0] = torch.nan, torch.inf
    found = match(logits, coords, target)
    assert all(len(set(row)) == 4 for row in found.flatten(0, 1).tolist())


def test_too_few_queries_are_refused():
    logits, coords, target = hypotheses(queries=3)
    with pytest.raises(InputError, match=r"3 queries and 4 labels.*more queries"):
        match(logits, coords, target)
