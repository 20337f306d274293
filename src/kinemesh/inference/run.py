"""A run over many images: one bad file does not stop it, a full disk does."""

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kinemesh.errors import KinemeshError

logger = logging.getLogger(__name__)

Process = Callable[[Path, str], list[Path]]
"""Takes an image and the stem of its results; returns the files it wrote."""


_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
"""With these and ``_FULL`` no image after the present one could be written either."""


@dataclass(frozen=True)
class Failure:
    """An image that gave no result, and why."""

    path: Path
    message: str


@dataclass
class RunReport:
    """What became of the images of a run.

    Attributes:
        total: Number of images asked for.
        done: Images whose results are written.
        written: Files written.
        failures: Images that gave no result.
        interrupted: Whether Ctrl-C ended the run early.
        stopped: The image at which results could no longer be written, and why; None if they could.
    """

    total: int
    done: list[Path] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    interrupted: bool = False
    stopped: Failure | None = None

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 1 if an image failed or the run stopped, else 0."""
        return 130 if self.interrupted else int(bool(self.failures or self.stopped))


def run_images(paths: Sequence[Path], process: Process, console: Console) -> RunReport:
    """Process images one after the other, with a progress bar on a terminal.

    A `KinemeshError` or an unforeseen error is noted as a failure of its image. Ctrl-C, a full disk
    and an output folder that refuses to be written end the run and are noted in the report; results
    are whole for each image in ``done`` and absent for others.

    Args:
        paths: Images.
        process: What to do with each; see `Process`.
        console: Where the bar and the failures go.
    """
    report = RunReport(len(paths))
    bar = _progress_bar(console) if console.is_terminal and len(paths) > 1 else None
    with bar or nullcontext():
        task = bar.add_task("", total=len(paths)) if bar else None
        try:
            for path, stem in zip(paths, output_stems(paths), strict=True):
                _process_one(path, stem, process, report, console)
                if bar is not None and task is not None:
                    bar.advance(task)
                if report.stopped is not None:
                    break
        except KeyboardInterrupt:
            report.interrupted = True
    return report


def output_stems(paths: Iterable[Path]) -> list[str]:
    """Distinct starts of file names for the results of images.

    An image keeps its own stem if no other shares it; else its folder's name is put before it
    (``a/1.jpg`` and ``b/1.jpg`` give ``a_1`` and ``b_1``), else its suffix after it (``1_jpg``,
    ``1_png``), and at last a number. Letter case does not tell names apart, since it does not on
    every disk.
    """
    paths = [path.absolute() for path in paths]
    stems = [path.stem for path in paths]
    stems = _where_shared(stems, [f"{path.parent.name}_{path.stem}" for path in paths])
    stems = _where_shared(stems, [f"{path.stem}_{path.suffix[1:]}" for path in paths])
    return _numbered(stems)


def _where_shared(stems: list[str], longer: list[str]) -> list[str]:
    """Take the longer name where a stem is shared and the longer one tells it apart."""
    count = Counter(stem.lower() for stem in stems)
    trial = Counter(name.lower() for name in longer)
    return [
        name if count[stem.lower()] > 1 and trial[name.lower()] == 1 else stem
        for stem, name in zip(stems, longer, strict=True)
    ]


def _numbered(stems: list[str]) -> list[str]:
    taken: set[str] = set()
    result = []
    for stem in stems:
        name, number = stem, 2
        while name.lower() in taken:
            name, number = f"{stem}_{number}", number + 1
        taken.add(name.lower())
        result.append(name)
    return result


def _process_one(
    path: Path, stem: str, process: Process, report: RunReport, console: Console
) -> None:
    try:
        written = process(path, stem)
    except KinemeshError as error:
        failure = Failure(path, str(error))
    except OSError as error:
        logger.debug("system error on %s", path, exc_info=True)
        failure = Failure(path, _explain(error, path))
        if _is_fatal(error, path):
            report.stopped = failure
            return
    except Exception as error:  # a run over thousands of images must outlive one surprise
        logger.debug("unforeseen error on %s", path, exc_info=True)
        failure = Failure(path, f"unforeseen {type(error).__name__}: {error}")
    else:
        report.done.append(path)
        report.written += written
        return
    report.failures.append(failure)
    console.print(
        f"{path}: {failure.message}", style="red", markup=False, highlight=False, soft_wrap=True
    )


def _is_fatal(error: OSError, image: Path) -> bool:
    is_about_image = error.filename is not None and os.fsdecode(error.filename) == str(image)
    return not is_about_image and error.errno in _FULL | _REFUSED


def _explain(error: OSError, image: Path) -> str:
    if error.errno in _FULL:
        return (
            "The disk is full: the results of this image were not written, those before it are "
            "complete. Free some space, or choose another folder with --out."
        )
    if _is_fatal(error, image):
        return (
            f"Cannot write to {_folder_of(error)}: {error.strerror}. "
            "Choose another folder with --out, or change its permissions."
        )
    if error.errno == errno.ENAMETOOLONG:
        return "The names of its results are too long for the disk. Give the image a shorter name."
    return f"{error.strerror or error}; nothing was written for this image."


def _folder_of(error: OSError) -> str:
    if not error.filename:
        return "the output folder"
    path = Path(os.fsdecode(error.filename))
    # a temporary file's name would say nothing to the user
    return f"'{path.parent if '.partial' in path.name else path}'"


def _progress_bar(console: Console) -> Progress:
    return Progress(
        TextColumn("predicting"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
