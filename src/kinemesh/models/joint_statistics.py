"""Mean and spread of root-relative joints, by which a network's outputs are made of unit size.

Shape legend: B batch, J joints.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from kinemesh.errors import InputError

_EPSILON = 1e-8

# Millimetres about the wrist over the training hands of Ego-Exo4D: mean x, y, z, std x, y, z.
_EGOEXO4D = (
    (0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    (-3.950165, -0.86685377, 24.517984, 17.266953, 44.075836, 14.078445),
    (-13.187613, 1.2967486, 47.673504, 24.261362, 65.793236, 18.580193),
    (-22.936522, 1.5275195, 72.566208, 25.479671, 74.18796, 19.767653),
    (-31.109295, 1.9404153, 95.952751, 30.458921, 80.729996, 23.553158),
    (-48.375599, 4.6012049, 67.085617, 21.826715, 45.61571, 18.80888),
    (-59.843365, 5.9568534, 93.948418, 26.570208, 54.434124, 19.955523),
    (-57.148232, 5.7935758, 110.97713, 30.757236, 60.084938, 23.375763),
    (-51.052166, 4.9937048, 125.02338, 35.174015, 64.042404, 31.206692),
    (-51.586624, 2.547137, 72.120811, 21.586899, 28.31489, 16.090088),
    (-65.926834, 3.0671554, 98.40451, 29.26384, 35.83172, 18.48644),
    (-61.979191, 2.8341565, 116.10429, 35.396465, 40.93173, 26.987226),
    (-54.61813, 2.5274558, 129.17862, 40.40074, 45.358475, 37.419308),
    (-46.503471, 0.33559692, 73.062035, 20.73408, 21.591717, 14.190551),
    (-59.186893, 0.026649246, 96.192421, 28.290194, 27.946808, 18.350618),
    (-56.693432, -0.08462552, 112.05978, 34.42277, 31.388414, 28.024563),
    (-51.260197, 0.034378145, 123.81713, 39.819054, 35.205494, 38.80897),
    (-35.775276, -1.0368422, 70.583588, 19.79841, 29.38799, 14.820373),
    (-43.69508, -1.9620019, 88.694397, 26.476702, 34.7448, 20.027615),
    (-44.897186, -2.6101866, 101.19468, 31.811651, 37.06962, 27.742807),
    (-44.571526, -3.3564034, 111.80748, 36.893555, 38.98199, 36.001797),
)


@dataclass(frozen=True)
class JointStatistics:
    """Mean and standard deviation of joints about their root.

    Attributes:
        mean_mm: (J,3), millimetres about the root, in the camera's frame.
        std_mm: (J,3), millimetres; 0 for the root, which is always where it is.

    Raises:
        InputError: The shapes differ or are not (J,3), or a spread is negative or not finite.
    """

    EGOEXO4D: ClassVar["JointStatistics"]
    """Of the training hands of Ego-Exo4D (both sides), 21 joints, as published."""

    mean_mm: tuple[tuple[float, ...], ...]
    std_mm: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for name in ("mean_mm", "std_mm"):
            rows = tuple(tuple(float(value) for value in row) for row in getattr(self, name))
            object.__setattr__(self, name, rows)
        shapes = {tuple(len(row) for row in rows) for rows in (self.mean_mm, self.std_mm)}
        if len(shapes) != 1 or set(next(iter(shapes))) != {3}:
            raise InputError(f"statistics: expected mean and std (J,3) each, found rows {shapes}.")
        mean_J3, std_J3 = self._tensors(torch.device("cpu"), torch.float64)
        if not (mean_J3.isfinite().all() and std_J3.isfinite().all() and (std_J3 >= 0).all()):
            raise InputError("statistics: expected finite numbers and no negative spread.")

    @classmethod
    def of(cls, joints_mm: Tensor, visible: Tensor | None = None) -> "JointStatistics":
        """The statistics of a data set.

        Args:
            joints_mm: (N,J,3) about the root, millimetres; unseen ones may hold anything.
            visible: (N,J) bool, which of them count; None: all.

        Raises:
            InputError: A joint is visible in no sample, or the shapes do not fit.
        """
        if joints_mm.ndim != 3 or joints_mm.shape[-1] != 3:
            raise InputError(f"joints_mm: expected (N,J,3), found {tuple(joints_mm.shape)}.")
        seen_NJ = joints_mm.new_ones(joints_mm.shape[:2]).bool() if visible is None else visible
        if seen_NJ.shape != joints_mm.shape[:2]:
            raise InputError(
                f"visible: expected {tuple(joints_mm.shape[:2])}, found {tuple(seen_NJ.shape)}."
            )
        counts_J = seen_NJ.sum(0)
        if (unseen := (counts_J == 0).nonzero().flatten().tolist()) or not len(joints_mm):
            raise InputError(f"joints_mm: no sample shows the joints {unseen}; give more samples.")
        masked_NJ3 = joints_mm.double().where(seen_NJ[..., None], 0.0)
        mean_J3 = masked_NJ3.sum(0) / counts_J[:, None]
        apart_NJ3 = (masked_NJ3 - mean_J3).where(seen_NJ[..., None], 0.0)
        std_J3 = (apart_NJ3.square().sum(0) / counts_J[:, None]).sqrt()
        return cls(_rows(mean_J3), _rows(std_J3))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "JointStatistics":
        """Inverse of `record`.

        Raises:
            InputError: A key is missing, or the numbers do not fit.
        """
        if missing := [name for name in ("mean_mm", "std_mm") if name not in record]:
            raise InputError(
                f"statistics: expected the keys mean_mm and std_mm, without {missing}."
            )
        return cls(record["mean_mm"], record["std_mm"])

    def record(self) -> dict[str, Sequence[Sequence[float]]]:
        """Plain JSON for a weight file."""
        return {name: [list(row) for row in getattr(self, name)] for name in ("mean_mm", "std_mm")}

    def __len__(self) -> int:
        """J."""
        return len(self.mean_mm)

    def normalise(self, joints_mm: Tensor) -> Tensor:
        """(...,J,3) of unit size from millimetres about the root; 0 for a root that is 0."""
        mean_J3, std_J3 = self._tensors(joints_mm.device, joints_mm.dtype)
        return (joints_mm - mean_J3) / (std_J3 + _EPSILON)

    def denormalise(self, joints: Tensor) -> Tensor:
        """(...,J,3) millimetres about the root, which is exactly 0, from a network's output."""
        mean_J3, std_J3 = self._tensors(joints.device, joints.dtype)
        return joints * std_J3 + mean_J3

    def _tensors(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return _on(self, device, dtype)


def _rows(values_J3: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values_J3.tolist())


@cache
def _on(
    statistics: JointStatistics, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Mean and spread on a device, made once: a copy in each step would make the GPU wait."""
    with torch.inference_mode(mode=False):  # or a later backward pass could not use them
        return (
            torch.tensor(statistics.mean_mm, device=device, dtype=dtype),
            torch.tensor(statistics.std_mm, device=device, dtype=dtype),
        )


JointStatistics.EGOEXO4D = JointStatistics(
    tuple(row[:3] for row in _EGOEXO4D), tuple(row[3:] for row in _EGOEXO4D)
)
