"""Learning a PointHMR, as published or on other data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.mesh_losses import JointTargets
from kinemesh.models.checkpoint_files import check_is_file, read_tensors
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.models.point_hmr_checkpoints import is_point_hmr, load_backbone_trunk
from kinemesh.models.registry import is_weight_file
from kinemesh.models.variants import Variant, build_variant, get_variant
from kinemesh.point_losses import PointHmrLoss, PointLossWeights
from kinemesh.skeletons import Skeleton
from kinemesh.training.initial_weights import load_initial
from kinemesh.training.mesh_objective import Batch, JointObjective, MeshObjective
from kinemesh.training.mesh_transformer_task import (
    MeshNetworkRecipe,
    MeshTransformerTask,
    label_skeleton,
)
from kinemesh.training.published import PublishedRun

_POINT_MIXED = "Human3.6M, COCO (40 k), MuCo-3DHP, UP-3D and MPII, joined in one TSV file"
POINT_PUBLISHED: dict[str, PublishedRun] = {
    "point-hmr-mixed": PublishedRun(
        variant="point-hmr-body-w32",
        data=_POINT_MIXED,
        start="an HRNet-W32 trained to recover people",
        batch_size=12,
        processes=2,
        epochs=60,
        masked_share=0.0,
        weights=PointLossWeights(),
        lr=1e-5,
    ),
    "point-hmr-3dpw": PublishedRun(
        variant="point-hmr-body-w32",
        data="3DPW's training set",
        start="the model of the mixed run",
        batch_size=12,
        processes=2,
        epochs=5,
        masked_share=0.0,
        weights=PointLossWeights(),
        protocol="3dpw",
        lr=1e-4,
    ),
}
"""The published runs, by the name of the recipe that repeats them.

The two learning rates are those of the released commands. They look exchanged: METRO and Mesh
Graphormer train at 1e-4, and a fine-tuning mostly takes the smaller rate.
"""


@dataclass(kw_only=True)
class PointNetworkChanges:
    """Sizes other than the variant's; None keeps the published number."""

    width: int | None = None
    """Channels of HRNet's finest branch, or of ResNet's stem."""
    stem_width: int | None = None
    """Channels of HRNet's stem."""
    modules: tuple[int, int, int] | None = None
    """High-resolution modules in HRNet's stages 2, 3 and 4."""
    feature_width: int | None = None
    """Channels of the sampled features."""
    position_width: int | None = None
    """Channels of the learned positions beside them."""
    second_width: int | None = None
    """Width of the last two encoders."""
    feed_forward: tuple[int, int] | None = None
    """Width inside the feed-forward parts of the first and of the last two encoders."""
    hops: tuple[int, int, int, int] | None = None
    """Edges to the farthest vertex that a vertex attends to, in each encoder."""
    layers: int | None = None
    """Layers of each encoder."""
    heads: int | None = None
    """Attention heads."""
    dropout: float | None = None
    """Dropout in the encoders."""

    def overrides(self, variant: Variant, resolution: int) -> dict[str, Any]:
        """What `build_variant` has to be told beside the name of the variant."""
        given = {k: v for k, v in vars(self).items() if v is not None}
        names = ("width", "stem_width", "modules")
        backbone = {name: given.pop(name) for name in names if name in given}
        if backbone:
            given["backbone"] = dict(variant.backbone) | backbone
        if "feature_width" in given:
            given["width"] = given.pop("feature_width")
        return given | ({} if resolution == variant.resolution else {"resolution": resolution})


@dataclass(kw_only=True)
class PointHmrRecipe(MeshNetworkRecipe):
    """A published run of PointHMR, or the same on other data and sizes."""

    published: str = "point-hmr-mixed"
    """The published run that this one follows, a key of `POINT_PUBLISHED`."""
    variant: str = "point-hmr-body-w32"
    """The network."""
    network: PointNetworkChanges = field(default_factory=PointNetworkChanges)
    """Sizes other than the variant's."""
    weights: PointLossWeights = field(default_factory=PointLossWeights)
    """Weights of the loss terms."""
    heed_has_2d: bool = False
    """Leave out the 2D joints of samples that are marked as without; published: all count."""
    sync_batch_norm: bool = True
    """On several GPUs normalise by the statistics of all of them, as published."""

    @property
    def run(self) -> PublishedRun:
        """The published run that this one follows."""
        return POINT_PUBLISHED[self.published]

    def _settings_of_network(self) -> list[tuple[str, Any, Any]]:
        own = self.network.dropout
        return [
            ("dropout", self.run.dropout, self.run.dropout if own is None else own),
            ("2D joints of samples marked as without", "count", _counting(self.heed_has_2d)),
        ]

    def _changed_sizes(self) -> list[str]:
        return [k for k, v in vars(self.network).items() if v is not None and k != "dropout"]

    def build_task(self) -> "PointHmrTask":
        """Build the task."""
        return PointHmrTask(self)


def _counting(heeded: bool) -> str:
    return "do not count" if heeded else "count"


class PointHmrObjective(MeshObjective):
    """Joints, mesh and heat maps.

    Args:
        labels: Joint set of the data.
        topology: The mesh that the network predicts.
        weights: Weights of the terms.
        body_model: Poses the meshes of the labels; without it the batch's vertices are the target.
        heed_has_2d: Leave out the 2D joints of samples that are marked as without.
    """

    def __init__(
        self,
        labels: Skeleton,
        topology: Topology,
        weights: PointLossWeights,
        body_model: nn.Module | None = None,
        *,
        heed_has_2d: bool = False,
    ) -> None:
        super().__init__(labels, topology, weights, body_model)
        self.loss = PointHmrLoss(topology, weights)
        self.heed_has_2d = heed_has_2d

    def joint_targets(self, batch: Batch) -> JointTargets:
        """Joints as the batch labels them; unlabelled ones in 2D without confidence if heeded."""
        known = super().joint_targets(batch)
        if not self.heed_has_2d:
            return known
        places, confidence = known.joints_2d_BT3[..., :2], known.joints_2d_BT3[..., 2:]
        confidence = confidence * batch["has_2d"][:, None, None]
        joints_2d_BT3 = torch.cat([places, confidence], dim=-1)
        return JointTargets(joints_2d_BT3, known.joints_3d_BT4, known.has_3d_B)


class PointHmrTask(MeshTransformerTask):
    """The task behind a `PointHmrRecipe`; see `kinemesh.training.task.Task`."""

    recipe: PointHmrRecipe

    def __init__(self, recipe: PointHmrRecipe) -> None:
        variant = get_variant(recipe.variant)
        # the objective is built by the constructor, and asks the recipe
        self.recipe = recipe
        super().__init__(recipe, recipe.network.overrides(variant, recipe.resolution))

    def _build_objective(self) -> JointObjective:
        recipe = self.recipe
        labels, body_model = label_skeleton(recipe, self.topology), self._body_model()
        return PointHmrObjective(
            labels, self.topology, recipe.weights, body_model, heed_has_2d=recipe.heed_has_2d
        )

    def build_model(self) -> nn.Module:
        """Build the network, from the initial weights if the recipe names some.

        Those are a whole network, official or ours, or any checkpoint that holds the backbone.

        Raises:
            InputError: The file holds neither.
        """
        network = build_variant(self.variant, self.topology, **self.overrides)
        if (path := self.recipe.init) is not None:
            check_is_file(path)
            if is_weight_file(path) or is_point_hmr(read_tensors(path)):
                self.started_from = load_initial(network, path)
            else:
                self.started_from = _load_backbone(network, path)
        return _synchronised(network) if self.recipe.sync_batch_norm else network

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All loss terms of a batch."""
        objective = self._objective_on(batch["image"].device)
        terms: dict[str, Tensor] = objective(model(normalise_imagenet(batch["image"])), batch)
        return terms


def _load_backbone(network: nn.Module, path: Any) -> str:
    try:
        return load_backbone_trunk(network.get_submodule("backbone"), path)
    except InputError as error:
        raise InputError(f"--init: {error}") from error


def _synchronised(network: nn.Module) -> nn.Module:
    """With batch norms that see all processes' samples, where there are several on GPUs."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if not distributed or torch.distributed.get_world_size() < 2 or not torch.cuda.is_available():
        return network
    synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return synchronised
