"""A picture of what PRTR's three networks have learned by heart, from rendered scenes.

python examples/prtr_sheet.py --out prtr_sheet.jpg

Renders a few scenes into files of COCO, trains a small network of each kind on them from random
weights, and draws what each finds in the same scenes: it shows that learning, files and prediction
agree, and nothing about people who were not learned. Takes about six minutes of one CPU core; what
was trained stays in --folder, and the same command goes on where it stopped.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

import kinemesh
from kinemesh.data.coco_keypoints import CocoFile, labelled_people
from kinemesh.data.synthetic.scene_crops import write_coco_scenes
from kinemesh.data.synthetic.scenes import SyntheticScenes
from kinemesh.files import write_bytes
from kinemesh.inference.images import load_image
from kinemesh.inference.keypoints import KeypointPredictor
from kinemesh.inference.person import Person
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import COCO17
from kinemesh.training import train
from kinemesh.training.config import ScheduleConfig
from kinemesh.training.prtr_networks import PrtrBackbone
from kinemesh.training.prtr_task import PrtrRecipe
from kinemesh.training.recipes import RECIPES
from kinemesh.training.sequential_task import SequentialRecipe

Picture = NDArray[np.uint8]
SMALL: dict[str, Any] = {
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "feed_forward": 256,
    "width": 128,
}
# as many queries as joints: a spare one may outvote them, see docs/prtr.md
QUERIES = 17
HRNET = PrtrBackbone(
    name="hrnet",
    width=8,
    stem_width=16,
    head_planes=(16, 32, 48, 64),
    pooled_channels=256,
    modules=(1, 1, 1),
)
RESNET = PrtrBackbone(width=16)
SCENE = (320, 256)  # width and height


def main() -> None:
    """Render, train, predict, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("prtr_sheet.jpg"))
    parser.add_argument("--folder", type=Path, default=Path("runs/prtr-sheet"))
    parser.add_argument("--scenes", type=int, nargs="+", default=[2, 4, 5, 7])
    parser.add_argument("--steps", type=int, default=600, help="of each training")
    options = parser.parse_args()
    scenes = SyntheticScenes(0, SCENE, people=(1, 3), hands=(0, 0))
    file = CocoFile(write_coco_scenes(options.folder, scenes, options.scenes, "train"))
    rows = []
    for recipe in recipes(file, options.folder, options.steps):
        result = train(recipe)
        row = draw_row(result.output / "best" / "weights.safetensors", file)
        rows.append(cv2.putText(row, result.output.name, (8, 20), 0, 0.6, (255, 255, 255), 2))
    encoded = cv2.imencode(".jpg", np.concatenate(rows)[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    write_bytes(options.out, encoded[1].tobytes())


def recipes(file: CocoFile, folder: Path, steps: int) -> list[PrtrRecipe | SequentialRecipe]:
    """A small network of each kind; every number that is not said here is the published one."""
    people = sum(len(list(labelled_people(file, image))) for image in file.images)
    found: list[PrtrRecipe | SequentialRecipe] = [
        on_crops("prtr-coco-w32-384x288", HRNET, 1e-3),
        on_crops("prtr-coco-deform-res50-384x288", RESNET, 5e-4),
        on_scenes(RESNET, 5e-4),
    ]
    for recipe, name in zip(found, ("two-stage", "deformable", "sequential"), strict=True):
        recipe.data, recipe.output = f"coco:{file.path}", folder / name
        # every step sees everything: all scenes, or a crop of each person
        recipe.batch_size = people if isinstance(recipe, PrtrRecipe) else len(file.images)
        recipe.steps, recipe.checkpoint_every = steps, 200
        recipe.schedule = ScheduleConfig(kind="cosine", warmup_steps=50)
        recipe.workers, recipe.threads, recipe.device = 0, 1, "cpu"
    return found


def on_crops(name: str, backbone: PrtrBackbone, lr: float) -> PrtrRecipe:
    """A small two-stage or deformable network."""
    recipe = RECIPES[name]()
    assert isinstance(recipe, PrtrRecipe)
    return replace(
        recipe,
        network=replace(recipe.network, queries=QUERIES, **SMALL),
        backbone=backbone,
        size=(64, 96),
        mirror_only=True,
        optim=replace(recipe.optim, lr=lr, backbone_lr_scale=1.0),
    )


def on_scenes(backbone: PrtrBackbone, lr: float) -> SequentialRecipe:
    """A small sequential network."""
    recipe = RECIPES["prtr-sequential"]()
    assert isinstance(recipe, SequentialRecipe)
    sizes: dict[str, Any] = {"person_queries": 10, "keypoint_queries": QUERIES}
    sizes |= {"keypoint_width": 128, "dropout": 0.0}
    return replace(
        recipe,
        network=replace(recipe.network, **SMALL, **sizes),
        backbone=backbone,
        shortest=SCENE[1] // 2,
        longest=SCENE[0] // 2,
        augment=False,
        fine_tune=False,
        optim=replace(recipe.optim, lr=lr, backbone_lr_scale=1.0),
    )


def draw_row(weights: Path, file: CocoFile) -> Picture:
    """What a network finds in each picture; two-stage networks get the boxes of the labels."""
    predictor = kinemesh.load(weights, "cpu")
    assert isinstance(predictor, KeypointPredictor)
    cells = []
    for image in file.images:
        photo = load_image(image.path)
        boxes = None
        if not predictor.finds_people:
            boxes = [box.tolist() for _, _, box in labelled_people(file, image)]
        cells.append(draw_people(photo.pixels, predictor.predict(photo, boxes)))
    return np.concatenate(cells, axis=1)


def draw_people(picture: Picture, people: Sequence[Person]) -> Picture:
    """The picture with the skeletons of people."""
    for person in people:
        picture = draw_skeleton(picture, person.joints_px, COCO17, person.joint_confidence)
    return picture


if __name__ == "__main__":
    main()
