"""How a labelled person stands before the camera, told from the labelled places alone.

Scores by view say what a model has not learned yet: who lies, sits, turns the back to the camera,
or is not wholly in the photo.
"""

import math
from typing import Literal, get_args

import numpy as np

from kinemesh.evaluation.real_photos import LabelledBox

View = Literal["front", "back", "side", "sitting", "leaning", "lying", "truncated"]
VIEWS: tuple[View, ...] = get_args(View)
UPRIGHT_DEG, LYING_DEG = 30.0, 60.0
"""Trunks nearer to the vertical stand; those farther from it than the second number lie."""
SITTING_DEG = 50.0
"""Thighs of sitting people are farther from pointing down."""
SIDE_SHARE = 0.05
"""Shoulders of a side view are nearer to each other, in longer sides of the box."""
_WHOLE = ("shoulder", "hip", "knee", "ankle")


def view_of(sample: LabelledBox, joints: tuple[str, ...]) -> View:
    """The view of one body.

    Args:
        sample: Its labels.
        joints: Their names, with the limbs of COCO.

    Returns:
        "truncated" where a shoulder, hip, knee or ankle has no label; else by the trunk, then by
        the thighs, then by which shoulder is on which side of the photo.
    """
    place = {
        name: point
        for name, point, there in zip(joints, sample.points_px, sample.labelled, strict=True)
        if there
    }
    if any(f"{side}_{joint}" not in place for side in ("left", "right") for joint in _WHOLE):
        return "truncated"
    shoulders, hips, knees = (
        (place[f"left_{joint}"] + place[f"right_{joint}"]) / 2
        for joint in ("shoulder", "hip", "knee")
    )
    tilt = _from_vertical(hips - shoulders)
    if tilt > UPRIGHT_DEG:
        return "lying" if tilt > LYING_DEG else "leaning"
    if _from_vertical(knees - hips) > SITTING_DEG:
        return "sitting"
    across = float(place["left_shoulder"][0] - place["right_shoulder"][0]) / sample.side_px
    if abs(across) < SIDE_SHARE:
        return "side"
    return "front" if across > 0 else "back"


def _from_vertical(down: np.ndarray) -> float:
    """Angle in degrees of a direction in the image (2,) from straight down, 0 to 180."""
    return abs(math.degrees(math.atan2(float(down[0]), float(down[1]))))
