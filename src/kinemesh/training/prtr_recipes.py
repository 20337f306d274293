"""PRTR's training: the 18 published runs, the sequential network's, and small ones on scenes.

The published runs need COCO or MPII, which their users have to get themselves. For the sequential
network no training was published: the numbers of its recipes are DETR's, shortened. The synthetic
runs need nothing, so that anybody can try them.
"""

from dataclasses import replace
from pathlib import Path

from kinemesh.models.prtr import PrtrConfig
from kinemesh.models.prtr_sequential import SequentialConfig
from kinemesh.models.prtr_variants import get_keypoint_variant
from kinemesh.training.config import OptimConfig, ScheduleConfig
from kinemesh.training.prtr_networks import PrtrBackbone
from kinemesh.training.prtr_published import (
    CLIP_NORM,
    FACTOR,
    LR,
    PRTR_RUNS,
    WEIGHT_DECAY,
)
from kinemesh.training.prtr_task import SYNTHETIC_PEOPLE, PrtrRecipe
from kinemesh.training.sequential_task import SYNTHETIC_SCENES, SequentialRecipe


def _optim(backbone_lr_scale: float) -> OptimConfig:
    return OptimConfig(
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        betas=(0.9, 0.999),
        clip_norm=CLIP_NORM,
        backbone_lr_scale=backbone_lr_scale,
    )


def _drops(epochs: int, after: tuple[int, ...], factor: float = FACTOR) -> ScheduleConfig:
    """Drops after whole epochs, as parts of the run."""
    return ScheduleConfig(
        kind="step", epochs=epochs, step_at=tuple(e / epochs for e in after), factor=factor
    )


def _published(name: str) -> PrtrRecipe:
    """A run with every published number; steps and intervals follow from the size of the data."""
    run, variant = PRTR_RUNS[name], get_keypoint_variant(name)
    assert isinstance(variant.config, PrtrConfig)
    return PrtrRecipe(
        published=name,
        network=variant.config,
        backbone=PrtrBackbone.of_spec(variant.backbone),
        size=variant.size,
        order=variant.order,
        validation_batch_size=run.test_batch_size,
        steps=0,
        batch_size=run.batch_size,
        optim=_optim(run.backbone_lr_scale),
        schedule=_drops(run.epochs, run.drops),
        ema_decay=0.0,
        workers=4,
        validate_every=0,
        checkpoint_every=0,
        log_every=50,
        output=Path("runs") / name,
    )


def prtr_coco_res50_384x288() -> PrtrRecipe:
    """PRTR as published: COCO, ResNet-50, 384x288 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-res50-384x288")


def prtr_coco_res50_512x384() -> PrtrRecipe:
    """PRTR as published: COCO, ResNet-50, 512x384 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-res50-512x384")


def prtr_coco_res101_384x288() -> PrtrRecipe:
    """PRTR as published: COCO, ResNet-101, 384x288 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-res101-384x288")


def prtr_coco_res101_512x384() -> PrtrRecipe:
    """PRTR as published: COCO, ResNet-101, 512x384 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-res101-512x384")


def prtr_coco_w32_384x288() -> PrtrRecipe:
    """PRTR as published: COCO, HRNet-W32, 384x288 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-w32-384x288")


def prtr_coco_w32_512x384() -> PrtrRecipe:
    """PRTR as published: COCO, HRNet-W32, 512x384 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-w32-512x384")


def prtr_coco_deform_res50_384x288() -> PrtrRecipe:
    """Deformable PRTR as published: COCO, ResNet-50, 384x288 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-deform-res50-384x288")


def prtr_coco_deform_res101_384x288() -> PrtrRecipe:
    """Deformable PRTR as published: COCO, ResNet-101, 384x288 (--data coco:FOLDER, --init)."""
    return _published("prtr-coco-deform-res101-384x288")


def prtr_mpii_res50_256x256() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-50, 256x256 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res50-256x256")


def prtr_mpii_res50_384x384() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-50, 384x384 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res50-384x384")


def prtr_mpii_res50_512x512() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-50, 512x512 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res50-512x512")


def prtr_mpii_res101_256x256() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-101, 256x256 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res101-256x256")


def prtr_mpii_res101_384x384() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-101, 384x384 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res101-384x384")


def prtr_mpii_res101_512x512() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-101, 512x512 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res101-512x512")


def prtr_mpii_res152_256x256() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-152, 256x256 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res152-256x256")


def prtr_mpii_res152_384x384() -> PrtrRecipe:
    """PRTR as published: MPII, ResNet-152, 384x384 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-res152-384x384")


def prtr_mpii_w32_256x256() -> PrtrRecipe:
    """PRTR as published: MPII, HRNet-W32, 256x256 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-w32-256x256")


def prtr_mpii_w32_384x384() -> PrtrRecipe:
    """PRTR as published: MPII, HRNet-W32, 384x384 (--data mpii:FOLDER, --init)."""
    return _published("prtr-mpii-w32-384x384")


def prtr_synthetic() -> PrtrRecipe:
    """PRTR, small, on rendered people with COCO's joints."""
    recipe = _published("prtr-coco-res50-384x288")
    return replace(
        recipe,
        data=SYNTHETIC_PEOPLE,
        validation_data=SYNTHETIC_PEOPLE,
        network=PrtrConfig(
            width=128, heads=4, queries=50, encoder_layers=3, decoder_layers=3, feed_forward=512
        ),
        # from random weights, a network whose norms learn is the better one
        backbone=PrtrBackbone(
            name="hrnet",
            width=16,
            stem_width=32,
            head_planes=(16, 32, 48, 64),
            pooled_channels=256,
            modules=(1, 2, 2),
        ),
        order="rgb",
        size=(96, 128),
        batch_size=16,
        samples=8000,
        optim=replace(recipe.optim, lr=2e-4, backbone_lr_scale=1.0),
        schedule=_drops(20, (14, 18)),
        workers=1,
        log_every=10,
        output=Path("runs/prtr-synthetic"),
    )


def prtr_sequential_detector() -> SequentialRecipe:
    """Sequential PRTR, first part: the person detector on COCO (--data coco:FOLDER, --init)."""
    return SequentialRecipe(
        learns="detector",
        steps=0,
        batch_size=2,
        optim=_optim(0.1),
        schedule=_drops(150, (100,), factor=0.1),
        ema_decay=0.0,
        workers=4,
        validate_every=0,
        checkpoint_every=0,
        log_every=50,
        output=Path("runs/prtr-sequential-detector"),
    )


def prtr_sequential() -> SequentialRecipe:
    """Sequential PRTR, second part: detector and keypoints on COCO (--data, --init)."""
    return replace(
        prtr_sequential_detector(),
        learns="both",
        fine_tune=True,
        # half of COCO's images show nobody; the detector has learned what those look like
        empty=False,
        schedule=_drops(100, (60, 80)),
        output=Path("runs/prtr-sequential"),
    )


def prtr_sequential_detector_synthetic() -> SequentialRecipe:
    """Sequential PRTR, small, first part: the person detector on rendered scenes."""
    recipe = prtr_sequential_detector()
    return replace(
        recipe,
        data=SYNTHETIC_SCENES,
        validation_data=SYNTHETIC_SCENES,
        network=SequentialConfig(
            person_queries=20,
            keypoint_queries=34,
            width=128,
            keypoint_width=128,
            heads=4,
            encoder_layers=3,
            decoder_layers=3,
            feed_forward=512,
            dropout=0.0,
        ),
        backbone=PrtrBackbone(width=32),
        size=(224, 192),
        batch_size=8,
        samples=4000,
        optim=replace(recipe.optim, lr=2e-4, backbone_lr_scale=1.0),
        schedule=_drops(20, (15,), factor=0.1),
        workers=1,
        log_every=10,
        output=Path("runs/prtr-sequential-detector-synthetic"),
    )


def prtr_sequential_synthetic() -> SequentialRecipe:
    """Sequential PRTR, small, detector and keypoints on rendered scenes (better with --init)."""
    return replace(
        prtr_sequential_detector_synthetic(),
        learns="both",
        output=Path("runs/prtr-sequential-synthetic"),
    )
