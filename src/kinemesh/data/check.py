"""Look through a data set: how many samples carry which label, and what is wrong."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import Dataset, IterableDataset

from kinemesh.data.records import Sample
from kinemesh.errors import InputError


@dataclass
class CheckReport:
    """What was found in some samples of a data set.

    Attributes:
        length: Samples in the whole set.
        samples: Those that were drawn and are whole.
        problems: Index and message of each that is not.
    """

    length: int
    samples: list[Sample] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A few lines for the console; ``name`` is that of the data set."""
        tried = len(self.samples) + len(self.problems)
        lines = [f"data set   {name}", f"samples    {self.length}, of which {tried} were looked at"]
        if self.samples:
            first = self.samples[0]
            vertices, pose = len(first["vertices"]), len(first["pose"])
            mesh = f"{vertices} vertices" if vertices else f"pose of {pose} numbers"
            joints = len(first["joints_2d"])
            lines += [
                f"labelled   2D {self._labelled('has_2d')} ({joints} joints), "
                f"3D {self._labelled('has_3d')}, mesh {self._labelled('has_mesh')} ({mesh})",
                f"crops      {first['image'].shape[-1]} px, of {self._sides()} px in the picture",
            ]
        if self.problems:
            lines.append(f"problems   {len(self.problems)} of {tried}")
        return "\n".join(lines)

    def _labelled(self, flag: str) -> str:
        flags = [float(dict(sample)[flag]) for sample in self.samples]  # type: ignore[arg-type]
        return f"{sum(value > 0 for value in flags)}/{len(flags)}"

    def _sides(self) -> str:
        sides = [float(sample["side_px"]) for sample in self.samples]
        return f"{min(sides):.0f} to {max(sides):.0f}"


def check_dataset(dataset: Dataset[Sample], count: int) -> CheckReport:
    """Draw samples that are spread evenly over a data set; a damaged one does not end it.

    Args:
        dataset: Any data set of samples with a length. One that can only be read from front to
            back gives its first samples, and its first problem ends it.
        count: Number of samples; all, if there are fewer.
    """
    report = CheckReport(len(dataset))  # type: ignore[arg-type]
    if isinstance(dataset, IterableDataset):
        try:
            for sample in islice(_iterate(dataset), count):
                report.samples.append(sample)
        except InputError as error:
            report.problems.append((len(report.samples), str(error)))
        return report
    for index in np.unique(np.linspace(0, report.length - 1, count).astype(np.int64)).tolist():
        try:
            report.samples.append(dataset[index])
        except InputError as error:
            report.problems.append((index, str(error)))
    return report


def _iterate(dataset: Any) -> Iterator[Sample]:
    return iter(dataset)
