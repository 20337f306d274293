"""What the readers of keypoint data share: from a box of a file to a `KeypointSample`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.data.keypoint_augmentation import (
    PLAIN,
    KeypointAugmentation,
    KeypointVariation,
    vary_person,
)
from kinemesh.data.keypoint_crop import (
    PIXELS_OF_SCALE,
    ColorOrder,
    Picture,
    Placement,
    Size,
    crop_affine,
    decode_picture,
    map_points,
    normalise_picture,
    warp_picture,
)
from kinemesh.data.keypoint_records import KeypointSample
from kinemesh.data.mesh_dataset import sample_generator
from kinemesh.errors import InputError
from kinemesh.skeletons import Skeleton

SIZE = (288, 384)


@dataclass(frozen=True)
class KeypointOptions:
    """How samples are made of stored labels.

    Attributes:
        train: Vary the samples at random.
        seed: Key of the random variation.
        size: Width and height of the crop.
        order: Order of the colour channels: "bgr" for the published ResNets, "rgb" for HRNet.
        augmentation: Strength of the variation; None takes the published one of the data set.
    """

    train: bool = False
    seed: int = 0
    size: Size = SIZE
    order: ColorOrder = "bgr"
    augmentation: KeypointAugmentation | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1 or self.order not in get_args(ColorOrder):
            raise InputError(
                "size, order: expected positive (width, height) and 'bgr' or 'rgb', found "
                f"{self.size} and {self.order!r}."
            )

    @property
    def aspect(self) -> float:
        """Width over height of the crop."""
        return self.size[0] / self.size[1]


@dataclass(frozen=True)
class KeypointRecord:
    """One person as a file describes it, before any variation.

    Attributes:
        picture: File of the image.
        placement: The crop of the plain sample.
        joints: (J, 2) float32 image pixels, integer coordinates on pixel centres.
        visible: (J,) float32: 1 where the joint is labelled.
        score: Score of the box, 1 for a label.
        image_id: COCO's id, or a number of the image.
        annotation_id: COCO's id, or the row.
        where: File and row, for messages.
        size: Width and height of the image, where the file says them.
    """

    picture: Path
    placement: Placement
    joints: NDArray[np.float32]
    visible: NDArray[np.float32]
    score: float
    image_id: int
    annotation_id: int
    where: str
    size: Size | None = None


class KeypointDataset(Dataset[KeypointSample]):
    """Persons in crops, random access.

    In training, sample i of step (or pass) t is varied by a generator that is seeded with (seed, t,
    i) alone, so that it is the same in any order, batch and process. Say t with `set_step`; while
    nobody does, every pass sees the same variation.

    Args:
        records: The persons.
        skeleton: The joint set of the labels.
        options: How samples are made.
        augmentation: The published variation of this data set, which ``options`` may replace.
    """

    def __init__(
        self,
        records: Sequence[KeypointRecord],
        skeleton: Skeleton,
        options: KeypointOptions,
        augmentation: KeypointAugmentation,
    ) -> None:
        self.records = records
        self.skeleton = skeleton
        self.options = options
        self.augmentation = options.augmentation or augmentation
        self.step = 0

    def __len__(self) -> int:
        return len(self.records)

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> KeypointSample:
        """Sample ``index``, varied in training.

        Raises:
            InputError: Its picture is missing or damaged, or not as large as the file says.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} samples")
        index %= len(self)
        variation = PLAIN
        if self.options.train:
            rng = sample_generator(self.options.seed, self.step, index)
            visible = int((self.records[index].visible > 0).sum())
            variation = self.augmentation.draw(rng, visible)
        return self.sample(index, variation)

    def sample(self, index: int, variation: KeypointVariation = PLAIN) -> KeypointSample:
        """Sample ``index`` under a variation of your own."""
        record = self.records[index]
        picture = read_picture(record.picture, self.options.order, record.where)
        found = picture.shape[1::-1]
        if record.size not in (None, found):
            expected = " x ".join(map(str, record.size))
            raise InputError(
                f"{record.where}: expected an image of {expected} px, as its file says, found "
                f"{found[0]} x {found[1]} in '{record.picture}'. The labels belong to another "
                "size of this picture: take the pictures that were labelled."
            )
        return make_keypoint_sample(record, picture, self.skeleton, self.options, variation)


class MirroredCrops(Dataset[KeypointSample]):
    """Plain samples, of which half are mirrored, changing with each step.

    The finished crop is mirrored, x to 1 - x, exactly as the flip test does. The published
    variation mirrors the picture before it is cropped, which lies beside that by one pixel of the
    crop: little for 288 pixels, a lot for 64 that are learned by heart.

    Args:
        dataset: The plain samples, with a length.
        skeleton: Their joint set.
        seed: Together with step and index it decides which samples are mirrored.
    """

    def __init__(self, dataset: Dataset[KeypointSample], skeleton: Skeleton, seed: int) -> None:
        self.dataset = dataset
        self.skeleton = skeleton
        self.seed = seed
        self.step = 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> KeypointSample:
        """Sample ``index``, mirrored or not."""
        sample = self.dataset[index]
        rng = sample_generator(self.seed, self.step, index)
        return mirror_sample(sample, self.skeleton) if rng.random_sample() < 0.5 else sample


def mirror_sample(sample: KeypointSample, skeleton: Skeleton) -> KeypointSample:
    """The mirrored crop: left joints change places with right ones, fillers stay what they are."""
    order = list(skeleton.flip_permutation)
    target, weight = sample["target"][order], sample["weight"][order]
    mirrored = torch.stack([1 - target[:, 0], target[:, 1]], dim=1)
    target = torch.where(weight > 0, mirrored, target)
    return {**sample, "image": sample["image"].flip(-1), "target": target, "weight": weight}


def read_picture(path: Path, order: ColorOrder, where: str) -> Picture:
    """Read and decode a picture that a row of a file names.

    Raises:
        InputError: It is missing or damaged; the message begins with ``where``.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{where}: cannot read '{path}': {error.strerror}. Copy the picture there, or name the "
            "folder of the pictures."
        ) from error
    return decode_picture(content, f"{where}: '{path}'", order)


def make_keypoint_sample(
    record: KeypointRecord,
    picture: Picture,
    skeleton: Skeleton,
    options: KeypointOptions,
    variation: KeypointVariation = PLAIN,
) -> KeypointSample:
    """Vary and crop one person; a function of its arguments, without chance.

    Args:
        record: The person.
        picture: (H, W, 3) uint8, channels in the order of ``options``.
        skeleton: The joint set.
        options: Size of the crop; ``train`` plays no part.
        variation: What was drawn.

    Raises:
        InputError: The box is empty or not finite.
    """
    person = vary_person(
        record.placement,
        record.joints,
        record.visible,
        skeleton,
        variation,
        picture.shape[1],
        options.aspect,
    )
    center, scale = person.placement
    try:
        affine = crop_affine(center, scale, options.size, variation.rotation_deg)
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from error
    if variation.flip:
        picture = np.ascontiguousarray(picture[:, ::-1])
    image = normalise_picture(warp_picture(picture, affine, options.size))
    seen = person.visible[:, None] > 0
    # joints without a label stay where they are, as published
    joints = np.where(seen, map_points(affine, person.joints), person.joints)
    return KeypointSample(
        image=torch.from_numpy(image),
        target=_float(joints / np.array(options.size)),
        weight=_float(person.visible[:, None]),
        center=_float(center),
        scale=_float(scale),
        score=torch.tensor(record.score, dtype=torch.float32),
        area=torch.tensor(float(np.prod(scale * PIXELS_OF_SCALE)), dtype=torch.float32),
        image_id=torch.tensor(record.image_id),
        annotation_id=torch.tensor(record.annotation_id),
    )


def _float(values: NDArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
