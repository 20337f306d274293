"""Scores of motion: acceleration error, jitter, identity switches.

Joints are metres at evenly spaced times. Differences over time are taken where all the frames that
they need count.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kinemesh.losses import check_same_points
from kinemesh.metrics import MM_PER_M


def acceleration_error_mm(
    prediction_m: Tensor,
    target_m: Tensor,
    root: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean over the joints of the distance between predicted and true acceleration.

    The acceleration is the second difference ``x[t-1] - 2 x[t] + x[t+1]``, in mm a squared frame,
    as the field reports it (Kanazawa et al. 2019, sec. 5.1).

    Args:
        prediction_m: (T, J, 3) metres.
        target_m: (T, J, 3) metres.
        root: Joints whose mean is moved to the origin in every frame; the points are compared where
            they are if None.
        valid: (T,), frames that count; all if None.

    Returns:
        (N,) millimetres a squared frame, one for each frame with both neighbours.

    Raises:
        InputError: The shapes differ.
    """
    check_same_points(prediction_m, target_m)
    difference = _rooted(prediction_m, root) - _rooted(target_m, root)
    errors: Tensor = _difference(difference, 2).norm(dim=-1).mean(dim=-1) * MM_PER_M
    return errors[_all_valid(valid, len(prediction_m), 2)]


def jitter_m_s3(
    joints_m: Tensor,
    frame_rate: float,
    root: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean over the joints of the jerk, the third derivative of the place, without any truth.

    Args:
        joints_m: (T, J, 3) metres.
        frame_rate: Frames a second.
        root: As in `acceleration_error_mm`.
        valid: (T,), frames that count; all if None.

    Returns:
        (N,) metres a second cubed, one for four frames in a row.
    """
    jerk: Tensor = _difference(_rooted(joints_m, root), 3).norm(dim=-1).mean(dim=-1) * frame_rate**3
    return jerk[_all_valid(valid, len(joints_m), 3)]


def match_frames(
    similarity: Sequence[Mapping[tuple[int, int], float]], least: float = 0.5
) -> list[dict[int, int]]:
    """Pairs of true and predicted tracks in each frame, of the highest total similarity.

    Args:
        similarity: For each frame the similarity of (true, predicted) tracks, such as the overlap
            of their boxes; pairs that are left out are never matched.
        least: Lowest similarity of a pair.

    Returns:
        For each frame the predicted track of each true one that is found.
    """
    frames = []
    for pairs in similarity:
        true, found = (sorted({pair[side] for pair in pairs}) for side in (0, 1))
        table = np.array([[pairs.get((t, f), 0.0) for f in found] for t in true])
        table = np.where(table >= least, table, 0.0).reshape(len(true), len(found))
        rows, columns = linear_sum_assignment(table, maximize=True)
        frames.append(
            {
                true[row]: found[column]
                for row, column in zip(rows, columns, strict=True)
                if table[row, column] > 0
            }
        )
    return frames


def identity_switches(matches: Sequence[Mapping[int, int]]) -> int:
    """How often somebody's track is another one than when they were last found.

    Args:
        matches: For each frame the predicted track of each true one (`match_frames`).

    Source: Bernardin and Stiefelhagen 2008 (mismatches of CLEAR MOT).
    """
    last: dict[int, int] = {}
    switches = 0
    for frame in matches:
        switches += sum(last.get(true, found) != found for true, found in frame.items())
        last |= frame
    return switches


def _rooted(points: Tensor, root: Sequence[int] | None) -> Tensor:
    points = points.double()
    if root is None:
        return points
    return points - points[:, list(root)].mean(dim=1, keepdim=True)


def _difference(points: Tensor, order: int) -> Tensor:
    return torch.diff(points, n=order, dim=0)


def _all_valid(valid: Tensor | None, frames: int, order: int) -> Tensor:
    """(max(0, T - order),) where a frame and the ``order`` next ones count."""
    counts = torch.ones(frames, dtype=torch.bool) if valid is None else valid.bool()
    if frames <= order:
        return counts[:0]
    return counts.unfold(0, order + 1, 1).all(dim=-1)
