"""Duplicate suppression: boxes by their overlap, people and hands by their joints.

Boxes overlap much where people stand close together, so only nearly equal boxes are taken for
one person before the network has run. Afterwards the joints decide: two people who embrace share
a box but not their joints. Their similarity is that of COCO (object keypoint similarity, Lin et al.
2014) with the area of the box of the joints.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.evaluation.oks import COCO_SIGMAS, best_first, oks_matrix, suppressed
from kinemesh.inference.boxes import Box, at_least, clip_box
from kinemesh.inference.person import Person
from kinemesh.skeletons import COCO17, Skeleton, get_skeleton, joint_map

BOX_IOU = 0.8
"""Boxes with a larger intersection over union are taken for one person."""
PEOPLE_OKS = 0.7
"""People whose joints are more alike are taken for one; as for `KeypointPredictor`."""
BODY_SIGMA = 0.079
"""Of the joints of other sets than COCO's that COCO does not have: that of its shoulders."""
HAND_SIGMA = 0.035
"""Of the joints of a hand, as of COCO's ears: their place is seen within some pixels."""


def box_iou(boxes: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union (N, N) of all pairs of boxes."""
    corners = np.array([box.xywh for box in boxes], float).reshape(-1, 4)
    low, high = corners[:, :2], corners[:, :2] + corners[:, 2:]
    overlap = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared = overlap.clip(min=0).prod(-1)
    areas = corners[:, 2:].prod(-1)
    return np.asarray(shared / (areas[:, None] + areas - shared))


def suppress_boxes(boxes: Sequence[Box], iou_above: float = BOX_IOU) -> list[Box]:
    """Boxes best first, without those that repeat a better one.

    Args:
        boxes: In any order; a box without a score counts as 1. Boxes of left hands, of right hands
            and of people are told apart.
        iou_above: Boxes with a larger intersection over union are one.
    """
    ranked = sorted(boxes, key=lambda box: -(1.0 if box.score is None else box.score))
    overlap = box_iou(ranked)
    kept: list[int] = []
    for index, box in enumerate(ranked):
        rivals = [other for other in kept if ranked[other].side == box.side]
        if not (overlap[index, rivals] > iou_above).any():
            kept.append(index)
    return [ranked[index] for index in kept]


def tidy_boxes(boxes: Sequence[Box], image_size: tuple[int, int], min_score: float) -> list[Box]:
    """What a detector shall return: boxes cut to the image, sure enough, best first, each once.

    Args:
        boxes: In any order, in pixels.
        image_size: Width and height in pixels.
        min_score: Boxes with a lower score are left out; those without one stay.
    """
    inside = [clip_box(box, image_size) for box in at_least(boxes, min_score)]
    return suppress_boxes([box for box in inside if box is not None])


def suppress_people(people: Sequence[Person], oks_above: float = PEOPLE_OKS) -> list[Person]:
    """People in their order, without those whose joints repeat those of somebody with more score.

    Bodies are compared with bodies and hands with hands, a left hand also with right ones; the two
    hands of one person never replace each other, since hands are clasped. With a body its hands go,
    and ``owner`` is counted anew.

    Args:
        people: People of one photo.
        oks_above: Similarity, 0 to 1, above which two are one.
    """
    gone = [False] * len(people)
    for skeleton in {person.skeleton for person in people if person.kind == "body"}:
        group = [n for n, p in enumerate(people) if p.kind == "body" and p.skeleton == skeleton]
        _mark(people, group, oks_above, gone)
    for index, person in enumerate(people):
        gone[index] |= person.owner is not None and gone[person.owner]
    hands = [n for n, p in enumerate(people) if p.kind == "hand" and not gone[n]]
    _mark(people, hands, oks_above, gone)
    places = np.cumsum(np.logical_not(gone)) - 1
    kept = [person for person, out in zip(people, gone, strict=True) if not out]
    if len(kept) == len(people):
        return kept
    return [
        person if person.owner is None else replace(person, owner=int(places[person.owner]))
        for person in kept
    ]


def _mark(people: Sequence[Person], group: Sequence[int], above: float, gone: list[bool]) -> None:
    """Mark those of a group who repeat somebody better; all have one joint set."""
    if len(group) < 2:
        return
    order = best_first(torch.tensor([people[index].score for index in group])).tolist()
    ranked = [group[place] for place in order]
    owners = [people[index].owner for index in ranked]
    similar = joint_similarity([people[index] for index in ranked])
    for row, owner in enumerate(owners):
        for column, other in enumerate(owners):
            if owner is not None and owner == other and row != column:
                similar[row, column] = 0.0
    for index, out in zip(ranked, suppressed(similar[None], above)[0].tolist(), strict=True):
        gone[index] |= out


def joint_similarity(people: Sequence[Person]) -> torch.Tensor:
    """Object keypoint similarity (N, N) float64 of people with one joint set."""
    skeleton = get_skeleton(people[0].skeleton)
    joints_px = np.stack([person.joints_px for person in people]).astype(float)
    extent = joints_px.max(1) - joints_px.min(1)
    areas = torch.from_numpy(extent.prod(-1).clip(min=1.0))
    return oks_matrix(torch.from_numpy(joints_px), areas, joint_sigmas(skeleton))


def joint_sigmas(skeleton: Skeleton) -> tuple[float, ...]:
    """How far apart annotators of each joint are, over the root of the area; COCO's where known."""
    if skeleton.name == "hand21":
        return (HAND_SIGMA,) * len(skeleton)
    known = joint_map(COCO17, skeleton)
    return tuple(BODY_SIGMA if place is None else COCO_SIGMAS[place] for place in known)
