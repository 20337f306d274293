"""The record of a run: log.jsonl always, dashboards when asked for."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import KinemeshError
from kinemesh.files import atomic_path, write_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

Json: TypeAlias = Any


class TrainingDiverged(KinemeshError):  # noqa: N818 - says what happened
    """A loss or a gradient is no longer a finite number."""


class LossWindow:
    """Losses since the last row of the log.

    Values stay on their device until somebody needs them, so that a GPU is not halted each step.
    """

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self._fresh: list[Tensor] = []
        self._settled: list[Tensor] = []  # (n, K) on the CPU, averaged over processes

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take the scalar losses of one step."""
        names = tuple(losses)
        if self.names and set(names) != set(self.names):
            raise KinemeshError(
                f"The task's loss returned the terms {sorted(names)}, but before it returned "
                f"{sorted(self.names)}. Return the same terms at every step (0 where unused)."
            )
        self.names = self.names or names
        values = [losses[name].detach().float().reshape(()) for name in self.names]
        self._fresh.append(torch.stack(values))

    def settle(self, accelerator: "Accelerator", step: int) -> None:
        """Fetch what was added, averaged over processes, and check it; all processes call this.

        Args:
            accelerator: Accelerate's ``Accelerator``.
            step: Number of the newest step, counted from 1.

        Raises:
            TrainingDiverged: A value is not finite.
        """
        if not self._fresh:
            return
        rows = accelerator.reduce(torch.stack(self._fresh), "mean").cpu()
        self._fresh = []
        bad = (~torch.isfinite(rows)).nonzero()
        if len(bad):
            row, column = (int(value) for value in bad[0])
            raise TrainingDiverged(
                f"'{self.names[column]}' is {float(rows[row, column])} at step "
                f"{step - len(rows) + row + 1}, where a finite number was expected. The last "
                "checkpoint is kept. Lower optim.lr, set optim.clip_norm, or check the data."
            )
        self._settled.append(rows)

    def means(self) -> dict[str, float]:
        """Means of the settled rows, by name; begins a new window."""
        means = torch.cat(self._settled).double().mean(0).tolist()
        self._settled = []
        return dict(zip(self.names, means, strict=True))

    def state(self) -> Tensor:
        """Settled rows (n, K) that no row of the log covers yet."""
        return torch.cat(self._settled) if self._settled else torch.zeros(0, len(self.names))

    def restore(self, names: tuple[str, ...], rows: Tensor) -> None:
        """Continue a window read from a checkpoint."""
        self.names = names
        self._settled = [rows] if len(rows) else []


class RunLog:
    """Appends rows to ``log.jsonl`` and forwards numbers and pictures to dashboards.

    Args:
        path: The JSONL file; None in every process but the main one, where nothing is written.
        trackers: Accelerate's trackers that were initialised.
    """

    def __init__(self, path: Path | None, trackers: list[Any]) -> None:
        self.path, self.trackers = path, trackers

    def rewind(self, step: int) -> None:
        """Drop rows past ``step`` and a half-written last one, left by a run that was killed."""
        if self.path is None or not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) <= step]
        write_bytes(self.path, "".join(f"{line}\n" for line in kept).encode())

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Add one row ``{"event": ..., "step": ..., **values}``; numbers go to the dashboards."""
        if self.path is None:
            return
        row = finite_or_none({"event": event, "step": step, **values})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        numbers = {f"{event}/{key}": number for key, number in _numbers(values).items()}
        for tracker in self.trackers:
            tracker.log(numbers, step=step)

    def picture(self, folder: Path, step: int, image: NDArray[np.uint8]) -> None:
        """Save RGB (H, W, 3) as ``folder/step-<n>.png`` and show it on the dashboards."""
        if self.path is None:
            return
        from PIL import Image  # noqa: PLC0415 - only runs that draw pay for it

        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / f"step-{step:07d}.png") as temporary:
            Image.fromarray(image).save(temporary)
        for tracker in self.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"predictions": image[None]}, step=step, **layout)


def finite_or_none(value: object) -> Json:
    """Replace NaN and infinity, which JSON cannot hold, by None; through dicts and lists."""
    if isinstance(value, Mapping):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_or_none(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a row with nested names joined: losses.total becomes losses/total."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= {f"{key}/{name}": item for name, item in _numbers(value).items()}
        elif isinstance(value, int | float):
            numbers[key] = value
    return numbers


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf
