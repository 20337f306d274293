"""Short gaps in a track are filled by a straight line between the frames before and after it."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kinemesh.inference.motion_state import MotionState


def runs_without_long_gaps(positions: Sequence[int], longest_gap: int) -> list[list[int]]:
    """Split ascending positions where more than ``longest_gap`` positions in a row are missing."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and position - runs[-1][-1] - 1 <= longest_gap:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def fill_gaps(
    state: MotionState, times_s: NDArray[np.float64], wanted_s: NDArray[np.float64]
) -> MotionState:
    """States at other times, on straight lines between the known ones.

    Args:
        state: T known frames.
        times_s: (T,) their times, ascending.
        wanted_s: (S,) times between the first and the last of them; known ones are kept exactly.

    Returns:
        S frames.
    """
    after = np.clip(np.searchsorted(times_s, wanted_s), 1, max(len(times_s) - 1, 1))
    after = np.minimum(after, len(times_s) - 1)
    before = np.maximum(after - 1, 0)
    length = np.maximum(times_s[after] - times_s[before], 1e-12)
    share = np.clip((wanted_s - times_s[before]) / length, 0.0, 1.0)
    if len(times_s) == 1:
        share = np.zeros(len(wanted_s))
    columns = []
    for values in state.fields():
        weight = share.reshape(-1, *(1,) * (values.ndim - 1))
        columns.append(values[before] * (1 - weight) + values[after] * weight)
    return MotionState(*columns)
