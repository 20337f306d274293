"""Time and signals, seen alike by all processes of a run."""

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator

_EXCHANGE_EVERY = 10  # steps between agreements of many processes; each one halts a GPU


class Interrupted(SystemExit):
    """A signal ended the run after a checkpoint was written; the exit code is 130."""

    code: int

    def __init__(self, message: str) -> None:
        super().__init__(130)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Pulse:
    """Counts the seconds of a run and notes SIGINT and SIGTERM; use as a context manager.

    The first signal asks for an orderly end; handlers are then put back, so that a second one
    ends the process at once. With many processes ``seconds`` and ``stop`` are those that all have
    agreed on, since a learning rate or an end that differed between them would be wrong.

    Args:
        accelerator: Accelerate's ``Accelerator``.
        seconds: Seconds spent before this start.
    """

    def __init__(self, accelerator: "Accelerator", seconds: float = 0.0) -> None:
        self.accelerator = accelerator
        self.seconds, self.stop = seconds, False
        self._origin = time.monotonic() - seconds
        self._signalled = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def beat(self, step: int) -> None:
        """Refresh ``seconds`` and ``stop``; all processes call this after every step."""
        now = time.monotonic() - self._origin
        if self.accelerator.num_processes == 1:
            self.seconds, self.stop = now, self._signalled
        elif step % _EXCHANGE_EVERY == 0:
            mine = [now if self.accelerator.is_main_process else 0.0, float(self._signalled)]
            told = torch.tensor(mine, device=self.accelerator.device)
            seconds, signals = self.accelerator.reduce(told, "sum").tolist()
            self.seconds, self.stop = seconds, signals > 0

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True
        self._release()

    def _release(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
