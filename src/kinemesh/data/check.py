"""Look through a data set: how many samples carry which label, and what is wrong."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset

from kinemesh.data.hand_pose_sheet import describe_hand_poses
from kinemesh.data.hybrik_sheet import describe_hybrik
from kinemesh.data.keypoint_crop import PIXELS_OF_SCALE
from kinemesh.errors import InputError


@dataclass
class CheckReport:
    """What was found in some samples of a data set.

    Attributes:
        length: Samples in the whole set.
        samples: Those that were drawn and are whole, of any record of `kinemesh.data`.
        problems: Index and message of each that is not.
        warnings: Index of each that a reader warned of, and the first that it said.
    """

    length: int
    samples: list[Any] = field(default_factory=list)
    problems: list[tuple[int, str]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)

    def text(self, name: str) -> str:
        """A few lines for the console; ``name`` is that of the data set."""
        tried = len(self.samples) + len(self.problems)
        lines = [f"data set   {name}", f"samples    {self.length}, of which {tried} were looked at"]
        if self.samples and "joints_m" in self.samples[0]:
            lines += describe_hand_poses(self.samples)
        elif self.samples and "uvd" in self.samples[0]:
            lines += describe_hybrik(self.samples)
        elif self.samples and "joints_2d" not in self.samples[0]:
            lines += describe_keypoints(self.samples)
        elif self.samples:
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
        if self.warnings:
            index, first_warning = self.warnings[0]
            count = f"{len(self.warnings)} of {tried}"
            lines.append(f"warnings   {count}, first of sample {index}: {first_warning}")
        return "\n".join(lines)

    def _labelled(self, flag: str) -> str:
        flags = [float(sample[flag]) for sample in self.samples]
        return f"{sum(value > 0 for value in flags)}/{len(flags)}"

    def _sides(self) -> str:
        sides = [float(sample["side_px"]) for sample in self.samples]
        return f"{min(sides):.0f} to {max(sides):.0f}"


def describe_keypoints(samples: Sequence[Any]) -> list[str]:
    """What is labelled in samples of 2D keypoint data."""
    if "target" in samples[0]:
        weight = torch.stack([sample["weight"][:, 0] for sample in samples])
        sides = [float(sample["scale"][0]) * PIXELS_OF_SCALE for sample in samples]
        height, width = samples[0]["image"].shape[-2:]
        return [
            f"labelled   {float(weight.mean()):.0%} of {weight.shape[1]} joints",
            f"crops      {width} x {height} px, {min(sides):.0f} to {max(sides):.0f} px wide in "
            "the picture",
        ]
    people, hands = (sum(len(s[name]) for s in samples) for name in ("boxes", "hand_boxes"))
    flags = torch.cat([sample["keypoints"][..., 2].flatten() for sample in samples])
    shares = [float((flags == flag).float().mean()) if len(flags) else 0.0 for flag in (2, 1)]
    return [
        f"labelled   {people} people, {hands} hands",
        f"keypoints  of people {shares[0]:.0%} visible, {shares[1]:.0%} hidden",
    ]


def check_dataset(dataset: Dataset[Any], count: int) -> CheckReport:
    """Draw samples that are spread evenly over a data set; a damaged one does not end it.

    What readers warn of is kept in the report and not shown.

    Args:
        dataset: Any data set of samples with a length. One that can only be read from front to
            back gives its first samples, and its first problem ends it.
        count: Number of samples; all, if there are fewer.
    """
    report = CheckReport(len(dataset))  # type: ignore[arg-type]
    draw = _draw_first if isinstance(dataset, IterableDataset) else _draw_spread
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        for index in draw(dataset, count, report):
            report.warnings += [(index, str(warning.message)) for warning in caught[:1]]
            caught.clear()
    return report


def _draw_first(dataset: Dataset[Any], count: int, report: CheckReport) -> Iterator[int]:
    """Put samples from the front of a data set into a report, and say the index of each."""
    try:
        for index, sample in enumerate(islice(_iterate(dataset), count)):
            report.samples.append(sample)
            yield index
    except InputError as error:
        report.problems.append((len(report.samples), str(error)))
        yield len(report.samples)


def _draw_spread(dataset: Dataset[Any], count: int, report: CheckReport) -> Iterator[int]:
    """Put samples from all over a data set into a report, and say the index of each."""
    for index in np.unique(np.linspace(0, report.length - 1, count).astype(np.int64)).tolist():
        try:
            report.samples.append(dataset[index])
        except InputError as error:
            report.problems.append((index, str(error)))
        yield index


def _iterate(dataset: Any) -> Iterator[Any]:
    return iter(dataset)
