"""Whether the errors that a network expects in the image come true on labelled real photos."""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from kinemesh.evaluation.calibration import Calibration, calibrate
from kinemesh.evaluation.real_photos import LabelledBox, LabelledSet
from kinemesh.evaluation.real_scores import BOX_PX, PlacedJoints, common_joints

THIRDS = 3
"""Bins: the sets are too small for tenths."""
Answered = tuple[LabelledSet, Sequence[PlacedJoints]]


def real_calibration(answered: Iterable[Answered], bins: int = THIRDS) -> Calibration | None:
    """Expected against measured distance in the image of all labelled joints of some sets.

    Args:
        answered: Sets, each with one model's answers to its samples.
        bins: Of equal count; thirds of the joints if left out.

    Returns:
        In units of 1/256 of the longer side of each labelled box; None if the model expects
        nothing.

    Raises:
        InputError: A set and the model have no joint in common.
    """
    parts = [
        _distances(labels.joints, sample, answer, answer.spread_px)
        for labels, answers in answered
        for sample, answer in zip(labels.samples, answers, strict=True)
        if answer.spread_px is not None
    ]
    if not parts:
        return None
    predicted, measured = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    return calibrate(predicted, measured, "2D joints on photos", "px of 256", bins)


def _distances(
    joints: Sequence[str],
    sample: LabelledBox,
    answer: PlacedJoints,
    spread_px: NDArray[np.floating],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Expected and measured distances of the labelled joints that the answer has."""
    names = common_joints(joints, answer.joints)
    rows = [joints.index(name) for name in names]
    columns = [answer.joints.index(name) for name in names]
    unit, seen = BOX_PX / sample.side_px, sample.labelled[rows]
    offset_px = answer.points_px[columns] - sample.points_px[rows]
    expected = np.asarray(spread_px, dtype=np.float64)[columns]
    return expected[seen] * unit, np.linalg.norm(offset_px[seen], axis=1) * unit
