"""Scores of networks that recover the 21 joints of a hand, in mm about the wrist.

A hand's error is the mean over its labelled joints, and the score the mean over hands, each with
the same weight, as in the Ego-Exo4D hand pose benchmark. The similarity of PA-MPJPE is fitted to
the labelled joints alone and may not mirror.

Shape legend: B hands, J = 21 joints.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from kinemesh.data.ego_exo4d import EgoExo4DHands
from kinemesh.data.hand_pose_records import LEFT, RIGHT, HandPoseSample, collate_hand_poses
from kinemesh.data.keypoint_crop import denormalise_picture
from kinemesh.errors import InputError
from kinemesh.evaluation.mesh import Progress, ProtocolResult
from kinemesh.evaluation.samples import JointSamples, Picture, SampleListener, joint_errors_mm
from kinemesh.metrics import MetricReport, mpjpe_mm, pa_mpjpe_mm
from kinemesh.models.hand_pose_networks import HandPoseNetwork
from kinemesh.protocols import Protocol, Score
from kinemesh.skeletons import HAND21

GIVEN_2D = "the network lifts 2D joints: it was given those of the labels, and saw no picture"
AVERAGING = "mean over the labelled joints of a hand, then over hands"
HAND_POSE = Protocol(
    name="hand-pose",
    title="21 joints of a hand about the wrist, as in the Ego-Exo4D hand pose benchmark",
    joint_set=HAND21,
    scores=(
        Score("MPJPE", "joints", root="joints"),
        Score("PA-MPJPE", "joints", alignment="similarity"),
    ),
    ground_truth="labelled joints",
    regressor="the network",
)
"""How all hand pose networks are scored."""

Sink = Callable[[list[int], Tensor], None]
"""Called with the rows of a batch and their predicted joints (B, J, 3), metres about the wrist."""


def measure_hands(prediction_m: Tensor, target_m: Tensor, visible: Tensor) -> dict[str, Tensor]:
    """Errors (B,) in mm of each hand, by the names of `HAND_POSE`.

    Nothing is moved to the wrist here: both sides are taken in one frame.

    Args:
        prediction_m: (B, J, 3) metres.
        target_m: (B, J, 3) metres; what is not visible may be NaN.
        visible: (B, J) bool: joints that count.

    Returns:
        ``MPJPE`` and ``PA-MPJPE``, NaN for hands without a joint that counts.
    """
    target_m = target_m.where(visible[..., None], prediction_m)
    return {
        "MPJPE": mpjpe_mm(prediction_m, target_m, valid=visible),
        "PA-MPJPE": pa_mpjpe_mm(prediction_m, target_m, visible),
    }


def report_hands(
    columns: Mapping[str, Tensor], dataset: str, protocol: Protocol = HAND_POSE
) -> tuple[MetricReport, ...]:
    """The lines of a protocol from errors (N,) by name; hands that are NaN do not count.

    Without a hand that counts there is no line.
    """
    reports = []
    for score in protocol.scores:
        values = columns[score.metric].double()
        values = values[values.isfinite()]
        if len(values):
            mean = float(values.mean())
            report = protocol.report(score, mean, len(values), "", dataset, AVERAGING)
            reports.append(replace(report, samples="hands with a labelled joint"))
    return tuple(reports)


def predict_hands(
    network: HandPoseNetwork, batch: Mapping[str, Tensor], sides: str = "both"
) -> Tensor:
    """Joints (B, J, 3) of a batch of hand pose data, metres about the wrist.

    Args:
        network: The network.
        batch: Fields of `kinemesh.data.hand_pose_records.HandPoseSample`.
        sides: "both", or "right" for a network that knows right hands alone: it is shown left ones
            in a mirror, and its answer is mirrored back.
    """
    if sides == "both":
        return network(batch)  # type: ignore[no-any-return]
    joints_m: Tensor = network(as_right_hands(batch))
    return _mirrored(joints_m, batch["side"] == LEFT)


def as_right_hands(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch of hand pose data with its left hands in a mirror, labels and all."""
    left_B = batch["side"] == LEFT
    image, places = batch["image"], batch["joints_2d_px"]
    turned = (image.shape[-1] - 1 - places[..., :1], places[..., 1:])
    return dict(batch) | {
        "image": torch.where(left_B[:, None, None, None], image.flip(-1), image),
        "joints_2d_px": torch.where(left_B[:, None, None], torch.cat(turned, dim=-1), places),
        "joints_m": _mirrored(batch["joints_m"], left_B),
        "side": torch.full_like(batch["side"], RIGHT),
    }


def _mirrored(joints_m: Tensor, which_B: Tensor) -> Tensor:
    """(B, J, 3) with left and right swapped in some rows."""
    x = torch.where(which_B[:, None], -joints_m[..., 0], joints_m[..., 0])
    return torch.cat([x[..., None], joints_m[..., 1:]], dim=-1)


@dataclass(frozen=True)
class HandRun:
    """How a network is run over a data set.

    Attributes:
        batch_size: Hands at a time.
        workers: Processes that read data.
        count: The first so many hands; None: all.
        sides: See `predict_hands`.
        device: Where to compute; the network is there.
    """

    batch_size: int = 32
    workers: int = 0
    count: int | None = None
    sides: str = "both"
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or (self.count is not None and self.count < 1):
            raise InputError(
                "batch size, workers, count: expected a positive batch size and count and workers "
                f"from 0 up, found {self.batch_size}, {self.workers} and {self.count}."
            )

    def batches(self, dataset: Dataset[HandPoseSample]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """Batches on the device, each with the row that it begins with."""
        length = len(dataset)  # type: ignore[arg-type]
        rows = range(min(length, length if self.count is None else self.count))
        loader = DataLoader(
            Subset(dataset, rows),
            self.batch_size,
            collate_fn=collate_hand_poses,
            num_workers=self.workers,
        )
        for number, batch in enumerate(loader):
            moved = {name: value.to(self.device) for name, value in batch.items()}
            yield number * self.batch_size, moved


@torch.inference_mode()
def evaluate_hands(
    network: HandPoseNetwork,
    dataset: Dataset[HandPoseSample],
    run: HandRun,
    *,
    names: tuple[str, str] = ("model", "data set"),
    progress: Progress | None = None,
    samples: SampleListener | None = None,
    sink: Sink | None = None,
) -> ProtocolResult:
    """Score a network of hand joints.

    Args:
        network: In eval mode, on the run's device.
        dataset: Hands.
        run: How.
        names: Of model and data set, for the report.
        progress: Told about each batch.
        samples: Given each batch's predictions and labels.
        sink: Given each batch's predictions.

    Raises:
        InputError: Not one hand has a label, and no ``sink`` wants the predictions.
    """
    length = len(dataset)  # type: ignore[arg-type]
    total = length if run.count is None else min(length, run.count)
    parts: list[dict[str, Tensor]] = []
    for first, batch in run.batches(dataset):
        joints_m = predict_hands(network, batch, run.sides)
        parts.append(measure_hands(joints_m, batch["joints_m"], batch["visible"]))
        rows = list(range(first, first + len(joints_m)))
        if sink is not None:
            sink(rows, joints_m)
        if samples is not None:
            samples(_seen(dataset, rows, joints_m, batch))
        if progress is not None:
            progress(rows[-1] + 1, total)
    columns = {
        name: torch.cat([part[name] for part in parts]).cpu() for name in ("MPJPE", "PA-MPJPE")
    }
    if sink is None and not columns["MPJPE"].isfinite().any():
        raise InputError(
            f"{names[1]}: not one of {total} hands has a labelled joint, so nothing can be scored. "
            "The labels of the test split are not published: write a submission with --results."
        )
    scores = report_hands(columns, names[1])
    notes = [GIVEN_2D] if network.architecture == "joint-lifter" else []
    if not scores:
        notes.append("no hand has a labelled joint, so nothing was scored")
    return ProtocolResult(*names, HAND_POSE, scores, tuple(notes))


def _seen(
    dataset: Dataset[HandPoseSample],
    rows: list[int],
    joints_m: Tensor,
    batch: Mapping[str, Tensor],
) -> JointSamples:
    """What a report wants to know of a batch."""
    keys = [str(row) for row in rows]
    if isinstance(dataset, EgoExo4DHands):
        keys = [
            f"{key.take_name or key.take_uid}/{key.frame:06d} {key.side}"
            for key in (dataset.key(row) for row in rows)
        ]
    target, visible, images = batch["joints_m"], batch["visible"], batch["image"]

    def picture(row: int) -> Picture:
        if not images.shape[-1]:  # data of joints alone
            return torch.full((128, 128, 3), 236, dtype=torch.uint8).numpy()
        return denormalise_picture(images[row].cpu().numpy(), "rgb")

    errors = joint_errors_mm(joints_m, target, HAND21, visible)
    return JointSamples(HAND21, keys, errors, visible, "mm", joints_m, target, picture)
