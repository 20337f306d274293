"""Test-time augmentation of hands: one prediction out of many turned and zoomed crops.

METRO and Mesh Graphormer report FreiHAND scores with it: 19 rotations at 5 scales, each prediction
aligned to that of the plain crop by a similarity, and all averaged.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kinemesh.data.mesh_crop import CropParameters
from kinemesh.data.mesh_dataset import MeshDataset
from kinemesh.geometry.procrustes import procrustes_align


@dataclass(frozen=True)
class TtaSetting:
    """One crop: turned by ``rotation_deg``, its side multiplied by ``scale`` (< 1 zooms in)."""

    rotation_deg: float
    scale: float

    @property
    def name(self) -> str:
        """For example ``"sc07_rot-30"``, as in the official file names."""
        return f"sc{round(10 * self.scale):02d}_rot{round(self.rotation_deg)}"

    @property
    def view(self) -> CropParameters:
        """The crop for a `MeshDataset`."""
        return CropParameters(rotation_deg=self.rotation_deg, scale=self.scale)


ROTATIONS_DEG = (0, *(sign * degrees for degrees in range(10, 100, 10) for sign in (1, -1)))
SCALES = (0.7, 0.8, 0.9, 1.0, 1.1)
TTA_SETTINGS = tuple(
    TtaSetting(float(rotation), scale) for scale in SCALES for rotation in ROTATIONS_DEG
)
"""The 95 published settings; the plain crop, which is the reference, is among them."""


class TtaFusion:
    """Average of predictions after alignment to a reference, one prediction at a time.

    ``(reference + sum of the aligned predictions) / (1 + their number)``. The published fusion
    aligns and adds the reference's own setting like the others, so it counts twice (of 96).

    Args:
        reference: (B, N, 3) points, any unit.
    """

    def __init__(self, reference: Tensor) -> None:
        self.reference = reference.float()
        self._total = self.reference.clone()
        self._count = 1

    def add(self, points: Tensor) -> None:
        """Add the prediction (B, N, 3) of one setting."""
        points = points.float()
        fit = procrustes_align(points, self.reference, check_finite=False)
        self._total += fit.apply(points)
        self._count += 1

    def result(self) -> Tensor:
        """(B, N, 3)."""
        return self._total / self._count


class _Views(Dataset[Tensor]):
    """Images of samples under settings; an index is (row, number of the setting)."""

    def __init__(self, dataset: MeshDataset, settings: tuple[TtaSetting, ...]) -> None:
        self._views = [dataset.with_view(setting.view) for setting in settings]

    def __getitem__(self, index: tuple[int, int]) -> Tensor:
        row, number = index
        return self._views[number][row]["image"]


def views(
    dataset: MeshDataset,
    settings: tuple[TtaSetting, ...],
    batches: list[list[int]],
    workers: int = 0,
) -> Iterator[Tensor]:
    """Images (B, 3, S, S): for each batch of rows one after the other setting.

    Args:
        dataset: Stored pictures.
        settings: The crops.
        batches: Rows of each batch.
        workers: Processes that read pictures.
    """
    order = [
        [(row, number) for row in batch] for batch in batches for number in range(len(settings))
    ]
    loader: DataLoader[Tensor] = DataLoader(
        _Views(dataset, settings), batch_sampler=order, num_workers=workers, collate_fn=torch.stack
    )
    yield from loader
