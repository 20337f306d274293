"""Learning PRTR's two-stage networks: keypoints of one person in a crop (Li et al., CVPR 2021)."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.data.keypoint_crop import ColorOrder
from kinemesh.data.keypoint_dataset import KeypointOptions, MirroredCrops
from kinemesh.data.keypoint_records import KeypointSample, collate_keypoints
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.data.synthetic.scene_crops import SyntheticKeypoints
from kinemesh.errors import InputError
from kinemesh.evaluation.coco_ap import evaluate_coco
from kinemesh.evaluation.coco_ap import read_labels as read_coco_labels
from kinemesh.evaluation.keypoint_readout import (
    KeypointPerson,
    people_of,
    person_columns,
    predict_keypoints,
    read_out,
)
from kinemesh.evaluation.pckh import evaluate_mpii
from kinemesh.evaluation.pckh import read_labels as read_mpii_labels
from kinemesh.keypoint_losses import KeypointSetLoss, KeypointTargets
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from kinemesh.models.prtr import PrtrConfig
from kinemesh.models.prtr_variants import get_keypoint_variant, keypoint_record
from kinemesh.models.registry import save_model
from kinemesh.optional import require
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import COCO17, MPII16, Skeleton
from kinemesh.training.batches import held_out_batches
from kinemesh.training.config import OptimConfig, Recipe
from kinemesh.training.prtr_checks import check_queries, validation_notes
from kinemesh.training.prtr_networks import (
    KEPT_IN_MEMORY,
    KeptSamples,
    PrtrBackbone,
    PrtrNetwork,
    build_prtr,
    first_images,
    prepare_prtr,
    prtr_parameter_groups,
)
from kinemesh.training.prtr_published import (
    CLIP_NORM,
    FACTOR,
    LR,
    PROCESSES,
    PRTR_RUNS,
    WEIGHT_DECAY,
)
from kinemesh.training.schedules import steps_per_epoch

Batch = Mapping[str, Tensor]
AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)
SYNTHETIC_PEOPLE = "synthetic-people"
HRNET_STRIDE = 32
"""Sides of HRNet's images are multiples of it, in pixels."""
_FORMS = f"coco:FOLDER, mpii:FOLDER or {SYNTHETIC_PEOPLE}"


@dataclass(kw_only=True)
class PrtrLossWeights:
    """Weights of the set loss."""

    coordinates: float = 5.0
    """Of places beside classes."""
    background: float = 0.1
    """Of queries without a joint in the classification loss."""


@dataclass(kw_only=True)
class PrtrRecipe(Recipe):
    """A published run of PRTR's two-stage networks, or the same on other data and sizes."""

    published: str = "prtr-coco-res50-384x288"
    """The published run that this one follows, a key of `prtr_published.PRTR_RUNS`."""
    network: PrtrConfig = field(default_factory=PrtrConfig)
    """Sizes of the transformer and the heads."""
    backbone: PrtrBackbone = field(default_factory=PrtrBackbone)
    """The network before the transformer."""
    size: tuple[int, int] = (288, 384)
    """Width and height of the crop in pixels."""
    order: ColorOrder = "bgr"
    """Order of the colour channels that the network sees."""
    data: str = ""
    """What to train on: coco:FOLDER, mpii:FOLDER (or a file in place of the folder), or
    synthetic-people."""
    init: Path | None = None
    """Weights to start from: ImageNet's of the backbone, or of a whole network."""
    augment: bool = True
    """Vary the samples at random as published."""
    mirror_only: bool = False
    """Vary nothing but half of the crops, mirrored as the flip test does: for small crops."""
    validation_data: str = ""
    """Labelled data that choose the best weights; without it the last weights are kept."""
    validation_labels: Path | None = None
    """MPII: gt_valid.mat, where the file of the validation data has no head boxes."""
    protocol: Literal["own", "published"] = "published"
    """What chooses the best weights: AP or PCKh with flip test, or the mean distance of joints."""
    weights: PrtrLossWeights = field(default_factory=PrtrLossWeights)
    """Weights of the loss terms."""
    samples: int = 20_000
    """Synthetic data: how many different scenes."""
    validation_samples: int = 256
    """Synthetic data: how many held-out scenes."""
    validation_batch_size: int = 64
    """Crops at once in validation."""
    measure_epochs: int = 1
    """Epochs between validations and checkpoints, where their intervals in steps are 0."""

    @property
    def skeleton(self) -> Skeleton:
        """The joints of the data."""
        return MPII16 if self.data.startswith("mpii:") else COCO17

    def completed(self, processes: int) -> Self:
        """Check what the user has to give, count the data and turn epochs into steps.

        Raises:
            InputError: Data or initial weights are missing; the message names the option.
        """
        self._check_sources()
        count = len(self.open_training())  # type: ignore[arg-type]
        return in_epochs(self, count, processes)

    def _check_sources(self) -> None:
        if not self.data:
            run = PRTR_RUNS[self.published]
            names = {"coco": "COCO's keypoints (train2017)", "mpii": "MPII Human Pose"}
            raise InputError(
                f"This recipe trains on {names[run.data]}. Say where it is with --data "
                f"({run.data}:FOLDER); kinemesh ships no data set."
            )
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init: there is no file '{self.init}'. Check the path.")
        if self.network.joints != len(self.skeleton):
            raise InputError(
                f"--data: '{self.data}' has {len(self.skeleton)} joints, but the network of this "
                f"recipe has {self.network.joints}. Choose a recipe for this data."
            )
        check_queries("--network.queries", self.network.queries, self.network.joints)
        if self.backbone.name == "hrnet" and any(side % HRNET_STRIDE for side in self.size):
            raise InputError(
                f"--size: expected sides that are multiples of {HRNET_STRIDE} px, as HRNet needs "
                f"them, found {self.size[0]} x {self.size[1]}."
            )
        if self.measures_published:
            self._check_protocol()

    @property
    def is_published_network(self) -> bool:
        """Whether network, crop and colours are those of the published run."""
        variant = get_keypoint_variant(self.published)
        published = (variant.config, dict(variant.backbone), variant.size, variant.order)
        return published == (self.network, self.backbone.spec(), tuple(self.size), self.order)

    @property
    def measures_published(self) -> bool:
        """Whether AP or PCKh is computed."""
        stored = self.validation_data not in {"", SYNTHETIC_PEOPLE}
        return stored and self.protocol == "published"

    def _check_protocol(self) -> None:
        """A missing package or head box is better found now than after the first epoch."""
        if self.skeleton == COCO17:
            require("faster_coco_eval", "eval")
        else:
            read_mpii_labels(self._mpii_labels())

    def _mpii_labels(self) -> Path:
        if self.validation_labels is not None:
            return self.validation_labels
        dataset = self.open_validation()
        assert isinstance(dataset, MpiiKeypoints)
        official = dataset.path.parent / "gt_valid.mat"
        return official if official.is_file() else dataset.path

    def departures(self, processes: int) -> list[str]:
        """How this run differs from the published one, one phrase each."""
        run, variant = PRTR_RUNS[self.published], get_keypoint_variant(self.published)
        optim, schedule = self.optim, self.schedule
        drops = tuple(drop / run.epochs for drop in run.drops)
        pairs: list[tuple[str, Any, Any]] = [
            ("backbone", PrtrBackbone.of_spec(variant.backbone), self.backbone),
            ("network", variant.config, self.network),
            ("crop", variant.size, tuple(self.size)),
            ("colour order", variant.order, self.order),
            ("batch per process", run.batch_size, self.batch_size),
            ("processes", PROCESSES, processes),
            ("epochs", run.epochs, schedule.epochs),
            ("drops of the learning rate", drops, tuple(schedule.step_at)),
            ("factor of a drop", FACTOR, schedule.factor),
            ("learning rate", LR, optim.lr),
            ("backbone's learning rate", run.backbone_lr_scale, optim.backbone_lr_scale),
            ("weight decay", WEIGHT_DECAY, optim.weight_decay),
            ("largest norm of gradients", CLIP_NORM, optim.clip_norm),
            ("loss weights", PrtrLossWeights(), self.weights),
            ("data", run.data, self.data.split(":")[0]),
        ]
        notes = [f"{name} {now}, published {then}" for name, then, now in pairs if now != then]
        if not self.augment:
            notes.append("samples are not varied")
        elif self.mirror_only:
            notes.append("finished crops are mirrored, and neither scaled nor turned")
        if self.init is None:
            notes.append("starts from random weights, published from ImageNet's")
        notes += validation_notes(self.data, self.validation_data)
        if not self.measures_published:
            notes.append("weights not chosen by the published score")
        if self.steps not in {0, schedule.epochs * schedule.steps_per_epoch}:
            notes.append(f"stops after {self.steps} steps")
        return notes

    def open_training(self) -> Dataset[KeypointSample]:
        """Open the training data."""
        dataset = self._open(self.data, train=True)
        if not (self.augment and self.mirror_only):
            return dataset
        if len(dataset) <= KEPT_IN_MEMORY:  # type: ignore[arg-type]
            dataset = KeptSamples(dataset)
        return MirroredCrops(dataset, self.skeleton, self.seed)

    def open_validation(self) -> Dataset[KeypointSample]:
        """Open the held-out data, with labelled boxes."""
        return self._open(self.validation_data, train=False)

    def _open(self, spec: str, *, train: bool) -> Dataset[KeypointSample]:
        width, height = self.size
        options = KeypointOptions(
            train=train and self.augment and not self.mirror_only,
            seed=self.seed,
            size=(width, height),
            order=self.order,
        )
        kind, _, path = spec.partition(":")
        if spec == SYNTHETIC_PEOPLE:
            length = self.samples if train else self.validation_samples
            people = SyntheticKeypoints(options, "train" if train else "val", length=length)
            # crops that vary have to be rendered anew
            kept = not (train and self.augment) and length <= KEPT_IN_MEMORY
            return KeptSamples(people) if kept else people
        if kind == "coco" and path:
            return CocoKeypoints(path, options=options, split="train" if train else "val")
        if kind == "mpii" and path:
            return MpiiKeypoints(path, options=options, split="train" if train else "valid")
        option = "--data" if train else "--validation-data"
        raise InputError(f"{option}: expected {_FORMS}, found '{spec}'.")

    def build_task(self) -> "PrtrTask":
        """Build the task."""
        return PrtrTask(self)


def in_epochs(recipe: AnyRecipe, samples: int, processes: int) -> AnyRecipe:
    """Work out the steps and intervals of a recipe that counts epochs.

    Args:
        recipe: Has the fields ``schedule.epochs`` and ``measure_epochs``.
        samples: Size of the training data.
        processes: Number of processes.
    """
    updates = steps_per_epoch(samples, recipe.batch_size, processes)
    interval: int = recipe.measure_epochs * updates  # type: ignore[attr-defined]
    schedule = recipe.schedule
    return replace(
        recipe,
        steps=recipe.steps or schedule.epochs * updates,
        schedule=replace(schedule, steps_per_epoch=schedule.steps_per_epoch or updates),
        validate_every=recipe.validate_every or interval,
        checkpoint_every=recipe.checkpoint_every or interval,
    )


class PrtrTask:
    """The task behind a `PrtrRecipe`; see `kinemesh.training.task.Task`."""

    def __init__(self, recipe: PrtrRecipe) -> None:
        self.recipe = recipe
        weights = recipe.weights
        self.criterion = KeypointSetLoss(weights.coordinates, weights.background)

    @property
    def metric(self) -> str | None:
        """Lower is better: what an AP or PCKh lacks, or the mean distance of joints."""
        if not self.recipe.validation_data:
            return None
        return "missing" if self.recipe.measures_published else "distance_percent"

    @property
    def later_is_better(self) -> bool:
        """Of equal scores the later one is the best, as in the published runs."""
        return True

    def build_model(self) -> PrtrNetwork:
        """Build the network, from the initial weights if the recipe names some."""
        network = build_prtr(self.recipe.network, self.recipe.backbone)
        return prepare_prtr(network, self.recipe.init, self._first_images)

    def _first_images(self) -> Tensor:
        return first_images(self.train_dataset(), self.collate, "image")

    def parameter_groups(self, model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """The published groups."""
        return prtr_parameter_groups(model, optim)

    def train_dataset(self) -> Dataset[KeypointSample]:
        """The data of the recipe, varied at random as published."""
        return self.recipe.open_training()

    def collate(self, samples: list[KeypointSample]) -> dict[str, Tensor]:
        """Stack samples."""
        return collate_keypoints(samples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All terms of all decoder layers.

        Every sample has as many queries and joints as any other, so the mean over processes is the
        loss of the whole batch.
        """
        output = model(batch["image"])
        return self.criterion(output, KeypointTargets(batch["target"], batch["weight"]))

    @functools.cached_property
    def _held_out(self) -> Iterable[dict[str, Tensor]]:
        loader = held_out_batches(
            self.recipe.open_validation(),
            collate_keypoints,
            self.recipe.validation_batch_size,
            self.recipe.workers,
        )
        # scenes are rendered once
        return list(loader) if self.recipe.validation_data == SYNTHETIC_PEOPLE else loader

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score held-out samples."""
        if not self.recipe.measures_published:
            return {"distance_percent": mean_distance(model, self._held_out, device)}
        people = self._people(model, device)
        dataset = self.recipe.open_validation()
        if isinstance(dataset, CocoKeypoints):
            labels = read_coco_labels(dataset.file.path)
            values = dict(evaluate_coco(people, labels, device=device).values)
            return {"missing": 1 - values["AP"]} | values
        values = dict(evaluate_mpii(people, self.recipe._mpii_labels(), device=device).values)
        return {"missing": 100 - values["Mean"]} | values

    def _people(self, model: nn.Module, device: torch.device) -> list[KeypointPerson]:
        people: list[KeypointPerson] = []
        for batch in self._held_out:
            center, scale = batch["center"].to(device), batch["scale"].to(device)
            found = predict_keypoints(
                model, batch["image"].to(device), center, scale, self.recipe.skeleton
            )
            columns = person_columns(batch["image_id"], found, center, scale, batch["score"])
            people += people_of(columns)
        return people

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Held-out crops with the predicted joints."""
        return keypoint_sheet(model, next(iter(self._held_out)), self.recipe, device)

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file."""
        recipe = self.recipe
        record = keypoint_record(
            recipe.network,
            backbone=recipe.backbone.spec(),
            skeleton=recipe.skeleton.name,
            size=recipe.size,
            order=recipe.order,
            variant=recipe.published if recipe.is_published_network else None,
        )
        save_model(path, model, None, record | {"training": dict(metadata)}, half=False)


@torch.inference_mode()
def mean_distance(model: nn.Module, batches: Iterable[Batch], device: torch.device) -> float:
    """Mean distance of labelled joints from their labels, in percent of the crop's longer side."""
    total, count = torch.zeros((), device=device), torch.zeros((), device=device)
    for batch in batches:
        image, weight_BJ = batch["image"].to(device), batch["weight"].to(device)[..., 0]
        output = model(image)
        found = read_out(output.logits, output.coords)
        extent_2 = torch.tensor([image.shape[-1], image.shape[-2]]) / max(image.shape[-2:])
        error_BJ2 = (found.coords - batch["target"].to(device)) * extent_2.to(device)
        total += (error_BJ2.norm(dim=-1) * weight_BJ).sum()
        count += weight_BJ.sum()
    return float(100 * total / count.clamp(min=1))


@torch.inference_mode()
def keypoint_sheet(
    model: nn.Module, batch: Batch, recipe: PrtrRecipe, device: torch.device, count: int = 12
) -> NDArray[np.uint8]:
    """A row of crops with the predicted joints, 256 px high.

    Returns:
        RGB (256, count * width, 3).
    """
    images = batch["image"][:count]
    output = model(images.to(device))
    places = read_out(output.logits, output.coords).coords.cpu().numpy()
    width, height = recipe.size
    size = (round(256 * width / height), 256)
    crops = []
    for image, joints in zip(images, places, strict=True):
        pixels = np.asarray(cv2.resize(to_pixels(image, recipe.order), size), dtype=np.uint8)
        crops.append(draw_skeleton(pixels, joints * np.array(size), recipe.skeleton))
    return np.concatenate(crops, axis=1)


def to_pixels(image_3HW: Tensor, order: ColorOrder) -> NDArray[np.uint8]:
    """(H,W,3) uint8 RGB of a normalised image."""
    picture = image_3HW.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN
    pixels = (picture * 255).round().clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels if order == "rgb" else pixels[..., ::-1])
