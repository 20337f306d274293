"""Writes the report of an evaluation into a folder: a page, its figures, and their numbers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kinemesh.errors import InputError
from kinemesh.files import write_bytes, write_json
from kinemesh.optional import require
from kinemesh.reporting import class_figures, figures
from kinemesh.reporting.class_summary import ClassSummary, ShownImage
from kinemesh.reporting.curves import LOG, RunCurves
from kinemesh.reporting.pages import Page
from kinemesh.reporting.summary import SampleSummary, ShownSample
from kinemesh.training.checkpoints import atomic_folder
from kinemesh.training.log import finite_or_none

Summary = SampleSummary | ClassSummary
FORMAT = "kinemesh-report-1"
_PAGE = "index.html"
_RECORD = "report.json"
_HIDDEN = ("dataset",)  # the same in each row; the page names it above


class Result(Protocol):
    """What any evaluation returns: it prints itself and gives its numbers."""

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record."""
        ...


def check_report_folder(folder: Path) -> None:
    """Refuse before the work what could not be written after it.

    Raises:
        InputError: The place holds something else than an earlier report.
        MissingExtraError: Matplotlib is not installed.
    """
    require("matplotlib", figures.EXTRA)
    if folder.is_file():
        raise InputError(f"--report: '{folder}' is a file, expected a folder. Name another.")
    here = Path.cwd()
    if folder.resolve() in {here, *here.parents}:
        raise InputError(
            f"--report: '{folder}' is the folder you are in, or holds it, and a report replaces "
            "its whole folder. Name a new folder."
        )
    if folder.is_dir() and any(folder.iterdir()) and not _is_report(folder):
        raise InputError(
            f"--report: '{folder}' holds other files, and a report replaces its whole folder. "
            "Name a new folder."
        )
    try:
        folder.resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--report: cannot make '{folder.parent}' ({error.strerror}). Name another folder."
        ) from error


def _is_report(folder: Path) -> bool:
    """Whether a folder holds an earlier report and nothing that was put beside it."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        return False
    own = record.get("files")
    return isinstance(own, list) and {entry.name for entry in folder.iterdir()} <= set(own)


def write_report(
    folder: Path,
    title: str,
    result: Result,
    summary: Summary,
    curves: RunCurves | None = None,
) -> None:
    """Write a report; the folder appears when it is whole, in the place of an earlier report.

    Args:
        folder: Where to.
        title: For example the names of model and data set.
        result: The scores.
        summary: What listened to the evaluation.
        curves: Of the training run; None where its log is not known.

    Raises:
        InputError: The folder holds something else.
        MissingExtraError: Matplotlib is not installed.
    """
    check_report_folder(folder)
    pictures: dict[str, bytes] = {}
    page = Page(title)
    _add_scores(page, result)
    _add_calibration(page, result, pictures)
    _add_curves(page, curves, pictures)
    if isinstance(summary, ClassSummary):
        _add_images(page, summary, pictures)
    else:
        _add_samples(page, summary, pictures)
    record: dict[str, Any] = {
        "format": FORMAT,
        "title": title,
        "result": result.to_dict(),
        "training_log": None if curves is None else str(curves.path),
        "samples": _record_of(summary),
        "files": sorted([*pictures, _RECORD, _PAGE]),
    }
    with atomic_folder(folder.resolve()) as partial:
        for name, png in pictures.items():
            write_bytes(partial / name, png)
        write_json(partial / _RECORD, finite_or_none(record))
        write_bytes(partial / _PAGE, str(page).encode())


def _add_scores(page: Page, result: Result) -> None:
    record = result.to_dict()
    page.heading("Scores")
    for name in ("scores", "mean_shape"):
        rows = record.get(name)
        if rows:
            if name == "mean_shape":
                page.note("A constant mean shape on the same samples, which a network must beat:")
            page.table([_row(row) for row in rows])
    if record.get("groups"):
        page.note("Each skin tone and age on its own:")
        page.table([_row(row) for row in record["groups"]])
    values = record.get("values")
    if isinstance(values, Mapping) and values:  # of people without labels there are none
        page.table([{"score": name, "value": value} for name, value in values.items()])
    page.note("As the evaluation prints it, with the protocol:")
    page.verbatim(str(result))


def _add_calibration(page: Page, result: Result, pictures: dict[str, bytes]) -> None:
    """How far expected errors come true, of a network that predicts them."""
    records = result.to_dict().get("calibration")
    if not records:
        return
    page.heading("Expected and measured errors")
    pictures["calibration.png"] = figures.draw_calibration(records)
    page.picture(pictures["calibration.png"], "measured over predicted distance of joints")
    page.note(
        "Each point is the mean of a tenth of the joints, sorted by the distance that the network "
        "expects; on the dashed line it expects what is measured."
    )


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name.replace("_", " "): value
        for name, value in row.items()
        if name not in _HIDDEN and value != ""
    }


def _add_curves(page: Page, curves: RunCurves | None, pictures: dict[str, bytes]) -> None:
    page.heading("Training")
    if curves is None:
        page.note(f"No {LOG} of a training run lies beside the weights; --log FILE names one.")
        return
    pictures["curves.png"] = figures.draw_curves(curves)
    page.picture(pictures["curves.png"], "losses and validation scores over the updates")
    page.note(f"From {curves.path}.")


def _add_samples(page: Page, summary: SampleSummary, pictures: dict[str, bytes]) -> None:
    ranking = summary.ranking
    if summary.skeleton is None or not ranking.count:
        page.heading("Samples")
        page.note("The evaluation compared no labelled joint of any sample.")
        return
    groups = {"examples": ranking.first, "worst": ranking.worst, "best": ranking.best}
    drawn = {
        f"{name}.png": figures.draw_samples(samples, summary.skeleton, summary.unit)
        for name, samples in groups.items()
    }
    page.heading("Ground truth (left) and prediction (right)")
    page.note("The first samples of the data set, not chosen by their error.")
    page.picture(drawn["examples.png"], "samples with labels and predictions")
    page.heading("Error of each joint")
    drawn["joints.png"] = figures.draw_joint_bars(summary)
    page.picture(drawn["joints.png"], "bars of the mean error of each joint")
    for name in ("worst", "best"):
        page.heading(f"{name.capitalize()} samples")
        page.table([_sample_row(sample, summary.unit) for sample in groups[name]])
        page.picture(drawn[f"{name}.png"], f"{name} samples with labels and predictions")
    pictures |= drawn


def _sample_row(sample: ShownSample, unit: str) -> dict[str, Any]:
    errors = {f"{name} ({unit})": value for name, value in sample.errors.items()}
    return {"sample": sample.key, **errors}


def _add_images(page: Page, summary: ClassSummary, pictures: dict[str, bytes]) -> None:
    ranking = summary.ranking
    groups = {"examples": ranking.first, "worst": ranking.worst, "best": ranking.best}
    titles = {
        "examples": "The first images, not chosen by their error",
        "worst": "Worst images: the smallest probability of their own class",
        "best": "Best images",
    }
    for name, images in groups.items():
        page.heading(titles[name])
        pictures[f"{name}.png"] = class_figures.draw_images(images)
        page.table([_image_row(image) for image in images])
        page.picture(pictures[f"{name}.png"], titles[name])
    page.heading("Accuracy of each class")
    pictures["classes.png"] = class_figures.draw_class_bars(summary)
    page.picture(pictures["classes.png"], "bars of the share of images that were found")


def _image_row(image: ShownImage) -> dict[str, Any]:
    return {
        "image": image.key,
        "class": image.label,
        "found": image.found,
        "probability of its class": image.probability,
    }


def _record_of(summary: Summary) -> dict[str, Any]:
    if isinstance(summary, ClassSummary):
        images = summary.ranking
        return {
            "count": images.count,
            "accuracy_percent": dict(
                zip(summary.names, summary.accuracies().tolist(), strict=True)
            ),
            "worst": [_image_row(image) for image in images.worst],
            "best": [_image_row(image) for image in images.best],
        }
    joints = () if summary.skeleton is None else summary.skeleton.joints
    return {
        "count": summary.ranking.count,
        "without_labels": summary.unlabelled,
        "unit": summary.unit,
        "joint_errors": {
            name: dict(zip(joints, values.tolist(), strict=True))
            for name, values in summary.joint_means().items()
        },
        "worst": [_listed(sample) for sample in summary.ranking.worst],
        "best": [_listed(sample) for sample in summary.ranking.best],
    }


def _listed(sample: ShownSample) -> dict[str, Any]:
    return {"sample": sample.key, **sample.errors}
