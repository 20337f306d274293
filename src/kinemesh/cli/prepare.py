"""``kinemesh data prepare``: make the files of a benchmark from the download of a data set."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro

from kinemesh.cli._shared import Verb, console, shown_as
from kinemesh.errors import InputError

_HELP = """Make the labels and pictures of the Ego-Exo4D hand pose benchmark from the download.

Run it again to go on after an interruption: pictures that are there stay.

Examples:
  kinemesh data prepare ego-exo4d /data/egoexo --out EGO
      training and validation, labels by people
  kinemesh data prepare ego-exo4d /data/egoexo --out EGO --annotations auto --splits train
  kinemesh data prepare ego-exo4d /data/egoexo --out EGO --splits test
      pictures of the test split, after EGO/annotation/manual/ego_pose_gt_anno_test_public.json
"""

_SplitName = Literal["train", "val", "test"]


def data_prepare(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")],
    release: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")],
    out: Path,
    splits: tuple[_SplitName, ...] = ("train", "val"),
    annotations: Literal["manual", "auto"] = "manual",
    portrait: bool = False,
    images: bool = True,
    keep_distorted: bool = False,
    calibrations: Annotated[Path | None, shown_as("FOLDER")] = None,
    min_joints: int = 10,
    padding_px: float = 20.0,
    max_reprojection_px: float = 30.0,
    seed: int = 0,
    workers: int = 0,
) -> int:
    """Make the labels and pictures of the Ego-Exo4D hand pose benchmark from the download.

    Args:
        name: ego-exo4d.
        release: The download, with takes.json, annotations and takes.
        out: Folder to write to; give it to training as ego-exo4d:FOLDER.
        splits: Which splits; labels of test are not published, only pictures are made then.
        annotations: Labels by people or by a program.
        portrait: Upright pictures.
        images: Make the pictures, too (needs the extra 'video').
        keep_distorted: Keep the frames of the videos as they are beside the undistorted ones.
        calibrations: Folder with NAME-OF-TAKE.json for takes without a recording (.vrs); recordings
            need the extra 'aria'.
        min_joints: Valid joints that a hand needs.
        padding_px: Added around the joints to make the box.
        max_reprojection_px: Largest distance between a mark and the projected joint.
        seed: Of the boxes of the test split.
        workers: Processes that make pictures beside this one.
    """
    from kinemesh.data.ego_exo4d_labels import LabelRules
    from kinemesh.data.ego_exo4d_prepare import PrepareOptions, prepare_ego_exo4d

    if name != "ego-exo4d":
        raise InputError(f"There is nothing to prepare for '{name}'. Known: ego-exo4d.")
    rules = LabelRules(annotations, portrait, min_joints, padding_px, max_reprojection_px)
    options = PrepareOptions(
        splits, rules, calibrations, images, keep_distorted, seed=seed, workers=workers
    )
    with _steps() as progress:
        reports = prepare_ego_exo4d(release, out, options, progress)
    for report in reports:
        print(report)
        for text in report.skipped:
            print(f"  left out: {text}")
        for text in report.problems:
            print(f"  problem: {text}")
    problems = sum(len(report.problems) for report in reports)
    if problems:
        raise InputError(
            f"{problems} takes have problems, see above; everything else is in '{out}'. Mend them "
            "and run the same command again."
        )
    print(f"prepared: {out}. Look at it with: kinemesh data check ego-exo4d:{out}")
    return 0


@contextmanager
def _steps() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal that goes through the steps, nothing elsewhere."""
    from rich.progress import Progress

    with Progress(
        console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bar:
        row = bar.add_task("takes", total=None)

        def show(step: str, done: int, total: int) -> None:
            bar.update(row, description=step, completed=done, total=total)

        yield show


VERBS = (Verb("data prepare", "make a benchmark's files from a download", data_prepare, _HELP),)
