"""Mesh data as WebDataset shards: tar files that are read from front to back.

Shards suit a network drive or an object store, where access by row is slow. A folder of shards
holds ``shard-000000.tar`` and so on, and ``shards.json`` with their counts. Sample ``000000042``
of a shard is the pair ``000000042.jpg``, the stored picture byte by byte, and ``000000042.json``,
its key and annotation (`kinemesh.data.mesh_labels.MeshRecord`).
"""

import contextlib
import json
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch.utils.data import IterableDataset

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_dataset import MeshDataset, MeshOptions, make_sample, sample_generator
from kinemesh.data.mesh_labels import SKELETONS, MeshRecord, label_json
from kinemesh.data.records import Sample
from kinemesh.errors import InputError
from kinemesh.files import atomic_path, write_json
from kinemesh.optional import require
from kinemesh.skeletons import Skeleton

MANIFEST = "shards.json"
_FORMAT = "kinemesh-mesh-shards-1"


def write_shards(
    dataset: MeshDataset,
    folder: str | Path,
    *,
    source: str,
    shard_size: int = 1000,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Convert a data set to shards without loss: pictures are not encoded anew.

    A shard appears under its name only when it is whole. A second call on the same folder and
    source skips the shards that are there, so an interrupted conversion goes on where it was.

    Args:
        dataset: A TSV set, FreiHAND, or any other reader of stored rows.
        folder: Where to write; made if it is missing.
        source: What is converted, for the manifest.
        shard_size: Samples in each shard.
        progress: Called after each shard with the number of samples that are done.

    Returns:
        Number of shards.

    Raises:
        InputError: A row is damaged, or the folder holds shards of another source or is a file.
        MissingExtraError: The package webdataset is not installed.
    """
    wds = require("webdataset", "data")
    if shard_size < 1:
        raise InputError(f"shard_size: expected a positive number, found {shard_size}.")
    folder = Path(folder)
    if folder.is_file():
        raise InputError(f"'{folder}' is a file, expected a folder for the shards. Name another.")
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(dataset), shard_size)
    manifest = {
        "format": _FORMAT,
        "source": source,
        "kind": dataset.kind,
        "samples": len(dataset),
        "shard_size": shard_size,
        "shards": [f"shard-{number:06d}.tar" for number in range(len(starts))],
    }
    _claim(folder, manifest)
    for name, start in zip(cast(list[str], manifest["shards"]), starts, strict=True):
        end = min(start + shard_size, len(dataset))
        if not (folder / name).is_file():
            with (
                atomic_path(folder / name) as temporary,
                temporary.open("wb") as file,
                # a fixed time makes the same samples give the same bytes
                contextlib.closing(wds.TarWriter(file, encoder=False, mtime=0)) as writer,
            ):
                for index in range(start, end):
                    writer.write(_entry(index, dataset.read(index)))
        if progress is not None:
            progress(end)
    sizes = [(folder / name).stat().st_size for name in cast(list[str], manifest["shards"])]
    write_json(folder / MANIFEST, manifest | {"complete": True, "bytes": sizes})
    return len(starts)


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Mark a folder as the target of one conversion, or check that it already is."""
    path = folder / MANIFEST
    if path.is_file():
        found = _load_manifest(path)
        different = [name for name, value in manifest.items() if found.get(name) != value]
        if different:
            raise InputError(
                f"'{folder}' holds shards of another conversion: {different[0]} is "
                f"{found.get(different[0])!r} there and {manifest[different[0]]!r} now. "
                "Choose another folder, or delete that one."
            )
    elif any(folder.iterdir()):
        raise InputError(
            f"'{folder}': expected an empty folder or one of an earlier conversion, found files "
            "without a shards.json. Choose another folder."
        )
    else:
        write_json(path, manifest | {"complete": False})


def _entry(index: int, record: MeshRecord) -> dict[str, Any]:
    key = json.dumps(record.key, ensure_ascii=False)
    text = f'{{"key": {key}, "annotation": {label_json(record.annotation)}}}'
    return {"__key__": f"{index:09d}", "jpg": record.jpeg, "json": text.encode()}


class MeshShards(IterableDataset[Sample]):
    """Samples of a folder of shards, equal to those of the data set that was converted.

    Processes and ``DataLoader`` workers share the shards among them, so there should be several for
    each. Augmentation follows `kinemesh.data.mesh_dataset.MeshDataset`: sample i of step (or pass)
    t depends on (seed, t, i) alone. Order: as converted, unless ``shuffle`` is positive.

    Args:
        folder: Folder with ``shards.json``.
        options: How samples are made.
        shuffle: Samples held back to draw from at random; the order of the shards is drawn too.

    Raises:
        InputError: The conversion is not finished, ``shards.json`` is damaged, or a shard is
            missing.
        MissingExtraError: The package webdataset is not installed.
    """

    def __init__(
        self, folder: str | Path, options: MeshOptions | None = None, *, shuffle: int = 0
    ) -> None:
        require("webdataset", "data")
        self.folder, self.options = Path(folder), options or MeshOptions()
        self.shuffle, self.step = shuffle, 0
        manifest = _load_manifest(self.folder / MANIFEST)
        if not manifest.get("complete"):
            raise InputError(
                f"'{self.folder}': the conversion of these shards was not finished. Run it again."
            )
        _check_manifest(self.folder / MANIFEST, manifest)
        self.kind: Kind = manifest["kind"]
        self.samples: int = manifest["samples"]
        self.paths = [self.folder / name for name in manifest["shards"]]
        damaged = [
            path.name
            for path, size in zip(self.paths, manifest["bytes"], strict=True)
            if not path.is_file() or path.stat().st_size != size
        ]
        if damaged:
            raise InputError(
                f"'{self.folder}': {len(damaged)} of {len(self.paths)} shards are missing or cut "
                f"short, first '{damaged[0]}'. Copy them again."
            )

    def __len__(self) -> int:
        return self.samples

    @property
    def skeleton(self) -> Skeleton:
        """The joint set of the labels."""
        return SKELETONS[self.kind]

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def __iter__(self) -> Iterator[Sample]:
        for index, record in self.records():
            rng = sample_generator(self.options.seed, self.step, index)
            yield make_sample(record, self.kind, self.options, rng)

    def records(self) -> Iterator[tuple[int, MeshRecord]]:
        """Index in the converted data set and stored row of each sample of this worker.

        Raises:
            InputError: A shard is damaged.
        """
        wds = require("webdataset", "data")
        paths = [str(path) for path in self.paths]
        if self.shuffle > 0:
            np.random.RandomState([self.options.seed % 2**32, self.step % 2**32]).shuffle(paths)
        pipeline = wds.WebDataset(
            paths,
            shardshuffle=False,
            nodesplitter=wds.split_by_node,
            workersplitter=wds.split_by_worker,
            empty_check=False,  # a worker without a shard is no error
        )
        if self.shuffle > 0:
            key = f"{self.options.seed} {self.step}"
            pipeline = pipeline.shuffle(self.shuffle, rng=random.Random(key))
        try:
            for entry in pipeline:
                yield _stored(entry)
        except InputError:
            raise
        except (OSError, tarfile.TarError, ValueError) as error:  # they say which file
            raise InputError(f"A shard is damaged: {error}. Copy it again.") from error


def _stored(entry: dict[str, Any]) -> tuple[int, MeshRecord]:
    where = f"'{entry.get('__url__')}', sample {entry.get('__key__')}"
    try:
        content = json.loads(entry["json"])
        key, annotation = content["key"], content["annotation"]
        if not isinstance(key, str) or not isinstance(annotation, dict):
            raise TypeError("key, annotation")
        return int(entry["__key__"]), MeshRecord(key, entry["jpg"], annotation, where)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{where}: expected a picture (.jpg) and its label (.json), found "
            f"{', '.join(name for name in entry if not name.startswith('__'))}. "
            "Convert the data set again."
        ) from error


def _load_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"There is no file '{path}'. Name a folder that 'kinemesh data convert' wrote."
        ) from error
    except ValueError as error:
        raise InputError(
            f"'{path}': expected JSON ({error}). Convert the data set again."
        ) from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise InputError(f"'{path}': expected the format {_FORMAT}. Convert the data set again.")
    return manifest


def _check_manifest(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a ``shards.json`` whose entries are not what `write_shards` writes."""
    shards, sizes = manifest.get("shards"), manifest.get("bytes")
    names = isinstance(shards, list) and all(map(_is_plain_name, shards))
    wanted = {
        "kind": (f"one of {', '.join(SKELETONS)}", manifest.get("kind") in list(SKELETONS)),
        "samples": ("a whole number", _is_count(manifest.get("samples"))),
        "shards": ("names of files in this folder", names),
        "bytes": (
            "the size of each shard",
            isinstance(sizes, list) and names and len(sizes) == len(shards or ()),
        ),
    }
    for name, (expected, fits) in wanted.items():
        if not fits:
            raise InputError(
                f"'{path}': '{name}': expected {expected}, found "
                f"{str(manifest.get(name, 'nothing'))[:60]}. Convert the data set again."
            )


def _is_plain_name(value: object) -> bool:
    return isinstance(value, str) and Path(value).name == value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0
