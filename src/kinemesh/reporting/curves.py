"""The curves of a training run, out of its ``log.jsonl``."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kinemesh.errors import InputError

LOG = "log.jsonl"
TOTAL = "total"
"""Name of the loss that is minimised, in every log."""


@dataclass
class Curve:
    """One number over the updates of a run."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class RunCurves:
    """The record of a run.

    Attributes:
        path: The log.
        losses: Training losses by name, ``total`` among them.
        metrics: Results of validation by name.
    """

    path: Path
    losses: dict[str, Curve]
    metrics: dict[str, Curve]

    @property
    def validation_losses(self) -> dict[str, Curve]:
        """Those results of validation that are losses, by their name."""
        return {name: curve for name, curve in self.metrics.items() if "loss" in name}

    @property
    def scores(self) -> dict[str, Curve]:
        """The other results of validation."""
        return {name: curve for name, curve in self.metrics.items() if "loss" not in name}


def find_log(weights: str | Path) -> Path | None:
    """The log of the run that wrote some weights: beside them or one folder up.

    ``runs/NAME/best/weights.safetensors`` has its log in ``runs/NAME/``.
    """
    path = Path(weights)
    if not path.is_file():
        return None
    for folder in path.resolve().parents[:2]:
        if (folder / LOG).is_file():
            return folder / LOG
    return None


def read_curves(path: Path) -> RunCurves:
    """Read the log of a run; a half-written last row, of a run that goes on, is left out.

    Raises:
        InputError: The file is missing, or no log of training.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"'{path}': cannot be read as the log of a run ({error}). Name the {LOG} of a folder "
            "that 'kinemesh train' wrote."
        ) from error
    curves = RunCurves(path, {}, {})
    for number, line in enumerate(lines, start=1):
        try:
            _take(curves, json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break
            raise InputError(
                f"'{path}', line {number}: expected a row of a training log with 'event' and "
                f"'step'. Name the {LOG} of a folder that 'kinemesh train' wrote."
            ) from error
    if not curves.losses and not curves.metrics:
        raise InputError(
            f"'{path}': there is no row of training or validation. Name the {LOG} of a folder that "
            "'kinemesh train' wrote."
        )
    return curves


def _take(curves: RunCurves, row: dict[str, Any]) -> None:
    kinds = {"train": ("losses", curves.losses), "validation": ("metrics", curves.metrics)}
    if row["event"] not in kinds:
        return
    key, target = kinds[row["event"]]
    for name, value in row[key].items():
        if isinstance(value, int | float):  # a number that was not finite is null
            curve = target.setdefault(name, Curve())
            curve.steps.append(int(row["step"]))
            curve.values.append(float(value))
