"""Data sets of 2D keypoints by name or path, as the command line and recipes name them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from kinemesh.data.coco_keypoints import GROUND_TRUTH, CocoKeypoints
from kinemesh.data.detection_scenes import CocoScenes, SceneOptions
from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.data.synthetic.dataset import Split
from kinemesh.data.synthetic.scene_crops import SyntheticKeypoints
from kinemesh.data.synthetic.scenes import SIZE as SCENE_SIZE
from kinemesh.data.synthetic.scenes import SyntheticScenes
from kinemesh.errors import InputError

COCO, MPII, COCO_SCENES = "coco:", "mpii:", "coco-scenes:"
SYNTHETIC_KEYPOINTS, SYNTHETIC_SCENES = "synthetic-keypoints", "synthetic-scenes"
KNOWN_KEYPOINTS = (
    SYNTHETIC_KEYPOINTS,
    SYNTHETIC_SCENES,
    "coco:FOLDER or coco:person_keypoints.json",
    "coco-scenes:FOLDER or coco-scenes:person_keypoints.json",
    "mpii:FOLDER, mpii:FILE.json or mpii:FILE.mat",
)
"""What `open_keypoints` and `open_scenes` take, for help and messages."""

_COCO_SPLITS: Mapping[Split, str] = {"train": "train", "val": "val", "test": "val"}
_MPII_SPLITS: Mapping[Split, str] = {"train": "train", "val": "valid", "test": "valid"}


KeypointData: TypeAlias = CocoKeypoints | MpiiKeypoints | SyntheticKeypoints
SceneData: TypeAlias = CocoScenes | SyntheticScenes


def names_keypoints(spec: str) -> bool:
    """Whether a name belongs to a data set of people in crops, for `open_keypoints`."""
    return spec == SYNTHETIC_KEYPOINTS or spec.startswith((COCO, MPII))


def names_scenes(spec: str) -> bool:
    """Whether a name belongs to a data set of whole images, for `open_scenes`."""
    return spec == SYNTHETIC_SCENES or spec.startswith(COCO_SCENES)


def open_keypoints(
    spec: str,
    *,
    split: Split = "test",
    seed: int = 0,
    options: KeypointOptions | None = None,
    boxes: str | Path = GROUND_TRUTH,
    images: str | Path | None = None,
) -> KeypointData:
    """Open a data set of people in crops.

    Args:
        spec: ``synthetic-keypoints``; ``coco:`` or ``mpii:`` and the folder or annotation file.
        split: "train" varies the samples as published and means the annotations for training where
            a folder has several; "val" and "test" are the same for stored data. MPII's own
            ``.mat`` does not say who is the validation, so only "train" can be opened.
        seed: Key of what is random.
        options: All settings of the samples, in place of ``split``'s variation and ``seed``.
        boxes: For COCO: "ground-truth" or the file of a detector's boxes.
        images: Folder of the pictures; None looks beside the annotations.

    Raises:
        InputError: There is no such data set, or it is damaged.
    """
    name, _, place = spec.partition(":")
    if boxes != GROUND_TRUTH and f"{name}:" != COCO:
        raise InputError(f"boxes: detected boxes are for {COCO}, found '{spec}'.")
    plain = options or KeypointOptions(train=split == "train", seed=seed)
    if spec == SYNTHETIC_KEYPOINTS:
        return SyntheticKeypoints(plain, split)
    if spec.startswith(COCO):
        return CocoKeypoints(place, images, boxes=boxes, options=plain, split=_COCO_SPLITS[split])
    if spec.startswith(MPII):
        if Path(place).suffix == ".mat" and split != "train":
            raise InputError(
                f"'{spec}', split '{split}': MPII's own file labels people for training alone and "
                "does not say who is the validation. Open its people for training (kinemesh data "
                "check --train), or HRNet's annot/valid.json."
            )
        squared = options or replace(plain, size=(256, 256))
        return MpiiKeypoints(place, images, options=squared, split=_MPII_SPLITS[split])
    raise InputError(_unknown(spec))


def open_scenes(
    spec: str,
    *,
    split: Split = "test",
    seed: int = 0,
    options: SceneOptions | None = None,
    images: str | Path | None = None,
) -> SceneData:
    """Open a data set of whole images with everybody's boxes and keypoints.

    Args:
        spec: ``synthetic-scenes``; ``coco-scenes:`` and the folder or annotation file.
        split: As for `open_keypoints`.
        seed: Key of what is random.
        options: All settings of the samples; synthetic scenes heed the order of colours alone.
        images: Folder of the pictures; None looks beside the annotations.

    Raises:
        InputError: There is no such data set, or it is damaged.
    """
    plain = options or SceneOptions(train=split == "train", seed=seed)
    if spec == SYNTHETIC_SCENES:
        return SyntheticScenes(plain.seed, SCENE_SIZE, split=split, order=plain.order)
    if spec.startswith(COCO_SCENES):
        place = spec.removeprefix(COCO_SCENES)
        return CocoScenes(place, images, options=plain, split=_COCO_SPLITS[split])
    raise InputError(_unknown(spec))


def open_flat(spec: str, split: Split, seed: int) -> KeypointData | SceneData | None:
    """The data set of a name, of either kind; None if it is none of 2D keypoints."""
    if names_keypoints(spec):
        return open_keypoints(spec, split=split, seed=seed)
    return open_scenes(spec, split=split, seed=seed) if names_scenes(spec) else None


def _unknown(spec: str) -> str:
    return f"There is no data set of 2D keypoints '{spec}'. Known: {', '.join(KNOWN_KEYPOINTS)}."
