"""What ``kinemesh eval`` runs on each kind of data, and which options mean something there."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kinemesh.cli._report import ReportOption
from kinemesh.errors import InputError

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the command line said; see `kinemesh.cli.evaluate.evaluate` for the options."""

    model: str
    dataset: str
    count: int | None = None
    protocol: str | None = None
    assets: Path | None = None
    tta: bool = False
    submission: Path | None = None
    averaging: Literal["samples", "official"] = "samples"
    batch_size: int = 32
    workers: int = 0
    out: Path | None = None
    report: Path | None = None
    log: Path | None = None
    boxes: Path | None = None
    flip: bool = True
    split: str | None = None
    images: Path | None = None
    labels: Path | None = None
    head_size: Literal["box", "segment"] = "box"
    results: Path | None = None
    include_background: bool = False
    offset: bool = False
    hold_out_every: int | None = None
    portrait: bool = False
    groups: bool = False

    @property
    def given(self) -> tuple[str, ...]:
        """Options that are not at their default, in the order of the command's help."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)


@dataclass(frozen=True)
class _Kind:
    """One kind of data.

    Attributes:
        where: What it holds, for messages that begin with the name of the data.
        options: Options that mean something there, besides those of `_EVERYWHERE`.
        run: Scores a model; the result is printed.
    """

    where: str
    options: frozenset[str]
    run: "Callable[[Request, ReportOption, torch.device, Progress], Any]"


_EVERYWHERE = frozenset(
    {"model", "dataset", "count", "batch_size", "workers", "out", "report", "log"}
)


def prepare(request: Request) -> "Callable[[ReportOption, torch.device, Progress], Any]":
    """What scores the model of a request.

    Raises:
        InputError: An option was given that would silently be ignored.
    """
    kind = _kind_of(request.model, request.dataset)
    for name in request.given:
        if name not in kind.options | _EVERYWHERE:
            raise InputError(f"{_option(name)} means nothing {kind.where}. Leave it out.")

    def run(page: ReportOption, device: "torch.device", progress: Progress) -> Any:
        return kind.run(request, page, device, progress)

    return run


def _option(name: str) -> str:
    word = name.replace("_", "-")
    return f"--no-{word}" if name == "flip" else f"--{word}"


def _kind_of(model: str, dataset: str) -> _Kind:
    from kinemesh.evaluation.classification import is_classification_dataset
    from kinemesh.evaluation.detection import SYNTHETIC as DETECTION
    from kinemesh.evaluation.hand_pose_by_name import evaluates_hands
    from kinemesh.evaluation.hybrik_by_name import is_hybrik_dataset
    from kinemesh.evaluation.keypoints_by_name import is_keypoint_dataset

    on = f"on {dataset}, which holds"
    if dataset == DETECTION or _is_detector(model):
        return _Kind(f"for a detector on {dataset}", frozenset({"split", "images"}), _boxes)
    if is_classification_dataset(dataset):
        return _Kind(f"{on} labelled images", frozenset({"hold_out_every"}), _classes)
    if is_hybrik_dataset(dataset):
        where = f"on {dataset}, which is scored by POTTER's own protocol"
        return _Kind(where, frozenset({"assets", "flip"}), _bodies)
    if evaluates_hands(model, dataset):
        options = {"split", "images", "results", "offset", "portrait"}
        return _Kind(f"for hand joints on {dataset}", frozenset(options), _hands)
    if is_keypoint_dataset(dataset):
        options = {"boxes", "flip", "split", "images", "labels", "head_size", "results"}
        return _Kind(f"{on} 2D keypoints", frozenset(options | {"include_background"}), _keypoints)
    options = {"protocol", "assets", "tta", "submission", "averaging", "groups"}
    return _Kind(f"{on} meshes", frozenset(options), _meshes)


def _is_detector(model: str) -> bool:
    from kinemesh.models.detector_files import SHIPPED_DETECTOR, is_detector_file

    if model == SHIPPED_DETECTOR:
        return True
    return model.endswith(".safetensors") and is_detector_file(model)


def _boxes(request: Request, page: ReportOption, device: "torch.device", progress: Progress) -> Any:
    from kinemesh.evaluation.detection import evaluate_detector

    if request.report is not None:
        raise InputError("--report means nothing for a detector. Leave it out.")
    return evaluate_detector(
        request.model,
        request.dataset,
        count=request.count,
        batch_size=request.batch_size,
        images=request.images,
        split=request.split,
        device=device,
        progress=progress,
    )


def _classes(
    request: Request, page: ReportOption, device: "torch.device", progress: Progress
) -> Any:
    from kinemesh.evaluation.classification import ClassificationEvaluation, evaluate_images

    options = ClassificationEvaluation(
        request.hold_out_every, request.count, request.batch_size, request.workers
    )
    return evaluate_images(
        request.model,
        request.dataset,
        options,
        device=device,
        progress=progress,
        listener=page.classes,
    )


def _bodies(
    request: Request, page: ReportOption, device: "torch.device", progress: Progress
) -> Any:
    from kinemesh.evaluation.hybrik_by_name import HybrikEvaluation, evaluate_hybrik

    return evaluate_hybrik(
        request.model,
        request.dataset,
        HybrikEvaluation(request.flip, request.count, request.batch_size, request.workers),
        assets=request.assets,
        device=device,
        progress=progress,
        listener=page.summary,
    )


def _hands(request: Request, page: ReportOption, device: "torch.device", progress: Progress) -> Any:
    from kinemesh.evaluation.hand_pose_by_name import HandEvaluation, evaluate_hand_pose

    if request.model.lower().endswith(".json") and request.report is not None:
        raise InputError(
            "--report means nothing for a finished submission, which holds no pictures. "
            "Leave it out."
        )
    options = HandEvaluation(
        request.split,
        request.images,
        request.count,
        request.results,
        request.offset,
        request.batch_size,
        request.workers,
        request.portrait,
    )
    return evaluate_hand_pose(
        request.model,
        request.dataset,
        options,
        device=device,
        progress=progress,
        listener=page.summary,
    )


def _keypoints(
    request: Request, page: ReportOption, device: "torch.device", progress: Progress
) -> Any:
    from kinemesh.evaluation.keypoints_by_name import KeypointEvaluation, evaluate_keypoints

    options = KeypointEvaluation(
        boxes=request.boxes,
        flip_test=request.flip,
        split=request.split,
        images=request.images,
        labels=request.labels,
        head_size=request.head_size,
        count=request.count,
        results=request.results,
        batch_size=request.batch_size,
        workers=request.workers,
        include_background=request.include_background,
    )
    return evaluate_keypoints(
        request.model,
        request.dataset,
        options,
        device=device,
        progress=progress,
        listener=page.summary,
    )


def _meshes(
    request: Request, page: ReportOption, device: "torch.device", progress: Progress
) -> Any:
    from kinemesh.evaluation import TTA_SETTINGS, EvaluationOptions
    from kinemesh.evaluation.by_name import evaluate_model, evaluate_submission

    if request.model.lower().endswith(".zip"):
        _check_finished_submission(request)
        return evaluate_submission(request.model, request.dataset, device)
    options = EvaluationOptions(
        request.batch_size,
        request.count,
        request.workers,
        request.averaging,
        TTA_SETTINGS if request.tta else (),
    )
    return evaluate_model(
        request.model,
        request.dataset,
        request.protocol,
        options,
        assets=request.assets,
        submission=request.submission,
        device=device,
        progress=progress,
        listener=page.summary,
        groups=request.groups,
    )


def _check_finished_submission(request: Request) -> None:
    """Refuse options that scoring a finished submission to FreiHAND would silently ignore."""
    ignored = {"tta", "submission", "averaging", "count", "report", "groups"}
    if request.protocol != "freihand":
        ignored.add("protocol")
    names = [_option(name) for name in request.given if name in ignored]
    if names:
        raise InputError(
            f"{' and '.join(names)}: a submission is scored as it is, by FreiHAND's own protocol. "
            "Leave these options out, or give a model in place of the .zip."
        )
