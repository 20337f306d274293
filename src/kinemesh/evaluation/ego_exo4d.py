"""The Ego-Exo4D hand pose benchmark: its submission file, and its scores of such a file.

A submission is ``{take_uid: {frame: {"left_hand_3d": 21 x 3 or [], "right_hand_3d": ...}}}`` in
metres, camera frame, with every frame of the annotation file. Networks on crops do not know where
the wrist is: they submit joints about the wrist, which are scored after the labelled wrist has been
added ("offset").
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.data.ego_exo4d_annotations import (
    HandKey,
    HandLabels,
    frame_number,
    read_annotations,
    read_takes,
)
from kinemesh.data.ego_exo4d_labels import JOINTS, SIDES
from kinemesh.errors import InputError
from kinemesh.evaluation.hand_pose import HAND_POSE, measure_hands, report_hands
from kinemesh.evaluation.mesh import ProtocolResult
from kinemesh.files import write_bytes
from kinemesh.protocols import without_root

Float = NDArray[np.float64]
Predictions = dict[tuple[str, int, str], Float]
"""Joints (21, 3) in metres by take, frame and side."""

_DIGITS = 7  # tenths of a micrometre
_LARGEST_HAND_M = 1.0
_OFFSET = "about the wrist; the labelled wrist is added to the prediction (offset)"
_CAMERA = "in the camera frame, as submitted"


@dataclass(frozen=True)
class SubmissionCheck:
    """A submission that is whole.

    Attributes:
        path: The file.
        frames: Frames in it.
        hands: Hands in it.
    """

    path: str
    frames: int
    hands: int

    def __str__(self) -> str:
        return (
            f"{self.path}: whole, {self.hands} hands in {self.frames} frames. The annotation file "
            "has no 3D labels, so there is nothing to score."
        )

    def to_dict(self) -> dict[str, Any]:
        """For a JSON record."""
        return {"submission": self.path, "frames": self.frames, "hands": self.hands, "scores": []}


def write_submission(
    path: str | Path, labels: HandLabels, keys: Sequence[HandKey], joints_m: NDArray
) -> SubmissionCheck:
    """Write a submission, checked before it appears.

    Args:
        path: Where to write, ``.json``.
        labels: The annotation file: all of its frames are written.
        keys: Which hands are predicted; all with a box must be.
        joints_m: (N, 21, 3) metres.

    Raises:
        InputError: A hand is missing or unknown, or a shape or number is wrong.
    """
    if joints_m.shape != (len(keys), JOINTS, 3):
        raise InputError(
            f"joints: expected shape ({len(keys)}, {JOINTS}, 3), found {joints_m.shape}."
        )
    content: dict[str, dict[str, dict[str, Any]]] = {}
    for uid, frame in labels.frames:
        # left before right, as in the official template
        entry: dict[str, Any] = {f"{side}_hand_3d": [] for side in reversed(SIDES)}
        content.setdefault(uid, {})[str(frame)] = entry
    rounded = np.round(np.asarray(joints_m, dtype=np.float64), _DIGITS)
    for key, joints in zip(keys, rounded.tolist(), strict=True):
        try:
            content[key.take_uid][str(key.frame)][f"{key.side}_hand_3d"] = joints
        except KeyError:
            raise InputError(f"{key}: '{labels.source}' has no such frame.") from None
    check = _check(content, labels, f"submission '{path}'")
    write_bytes(path, json.dumps(content, allow_nan=False).encode() + b"\n")
    return replace(check, path=str(path))


def check_submission(path: str | Path, labels: HandLabels) -> SubmissionCheck:
    """Read a submission through and refuse what the benchmark's server would refuse.

    Raises:
        InputError: A frame or hand is missing or unknown, a shape is wrong, a number is not finite,
            or the unit is not metres.
    """
    return replace(_check(read_takes(path), labels, f"'{path}'"), path=str(path))


def read_submission(path: str | Path) -> Predictions:
    """The hands of a submission.

    Raises:
        InputError: It is none, or a shape, number or unit is wrong.
    """
    return _predictions(read_takes(path), f"'{path}'")


def score_submission(
    submission: str | Path,
    labels: HandLabels | str | Path,
    *,
    offset: bool = False,
    device: torch.device | str = "cpu",
) -> ProtocolResult:
    """The benchmark's scores of a submission.

    Args:
        submission: The file.
        labels: An annotation file with 3D labels, or what was read from one.
        offset: Add the labelled wrist to the prediction, which is about the wrist.
        device: Where to compute.

    Raises:
        InputError: A file is missing, damaged or not whole, or there are no 3D labels.
    """
    labels = labels if isinstance(labels, HandLabels) else read_annotations(labels)
    rows = np.flatnonzero(labels.has_joints)
    if not len(rows):
        raise InputError(
            f"'{labels.source}' has no 3D labels, so nothing can be scored. The labels of the test "
            "split are not published; the benchmark's server scores the submission."
        )
    content, where = read_takes(submission), f"'{submission}'"
    predictions = _predictions(content, where)
    _check_frames(content, labels, where)
    joints = np.stack([_predicted(predictions, labels.keys[row], where) for row in rows])
    truth, valid = labels.joints_m[rows], labels.valid[rows]
    submitted = joints
    if offset:
        joints = joints + truth[:, :1]
    prediction_m, target_m, visible = (
        torch.as_tensor(values, device=device) for values in (joints, truth, valid)
    )
    columns = measure_hands(prediction_m.float(), target_m.float(), visible)
    protocol = replace(
        without_root(HAND_POSE),
        name="ego-exo4d",
        title=f"Ego-Exo4D hand pose benchmark, {_OFFSET if offset else _CAMERA}",
        ground_truth="labelled joints of " + str(labels.source),
        regressor="the submission",
    )
    columns = {name: values.cpu() for name, values in columns.items()}
    reports = report_hands(columns, str(labels.source), protocol)
    about_wrist = bool((np.abs(submitted[:, 0]) < 1e-6).all())
    return ProtocolResult(
        str(submission), str(labels.source), protocol, reports, _notes(about_wrist, offset)
    )


def _notes(about_wrist: bool, offset: bool) -> tuple[str, ...]:
    if about_wrist and not offset:
        return (
            "all predicted wrists are at the origin, so the joints are about the wrist: score them "
            "with --offset",
        )
    if offset and not about_wrist:
        return ("--offset is for joints about the wrist, but here wrists are elsewhere",)
    return ()


def _predicted(predictions: Predictions, key: HandKey, where: str) -> Float:
    hand = predictions.get((key.take_uid, key.frame, key.side))
    if hand is None:
        raise InputError(
            f"{where}, {key}: expected {JOINTS} x 3 numbers, found no hand. Predict every hand "
            "that has a box."
        )
    return hand


def _check(content: Mapping[str, Any], labels: HandLabels, where: str) -> SubmissionCheck:
    predictions = _predictions(content, where)
    _check_frames(content, labels, where)
    for row in np.flatnonzero(np.isfinite(labels.boxes_px).all(axis=-1)):
        _predicted(predictions, labels.keys[row], where)
    return SubmissionCheck(where, len(labels.frames), len(predictions))


def _check_frames(content: Mapping[str, Any], labels: HandLabels, where: str) -> None:
    found = {
        (uid, frame_number(frame, f"{where}, take {uid}"))
        for uid, take in content.items()
        for frame in take
    }
    wanted = set(labels.frames)
    for name, frames in (("missing", wanted - found), ("unknown", found - wanted)):
        if frames:
            uid, frame = min(frames)
            raise InputError(
                f"{where}: expected the {len(wanted)} frames of '{labels.source}', found "
                f"{len(frames)} {name}, first take {uid}, frame {frame}. A submission has all "
                "frames of the annotation file, with empty lists for hands that are not there."
            )


def _predictions(content: Mapping[str, Any], where: str) -> Predictions:
    hands: Predictions = {}
    for uid, take in content.items():
        for frame, entry in take.items():
            place = f"{where}, take {uid}, frame {frame}"
            number = frame_number(frame, f"{where}, take {uid}")
            for side in SIDES:
                if not isinstance(entry, dict) or f"{side}_hand_3d" not in entry:
                    raise InputError(
                        f"{place}: expected left_hand_3d and right_hand_3d, found "
                        f"{str(entry)[:60]}."
                    )
                hand = _hand(entry[f"{side}_hand_3d"], f"{place}, {side}_hand_3d")
                if hand is not None:
                    hands[uid, number, side] = hand
    return hands


def _hand(value: Any, where: str) -> Float | None:
    if value == []:
        return None
    try:
        joints = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        joints = np.zeros(0)
    if joints.shape != (JOINTS, 3):
        raise InputError(
            f"{where}: expected {JOINTS} x 3 numbers or an empty list, found {str(value)[:40]}."
        )
    if not np.isfinite(joints).all():
        raise InputError(f"{where}: expected finite numbers, found NaN or inf.")
    reach = float(np.linalg.norm(joints - joints[0], axis=-1).max())
    if reach > _LARGEST_HAND_M:
        raise InputError(
            f"{where}: expected metres, found a joint {reach:.4g} from the wrist. Divide "
            "millimetres by 1000."
        )
    return joints
