"""How HybrIK and POTTER are scored on Human3.6M, 3DPW and MPI-INF-3DHP.

The two protocols differ in one detail that moves PA-MPJPE by millimetres: on Human3.6M all 17
joints are aligned before 14 of them are compared, on 3DPW the 14 are aligned by themselves. Source:
Li et al., HybrIK (CVPR 2021); Zheng et al., POTTER (CVPR 2023); Mehta et al., Monocular 3D Human
Pose Estimation In The Wild (3DV 2017) for PCK and AUC.

Legend of shapes: N samples, J joints, R = 17 joints, V vertices.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from kinemesh.metrics import (
    MM_PER_M,
    MetricReport,
    best_aligned,
    point_distances,
)

ProtocolName = Literal["h36m", "3dpw", "3dhp", "own"]
COMPARED_14 = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)
"""Of Human3.6M's 17 joints: right leg, left leg, right arm, left arm, neck, head."""
ACTIONS: Mapping[int, str] = MappingProxyType(
    dict(
        enumerate(
            (
                *("Directions", "Discussion", "Eating", "Greeting", "Phoning", "Posing"),
                *("Purchases", "Sitting", "SittingDown", "Smoking", "Photo", "Waiting"),
                *("Walking", "WalkDog", "WalkTogether"),
            ),
            start=2,
        )
    )
)
"""Human3.6M's actions by the number in the names of its files."""
H36M_FOR_3DHP = (10, 8, 14, 15, 16, 11, 12, 13, 4, 5, 6, 1, 2, 3, 0, 7, 9)
"""Human3.6M's joint in the place of each of 3DHP's 17: head top, neck, arms, legs, trunk, head."""
GROUPS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "head": (0,),
        "neck": (1,),
        "shoulders": (2, 5),
        "elbows": (3, 6),
        "wrists": (4, 7),
        "hips": (8, 11),
        "knees": (9, 12),
        "ankles": (10, 13),
    }
)
"""3DHP's groups of joints."""
HP3D_ROOT = 14
PCK_MM = 150.0
AUC_MM = tuple(float(5 * step) for step in range(31))


@dataclass(frozen=True)
class HybrikColumns:
    """What is compared, one row for each of N samples; metres about any point.

    Attributes:
        predicted: (N, R, 3) regressed joints of the predicted mesh.
        target: (N, R, 3).
        predicted_24: (N, J, 3) the body's own joints.
        target_24: (N, J, 3).
        vertex_error_m: (N,) mean distance of vertices, NaN where no mesh is labelled.
        activity: (N,) int64, -1 where unknown.
        sequence: (N,) int64 number of the recording, -1 where unknown.
    """

    predicted: Tensor
    target: Tensor
    predicted_24: Tensor
    target_24: Tensor
    vertex_error_m: Tensor
    activity: Tensor
    sequence: Tensor


@dataclass(frozen=True)
class HybrikResult:
    """The numbers of one model on one data set, with the protocol that made them.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        protocol: Name of the protocol.
        title: What it is, for people.
        reports: One for each score.
        activities: MPJPE in mm by activity, where it is known.
        parts: Of 3DHP, all its scores by activity and by sequence: MPJPE in mm, PCK@150 and AUC of
            17 joints, and of each group as in "AUC knees".
        notes: What a reader should know.
    """

    model: str
    dataset: str
    protocol: ProtocolName
    title: str
    reports: tuple[MetricReport, ...]
    activities: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.model} on {self.dataset}", f"protocol {self.protocol}: {self.title}"]
        lines += [f"  {report}" for report in self.reports]
        if self.activities:
            shown = ", ".join(f"{name} {value:.1f}" for name, value in self.activities.items())
            lines.append(f"  MPJPE by activity, mm: {shown}")
        for name, scores in self.parts.items():
            mpjpe, pck, auc = (scores[score] for score in ("MPJPE", "PCK@150", "AUC"))
            lines.append(f"  {name}: MPJPE {mpjpe:.1f} mm, PCK@150 {pck:.3f}, AUC {auc:.3f}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; a score of no samples is null."""
        scores = [report.to_dict() for report in self.reports]
        return {
            "model": self.model,
            "dataset": self.dataset,
            "protocol": self.protocol,
            "title": self.title,
            "scores": [
                {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in score.items()}
                for score in scores
            ],
            "activities": dict(self.activities),
            "parts": {name: dict(scores) for name, scores in self.parts.items()},
            "notes": list(self.notes),
        }


TITLES: Mapping[ProtocolName, str] = MappingProxyType(
    {
        "h36m": "Human3.6M, protocol 2: 17 joints aligned, 14 of them compared",
        "3dpw": "3DPW: 14 joints selected, then aligned",
        "3dhp": "MPI-INF-3DHP, test set: 17 joints about the pelvis",
        "own": "all joints of the body about its root",
    }
)


def protocol_errors_mm(
    predicted: Tensor, target: Tensor, protocol: ProtocolName
) -> tuple[Tensor, Tensor]:
    """Distances of the compared joints, each about its own root, and after alignment.

    Args:
        predicted: (N, R, 3) metres.
        target: (N, R, 3) metres.
        protocol: "h36m", "3dpw" or "3dhp" for 17 joints; "own" for any, of which the first is the
            root.

    Returns:
        Both (N, compared joints) in millimetres: MPJPE's, and PA-MPJPE's after the best similarity
        without reflection.
    """
    if protocol == "3dhp":
        predicted = _rows(predicted, H36M_FOR_3DHP)
    root = HP3D_ROOT if protocol == "3dhp" else 0
    predicted, target = (points - points[:, root : root + 1] for points in (predicted, target))
    if protocol == "3dpw":
        predicted, target = (_rows(points, COMPARED_14) for points in (predicted, target))
    aligned, fixed = best_aligned(predicted, target)
    errors = point_distances(predicted, target), point_distances(aligned, fixed)
    if protocol == "h36m":
        errors = _columns(errors[0], COMPARED_14), _columns(errors[1], COMPARED_14)
    return errors[0] * MM_PER_M, errors[1] * MM_PER_M


def axis_errors_mm(predicted: Tensor, target: Tensor, protocol: ProtocolName) -> Tensor:
    """Mean absolute difference (3,) of x, y and z in millimetres, about the roots."""
    predicted, target = (points - points[:, :1] for points in (predicted, target))
    if protocol in {"h36m", "3dpw"}:
        predicted, target = (_rows(points, COMPARED_14) for points in (predicted, target))
    return (predicted - target).abs().mean(dim=(0, 1)) * MM_PER_M


def pck_and_auc(distances_mm: Tensor) -> tuple[Tensor, Tensor]:
    """Share of distances (...,) below 150 mm, and its mean over the thresholds 0, 5, ..., 150 mm.

    A distance counts where it is smaller than the threshold, so nothing counts at 0.
    """
    thresholds = torch.tensor(AUC_MM, dtype=distances_mm.dtype, device=distances_mm.device)
    below = distances_mm.flatten()[:, None] < thresholds
    return (distances_mm < PCK_MM).float().mean(), below.float().mean(dim=0).mean()


def score_hybrik(
    columns: HybrikColumns, protocol: ProtocolName, names: tuple[str, str], regressor: str = ""
) -> HybrikResult:
    """All scores of a protocol.

    Args:
        columns: Of all samples.
        protocol: How to compare.
        names: Of the model and of the data set.
        regressor: What makes joints of the mesh.
    """
    plain, aligned = protocol_errors_mm(columns.predicted, columns.target, protocol)
    count = len(plain)
    part = {"h36m": "14 of 17 joints", "3dpw": "14 joints", "3dhp": "17 joints"}.get(
        protocol, f"{plain.shape[1]} joints"
    )
    whole = "all 17 joints" if protocol == "h36m" else part
    common: dict[str, Any] = {"sample_count": count, "dataset": names[1], "regressor": regressor}
    reports = [
        MetricReport("MPJPE", _mean(plain), "mm", part, "pelvis", "none", **common),
        MetricReport(
            "PA-MPJPE", _mean(aligned), "mm", part, "none", f"similarity of {whole}", **common
        ),
    ]
    if protocol == "3dhp":
        reports += _pck_reports(plain, common)
    if columns.target_24.shape[1]:
        reports += _body_joint_reports(columns, names[1])
    known = columns.vertex_error_m[torch.isfinite(columns.vertex_error_m)]
    if len(known):
        value = _mean(known) * MM_PER_M
        reports.append(
            MetricReport("PVE", value, "mm", "mesh", "pelvis", "none", len(known), names[1])
        )
    activities = _by_activity(plain, columns.activity, protocol)
    parts = _by_part(plain, columns) if protocol == "3dhp" else {}
    return HybrikResult(*names, protocol, TITLES[protocol], tuple(reports), activities, parts)


def _body_joint_reports(columns: HybrikColumns, dataset: str) -> list[MetricReport]:
    """Scores of the body's own joints, which are not selected."""
    plain, aligned = protocol_errors_mm(columns.predicted_24, columns.target_24, "own")
    joints = f"{plain.shape[1]} joints of the body"
    return [
        MetricReport("MPJPE-24", _mean(plain), "mm", joints, "pelvis", "none", len(plain), dataset),
        MetricReport(
            "PA-MPJPE-24", _mean(aligned), "mm", joints, "none", "similarity", len(plain), dataset
        ),
    ]


def _in_groups(distances_mm: Tensor) -> dict[str, Tensor]:
    """Distances (N, 17) of all of 3DHP's joints, and of each group."""
    groups = {name: _columns(distances_mm, joints) for name, joints in GROUPS.items()}
    return {"17 joints": distances_mm} | groups


def _by_part(distances_mm: Tensor, columns: HybrikColumns) -> dict[str, dict[str, float]]:
    """3DHP's scores of each activity and each sequence, where they are known."""
    parts = {}
    for kind, numbers in (("activity", columns.activity), ("sequence", columns.sequence)):
        for number in sorted(set(numbers.tolist()) - {-1}):
            scores: dict[str, float] = {}
            for group, values in _in_groups(distances_mm[numbers == number]).items():
                end = "" if group == "17 joints" else f" {group}"
                pck, auc = pck_and_auc(values)
                scores |= {
                    f"MPJPE{end}": _mean(values),
                    f"PCK@150{end}": float(pck),
                    f"AUC{end}": float(auc),
                }
            parts[f"{kind} {number}"] = scores
    return parts


def _pck_reports(distances_mm: Tensor, common: Mapping[str, Any]) -> list[MetricReport]:
    reports = []
    for name, values in _in_groups(distances_mm).items():
        pck, auc = pck_and_auc(values)
        for metric, value in (("PCK@150", pck), ("AUC", auc)):
            reports.append(MetricReport(metric, float(value), "", name, "pelvis", "none", **common))
    return reports


def _by_activity(errors_mm: Tensor, activity: Tensor, protocol: ProtocolName) -> dict[str, float]:
    """Mean of the errors (N, J) for each known number of (N,)."""
    means = {}
    for number in sorted(set(activity.tolist()) - {-1}):
        known = ACTIONS.get(number) if protocol == "h36m" else None
        means[known or f"activity {number}"] = _mean(errors_mm[activity == number])
    return means


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _rows(points: Tensor, joints: Sequence[int]) -> Tensor:
    return torch.stack([points[:, joint] for joint in joints], dim=1)


def _columns(errors: Tensor, joints: Sequence[int]) -> Tensor:
    return torch.stack([errors[:, joint] for joint in joints], dim=1)


def place_accuracy(predicted: Tensor, target: Tensor, weight: Tensor, cells: int = 64) -> Tensor:
    """Share of joints whose place is within a twentieth of the volume, as HybrIK's log has it.

    Args:
        predicted: (B, J, 3) places in the crop and depth, from -0.5 to 0.5.
        target: (B, J, 3).
        weight: (B, J, 3) which numbers are labelled.
        cells: Side of the volume; targets in its first cells do not count.

    Returns:
        (), the mean over the joints that are labelled in some sample of each one's share.
    """
    own, true = ((places + 0.5) * cells * weight for places in (predicted, target))
    counts = (true[..., 0] > 1) & (true[..., 1] > 1)
    near = (point_distances(own, true) < cells / 20) & counts
    shares = near.sum(dim=0) / counts.sum(dim=0)
    return shares.nanmean()
