"""POTTER's training for human meshes: the published runs, and a small one on rendered people.

The published runs need Human3.6M, MPI-INF-3DHP and 3DPW in HybrIK's form, COCO, and SMPL, which
their users have to get themselves. The run on rendered people needs nothing.
"""

from dataclasses import replace
from pathlib import Path

from kinemesh.data.synthetic.hybrik import SYNTHETIC_HYBRIK
from kinemesh.models.potter_mesh import PotterMeshConfig
from kinemesh.potter_losses import PotterLossWeights
from kinemesh.training.config import OptimConfig, ScheduleConfig
from kinemesh.training.potter_mesh_task import PotterBodyRecipe
from kinemesh.training.potter_published import FACTOR, POTTER_RUNS


def _published(name: str) -> PotterBodyRecipe:
    """A run with every published number; steps and intervals follow from the size of the data."""
    run = POTTER_RUNS[name]
    return PotterBodyRecipe(
        published=name,
        steps=0,
        batch_size=run.batch_size,
        seed=run.seed or 0,
        optim=OptimConfig(lr=run.lr, weight_decay=0.0, betas=(0.9, 0.999), clip_norm=None),
        schedule=ScheduleConfig(kind="step", epochs=run.stopped_after, step_at=(), factor=FACTOR),
        ema_decay=0.0,
        workers=8,
        validate_every=0,
        checkpoint_every=0,
        log_every=50,
        output=Path("runs") / name,
    )


def potter_hmr() -> PotterBodyRecipe:
    """POTTER's body as published: 200 epochs on four data sets (--h36m ..., --assets, --init)."""
    return _published("potter-hmr")


def potter_hmr_short() -> PotterBodyRecipe:
    """POTTER's body, the other published schedule: 20 epochs (--h36m ..., --assets, --init)."""
    return _published("potter-hmr-short")


def potter_hmr_log() -> PotterBodyRecipe:
    """POTTER's body as in the released log: 4 GPUs, learning rate 2e-4 (--h36m ..., --init)."""
    return _published("potter-hmr-log")


def potter_body() -> PotterBodyRecipe:
    """POTTER's body, small, on rendered people: Anny's pose, shape and mesh."""
    recipe = _published("potter-hmr")
    return replace(
        recipe,
        data=SYNTHETIC_HYBRIK,
        validation_data=SYNTHETIC_HYBRIK,
        network=PotterMeshConfig(
            side=128, dropout=0.0, drop_path=0.0, head_dropout=0.0, head_width=128, hidden=512
        ),
        layer_scale=0.5,
        batch_size=16,
        samples=20_000,
        optim=replace(recipe.optim, lr=5e-4),
        schedule=ScheduleConfig(kind="cosine", epochs=16, warmup_steps=200, final_lr_ratio=0.01),
        weights=PotterLossWeights(first_epochs=3),
        workers=1,
        log_every=10,
        output=Path("runs/potter-body"),
    )
