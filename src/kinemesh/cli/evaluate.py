"""``kinemesh eval``: score a model on held-out data."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kinemesh.cli._report import ReportOption
from kinemesh.cli._shared import Assets, DeviceName, Verb, console, one_of, shown_as
from kinemesh.errors import InputError

_HELP = """Score a model on held-out samples; every number is printed with its protocol.

Examples:
  kinemesh eval hand synthetic-hand
      a shipped model beside a constant mean shape, and how far its expected errors come true
  kinemesh eval body synthetic-body --groups
      and each skin tone and age on its own
  kinemesh eval runs/trial/best/weights.safetensors synthetic-hand --count 256
  kinemesh eval runs/trial/best/weights.safetensors synthetic-hand --report report/
      a page with curves, pictures, the error of each joint, the worst and the best samples
  kinemesh eval metro_3dpw.safetensors 3dpw/test.yaml --protocol 3dpw --assets smpl/
  kinemesh eval hand.safetensors freihand-evaluation:FreiHAND --assets mano/ --tta
      --submission pred.zip
  kinemesh eval pred.zip freihand-evaluation:FreiHAND
      score a submission as the benchmark does
  kinemesh eval prtr.safetensors coco:COCO --boxes detections.json --split val2017
      2D keypoints; without --boxes people are placed by their labels
  kinemesh eval prtr.safetensors mpii:MPII --no-flip
  kinemesh eval prtr.safetensors coco:COCO --split test-dev2017 --boxes detections.json
      --results results.json
      a test split has no labels: only the file for COCO's server is written
  kinemesh eval runs/prtr-synthetic/best/weights.safetensors synthetic-keypoints
  kinemesh eval runs/synthetic-detector/best/weights.safetensors synthetic-detection
      AP50 of people and hands; of a detector on coco:FOLDER that of people
  kinemesh eval classifier.safetensors imagenet:ImageNet
      top-1 and top-5 on ImageNet/val/CLASS/*.JPEG
  kinemesh eval potter.safetensors ego-exo4d:EGO --split val
      21 joints of a hand in mm; --results pred.json writes a submission for the test split
  kinemesh eval pred.json ego-exo4d:labels.json --offset
      score (or, without labels, check) such a submission as the benchmark does

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
    report: Annotated[Path | None, shown_as("FOLDER")] = None,
    log: Annotated[Path | None, shown_as("FILE.jsonl")] = None,
    boxes: Annotated[Path | None, shown_as("FILE.json")] = None,
    flip: bool = True,
    split: Annotated[str | None, shown_as("NAME")] = None,
    images: Annotated[Path | None, shown_as("FOLDER")] = None,
    labels: Annotated[Path | None, shown_as("FILE")] = None,
    head_size: Literal["box", "segment"] = "box",
    results: Annotated[Path | None, shown_as("PATH")] = None,
    include_background: bool = False,
    offset: bool = False,
    hold_out_every: Annotated[int | None, shown_as("NUMBER")] = None,
    portrait: bool = False,
    groups: bool = False,
) -> int:
    """Score a model on held-out samples.

    Args:
        model: A model from `kinemesh models`, a .safetensors file, or a submission to FreiHAND
            (.zip) or Ego-Exo4D (.json).
        dataset: synthetic-hand, synthetic-body, the .yaml of a TSV data set, freihand:FOLDER,
            freihand-evaluation:FOLDER, or a folder of shards; of 2D keypoints coco:FOLDER,
            mpii:FOLDER (or the annotation file in place of the folder), synthetic-keypoints or
            synthetic-scenes; for detectors coco:FOLDER or synthetic-detection; of hand joints
            ego-exo4d:FOLDER or ego-exo4d-auto:FOLDER; for
            classifiers imagenet:FOLDER; of POTTER's body h36m-hybrik:FOLDER, 3dpw-hybrik:FOLDER,
            3dhp-hybrik:FOLDER or synthetic-hybrik.
        count: Number of samples (coco: images); all if left out, 1024 of synthetic hands and
            bodies, 128 of synthetic-keypoints and synthetic-scenes.
        protocol: How to score; freihand for networks on MANO, else own, if left out.
        assets: Your SMPL or MANO files.
        tta: Average the published 95 turned and zoomed crops of each hand.
        submission: FreiHAND submission to write, .zip.
        averaging: Exact mean over the samples, or as the official METRO code weighs batches.
        batch_size: Samples at a time.
        workers: Processes that read data.
        device: Where to compute.
        out: Scores to write, .json.
        report: Folder for a page of HTML with figures; needs the extra "report".
        log: Log of the training run for the report, if it is not beside the weights.
        boxes: coco: detected boxes, a list of {image_id, category_id, bbox, score}.
        flip: coco, mpii and POTTER's body: average over each crop and its mirror image.
        split: coco, mpii, ego-exo4d: which annotation file of the folder; the validation if left
            out.
        images: coco, mpii, ego-exo4d: folder of the pictures, if not beside the annotations.
        labels: mpii: gt_valid.mat, if it is not beside the annotations.
        head_size: mpii: segment measures heads from top to neck where there are no head boxes.
        results: coco: result file to write, ego-exo4d: submission, .json.
        include_background: 2D keypoints: let the background take part in the softmax of the
            read-out, which published scores do not.
        offset: ego-exo4d: a submission is about the wrist; add the labelled one to it.
        hold_out_every: imagenet: of a folder without train and val, score every n-th image of each
            class.
        portrait: ego-exo4d: upright pictures and their labels.
        groups: synthetic hands and bodies: also score each skin tone and age on its own.
    """
    from kinemesh.cli._evaluations import Request, prepare
    from kinemesh.files import write_json
    from kinemesh.inference.predictor import resolve_device

    for path, suffix in ((out, ".json"), (submission, ".zip"), (results, ".json")):
        _check_output(path, suffix)
    place = resolve_device(device)
    page = ReportOption(report, log, model)
    request = Request(
        model=model,
        dataset=dataset,
        count=count,
        protocol=protocol,
        assets=assets,
        tta=tta,
        submission=submission,
        averaging=averaging,
        batch_size=batch_size,
        workers=workers,
        out=out,
        report=report,
        log=log,
        boxes=boxes,
        flip=flip,
        split=split,
        images=images,
        labels=labels,
        head_size=head_size,
        results=results,
        include_background=include_background,
        offset=offset,
        hold_out_every=hold_out_every,
        portrait=portrait,
        groups=groups,
    )
    run = prepare(request)
    with _progress() as progress:
        result = run(page, place, progress)
    print(result)
    if submission is not None:
        print(f"submission: {submission}")
    if out is not None:
        write_json(out, result.to_dict())
    page.write(result, model, dataset)
    return 0


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
