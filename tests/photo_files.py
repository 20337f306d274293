"""Tiny sets of photos with 2D labels, in which each joint is a dot of its own colour."""

import json
from pathlib import Path

import cv2
import numpy as np

from kinemesh.skeletons import COCO17, HAND21

WIDTH, HEIGHT = 160, 120
BOX = [30.0, 14.0, 84.0, 92.0]
HIDDEN = (0, 4)
"""Joints of the second person that have no label."""


def colour(joint: int) -> np.ndarray:
    """RGB of a joint's dot; far from that of any other joint, and from grey."""
    return np.array([(joint % 3) * 120, (joint // 3 % 3) * 120, 250 - joint // 9 * 100])


def places(joints: int, seed: int) -> np.ndarray:
    """(J, 2) whole pixels in `BOX`, far from each other, in an order of the seed."""
    x, y = np.meshgrid(np.arange(38, 110, 16), np.arange(22, 104, 16))
    grid = np.stack([x.ravel(), y.ravel()], axis=1)
    return np.random.default_rng(seed).permutation(grid)[:joints]


def photo(path: Path, points: np.ndarray) -> None:
    """A grey picture with a dot at each place."""
    canvas = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
    for joint, (x, y) in enumerate(points):
        canvas[y - 4 : y + 5, x - 4 : x + 5] = colour(joint)[::-1]
    cv2.imwrite(str(path), canvas)


def write_coco(folder: Path, count: int = 2) -> Path:
    """COCO's layout with one person a picture."""
    for name in ("annotations", "train2017"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number in range(count):
        points = places(len(COCO17), number)
        photo(folder / "train2017" / f"{number:012d}.png", points)
        flags = np.full((len(points), 1), 2)
        numbers = np.concatenate([points, flags], axis=1)
        if number == 1:
            numbers[list(HIDDEN)] = 0
        rows.append({"bbox": BOX, "area": 900.0, "keypoints": numbers.ravel().tolist()})
    _write(folder / "annotations" / "person_keypoints_train2017.json", rows)
    return folder


def write_whole_body(folder: Path) -> Path:
    """COCO-WholeBody's layout: a person with a left and one with a right hand."""
    for name in ("annotations", "train2017"):
        (folder / name).mkdir(parents=True)
    rows = []
    for number, side in enumerate(("left", "right")):
        points = places(len(HAND21), number)
        photo(folder / "train2017" / f"{number:012d}.png", points)
        numbers = np.concatenate([points, np.ones((len(points), 1))], axis=1).ravel().tolist()
        nothing = [0.0] * len(numbers)
        other = {"left": "right", "right": "left"}[side]
        rows.append(
            {
                f"{side}hand_kpts": numbers,
                f"{side}hand_valid": True,
                f"{other}hand_kpts": nothing,
                f"{other}hand_valid": False,
            }
        )
    _write(folder / "annotations" / "coco_wholebody_train_v1.0.json", rows)
    return folder


def write_freihand(folder: Path) -> Path:
    """FreiHAND's layout with one capture on two backgrounds."""
    pictures = folder / "training" / "rgb"
    pictures.mkdir(parents=True)
    points = places(len(HAND21), 3)
    camera = [[200.0, 0.0, 80.0], [0.0, 200.0, 60.0], [0.0, 0.0, 1.0]]
    # half a pixel away: the principal point of a picture is its middle, counted from its corner
    joints = np.column_stack([(points + 0.5 - [80, 60]) * 0.7 / 200, np.full(len(points), 0.7)])
    for number in range(2):
        photo(pictures / f"{number:08d}.jpg", points)
    for name, values in (("K", [camera]), ("xyz", [joints.tolist()]), ("mano", [[[0.0] * 61]])):
        (folder / f"training_{name}.json").write_text(json.dumps(values))
    return folder


def _write(path: Path, rows: list[dict]) -> None:
    """Annotations, one a picture."""
    images = [
        {"id": number, "file_name": f"{number:012d}.png", "width": WIDTH, "height": HEIGHT}
        for number in range(len(rows))
    ]
    for number, row in enumerate(rows):
        row |= {"id": number + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
    path.write_text(json.dumps({"images": images, "annotations": rows}))
