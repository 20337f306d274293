"""The recipes of hand pose with tiny networks, on eight samples.

As a program it runs some of them for two steps, each:
``python -m tests.tiny_hand_recipes DATA OUTPUT NAME ...``.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

from kinemesh.training import train
from kinemesh.training.hand_pose_task import HandLiftingRecipe, HandPoseRecipe
from kinemesh.training.recipes import RECIPES

SAMPLES = 8
PUBLISHED_NAMES = ("potter-egoexo4d", "potter-egoexo4d-course")
SYNTHETIC_NAMES = ("potter-hand", "hand-lifting")
NAMES = PUBLISHED_NAMES + SYNTHETIC_NAMES


def write_data(folder: Path) -> None:
    """Hands in the prepared form of Ego-Exo4D, eight to train on; pictures are smooth noise."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        frames = {str(number): _frame(rng, number) for number in range(SAMPLES // 2)}
        annotation = folder / "annotation" / "manual"
        annotation.mkdir(parents=True, exist_ok=True)
        path = annotation / f"ego_pose_gt_anno_{split}_public.json"
        path.write_text(json.dumps({"take-uid": frames}))
        pictures = folder / "image" / "undistorted" / split / "take"
        pictures.mkdir(parents=True)
        for number in range(SAMPLES // 2):
            coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            picture = cv2.resize(coarse, (512, 512), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(pictures / f"{number:06d}.jpg"), picture)


def _frame(rng: np.random.Generator, number: int) -> dict[str, object]:
    frame: dict[str, object] = {
        "metadata": {"take_uid": "take-uid", "take_name": "take", "frame_number": number}
    }
    for side, left in (("right", 300), ("left", 60)):
        valid = rng.random(21) < 0.8
        valid[:10] = True
        joints = rng.normal(0, 0.05, (21, 3)) + np.array([0, 0, 0.4])
        joints[~valid] = np.nan
        joints[0] = [0, 0, 0.4]
        places = rng.uniform([left, 200], [left + 120, 330], (21, 2))
        places[~valid] = np.nan
        frame |= {
            f"{side}_hand_2d": places.tolist(),
            f"{side}_hand_3d": joints.tolist(),
            f"{side}_hand_bbox": [left, 190, left + 130, 340],
            f"{side}_hand_valid_3d": valid.tolist(),
        }
    return frame


def tiny(name: str, folder: Path, output: Path, **changes: object) -> HandPoseRecipe:
    """Recipe ``name`` with every number published but those of size, data and intervals."""
    recipe = RECIPES[name]()
    assert isinstance(recipe, HandPoseRecipe)
    if isinstance(recipe, HandLiftingRecipe):
        recipe.network = replace(recipe.network, width=32, layers=2, heads=4, feed_forward=64)
        recipe.jitter = recipe.joint_dropout = 0.0
    else:
        recipe.network = replace(
            recipe.network,
            layers=(1, 1, 1, 1),
            widths=(32, 32, 32, 32),
            mlp_ratios=(1, 1, 1, 1),
            stream_layers=(1, 1, 1),
            stream_mlp_ratios=(1, 1, 1),
            side=32,
            head_width=32,
            lifting_width=64,
        )
        recipe.layer_scale = 0.1
    recipe.data = recipe.data or f"ego-exo4d:{folder}"
    recipe.samples = recipe.batch_size = SAMPLES
    recipe.validation_samples = 4
    recipe.mixed_precision = "no"
    recipe.workers, recipe.threads, recipe.device = 0, 1, "cpu"
    recipe.log_every = 1
    recipe.validate_every = recipe.checkpoint_every = 1000
    recipe.output = output
    for field, value in changes.items():
        assert hasattr(recipe, field)
        setattr(recipe, field, value)
    return recipe


def run(data: Path, output: Path, names: Sequence[str]) -> None:
    """Two steps of each recipe."""
    for name in names:
        train(tiny(name, data, output / name, steps=2, batch_size=SAMPLES // 2))


if __name__ == "__main__":
    # a run ends its group of processes, but a second one with the same address does not come about
    torch.distributed.destroy_process_group = lambda *_: None
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
