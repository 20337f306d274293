"""Training of hand-pose networks: the published runs of POTTER on Ego-Exo4D, and synthetic ones.

The published runs need Ego-Exo4D and ImageNet's weights, which their users have to get themselves.
The synthetic runs need nothing. The numbers of Ego-Exo4D's baseline are those of its released code;
the course variant is the same network with a smaller batch and fewer epochs.
"""

from pathlib import Path

from kinemesh.models.potter_hand import PotterHandConfig
from kinemesh.training.config import OptimConfig, ScheduleConfig
from kinemesh.training.hand_pose_task import (
    SYNTHETIC_HAND,
    HandLiftingRecipe,
    HandPoseRecipe,
    PublishedHandRun,
)


def _published(run: PublishedHandRun, name: str) -> HandPoseRecipe:
    """A run with every published number; steps and intervals follow from the size of the data."""
    return HandPoseRecipe(
        published=run,
        steps=0,
        batch_size=run.batch_size,
        validation_batch_size=run.validation_batch_size,
        optim=OptimConfig(lr=run.lr, weight_decay=0.0, betas=(0.9, 0.999), clip_norm=None),
        schedule=ScheduleConfig(kind="constant", epochs=run.epochs),
        ema_decay=0.0,
        workers=4,
        validate_every=0,
        checkpoint_every=0,
        log_every=50,
        output=Path("runs") / name,
    )


def potter_egoexo4d() -> HandPoseRecipe:
    """POTTER as published on Ego-Exo4D's hands (--data ego-exo4d:FOLDER, --init)."""
    return _published(PublishedHandRun(batch_size=64, epochs=70), "potter-egoexo4d")


def potter_egoexo4d_course() -> HandPoseRecipe:
    """POTTER on Ego-Exo4D's hands, batch 16 and 15 epochs (--data ego-exo4d:FOLDER, --init)."""
    run = PublishedHandRun(batch_size=16, validation_batch_size=16, epochs=15)
    return _published(run, "potter-egoexo4d-course")


def potter_hand() -> HandPoseRecipe:
    """POTTER, narrow, on rendered right hands, from random weights: 90 minutes on two cores."""
    return HandPoseRecipe(
        network=PotterHandConfig(widths=(32, 64, 160, 256), side=64, dropout=0.0, drop_path=0.0),
        data=SYNTHETIC_HAND,
        sides="right",
        layer_scale=0.5,
        root_counts=False,
        choose_by="mpjpe_mm",
        steps=16_000,
        batch_size=16,
        optim=OptimConfig(lr=1e-3, weight_decay=0.02, betas=(0.9, 0.98), clip_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=100, final_lr_ratio=0.01),
        ema_decay=0.995,
        workers=1,
        validate_every=400,
        checkpoint_every=400,
        output=Path("runs/potter-hand"),
    )


def hand_lifting() -> HandLiftingRecipe:
    """A transformer from 21 2D joints to 21 3D joints, on synthetic right hands."""
    return HandLiftingRecipe(
        root_counts=False,
        choose_by="mpjpe_mm",
        steps=12_000,
        batch_size=128,
        optim=OptimConfig(lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98), clip_norm=1.0),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=200, final_lr_ratio=0.01),
        ema_decay=0.998,
        validate_every=500,
        checkpoint_every=500,
        output=Path("runs/hand-lifting"),
    )
