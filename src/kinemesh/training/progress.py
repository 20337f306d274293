"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class ProgressBar:
    """Shows steps, loss, images/s and time left; use as a context manager.

    Args:
        steps: Updates of the whole run.
        visible: False in every process but the main one.
        console: Where to write; the standard error by default, so that output can be piped.
    """

    def __init__(self, steps: int, *, visible: bool = True, console: Console | None = None) -> None:
        self.steps, self.visible = steps, visible
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._row: TaskID | None = None

    def __enter__(self) -> Self:
        if self.visible and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.fields[counter]}"),
                BarColumn(),
                TextColumn("{task.fields[details]}"),
                console=self.console,
            )
            self._row = self._bar.add_task("train", total=1.0, counter="", details="")
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, fraction: float) -> None:
        """Move the bar; ``fraction`` of the run in [0, 1] (steps, or time where it is limited)."""
        if self._bar is not None and self._row is not None:
            counter = f"step {step}/{self.steps}"
            self._bar.update(self._row, completed=fraction, counter=counter)

    def report(self, step: int, loss: float, images_per_second: float, seconds_left: float) -> None:
        """Show newly logged numbers."""
        details = f"loss {loss:.4g}  {images_per_second:.1f} images/s  {_clock(seconds_left)} left"
        if self._bar is not None and self._row is not None:
            self._bar.update(self._row, details=details)
        else:
            self.say(f"step {step}/{self.steps}  {details}")

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        if self.visible:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class Throughput:
    """Images per second of training, without the time spent in validation and checkpoints.

    Args:
        images_per_step: Samples of one update over all processes.
        step: Updates done before this start.
    """

    def __init__(self, images_per_step: int, step: int) -> None:
        self.images_per_step = images_per_step
        self._since, self._step = time.monotonic(), step

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time spent inside out of the count."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def rate(self, step: int) -> float:
        """Images per second since the last call."""
        now = time.monotonic()
        rate = (step - self._step) * self.images_per_step / max(now - self._since, 1e-9)
        self._since, self._step = now, step
        return rate
