"""HybrIK's data sets one by one and mixed as POTTER's training mixes them."""

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from kinemesh.data.hybrik_crop import SIDE
from kinemesh.data.hybrik_json import HybrikTable, Split, read_hybrik
from kinemesh.data.hybrik_labels import HybrikName, make_sample
from kinemesh.data.hybrik_records import HybrikSample
from kinemesh.data.mesh_dataset import sample_generator
from kinemesh.errors import InputError

PREFIXES: dict[str, HybrikName] = {
    "h36m-hybrik:": "h36m",
    "3dpw-hybrik:": "3dpw",
    "3dhp-hybrik:": "3dhp",
    "coco-hybrik:": "coco",
}
"""How the command line and recipes name a data set; a folder or file follows."""
KNOWN_HYBRIK = tuple(f"{prefix}FOLDER" for prefix in PREFIXES)
MIX: dict[HybrikName, float] = {"h36m": 0.3, "coco": 0.4, "3dhp": 0.1, "3dpw": 0.2}
"""Share of each data set in the published training."""


class HybrikDataset(Dataset[HybrikSample]):
    """The people of one file.

    In training, sample i of step t is varied by a generator that is seeded with (seed, t, i) alone.

    Args:
        table: What the file holds.
        train: Vary the samples.
        seed: Key of the variation.
        size: Side of the crops.
    """

    def __init__(
        self, table: HybrikTable, *, train: bool = False, seed: int = 0, size: int = SIDE
    ) -> None:
        self.table = table
        self.train, self.seed, self.size = train, seed, size
        self.step = 0

    def __len__(self) -> int:
        return len(self.table)

    def set_step(self, step: int) -> None:
        """Say which training step the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> HybrikSample:
        """Sample ``index``."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} samples")
        index %= len(self)
        return self.sample(index, sample_generator(self.seed, self.step, index))

    def sample(self, index: int, rng: np.random.RandomState) -> HybrikSample:
        """Sample ``index``, varied by a generator of your own, which evaluation ignores."""
        return make_sample(self.table.label(index), rng if self.train else None, self.size)


class HybrikMix(Dataset[HybrikSample]):
    """Several data sets, drawn by their shares; twice as long as the largest.

    Position i of the mix is row i of the drawn data set, counted round and round; the last round
    that a data set cannot fill is drawn at random, so that no row is preferred.

    Args:
        parts: The data sets.
        shares: Of each; they are scaled to a sum of one.
        seed: Key of the draws.

    Raises:
        InputError: There is no data set, or no positive share for each.
    """

    def __init__(
        self, parts: Sequence[HybrikDataset], shares: Sequence[float], seed: int = 0
    ) -> None:
        if not parts or len(parts) != len(shares) or min(shares) <= 0:
            raise InputError(
                f"shares: expected a positive share for each of {len(parts)} data sets, found "
                f"{list(shares)}."
            )
        self.parts = tuple(parts)
        self.bounds = np.cumsum(shares) / np.sum(shares)
        self.seed, self.step = seed, 0
        self.length = 2 * max(len(part) for part in parts)

    def __len__(self) -> int:
        return self.length

    def set_step(self, step: int) -> None:
        """Say which training step the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> HybrikSample:
        """Position ``index`` of the mix."""
        part, row, rng = self.choose(index)
        return self.parts[part].sample(row, rng)

    def choose(self, index: int) -> tuple[int, int, np.random.RandomState]:
        """Data set and row of a position, and the generator that varies the sample."""
        rng = sample_generator(self.seed, self.step, index)
        part = int(np.searchsorted(self.bounds, rng.random_sample(), side="right"))
        part = min(part, len(self.parts) - 1)
        count = len(self.parts[part])
        whole = self.length // count * count
        return part, int(rng.randint(count)) if index >= whole else index % count, rng


def names_hybrik(spec: str) -> bool:
    """Whether a name belongs to a data set of this module."""
    return spec.startswith(tuple(PREFIXES))


def open_hybrik(
    spec: str, *, split: Split = "test", train: bool = False, seed: int = 0, size: int = SIDE
) -> HybrikDataset:
    """Open a data set by name.

    Args:
        spec: ``h36m-hybrik:``, ``3dpw-hybrik:``, ``3dhp-hybrik:`` or ``coco-hybrik:`` and a folder
            or file.
        split: Which file of a folder.
        train: Vary the samples as in training.
        seed: Key of the variation.
        size: Side of the crops.

    Raises:
        InputError: There is no such data set, or it is damaged.
    """
    for prefix, name in PREFIXES.items():
        place = spec.removeprefix(prefix)
        if place != spec and place:
            table = read_hybrik(name, place, split)
            return HybrikDataset(table, train=train, seed=seed, size=size)
    raise InputError(f"There is no data set '{spec}'. Known: {', '.join(KNOWN_HYBRIK)}.")
