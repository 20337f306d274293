"""The first, the worst and the best of many, in memory that does not grow."""

import heapq
import itertools
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Ranking(Generic[Item]):
    """Keeps the first few items, and those few with the largest and the smallest error.

    Args:
        examples: How many of the first.
        ranked: How many of the worst, and of the best.

    Attributes:
        first: The first items, in their order.
        count: How many were considered.
    """

    def __init__(self, examples: int, ranked: int) -> None:
        self.first: list[Item] = []
        self.count = 0
        self._examples, self._ranked = examples, ranked
        self._worst: list[tuple[float, int, Item]] = []
        self._best: list[tuple[float, int, Item]] = []
        self._turn = itertools.count()  # breaks ties, so that items are never compared

    def consider(self, error: float, make: Callable[[], Item]) -> None:
        """Make the item, and keep it, where it belongs to the first, the worst or the best."""
        self.count += 1
        is_first = len(self.first) < self._examples
        is_worse = len(self._worst) < self._ranked or error > self._worst[0][0]
        is_better = len(self._best) < self._ranked or -error > self._best[0][0]
        if not (is_first or is_worse or is_better):
            return
        item = make()
        if is_first:
            self.first.append(item)
        if is_worse:
            self._push(self._worst, error, item)
        if is_better:
            self._push(self._best, -error, item)

    @property
    def worst(self) -> list[Item]:
        """Those with the largest error, largest first."""
        return [item for _, _, item in sorted(self._worst, reverse=True)]

    @property
    def best(self) -> list[Item]:
        """Those with the smallest error, smallest first."""
        return [item for _, _, item in sorted(self._best, reverse=True)]

    def _push(self, heap: list[tuple[float, int, Item]], rank: float, item: Item) -> None:
        # of equals the later one goes
        heapq.heappush(heap, (rank, -next(self._turn), item))
        if len(heap) > self._ranked:
            heapq.heappop(heap)
