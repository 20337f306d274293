"""Reports of evaluations: pages that people look at, with curves, tables and pictures.

`SampleSummary` (or `ClassSummary`) listens to an evaluation, `read_curves` reads the log of the
training run, and `write_report` writes both, with the result, into a folder of HTML and PNG.
"""

from kinemesh.reporting.class_summary import ClassSummary
from kinemesh.reporting.curves import RunCurves, find_log, read_curves
from kinemesh.reporting.report import check_report_folder, write_report
from kinemesh.reporting.summary import SampleSummary, ShownSample

__all__ = [
    "ClassSummary",
    "RunCurves",
    "SampleSummary",
    "ShownSample",
    "check_report_folder",
    "find_log",
    "read_curves",
    "write_report",
]
