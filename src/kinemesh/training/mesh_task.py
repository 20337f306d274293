"""Learning a `GuidedGraphormer` from labelled crops: its losses, its validation, its pictures."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from kinemesh.bodies import load_topology
from kinemesh.bodies.topology import Kind, Topology
from kinemesh.data.records import Sample, collate
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.synthetic.dataset import Split
from kinemesh.evaluation import batches, score
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.geometry.crops import to_signed
from kinemesh.losses import (
    edge_length_loss,
    heatmap_cross_entropy,
    masked_error,
    vertices_loss,
)
from kinemesh.models.guided_graphormer import (
    GuidedGraphormer,
    GuidedGraphormerConfig,
    GuidedOutput,
)
from kinemesh.models.pretrained import load_imagenet
from kinemesh.models.registry import save_model
from kinemesh.training.config import Recipe
from kinemesh.training.pictures import prediction_sheet


@dataclass(kw_only=True)
class MeshLossWeights:
    """Weight of each loss term. Lengths are measured in units of the template's reach."""

    joints: float = 4.0
    """L1 of joints in the root frame."""
    vertices: float = 4.0
    """L1 of coarse vertices in the root frame."""
    places: float = 2.0
    """L1 of 2D joints in [-1, 1] of the crop; joints outside the crop count a fifth."""
    heat_maps: float = 0.3
    """Cross-entropy of the heat maps of joints inside the crop."""
    reprojection: float = 0.5
    """L1 of joints projected with the predicted weak-perspective camera."""
    edges: float = 8.0
    """L1 of coarse edge lengths."""
    inside: float = 0.1
    """Binary cross-entropy of a joint being inside the crop."""
    side: float = 0.2
    """Binary cross-entropy of right against left hand; an eighth of each batch is mirrored."""


@dataclass(kw_only=True)
class MeshRecipe(Recipe):
    """A `GuidedGraphormer` on synthetic Anny data."""

    kind: Kind = "hand"
    """What is recovered."""
    network: GuidedGraphormerConfig = field(default_factory=GuidedGraphormerConfig)
    """Sizes of the network."""
    weights: MeshLossWeights = field(default_factory=MeshLossWeights)
    """Loss weights."""
    imagenet: bool = True
    """Start the backbone from ImageNet weights (needs the extra 'train')."""
    samples: int | None = None
    """Train on this many samples over and over; None streams new ones without end."""
    validation_samples: int = 512
    """Held-out samples in each validation."""
    augment_side: bool = True
    """For hands: mirror an eighth of each batch to learn the side."""

    def build_task(self) -> "MeshTask":
        """Build the task."""
        return MeshTask(self)


class FirstSamples(Dataset[Sample]):
    """The first samples of a data set, rendered once and kept in memory."""

    def __init__(self, dataset: SyntheticDataset, count: int) -> None:
        self.dataset = dataset
        self.count = count
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``, from memory if it was asked for before."""
        if index not in self.kept:
            self.kept[index] = self.dataset[index]
        return self.kept[index]


class MeshTask:
    """The task behind a `MeshRecipe`; see `kinemesh.training.task.Task`."""

    metric = "pa_mpvpe_mm"

    def __init__(self, recipe: MeshRecipe) -> None:
        self.recipe = recipe
        self.topology: Topology = load_topology(f"anny-{recipe.kind}")
        joints = self.topology.template_joints
        self.length_scale = float(joints.norm(dim=-1).max())

    def build_model(self) -> GuidedGraphormer:
        """Build the network, on ImageNet weights if the recipe says so."""
        network = GuidedGraphormer(self.recipe.network, self.topology)
        if self.recipe.imagenet:
            load_imagenet(network.backbone)
        return network

    def train_dataset(self) -> Dataset[Sample]:
        """Stream of synthetic samples, or the first few of it."""
        stream = self._dataset("train")
        return stream if self.recipe.samples is None else FirstSamples(stream, self.recipe.samples)

    def _dataset(self, split: Split) -> SyntheticDataset:
        recipe = self.recipe
        return SyntheticDataset(
            recipe.kind, seed=recipe.seed, resolution=recipe.network.resolution, split=split
        )

    def collate(self, samples: list[Sample]) -> dict[str, Tensor]:
        """Stack samples."""
        return collate(samples)

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All loss terms; mirrored hands count for the side alone."""
        image, keep = batch["image"], torch.ones_like(batch["has_3d"])
        if self.recipe.kind == "hand" and self.recipe.augment_side:
            mirrored = max(1, len(image) // 8)
            image = torch.cat([image[:mirrored].flip(-1), image[mirrored:]])
            keep[:mirrored] = 0
        output: GuidedOutput = model(image)
        terms = self._geometry(output, batch, keep) | self._places(output, batch, keep)
        side = F.binary_cross_entropy_with_logits(output.side_logits, keep)
        # a body has no side; the head stays in the graph, as training on many processes wants
        terms["side"] = side if self.recipe.kind == "hand" else side * 0
        weights = self.recipe.weights
        total = sum(
            (getattr(weights, name) * value for name, value in terms.items()), torch.zeros(())
        )
        return {"total": total, **terms}

    def _geometry(
        self, output: GuidedOutput, batch: Mapping[str, Tensor], keep: Tensor
    ) -> dict[str, Tensor]:
        level, mesh = self.topology.coarse, keep * batch["has_mesh"]
        target = batch["vertices"][:, level.vertex_index.to(keep.device)]
        joints, labelled = batch["joints_3d"], keep * batch["has_3d"]
        errors = {
            "joints": masked_error(
                output.joints, joints[..., :3], "l1", joints[..., 3], has_B=labelled
            ),
            "vertices": vertices_loss(output.coarse, target, mesh),
            "edges": edge_length_loss(output.coarse, target, level.faces.to(keep.device), mesh),
        }
        return {name: value / self.length_scale for name, value in errors.items()}

    def _places(
        self, output: GuidedOutput, batch: Mapping[str, Tensor], keep: Tensor
    ) -> dict[str, Tensor]:
        S, labelled = batch["image"].shape[-1], keep * batch["has_2d"]
        places, inside = to_signed(batch["joints_2d"][..., :2], S), batch["joints_2d"][..., 2]
        weight = 0.2 + 0.8 * inside
        projected = WeakPerspective.from_vector(output.camera).project(output.joints)
        logits = output.heat_map_logits
        log_maps = logits.flatten(2).log_softmax(-1).view_as(logits)
        seen = F.binary_cross_entropy_with_logits(output.inside_logits, inside, reduction="none")
        return {
            "places": masked_error(
                to_signed(output.joints_2d, S), places, "l1", weight, has_B=labelled
            ),
            "heat_maps": heatmap_cross_entropy(log_maps, places, inside, labelled),
            "reprojection": masked_error(projected, places, "l1", weight, has_B=labelled),
            "inside": (seen.mean(1) * labelled).sum() / labelled.sum().clamp(min=1),
        }

    @functools.cached_property
    def _held_out(self) -> list[dict[str, Tensor]]:
        return list(batches(self._dataset("val"), self.recipe.validation_samples))

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score held-out samples in millimetres and crop pixels."""
        return score(model, self._held_out, self.topology, device)

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8]:
        """Held-out crops with predicted joints and, below, the predicted mesh."""
        return prediction_sheet(model, self._held_out[0], self.topology, device)

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write a weight file that `kinemesh.load` takes."""
        record = {
            "architecture": "guided-graphormer",
            "config": asdict(self.recipe.network),
            "task": self.recipe.kind,
            "resolution": self.recipe.network.resolution,
            "training": dict(metadata),
        }
        save_model(path, model, self.topology, record)
