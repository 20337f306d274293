"""Hands of a video at the wrists of their people, which filters move apart from one another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kinemesh.inference.people import wrist_and_elbow
from kinemesh.inference.person import Person
from kinemesh.inference.video_frame import TrackedPerson
from kinemesh.skeletons import get_skeleton


def attach_hands(people: Sequence[TrackedPerson]) -> tuple[TrackedPerson, ...]:
    """The people of a frame, each hand that has an owner moved to the wrist of its owner.

    A hand keeps its size, its pose, and its joints in the picture.

    Args:
        people: In the order that ``Person.owner`` counts in.
    """
    return tuple(
        replace(found, person=_attached(found.person, [other.person for other in people]))
        for found in people
    )


def _attached(hand: Person, people: Sequence[Person]) -> Person:
    if hand.owner is None or hand.side is None:
        return hand
    body = people[hand.owner]
    if not (hand.has_depth and body.has_depth):
        return hand
    wrist = body.joints[wrist_and_elbow(body, hand.side)[0]]
    shift = (wrist - hand.joints[get_skeleton(hand.skeleton).index("wrist")]).astype(np.float32)
    fitted = hand.parameters
    if fitted is not None:
        fitted = replace(fitted, translation_m=fitted.translation_m + shift)
    return replace(
        hand, vertices=hand.vertices + shift, joints=hand.joints + shift, parameters=fitted
    )
