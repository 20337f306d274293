"""The ``--report`` of an evaluation: checked before the work, written after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinemesh.errors import InputError

if TYPE_CHECKING:
    from kinemesh.reporting import ClassSummary, RunCurves, SampleSummary


class ReportOption:
    """A report that was asked for, or none.

    Args:
        folder: Where to write it; None for no report.
        log: Log of the training run; None looks beside the weights.
        model: The evaluated model.

    Attributes:
        summary: What listens to the evaluation of joints; None without a report.
        classes: What listens to that of a classifier; None without a report.

    Raises:
        InputError: The folder holds something else, or the log cannot be read.
        MissingExtraError: Matplotlib is not installed.
    """

    summary: "SampleSummary | None" = None
    classes: "ClassSummary | None" = None

    def __init__(self, folder: Path | None, log: Path | None, model: str) -> None:
        self.folder = folder
        if folder is None:
            if log is not None:
                raise InputError("--log: only a report shows it. Add --report FOLDER.")
            return
        from kinemesh.reporting import (
            ClassSummary,
            SampleSummary,
            check_report_folder,
            find_log,
            read_curves,
        )

        check_report_folder(folder)
        self.summary, self.classes = SampleSummary(), ClassSummary()
        path = log or find_log(model)
        self.curves: RunCurves | None = None if path is None else read_curves(path)

    def write(self, result: Any, model: str, dataset: str) -> None:
        """Write it, if it was asked for, and say where."""
        if self.folder is None or self.summary is None or self.classes is None:
            return
        from kinemesh.reporting import write_report

        heard = self.classes if self.classes.ranking.count else self.summary
        write_report(self.folder, f"{model} on {dataset}", result, heard, self.curves)
        print(f"report: {self.folder / 'index.html'}")
