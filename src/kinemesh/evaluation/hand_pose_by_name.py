"""Evaluations of hand joints as the command line names them: a model or submission, and data."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.data.ego_exo4d import (
    SPLITS,
    EgoExo4DHands,
    HandPoseOptions,
    Split,
    find_annotation,
    names_ego_exo4d,
    open_ego_exo4d,
    place_and_kind,
)
from kinemesh.data.ego_exo4d_annotations import read_annotations
from kinemesh.data.hand_pose_records import HandPoseSample
from kinemesh.data.synthetic.hand_pose_samples import (
    Sides,
    SyntheticHandJoints,
    SyntheticHandPoses,
)
from kinemesh.errors import InputError
from kinemesh.evaluation.ego_exo4d import (
    SubmissionCheck,
    check_submission,
    score_submission,
    write_submission,
)
from kinemesh.evaluation.hand_pose import HandRun, evaluate_hands
from kinemesh.evaluation.mesh import Progress, ProtocolResult
from kinemesh.evaluation.samples import SampleListener
from kinemesh.models.hand_pose_networks import Crops, HandPoseNetwork
from kinemesh.models.registry import is_hand_pose_model, load_hand_pose_model

SYNTHETIC_HAND = "synthetic-hand"
SYNTHETIC_COUNT = 1024
"""Samples of the endless data set where no count is given."""
FACING = (
    "the network was trained on rendered hands: crops as theirs, and joints turned from a camera "
    "that looks at the hand to that of Ego-Exo4D"
)
WIDE = (
    "the network was trained on Ego-Exo4D's crops, which are larger than these, and its joints "
    "have the axes of a wide camera"
)


@dataclass(frozen=True)
class HandEvaluation:
    """What decides a run over a data set, and its score.

    Attributes:
        split: "train", "val" or "test" of Ego-Exo4D; None: test where a submission is written, else
            the one in the name of a file, or the first of val, test and train that is there.
        images: Folder of the pictures; None: that of the prepared folder.
        count: How many hands; None: all, 1024 synthetic ones.
        results: Submission to write, ``.json``.
        offset: Add the labelled wrist to a submission that is about the wrist.
        batch_size: Hands at a time.
        workers: Processes that read data.
        portrait: Upright pictures of Ego-Exo4D and their labels.
    """

    split: str | None = None
    images: Path | None = None
    count: int | None = None
    results: Path | None = None
    offset: bool = False
    batch_size: int = 32
    workers: int = 0
    portrait: bool = False


def evaluates_hands(model: str | Path, dataset: str) -> bool:
    """Whether `evaluate_hand_pose` is the evaluation for a model and a data set.

    Raises:
        InputError: The data set is synthetic-hand and there is no such model.
    """
    return names_ego_exo4d(dataset) or (dataset == SYNTHETIC_HAND and is_hand_pose_model(model))


def evaluate_hand_pose(
    model: str | Path,
    dataset: str,
    options: HandEvaluation | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    listener: SampleListener | None = None,
) -> ProtocolResult | SubmissionCheck:
    """Score a model of hand joints, or a submission.

    Args:
        model: A weight file, or a submission (``.json``).
        dataset: ``ego-exo4d:`` or ``ego-exo4d-auto:`` and a prepared folder or an annotation file;
            for a model also ``synthetic-hand``.
        options: Split, count and so on.
        device: Where to compute.
        progress: Told about each batch.
        listener: Given each batch's predictions and labels. A submission is not listened to.

    Returns:
        Scores; of a submission for labels that are not published, that it is whole.

    Raises:
        InputError: A file is missing, or model, data set and options do not fit together.
    """
    options = options or HandEvaluation()
    if options.split is not None and options.split not in SPLITS:
        raise InputError(f"--split: expected {', '.join(SPLITS)}, found {options.split!r}.")
    if str(model).lower().endswith(".json"):
        return _evaluate_submission(model, dataset, options, device)
    if options.offset:
        raise InputError(
            "--offset belongs to the score of a submission. Models are always scored about the "
            "wrist; leave it out."
        )
    network, record = load_hand_pose_model(model)
    samples = _open(dataset, options, record)
    _check_inputs(network, samples, model, dataset)
    run = HandRun(options.batch_size, options.workers, options.count, record["sides"], device)
    network = network.to(device)
    names = (str(model), dataset)
    if options.results is None:
        result = evaluate_hands(
            network, samples, run, names=names, progress=progress, samples=listener
        )
    else:
        result = _submit(network, samples, run, options.results, names, progress, listener)
    wide = record["crops"] == "ego-exo4d"
    if wide != names_ego_exo4d(dataset):
        result = replace(result, notes=(*result.notes, WIDE if wide else FACING))
    return result


def _open(
    dataset: str, options: HandEvaluation, record: dict[str, object]
) -> Dataset[HandPoseSample]:
    size = cast(int, record.get("resolution", 224))  # the lifter sees no picture
    if names_ego_exo4d(dataset):
        split = options.split or ("test" if options.results is not None else None)
        return open_ego_exo4d(
            dataset,
            cast(Split | None, split),
            size=size,
            portrait=options.portrait,
            images=options.images,
            crops=cast(Crops, record["crops"]),
        )
    given = (options.results, options.split, options.images)
    if any(value is not None for value in given) or options.portrait:
        raise InputError(
            f"--results, --split, --images and --portrait mean nothing on {dataset}. Leave them "
            "out."
        )
    count = options.count or SYNTHETIC_COUNT
    if "resolution" not in record:
        return SyntheticHandJoints(length=count, split="test")
    return SyntheticHandPoses(0, size, count, "test", cast(Sides, record["sides"]))


def _check_inputs(
    network: HandPoseNetwork, samples: Dataset[HandPoseSample], model: str | Path, dataset: str
) -> None:
    if network.architecture != "joint-lifter" or not isinstance(samples, EgoExo4DHands):
        return
    if not np.isfinite(samples.labels.joints_px[samples.rows]).any():
        raise InputError(
            f"{model} lifts 2D joints, but {dataset} has none. Take a split with labels, or a "
            "network that sees pictures."
        )


def _submit(
    network: HandPoseNetwork,
    samples: Dataset[HandPoseSample],
    run: HandRun,
    path: Path,
    names: tuple[str, str],
    progress: Progress | None,
    listener: SampleListener | None,
) -> ProtocolResult:
    """Write a submission and score what is labelled."""
    assert isinstance(samples, EgoExo4DHands)  # --results is refused for other data
    if run.count is not None:
        raise InputError(
            f"--results: a submission holds every hand of {names[1]}. Leave --count out."
        )
    if samples.missing_pictures:
        raise InputError(
            f"--results: a submission holds every hand of {names[1]}, of which "
            f"{samples.missing_pictures} have no picture in '{samples.pictures}'. Make missing "
            "pictures with: kinemesh data prepare ego-exo4d --help"
        )
    parts: list[Tensor] = []

    def keep(rows: list[int], joints_m: Tensor) -> None:
        parts.append(joints_m)

    result = evaluate_hands(
        network, samples, run, names=names, progress=progress, samples=listener, sink=keep
    )
    joints_m = samples.in_camera(list(range(len(samples))), torch.cat(parts).cpu().numpy())
    check = write_submission(path, samples.labels, samples.keys, joints_m)
    note = (
        f"submission {path}: {check.hands} hands in {check.frames} frames, metres about the wrist "
        "(to be scored with the offset)"
    )
    notes = (*result.notes, note)
    return replace(result, notes=notes)


def _evaluate_submission(
    model: str | Path, dataset: str, options: HandEvaluation, device: torch.device | str
) -> ProtocolResult | SubmissionCheck:
    if not names_ego_exo4d(dataset):
        raise InputError(
            f"'{model}' is a submission of hands; give its labels, ego-exo4d:FOLDER or "
            f"ego-exo4d:FILE.json, as the data set, found '{dataset}'."
        )
    if options.results is not None or options.count is not None or options.images is not None:
        raise InputError(
            "--results, --count and --images: a submission is scored as it is. Leave them out."
        )
    place, kind = place_and_kind(dataset)
    where = HandPoseOptions(kind, options.portrait)
    labels = read_annotations(find_annotation(place, cast(Split, options.split or "test"), where))
    if labels.has_joints.any():
        return score_submission(model, labels, offset=options.offset, device=device)
    return check_submission(model, labels)
