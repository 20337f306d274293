"""What a report keeps of the samples of an evaluation, however many there are."""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.evaluation.samples import JointSamples, Picture
from kinemesh.reporting.ranking import Ranking
from kinemesh.skeletons import Skeleton

EXAMPLES = 3
RANKED = 4


@dataclass(frozen=True, eq=False)
class ShownSample:
    """One sample with its picture, copied to the CPU.

    Attributes:
        key: What finds it again.
        errors: Mean error of its joints for each score.
        predicted: (J, D) as in `JointSamples`.
        target: (J, D).
        compared: (J,) bool.
        picture: (H, W, 3) uint8 RGB.
    """

    key: str
    errors: dict[str, float]
    predicted: NDArray
    target: NDArray
    compared: NDArray
    picture: Picture


class SampleSummary:
    """Listens to an evaluation and keeps sums over joints, and a few samples.

    Memory does not grow with the data set: of all samples the first few stay, and the best and the
    worst few by the mean error of their joints; one that is not finite is the worst. A sample
    without a labelled joint is counted and else ignored.

    Args:
        examples: How many of the first samples to keep.
        ranked: How many of the worst, and of the best.

    Attributes:
        ranking: The kept samples.
        skeleton: Of the samples; None before the first batch.
        unit: Of their errors.
        unlabelled: How many had no labelled joint.
    """

    def __init__(self, examples: int = EXAMPLES, ranked: int = RANKED) -> None:
        self.ranking: Ranking[ShownSample] = Ranking(examples, ranked)
        self.skeleton: Skeleton | None = None
        self.unit = ""
        self.unlabelled = 0
        self._sums: dict[str, NDArray] = {}
        self._counts: NDArray = np.zeros(0)

    def __call__(self, samples: JointSamples) -> None:
        """Take a batch."""
        if self.skeleton is None:
            self.skeleton, self.unit = samples.skeleton, samples.unit
            self._counts = np.zeros(len(samples.skeleton))
        compared = samples.compared.cpu()
        # one copy for the batch, and only of numbers
        errors = {name: values.detach().cpu().double() for name, values in samples.errors.items()}
        self._counts = self._counts + compared.numpy().sum(axis=0)
        for name, values in errors.items():
            total = torch.where(compared, values, 0.0).sum(dim=0).numpy()
            self._sums[name] = self._sums.get(name, 0.0) + total
        means = {name: _means(values, compared).tolist() for name, values in errors.items()}
        ranking = next(iter(means.values()))
        for row, labelled in enumerate(compared.any(dim=1).tolist()):
            if not labelled:
                self.unlabelled += 1
                continue
            own = {name: rows[row] for name, rows in means.items()}
            error = ranking[row] if math.isfinite(ranking[row]) else math.inf
            self.ranking.consider(error, partial(_shown, samples, row, own))

    def joint_means(self) -> dict[str, NDArray]:
        """(J,) mean error of each joint, by score; NaN for a joint that is never labelled."""
        with np.errstate(invalid="ignore"):
            return {name: total / self._counts for name, total in self._sums.items()}


def _means(errors_BJ: torch.Tensor, compared_BJ: torch.Tensor) -> torch.Tensor:
    """(B,) means over the joints that count; NaN where one of them is NaN or none counts."""
    total = torch.where(compared_BJ, errors_BJ, 0.0).sum(dim=1)
    return total / compared_BJ.sum(dim=1)


def _shown(samples: JointSamples, row: int, errors: dict[str, float]) -> ShownSample:
    predicted, target, compared = (
        values[row].detach().cpu().numpy()
        for values in (samples.predicted, samples.target, samples.compared)
    )
    picture = samples.picture(row)
    return ShownSample(samples.keys[row], errors, predicted, target, compared, picture)
