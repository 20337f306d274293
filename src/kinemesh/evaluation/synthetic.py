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
from kinemesh.evaluation.samples import (
    JointSamples,
    SampleListener,
    joint_errors_mm,
    to_picture,
)
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.metrics import MetricReport, keypoint_error_px, mesh_reports
from kinemesh.models.registry import load_model

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
    """

    model: str
    scores: tuple[MetricReport, ...]
    mean_shape: tuple[MetricReport, ...]

    def __str__(self) -> str:
        lines = [f"{self.model}:", *(f"  {report}" for report in self.scores)]
        lines += ["constant mean shape:", *(f"  {report}" for report in self.mean_shape)]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All reports, for a card or a record."""
        return {
            "model": self.model,
            "scores": [report.to_dict() for report in self.scores],
            "mean_shape": [report.to_dict() for report in self.mean_shape],
        }


def evaluate(
    model: str | Path,
    dataset: str,
    count: int = 1024,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    samples: SampleListener | None = None,
) -> Evaluation:
    """Score a model on held-out samples of a data set.

    Args:
        model: Anything that `kinemesh.models.registry.load_model` takes.
        dataset: A key of `DATASETS`.
        count: Number of held-out samples.
        seed: Seed of the data set; 0 is the one that the shipped models were trained with.
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
    scores, baseline = [], []
    for first, rows in enumerate(batches(held_out, count)):
        batch = {name: value.to(device) for name, value in rows.items()}
        output = _output(network, batch)
        scores.append(_network_reports(output, batch, topology, label))
        baseline.append(_constant_reports(mean, batch, topology, label))
        if samples is not None:
            samples(_joint_samples(output.joints, batch, topology, first * _BATCH))
    return Evaluation(str(model), merge(scores), merge(baseline))


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
