"""Scores of a network on labelled crops, beside those of a constant mean shape."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Kind, Topology
from kinemesh.data.records import collate
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.errors import InputError
from kinemesh.evaluation.calibration import Calibration, calibrate
from kinemesh.evaluation.groups import GroupScore, group_scores, group_table, groups_of
from kinemesh.evaluation.samples import (
    JointSamples,
    SampleListener,
    joint_errors_mm,
    to_picture,
)
from kinemesh.evaluation.table import SampleTable
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.metrics import (
    MM_PER_M,
    MetricReport,
    keypoint_error_px,
    mesh_reports,
    point_distances,
)
from kinemesh.models.registry import load_model
from kinemesh.skeletons import Skeleton

Batch = Mapping[str, Tensor]
DATASETS: dict[str, Kind] = {"synthetic-hand": "hand", "synthetic-body": "body"}
"""Data sets that `evaluate` knows, and the task that each belongs to."""
ARCHITECTURE = "guided-graphormer"
"""The one that this module scores: our own, made for these data."""
MEAN_SHAPE_SAMPLES = 256
_BATCH = 32


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model and of the mean shape on the same samples.

    Attributes:
        model: Name of the model.
        scores: Reports of the model.
        mean_shape: Reports of one constant shape, the generalised Procrustes mean of training
            samples; what a network must beat.
        calibration: Predicted against measured distances of joints in 3D and in the crop; empty for
            a network that does not predict them.
        groups: Scores by skin tone and age, if they were asked for.
    """

    model: str
    scores: tuple[MetricReport, ...]
    mean_shape: tuple[MetricReport, ...]
    calibration: tuple[Calibration, ...] = ()
    groups: tuple[GroupScore, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.model}:", *(f"  {report}" for report in self.scores)]
        lines += ["constant mean shape:", *(f"  {report}" for report in self.mean_shape)]
        lines += [str(one) for one in self.calibration]
        if self.groups:
            lines += ["by group:", *(f"  {line}" for line in group_table(self.groups))]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All reports, for a card or a record; calibration and groups where there are any."""
        more: dict[str, Sequence[Calibration | GroupScore]] = {
            "calibration": self.calibration,
            "groups": self.groups,
        }
        return {
            "model": self.model,
            "scores": [report.to_dict() for report in self.scores],
            "mean_shape": [report.to_dict() for report in self.mean_shape],
        } | {name: [one.to_dict() for one in rows] for name, rows in more.items() if rows}


def evaluate(
    model: str | Path,
    dataset: str,
    count: int = 1024,
    seed: int = 0,
    *,
    groups: bool = False,
    device: torch.device | str = "cpu",
    samples: SampleListener | None = None,
) -> Evaluation:
    """Score a model on held-out samples of a data set.

    Args:
        model: Anything that `kinemesh.models.registry.load_model` takes.
        dataset: A key of `DATASETS`.
        count: Number of held-out samples.
        seed: Seed of the data set; 0 is the one that the shipped models were trained with.
        groups: Also score each skin tone and age on its own (`kinemesh.evaluation.groups`).
        device: Where to compute.
        samples: Given each batch joint by joint, for example to draw a report.

    Raises:
        InputError: The data set is unknown, or the model was trained for another task or has
            another architecture (`kinemesh.evaluation.by_name.evaluate_model` scores those).
    """
    if count < 1:
        raise InputError(f"count must be at least 1, found {count}.")
    network, topology, record = load_model(model)
    kind = DATASETS.get(dataset)
    if kind is None:
        raise InputError(f"No data set named {dataset!r}: expected one of {', '.join(DATASETS)}.")
    if record["task"] != kind:
        raise InputError(
            f"The model {model} recovers a {record['task']}, but the data set {dataset} shows a "
            f"{kind}. Choose a model and a data set of the same task."
        )
    if record["architecture"] != ARCHITECTURE:
        raise InputError(
            f"The model {model} is a {record['architecture']}: expected a {ARCHITECTURE}. "
            "Score it with evaluate_model."
        )
    held_out, training = (
        SyntheticDataset(kind, seed=seed, resolution=record["resolution"], split=split)
        for split in ("test", "train")
    )
    label = f"{dataset}, test split, seed {seed}"
    mean = mean_shape(training.meshes(range(MEAN_SHAPE_SAMPLES)), topology).to(device)
    network, topology = network.to(device), topology.to(device)
    scores, baseline, table = [], [], SampleTable()
    for first, rows in enumerate(batches(held_out, count)):
        batch = {name: value.to(device) for name, value in rows.items()}
        output = _output(network, batch)
        scores.append(_network_reports(output, batch, topology, label))
        baseline.append(_constant_reports(mean, batch, topology, label))
        places = first * _BATCH + torch.arange(len(rows["image"]))
        table.add(places, _errors(output, batch, topology))
        if samples is not None:
            samples(_joint_samples(output.joints, batch, topology, first * _BATCH))
    _, columns = table.collect()
    return Evaluation(
        str(model),
        merge(scores),
        merge(baseline),
        _calibration(columns, topology.skeleton),
        _groups(held_out, columns) if groups else (),
    )


def score(
    network: nn.Module, held_out: Iterable[Batch], topology: Topology, device: torch.device
) -> dict[str, float]:
    """Mean scores by a short key, such as ``pa_mpjpe_mm`` and ``2d_error_px``."""
    moved = ({name: value.to(device) for name, value in batch.items()} for batch in held_out)
    reports = merge(
        [_network_reports(_output(network, batch), batch, topology, "") for batch in moved]
    )
    return {
        f"{report.metric} {report.unit}".lower().replace("-", "_").replace(" ", "_"): report.value
        for report in reports
    }


def batches(
    dataset: SyntheticDataset, count: int, size: int = _BATCH
) -> Iterable[dict[str, Tensor]]:
    """The first ``count`` samples of ``dataset`` in batches."""
    for start in range(0, count, size):
        yield collate(dataset.__getitems__(list(range(start, min(start + size, count)))))


def merge(parts: Sequence[tuple[MetricReport, ...]]) -> tuple[MetricReport, ...]:
    """Join reports of parts of a data set, each part weighing as many samples as it has."""
    return tuple(_merge_one(rows) for rows in zip(*parts, strict=True))


def mean_shape(vertices: Tensor, topology: Topology, rounds: int = 3) -> Tensor:
    """Generalised Procrustes mean (V, 3) of meshes (N, V, 3), oriented as the template.

    Each round aligns all meshes rigidly to the mean so far and averages them (Gower 1975).
    """
    mean = topology.template
    for _ in range(rounds):
        target = mean.expand_as(vertices)
        mean = procrustes_align(vertices, target, scale=False).apply(vertices).mean(0)
    return mean


@torch.inference_mode()
def _output(network: nn.Module, batch: Batch) -> Any:
    return network(batch["image"])


def _errors(output: Any, batch: Batch, topology: Topology) -> dict[str, Tensor]:
    """Distances (B, J) of joints and, of a network that predicts them, what was expected."""
    places = batch["joints_2d"]
    errors = joint_errors_mm(output.joints, batch["joints_3d"][..., :3], topology.skeleton)
    columns = {
        "joint_mm": errors["MPJPE"],
        "aligned_mm": errors["PA-MPJPE"],
        "place_px": point_distances(output.joints_2d, places[..., :2]),
        "inside": places[..., 2] > 0,
    }
    spread_BJ2 = getattr(output, "spread", None)
    return columns if spread_BJ2 is None else columns | {"spread": spread_BJ2}


def _calibration(columns: Mapping[str, Tensor], skeleton: Skeleton) -> tuple[Calibration, ...]:
    """Of joints in 3D about the root, and in the crop of those inside it, as they were learned."""
    if "spread" not in columns:
        return ()
    spread, roots = columns["spread"].double(), skeleton.root_indices()
    counted = torch.ones(len(skeleton), dtype=torch.bool)
    if len(roots) == 1:
        counted[roots[0]] = False  # it is the origin on both sides, which is no merit
    space, plane = counted.expand_as(columns["inside"]), columns["inside"]
    found = [
        ("3D joints", "mm", spread[..., 0] * MM_PER_M, columns["joint_mm"], space),
        ("2D joints", "px", spread[..., 1], columns["place_px"], plane),
    ]
    return tuple(
        calibrate(predicted[chosen].numpy(), measured.double()[chosen].numpy(), joints, unit)
        for joints, unit, predicted, measured, chosen in found
        if chosen.any()
    )


def _groups(dataset: SyntheticDataset, columns: Mapping[str, Tensor]) -> tuple[GroupScore, ...]:
    inside = columns["inside"].float()
    places = (columns["place_px"] * inside).sum(dim=1) / inside.sum(dim=1)  # NaN without any
    means = {
        "mpjpe_mm": columns["joint_mm"].mean(dim=1),
        "pa_mpjpe_mm": columns["aligned_mm"].mean(dim=1),
        "error_px": places,
    }
    found = groups_of(dataset, len(places))
    return group_scores(found, {name: values.numpy() for name, values in means.items()})


def _joint_samples(
    joints_BJ3: Tensor, batch: Batch, topology: Topology, first: int
) -> JointSamples:
    target, images = batch["joints_3d"], batch["image"]
    return JointSamples(
        skeleton=topology.skeleton,
        keys=[f"row {first + row}" for row in range(len(target))],
        errors=joint_errors_mm(joints_BJ3, target[..., :3], topology.skeleton),
        # as the score: rows of synthetic data are labelled wholly
        compared=torch.ones_like(target[..., 3], dtype=torch.bool),
        unit="mm",
        predicted=joints_BJ3,
        target=target[..., :3],
        picture=lambda row: to_picture(images[row]),
    )


def _network_reports(
    output: Any, batch: Batch, topology: Topology, label: str
) -> tuple[MetricReport, ...]:
    reports = mesh_reports(
        output.joints,
        batch["joints_3d"][..., :3],
        output.vertices,
        batch["vertices"],
        topology.skeleton,
        topology.name,
        label,
    )
    inside = batch["joints_2d"][..., 2]
    errors = keypoint_error_px(output.joints_2d, batch["joints_2d"][..., :2], inside)
    places = MetricReport.from_values(
        "2D error",
        errors,
        unit="px",
        joint_set=topology.skeleton.name,
        root="none",
        alignment="none",
        has=inside.any(dim=1),
        dataset=label,
    )
    return (*reports, places)


def _constant_reports(
    shape: Tensor, batch: Batch, topology: Topology, label: str
) -> tuple[MetricReport, ...]:
    vertices = shape.expand_as(batch["vertices"])
    target = batch["joints_3d"][..., :3]
    joints = topology.joints(vertices)
    return mesh_reports(
        joints, target, vertices, batch["vertices"], topology.skeleton, topology.name, label
    )


def _merge_one(reports: tuple[MetricReport, ...]) -> MetricReport:
    rows = [report for report in reports if report.sample_count]
    count = sum(report.sample_count for report in rows)
    total = sum(report.value * report.sample_count for report in rows)
    value = total / count if count else float("nan")
    return replace(reports[0], value=value, sample_count=count)
