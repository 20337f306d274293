"""A predictor's answers to labelled boxes of real photos (`kinemesh.evaluation.real_photos`)."""

from typing import Any

from kinemesh.evaluation.real_photos import LabelledSet
from kinemesh.evaluation.real_scores import PlacedJoints
from kinemesh.inference.boxes import Box
from kinemesh.inference.images import load_image
from kinemesh.inference.person import Person
from kinemesh.skeletons import get_skeleton


def predict_labelled(predictor: Any, labels: LabelledSet) -> list[Person]:
    """One person or hand for each labelled box, which is given to the predictor.

    Args:
        predictor: What `kinemesh.load` returns, for what the set shows. It is told the side of a
            hand where the files tell it, and else decides itself if it can.
        labels: The set.
    """
    people = []
    for sample in labels.samples:
        options: dict[str, Any] = {}
        if labels.kind == "hand":
            told = "auto" if getattr(predictor, "tells_sides", False) else "right"
            options["side"] = sample.side or told
        photo = load_image(sample.photo)
        people += predictor.predict(photo, [Box(*sample.box_px)], **options)
    return people


def as_placed(person: Person) -> PlacedJoints:
    """What is scored of a prediction."""
    return PlacedJoints(
        get_skeleton(person.skeleton).joints,
        person.joints_px,
        person.joints if person.has_depth else None,
        person.joint_confidence,
        person.score,
        person.keypoint_spread_px,
    )
