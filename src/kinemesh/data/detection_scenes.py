"""Whole images with the boxes and keypoints of everybody in them, for models that detect.

`SceneSample` is the record, `CocoScenes` reads COCO, `kinemesh.data.synthetic.scenes` renders, and
`collate_scenes` pads images and people of different number to one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.data.coco_keypoints import CocoFile, CocoImage, read_keypoints
from kinemesh.data.detection_boxes import PERSON, read_box
from kinemesh.data.keypoint_crop import PIXEL_CENTER, ColorOrder, Picture, normalise_picture
from kinemesh.data.keypoint_dataset import read_picture
from kinemesh.data.mesh_dataset import sample_generator
from kinemesh.errors import InputError
from kinemesh.models.prtr_sequential import pad_images
from kinemesh.skeletons import COCO17, HAND21

Float = NDArray[np.float32]


class SceneSample(TypedDict):
    """One image of H x W pixels with N people and M hands.

    Boxes are (centre x, centre y, width, height), x over the image's width and y over its height.
    Keypoints are x, y in the same units and a flag: 2 visible, 1 hidden, 0 unlabelled or outside of
    the image, with x = y = 0. All count from the corner of the image, so that the first pixel's
    centre is at (0.5 / W, 0.5 / H): resizing keeps them, and mirroring takes x to 1 - x.
    """

    image: Tensor
    """(3, H, W) float32, normalised by ImageNet's statistics."""
    boxes: Tensor
    """(N, 4) float32: people; the part that is seen."""
    keypoints: Tensor
    """(N, 17, 3) float32: COCO's keypoints of the people."""
    areas: Tensor
    """(N,) float32: visible area of the people in the source image, square pixels."""
    hand_boxes: Tensor
    """(M, 4) float32: hands without a forearm. Data sets without labelled hands: (0, 4)."""
    hand_keypoints: Tensor
    """(M, 21, 3) float32: wrist, then each finger to its tip; or (0, 21, 3)."""
    image_id: Tensor
    """() int64: COCO's id, or the index."""
    original_size: Tensor
    """(2,) int64: width and height of the source image, pixels."""


def collate_scenes(samples: Sequence[SceneSample]) -> dict[str, Tensor]:
    """Pad images and lists of people to a batch.

    Returns:
        ``images`` (B, 3, H, W), zeros right of and below each image; ``padding_mask`` (B, H, W)
        bool, true there; ``sizes`` (B, 2) int64 height and width before. ``boxes`` (B, N, 4),
        ``keypoints`` (B, N, 17, 3) and ``areas`` (B, N) with zeros after the last person, and
        ``people`` (B, N) bool, true for a person; so ``hand_boxes`` (B, M, 4), ``hand_keypoints``
        (B, M, 21, 3) and ``hands`` (B, M). N and M are the largest numbers of the batch, at least
        1. ``image_id`` (B,) and ``original_size`` (B, 2).

    Raises:
        InputError: There is no sample.
    """
    if not samples:
        raise InputError("collate_scenes: expected at least one sample, found none.")
    padded = pad_images([sample["image"] for sample in samples])
    batch = {
        "images": padded.images,
        "padding_mask": padded.padding_mask,
        "sizes": padded.sizes,
        "people": _present([len(sample["boxes"]) for sample in samples]),
        "hands": _present([len(sample["hand_boxes"]) for sample in samples]),
    }
    rows = [dict(sample) for sample in samples]
    for name in ("boxes", "keypoints", "areas", "hand_boxes", "hand_keypoints"):
        length = batch["hands" if name.startswith("hand") else "people"].shape[1]
        values = [cast(Tensor, row[name]) for row in rows]
        batch[name] = torch.stack([_lengthened(value, length) for value in values])
    for name in ("image_id", "original_size"):
        batch[name] = torch.stack([cast(Tensor, row[name]) for row in rows])
    return batch


def _present(counts: Sequence[int]) -> Tensor:
    """(B, N) bool: the first ``counts`` of each row."""
    return torch.arange(max(1, *counts)) < torch.tensor(counts)[:, None]


def _lengthened(values: Tensor, length: int) -> Tensor:
    return F.pad(values, (0, 0) * (values.ndim - 1) + (0, length - len(values)))


@dataclass(frozen=True)
class SceneOptions:
    """How images become samples.

    Attributes:
        train: Vary the samples at random: mirror half of them and draw their size.
        seed: Key of the random variation.
        shortest: The image is resized so that its shorter side has so many pixels,
        longest: but its longer side no more than so many.
        varied: Shorter sides that training draws from, as parts of ``shortest``.
        order: Order of the colour channels.
    """

    train: bool = False
    seed: int = 0
    shortest: int = 800
    longest: int = 1333
    varied: tuple[float, float] = (0.6, 1.0)
    order: ColorOrder = "rgb"


class CocoScenes(Dataset[SceneSample]):
    """Images of COCO with all labelled people that are no crowd.

    A box is cut to its image; people without a labelled keypoint count, with flags 0. Keypoints
    are moved by half a pixel, since COCO's count from the first pixel's centre. In training,
    sample i of step t is varied by a generator seeded with (seed, t, i) alone; say t with
    `set_step`.

    Args:
        annotations: The JSON file, or the folder of the data set.
        images: Folder of the pictures; None looks beside the annotations.
        options: How images become samples.
        split: Which of several annotation files of a folder is meant.
        empty: Keep images without people.

    Raises:
        InputError: A file is missing or damaged; the message names it and the row.
    """

    skeleton = COCO17

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        *,
        options: SceneOptions | None = None,
        split: str | None = None,
        empty: bool = True,
    ) -> None:
        self.options = options or SceneOptions()
        self.file = CocoFile(annotations, images, split)
        scenes = [(image, _people(self.file, image)) for image in self.file.images]
        self.scenes = [scene for scene in scenes if empty or len(scene[1].boxes)]
        self.step = 0

    def __len__(self) -> int:
        return len(self.scenes)

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> SceneSample:
        """Image ``index``, varied in training.

        Raises:
            InputError: The picture is missing or damaged, or not as large as the file says.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} samples")
        index %= len(self)
        image, people = self.scenes[index]
        options = self.options
        picture = read_picture(image.path, options.order, f"'{self.file.path}', image {image.id}")
        if picture.shape[:2] != (image.height, image.width):
            raise InputError(
                f"'{self.file.path}', image {image.id}: expected {image.width} x {image.height} "
                f"px, found {picture.shape[1]} x {picture.shape[0]} in '{image.path}'. The labels "
                "belong to another picture."
            )
        shortest = options.shortest
        if options.train:
            rng = sample_generator(options.seed, self.step, index)
            shortest = round(shortest * rng.uniform(*options.varied))
            if rng.random_sample() < 0.5:
                picture, people = np.ascontiguousarray(picture[:, ::-1]), people.mirrored()
        picture = resize_picture(picture, shortest, options.longest)
        return make_scene_sample(picture, people, image.id, (image.width, image.height))


@dataclass(frozen=True)
class ScenePeople:
    """Labels of an image in the units of `SceneSample`.

    Attributes:
        boxes: (N, 4).
        keypoints: (N, 17, 3).
        areas: (N,).
        hand_boxes: (M, 4).
        hand_keypoints: (M, 21, 3).
    """

    boxes: Float
    keypoints: Float
    areas: Float
    hand_boxes: Float
    hand_keypoints: Float

    def mirrored(self) -> "ScenePeople":
        """Labels of the mirrored image; hands keep the order of their joints."""
        order = list(COCO17.flip_permutation)
        return ScenePeople(
            _mirror_x(self.boxes),
            _mirror_keypoints(self.keypoints[:, order]),
            self.areas,
            _mirror_x(self.hand_boxes),
            _mirror_keypoints(self.hand_keypoints),
        )


def make_scene_sample(
    picture: Picture, people: ScenePeople, image_id: int, original_size: tuple[int, int]
) -> SceneSample:
    """Put a picture (H, W, 3), channels in the network's order, and its labels into the record."""
    return SceneSample(
        image=torch.from_numpy(normalise_picture(picture)),
        boxes=torch.from_numpy(people.boxes),
        keypoints=torch.from_numpy(people.keypoints),
        areas=torch.from_numpy(people.areas),
        hand_boxes=torch.from_numpy(people.hand_boxes),
        hand_keypoints=torch.from_numpy(people.hand_keypoints),
        image_id=torch.tensor(image_id),
        original_size=torch.tensor(original_size),
    )


def relative_boxes(corners: NDArray, width: int, height: int) -> Float:
    """Boxes (N, 4) as left, top, right, bottom in pixels to those of `SceneSample`."""
    low, high = corners[:, :2], corners[:, 2:]
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1)
    return (boxes / [width, height, width, height]).astype(np.float32)


def relative_keypoints(keypoints: NDArray, width: int, height: int) -> Float:
    """Keypoints (N, J, 3) in pixels, with pixel centres at +0.5, to those of `SceneSample`.

    Unlabelled ones become zeros.
    """
    scaled = keypoints / [width, height, 1]
    return np.where(keypoints[..., 2:] > 0, scaled, 0).astype(np.float32)


def _people(file: CocoFile, image: CocoImage) -> ScenePeople:
    corners, keypoints, areas = [], [], []
    for number, row in image.annotations:
        if row.get("iscrowd", 0) or row.get("category_id", PERSON) != PERSON:
            continue
        where = file.where(number)
        x, y, w, h = read_box(row, where).tolist()
        right, bottom = min(x + w, image.width), min(y + h, image.height)
        x, y = max(x, 0.0), max(y, 0.0)
        if right <= x or bottom <= y:
            continue
        corners.append((x, y, right, bottom))
        keypoints.append(read_keypoints(row, where))
        areas.append(float(row.get("area", (right - x) * (bottom - y))))
    size = (image.width, image.height)
    from_the_corner = np.reshape(keypoints, (-1, len(COCO17), 3)).astype(np.float64)
    from_the_corner[..., :2] += PIXEL_CENTER
    return ScenePeople(
        relative_boxes(np.reshape(corners, (-1, 4)), *size),
        relative_keypoints(from_the_corner, *size),
        np.array(areas, dtype=np.float32),
        np.zeros((0, 4), dtype=np.float32),
        np.zeros((0, len(HAND21), 3), dtype=np.float32),
    )


def resize_picture(picture: Picture, shortest: int, longest: int) -> Picture:
    """Resize the shorter side to so many pixels, but the longer one to no more than so many."""
    height, width = picture.shape[:2]
    zoom = min(shortest / min(height, width), longest / max(height, width))
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    way = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
    return cast(Picture, cv2.resize(picture, size, interpolation=way))


def _mirror_x(boxes: Float) -> Float:
    return np.concatenate([1 - boxes[:, :1], boxes[:, 1:]], axis=1)


def _mirror_keypoints(keypoints: Float) -> Float:
    mirrored = keypoints.copy()
    mirrored[..., 0] = np.where(keypoints[..., 2] > 0, 1 - keypoints[..., 0], 0)
    return mirrored
