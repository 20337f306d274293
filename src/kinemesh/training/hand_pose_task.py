"""Learning the 3D joints of a hand: POTTER's network on pictures, or the lifter on 2D joints.

Sources: the hand pose baseline of Ego-Exo4D (Grauman et al. 2024) with POTTER (Zheng et al., CVPR
2023) for the published numbers; the synthetic runs are our own.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.data.ego_exo4d import names_ego_exo4d, open_ego_exo4d
from kinemesh.data.hand_pose_records import HandPoseSample, collate_hand_poses
from kinemesh.data.synthetic.hand_pose_samples import (
    JointNoise,
    Sides,
    SyntheticHandJoints,
    SyntheticHandPoses,
)
from kinemesh.errors import InputError
from kinemesh.evaluation.hand_pose import as_right_hands, measure_hands, predict_hands
from kinemesh.hand_losses import pose3d_loss
from kinemesh.models.hand_pose_networks import (
    MM_PER_M,
    Crops,
    HandPoseConfig,
    HandPoseNetwork,
    build_hand_pose_network,
    hand_pose_architecture_of,
    hand_pose_record,
    network_inputs,
)
from kinemesh.models.joint_lifter import JointLifterConfig
from kinemesh.models.joint_statistics import JointStatistics
from kinemesh.models.potter_checkpoints import load_initial_potter
from kinemesh.models.potter_hand import PotterHandConfig
from kinemesh.models.registry import read_record, save_model
from kinemesh.rendering.joint_view import draw_comparison
from kinemesh.skeletons import HAND21
from kinemesh.training.batches import held_out_batches
from kinemesh.training.config import Recipe
from kinemesh.training.prtr_networks import KeptSamples
from kinemesh.training.prtr_task import in_epochs
from kinemesh.training.schedules import steps_per_epoch

Batch = Mapping[str, Tensor]
SYNTHETIC_HAND = "synthetic-hand"
KEPT_BYTES = 2**28
"""Synthetic pictures are rendered once and kept where they take no more memory."""
_MEASURED_HANDS = 1024
_FORMS = f"ego-exo4d:FOLDER, ego-exo4d-auto:FOLDER or {SYNTHETIC_HAND}"
_SPLITS: dict[bool, Literal["train", "val"]] = {True: "train", False: "val"}


@dataclass(frozen=True, kw_only=True)
class PublishedHandRun:
    """One published run of the published network on one GPU.

    Attributes:
        batch_size: Hands in one update.
        validation_batch_size: Hands at once in validation, whose mean loss is a mean over batches.
        epochs: Passes over the training hands.
        lr: Learning rate of Adam, the same throughout; no weight decay, no clipping.
    """

    batch_size: int
    validation_batch_size: int = 64
    epochs: int
    lr: float = 1e-4


@dataclass(kw_only=True)
class HandPoseRecipe(Recipe):
    """POTTER's hand network: as published, or on other data and of other sizes."""

    published: PublishedHandRun | None = None
    """The published run that this one follows."""
    network: PotterHandConfig = field(default_factory=PotterHandConfig)
    """Sizes of the network; the data are cropped to its side."""
    data: str = ""
    """What to train on: ego-exo4d:FOLDER, ego-exo4d-auto:FOLDER or synthetic-hand."""
    validation_data: str = ""
    """What chooses the best weights; empty: the held-out part of the same."""
    init: Path | None = None
    """Weights to start from: an ImageNet classifier of POTTER, or a whole hand network."""
    layer_scale: float | None = None
    """Where the factors of the residual branches begin; None: at 1e-5, as published, and with the
    published draws. With a number, convolutions begin with PyTorch's usual draws instead. The
    published ones suit ImageNet's weights: from random ones, the blocks would do next to nothing
    for thousands of updates."""
    root_counts: bool = True
    """Let the wrist take part in the loss, as published. Its target is always 0 and its output is
    never used, but on its way to 0 it may cost more than all others."""
    sides: Sides = "both"
    """Synthetic data: which hands are shown. Ego-Exo4D shows both."""
    samples: int = 10**7
    """Synthetic data: how many different hands."""
    validation_samples: int = 512
    """Synthetic data: how many held-out hands."""
    validation_batch_size: int = 64
    """Crops at once in validation."""
    choose_by: Literal["loss", "mpjpe_mm", "pa_mpjpe_mm"] = "loss"
    """Held-out score that chooses the best weights."""
    portrait: bool = False
    """Ego-Exo4D: upright pictures and their labels."""
    images: Path | None = None
    """Ego-Exo4D: folder of the pictures; none: that of the prepared folder."""
    measure_epochs: int = 1
    """Epochs between validations and checkpoints, where their intervals in steps are 0."""

    @property
    def architecture(self) -> str:
        """Of the network, as in weight files."""
        return hand_pose_architecture_of(self.network)

    @property
    def is_synthetic(self) -> bool:
        """Whether the hands to train on are made here."""
        return self.data == SYNTHETIC_HAND

    @property
    def crops(self) -> Crops:
        """How the crops are cut that the network is trained on."""
        return "synthetic" if self.is_synthetic else "ego-exo4d"

    # without an annotation it is no field: what `completed` opened is kept for the task
    _opened = cast(Mapping[bool, Dataset[HandPoseSample]], MappingProxyType({}))

    def completed(self, processes: int) -> Self:
        """Check what the user has to give, and turn epochs into steps.

        Raises:
            InputError: Data or initial weights are missing; the message names the option.
        """
        if not self.data:
            raise InputError(
                "This recipe trains on the hands of Ego-Exo4D. Say where they are with --data "
                "ego-exo4d:FOLDER (made by: kinemesh data prepare ego-exo4d); kinemesh ships no "
                "data set."
            )
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init: there is no file '{self.init}'. Check the path.")
        opened = {train: self.open_data(train=train) for train in (True, False)}
        count = len(opened[True])  # type: ignore[arg-type]
        if self.steps and self.validate_every and self.checkpoint_every:
            steps_per_epoch(count, self.batch_size, processes)  # refuses too few samples
            done = replace(self)
        else:
            done = in_epochs(self, count, processes)
        done._opened = opened
        return done

    def departures(self, processes: int) -> list[str]:
        """How this run differs from the published one, one phrase each."""
        run = self.published
        if run is None:
            return []
        optim, schedule = self.optim, self.schedule
        pairs: list[tuple[str, Any, Any]] = [
            ("network", PotterHandConfig(), self.network),
            ("batch per process", run.batch_size, self.batch_size),
            ("processes", 1, processes),
            ("validation batch", run.validation_batch_size, self.validation_batch_size),
            ("epochs", run.epochs, schedule.epochs),
            ("schedule", ("constant", 0), (schedule.kind, schedule.warmup_steps)),
            ("learning rate", run.lr, optim.lr),
            ("weight decay", 0.0, optim.weight_decay),
            ("betas", (0.9, 0.999), tuple(optim.betas)),
            ("largest norm of gradients", None, optim.clip_norm),
            ("averaging of weights", 0.0, self.ema_decay),
            ("precision", "no", self.mixed_precision),
            ("initial layer scale", None, self.layer_scale),
            ("wrist in the loss", True, self.root_counts),
            ("weights chosen by", "loss", self.choose_by),
            ("data", "ego-exo4d", self.data.split(":")[0]),
        ]
        notes = [f"{name} {now}, published {then}" for name, then, now in pairs if now != then]
        if self.init is None:
            notes.append("starts from random weights, published from an ImageNet classifier")
        if self.steps not in {0, schedule.epochs * schedule.steps_per_epoch}:
            notes.append(f"stops after {self.steps} steps")
        return notes

    def open_data(self, *, train: bool) -> Dataset[HandPoseSample]:
        """Open the data to train on, or held-out ones."""
        spec = self.data if train else self.validation_data or self.data
        if spec == SYNTHETIC_HAND:
            return self._synthetic(train)
        if names_ego_exo4d(spec):
            return open_ego_exo4d(
                spec,
                _SPLITS[train],
                size=self.network.side,
                portrait=self.portrait,
                images=self.images,
                crops=self.crops,
            )
        option = "--data" if train else "--validation-data"
        raise InputError(f"{option}: expected {_FORMS}, found '{spec}'.")

    def _synthetic(self, train: bool) -> Dataset[HandPoseSample]:
        side, length = self.network.side, self.samples if train else self.validation_samples
        hands = SyntheticHandPoses(self.seed, side, length, _SPLITS[train], self.sides)
        kept = length * 3 * side**2 * torch.float32.itemsize <= KEPT_BYTES
        return KeptSamples(hands) if kept else hands

    def statistics(self) -> JointStatistics:
        """What makes targets of unit size: published for Ego-Exo4D, measured on synthetic hands."""
        if not self.is_synthetic:
            return JointStatistics.EGOEXO4D
        hands = SyntheticHandPoses(self.seed, length=self.samples, sides=self.sides)
        joints_m = hands.joints_m(range(min(self.samples, _MEASURED_HANDS)))
        return JointStatistics.of(joints_m * MM_PER_M)

    def build_task(self) -> "HandPoseTask":
        """Build the task."""
        return HandPoseTask(self, self._opened)


@dataclass(kw_only=True)
class HandLiftingRecipe(HandPoseRecipe):
    """The lifter: 3D joints from the 2D joints of synthetic right hands, which are not rendered."""

    network: JointLifterConfig = field(default_factory=JointLifterConfig)  # type: ignore[assignment]
    """Sizes of the network."""
    data: str = SYNTHETIC_HAND
    """What to train on: synthetic-hand."""
    sides: Sides = "right"
    """Which hands are shown: right ones alone."""
    samples: int = 30_000
    """How many different hands; each is seen from a new direction every time."""
    jitter: float = 0.01
    """Noise of 2D joints in training, over the longer side of their box."""
    joint_dropout: float = 0.05
    """Share of 2D joints that are missing in training."""

    def open_data(self, *, train: bool) -> Dataset[HandPoseSample]:
        """Open the joints to train on, or held-out ones."""
        for option, spec in (("data", self.data), ("validation-data", self.validation_data)):
            if spec not in {"", SYNTHETIC_HAND}:
                raise InputError(f"--{option}: expected {SYNTHETIC_HAND}, found '{spec}'.")
        if self.sides != "right" or self.init is not None or self.layer_scale is not None:
            raise InputError(
                "--sides, --init, --layer-scale: lifting learns right hands from random weights, "
                "and its network has no layer scale. Leave these options out."
            )
        noise = JointNoise(self.jitter, self.joint_dropout)
        length = self.samples if train else self.validation_samples
        joints = SyntheticHandJoints(self.seed, length, _SPLITS[train], noise)
        return joints if train else KeptSamples(joints)


class HandPoseTask:
    """The task behind a `HandPoseRecipe`; see `kinemesh.training.task.Task`."""

    def __init__(
        self, recipe: HandPoseRecipe, opened: Mapping[bool, Dataset[HandPoseSample]] | None = None
    ) -> None:
        self.recipe = recipe
        self._opened = opened or {}
        self.config: HandPoseConfig = recipe.network
        self.started_from: str | None = None

    @property
    def metric(self) -> str:
        """The published choice is the loss on held-out data."""
        return self.recipe.choose_by

    @functools.cached_property
    def statistics(self) -> JointStatistics:
        """What makes targets of unit size."""
        return self.recipe.statistics()

    def build_model(self) -> nn.Module:
        """Build the network, from the initial weights if the recipe names some."""
        record = self._record()
        network = build_hand_pose_network(record)
        if self.recipe.layer_scale is not None:
            draw_usual_weights(network, self.recipe.layer_scale)
        if self.recipe.init is not None:
            self.started_from = _load_initial(network, self.recipe.init, self.statistics)
        return network

    def _record(self) -> dict[str, Any]:
        recipe = self.recipe
        return hand_pose_record(
            self.config,
            self.statistics,
            sides=recipe.sides if recipe.is_synthetic else "both",
            crops=recipe.crops,
        )

    def _data(self, *, train: bool) -> Dataset[HandPoseSample]:
        """The data; annotations, which may be of hundreds of megabytes, are read once."""
        return self._opened[train] if train in self._opened else self.recipe.open_data(train=train)

    @functools.cached_property
    def _training(self) -> Dataset[HandPoseSample]:
        return self._data(train=True)

    def train_dataset(self) -> Dataset[HandPoseSample]:
        """The data of the recipe; nothing is varied at random but the lifter's 2D joints."""
        return self._training

    def collate(self, samples: list[HandPoseSample]) -> dict[str, Tensor]:
        """Stack samples."""
        return collate_hand_poses(samples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Squared error of the labelled joints in units of their spread."""
        output = model(*network_inputs(self.recipe.architecture, batch))
        return {"total": self._cost(output, batch)}

    def _cost(self, output: Tensor, batch: Batch) -> Tensor:
        target = self.statistics.normalise(batch["joints_m"] * MM_PER_M)
        counts = batch["visible"]
        if not self.recipe.root_counts:
            counts = torch.cat([torch.zeros_like(counts[:, :1]), counts[:, 1:]], dim=1)
        return pose3d_loss(output.float(), target, counts)

    @functools.cached_property
    def _held_out(self) -> Iterable[dict[str, Tensor]]:
        is_made = (self.recipe.validation_data or self.recipe.data) == SYNTHETIC_HAND
        loader = held_out_batches(
            self._data(train=False),
            collate_hand_poses,
            self.recipe.validation_batch_size,
            0 if is_made else self.recipe.workers,
        )
        # synthetic hands are made once
        return list(loader) if is_made else loader

    @torch.inference_mode()
    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Loss, as published a mean over batches, and errors in mm, means over hands."""
        network = HandPoseNetwork(model, self.statistics)
        losses, parts = [], []
        for batch in self._held_out:
            moved = {name: value.to(device) for name, value in batch.items()}
            if self._record()["sides"] == "right":  # as in evaluation and prediction
                moved = as_right_hands(moved)
            output = model(*network_inputs(network.architecture, moved))
            losses.append(self._cost(output, moved))
            joints_m = self.statistics.denormalise(output.float()) / MM_PER_M
            parts.append(measure_hands(joints_m, moved["joints_m"], moved["visible"]))
        return {
            "loss": float(torch.stack(losses).mean()),
            "mpjpe_mm": float(torch.cat([part["MPJPE"] for part in parts]).nanmean()),
            "pa_mpjpe_mm": float(torch.cat([part["PA-MPJPE"] for part in parts]).nanmean()),
        }

    @torch.inference_mode()
    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Held-out hands in 3D: what is labelled above, what was predicted below."""
        batch = {name: value[:8] for name, value in next(iter(self._held_out)).items()}
        network = HandPoseNetwork(model, self.statistics)
        moved = {name: value.to(device) for name, value in batch.items()}
        joints_m = predict_hands(network, moved, self._record()["sides"]).cpu()
        return draw_comparison(
            batch["joints_m"].numpy(), joints_m.numpy(), batch["visible"].numpy(), HAND21
        )

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file that `kinemesh.load` takes."""
        save_model(path, model, None, self._record() | {"training": dict(metadata)}, half=False)


def _load_initial(network: nn.Module, path: Path, statistics: JointStatistics) -> str:
    """As `load_initial_potter`; messages name the option of the command line.

    The last layer is the same for all joints and statistics are not, so it cannot be changed to
    give the same millimetres under others; what is said tells that.
    """
    try:
        taken = load_initial_potter(network, path)
    except InputError as error:
        raise InputError(f"--init: {error}") from error
    note = ""
    if any(name.startswith("pose_3d_head.") for name in taken.matched):
        gap_mm = _largest_gap_mm(initial_statistics(path), statistics)
        if gap_mm > 0:
            note = (
                "; its output was trained for other statistics of joints, which differ by up to "
                f"{gap_mm:.1f} mm, so the first millimetres are not those of that network"
            )
    return f"{path.name}: {taken}{note}"


def initial_statistics(path: Path) -> JointStatistics:
    """Of a whole hand network: those in a weight file of this library, else the published ones."""
    if path.suffix != ".safetensors":
        return JointStatistics.EGOEXO4D
    try:
        record = read_record(path)
    except InputError:  # official tensors in that format
        return JointStatistics.EGOEXO4D
    return JointStatistics.from_record(record["statistics"])


def _largest_gap_mm(first: JointStatistics, second: JointStatistics) -> float:
    pairs = ((first.mean_mm, second.mean_mm), (first.std_mm, second.std_mm))
    return max(float(np.abs(np.subtract(one, other)).max()) for one, other in pairs)


@torch.no_grad()
def draw_usual_weights(network: nn.Module, layer_scale: float) -> None:
    """Draw POTTER's convolutions as PyTorch does, and fill the factors of the residual branches."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
    for name, parameter in network.named_parameters():
        if "layer_scale_" in name:
            parameter.fill_(layer_scale)
