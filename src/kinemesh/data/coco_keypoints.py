"""COCO person keypoints (Lin et al. 2014) from the official files.

``annotations/person_keypoints_SPLIT.json`` with the pictures in ``SPLIT/``; boxes are the labelled
ones, or those of a detector's file, with which published scores are computed.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kinemesh.data.detection_boxes import (
    PERSON,
    read_box,
    read_detections,
    read_json,
    read_numbers,
)
from kinemesh.data.keypoint_augmentation import KeypointAugmentation
from kinemesh.data.keypoint_crop import clean_box, place_box
from kinemesh.data.keypoint_dataset import KeypointDataset, KeypointOptions, KeypointRecord
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17

GROUND_TRUTH: Literal["ground-truth"] = "ground-truth"
_JOINTS = len(COCO17)
_ANNOTATIONS = "person_keypoints_*.json"
_TEST_IMAGES = "image_info_test*.json"  # a test split has no annotations
_OUTLINE = "segmentation"  # most of the file, and not used


@dataclass(frozen=True)
class CocoImage:
    """An image of an annotation file.

    Attributes:
        id: COCO's id.
        path: The picture.
        width: Pixels.
        height: Pixels.
        annotations: Its rows in the file's order, with their numbers, without the outlines.
    """

    id: int
    path: Path
    width: int
    height: int
    annotations: tuple[tuple[int, Mapping[str, Any]], ...]


class CocoFile:
    """An annotation file whose images and rows have been joined.

    Args:
        annotations: The JSON file, or the folder of the data set: the one that holds
            ``annotations/person_keypoints_SPLIT.json``.
        images: Folder of the pictures; None looks beside the annotations.
        split: Which of several annotation files of a folder is meant: the last part of its name or
            the beginning of it, such as "val2017" or "val". A single file is taken whatever it is.
            A test split is ``annotations/image_info_SPLIT.json``.

    Attributes:
        path: The file.
        labelled: Whether it has annotations; a test split has none.
        images: In the file's order.

    Raises:
        InputError: A file is missing or damaged; the message names it and the row.
    """

    def __init__(
        self, annotations: str | Path, images: str | Path | None = None, split: str | None = None
    ) -> None:
        self.path = find_annotations(Path(annotations), split)
        content = read_json(self.path)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise InputError(
                f"'{self.path}': expected an object with 'images' and 'annotations'. Name a file "
                "person_keypoints_*.json of COCO."
            )
        rows = [self._image_row(row, number) for number, row in enumerate(content["images"])]
        self._check_images(rows)
        folder = Path(images) if images is not None else self._find_images(rows)
        self.labelled = "annotations" in content
        grouped = self._group(content.get("annotations", []), {row["id"] for row in rows})
        self._check_people(content.get("annotations", []))
        self.images = tuple(
            CocoImage(
                row["id"],
                folder / row["file_name"],
                row["width"],
                row["height"],
                tuple(grouped.get(row["id"], ())),
            )
            for row in rows
        )

    def where(self, row: int) -> str:
        """File and number of an annotation, for messages."""
        return f"'{self.path}', annotation {row}"

    def _image_row(self, row: Any, number: int) -> dict[str, Any]:
        kinds = {"id": int, "file_name": str, "width": int, "height": int}
        for key, kind in kinds.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), kind):
                raise InputError(
                    f"'{self.path}', image {number}: expected '{key}' of type {kind.__name__}, "
                    f"found {str(row)[:80]}."
                )
        return dict(row)

    def _check_images(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """People of an image that is listed twice would count twice."""
        often, count = Counter(row["id"] for row in rows).most_common(1)[0] if rows else (0, 0)
        if count > 1:
            raise InputError(
                f"'{self.path}': expected an id of its own for each image, found {often} "
                f"{count} times. Drop the repeated rows of 'images'."
            )

    def _check_people(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """People under another number would be taken for no people at all."""
        found = {row.get("category_id", PERSON) for row in rows}
        if found and PERSON not in found:
            raise InputError(
                f"'{self.path}': expected annotations with category_id {PERSON} (person), found "
                f"{', '.join(sorted(map(str, found)))} alone. Give people category_id {PERSON}, "
                "as COCO does."
            )

    def _group(
        self, rows: Sequence[Any], images: set[int]
    ) -> dict[int, list[tuple[int, Mapping[str, Any]]]]:
        grouped: dict[int, list[tuple[int, Mapping[str, Any]]]] = {}
        for number, row in enumerate(rows):
            image = row.get("image_id") if isinstance(row, dict) else None
            if image not in images:
                raise InputError(
                    f"{self.where(number)}: expected the image_id of one of the file's "
                    f"{len(images)} images, found {image!r}."
                )
            kept = {key: value for key, value in row.items() if key != _OUTLINE}
            grouped.setdefault(image, []).append((number, kept))
        return grouped

    def _find_images(self, rows: Sequence[Mapping[str, Any]]) -> Path:
        """The folder of the pictures: COCO's own, or one of a few other habits."""
        here, name = self.path.parent, self.path.stem.split("_")[-1]
        split = name.replace("-dev", "")  # test-dev2017 is a part of test2017
        folders = [here.parent / split, here.parent / "images" / split, here.parent / "images"]
        folders += [here / split, here / "images", here, here.parent]
        if not rows:
            return folders[0]
        name = rows[0]["file_name"]
        for folder in folders:
            if (folder / name).is_file():
                return folder
        raise InputError(
            f"'{self.path}': its picture {name} is in none of {', '.join(map(str, folders))}. "
            "Name the folder of the pictures."
        )


def find_annotations(path: Path, split: str | None = None) -> Path:
    """The annotation file of a path that is one, or of the folder of a data set.

    Raises:
        InputError: There is none, or several fit.
    """
    if not path.is_dir():
        return path
    pattern = _TEST_IMAGES if (split or "").startswith("test") else _ANNOTATIONS
    found = sorted((path / "annotations").glob(pattern)) or sorted(path.glob(pattern))
    names = {file.stem.split("_")[-1]: file for file in found}
    fitting = [file for name, file in names.items() if name.startswith(split or "")]
    fitting = [names[split]] if split in names else fitting
    alone = len(found) == 1 and pattern == _ANNOTATIONS
    if len(fitting) == 1 or alone:
        return (fitting or found)[0]
    listed = ", ".join(str(file) for file in found or sorted(path.glob("*.json"))) or "none"
    raise InputError(
        f"'{path}': expected one annotations/{pattern}"
        f"{'' if split is None else f' of split {split!r}'}, found {listed}. Name the file."
    )


class CocoKeypoints(KeypointDataset):
    """Labelled or detected people of COCO in crops, in the order of the images.

    Labelled people: crowds, empty boxes, empty areas and people without any labelled joint are left
    out, and boxes are cut to the image. A joint counts as visible where it is labelled, even if
    hidden. Detected people keep their box as it is and have no joints: ``target`` holds a filler
    under ``weight`` 1. Detections in images that the annotation file does not list are left out, so
    that a part of a split can be scored. Boxes of no width and height, labelled or detected, are
    left out with a warning.

    Args:
        annotations: The JSON file, or the folder of the data set.
        images: Folder of the pictures; None looks beside the annotations.
        boxes: "ground-truth", or the file of a detector's boxes.
        options: How samples are made.
        split: Which of several annotation files of a folder is meant.
        least_score: Detected boxes below are left out.

    Attributes:
        file: The annotations, for evaluation.
        boxes: Where the boxes come from.

    Raises:
        InputError: A file is missing or damaged; the message names it and the row.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        *,
        boxes: str | Path = GROUND_TRUTH,
        options: KeypointOptions | None = None,
        split: str | None = None,
        least_score: float = 0.0,
    ) -> None:
        options = options or KeypointOptions()
        self.file = CocoFile(annotations, images, split)
        self.boxes = str(boxes)
        records = (
            _labelled(self.file, options.aspect)
            if self.boxes == GROUND_TRUTH
            else _detected(self.file, Path(boxes), options.aspect, least_score)
        )
        super().__init__(tuple(records), COCO17, options, KeypointAugmentation.coco())


def labelled_people(
    file: CocoFile, image: CocoImage
) -> Iterator[tuple[int, Mapping[str, Any], NDArray[np.float64]]]:
    """Number, row and cleaned box of the people of an image that are no crowd.

    Raises:
        InputError: A row is damaged.
    """
    for number, row in image.annotations:
        if row.get("iscrowd", 0) or row.get("category_id", PERSON) != PERSON:
            continue
        where = file.where(number)
        if not isinstance(row.get("area"), int | float):
            raise InputError(
                f"{where}: expected a number as 'area', found {row.get('area')!r}. Take a COCO "
                f"person_keypoints file, whose people have an area and {_JOINTS} keypoints."
            )
        box = clean_box(read_box(row, where), image.width, image.height)
        # a side of 0 pixels is made up for by the other one, but not two
        if box is not None and row["area"] > 0 and box[2:].max() > 0:
            yield number, row, box


def read_keypoints(row: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    """The keypoints (17, 3) of a row: x, y, and 0 unlabelled, 1 hidden, 2 visible.

    Raises:
        InputError: There are not 51 finite numbers.
    """
    return read_numbers(row, "keypoints", (3 * _JOINTS,), where).reshape(_JOINTS, 3)


def _warn_of_empty(where: Sequence[str]) -> None:
    """Say which boxes were left out because there is no crop around them."""
    if where:
        warnings.warn(
            f"{len(where)} box{'es' if len(where) > 1 else ''} of no width and height left out, "
            f"first {where[0]}.",
            stacklevel=2,
        )


def _empty_boxes(file: CocoFile) -> list[str]:
    """Labelled people, no crowd, that are left out because their box has no extent."""
    return [
        file.where(number)
        for image in file.images
        for number, row in image.annotations
        if row.get("category_id", PERSON) == PERSON
        and not row.get("iscrowd", 0)
        and max(read_box(row, file.where(number))[2:]) <= 1  # cleaning takes a pixel
    ]


def _labelled(file: CocoFile, aspect: float) -> Iterator[KeypointRecord]:
    _warn_of_empty(_empty_boxes(file))
    for image in file.images:
        for number, row, box in labelled_people(file, image):
            where = file.where(number)
            keypoints = read_keypoints(row, where)
            if keypoints.max() == 0:
                continue
            yield KeypointRecord(
                image.path,
                place_box(box, aspect),
                keypoints[:, :2].astype(np.float32),
                np.minimum(keypoints[:, 2], 1).astype(np.float32),
                1.0,
                image.id,
                int(row.get("id", number)),
                where,
                (image.width, image.height),
            )


def _detected(
    file: CocoFile, path: Path, aspect: float, least_score: float
) -> Iterator[KeypointRecord]:
    images = {image.id: image for image in file.images}
    found = read_detections(path, least_score)
    if not found:
        raise InputError(
            f"'{path}': expected boxes of people, found none"
            f"{f' with a score of at least {least_score}' if least_score > 0 else ''}. Name the "
            "file of a detector that found somebody."
        )
    known = [box for box in found if box.image_id in images]
    if not known:
        raise InputError(
            f"'{path}': none of its {len(found)} people is in an image of '{file.path}'. Use the "
            "detections of this split."
        )
    _warn_of_empty([f"'{path}', row {box.row}" for box in known if max(box.box[2:]) <= 0])
    for box in known:
        if max(box.box[2:]) <= 0:
            continue
        image = images[box.image_id]
        yield KeypointRecord(
            image.path,
            place_box(box.box, aspect),
            np.zeros((_JOINTS, 2), dtype=np.float32),
            np.ones(_JOINTS, dtype=np.float32),
            box.score,
            image.id,
            box.row,
            f"'{path}', row {box.row}",
            (image.width, image.height),
        )
