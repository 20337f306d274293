"""Stages that work at the same time, each in a thread of its own, with short queues between them.

A stage is an iterator; `in_thread` lets it run ahead of whoever takes from it. The heavy parts of
decoding, the network, drawing and encoding leave Python's lock, so that they share the cores.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Full, Queue
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_WAIT_S = 0.1


@dataclass
class StageClock:
    """Seconds that each stage worked; stages at the same time add up to more than went by.

    Attributes:
        seconds: By the name of the stage, in the order of first use.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Count the time inside for a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - start
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + passed

    def timed(self, stage: str, items: Iterator[T]) -> Iterator[T]:
        """Count the time that an iterator takes for its items."""
        while True:
            with self.measure(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def shares(self) -> dict[str, float]:
        """Part of each stage in the work of all of them, adding up to 1."""
        total = sum(self.seconds.values())
        return {stage: seconds / total for stage, seconds in self.seconds.items()} if total else {}


def in_thread(items: Iterator[T], depth: int = 2) -> Iterator[T]:
    """Run an iterator in a thread, at most ``depth`` items ahead.

    An error in the thread is raised here after the items before it. Where the taker stops early,
    the iterator is closed in its thread before this returns.
    """
    runner = _Runner(items, depth)
    try:
        yield from runner
    finally:
        runner.stop()


@dataclass(frozen=True)
class _Failure:
    error: BaseException


_END = object()


class _Runner(Generic[T]):
    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._queue: Queue[Any] = Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        while True:
            item = self._take()
            if item is _END:
                return
            if isinstance(item, _Failure):
                raise item.error
            yield item

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _take(self) -> Any:
        while True:  # with a limit, so that Ctrl-C is noticed on every system
            try:
                return self._queue.get(timeout=_WAIT_S)
            except Empty:
                continue

    def _run(self) -> None:
        last: Any = _END
        try:
            for item in self._items:
                if not self._give(item):
                    break
        except BaseException as error:
            last = _Failure(error)
        finally:
            close = getattr(self._items, "close", None)
            if close is not None:
                close()
            self._give(last)

    def _give(self, item: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=_WAIT_S)
            except Full:
                continue
            return True
        return False
