"""PRTR's recipes with tiny networks, on eight samples.

As a program it runs some of them for two steps, each:
``python -m tests.tiny_prtr_recipes DATA OUTPUT NAME ...``.
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
from kinemesh.training.prtr_networks import PrtrBackbone
from kinemesh.training.prtr_published import PRTR_RUNS
from kinemesh.training.prtr_task import PrtrRecipe
from kinemesh.training.recipes import RECIPES
from kinemesh.training.sequential_task import SequentialRecipe

SAMPLES = 8
PUBLISHED_NAMES = tuple(PRTR_RUNS)
SYNTHETIC_NAMES = (
    "prtr-synthetic",
    "prtr-sequential-detector-synthetic",
    "prtr-sequential-synthetic",
)
SEQUENTIAL_NAMES = ("prtr-sequential-detector", "prtr-sequential")
NAMES = PUBLISHED_NAMES + SEQUENTIAL_NAMES + SYNTHETIC_NAMES


def write_data(folder: Path) -> None:
    """Eight people in COCO's and in MPII's files; pictures are smooth noise."""
    rng = np.random.default_rng(0)
    coco, mpii = folder / "coco", folder / "mpii"
    for path in (coco / "annotations", coco / "train2017", mpii / "annot", mpii / "images"):
        path.mkdir(parents=True)
    images, annotations, people = [], [], []
    for number in range(1, SAMPLES + 1):
        name = f"{number:012d}.jpg"
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (96, 80), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(coco / "train2017" / name), picture)
        cv2.imwrite(str(mpii / "images" / name), picture)
        images.append({"id": number, "file_name": name, "width": 96, "height": 80})
        joints = rng.uniform([20, 10], [76, 70], (17, 2)).round(1)
        flags = rng.integers(0, 3, 17)
        flags[:4] = 2
        keypoints = np.concatenate([joints * (flags > 0)[:, None], flags[:, None]], axis=1)
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [18.0, 8.0, 60.0, 64.0],
                "area": 3000.0,
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": int((flags > 0).sum()),
            }
        )
        seen = (flags > 0).astype(int)[:16]
        people.append(
            {
                "image": name,
                "center": [48.0, 34.0],
                "scale": 0.35,
                "joints": np.where(seen[:, None] > 0, joints[:16], -1).tolist(),
                "joints_vis": seen.tolist(),
                "head_box": [40.0, 8.0, 56.0, 24.0],
            }
        )
    category = {"id": 1, "name": "person", "keypoints": [], "skeleton": []}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (coco / "annotations" / "person_keypoints_train2017.json").write_text(json.dumps(content))
    for split in ("train", "valid"):
        (mpii / "annot" / f"{split}.json").write_text(json.dumps(people))


def tiny(name: str, folder: Path, output: Path, **changes: object) -> PrtrRecipe | SequentialRecipe:
    """Recipe ``name`` with every number published but those of size, data and intervals."""
    recipe = RECIPES[name]()
    if isinstance(recipe, PrtrRecipe):
        _shrink_two_stage(recipe, folder)
    else:
        assert isinstance(recipe, SequentialRecipe)
        _shrink_sequential(recipe, folder)
    recipe.samples = recipe.batch_size = SAMPLES
    recipe.validation_samples = 2
    recipe.validation_data = ""
    recipe.workers, recipe.threads, recipe.device = 0, 1, "cpu"
    recipe.log_every = 1
    recipe.validate_every = recipe.checkpoint_every = 1000
    recipe.output = output
    for field, value in changes.items():
        assert hasattr(recipe, field)
        setattr(recipe, field, value)
    return recipe


def _shrink_two_stage(recipe: PrtrRecipe, folder: Path) -> None:
    recipe.network = replace(
        recipe.network,
        queries=20,
        width=32,
        heads=4,
        encoder_layers=1,
        decoder_layers=2,
        feed_forward=32,
    )
    width, height = recipe.size
    recipe.size = (64, 64) if width == height else (64, 96)
    if recipe.data == "":
        data = PRTR_RUNS[recipe.published].data
        recipe.data = f"{data}:{folder / data}"
    if recipe.backbone.name == "hrnet":
        recipe.backbone = PrtrBackbone(
            name="hrnet",
            width=4,
            stem_width=8,
            head_planes=(4, 4, 4, 8),
            pooled_channels=32,
            modules=(1, 1, 1),
        )
    else:
        recipe.backbone = PrtrBackbone(depth=50, width=4)


def _shrink_sequential(recipe: SequentialRecipe, folder: Path) -> None:
    recipe.network = replace(
        recipe.network,
        person_queries=8,
        keypoint_queries=20,
        width=32,
        keypoint_width=32,
        heads=4,
        encoder_layers=1,
        decoder_layers=2,
        feed_forward=32,
        rows=4,
        columns=3,
    )
    recipe.backbone = PrtrBackbone(depth=50, width=4)
    recipe.shortest, recipe.longest, recipe.size = 64, 96, (96, 64)
    recipe.data = recipe.data or f"coco:{folder / 'coco'}"
    recipe.fine_tune = False


def run(data: Path, output: Path, names: Sequence[str]) -> None:
    """Two steps of each recipe."""
    for name in names:
        train(tiny(name, data, output / name, steps=2, batch_size=SAMPLES // 2))


if __name__ == "__main__":
    # a run ends its group of processes, but a second one with the same address does not come about
    torch.distributed.destroy_process_group = lambda *_: None
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
