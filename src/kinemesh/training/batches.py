"""Batches as a function of the step, so that the data position of a run is its step."""

import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from kinemesh.errors import InputError
from kinemesh.training.randomness import preserved_random_state, seed_everything
from kinemesh.training.task import Batch

_ROUNDS = 4


def shuffled(positions: NDArray[np.int64], length: int, seed: int) -> NDArray[np.int64]:
    """Indices at ``positions`` of an endless sequence of shuffled passes over a dataset.

    Every pass visits each of ``length`` indices once, in another order. No permutation is stored:
    a Feistel network permutes the next power of four, and values past the end walk on along their
    cycle (Black and Rogaway 2002), so any position of a dataset of any length costs the same.

    Args:
        positions: (N,) int64 positions from 0.
        length: Size of the dataset.
        seed: Key of the order.

    Returns:
        (N,) int64 indices in [0, length).
    """
    passes, values = np.divmod(positions, length)
    half_bits = max(1, ((length - 1).bit_length() + 1) // 2)
    keys = _mix(passes.astype(np.uint64) + _mix(np.full_like(passes, seed, dtype=np.uint64)))
    values = values.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], keys[outside], half_bits)
        outside = values >= length
    return values.astype(np.int64)


class StepBatches(Dataset[Any]):
    """Item ``step`` is the collated batch of that step, whoever asks for it and whenever.

    A dataset with a method ``set_step`` is told the step before it is asked for samples.

    Args:
        dataset: Map-style dataset with a length.
        collate: Joins a list of samples into a batch.
        batch_size: Samples per process and step.
        seed: Key of the order and of the random states that samples may use.
        process: Rank of this process.
        processes: Number of processes; together they take consecutive positions.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        collate: Callable[[list[Any]], Batch],
        *,
        batch_size: int,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        self.dataset, self.collate = dataset, collate
        self.batch_size, self.seed = batch_size, seed
        self.process, self.processes = process, processes
        self.length = len(dataset)  # type: ignore[arg-type]
        if self.length == 0:
            raise InputError("The training dataset is empty; check the paths of the recipe.")

    def indices(self, step: int) -> list[int]:
        """Dataset indices of this process at ``step``."""
        first = (step * self.processes + self.process) * self.batch_size
        positions = np.arange(first, first + self.batch_size, dtype=np.int64)
        return [int(index) for index in shuffled(positions, self.length, self.seed)]

    def __getitem__(self, step: int) -> Batch:
        indices = self.indices(step)
        if hasattr(self.dataset, "set_step"):
            self.dataset.set_step(step)
        with preserved_random_state(cuda=False):
            seed_everything(self.seed, step, self.process, cuda=False)
            if hasattr(self.dataset, "__getitems__"):
                samples = self.dataset.__getitems__(indices)
            else:
                samples = [self.dataset[index] for index in indices]
            return self.collate(samples)


def step_loader(
    batches: StepBatches, first: int, last: int, *, workers: int, pin_memory: bool
) -> Iterator[Batch]:
    """Iterate over the batches of steps ``first`` to ``last - 1`` in order."""
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(first, last),
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=_prepare_worker,
        # Without a generator of its own, the loader would draw from the global random state.
        generator=torch.Generator(),
    )
    return iter(loader)


def _prepare_worker(_worker: int) -> None:
    import cv2  # noqa: PLC0415 - only workers change the setting

    # One worker, one core: DataLoader limits torch by itself, but knows nothing of OpenCV.
    cv2.setNumThreads(0)
    # Ctrl-C and a scheduler's SIGTERM reach the whole process group, but the training process
    # needs its workers until it has written the checkpoint. When it ends, by kill -9 too, torch's
    # watchdog ends them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, _frame: FrameType | None) -> None:
    # The second one works, so that DataLoader can still terminate a worker that hangs.
    signal.signal(number, signal.SIG_DFL)


def _feistel(
    values: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int
) -> NDArray[np.uint64]:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for turn in range(_ROUNDS):
        left, right = right, left ^ (_mix(right ^ _mix(keys + np.uint64(turn))) & mask)
    return (left << shift) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def held_out_batches(
    dataset: Dataset[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    batch_size: int,
    workers: int,
) -> DataLoader[dict[str, Any]]:
    """Held-out samples in their own order; nothing is drawn from the global random state.

    Args:
        dataset: Map-style dataset with a length.
        collate: Joins a list of samples into a batch.
        batch_size: Samples at a time; the last batch may be smaller.
        workers: Processes that read; 0 for this one.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=workers,
        # without a generator of its own, the loader would draw from the global random state
        generator=torch.Generator(),
    )
