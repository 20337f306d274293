"""The TSV data sets of METRO and Mesh Graphormer: four aligned text files and a YAML file.

======================  ====================================================================
``X.img.tsv``           image key, base64 of the JPEG
``X.label.tsv``         image key, JSON list with one annotation (`MeshRecord.annotation`)
``X.hw.tsv``            image key, JSON list with height and width
``X.linelist.tsv``      numbers of the rows that form the data set
``X.yaml``              ``img``, ``label``, ``hw``, ``linelist``: paths relative to its folder
======================  ====================================================================

A composite set (``composite: true``) joins several: ``img``, ``label`` and ``hw`` are lists of
files, or a text file that lists them, whatever its suffix; each line of the line list holds a
source and a row. The key of a sample is that of ``hw``, as in the official code, or else that of
``label``.
"""

import base64
import binascii
import io
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_dataset import MeshDataset, MeshOptions
from kinemesh.data.mesh_labels import MeshRecord, kind_of, label_json
from kinemesh.data.tsv_file import Integers, TsvFile, read_integers, write_tsv
from kinemesh.errors import InputError
from kinemesh.files import write_bytes
from kinemesh.optional import require

_PARTS = ("img", "label", "hw")
_TRIED = 32  # rows that may say whether a set is of bodies or hands
_LONGEST_LIST = 1 << 20  # bytes of a text file of names; .tsv files of pictures are longer


class MeshTsvDataset(MeshDataset):
    """A single or composite TSV data set by its YAML file.

    Args:
        path: The YAML file.
        options: How samples are made.
        kind: "body" or "hand"; None tells by the first label that can be read, of some rows that
            are spread over the set.
        write_index: Keep offsets that had to be searched beside their files.

    Raises:
        InputError: A file is missing or damaged, or the files do not fit together.
        MissingExtraError: PyYAML is not installed.
    """

    def __init__(
        self,
        path: str | Path,
        options: MeshOptions | None = None,
        *,
        kind: Kind | None = None,
        write_index: bool = False,
    ) -> None:
        self.path = Path(path)
        layout = read_layout(self.path)
        self.composite = layout.composite
        self.sources = [_Source.open(files, write_index) for files in layout.sources]
        self.lines = _read_lines(layout, self.sources)
        self._told_of_keys = False
        super().__init__(self._kind() if kind is None else kind, options or MeshOptions())

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, index: int) -> MeshRecord:
        """Row ``index`` of the line list as stored; warns at the first row whose keys differ.

        Raises:
            InputError: The row is damaged; the message names file, row and byte.
        """
        return self._record(index)

    def image_keys(self) -> list[str]:
        """Key of every sample, read from the hw files; composite sets prefix that file's name."""
        keys = []
        for number, row in self.lines.tolist():
            source = self.sources[number]
            prefix = f"{source.keys.path.name}_" if self.composite else ""
            keys.append(prefix + source.keys.row(row)[0])
        return keys

    def _kind(self) -> Kind:
        """What the labels speak of; a damaged row leaves it to another one."""
        problem: InputError | None = None
        for index in np.unique(np.linspace(0, len(self) - 1, _TRIED).astype(np.int64)).tolist():
            try:
                record = self._record(index)
                return kind_of(record.annotation, record.where)
            except InputError as error:
                problem = problem or error
        raise problem or InputError(f"'{self.path}': expected at least one row, found none.")

    def _record(self, index: int) -> MeshRecord:
        number, row = (int(value) for value in self.lines[index])
        source = self.sources[number]
        label_key, label = _fields(source.label, row)
        image_key, encoded = _fields(source.img, row)
        key = source.keys.row(row)[0]
        for file, found in ((source.img, image_key), (source.label, label_key)):
            if found != key and not self._told_of_keys:
                self._told_of_keys = True
                _warn_of_keys(file, source.keys, row, (found, key))
        try:
            jpeg = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(
                f"{source.img.where(row)}: expected base64 in the last column, found "
                f"{encoded[:40]!r}... ({error}). Copy the file again."
            ) from error
        where = source.label.where(row)
        return MeshRecord(key, jpeg, _annotation(label, where), where, source.img.where(row))


def _warn_of_keys(file: TsvFile, other: TsvFile, row: int, keys: tuple[str, str]) -> None:
    warnings.warn(
        f"{file.where(row)}: the key '{keys[0]}' differs from '{keys[1]}' in '{other.path.name}'. "
        "Rows are matched by their numbers alone: see that the files belong together. Other rows "
        "are not mentioned.",
        stacklevel=4,
    )


@dataclass(frozen=True)
class TsvLayout:
    """What a YAML file names.

    Attributes:
        path: The YAML file.
        sources: For each source the files by part: img, label, and hw if there is one.
        linelist: The line list; None for all rows.
        composite: Whether the line list names sources.
    """

    path: Path
    sources: list[dict[str, Path]]
    linelist: Path | None
    composite: bool


def read_layout(path: Path) -> TsvLayout:
    """Read the YAML file of a TSV data set.

    Raises:
        InputError: It is missing, no YAML, or does not name what is needed.
        MissingExtraError: PyYAML is not installed.
    """
    yaml = require("yaml", "data")
    if not path.is_file():
        raise InputError(f"There is no file '{path}'. Give the .yaml of a TSV data set.")
    try:
        content = yaml.safe_load(path.read_bytes())
    except yaml.YAMLError as error:
        raise InputError(f"'{path}': expected YAML, found: {error}. Mend the file.") from error
    if not isinstance(content, dict) or not {"img", "label"} <= content.keys():
        raise InputError(
            f"'{path}': expected the entries img, label, hw and linelist, found "
            f"{list(content) if isinstance(content, dict) else content!r}. "
            "Name the .tsv files, relative to the folder of this file."
        )
    composite = bool(content.get("composite", False))
    parts = {
        name: _named_files(path, name, content[name], composite)
        for name in _PARTS
        if content.get(name) or name != "hw"
    }
    counts = {name: len(files) for name, files in parts.items()}
    if len(set(counts.values())) > 1:
        raise InputError(
            f"'{path}': expected as many files in each of img, label and hw, found {counts}. "
            "List one of each for every source."
        )
    sources = [
        {name: files[number] for name, files in parts.items()} for number in range(counts["img"])
    ]
    linelist = content.get("linelist")
    if composite and not linelist:
        raise InputError(f"'{path}': a composite data set needs a linelist. Name one.")
    if linelist and not isinstance(linelist, str):
        raise InputError(
            f"'{path}': 'linelist': expected the name of a file, found {linelist!r}. Name one."
        )
    return TsvLayout(path, sources, path.parent / linelist if linelist else None, composite)


def _named_files(path: Path, name: str, value: Any, composite: bool) -> list[Path]:
    """Files of one entry: a name, a list of names, or in a composite a text file of names."""
    folder = path.parent
    if not value:
        raise InputError(f"'{path}': '{name}' is empty. Name a .tsv file.")
    if composite and isinstance(value, str):
        value = _listed_names(path, name, value)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(entry, str) for entry in names):
        raise InputError(f"'{path}': '{name}': expected names of files, found {value!r}.")
    if len(names) != 1 and not composite:
        raise InputError(
            f"'{path}': '{name}' lists {len(names)} files. Say 'composite: true' or name one file."
        )
    return [folder / entry for entry in names]


def _listed_names(path: Path, name: str, value: str) -> list[str]:
    """Lines of the text file that an entry of a composite names."""
    listing = path.parent / value
    if not listing.is_file():
        raise InputError(
            f"'{path}': '{name}' names '{listing}', which does not exist. Name a text file that "
            f"lists .tsv files, or list them here: [{value}]."
        )
    with listing.open("rb") as file:
        content = file.read(_LONGEST_LIST + 1)
    try:
        names = [line.strip() for line in content.decode().splitlines() if line.strip()]
    except UnicodeDecodeError:
        names = []
    if not names or len(content) > _LONGEST_LIST or b"\t" in content:
        raise InputError(
            f"'{listing}': expected a text file that lists names of .tsv files, one a line, since "
            f"'{path.name}' is composite and names it for '{name}'; found {content[:40]!r}... If "
            f"it is itself the .tsv file, write a list: [{value}]."
        )
    return names


@dataclass(frozen=True)
class _Source:
    """The open files of one source, of equal length."""

    img: TsvFile
    label: TsvFile
    hw: TsvFile | None

    @property
    def keys(self) -> TsvFile:
        """The file whose keys name the samples."""
        return self.label if self.hw is None else self.hw

    @classmethod
    def open(cls, files: Mapping[str, Path], write_index: bool) -> "_Source":
        tsv = {name: TsvFile(path, write_index=write_index) for name, path in files.items()}
        counts = {str(file.path): len(file) for file in tsv.values()}
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{count} in '{path}'" for path, count in counts.items())
            raise InputError(
                f"Expected as many rows in the image, label and hw files, found {listed}. A file "
                "or its .lineidx is cut short, or they belong to different sets."
            )
        return cls(tsv["img"], tsv["label"], tsv.get("hw"))


def _read_lines(layout: TsvLayout, sources: list[_Source]) -> Integers:
    """(N, 2) int64: source and row of every sample."""
    if layout.linelist is None:
        rows = np.arange(len(sources[0].label), dtype=np.int64)[:, None]
        return np.concatenate([np.zeros_like(rows), rows], axis=1)
    lines = read_integers(layout.linelist, columns=2 if layout.composite else 1)
    if not layout.composite:
        lines = np.concatenate([np.zeros_like(lines), lines], axis=1)
    if not len(lines):
        raise InputError(f"'{layout.linelist}': expected at least one row, found none.")
    lengths = np.array([len(source.label) for source in sources], dtype=np.int64)
    known = (lines[:, 0] >= 0) & (lines[:, 0] < len(sources))
    known &= (lines[:, 1] >= 0) & (lines[:, 1] < lengths[np.where(known, lines[:, 0], 0)])
    if not known.all():
        first = int(np.argmin(known))
        source, row = lines[first]
        raise InputError(
            f"'{layout.linelist}', line {first}: names row {row} of source {source}, but there are "
            f"{len(sources)} source(s) with {lengths.tolist()} rows. Copy the files again."
        )
    return lines


def _fields(file: TsvFile, row: int) -> tuple[str, str]:
    """Key and last column of a row."""
    fields = file.row(row)
    if len(fields) < 2:
        raise InputError(
            f"{file.where(row)}: expected a key and a value separated by a tab, found one column: "
            f"{fields[0][:60]!r}. Copy the file again."
        )
    return fields[0], fields[-1]


def _annotation(text: str, where: str) -> Mapping[str, Any]:
    try:
        annotations = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{where}: expected JSON in the last column, found {text[:40]!r}... ({error}). "
            "Copy the file again."
        ) from error
    if not isinstance(annotations, list) or not annotations or not isinstance(annotations[0], dict):
        raise InputError(
            f"{where}: expected a JSON list with one annotation, found {text[:40]!r}. "
            "Leave rows without one out of the line list."
        )
    return annotations[0]


def write_mesh_tsv(folder: str | Path, name: str, records: Iterable[MeshRecord]) -> Path:
    """Write a TSV data set in the official layout, for `MeshTsvDataset`.

    Args:
        folder: Where to write ``name.{img,label,hw,linelist}.tsv``, their ``.lineidx`` and
            ``name.yaml``; made if it is missing.
        name: First part of the names.
        records: Rows. Each annotation needs ``center``, ``scale`` and whatever is labelled (see
            `MeshRecord`); numbers may be lists or arrays, for example::

                MeshRecord("a.jpg", jpeg, {"center": [112, 112], "scale": 0.9, "2d_joints": J3,
                    "has_2d_joints": 1, "3d_joints": J4, "has_3d_joints": 1, "pose": P,
                    "betas": B, "has_smpl": 1})

    Returns:
        The YAML file, written last.

    Raises:
        InputError: A record is not whole, or there is none.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    keys: list[str] = []
    labels: list[str] = []
    sizes: list[str] = []

    def images() -> Iterator[tuple[str, str]]:
        for number, record in enumerate(records):
            where = record.picture_place or f"record {number}"
            keys.append(record.key)
            labels.append(f"[{label_json(record.annotation)}]")
            sizes.append(json.dumps([_size(record.jpeg, where)]))
            yield record.key, base64.b64encode(record.jpeg).decode()

    if not write_tsv(folder / f"{name}.img.tsv", images()):
        raise InputError("records: expected at least one record, found none.")
    write_tsv(folder / f"{name}.label.tsv", zip(keys, labels, strict=True))
    write_tsv(folder / f"{name}.hw.tsv", zip(keys, sizes, strict=True))
    write_tsv(folder / f"{name}.linelist.tsv", ((str(number),) for number in range(len(keys))))
    entries = [f"{part}: {name}.{part}.tsv" for part in (*_PARTS, "linelist")]
    write_bytes(folder / f"{name}.yaml", ("\n".join(entries) + "\n").encode())
    return folder / f"{name}.yaml"


def _size(jpeg: bytes, where: str) -> dict[str, int]:
    try:
        with Image.open(io.BytesIO(jpeg)) as image:
            return {"height": image.height, "width": image.width}
    except OSError as error:
        raise InputError(
            f"{where}: expected an encoded picture, found {len(jpeg)} bytes of something else."
        ) from error
