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
from kinemesh.evaluation.hybrik import ProtocolName, score_hybrik
from kinemesh.evaluation.hybrik_side import HybrikSide
from kinemesh.models.potter_body import PotterBody, potter_mesh_record
from kinemesh.models.potter_checkpoints import load_initial_potter
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig
from kinemesh.models.registry import save_model
from kinemesh.potter_losses import BodyPrediction, PotterLossWeights, body_loss
from kinemesh.training.config import OptimConfig, Recipe
from kinemesh.training.potter_published import CLIP_NORM, DROPS, FACTOR, POTTER_RUNS
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
    augment: bool = True
    """Vary stored samples at random as published."""
    validation_data: str = ""
    """3dpw-hybrik:FOLDER, h36m-hybrik:FOLDER or synthetic-hybrik: labelled data that choose the
    best weights; without it the last weights are kept."""
    validation_batch_size: int = 32
    """Crops at once in validation."""
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
        updates = steps_per_epoch(len(self.open_training()), self.batch_size, processes)  # type: ignore[arg-type]
        interval = self.measure_epochs * updates
        return replace(
            self,
            steps=self.steps or self.schedule.epochs * updates,
            schedule=replace(
                self.schedule, steps_per_epoch=self.schedule.steps_per_epoch or updates
            ),
            validate_every=self.validate_every or interval,
            checkpoint_every=self.checkpoint_every or interval,
        )

    def _check_sources(self) -> None:
        if self.data not in {"", SYNTHETIC_HYBRIK}:
            raise InputError(
                f"--data: expected '{SYNTHETIC_HYBRIK}' or nothing, found {self.data!r}."
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

    def _places(self) -> dict[HybrikName, Path | None]:
        return {"h36m": self.h36m, "coco": self.coco, "3dhp": self.hp3d, "3dpw": self.pw3d}

    def departures(self, processes: int) -> list[str]:
        """How this run differs from the published one, one phrase each."""
        run = POTTER_RUNS[self.published]
        drops = tuple(drop / run.epochs for drop in DROPS if drop < run.epochs)
        optim, schedule = self.optim, self.schedule
        pairs: list[tuple[str, Any, Any]] = [
            ("network", PotterMeshConfig(), self.network),
            ("batch per process", run.batch_size, self.batch_size),
            ("processes", run.processes, processes),
            ("epochs", run.epochs, schedule.epochs),
            ("drops of the learning rate", drops, tuple(schedule.step_at)),
            ("factor of a drop", FACTOR, schedule.factor),
            ("learning rate", run.lr, optim.lr),
            ("weight decay", 0.0, optim.weight_decay),
            ("largest norm of each gradient", CLIP_NORM, self.clip_each),
            ("largest norm of all gradients", None, optim.clip_norm),
            ("loss weights", PotterLossWeights(), self.weights),
        ]
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
        if self.steps not in {0, run.stopped_after * schedule.steps_per_epoch}:
            notes.append(f"stops after {self.steps} steps")
        return notes

    def open_training(self) -> Dataset[HybrikSample]:
        """Open the training data."""
        size = self.network.side
        if self.is_synthetic:
            return KeptSamples(SyntheticHybrik(self.seed, size, self.samples, "train"))
        parts: dict[HybrikName, HybrikDataset] = {}
        for prefix, name in PREFIXES.items():
            place = self._places()[name]
            if place is not None:
                parts[name] = open_hybrik(
                    f"{prefix}{place}", split="train", train=self.augment, seed=self.seed, size=size
                )
        return HybrikMix([*parts.values()], [MIX[name] for name in parts], self.seed)

    def open_validation(self) -> Dataset[HybrikSample]:
        """Open the held-out data."""
        size = self.network.side
        if self.validation_data == SYNTHETIC_HYBRIK:
            stream = SyntheticHybrik(self.seed, size, self.validation_samples, "val")
            return KeptSamples(stream)
        return open_hybrik(self.validation_data, split="test", size=size)

    def build_task(self) -> "PotterBodyTask":
        """Build the task."""
        return PotterBodyTask(self)


class KeptSamples(Dataset[HybrikSample]):
    """Rendered samples, kept in memory where there are few."""

    def __init__(self, dataset: SyntheticHybrik) -> None:
        self.dataset = dataset
        self.kept: dict[int, HybrikSample] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> HybrikSample:
        """Sample ``index``, from memory if it was asked for before and there are few."""
        if len(self) > KEPT_SAMPLES:
            return self.dataset[index]
        if index not in self.kept:
            self.kept[index] = self.dataset[index]
        return self.kept[index]


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
    def _held_out(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(
            self.recipe.open_validation(),  # type: ignore[arg-type]
            batch_size=self.recipe.validation_batch_size,
            collate_fn=collate_hybrik,
            num_workers=0
            if self.recipe.validation_data == SYNTHETIC_HYBRIK
            else self.recipe.workers,
            # without a generator of its own, the loader would draw from the global random state
            generator=torch.Generator(),
        )

    @property
    def protocol(self) -> ProtocolName:
        """How held-out samples are scored."""
        for prefix, name in PREFIXES.items():
            if self.recipe.validation_data.startswith(prefix) and name != "coco":
                return cast(ProtocolName, name)
        return "own"

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score held-out samples with the flip test, in millimetres."""
        assert isinstance(model, PotterBody)
        side = HybrikSide(model)
        result = score_hybrik(side.columns(self._held_out, device), self.protocol, ("", ""))
        return {
            f"{r.metric} {r.unit}".strip().lower().replace("-", "_").replace(" ", "_"): r.value
            for r in result.reports
            if r.unit == "mm"
        }

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8] | None:
        """Nothing is drawn."""
        return None

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write the network without the body; the record names the body."""
        assert isinstance(model, PotterBody)
        body = "anny-body" if self.recipe.is_synthetic else "smpl"
        record = potter_mesh_record(self.recipe.network, body) | {"training": dict(metadata)}
        save_model(path, model.network, None, record, half=False)


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
