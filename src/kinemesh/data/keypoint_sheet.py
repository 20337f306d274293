"""Contact sheets of 2D keypoint data: crops and whole images with their labels."""

from collections.abc import Sequence
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.data.detection_scenes import CocoScenes, SceneSample
from kinemesh.data.keypoint_crop import ColorOrder, Picture, denormalise_picture
from kinemesh.data.keypoint_records import KeypointSample
from kinemesh.data.keypoint_sources import KeypointData, SceneData
from kinemesh.data.synthetic.scenes import SyntheticScenes
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import COCO17, HAND21, Skeleton

_PERSON, _HAND = (60, 220, 60), (250, 220, 40)
_SEEN, _HIDDEN = (255, 255, 255), (230, 40, 40)
_LONGEST = 384  # side of a cell in pixels


def draw_samples(dataset: KeypointData | SceneData, samples: Sequence[Any]) -> Picture:
    """Tile samples of a data set with their labels."""
    if isinstance(dataset, SyntheticScenes):
        return tile_scenes(samples, dataset.order)
    if isinstance(dataset, CocoScenes):
        return tile_scenes(samples, dataset.options.order)
    return tile_keypoints(samples, dataset.skeleton, dataset.options.order)


def tile_keypoints(
    samples: Sequence[KeypointSample], skeleton: Skeleton, order: ColorOrder, columns: int = 4
) -> Picture:
    """Tile crops, each beside a copy with its labelled joints joined to a skeleton.

    Returns:
        (rows * H, columns * 2 * W, 3) uint8 RGB.
    """
    cells = []
    for sample in samples:
        picture = denormalise_picture(sample["image"].numpy(), order)
        joints = (sample["target"] * sample["target"].new_tensor(picture.shape[1::-1])).numpy()
        drawn = draw_skeleton(
            picture, joints + 0.5, skeleton, confidence=sample["weight"][:, 0], thickness=2
        )
        cells.append(np.concatenate([picture, drawn], axis=1))
    return _tile(cells, columns)


def tile_scenes(samples: Sequence[SceneSample], order: ColorOrder, columns: int = 2) -> Picture:
    """Tile images, each beside a copy with its boxes and skeletons.

    People have green boxes and hands yellow ones; a joint that is seen has a white ring, a hidden
    one a red ring.

    Returns:
        (rows * h, columns * 2 * w, 3) uint8 RGB, cells as large as the largest image, whose longer
        side is 384 px at most.
    """
    cells = []
    for sample in samples:
        picture = denormalise_picture(sample["image"].numpy(), order)
        zoom = min(1.0, _LONGEST / max(picture.shape[:2]))
        size = (round(picture.shape[1] * zoom), round(picture.shape[0] * zoom))
        picture = cast(Picture, cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
        drawn = _draw(picture, sample["boxes"], sample["keypoints"], COCO17, _PERSON)
        drawn = _draw(drawn, sample["hand_boxes"], sample["hand_keypoints"], HAND21, _HAND)
        cells.append(np.concatenate([picture, drawn], axis=1))
    return _tile(cells, columns)


def _draw(
    picture: Picture,
    boxes: Tensor,
    keypoints: Tensor,
    skeleton: Skeleton,
    colour: tuple[int, int, int],
) -> Picture:
    size = np.array(picture.shape[1::-1], dtype=np.float32)
    for box, labels in zip(boxes.numpy(), keypoints.numpy(), strict=True):
        joints, flags = labels[:, :2] * size, labels[:, 2]
        picture = draw_skeleton(picture, joints, skeleton, confidence=flags / 2, thickness=1)
        corners = [(box[:2] + sign * box[2:] / 2) * size for sign in (-1, 1)]
        first, last = (corner.round().astype(int).tolist() for corner in corners)
        cv2.rectangle(picture, first, last, colour, 1)
        for joint, flag in zip(joints, flags, strict=True):
            if flag > 0:
                ring = _SEEN if flag > 1 else _HIDDEN
                cv2.circle(picture, joint.astype(int).tolist(), 3, ring, 1, cv2.LINE_AA)
    return picture


def _tile(cells: Sequence[NDArray], columns: int) -> Picture:
    """Cells of any sizes in a grid, black around smaller ones."""
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    rows = -(-len(cells) // columns)
    sheet = np.zeros((rows * height, columns * width, 3), dtype=np.uint8)
    for number, cell in enumerate(cells):
        top, left = number // columns * height, number % columns * width
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet
