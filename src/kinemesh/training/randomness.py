"""The global random states of python, numpy and torch: seed, read, restore."""

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomState:
    """Random states of one process: ``plain`` fits into JSON, ``tensors`` into safetensors."""

    plain: dict[str, Any]
    tensors: dict[str, Tensor]


def seed_everything(*key: int, cuda: bool = True) -> None:
    """Seed python, numpy and torch from a tuple of non-negative integers, such as (seed, step)."""
    words = np.random.SeedSequence(key).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 - datasets of other people use this state
    if cuda:
        torch.manual_seed(int(words[2]))
    else:
        torch.default_generator.manual_seed(int(words[2]))


def random_state(*, cuda: bool = True) -> RandomState:
    """Read the random states of this process."""
    version, words, gauss = random.getstate()
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    plain = {
        "python": [version, list(words), gauss],
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": numpy_state["state"]["key"].tolist(),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
    }
    tensors = {"torch": torch.get_rng_state()}
    if cuda and torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return RandomState(plain, tensors)


def restore_random_state(state: RandomState) -> None:
    """Set the random states of this process to what ``random_state`` returned."""
    version, words, gauss = state.plain["python"]
    random.setstate((version, tuple(words), gauss))
    saved = state.plain["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": saved["bit_generator"],
            "state": {"key": np.asarray(saved["key"], dtype=np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(state.tensors["torch"])
    if "cuda" in state.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(state.tensors["cuda"])


@contextlib.contextmanager
def preserved_random_state(*, cuda: bool = True) -> Iterator[None]:
    """Put the random states back at the end, so that what happens inside leaves no trace."""
    state = random_state(cuda=cuda)
    try:
        yield
    finally:
        restore_random_state(state)
