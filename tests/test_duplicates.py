from dataclasses import replace

import numpy as np
import pytest

from kinemesh.inference.boxes import Box, at_least, clip_box
from kinemesh.inference.duplicates import (
    box_iou,
    joint_sigmas,
    joint_similarity,
    suppress_boxes,
    suppress_people,
    tidy_boxes,
)
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.skeletons import SKELETONS, get_skeleton

CAMERA = PhotoCamera(500.0, (160.0, 120.0), (320, 240))


def somebody(
    at: tuple[float, float],
    score: float,
    *,
    seed: int = 0,
    side: str | None = None,
    owner: int | None = None,
) -> Person:
    skeleton = "coco17" if side is None else "hand21"
    count = len(get_skeleton(skeleton))
    spread = np.random.default_rng(seed).uniform(-40, 40, (count, 2))
    return Person(
        vertices=np.zeros((0, 3), np.float32),
        faces=np.zeros((0, 3), np.int64),
        joints=np.zeros((count, 3), np.float32),
        joints_px=(spread + at).astype(np.float32),
        joint_confidence=np.ones(count, np.float32),
        skeleton=skeleton,
        box_px=(at[0] - 40, at[1] - 40, 80, 80),
        side=side,  # type: ignore[arg-type]
        score=score,
        camera=CAMERA,
        owner=owner,
    )


class TestBoxes:
    def test_intersection_over_union(self) -> None:
        boxes = [Box(0, 0, 10, 10), Box(5, 0, 10, 10), Box(30, 30, 4, 4), Box(0, 0, 10, 10)]
        found = box_iou(boxes)
        np.testing.assert_allclose(found[0], [1, 50 / 150, 0, 1])
        np.testing.assert_allclose(found, found.T)
        assert box_iou([]).shape == (0, 0)

    def test_the_best_of_equal_boxes_stays(self) -> None:
        weak, best, other = (
            Box(0, 0, 100, 100, 0.5),
            Box(1, 0, 100, 100, 0.9),
            Box(50, 0, 99, 99, 0.7),
        )
        assert suppress_boxes([weak, other, best]) == [best, other]

    def test_hands_do_not_replace_people_or_other_hands(self) -> None:
        boxes = [Box(0, 0, 9, 9, 0.9), Box(0, 0, 9, 9, 0.8, "left"), Box(0, 0, 9, 9, 0.7, "right")]
        assert suppress_boxes(boxes) == boxes

    def test_tidy(self) -> None:
        boxes = [
            Box(-10, -10, 30, 30, 0.6),
            Box(400, 10, 20, 20, 0.9),  # outside
            Box(300, 200, 90, 90, 0.8),
            Box(10, 100, 20, 20, 0.4),  # unsure
            Box(100, 100, 20, 20),
        ]
        assert tidy_boxes(boxes, (320, 240), 0.5) == [
            Box(100, 100, 20, 20),
            Box(300, 200, 20, 40, 0.8),
            Box(0, 0, 20, 20, 0.6),
        ]

    def test_clip_keeps_score_and_side(self) -> None:
        assert clip_box(Box(-5, 5, 10, 10, 0.3, "left"), (8, 8)) == Box(0, 5, 5, 3, 0.3, "left")
        assert clip_box(Box(8, 0, 5, 5), (8, 8)) is None
        assert at_least([Box(0, 0, 1, 1, 0.5), Box(0, 0, 1, 1, 0.49)], 0.5) == [
            Box(0, 0, 1, 1, 0.5)
        ]


class TestPeople:
    def test_the_better_of_two_stays_and_order_is_kept(self) -> None:
        first, twin, other = (
            somebody((100, 90), 0.4),
            somebody((101, 90), 0.9),
            somebody((200, 90), 0.5),
        )
        assert suppress_people([first, other, twin]) == [other, twin]

    def test_one_box_but_other_joints_are_two_people(self) -> None:
        people = [somebody((100, 90), 0.9, seed=1), somebody((100, 90), 0.8, seed=2)]
        assert suppress_people(people) == people

    def test_hands_go_with_their_body_and_owners_are_counted_anew(self) -> None:
        bodies = [somebody((100, 90), 0.4), somebody((101, 90), 0.9), somebody((250, 90), 0.5)]
        hands = [
            somebody((20, 20), 0.5, side="left", owner=0),
            somebody((80, 20), 0.5, side="left", owner=1),
            somebody((200, 220), 0.5, side="right", owner=2),
            somebody((300, 220), 0.5, side="right"),
        ]
        kept = suppress_people([*bodies, *hands])
        assert kept[:2] == bodies[1:]
        assert [(hand.side, hand.owner) for hand in kept[2:]] == [
            ("left", 0),
            ("right", 1),
            ("right", None),
        ]

    def test_clasped_hands_stay_but_one_hand_of_two_people_does_not(self) -> None:
        bodies = [somebody((50, 90), 0.5, seed=1), somebody((250, 90), 0.5, seed=2)]
        left = somebody((150, 90), 0.9, side="left", owner=0)
        right = somebody((150, 90), 0.8, side="right", owner=0)
        assert suppress_people([*bodies, left, right]) == [*bodies, left, right]
        foreign = replace(right, owner=1)
        kept = suppress_people([*bodies, left, foreign])
        assert [(p.side, p.owner, p.score) for p in kept[2:]] == [("left", 0, 0.9)]

    def test_nobody(self) -> None:
        assert suppress_people([]) == []


def test_similarity_falls_with_distance_over_size() -> None:
    person = somebody((100, 90), 0.9)
    shifted = [
        replace(person, joints_px=person.joints_px + np.array([shift, 0])) for shift in (0, 3, 30)
    ]
    similar = joint_similarity(shifted)[0].tolist()
    assert similar[0] == pytest.approx(1)
    assert 0.8 < similar[1] < 0.99
    assert similar[2] < 0.2
    large = [replace(p, joints_px=p.joints_px * 10) for p in shifted]
    np.testing.assert_allclose(joint_similarity(large)[0], similar, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_every_joint_set_has_sigmas(name: str) -> None:
    sigmas = joint_sigmas(get_skeleton(name))
    assert len(sigmas) == len(get_skeleton(name))
    assert all(0.02 < sigma < 0.11 for sigma in sigmas)
