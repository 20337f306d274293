"""Learning POTTER's mesh network: as published on four data sets, or on rendered people."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from kinemesh.bodies.hybrik_bodies import HybrikBody, load_smpl_hybrik
from kinemesh.data.hybrik_dataset import MIX, PREFIXES, HybrikDataset, HybrikMix, open_hybrik
from kinemesh.data.hybrik_labels import HybrikName
from kinemesh.data.hybrik_records import HybrikSample, collate_hybrik
from kinemesh.data.synthetic.hybrik import SYNTHETIC_HYBRIK, SyntheticHybrik, load_anny_hybrik
from kinemesh.errors import InputError
from kinemesh.evaluation.hybrik import score_hybrik
from kinemesh.evaluation.hybrik_by_name import protocol_of
from kinemesh.evaluation.hybrik_side import HybrikSide
from kinemesh.models.potter_body import PotterBody, potter_mesh_record
from kinemesh.models.potter_checkpoints import load_initial_potter
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig
from kinemesh.models.registry import save_model
from kinemesh.potter_losses import BodyPrediction, PotterLossWeights, body_loss
from kinemesh.training.batches import held_out_batches
from kinemesh.training.config import OptimConfig, Recipe
from kinemesh.training.hand_pose_task import draw_usual_weights
from kinemesh.training.potter_published import CLIP_NORM, DROPS, FACTOR, POTTER_RUNS
from kinemesh.training.prtr_networks import KeptSamples
from kinemesh.training.schedules import steps_per_epoch

Batch = Mapping[str, Tensor]
KEPT_SAMPLES = 512
"""Rendered samples are kept in memory where there are no more of them."""


@dataclass(kw_only=True)
class PotterBodyRecipe(Recipe):
    """A published run of POTTER's mesh network, or the same on other data and sizes."""

    published: str = "potter-hmr"
    """The published run that this one follows, a key of `potter_published.POTTER_RUNS`."""
    network: PotterMeshConfig = field(default_factory=PotterMeshConfig)
    """Sizes of the network."""
    data: str = ""
    """'synthetic-hybrik' trains on rendered people; nothing: on the four data sets below."""
    h36m: Path | None = None
    """Human3.6M: HybrIK's folder or its file of annotations."""
    coco: Path | None = None
    """COCO: its folder or its file of keypoints."""
    hp3d: Path | None = None
    """MPI-INF-3DHP: HybrIK's folder or its file of annotations."""
    pw3d: Path | None = None
    """3DPW: HybrIK's folder or its file of annotations."""
    assets: Path | None = None
    """Folder with SMPL and its joint regressor; rendered people need none."""
    mean_shape: Path | None = None
    """.npy with the ten shape coefficients that the network predicts offsets from; zeros if left
    out. Official checkpoints bring their own."""
    init: Path | None = None
    """Weights to start from: a trunk, a classifier, or a whole network."""
    layer_scale: float | None = None
    """Draw the convolutions of new networks as PyTorch does, and begin the factors of the residual
    branches with this number; None for the published draws, which suit ImageNet's weights."""
    augment: bool = True
    """Vary stored samples at random as published."""
    validation_data: str = ""
    """3dpw-hybrik:FOLDER, h36m-hybrik:FOLDER or synthetic-hybrik: labelled data that choose the
    best weights; without it the last weights are kept."""
    also_validate: str = ""
    """A second data set, as for the first: scored beside it, without a say in what is best."""
    validation_batch_size: int = 32
    """Crops at once in validation."""
    drop_epochs: tuple[int, ...] = DROPS
    """Epochs after which the learning rate drops, however long the run is; only where the schedule
    is 'step' and names no places of its own."""
    clip_each: float = CLIP_NORM
    """Largest L2 norm of the gradient of each tensor by itself."""
    weights: PotterLossWeights = field(default_factory=PotterLossWeights)
    """Weights of the loss terms."""
    samples: int = 20_000
    """Rendered people: how many different samples."""
    validation_samples: int = 256
    """Rendered people: how many held-out samples."""
    measure_epochs: int = 1
    """Epochs between validations and checkpoints, where their intervals in steps are 0."""

    @property
    def is_synthetic(self) -> bool:
        """Whether the data are rendered."""
        return self.data == SYNTHETIC_HYBRIK

    def completed(self, processes: int) -> Self:
        """Check what the user has to give, count the data and turn epochs into steps.

        Raises:
            InputError: Data, assets or initial weights are missing; the message names the option.
        """
        self._check_sources()
        counted = steps_per_epoch(len(self.open_training()), self.batch_size, processes)  # type: ignore[arg-type]
        schedule = self.schedule
        updates = schedule.steps_per_epoch or counted
        interval = self.measure_epochs * updates
        return replace(
            self,
            steps=self.steps or schedule.epochs * updates,
            schedule=replace(
                schedule,
                steps_per_epoch=updates,
                # numbers of steps, so that a shorter or longer run has its drops where they were
                step_at=schedule.step_at or _steps_at(self.drop_epochs, updates),
            ),
            validate_every=self.validate_every or interval,
            checkpoint_every=self.checkpoint_every or interval,
        )

    def _check_sources(self) -> None:
        if self.data not in {"", SYNTHETIC_HYBRIK}:
            raise InputError(
                f"--data: {self.data!r} does not fit this recipe. It takes '{SYNTHETIC_HYBRIK}' "
                "(rendered people); without --data it trains on the folders of --h36m, --coco, "
                "--hp3d and --pw3d."
            )
        if not self.is_synthetic:
            if not any(self._places().values()):
                raise InputError(
                    "This recipe trains on Human3.6M, COCO, MPI-INF-3DHP and 3DPW. Say where they "
                    "are with --h36m, --coco, --hp3d and --pw3d; kinemesh ships no data set."
                )
            if self.assets is None or not self.assets.is_dir():
                raise InputError(
                    "The data are labelled with SMPL. Name the folder with SMPL and "
                    f"J_regressor_h36m_correct.npy with --assets; found {self.assets}."
                )
        for name in ("init", "mean_shape"):
            path = getattr(self, name)
            if path is not None and not path.is_file():
                option = name.replace("_", "-")
                raise InputError(f"--{option}: there is no file '{path}'. Check the path.")
        for spec in filter(None, (self.validation_data, self.also_validate)):
            protocol_of(spec)
        first, second = (s.split(":")[0] for s in (self.validation_data, self.also_validate))
        if second and (not first or first == second):
            raise InputError(
                f"--also-validate: expected a data set beside another as --validation-data, found "
                f"{self.also_validate!r} beside {self.validation_data!r}. Name both, such as "
                "3dpw-hybrik:FOLDER and h36m-hybrik:FOLDER."
            )

    def _places(self) -> dict[HybrikName, Path | None]:
        return {"h36m": self.h36m, "coco": self.coco, "3dhp": self.hp3d, "3dpw": self.pw3d}

    def departures(self, processes: int) -> list[str]:
        """How this run differs from the published one, one phrase each; of a completed recipe."""
        run = POTTER_RUNS[self.published]
        optim, schedule = self.optim, self.schedule
        updates = schedule.steps_per_epoch
        pairs: list[tuple[str, Any, Any]] = [
            ("network", PotterMeshConfig(), self.network),
            ("batch per process", run.batch_size, self.batch_size),
            ("processes", run.processes, processes),
            ("updates", run.stopped_after * updates, self.steps),
            ("schedule", ("step", 0), (schedule.kind, schedule.warmup_steps)),
            ("learning rate", run.lr, optim.lr),
            ("weight decay", 0.0, optim.weight_decay),
            ("largest norm of each gradient", CLIP_NORM, self.clip_each),
            ("largest norm of all gradients", None, optim.clip_norm),
            ("betas", (0.9, 0.999), tuple(optim.betas)),
            ("averaging of weights", 0.0, self.ema_decay),
            ("precision", "no", self.mixed_precision),
            ("loss weights", PotterLossWeights(), self.weights),
            ("initial layer scale", None, self.layer_scale),
        ]
        if schedule.kind == "step":
            drops = _steps_at(DROPS, updates)
            pairs.append(("drops of the learning rate", drops, tuple(schedule.step_at)))
            pairs.append(("factor of a drop", FACTOR, schedule.factor))
        notes = [f"{name} {now}, published {then}" for name, then, now in pairs if now != then]
        missing = [name for name, place in self._places().items() if place is None]
        if self.is_synthetic:
            notes.append(f"data {self.data}, published a mix of four data sets")
        elif missing:
            notes.append(f"without {', '.join(missing)}")
        if not (self.augment or self.is_synthetic):
            notes.append("samples are not varied")
        if self.init is None:
            notes.append(f"starts from random weights, published from {run.start}")
        if self.mean_shape is None and not self.is_synthetic:
            notes.append("shapes are offsets from zero, published from the data's mean")
        if self.time_limit_minutes is not None:
            notes.append(f"stops after {self.time_limit_minutes} minutes")
        return notes + self._validation_departures(updates)

    def _validation_departures(self, updates: int) -> list[str]:
        """The published runs keep the weights that are best on each of two data sets."""
        names = [spec.split(":")[0] for spec in (self.validation_data, self.also_validate) if spec]
        notes = []
        if set(names) != {"h36m-hybrik", "3dpw-hybrik"}:
            chosen = " and ".join(names) or "no data"
            notes.append(f"validates on {chosen}, published on Human3.6M and 3DPW")
        elif len(names) == 2:
            notes.append(f"keeps the best weights on {names[0]} alone, published on each set")
        if names and self.validate_every != updates:
            notes.append(f"validates every {self.validate_every} updates, not after each epoch")
        return notes

    def open_training(self) -> Dataset[HybrikSample]:
        """Open the training data."""
        size = self.network.side
        if self.is_synthetic:
            return _kept(SyntheticHybrik(self.seed, size, self.samples, "train"))
        parts: dict[HybrikName, HybrikDataset] = {}
        for prefix, name in PREFIXES.items():
            place = self._places()[name]
            if place is not None:
                parts[name] = open_hybrik(
                    f"{prefix}{place}", split="train", train=self.augment, seed=self.seed, size=size
                )
        return HybrikMix([*parts.values()], [MIX[name] for name in parts], self.seed)

    def open_validation(self, spec: str) -> Dataset[HybrikSample]:
        """Open held-out data."""
        size = self.network.side
        if spec == SYNTHETIC_HYBRIK:
            return _kept(SyntheticHybrik(self.seed, size, self.validation_samples, "val"))
        return open_hybrik(spec, split="test", size=size)

    def build_task(self) -> "PotterBodyTask":
        """Build the task."""
        return PotterBodyTask(self)


def _kept(samples: SyntheticHybrik) -> Dataset[HybrikSample]:
    return KeptSamples(samples) if len(samples) <= KEPT_SAMPLES else samples


class _Stepped(Dataset[dict[str, Tensor]]):
    """Samples that know the training step, by which the loss changes."""

    def __init__(self, dataset: Dataset[HybrikSample]) -> None:
        self.dataset, self.step = dataset, 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def set_step(self, step: int) -> None:
        self.step = step
        if hasattr(self.dataset, "set_step"):
            self.dataset.set_step(step)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        # scores alone need the vertices, which are half a megabyte
        sample = {**self.dataset[index], "vertices": torch.zeros(0, 3)}
        return cast(dict[str, Tensor], {**sample, "step": torch.tensor(self.step)})


class PotterBodyTask:
    """The task behind a `PotterBodyRecipe`; see `kinemesh.training.task.Task`."""

    def __init__(self, recipe: PotterBodyRecipe) -> None:
        self.recipe = recipe
        self.started_from: str | None = None
        first = recipe.weights.first_epochs + 1
        self.late_step = first * recipe.schedule.steps_per_epoch

    @property
    def metric(self) -> str | None:
        """PA-MPJPE, which chooses the best weights in the published runs, too."""
        return "pa_mpjpe_mm" if self.recipe.validation_data else None

    def build_body(self) -> HybrikBody:
        """The body that is recovered."""
        if self.recipe.is_synthetic:
            return load_anny_hybrik()
        assert self.recipe.assets is not None
        return load_smpl_hybrik(self.recipe.assets)

    def build_model(self) -> PotterBody:
        """Build the network, from the initial weights if the recipe names some."""
        recipe = self.recipe
        network = PotterMesh(
            recipe.network, read_mean_shape(recipe.mean_shape, recipe.network.shapes)
        )
        if recipe.layer_scale is not None:
            draw_usual_weights(network, recipe.layer_scale)
        if recipe.init is not None:
            self.started_from = f"{recipe.init}: {load_initial_potter(network, recipe.init)}"
        return PotterBody(network, self.build_body())

    def parameter_groups(self, model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """All parameters together, as in the published runs."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        return [{"params": parameters, "lr": optim.lr, "weight_decay": optim.weight_decay}]

    def clip_gradients(self, model: nn.Module) -> None:
        """Clip the gradient of each tensor by itself."""
        clip_each_gradient(model.parameters(), self.recipe.clip_each)

    def train_dataset(self) -> Dataset[Any]:
        """The data of the recipe."""
        return _Stepped(self.recipe.open_training())

    def collate(self, samples: list[Any]) -> dict[str, Tensor]:
        """Stack samples."""
        batch = collate_hybrik(samples)
        return {**batch, "step": torch.stack([sample["step"] for sample in samples])}

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All loss terms of a batch."""
        raw, quaternions = model(batch["image"])
        prediction = BodyPrediction(
            raw.joints_uvd.float(),
            raw.joints_xyz.float(),
            quaternions,
            raw.shape.float(),
            raw.twist.float(),
            raw.camera_scale.float(),
            raw.camera_shift.float(),
        )
        late = batch["step"][0] >= self.late_step
        return body_loss(prediction, batch, self.recipe.weights, late=late)

    @functools.cached_property
    def _held_out(self) -> dict[str, DataLoader[dict[str, Tensor]]]:
        """By name of the data set; the first chooses the best weights."""
        recipe = self.recipe
        return {
            spec: held_out_batches(
                recipe.open_validation(spec),
                collate_hybrik,
                recipe.validation_batch_size,
                0 if spec == SYNTHETIC_HYBRIK else recipe.workers,
            )
            for spec in (recipe.validation_data, recipe.also_validate)
            if spec
        }

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score held-out samples with the flip test, in millimetres.

        The scores of the second data set begin with its name, as in ``h36m_pa_mpjpe_mm``.
        """
        assert isinstance(model, PotterBody)
        side = HybrikSide(model)
        scores: dict[str, float] = {}
        for spec, batches in self._held_out.items():
            protocol = protocol_of(spec)
            result = score_hybrik(side.columns(batches, device), protocol, ("", ""))
            first = "" if spec == self.recipe.validation_data else f"{protocol} "
            scores |= {
                f"{first}{r.metric} {r.unit}".lower().replace("-", "_").replace(" ", "_"): r.value
                for r in result.reports
                if r.unit == "mm"
            }
        return scores

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8] | None:
        """Nothing is drawn."""
        return None

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the network without the body; the record names the body."""
        assert isinstance(model, PotterBody)
        body = "anny-body" if self.recipe.is_synthetic else "smpl"
        record = potter_mesh_record(self.recipe.network, body) | {"training": dict(metadata)}
        save_model(path, model.network, None, record, half=False)


def _steps_at(epochs: Iterable[int], updates: int) -> tuple[float, ...]:
    return tuple(float(epoch * updates) for epoch in epochs)


def clip_each_gradient(parameters: Iterable[nn.Parameter], most: float) -> None:
    """Scale each gradient whose L2 norm is larger than ``most`` down to it; nothing waits."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norms = torch._foreach_norm(gradients)
    factors = [(most / (norm + 1e-6)).clamp(max=1.0) for norm in norms]
    torch._foreach_mul_(gradients, factors)


def read_mean_shape(path: Path | None, count: int) -> Tensor | None:
    """The mean shape of a .npy file.

    Raises:
        InputError: The file holds something else.
    """
    if path is None:
        return None
    try:
        values = np.load(path, allow_pickle=False).reshape(-1).astype(np.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"--mean-shape: {path}: expected numbers in a .npy: {error}.") from error
    if len(values) != count:
        raise InputError(f"--mean-shape: {path}: expected {count} numbers, found {len(values)}.")
    return torch.from_numpy(values)
