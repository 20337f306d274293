"""Training of the detector of people and hands."""

from pathlib import Path

from kinemesh.models.detector import DetectorConfig
from kinemesh.training.config import OptimConfig, ScheduleConfig
from kinemesh.training.detector_task import DetectorRecipe


def synthetic_detector() -> DetectorRecipe:
    """People, left and right hands in whole photos: FCOS on EfficientNet-Lite0, synthetic scenes.

    The first validation renders its own people; the folder of cut-outs grows to about 0.8 GB.
    """
    return DetectorRecipe(
        network=DetectorConfig(frozen_blocks=3),
        steps=40_000,
        batch_size=16,
        optim=OptimConfig(
            lr=1e-3, weight_decay=0.03, betas=(0.9, 0.99), clip_norm=5.0, backbone_lr_scale=0.3
        ),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=300, final_lr_ratio=0.01),
        ema_decay=0.9985,
        workers=1,
        channels_last=True,
        validate_every=1000,
        checkpoint_every=250,
        max_shard_mb=15.0,
        output=Path("runs/synthetic-detector"),
    )


def debug_detector() -> DetectorRecipe:
    """The same network learns eight scenes by heart: is the chain sound?"""
    recipe = synthetic_detector()
    recipe.network = DetectorConfig(side=192, channels=64, tower_layers=2, batch_norm_momentum=0.1)
    recipe.samples = recipe.validation_samples = recipe.batch_size = 8
    recipe.bodies, recipe.hands = 24, 12
    recipe.validates_training = True
    recipe.steps = 200
    recipe.optim.lr = 2e-3
    recipe.optim.weight_decay = 0.0
    recipe.schedule.warmup_steps = 20
    recipe.ema_decay = 0.9
    recipe.workers = 0
    recipe.validate_every = recipe.checkpoint_every = 200
    recipe.output = Path("runs/debug-detector")
    return recipe
