"""``kinemesh eval``: score a model on held-out data."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from kinemesh.cli._shared import Assets, DeviceName, Verb, console, one_of, shown_as
from kinemesh.errors import InputError

_HELP = """Score a model on held-out samples; every number is printed with its protocol.

Examples:
  kinemesh eval hand synthetic-hand
      a shipped model beside a constant mean shape
  kinemesh eval runs/trial/best/weights.safetensors synthetic-hand --count 256
  kinemesh eval metro_3dpw.safetensors 3dpw/test.yaml --protocol 3dpw --assets smpl/
  kinemesh eval hand.safetensors freihand-evaluation:FreiHAND --assets mano/ --tta
      --submission pred.zip
  kinemesh eval pred.zip freihand-evaluation:FreiHAND
      score a submission as the benchmark does
  kinemesh eval prtr.safetensors coco:COCO --boxes detections.json --split val2017
      2D keypoints; without --boxes people are placed by their labels
  kinemesh eval prtr.safetensors mpii:MPII --no-flip

Exit code: 0 done, 2 wrong usage or input, 130 Ctrl-C (nothing is written then).
"""

_Protocol = Annotated[str | None, one_of("human36m-p2", "3dpw", "freihand", "own"), shown_as()]


def evaluate(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    count: Annotated[int | None, shown_as("NUMBER")] = None,
    protocol: _Protocol = None,
    assets: Assets = None,
    tta: bool = False,
    submission: Annotated[Path | None, shown_as("PATH")] = None,
    averaging: Literal["samples", "official"] = "samples",
    batch_size: int = 32,
    workers: int = 0,
    device: DeviceName = "auto",
    out: Annotated[Path | None, shown_as("PATH")] = None,
    boxes: Annotated[Path | None, shown_as("FILE.json")] = None,
    flip: bool = True,
    split: Annotated[str | None, shown_as("NAME")] = None,
    images: Annotated[Path | None, shown_as("FOLDER")] = None,
    labels: Annotated[Path | None, shown_as("FILE")] = None,
    head_size: Literal["box", "segment"] = "box",
    results: Annotated[Path | None, shown_as("PATH")] = None,
) -> int:
    """Score a model on held-out samples.

    Args:
        model: A model from `kinemesh models`, a .safetensors file, or a FreiHAND submission (.zip).
        dataset: synthetic-hand, synthetic-body, the .yaml of a TSV data set, freihand:FOLDER,
            freihand-evaluation:FOLDER, or a folder of shards; of 2D keypoints coco:FOLDER or
            mpii:FOLDER (or the annotation file in place of the folder).
        count: Number of samples (coco: images); all if left out, 1024 of synthetic data.
        protocol: How to score; freihand for networks on MANO, else own, if left out.
        assets: Your SMPL or MANO files.
        tta: Average the published 95 turned and zoomed crops of each hand.
        submission: FreiHAND submission to write, .zip.
        averaging: Exact mean over the samples, or as the official METRO code weighs batches.
        batch_size: Samples at a time.
        workers: Processes that read data.
        device: Where to compute.
        out: Report to write, .json.
        boxes: coco: detected boxes, a list of {image_id, category_id, bbox, score}.
        flip: coco and mpii: average over each crop and its mirror image.
        split: coco and mpii: which annotation file of the folder; the validation if left out.
        images: coco and mpii: folder of the pictures, if they are not beside the annotations.
        labels: mpii: gt_valid.mat, if it is not beside the annotations.
        head_size: mpii: segment measures heads from top to neck where there are no head boxes.
        results: coco: result file to write, .json.
    """
    from kinemesh.evaluation import TTA_SETTINGS, EvaluationOptions
    from kinemesh.evaluation.by_name import evaluate_model, evaluate_submission
    from kinemesh.evaluation.keypoints_by_name import (
        KeypointEvaluation,
        evaluate_keypoints,
        is_keypoint_dataset,
    )
    from kinemesh.inference.predictor import resolve_device

    for path, suffix in ((out, ".json"), (submission, ".zip"), (results, ".json")):
        _check_output(path, suffix)
    place = resolve_device(device)
    result: Any
    keypoints = KeypointEvaluation(
        boxes=boxes,
        flip_test=flip,
        split=split,
        images=images,
        labels=labels,
        head_size=head_size,
        count=count,
        results=results,
        batch_size=batch_size,
        workers=workers,
    )
    if is_keypoint_dataset(dataset):
        _refuse_options("on coco: and mpii:", protocol=protocol, assets=assets, tta=tta)
        _refuse_options("on coco: and mpii:", submission=submission)
        with _progress() as progress:
            result = evaluate_keypoints(model, dataset, keypoints, device=place, progress=progress)
        return _report(result, submission, out)
    _refuse_options(
        f"on {dataset}, which is neither coco: nor mpii:",
        boxes=boxes,
        no_flip=not flip,
        split=split,
        images=images,
        labels=labels,
        results=results,
    )
    if model.lower().endswith(".zip"):
        _refuse_beside_submission(
            protocol=protocol not in {None, "freihand"},
            tta=tta,
            submission=submission,
            averaging=averaging != "samples",
            count=count,
        )
        result = evaluate_submission(model, dataset, place)
    else:
        options = EvaluationOptions(
            batch_size, count, workers, averaging, TTA_SETTINGS if tta else ()
        )
        with _progress() as progress:
            result = evaluate_model(
                model,
                dataset,
                protocol,
                options,
                assets=assets,
                submission=submission,
                device=place,
                progress=progress,
            )
    return _report(result, submission, out)


def _report(result: Any, submission: Path | None, out: Path | None) -> int:
    """Print a result and write it."""
    from kinemesh.files import write_json

    print(result)
    if submission is not None:
        print(f"submission: {submission}")
    if out is not None:
        write_json(out, result.to_dict())
    return 0


def _refuse_beside_submission(**given: object) -> None:
    """Refuse options that scoring a finished submission would silently ignore."""
    names = [f"--{name}" for name, value in given.items() if value]
    if names:
        raise InputError(
            f"{' and '.join(names)}: a submission is scored as it is, by FreiHAND's own protocol. "
            "Leave these options out, or give a model in place of the .zip."
        )


def _refuse_options(where: str, **options: object) -> None:
    """Refuse options that would silently be ignored."""
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise InputError(f"{option} means nothing {where}. Leave it out.")


def _check_output(path: Path | None, suffix: str) -> None:
    """Refuse before the work what could not be written after it."""
    from kinemesh.formats import check_folder

    if path is None:
        return
    if path.suffix.lower() != suffix:
        raise InputError(f"Expected a path that ends in {suffix}, found '{path}'.")
    check_folder(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; it is taken away at the end."""
    from rich.progress import Progress

    with Progress(
        console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        row = bar.add_task("samples", total=None)

        def show(done: int, total: int) -> None:
            bar.update(row, completed=done, total=total)

        yield show


VERBS = (Verb("eval", "score a model on held-out data", evaluate, _HELP),)
