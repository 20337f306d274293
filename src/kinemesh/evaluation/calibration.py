"""Whether a network's expected errors come true: predicted against measured distances of joints.

The joints are sorted by their predicted distance and cut into bins of equal count (Nguyen and
O'Connor, EMNLP 2015). In each bin the mean predicted distance is compared with the mean measured
one. The expected calibration error is that of Guo et al. (ICML 2017, eq. 3) with distances in place
of accuracies: ``sum_b n_b / n |mean predicted_b - mean measured_b|``, in the unit of the distances.
It says nothing of how well joints are told apart, since a constant can be calibrated; Spearman's
rank correlation of predicted and measured distances does.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError

BINS = 10
Array = NDArray[np.float64]


@dataclass(frozen=True)
class SpreadBin:
    """Joints of about the same predicted distance.

    Attributes:
        predicted: Mean predicted distance.
        measured: Mean measured distance.
        count: Joints.
    """

    predicted: float
    measured: float
    count: int


@dataclass(frozen=True)
class Calibration:
    """Predicted against measured distances of joints.

    Attributes:
        joints: Which joints, for example ``"3D joints"``.
        unit: Of all distances.
        bins: In the order of the predicted distance, of equal count to one.
        error: Expected calibration error.
        rank_correlation: Spearman's, from -1 to 1; NaN where all joints have one distance.
    """

    joints: str
    unit: str
    bins: tuple[SpreadBin, ...]
    error: float
    rank_correlation: float

    @property
    def count(self) -> int:
        """Joints in all bins."""
        return sum(one.count for one in self.bins)

    def __str__(self) -> str:
        lines = [
            f"spread of {self.joints}: expected calibration error {self.error:.2f} {self.unit}, "
            f"rank correlation with the error {self.rank_correlation:.2f} "
            f"({self.count} joints, {len(self.bins)} bins of equal count)"
        ]
        for name in ("predicted", "measured"):
            numbers = "".join(f"{getattr(one, name):8.2f}" for one in self.bins)
            lines.append(f"  {name:<9} {self.unit}:{numbers}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; what is not a number is null."""
        return {
            "joints": self.joints,
            "unit": self.unit,
            "count": self.count,
            "expected_calibration_error": _or_none(self.error),
            "rank_correlation": _or_none(self.rank_correlation),
            "bins": [
                {
                    "predicted": _or_none(one.predicted),
                    "measured": _or_none(one.measured),
                    "count": one.count,
                }
                for one in self.bins
            ],
        }


def calibrate(
    predicted: Array, measured: Array, joints: str, unit: str, bins: int = BINS
) -> Calibration:
    """Compare predicted and measured distances; see the module's docstring.

    Args:
        predicted: (N,) expected distances.
        measured: (N,) distances, same unit.
        joints: Which joints these are.
        unit: Of both.
        bins: How many; N of them where there are fewer joints.

    Raises:
        InputError: There is no joint, or the lengths differ.
    """
    if predicted.shape != measured.shape or predicted.ndim != 1 or not len(predicted):
        raise InputError(
            "predicted, measured: expected one number for each joint, and at least one joint, "
            f"found shapes {predicted.shape} and {measured.shape}."
        )
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    rows = tuple(
        SpreadBin(float(predicted[part].mean()), float(measured[part].mean()), len(part))
        for part in parts
    )
    total = sum(one.count * abs(one.predicted - one.measured) for one in rows)
    return Calibration(
        joints, unit, rows, total / len(order), _rank_correlation(predicted, measured)
    )


def _rank_correlation(first: Array, second: Array) -> float:
    if _is_constant(first) or _is_constant(second):
        return math.nan  # SciPy would say the same, with a warning
    # a second of imports, which training never needs
    from scipy.stats import spearmanr  # noqa: PLC0415

    return float(spearmanr(first, second).statistic)


def _is_constant(values: Array) -> bool:
    return bool(np.ptp(values) == 0)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
