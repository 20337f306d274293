"""Learning POTTER's image classifier, whose weights its pose networks begin with."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.data.classification_augmentation import ClassificationAugmentation
from kinemesh.data.image_folders import (
    IMAGENET,
    SIDE,
    ClassSample,
    LabelledImages,
    Part,
    Split,
    collate_classes,
    open_images,
)
from kinemesh.data.mixing import Mixing, mix
from kinemesh.errors import InputError
from kinemesh.evaluation.classification import check_classes, score_classes
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from kinemesh.models.potter_classifier import PotterClassifier, PotterClassifierConfig
from kinemesh.models.potter_variants import classifier_record, potter_variant_of
from kinemesh.models.registry import save_model
from kinemesh.training.batches import held_out_batches
from kinemesh.training.config import EpochCosineConfig, Recipe
from kinemesh.training.schedules import steps_per_epoch

Batch = Mapping[str, Tensor]
LR = 2e-3
"""Published peak learning rate of a batch of `LR_BATCH` samples over all processes."""
LR_BATCH = 1024
LOWEST_LR = 1e-6
PROCESSES = 8
WEIGHT_DECAY = 0.05


@dataclass(kw_only=True)
class ClassifierRecipe(Recipe):
    """The published training of a classifier on ImageNet-1k, or the same on other images."""

    network: PotterClassifierConfig = field(default_factory=PotterClassifierConfig)
    """Sizes of the network."""
    schedule: EpochCosineConfig = field(default_factory=EpochCosineConfig)
    """Learning rate over time."""
    side: int = SIDE
    """Side of the views in pixels."""
    data: str = ""
    """What to train on: imagenet:FOLDER with train/ and val/, each with a folder or with tar shards
    for the classes; or with the folders of the classes alone."""
    hold_out_every: int | None = None
    """Of a folder without train/ and val/: every n-th image of each class is held out."""
    augment: bool = True
    """Vary the images at random."""
    augmentation: ClassificationAugmentation = field(default_factory=ClassificationAugmentation)
    """How."""
    mixing: Mixing = field(default_factory=Mixing)
    """How batches are mixed, and the smoothing of labels."""
    measure_epochs: int = 1
    """Epochs between validations and checkpoints, where their intervals in steps are 0."""
    validation_batch_size: int = 64
    """Images at once in validation."""

    def completed(self, processes: int) -> Self:
        """Check the data, and work out steps, learning rate and intervals.

        Raises:
            InputError: The data are missing, or have other classes than the network.
        """
        images = self.open_training()
        check_classes(images, self.network.classes, None, "The network of this recipe")
        if self.has_validation:
            names = images.source.classes
            check_classes(self.open_validation(), self.network.classes, names, "This recipe")
        updates = steps_per_epoch(len(images), self.batch_size, processes)
        schedule = self.schedule
        rate = self.optim.lr or published_lr(self.batch_size * processes)
        schedule = replace(
            schedule,
            steps_per_epoch=schedule.steps_per_epoch or updates,
            first_lr_ratio=schedule.first_lr_ratio or min(1.0, LOWEST_LR / rate),
            final_lr_ratio=schedule.final_lr_ratio or min(1.0, LOWEST_LR / rate),
        )
        interval = self.measure_epochs * updates
        return replace(
            self,
            optim=replace(self.optim, lr=rate),
            schedule=schedule,
            steps=self.steps or (schedule.epochs + schedule.cooldown_epochs) * updates,
            validate_every=self.validate_every or interval,
            checkpoint_every=self.checkpoint_every or interval,
        )

    def departures(self, processes: int) -> list[str]:
        """How the run differs from the published one."""
        optim, schedule, published = self.optim, self.schedule, EpochCosineConfig()
        pairs: list[tuple[str, Any, Any]] = [
            ("side of the views", SIDE, self.side),
            ("batch over all processes", PROCESSES * 128, processes * self.batch_size),
            ("peak learning rate", published_lr(processes * self.batch_size), optim.lr),
            ("weight decay", WEIGHT_DECAY, optim.weight_decay),
            ("epochs of the cosine", published.epochs, schedule.epochs),
            ("epochs of warm-up", published.warmup_epochs, schedule.warmup_epochs),
            ("epochs of cool-down", published.cooldown_epochs, schedule.cooldown_epochs),
            ("drop path", 0.1, self.network.drop_path),
            ("variation", ClassificationAugmentation(), self.augmentation),
            ("mixing", Mixing(), self.mixing),
        ]
        notes = [f"{name}: {now}, published {then}" for name, then, now in pairs if now != then]
        if potter_variant_of(self.network) is None:
            notes.append("network: another one, published S12 and S24")
        if not self.augment:
            notes.append("images are not varied")
        if self.mixed_precision == "no":
            notes.append("float32, published mixed precision")
        return notes

    @property
    def has_validation(self) -> bool:
        """Whether there are images to validate on."""
        folder = Path(self.data.removeprefix(IMAGENET))
        return self.hold_out_every is not None or (folder / "val").is_dir()

    def open_training(self) -> LabelledImages:
        """Open the training images."""
        return self._open("train", self.augmentation if self.augment else None)

    def open_validation(self) -> LabelledImages:
        """Open the held-out images, in their plain view."""
        return self._open("val", None)

    def _open(
        self, split: Split, augmentation: ClassificationAugmentation | None
    ) -> LabelledImages:
        if not self.data.startswith(IMAGENET):
            raise InputError(
                f"--data: expected {IMAGENET}FOLDER with labelled images, found '{self.data}'. "
                "kinemesh ships no data set."
            )
        every = self.hold_out_every
        part = None if every is None else Part(every, held_out=split == "val")
        return LabelledImages(
            open_images(self.data, split, part), self.side, augmentation, self.seed
        )

    def build_task(self) -> "ClassifierTask":
        """Build the task."""
        return ClassifierTask(self)


def published_lr(batch: int) -> float:
    """Peak learning rate for a batch over all processes; it grows with the batch."""
    return LR * batch / LR_BATCH


class ClassifierTask:
    """The task behind a `ClassifierRecipe`; see `kinemesh.training.task.Task`."""

    def __init__(self, recipe: ClassifierRecipe) -> None:
        self.recipe = recipe

    @property
    def metric(self) -> str | None:
        """Share of images whose class is not found, in percent."""
        return "top1_error" if self.recipe.has_validation else None

    def build_model(self) -> nn.Module:
        """Build the network."""
        return PotterClassifier(self.recipe.network)

    @functools.cached_property
    def _training(self) -> LabelledImages:
        return self.recipe.open_training()

    def train_dataset(self) -> Dataset[ClassSample]:
        """The images of the recipe."""
        return self._training

    def collate(self, samples: Sequence[ClassSample]) -> dict[str, Tensor]:
        """Stack samples and mix them; the loop seeds torch for each batch."""
        batch = collate_classes(samples)
        rng = RandomState(int(torch.randint(2**31, ())))
        classes = self.recipe.network.classes
        image, target = mix(batch["image"], batch["label"], classes, self.recipe.mixing, rng)
        return {"image": image, "target": target}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Cross entropy with the mixed targets."""
        return {"total": F.cross_entropy(model(batch["image"]).float(), batch["target"])}

    @functools.cached_property
    def _held_out(self) -> Iterable[dict[str, Tensor]]:
        return held_out_batches(
            self.recipe.open_validation(),
            collate_classes,
            self.recipe.validation_batch_size,
            self.recipe.workers,
        )

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score held-out images."""
        values = score_classes(model, self._held_out, device)
        return {
            "top1_error": 100 - values["top-1"],
            "top5_error": 100 - values["top-5"],
            "loss": values["loss"],
        }

    @torch.inference_mode()
    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Held-out images with a green (right) or red (wrong) frame."""
        batch = next(iter(self._held_out))
        image = batch["image"][:12]
        found = model(image.to(device)).argmax(dim=1).cpu()
        return framed_row(image, found == batch["label"][:12])

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file, with the names of the classes."""
        recipe = self.recipe
        names = self._training.source.classes
        record = classifier_record(recipe.network, recipe.side) | {
            "family": "potter-classifier",
            "variant": potter_variant_of(recipe.network),
            "class_names": None if names is None else list(names),
            "training": dict(metadata),
        }
        save_model(path, model, None, record, half=False)


def framed_row(image_B3SS: Tensor, right_B: Tensor) -> NDArray[np.uint8]:
    """RGB (128, B * 128, 3): normalised images in frames, green where ``right_B`` (B,) is true."""
    cells = []
    for image, right in zip(image_B3SS, right_B.tolist(), strict=True):
        plain = image.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN
        pixels = (plain * 255).round().clip(0, 255).astype(np.uint8)
        cell = np.asarray(cv2.resize(pixels, (128, 128)), dtype=np.uint8)
        cv2.rectangle(cell, (0, 0), (127, 127), (60, 170, 80) if right else (210, 60, 50), 5)
        cells.append(cell)
    return np.concatenate(cells, axis=1)
