"""Scores of a network on a labelled data set, by a protocol."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from kinemesh.bodies.topology import Topology
from kinemesh.data.mesh_dataset import MeshDataset
from kinemesh.data.records import Sample, collate
from kinemesh.errors import InputError
from kinemesh.evaluation.samples import JointSamples, SampleListener, to_picture
from kinemesh.evaluation.sides import Batch, LabelSide, NetworkSide
from kinemesh.evaluation.table import SampleTable
from kinemesh.evaluation.tta import TtaFusion, TtaSetting, views
from kinemesh.metrics import MetricReport
from kinemesh.protocols import (
    Averaging,
    Known,
    Points,
    Protocol,
    Score,
    human36m_p2_rows,
    overall,
    overall_official,
)
from kinemesh.skeletons import root_position

Progress = Callable[[int, int], None]
"""Called with the number of samples done and of all."""
Listener = Callable[[Points], None]
"""Called with the predictions of each batch, in the order of the data set."""


@dataclass(frozen=True)
class EvaluationOptions:
    """How an evaluation is run.

    Attributes:
        batch_size: Samples at a time; it changes no exact mean.
        count: Only the first samples; all if None.
        workers: Processes that read the data.
        averaging: "samples" for the exact mean; "official" for METRO's, which depends on
            ``batch_size`` (see `kinemesh.protocols.overall_official`).
        tta: Settings of test-time augmentation; empty for none.
    """

    batch_size: int = 32
    count: int | None = None
    workers: int = 0
    averaging: Averaging = "samples"
    tta: tuple[TtaSetting, ...] = ()

    def __post_init__(self) -> None:
        """Refuse numbers that no evaluation can run with.

        Raises:
            InputError: The batch size or the count is below 1, or the number of workers below 0.
        """
        least = (("batch_size", 1), ("workers", 0), ("count", 1))
        for name, smallest in least:
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise InputError(f"{name} must be at least {smallest}, found {value}.")


@dataclass(frozen=True)
class ProtocolResult:
    """The numbers of one model on one data set, with the protocol that made them.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        protocol: The protocol.
        reports: One for each score.
        notes: What a reader should know, for example which scores are missing and why.
    """

    model: str
    dataset: str
    protocol: Protocol
    reports: tuple[MetricReport, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.dataset}",
            f"protocol {self.protocol.name}: {self.protocol.title}",
            f"ground truth: {self.protocol.ground_truth}",
            *(f"  {report}" for report in self.reports),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; a score of no samples is null."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "protocol": self.protocol.name,
            "title": self.protocol.title,
            "ground_truth": self.protocol.ground_truth,
            "scores": [_without_nan(report.to_dict()) for report in self.reports],
            "notes": list(self.notes),
        }


def evaluate_dataset(
    network: NetworkSide,
    labels: LabelSide,
    dataset: Dataset[Sample],
    protocol: Protocol,
    options: EvaluationOptions | None = None,
    *,
    device: torch.device | str = "cpu",
    names: tuple[str, str] = ("model", "data set"),
    progress: Progress | None = None,
    listener: Listener | None = None,
    samples: SampleListener | None = None,
) -> ProtocolResult:
    """Score a network.

    Processes of ``torch.distributed`` share the samples; each returns the result of all. Given the
    same prediction of each sample it equals that of one process, for any batch size.

    Args:
        network: What is scored.
        labels: What it is scored against.
        dataset: Records of `kinemesh.data.records.Sample`.
        protocol: How.
        options: Batch size and so on.
        device: Where network and labels are.
        names: Of the model and of the data set, for the result.
        progress: Told about each batch.
        listener: Given each batch's predictions, for example to write a submission; needs a single
            process.
        samples: Given each batch joint by joint, for example to draw a report.

    Raises:
        InputError: The data set is empty or lacks joints of the protocol.
    """
    options = options or EvaluationOptions()
    rows, notes = chosen_rows(dataset, protocol, options.count)
    table, reason = SampleTable(), None
    keys = _Keys(dataset) if samples is not None else None
    for done, (places, batch, points) in enumerate(
        _predictions(network, dataset, rows, protocol, options, torch.device(device)), start=1
    ):
        if listener is not None:
            listener(points)
        target, known = labels(batch, protocol)
        table.add(places, {**protocol.measure(points, target), **known._asdict()})
        if samples is not None and keys is not None:
            samples(_joint_samples(protocol, points, target, known, batch, keys.of(places)))
        if done == 1:
            reason = labels.why_no_mesh(batch) if network.has_mesh else "the network has no mesh"
        if progress is not None:
            progress(min(done * options.batch_size, len(rows)), len(rows))
    if reason is not None and any(score.part == "vertices" for score in protocol.scores):
        notes.append(f"vertices are not scored: {reason}")
    if network.own_joints is not None:
        protocol = replace(protocol, regressor=network.own_joints)
    if options.tta:
        notes.append(f"test-time augmentation: {len(options.tta)} settings")
    reports, more = _reports(table.gathered(), protocol, network.topology, options, names[1])
    return ProtocolResult(*names, protocol, reports, (*notes, *more))


class _Keys:
    """What finds a row of a data set again: its picture's name where it has one."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        named = getattr(dataset, "image_keys", None)
        self.names: Sequence[str] | None = None if named is None else named()

    def of(self, places: Tensor) -> list[str]:
        rows = places.tolist()
        if self.names is None:
            return [f"row {row}" for row in rows]
        return [f"row {row}: {self.names[row]}" for row in rows]


def _joint_samples(
    protocol: Protocol,
    points: Points,
    target: Points,
    known: Known,
    batch: Batch,
    keys: Sequence[str],
) -> JointSamples:
    """A batch joint by joint, with the root joint in the origin."""
    own, true = (
        side.joints - root_position(side.joints, protocol.joint_set) for side in (points, target)
    )
    images = batch["image"]
    return JointSamples(
        skeleton=protocol.joint_set,
        keys=keys,
        errors=protocol.joint_errors_mm(points, target),
        compared=(known.has_3d > 0)[:, None].expand(true.shape[:2]),
        unit="mm",
        predicted=own,
        target=true,
        picture=lambda row: to_picture(images[row]),
    )


def chosen_rows(
    dataset: Dataset[Sample], protocol: Protocol, count: int | None
) -> tuple[Sequence[int], list[str]]:
    """Rows of the data set that the protocol scores, and notes about them."""
    total = len(dataset)  # type: ignore[arg-type]
    rows: Sequence[int] = range(total if count is None else min(count, total))
    notes = []
    if protocol.keep == "human36m-p2":
        keys = getattr(dataset, "image_keys", None)
        kept = human36m_p2_rows(keys()) if keys is not None else None
        if kept is None:
            notes.append("the keys do not tell subject and camera: no row was left out")
        else:
            rows = kept[:count]
            notes.append(f"{len(kept)} of {total} rows belong to protocol 2 by their keys")
    if not rows:
        raise InputError("No sample of the data set belongs to the protocol; there is no score.")
    expected = protocol.sample_count
    if expected is not None and len(rows) != expected:
        notes.append(f"{len(rows)} samples, while the official set has {expected}")
    return rows, notes


def _predictions(
    network: NetworkSide,
    dataset: Dataset[Sample],
    rows: Sequence[int],
    protocol: Protocol,
    options: EvaluationOptions,
    device: torch.device,
) -> Iterator[tuple[Tensor, Batch, Points]]:
    """Places, records and predictions of this process's batches."""
    rows = rows[_rank() :: _world_size()]
    size = options.batch_size
    batches = [list(rows[start : start + size]) for start in range(0, len(rows), size)]
    plain = _read(dataset, batches, options.workers)
    if not options.tta:
        for places, batch in zip(batches, plain, strict=False):
            # the reader of shards does not know where the count ends
            moved = _to({name: value[: len(places)] for name, value in batch.items()}, device)
            yield torch.tensor(places), moved, network(moved["image"], protocol)
        return
    if not isinstance(dataset, MeshDataset):
        raise InputError(
            "Test-time augmentation cuts other crops of stored pictures: it needs a TSV data set "
            "or FreiHAND's folder, not synthetic data or shards."
        )
    images = views(dataset, options.tta, batches, options.workers)
    for places, batch in zip(batches, plain, strict=True):
        moved = _to(batch, device)
        reference = network(moved["image"], protocol)
        others = (network(next(images).to(device), protocol) for _ in options.tta)
        yield torch.tensor(places), moved, _fused(reference, others, network.topology)


def _fused(reference: Points, others: Iterator[Points], topology: Topology) -> Points:
    """Joints and vertices fused each on their own, as the published predictions are."""
    joints = TtaFusion(reference.joints)
    mesh = None if reference.vertices is None else TtaFusion(reference.vertices)
    for points in others:
        joints.add(points.joints)
        if mesh is not None and points.vertices is not None:
            mesh.add(points.vertices)
    if mesh is None:
        return Points(joints.result())
    vertices = mesh.result()
    return Points(joints.result(), vertices, topology.root(topology.joints(vertices)))


def _read(
    dataset: Dataset[Sample], batches: list[list[int]], workers: int
) -> Iterator[dict[str, Tensor]]:
    if isinstance(dataset, IterableDataset):
        # shards are read in their order by one reader; whole batches are cut off it
        if _world_size() > 1:
            raise InputError("Shards are scored by one process. Run it without torchrun.")
        yield from DataLoader(dataset, batch_size=len(batches[0]), collate_fn=collate)
        return
    yield from DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=collate)


def _reports(
    table: SampleTable,
    protocol: Protocol,
    topology: Topology,
    options: EvaluationOptions,
    dataset: str,
) -> tuple[tuple[MetricReport, ...], list[str]]:
    rows, columns = table.collect()
    known = Known(columns["has_3d"], columns["has_mesh"])
    reports, notes = [], []
    for score in protocol.scores:
        if score.metric not in columns:
            continue
        values = columns[score.metric]
        bad = ~values.reshape(len(values), -1).isfinite().all(dim=1)
        if bool(bad.any()):
            first = int(rows[bad][0])
            notes.append(f"{score.metric}: NaN for {int(bad.sum())} samples, first row {first}")
        mean, count = _average(score, values, known, options)
        report = protocol.report(score, mean, count, topology, dataset, _averaging_name(options))
        reports.append(report)
    return tuple(reports), notes


def _average(
    score: Score, values: Tensor, known: Known, options: EvaluationOptions
) -> tuple[float, int]:
    if options.averaging == "official":
        return overall_official(score, values, known, options.batch_size)
    return overall(score, values, known)


def _averaging_name(options: EvaluationOptions) -> str:
    if options.averaging == "official":
        return f"official, batches of {options.batch_size}"
    return "mean over samples"


def _without_nan(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and math.isnan(value) else value
        for name, value in record.items()
    }


def _to(batch: Batch, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def _rank() -> int:
    return torch.distributed.get_rank() if _is_shared() else 0


def _world_size() -> int:
    return torch.distributed.get_world_size() if _is_shared() else 1


def _is_shared() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
