"""PointHMR's training: the published runs, and one on synthetic data for anybody."""

from dataclasses import replace
from pathlib import Path

from kinemesh.training.mesh_transformer_recipes import published_recipe
from kinemesh.training.point_hmr_task import POINT_PUBLISHED, PointHmrRecipe, PointNetworkChanges


def _published(name: str) -> PointHmrRecipe:
    return published_recipe(PointHmrRecipe, name, POINT_PUBLISHED[name])


def _exchanged(name: str, other: str) -> PointHmrRecipe:
    recipe = _published(name)
    recipe.optim.lr = POINT_PUBLISHED[other].lr
    recipe.output = Path("runs") / f"{name}-exchanged-lr"
    return recipe


def point_hmr_mixed() -> PointHmrRecipe:
    """PointHMR, body, as published: mixed data sets at 1e-5 (--data, --assets, --init)."""
    return _published("point-hmr-mixed")


def point_hmr_3dpw() -> PointHmrRecipe:
    """PointHMR, body, as published: fine-tuned on 3DPW at 1e-4 (--data, --assets, --init)."""
    return _published("point-hmr-3dpw")


def point_hmr_mixed_exchanged_lr() -> PointHmrRecipe:
    """PointHMR, body: mixed data sets at 1e-4, the published rate of the other run."""
    return _exchanged("point-hmr-mixed", "point-hmr-3dpw")


def point_hmr_3dpw_exchanged_lr() -> PointHmrRecipe:
    """PointHMR, body: fine-tuned on 3DPW at 1e-5, the published rate of the other run."""
    return _exchanged("point-hmr-3dpw", "point-hmr-mixed")


def point_hmr_synthetic() -> PointHmrRecipe:
    """PointHMR, small, on synthetic bodies."""
    recipe = _published("point-hmr-mixed")
    return replace(
        recipe,
        data="synthetic-body",
        validation_data="synthetic-body",
        protocol="own",
        # a fiftieth of the published work
        network=PointNetworkChanges(
            width=18,
            stem_width=32,
            modules=(1, 2, 2),
            feature_width=128,
            position_width=32,
            second_width=64,
            feed_forward=(256, 128),
        ),
        resolution=128,
        batch_size=16,
        # an epoch of 500 updates: 20 epochs are 10,000 updates of 16 crops
        samples=8000,
        # from random weights, and without the fine-tuned start of the published run
        optim=replace(recipe.optim, lr=3e-4),
        schedule=replace(recipe.schedule, epochs=20),
        workers=1,
        channels_last=True,
        log_every=10,
        output=Path("runs/point-hmr-synthetic"),
    )
