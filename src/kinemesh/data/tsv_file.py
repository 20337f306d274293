"""Tab-separated files with random access by row, through a file of byte offsets beside them."""

import os
import warnings
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError
from kinemesh.files import atomic_path, write_bytes

Integers = NDArray[np.int64]

_CHUNK_BYTES = 1 << 24


class TsvFile:
    """Rows of ``name.tsv`` by number; ``name.lineidx`` holds the byte where each begins.

    Only the offsets are kept in memory. The file is opened at the first row and read without a
    shared position (POSIX ``pread``), so forked processes may use one object; a pickled one opens
    the file anew.

    Args:
        path: The ``.tsv`` file. Where its ``.lineidx`` is missing, the file is searched for line
            ends, with a warning.
        write_index: Keep the offsets of such a search beside the file.

    Raises:
        InputError: A file is missing, empty or unreadable, or the offsets do not fit the file.
    """

    def __init__(self, path: str | Path, *, write_index: bool = False) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(
                f"There is no file '{self.path}'. Check the paths in the .yaml that names it; they "
                "are relative to its folder."
            )
        self._size = self.path.stat().st_size
        self._handle: int | None = None
        self.index_path = self.path.with_suffix(".lineidx")
        if self.index_path.is_file():
            self.offsets = read_integers(self.index_path, columns=1)[:, 0]
        else:
            self.offsets = self._search(write_index)
        self._check_offsets()

    def __len__(self) -> int:
        return len(self.offsets)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handle": None}

    def row(self, number: int) -> list[str]:
        """Fields of one row, stripped of white space.

        Raises:
            InputError: The offset is not that of a row, the file is shorter than it says, or the
                row is no UTF-8 text.
        """
        try:
            return [field.strip().decode() for field in self._line(number).split(b"\t")]
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.where(number)}: expected UTF-8 text, found {error.object[:40]!r}... "
                f"({error.reason} at byte {error.start} of this column). Copy the file again."
            ) from error

    def where(self, number: int) -> str:
        """File, row and byte offset of a row, to name in a message."""
        return f"'{self.path}', row {number} (byte {self.offsets[number]})"

    def _line(self, number: int) -> bytes:
        start = int(self.offsets[number])
        last = number + 1 == len(self.offsets)
        end = self._size if last else int(self.offsets[number + 1])
        before = min(start, 1)  # the line end of the row above is read along and checked
        if not 0 <= start < end <= self._size:
            raise self._wrong(number, f"the next row is said to begin at byte {end}")
        content = os.pread(self._open(), end - start + before, start - before)
        if len(content) < end - start + before:
            raise self._wrong(number, "the file ends before the row does")
        if before and content[:1] != b"\n":
            raise self._wrong(number, "this byte is in the middle of a row")
        line = content[before:]
        line_end = line.find(b"\n")
        if line_end != len(line) - 1 and not (last and line_end < 0):
            where = start + line_end + 1 if line_end >= 0 else "a later byte"
            raise self._wrong(number, f"the next row begins at {where}, not at byte {end}")
        return line

    def _open(self) -> int:
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._handle)
        return self._handle

    def _check_offsets(self) -> None:
        if not len(self.offsets) or not self._size:
            raise InputError(f"'{self.path}': expected at least one row, found an empty file.")
        if self.offsets[-1] >= self._size:
            first = int(np.argmax(self.offsets >= self._size))
            raise self._wrong(
                first,
                f"the file has only {self._size} bytes, so {len(self.offsets) - first} of "
                f"{len(self.offsets)} rows are missing",
            )

    def _wrong(self, number: int, found: str) -> InputError:
        return InputError(
            f"{self.where(number)}: '{self.index_path.name}' does not fit the file: {found}. Copy "
            "the .tsv again if it is shorter than the original; else delete the .lineidx, which is "
            "then rebuilt."
        )

    def _search(self, write_index: bool) -> Integers:
        offsets = _row_starts(self.path)
        kept = ""
        if write_index:
            write_bytes(self.index_path, _lines(offsets))
            kept = f" and kept in '{self.index_path.name}'"
        warnings.warn(
            f"'{self.index_path}' is missing: the offsets of {len(offsets)} rows were searched in "
            f"'{self.path.name}'{kept}.",
            stacklevel=3,
        )
        return offsets


def write_tsv(path: str | Path, rows: Iterable[Sequence[str]]) -> int:
    """Write ``name.tsv`` and ``name.lineidx``, each whole or not at all.

    Args:
        path: File to write, ending in .tsv.
        rows: Fields of each row.

    Returns:
        Number of rows.

    Raises:
        InputError: A field holds a tab or a line end.
    """
    path = Path(path)
    offsets = [0]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for number, fields in enumerate(rows):
            if any(mark in field for field in fields for mark in "\t\n\r"):
                raise InputError(
                    f"'{path}', row {number}: expected fields without tabs and line ends, found "
                    f"{[field[:40] for field in fields]}. Remove them."
                )
            file.write(("\t".join(fields) + "\n").encode())
            offsets.append(file.tell())
    write_bytes(path.with_suffix(".lineidx"), _lines(np.array(offsets[:-1], dtype=np.int64)))
    return len(offsets) - 1


def read_integers(path: Path, columns: int) -> Integers:
    """Read a text file of whole numbers, ``columns`` in each line, to (N, columns) int64.

    Raises:
        InputError: The file is missing, or a line holds anything else; the message names it.
    """
    if not path.is_file():
        raise InputError(f"There is no file '{path}'. Check the paths in the .yaml that names it.")
    text = path.read_bytes().strip()
    words = text.split()
    try:
        numbers = np.array(words, dtype=np.int64)
    except (ValueError, OverflowError):
        raise _bad_line(path, columns) from None
    if words and len(numbers) != columns * (text.count(b"\n") + 1):
        raise _bad_line(path, columns)
    return numbers.reshape(-1, columns)


def _bad_line(path: Path, columns: int) -> InputError:
    expected = "one whole number" if columns == 1 else f"{columns} whole numbers"
    lines = path.read_bytes().splitlines()
    number = next((i for i, line in enumerate(lines) if not _holds_integers(line, columns)), 0)
    found = lines[number][:60].decode(errors="replace")
    return InputError(
        f"'{path}', line {number}: expected {expected}, found {found!r}. "
        "Copy the file again or make it anew."
    )


def _holds_integers(line: bytes, columns: int) -> bool:
    words = line.split()
    numbers = (word.removeprefix(b"-").isdigit() and len(word) < 19 for word in words)
    return len(words) == columns and all(numbers)


def _row_starts(path: Path) -> Integers:
    """Byte offsets of the rows, by searching for line ends piece by piece."""
    starts = [np.zeros(1, dtype=np.int64)]
    position = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            ends = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
            starts.append(ends + position + 1)
            position += len(chunk)
    offsets = np.concatenate(starts)
    return offsets[offsets < position]


def _lines(numbers: Integers) -> bytes:
    return "".join(f"{number}\n" for number in numbers.tolist()).encode()
