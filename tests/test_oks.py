import math

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.evaluation import oks
from kinemesh.evaluation.keypoint_readout import KeypointPerson
from kinemesh.evaluation.oks import (
    COCO_SIGMAS,
    best_first,
    oks_matrix,
    person_scores,
    select_people,
    suppressed,
)
from tests.tolerances import TOL

FLOAT64 = TOL[torch.float64]


def slow_similarity(a, b, area_a, area_b):
    total = 0.0
    for (xa, ya), (xb, yb), sigma in zip(a, b, COCO_SIGMAS, strict=True):
        squared = (xa - xb) ** 2 + (ya - yb) ** 2
        e = squared / (2 * sigma) ** 2 / ((area_a + area_b) / 2 + 2.2e-16) / 2
        total += math.exp(-e)
    return total / len(COCO_SIGMAS)


def slow_selection(people, joint_score_above, threshold):
    """One person at a time, as the rules are told."""
    scores = []
    for person in people:
        good = [float(s) for s in person.scores if s > joint_score_above]
        scores.append((sum(good) / len(good) if good else 0.0) * person.box_score)
    kept = []
    for image in dict.fromkeys(person.image_id for person in people):
        waiting = [n for n, person in enumerate(people) if person.image_id == image]
        waiting = sorted(waiting, key=lambda n: scores[n])[::-1]  # ties in reverse order
        while waiting:
            best, *rest = waiting
            kept.append(best)
            one = people[best]
            waiting = [
                n
                for n in rest
                if slow_similarity(
                    one.keypoints_px, people[n].keypoints_px, one.area, people[n].area
                )
                <= threshold
            ]
    return kept, scores


def crowd(seed, count, images=4):
    """People around a few places, so that many are alike; some have equal scores."""
    rng = np.random.default_rng(seed)
    places = 400 * rng.random((3, 1, 2)) + 80 * rng.random((3, 17, 2))
    people = []
    for _ in range(count):
        scale = np.float32(0.5 + rng.random(2))
        pose = places[rng.integers(3)] + 6 * rng.standard_normal((17, 2))
        scores = np.float32(np.round(rng.random(17), 1) if rng.random() < 0.5 else np.full(17, 0.5))
        image = int(rng.integers(images)) + 10
        people.append(KeypointPerson(image, np.float32(pose), scores, np.zeros(2), scale))
    return people


def test_similarity_equals_the_scalar_formula():
    people = crowd(0, 6)
    poses = torch.tensor(np.stack([person.keypoints_px for person in people])).double()
    areas = torch.tensor([person.area for person in people], dtype=torch.float64)
    fast = oks_matrix(poses, areas)
    slow = [
        [slow_similarity(a.tolist(), b.tolist(), x, y) for b, y in zip(poses, areas, strict=True)]
        for a, x in zip(poses, areas, strict=True)
    ]
    torch.testing.assert_close(fast, torch.tensor(slow, dtype=torch.float64), **FLOAT64)
    assert torch.equal(fast.diagonal(), torch.ones(6, dtype=torch.float64))
    stacked = oks_matrix(torch.stack([poses, poses.flip(0)]), torch.stack([areas, areas.flip(0)]))
    torch.testing.assert_close(stacked[1], fast.flip(0, 1), **FLOAT64)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_selection_equals_one_person_at_a_time(seed, threshold):
    people = crowd(seed, 30)
    slow, slow_scores = slow_selection(people, 0.2, threshold)
    kept, scores = select_people(people, oks_nms_above=threshold)
    np.testing.assert_allclose(scores, slow_scores, rtol=1e-6)
    assert kept == slow
    assert len(kept) < len(people)


def test_selection_is_the_same_image_by_image(monkeypatch):
    people = crowd(7, 40, images=9)
    together = select_people(people)[0]
    monkeypatch.setattr(oks, "_NUMBERS_AT_ONCE", 1)
    assert select_people(people)[0] == together


def test_no_suppression_keeps_everybody_best_first():
    people = crowd(1, 12)
    kept, scores = select_people(people, oks_nms_above=None)
    assert sorted(kept) == list(range(12))
    for image in {person.image_id for person in people}:
        own = [scores[n] for n in kept if people[n].image_id == image]
        assert own == sorted(own, reverse=True)


def test_ties_come_in_reverse_order():
    assert best_first(torch.tensor([0.5, 0.7, 0.5, 0.7, 0.5])).tolist() == [3, 1, 4, 2, 0]


def test_as_similar_as_the_threshold_stays():
    similarity = torch.tensor([[[1.0, 0.9], [0.9, 1.0]]], dtype=torch.float64)
    assert suppressed(similarity, 0.9).tolist() == [[False, False]]
    assert suppressed(similarity, 0.89).tolist() == [[False, True]]


def test_who_is_gone_suppresses_nobody():
    chain = torch.tensor([[1.0, 0.95, 0.0], [0.95, 1.0, 0.95], [0.0, 0.95, 1.0]])
    assert suppressed(chain[None], 0.9).tolist() == [[False, True, False]]


def test_only_joints_strictly_above_the_limit_count():
    joints = torch.tensor([[0.2, 0.6, 0.8], [0.2, 0.1, 0.0]], dtype=torch.float64)
    boxes = torch.tensor([0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(
        person_scores(joints, boxes), torch.tensor([0.35, 0.0], dtype=torch.float64)
    )


def test_nobody():
    kept, scores = select_people([])
    assert (kept, scores.shape) == ([], (0,))


def test_refuses_other_joints():
    hand = KeypointPerson(3, np.zeros((21, 2)), np.zeros(21), np.zeros(2), np.ones(2))
    with pytest.raises(InputError, match=r"image 3\): expected 17 joints, found 21"):
        select_people([hand])
    with pytest.raises(InputError, match="17 joints"):
        oks_matrix(torch.zeros(2, 21, 2), torch.ones(2))
