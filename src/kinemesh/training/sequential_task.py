"""Learning PRTR's sequential network: people in whole images, then their keypoints.

The network was published without training (Li et al., CVPR 2021). This follows its papers: DETR's
set loss for the boxes (Carion et al., ECCV 2020), and PRTR's for the keypoints of those queries
that were matched to labelled people, in the frame of the label's enlarged box, which stands for the
crop of the two-stage networks. The detector learns first, alone, and then both learn together.

Shape legend: L decoder layers, B images, P person queries, N labelled people of an image, padded,
Q keypoint queries, J joints.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.data.detection_scenes import CocoScenes, SceneOptions, SceneSample, collate_scenes
from kinemesh.data.keypoint_crop import PADDING
from kinemesh.data.synthetic.scenes import SyntheticScenes
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import read_out
from kinemesh.keypoint_losses import (
    DetectionSetLoss,
    DetectionTargets,
    KeypointSetLoss,
    KeypointTargets,
    stack_detections,
    stack_layers,
)
from kinemesh.matching import assign, box_cost, keypoint_cost, match_boxes
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_sequential import Detections, SequentialConfig, SequentialOutput
from kinemesh.models.prtr_variants import keypoint_record
from kinemesh.models.registry import save_model
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import COCO17
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
    shared_count,
)
from kinemesh.training.prtr_task import in_epochs, to_pixels

Batch = Mapping[str, Tensor]
SYNTHETIC_SCENES = "synthetic-scenes"
LEAST_SIDE = 0.05
"""Least side of a box, in parts of the image, that distances are divided by."""
KEYPOINT_PARTS = ("transformer_kpt", "row_embed", "col_embed")
"""Modules that a detector alone does without."""


@dataclass(kw_only=True)
class SequentialLossWeights:
    """Weights of both set losses."""

    distance: float = 5.0
    """Absolute differences of boxes."""
    overlap: float = 2.0
    """One less the generalised overlap of boxes."""
    background: float = 0.1
    """Queries without a label, in both classification losses."""
    coordinates: float = 5.0
    """Places of keypoints beside their classes."""
    keypoints: float = 1.0
    """The whole loss of the keypoints beside that of the detector."""


@dataclass(kw_only=True)
class SequentialRecipe(Recipe):
    """Training of the sequential network, or of its detector alone."""

    learns: Literal["detector", "both"] = "both"
    """The detector alone, with the rest frozen, or everything."""
    network: SequentialConfig = field(default_factory=SequentialConfig)
    """Sizes of both transformers."""
    backbone: PrtrBackbone = field(default_factory=PrtrBackbone)
    """The ResNet."""
    data: str = ""
    """What to train on: coco:FOLDER or synthetic-scenes."""
    init: Path | None = None
    """Weights to start from: of a detector's run, of a whole network, or ImageNet's."""
    fine_tune: bool = False
    """Refuse to start without 'init'."""
    augment: bool = True
    """Mirror and resize stored images at random."""
    shortest: int = 800
    """Stored images: largest shorter side in pixels."""
    longest: int = 1333
    """Stored images: largest longer side in pixels."""
    size: tuple[int, int] = (320, 256)
    """Synthetic scenes: width and height in pixels."""
    people: tuple[int, int] = (1, 4)
    """Synthetic scenes: least and largest number of people."""
    weights: SequentialLossWeights = field(default_factory=SequentialLossWeights)
    """Weights of the loss terms."""
    empty: bool = True
    """Stored images: train on those without people, too, in which the detector learns to find
    nobody. The keypoints learn nothing from them."""
    validation_data: str = ""
    """Labelled data that choose the best weights; without it the last weights are kept."""
    samples: int = 20_000
    """Synthetic data: how many different scenes; up to 512 are kept in memory."""
    validation_samples: int = 128
    """Synthetic data: how many held-out scenes."""
    measure_epochs: int = 1
    """Epochs between validations and checkpoints, where their intervals in steps are 0."""

    def completed(self, processes: int) -> Self:
        """Check what the user has to give, count the data and turn epochs into steps.

        Raises:
            InputError: Data or initial weights are missing; the message names the option.
        """
        if not self.data:
            raise InputError(
                "This recipe trains on COCO's people (train2017) with their keypoints. Say where "
                "it is with --data (coco:FOLDER); kinemesh ships no data set."
            )
        if self.fine_tune and self.init is None:
            raise InputError(
                "This recipe goes on from a trained detector. Name its weights with --init "
                "(best/weights.safetensors of a run of prtr-sequential-detector)."
            )
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init: there is no file '{self.init}'. Check the path.")
        check_queries("--network.keypoint-queries", self.network.keypoint_queries, len(COCO17))
        count = len(self.open_training())  # type: ignore[arg-type]
        return in_epochs(self, count, processes)

    def departures(self, processes: int) -> list[str]:
        """No run was published."""
        own = "the sequential network was published without a training; this one is our own"
        return [own, *validation_notes(self.data, self.validation_data)]

    def open_training(self) -> Dataset[SceneSample]:
        """Open the training data."""
        return self._open(self.data, train=True)

    def open_validation(self) -> Dataset[SceneSample]:
        """Open the held-out data."""
        return self._open(self.validation_data, train=False)

    def _open(self, spec: str, *, train: bool) -> Dataset[SceneSample]:
        if spec == SYNTHETIC_SCENES:
            length = self.samples if train else self.validation_samples
            split: Literal["train", "val"] = "train" if train else "val"
            width, height = self.size
            scenes = SyntheticScenes(
                self.seed, (width, height), length, split, people=self.people, hands=(0, 1)
            )
            return KeptSamples(scenes) if length <= KEPT_IN_MEMORY else scenes
        kind, _, path = spec.partition(":")
        if kind != "coco" or not path:
            option = "--data" if train else "--validation-data"
            raise InputError(
                f"{option}: expected coco:FOLDER or {SYNTHETIC_SCENES}, found '{spec}'."
            )
        options = SceneOptions(
            train=train and self.augment,
            seed=self.seed,
            shortest=self.shortest,
            longest=self.longest,
        )
        split_name = "train" if train else "val"
        return CocoScenes(path, options=options, split=split_name, empty=self.empty or not train)

    def build_task(self) -> "SequentialTask":
        """Build the task."""
        return SequentialTask(self)


class SequentialTask:
    """The task behind a `SequentialRecipe`; see `kinemesh.training.task.Task`."""

    def __init__(self, recipe: SequentialRecipe) -> None:
        self.recipe = recipe
        weights = recipe.weights
        self.detection = DetectionSetLoss(weights.distance, weights.overlap, weights.background)
        self.keypoints = KeypointSetLoss(weights.coordinates, weights.background)

    @property
    def metric(self) -> str | None:
        """The loss of held-out images after the last decoder layer."""
        return "total" if self.recipe.validation_data else None

    def build_model(self) -> PrtrNetwork:
        """Build the network, from the initial weights if the recipe names some."""
        network = build_prtr(self.recipe.network, self.recipe.backbone)
        prepare_prtr(network, self.recipe.init, self._first_images)
        if self.recipe.learns == "detector":
            for name in KEYPOINT_PARTS:
                network.get_submodule(name).requires_grad_(False)
        return network

    def _first_images(self) -> Tensor:
        return first_images(self.train_dataset(), self.collate, "images")

    def parameter_groups(self, model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """Those of the two-stage runs."""
        return prtr_parameter_groups(model, optim)

    def train_dataset(self) -> Dataset[SceneSample]:
        """The data of the recipe."""
        return self.recipe.open_training()

    def collate(self, samples: list[SceneSample]) -> dict[str, Tensor]:
        """Pad images and lists of people."""
        return collate_scenes(samples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All terms of all decoder layers, of boxes and of keypoints."""
        people = shared_count(batch["people"].sum())
        labelled = shared_count(has_keypoints(batch).sum())
        return self.terms(model, batch, people, labelled)[0]

    def terms(
        self, model: nn.Module, batch: Batch, people: Tensor | None, labelled: Tensor | None
    ) -> tuple[dict[str, Tensor], SequentialOutput, Tensor]:
        """Losses, what the network said, and the query of each labelled person (B,N).

        ``people`` and ``labelled`` are the numbers of people, and of those with keypoints, that
        sums are divided by; None: those of the batch.
        """
        boxes = DetectionTargets(batch["boxes"], batch["people"], people)
        if self.recipe.learns == "detector":
            output = model(batch["images"], batch["padding_mask"], batch["sizes"], nobody)
            found = Detections(output.logits, output.boxes, output.auxiliary_detections)
            logits, places = stack_detections(found)
            query = assign([box_cost(logits, places, boxes.boxes_BN4, boxes.people_BN)])[0]
            losses = self.detection.of_layers(logits, places, query, boxes)
            return _prefixed("box_", losses) | {"total": losses["total"]}, output, query[-1]
        return self._terms_of_both(model, batch, boxes, labelled)

    def _terms_of_both(
        self, model: nn.Module, batch: Batch, boxes: DetectionTargets, labelled: Tensor | None
    ) -> tuple[dict[str, Tensor], SequentialOutput, Tensor]:
        def labelled_people(logits_BP2: Tensor, boxes_BP4: Tensor) -> Tensor:
            return match_boxes(logits_BP2, boxes_BP4, boxes.boxes_BN4, boxes.people_BN)

        output = model(batch["images"], batch["padding_mask"], batch["sizes"], labelled_people)
        found = Detections(output.logits, output.boxes, output.auxiliary_detections)
        logits_LBP2, places_LBP4 = stack_detections(found)
        hypotheses = in_label_frame(output, batch["boxes"])
        kpt_logits, kpt_places = stack_layers(hypotheses)
        targets = keypoint_targets(batch, labelled)
        # One copy for everything but the match that the keypoints had to wait for.
        before, query_LBJ = assign(
            [
                box_cost(logits_LBP2[:-1], places_LBP4[:-1], boxes.boxes_BN4, boxes.people_BN),
                keypoint_cost(kpt_logits, kpt_places, targets.places_BJ2),
            ]
        )
        query_LBN = torch.cat([before, output.persons[None]])
        detected = self.detection.of_layers(logits_LBP2, places_LBP4, query_LBN, boxes)
        posed = self.keypoints.of_layers(kpt_logits, kpt_places, query_LBJ, targets)
        total = detected["total"] + self.recipe.weights.keypoints * posed["total"]
        losses = _prefixed("box_", detected) | _prefixed("keypoint_", posed) | {"total": total}
        return losses, output, output.persons

    @functools.cached_property
    def _held_out(self) -> Iterable[dict[str, Tensor]]:
        loader = held_out_batches(
            self.recipe.open_validation(),
            collate_scenes,
            self.recipe.batch_size,
            self.recipe.workers,
        )
        # scenes are rendered once
        return list(loader) if self.recipe.validation_data == SYNTHETIC_SCENES else loader

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Mean losses of the last decoder layer over held-out images."""
        sums: dict[str, Tensor] = {}
        images = 0
        for batch in self._held_out:
            moved = {name: value.to(device) for name, value in batch.items()}
            losses, _, _ = self.terms(model, moved, None, None)
            images += len(batch["images"])
            for name, value in losses.items():
                weighted = value * len(batch["images"])
                sums[name] = sums[name] + weighted if name in sums else weighted
        return {name: float(value) / images for name, value in sums.items()}

    @torch.inference_mode()
    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8] | None:
        """Held-out images with the keypoints of the queries that were matched to people."""
        if self.recipe.learns == "detector":
            return None
        batch = {k: v[:6].to(device) for k, v in next(iter(self._held_out)).items()}
        _, output, _ = self.terms(model, batch, None, None)
        sheet = []
        for number, image in enumerate(batch["images"].cpu()):
            height, width = (int(side) for side in batch["sizes"][number])
            last = background_last(output.keypoint_logits[number])
            found = read_out(last, output.keypoint_coords[number]).coords.cpu().numpy()
            pixels = to_pixels(image, "rgb")
            for person in np.flatnonzero(batch["people"][number].cpu().numpy()):
                pixels = draw_skeleton(pixels, found[person] * [width, height], COCO17)
            sheet.append(pixels)
        return np.concatenate(sheet, axis=1)

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file; it says how large images are made: shorter side, then longer."""
        recipe = self.recipe
        stored = recipe.data != SYNTHETIC_SCENES
        width, height = recipe.size
        sides = (recipe.shortest, recipe.longest) if stored else sorted((width, height))
        record = keypoint_record(
            recipe.network,
            backbone=recipe.backbone.spec(),
            skeleton=COCO17.name,
            size=(sides[0], sides[1]),
            order="rgb",
        )
        save_model(path, model, None, record | {"training": dict(metadata)}, half=False)


def nobody(logits_BP2: Tensor, _boxes_BP4: Tensor) -> Tensor:
    """Choose no person, so that only the detector runs."""
    return torch.zeros(len(logits_BP2), 0, dtype=torch.int64, device=logits_BP2.device)


def has_keypoints(batch: Batch) -> Tensor:
    """(B,N) 1 for people with a labelled keypoint, else 0."""
    return (batch["keypoints"][..., 2] > 0).any(dim=-1).float() * batch["people"]


def background_last(logits: Tensor) -> Tensor:
    """Class scores of the sequential network in the order of the two-stage ones."""
    return logits.roll(-1, dims=-1)


def to_box_frame(points_BNT2: Tensor, boxes_BN4: Tensor) -> Tensor:
    """Points (...,B,N,T,2) of images to those of the enlarged boxes, 0 to 1 within them.

    Boxes without much extent count as `LEAST_SIDE` wide or high.
    """
    centre, side = boxes_BN4.unsqueeze(-2).chunk(2, dim=-1)
    return (points_BNT2 - centre) / (PADDING * side.clamp(min=LEAST_SIDE)) + 0.5


def in_label_frame(output: SequentialOutput, boxes_BN4: Tensor) -> KeypointSetOutput:
    """Hypotheses of all people of a batch, (B N,Q,...), in the frames of their labelled boxes."""
    layers = (
        *output.auxiliary_keypoints,
        KeypointSetOutput(output.keypoint_logits, output.keypoint_coords),
    )
    *before, last = (
        KeypointSetOutput(
            background_last(layer.logits.float()).flatten(0, 1),
            to_box_frame(layer.coords.float(), boxes_BN4).flatten(0, 1),
        )
        for layer in layers
    )
    return last._replace(auxiliary=tuple(before))


def keypoint_targets(batch: Batch, labelled: Tensor | None) -> KeypointTargets:
    """Labels of all people of a batch in the frames of their boxes.

    A joint without a label is put at the corner (0, 0), as in the two-stage data.
    """
    weight = (batch["keypoints"][..., 2:] > 0).float()
    places = to_box_frame(batch["keypoints"][..., :2], batch["boxes"]) * weight
    return KeypointTargets(
        places.flatten(0, 1), weight.flatten(0, 1), has_keypoints(batch).flatten(), labelled
    )


def _prefixed(prefix: str, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All but the total under longer names."""
    return {prefix + name: value for name, value in losses.items() if name != "total"}
