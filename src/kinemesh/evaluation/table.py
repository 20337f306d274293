"""Numbers of each sample, collected over batches and processes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kinemesh.errors import InputError


class SampleTable:
    """A row for each sample of a data set, filled batch by batch, in any order.

    The numbers stay on the device until `collect` asks for them, so that adding a batch waits for
    nothing; a few numbers a sample are little beside a batch of images. Since means are taken at
    the end, over rows in the order of the data set, they do not depend on how samples were dealt
    to batches and processes, to the bit. A sample that occurs twice, as when a sampler fills up
    the last round, counts once.
    """

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._columns: list[Mapping[str, Tensor]] = []

    def add(self, rows: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Add B samples.

        Args:
            rows: (B,) int64 on the CPU, their places in the data set.
            columns: (B, ...) each, the same names in every call.

        Raises:
            InputError: Lengths or names do not fit.
        """
        names = self._columns[0].keys() if self._columns else columns.keys()
        lengths = {len(values) for values in columns.values()}
        if columns.keys() != names or lengths - {len(rows)}:
            raise InputError(
                f"columns: expected {', '.join(names)} with {len(rows)} rows, found "
                f"{ {name: len(values) for name, values in columns.items()} }."
            )
        self._rows.append(rows)
        self._columns.append(columns)

    def collect(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Rows (N,) in ascending order without repeats, and their columns, on the CPU.

        Raises:
            InputError: The table is empty.
        """
        if not self._rows:
            raise InputError("There is no sample to score. Check the data set and the count.")
        rows = torch.cat(self._rows)
        order = torch.argsort(rows, stable=True)
        ascending = rows[order]
        first = torch.ones_like(ascending, dtype=torch.bool)
        first[1:] = ascending[1:] != ascending[:-1]
        kept = order[first]
        columns = {
            name: torch.cat([part[name] for part in self._columns]).cpu()[kept]
            for name in self._columns[0]
        }
        return rows[kept], columns

    @classmethod
    def merged(cls, tables: Sequence["SampleTable"]) -> "SampleTable":
        """One table of several, for example of several processes."""
        table = cls()
        for other in tables:
            for rows, columns in zip(other._rows, other._columns, strict=True):
                table.add(rows, columns)
        return table

    def gathered(self) -> "SampleTable":
        """The table of all processes of ``torch.distributed``, in each of them; else itself."""
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            return self
        own = [
            (rows, {name: values.cpu() for name, values in columns.items()})
            for rows, columns in zip(self._rows, self._columns, strict=True)
        ]
        everyone: list[list[tuple[Tensor, dict[str, Tensor]]]] = [
            [] for _ in range(distributed.get_world_size())
        ]
        distributed.all_gather_object(everyone, own)
        table = type(self)()
        for part in everyone:
            for rows, columns in part:
                table.add(rows, columns)
        return table
