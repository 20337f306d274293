"""Training of POTTER's image classifier: as published, and small for a few images."""

from dataclasses import replace
from pathlib import Path

from kinemesh.data.classification_augmentation import ClassificationAugmentation
from kinemesh.data.mixing import Mixing
from kinemesh.models.potter_classifier import PotterClassifierConfig
from kinemesh.training.classifier_task import WEIGHT_DECAY, ClassifierRecipe
from kinemesh.training.config import EpochCosineConfig, OptimConfig


def potter_classifier() -> ClassifierRecipe:
    """POTTER's S12 classifier as published: ImageNet-1k (--data imagenet:FOLDER)."""
    return ClassifierRecipe(
        steps=0,
        batch_size=128,
        optim=OptimConfig(lr=0.0, weight_decay=WEIGHT_DECAY, clip_norm=None),
        ema_decay=0.0,
        workers=8,
        validate_every=0,
        checkpoint_every=0,
        log_every=50,
        output=Path("runs/potter-classifier"),
    )


def potter_classifier_small() -> ClassifierRecipe:
    """A narrow classifier of ten classes for a few small images (--data imagenet:FOLDER)."""
    recipe = potter_classifier()
    return replace(
        recipe,
        network=PotterClassifierConfig(
            layers=(1, 1, 1, 1), widths=(32, 64, 96, 128), drop_path=0.0, classes=10
        ),
        side=64,
        batch_size=10,
        # a sign means something else in the mirror, upside down or in part
        augmentation=ClassificationAugmentation(
            scale=(0.6, 1.0), mirror=0.0, rand_augment=False, erase=0.0
        ),
        mixing=Mixing(mixup=0.0, cutmix=0.0),
        optim=replace(recipe.optim, lr=2e-3),
        schedule=EpochCosineConfig(epochs=190),
        measure_epochs=20,
        workers=0,
        log_every=10,
        output=Path("runs/potter-classifier-small"),
    )
