"""Top-1 and top-5 of image classifiers."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from kinemesh.data.image_folders import (
    IMAGENET,
    LabelledImages,
    Part,
    collate_classes,
    open_images,
)
from kinemesh.errors import InputError
from kinemesh.evaluation.samples import Picture
from kinemesh.models.classifiers import load_classifier

_TOP = (1, 5)


@dataclass(frozen=True, eq=False)
class ClassSamples:
    """What a classifier said of B images, and what is labelled.

    Attributes:
        keys: For each image what finds it again.
        probability: (B, K).
        label: (B,) int64.
        names: Of the classes; None where the data store numbers alone.
        picture: Gives the picture (S, S, 3) uint8 RGB of image b, as it was seen.
    """

    keys: Sequence[str]
    probability: Tensor
    label: Tensor
    names: Sequence[str] | None
    picture: Callable[[int], Picture]


ClassListener = Callable[[ClassSamples], None]
"""Called with each batch, in the order of the data set."""


@dataclass(frozen=True)
class ClassificationEvaluation:
    """What decides a run over a data set, and its score.

    Attributes:
        hold_out_every: Of a folder without train and val, score every n-th image of each class;
            None: all.
        count: How many images; None: all.
        batch_size: Images at a time.
        workers: Processes that read data.
    """

    hold_out_every: int | None = None
    count: int | None = None
    batch_size: int = 32
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("count", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, found {value}.")


@dataclass(frozen=True)
class ClassificationResult:
    """The numbers of one classifier on one data set.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        values: ``top-1`` and ``top-5`` in percent, and ``loss``, the mean cross entropy.
        count: How many images.
        classes: How many classes the network tells apart.
        view: How images were cut.
    """

    model: str
    dataset: str
    values: Mapping[str, float]
    count: int
    classes: int
    view: str

    def __str__(self) -> str:
        chance = 100 / self.classes
        return "\n".join(
            [
                f"{self.model} on {self.dataset}",
                f"  {self.count} images, {self.classes} classes (chance: {chance:.2f} % top-1)",
                f"  {self.view}",
                f"top-1  {self.values['top-1']:.2f} %",
                f"top-5  {self.values['top-5']:.2f} %",
                f"loss  {self.values['loss']:.4f}",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; a number that is not finite is null."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "values": {k: v if math.isfinite(v) else None for k, v in self.values.items()},
            "count": self.count,
            "classes": self.classes,
            "view": self.view,
        }


def is_classification_dataset(dataset: str) -> bool:
    """Whether a data set is one that `evaluate_images` takes."""
    return dataset.startswith(IMAGENET)


def evaluate_images(
    model: str | Path,
    dataset: str,
    options: ClassificationEvaluation | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    listener: ClassListener | None = None,
) -> ClassificationResult:
    """Score a classifier on its validation images.

    Args:
        model: A weight file.
        dataset: ``imagenet:`` and a folder, see `kinemesh.data.image_folders`.
        options: Count and so on.
        device: Where to compute.
        progress: Told about each batch.
        listener: Given each batch, for example to draw a report.

    Raises:
        InputError: A file is missing or damaged, or model and data do not fit together.
    """
    options = options or ClassificationEvaluation()
    network, record = load_classifier(model)
    every = options.hold_out_every
    part = None if every is None else Part(every, held_out=True)
    images = LabelledImages(open_images(dataset, "val", part), record["resolution"])
    classes = int(record["config"]["classes"])
    check_classes(images, classes, record.get("class_names"), str(model))
    rows = range(len(images))[: options.count]
    loader = DataLoader(
        Subset(images, rows),
        options.batch_size,
        collate_fn=collate_classes,
        num_workers=options.workers,
    )
    network = network.to(device)
    values = score_classes(
        network, _told(loader, len(rows), progress), torch.device(device), images, listener
    )
    side = images.side
    view = f"bicubic resize, shorter side {math.floor(side / 0.9)} px; centre crop {side} px"
    return ClassificationResult(str(model), dataset, values, len(rows), classes, view)


def check_classes(
    images: LabelledImages, classes: int, names: Sequence[str] | None, model: str
) -> None:
    """Refuse data whose classes are not the network's.

    Args:
        images: The data.
        classes: How many the network tells apart.
        names: Their names, where they are known.
        model: Name of the network, for the message.

    Raises:
        InputError: There are others.
    """
    found = images.source.classes
    largest = max(images.source.labels)
    count = largest + 1 if found is None else len(found)
    if (found is not None and count != classes) or count > classes:
        raise InputError(
            f"{model} tells {classes} classes apart, but the data have {count}. Choose a model and "
            "data of the same classes."
        )
    if found is not None and names is not None and list(found) != list(names):
        other = next(a for a, b in zip(found, names, strict=True) if a != b)
        raise InputError(
            f"{model} was trained on other classes: '{other}' of the data is none of its own at "
            "that place. Choose a model and data of the same classes."
        )


@torch.inference_mode()
def score_classes(
    network: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    device: torch.device,
    images: LabelledImages | None = None,
    listener: ClassListener | None = None,
) -> dict[str, float]:
    """Top-1 and top-5 in percent, and the mean cross entropy.

    Args:
        network: Logits (B, K) of images, on the device, in eval mode.
        batches: As `collate_classes` makes them.
        device: Where to compute.
        images: The data set, for the listener.
        listener: Given each batch.
    """
    sums, count = torch.zeros(len(_TOP) + 1, dtype=torch.float64), 0
    for batch in batches:
        label = batch["label"].to(device)
        logits = network(batch["image"].to(device)).float()
        kept = min(max(_TOP), logits.shape[1])
        hits = logits.topk(kept, dim=1).indices == label[:, None]
        numbers = [hits[:, :top].any(dim=1).sum() for top in _TOP]
        numbers.append(F.cross_entropy(logits, label, reduction="sum"))
        sums += torch.stack([number.float() for number in numbers]).cpu()
        count += len(label)
        if listener is not None and images is not None:
            listener(_class_samples(logits, label, batch, images))
    top1, top5, loss = (sums / max(count, 1)).tolist()
    return {"top-1": 100 * top1, "top-5": 100 * top5, "loss": loss}


def _class_samples(
    logits: Tensor, label: Tensor, batch: Mapping[str, Tensor], images: LabelledImages
) -> ClassSamples:
    rows = batch["row"].tolist()
    return ClassSamples(
        keys=[images.source.key(row) for row in rows],
        probability=logits.softmax(dim=1),
        label=label,
        names=images.source.classes,
        picture=lambda place: _small(images, rows[place]),
    )


def _small(images: LabelledImages, row: int) -> NDArray[np.uint8]:
    picture = images.picture(row)
    picture.thumbnail((256, 256))
    return np.asarray(picture, dtype=np.uint8)


def _told(
    batches: Iterable[dict[str, Tensor]], total: int, progress: Callable[[int, int], None] | None
) -> Iterator[dict[str, Tensor]]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch["label"])
        if progress is not None:
            progress(done, total)
