"""Recipes: functions without arguments that return a typed configuration.

``kinemesh train NAME`` runs one; every field can be changed on the command line.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kinemesh.models.guided_graphormer import GuidedGraphormerConfig
from kinemesh.training import classifier_recipes as classifiers
from kinemesh.training import detector_recipes as detectors
from kinemesh.training import hand_pose_recipes as hand_poses
from kinemesh.training import mesh_transformer_recipes as mesh_transformers
from kinemesh.training import point_hmr_recipes as point_hmr
from kinemesh.training import potter_mesh_recipes as potter_bodies
from kinemesh.training import prtr_recipes as prtr
from kinemesh.training.config import OptimConfig, Recipe, ScheduleConfig
from kinemesh.training.mesh_task import MeshRecipe


def synthetic_hand() -> MeshRecipe:
    """The shipped hand: a narrow Graphormer on EfficientNet-Lite0, synthetic Anny hands."""
    return MeshRecipe(
        kind="hand",
        network=GuidedGraphormerConfig(
            batch_norm_momentum=0.05, frozen_blocks=3, spread=True, mesh_share=0.25
        ),
        layers=30_000,
        steps=20_000,
        batch_size=16,
        optim=OptimConfig(
            lr=7e-4, weight_decay=0.03, betas=(0.9, 0.98), clip_norm=1.0, backbone_lr_scale=0.5
        ),
        schedule=ScheduleConfig(kind="cosine", warmup_steps=200, final_lr_ratio=0.01),
        ema_decay=0.998,
        workers=1,
        channels_last=True,
        validate_every=500,
        checkpoint_every=250,
        max_shard_mb=15.0,
        output=Path("runs/synthetic-hand"),
    )


def synthetic_body() -> MeshRecipe:
    """The shipped body: as the hand, on whole synthetic Anny bodies in CMU poses."""
    recipe = synthetic_hand()
    recipe.kind = "body"
    recipe.network = replace(recipe.network, block_layers=1)
    recipe.output = Path("runs/synthetic-body")
    return recipe


def debug_hand() -> MeshRecipe:
    """A small network that overfits eight hands within a minute: is the chain sound?"""
    recipe = synthetic_hand()
    recipe.network = GuidedGraphormerConfig(
        resolution=64,
        neck_dim=32,
        query_dim=64,
        query_layers=2,
        hidden_dims=(32, 24, 16),
        block_layers=1,
        batch_norm_momentum=0.1,
    )
    recipe.imagenet = False
    recipe.layers = None
    recipe.samples = 8
    recipe.batch_size = 8
    recipe.augment_side = False
    recipe.validation_samples = 16
    recipe.steps = 200
    recipe.schedule.warmup_steps = 20
    recipe.optim.lr = 2e-3
    recipe.ema_decay = 0.9
    recipe.workers = 0
    recipe.validate_every = 200
    recipe.output = Path("runs/debug-hand")
    return recipe


RECIPES: dict[str, Callable[[], Recipe]] = {
    "synthetic-hand": synthetic_hand,
    "synthetic-body": synthetic_body,
    "debug-hand": debug_hand,
    "synthetic-detector": detectors.synthetic_detector,
    "debug-detector": detectors.debug_detector,
    "metro-mixed": mesh_transformers.metro_mixed,
    "metro-3dpw": mesh_transformers.metro_3dpw,
    "metro-freihand": mesh_transformers.metro_freihand,
    "graphormer-mixed": mesh_transformers.graphormer_mixed,
    "graphormer-3dpw": mesh_transformers.graphormer_3dpw,
    "graphormer-freihand": mesh_transformers.graphormer_freihand,
    "graphormer-handpose": mesh_transformers.graphormer_handpose,
    "metro-mixed-synthetic": mesh_transformers.metro_mixed_synthetic,
    "metro-3dpw-synthetic": mesh_transformers.metro_3dpw_synthetic,
    "metro-freihand-synthetic": mesh_transformers.metro_freihand_synthetic,
    "graphormer-mixed-synthetic": mesh_transformers.graphormer_mixed_synthetic,
    "graphormer-3dpw-synthetic": mesh_transformers.graphormer_3dpw_synthetic,
    "graphormer-freihand-synthetic": mesh_transformers.graphormer_freihand_synthetic,
    "graphormer-handpose-synthetic": mesh_transformers.graphormer_handpose_synthetic,
    "point-hmr-mixed": point_hmr.point_hmr_mixed,
    "point-hmr-3dpw": point_hmr.point_hmr_3dpw,
    "point-hmr-mixed-exchanged-lr": point_hmr.point_hmr_mixed_exchanged_lr,
    "point-hmr-3dpw-exchanged-lr": point_hmr.point_hmr_3dpw_exchanged_lr,
    "point-hmr-synthetic": point_hmr.point_hmr_synthetic,
    "prtr-coco-res50-384x288": prtr.prtr_coco_res50_384x288,
    "prtr-coco-res50-512x384": prtr.prtr_coco_res50_512x384,
    "prtr-coco-res101-384x288": prtr.prtr_coco_res101_384x288,
    "prtr-coco-res101-512x384": prtr.prtr_coco_res101_512x384,
    "prtr-coco-w32-384x288": prtr.prtr_coco_w32_384x288,
    "prtr-coco-w32-512x384": prtr.prtr_coco_w32_512x384,
    "prtr-coco-deform-res50-384x288": prtr.prtr_coco_deform_res50_384x288,
    "prtr-coco-deform-res101-384x288": prtr.prtr_coco_deform_res101_384x288,
    "prtr-mpii-res50-256x256": prtr.prtr_mpii_res50_256x256,
    "prtr-mpii-res50-384x384": prtr.prtr_mpii_res50_384x384,
    "prtr-mpii-res50-512x512": prtr.prtr_mpii_res50_512x512,
    "prtr-mpii-res101-256x256": prtr.prtr_mpii_res101_256x256,
    "prtr-mpii-res101-384x384": prtr.prtr_mpii_res101_384x384,
    "prtr-mpii-res101-512x512": prtr.prtr_mpii_res101_512x512,
    "prtr-mpii-res152-256x256": prtr.prtr_mpii_res152_256x256,
    "prtr-mpii-res152-384x384": prtr.prtr_mpii_res152_384x384,
    "prtr-mpii-w32-256x256": prtr.prtr_mpii_w32_256x256,
    "prtr-mpii-w32-384x384": prtr.prtr_mpii_w32_384x384,
    "prtr-synthetic": prtr.prtr_synthetic,
    "prtr-sequential-detector": prtr.prtr_sequential_detector,
    "prtr-sequential": prtr.prtr_sequential,
    "prtr-sequential-detector-synthetic": prtr.prtr_sequential_detector_synthetic,
    "prtr-sequential-synthetic": prtr.prtr_sequential_synthetic,
    "potter-classifier": classifiers.potter_classifier,
    "potter-classifier-small": classifiers.potter_classifier_small,
    "potter-egoexo4d": hand_poses.potter_egoexo4d,
    "potter-egoexo4d-course": hand_poses.potter_egoexo4d_course,
    "potter-hand": hand_poses.potter_hand,
    "hand-lifting": hand_poses.hand_lifting,
    "potter-hmr": potter_bodies.potter_hmr,
    "potter-hmr-short": potter_bodies.potter_hmr_short,
    "potter-hmr-log": potter_bodies.potter_hmr_log,
    "potter-body": potter_bodies.potter_body,
}
"""Recipes by the name that the command line takes."""
