"""Labelled images for classification: a folder for each class, or shards of jpg and cls.

``imagenet:FOLDER`` names a folder in ImageNet's layout, ``FOLDER/train/CLASS/*.JPEG`` and
``FOLDER/val/CLASS/*.JPEG``; a folder of class folders alone; or WebDataset's tar files in
``FOLDER/train/*.tar`` and so on, where ``name.jpg`` and ``name.cls`` (a whole number) belong
together. Tar files are indexed once and then read by place, so that a run can be resumed to the
sample, as with files.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypedDict

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.data.classification_augmentation import (
    ClassificationAugmentation,
    plain_view,
    varied_view,
)
from kinemesh.data.mesh_dataset import sample_generator
from kinemesh.errors import InputError

IMAGENET = "imagenet:"
SIDE = 224
Split = Literal["train", "val"]
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_LABEL = ".cls"


class ClassSample(TypedDict):
    """One labelled image."""

    image: Tensor
    """(3, S, S) float32, RGB, normalised as ImageNet's."""
    label: Tensor
    """() int64: number of the class."""
    row: Tensor
    """() int64: place in the data set."""


class ImageSource(Protocol):
    """Stored images with the number of their class, random access."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by number; None where the data store numbers alone."""
        ...

    @property
    def labels(self) -> Sequence[int]:
        """Class of each image."""
        ...

    def key(self, row: int) -> str:
        """What finds an image again, for people."""
        ...

    def read(self, row: int) -> bytes:
        """The stored file.

        Raises:
            InputError: It cannot be read.
        """
        ...


class ClassFolders:
    """Image files in a folder for each class; classes are numbered by their sorted names.

    Args:
        folder: Holds the folders of the classes.

    Raises:
        InputError: There is no such folder, or no image in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = tuple(sorted(entry.name for entry in _entries(folder) if entry.is_dir()))
        files = [
            (path, number)
            for number, name in enumerate(names)
            for path in sorted(_entries(folder / name))
            if path.suffix.lower() in _SUFFIXES
        ]
        if not files:
            raise InputError(
                f"'{folder}': expected a folder for each class with images "
                f"({', '.join(_SUFFIXES)}) in it, found none. Name another folder."
            )
        self.classes: tuple[str, ...] | None = names
        self.files = [path for path, _ in files]
        self.labels: Sequence[int] = [number for _, number in files]

    def key(self, row: int) -> str:
        """Class and file."""
        return str(self.files[row].relative_to(self.folder))

    def read(self, row: int) -> bytes:
        """The file's content."""
        try:
            return self.files[row].read_bytes()
        except OSError as error:
            raise InputError(f"'{self.files[row]}': cannot be read ({error.strerror}).") from error


class ClassShards:
    """Images in WebDataset's tar files, each beside a ``.cls``.

    Indexing reads the head of every member, once, when the object is made.

    Args:
        paths: The tar files, uncompressed.

    Raises:
        InputError: A file is damaged or compressed, an image has no class, or there is no image.
    """

    classes: tuple[str, ...] | None = None

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        rows = [
            (number, *entry) for number, path in enumerate(self.paths) for entry in _index(path)
        ]
        if not rows:
            raise InputError(f"'{self.paths[0].parent}': its tar files hold no image.")
        # four numbers a sample, so that millions fit into memory
        self._places = np.array(rows, dtype=np.int64)
        self.labels: Sequence[int] = self._places[:, 3].tolist()

    def key(self, row: int) -> str:
        """Tar file and the place in it."""
        shard, start = self._places[row, :2]
        return f"{self.paths[shard].name}, byte {start}"

    def read(self, row: int) -> bytes:
        """The member's content."""
        shard, start, length = (int(number) for number in self._places[row, :3])
        try:
            with self.paths[shard].open("rb") as file:
                file.seek(start)
                content = file.read(length)
        except OSError as error:
            raise InputError(f"'{self.paths[shard]}': cannot be read ({error}).") from error
        if len(content) != length:
            raise InputError(f"'{self.paths[shard]}' is cut short. Copy it again.")
        return content


def _index(path: Path) -> Iterator[tuple[int, int, int]]:
    """Start, length and class of each image of a tar file."""
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name, dot, suffix = Path(member.name).name.partition(".")
                key = f"{Path(member.name).parent}/{name}"
                kind = (dot + suffix).lower()
                if kind in _SUFFIXES:
                    pictures[key] = (member.offset_data, member.size)
                elif kind == _LABEL:
                    labels[key] = _class_number(tar, member, path)
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"'{path}': expected an uncompressed tar file ({error}). Copy it again, or unpack it."
        ) from error
    for key, place in pictures.items():
        if key not in labels:
            raise InputError(f"'{path}': the image '{key}' has no {_LABEL} beside it.")
        yield (*place, labels[key])


def _class_number(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> int:
    file = tar.extractfile(member)
    text = b"" if file is None else file.read()
    if not text.strip().isdigit():
        raise InputError(
            f"'{path}', '{member.name}': expected the number of a class, found {text[:20]!r}."
        )
    return int(text)


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"'{folder}': expected a folder ({error.strerror}). Check the path."
        ) from error


@dataclass(frozen=True)
class Part:
    """Every n-th image of each class, or the others.

    Attributes:
        every: n.
        held_out: Whether these are meant, or the rest.
    """

    every: int
    held_out: bool


def open_images(spec: str, split: Split, part: Part | None = None) -> ImageSource:
    """Open the images that ``imagenet:FOLDER`` names.

    Args:
        spec: With or without ``imagenet:``.
        split: Which of ``FOLDER/train`` and ``FOLDER/val``; a folder without both is taken as it
            is.
        part: Divide the images of a folder that has no such split.

    Raises:
        InputError: There is no image, or the folder cannot be divided.
    """
    folder = Path(spec.removeprefix(IMAGENET))
    inner = folder / split
    is_split = inner.is_dir() or (folder / ("val" if split == "train" else "train")).is_dir()
    if is_split and part is not None:
        raise InputError(f"'{folder}' has its own train and val. Leave --hold-out-every out.")
    place = inner if is_split else folder
    shards = sorted(path for path in _entries(place) if path.suffix == ".tar")
    source: ImageSource = ClassShards(shards) if shards else ClassFolders(place)
    return source if part is None else Divided(source, part)


class Divided:
    """A part of a source, whose classes keep their numbers.

    Of each class the images at places n-1, 2n-1, ... in the source's order are held out.

    Raises:
        InputError: Nothing is left.
    """

    def __init__(self, source: ImageSource, part: Part) -> None:
        if part.every < 2:
            raise InputError(f"hold_out_every: expected 2 or more, found {part.every}.")
        self.source = source
        seen: dict[int, int] = {}
        self.rows = []
        for row, label in enumerate(source.labels):
            place = seen[label] = seen.get(label, 0) + 1
            if (place % part.every == 0) == part.held_out:
                self.rows.append(row)
        if not self.rows:
            raise InputError(
                f"hold_out_every: no class has {part.every} images. Choose a smaller number."
            )
        self.classes = source.classes
        self.labels: Sequence[int] = [source.labels[row] for row in self.rows]

    def key(self, row: int) -> str:
        """That of the source."""
        return self.source.key(self.rows[row])

    def read(self, row: int) -> bytes:
        """That of the source."""
        return self.source.read(self.rows[row])


class LabelledImages(Dataset[ClassSample]):
    """Views of stored images, random access.

    In training, sample i of step t is varied by a generator seeded with (seed, t, i) alone; say t
    with `set_step`.

    Args:
        source: The images.
        side: Of the views, pixels.
        augmentation: How to vary; None gives the plain view of evaluation.
        seed: Key of the variation.
    """

    def __init__(
        self,
        source: ImageSource,
        side: int = SIDE,
        augmentation: ClassificationAugmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.source, self.side = source, side
        self.augmentation, self.seed, self.step = augmentation, seed, 0

    def __len__(self) -> int:
        return len(self.source.labels)

    def set_step(self, step: int) -> None:
        """Say which training step the next samples belong to."""
        self.step = step

    def __getitem__(self, row: int) -> ClassSample:
        """Sample ``row``.

        Raises:
            InputError: Its image is missing or damaged.
        """
        image = self.picture(row)
        if self.augmentation is None:
            view = plain_view(image, self.side)
        else:
            rng = sample_generator(self.seed, self.step, row)
            view = varied_view(image, self.side, self.augmentation, rng)
        return {
            "image": view,
            "label": torch.tensor(self.source.labels[row]),
            "row": torch.tensor(row),
        }

    def picture(self, row: int) -> Image.Image:
        """The stored image as RGB.

        Raises:
            InputError: It is missing or damaged.
        """
        content = self.source.read(row)
        try:
            return Image.open(io.BytesIO(content)).convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            raise InputError(
                f"'{self.source.key(row)}': expected an image ({error}). Copy it again, or take "
                "it out."
            ) from error


def collate_classes(samples: Sequence[ClassSample]) -> dict[str, Tensor]:
    """Stack samples to a batch: the same fields, each with a leading axis."""
    rows = [dict(sample) for sample in samples]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}  # type: ignore[misc]
