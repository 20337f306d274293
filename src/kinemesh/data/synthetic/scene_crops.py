"""Rendered people in the crops of keypoint data, and rendered scenes as files of COCO."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from torch.utils.data import Dataset

from kinemesh.data.keypoint_augmentation import PLAIN, KeypointAugmentation
from kinemesh.data.keypoint_crop import PIXEL_CENTER, Size, place_box
from kinemesh.data.keypoint_dataset import KeypointOptions, KeypointRecord, make_keypoint_sample
from kinemesh.data.keypoint_records import KeypointSample
from kinemesh.data.mesh_dataset import sample_generator
from kinemesh.data.synthetic.dataset import Split
from kinemesh.data.synthetic.scenes import SIZE, RenderedScene, SyntheticScenes
from kinemesh.errors import InputError
from kinemesh.files import atomic_path, write_json
from kinemesh.skeletons import COCO17


class SyntheticKeypoints(Dataset[KeypointSample]):
    """One person of each synthetic scene in a crop, with the box, keypoints and rules of COCO.

    Args:
        options: Size and order of the crops; ``seed`` is that of the scenes, and ``train`` varies
            the crops as COCO's are, by a generator seeded with (seed, step, index).
        split: "train", "val" or "test"; they draw from disjoint streams.
        size: Width and height of the scenes.
        length: Number of samples.
        people: Least and largest number of people in a scene; at least 1.
    """

    skeleton = COCO17

    def __init__(
        self,
        options: KeypointOptions | None = None,
        split: Split = "train",
        size: Size = SIZE,
        length: int = 10**7,
        people: tuple[int, int] = (1, 2),
    ) -> None:
        if people[0] < 1:
            raise InputError(f"people: expected at least one in each scene, found {people}.")
        self.options = options or KeypointOptions()
        self.augmentation = self.options.augmentation or KeypointAugmentation.coco()
        self.scenes = SyntheticScenes(
            self.options.seed, size, length, split, people=people, hands=(0, 0)
        )
        self.step = 0

    def __len__(self) -> int:
        return len(self.scenes)

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> KeypointSample:
        """The person of scene ``index`` of whom most is seen, varied in training."""
        scene = self.scenes.render(index)
        index %= len(self)
        record = person_record(scene, int(scene.areas.argmax()), index, self.options.aspect)
        variation = PLAIN
        if self.options.train:
            rng = sample_generator(self.options.seed, self.step, index)
            variation = self.augmentation.draw(rng, int(record.visible.sum()))
        picture = scene.picture if self.options.order == "rgb" else scene.picture[:, :, ::-1]
        picture = np.ascontiguousarray(picture)
        return make_keypoint_sample(record, picture, self.skeleton, self.options, variation)


def person_record(
    scene: RenderedScene, person: int, image_id: int, aspect: float
) -> KeypointRecord:
    """Somebody in a scene as the readers of keypoint data describe people."""
    left, top, right, bottom = scene.boxes[person].tolist()
    corner = (left - PIXEL_CENTER, top - PIXEL_CENTER)
    keypoints = scene.keypoints[person]
    visible = (keypoints[:, 2] > 0).astype(np.float32)
    return KeypointRecord(
        Path(),
        place_box(np.array([*corner, right - left, bottom - top]), aspect),
        (keypoints[:, :2] - PIXEL_CENTER) * visible[:, None],
        visible,
        1.0,
        image_id,
        person,
        f"synthetic scene {image_id}",
    )


def write_coco_scenes(
    folder: str | Path, scenes: SyntheticScenes, indices: Sequence[int], split: str = "val"
) -> Path:
    """Write scenes as a COCO data set: ``annotations/person_keypoints_SPLIT.json``, ``SPLIT/``.

    Pictures are PNG files. Hands are not written, since COCO has no such labels.

    Args:
        folder: Made if it does not exist.
        scenes: What is rendered.
        indices: Of the scenes.
        split: Part of the file names.

    Returns:
        The annotation file.
    """
    root = Path(folder)
    for name in (split, "annotations"):
        (root / name).mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number, index in enumerate(indices, start=1):
        scene = scenes.render(index)
        height, width = scene.picture.shape[:2]
        name = f"{number:012d}.png"  # COCO's evaluation reads the id from the name
        with atomic_path(root / split / name) as path:
            cv2.imwrite(str(path), cv2.cvtColor(scene.picture, cv2.COLOR_RGB2BGR))
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for person in range(len(scene.boxes)):
            rows.append({"id": len(rows) + 1, "image_id": number} | _coco_row(scene, person))
    category = {"id": 1, "name": "person", "keypoints": COCO17.joints, "skeleton": []}
    content = {"images": images, "annotations": rows, "categories": [category]}
    file = root / "annotations" / f"person_keypoints_{split}.json"
    write_json(file, content, indent=None)
    return file


def _coco_row(scene: RenderedScene, person: int) -> dict[str, Any]:
    left, top, right, bottom = scene.boxes[person].tolist()
    keypoints = scene.keypoints[person].astype(np.float64)
    keypoints[:, :2] -= np.where(keypoints[:, 2:] > 0, PIXEL_CENTER, 0)
    return {
        "category_id": 1,
        "iscrowd": 0,
        "bbox": [left, top, right - left, bottom - top],
        "area": float(scene.areas[person]),
        "keypoints": np.round(keypoints, 3).ravel().tolist(),
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
    }
