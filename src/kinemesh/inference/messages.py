"""What a run over photos says on the terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kinemesh.inference.boxes import BoxTable
from kinemesh.inference.person import LOW_SCORE, Person
from kinemesh.inference.run import RunReport


def print_skipped(paths: Sequence[Path]) -> None:
    """Say which pictures of the folders are left out."""
    if paths:
        shown = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
        files = "file" if len(paths) == 1 else "files"
        print(f"{len(paths)} {files} skipped, no readable format: {shown}", file=sys.stderr)


def print_unmatched(boxes: BoxTable, paths: Sequence[Path]) -> None:
    """Say how many entries of a file of boxes are of none of the photos."""
    print_unmatched_keys(boxes, boxes.unmatched(paths), "photo")


def print_unmatched_keys(boxes: BoxTable, keys: Sequence[str], what: str) -> None:
    """Say how many entries of a file of boxes are of nothing that was given; with none, nothing.

    Args:
        boxes: What was read from the file.
        keys: The entries that match nothing.
        what: What they should match: "photo" or "frame".
    """
    if keys:
        shown = ", ".join(f"'{key}'" for key in keys[:5]) + (", ..." if len(keys) > 5 else "")
        count, total = len(keys), len(boxes.names)
        entries = f"{count} of {total} {'entry' if total == 1 else 'entries'}"
        verb = "matches" if count == 1 else "match"
        print(f"{boxes.origin}: {entries} {verb} no {what}: {shown}", file=sys.stderr)


def print_low_scores(path: Path, people: Sequence[Person], console: Console) -> None:
    """Say of which people of a photo the score is below ``LOW_SCORE``."""
    mixed = len({person.kind for person in people}) > 1
    for index, person in enumerate(people, start=1):
        if person.score < LOW_SCORE:
            what = "person" if person.kind == "body" else "hand"
            place = f"{what if mixed else 'box'} {index}"
            where = f"{path.name}, {place}" if len(people) > 1 else path.name
            _warn(f"{where}: score {person.score:.2f}, probably no {what} here", console)


_WHAT = {"hand": "hand", "body,hand": "person and no hand"}


def print_nobody(path: Path, task: str, console: Console, *, takes_whole: bool) -> None:
    """Say that nothing was found in a photo, and whether it is taken for a crop."""
    what = f"{path.name}: no {_WHAT.get(task, 'person')} found"
    _warn(f"{what}; the whole photo is taken as one box" if takes_whole else what, console)


def print_no_detector(console: Console) -> None:
    """Say that nothing is searched, since this installation has no detector."""
    _warn("No detector is shipped here: each whole picture is taken as one box.", console)


def print_without_hands(path: Path, people: Sequence[Person], console: Console) -> None:
    """Say that none of the bodies of a photo has a hand."""
    if people and all(person.kind == "body" for person in people):
        reason = "no wrist is sure enough, or its hand is outside of the photo or not clear"
        _warn(f"{path.name}: no hand found: {reason}", console)


def _warn(text: str, console: Console) -> None:
    console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_run(report: RunReport, out: Path) -> None:
    """Say what became of a run: results on stdout, what went wrong on stderr."""
    for path in report.written if report.total == 1 else ():
        print(_printable(path))
    if report.total > 1 or report.stopped:
        done, total = len(report.done), report.total
        print(f"{done} of {total} images done, results in {_printable(out)}")
    if report.interrupted:
        print("Interrupted; what is listed as done is complete.", file=sys.stderr)
    if report.failures and report.total > 1:
        print(f"{len(report.failures)} failed:", file=sys.stderr)
        for failure in report.failures:
            print(f"  {failure.path}", file=sys.stderr)
    if report.stopped:
        print(f"Stopped at {report.stopped.path}.", file=sys.stderr)
        print(f"kinemesh: {report.stopped.message}", file=sys.stderr)


def _printable(path: Path) -> str:
    """A path for stdout, with ? for what its encoding cannot say, such as undecodable bytes."""
    encoding = sys.stdout.encoding or "utf-8"
    return str(path).encode(encoding, "replace").decode(encoding)
