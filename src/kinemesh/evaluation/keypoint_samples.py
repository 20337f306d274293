"""Predicted people beside labelled ones, joint by joint, for reports on 2D keypoints.

Scores such as AP rank predictions; a report asks of each labelled person how far off every joint
is. A labelled person is compared with the predicted one of its image that is nearest on average
over the labelled joints; people of whom an image has no prediction at all are left out. Errors are
in percent of the person's size, so that near and far people compare: the square root of COCO's
labelled area, MPII's head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.data.coco_keypoints import CocoFile, labelled_people, read_keypoints
from kinemesh.data.keypoint_crop import PIXELS_OF_SCALE
from kinemesh.data.keypoint_dataset import read_picture
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.evaluation.keypoint_readout import KeypointPerson
from kinemesh.evaluation.pckh import MpiiLabels
from kinemesh.evaluation.samples import JointSamples, Picture
from kinemesh.skeletons import COCO17, MPII16, Skeleton

SIDE_PX = 256
"""Side of the square pictures."""
_MARGIN = 1.25  # side of a picture over the longer side of the person's box


@dataclass(frozen=True, eq=False)
class LabelledPerson:
    """A person as a file labels it.

    Attributes:
        key: What finds it again.
        picture: File of the image.
        joints_px: (J, 2) image pixels, integer coordinates on pixel centres.
        labelled: (J,) bool.
        size_px: What 100 % of an error is.
        center_px: (2,) middle of the box.
        side_px: Longer side of the box.
    """

    key: str
    picture: Path
    joints_px: NDArray
    labelled: NDArray
    size_px: float
    center_px: NDArray
    side_px: float

    @property
    def zoom(self) -> float:
        """Pixels of the report's picture for one of the image."""
        return SIDE_PX / max(self.side_px * _MARGIN, 1.0)

    def to_picture(self, points_px: NDArray) -> NDArray:
        """Image pixels (J, 2) as pixels of the picture, the first pixel's corner at (0, 0)."""
        placed: NDArray = (points_px - self.center_px) * self.zoom + SIDE_PX / 2
        return placed

    def cut(self) -> Picture:
        """The person's part of the image (SIDE_PX, SIDE_PX, 3) RGB, black outside of the image.

        Raises:
            InputError: The picture is missing or damaged.
        """
        image = read_picture(self.picture, "rgb", self.key)
        # OpenCV counts from the centre of the first pixel, of both pictures
        shift = SIDE_PX / 2 - 0.5 - self.center_px * self.zoom
        affine = np.array([[self.zoom, 0, shift[0]], [0, self.zoom, shift[1]]])
        cut = cv2.warpAffine(image, affine, (SIDE_PX, SIDE_PX), flags=cv2.INTER_AREA)
        return np.asarray(cut, dtype=np.uint8)


def coco_samples(
    people: Sequence[KeypointPerson], file: CocoFile, image_ids: Sequence[int]
) -> JointSamples | None:
    """People of COCO, from labelled or detected boxes or from whole images; None for nobody.

    Args:
        people: Predictions, in any order.
        file: The annotations.
        image_ids: The images that are scored.
    """
    found: dict[int, list[KeypointPerson]] = {}
    for person in people:
        found.setdefault(person.image_id, []).append(person)
    wanted = set(image_ids) & found.keys()
    labels, nearest = [], []
    for image_id, label in _coco_people(file, wanted):
        labels.append(label)
        nearest.append(min(found[image_id], key=lambda person: _distance(person, label)))
    return _samples(nearest, labels, COCO17)


def mpii_samples(
    people: Sequence[KeypointPerson], dataset: MpiiKeypoints, labels: MpiiLabels
) -> JointSamples | None:
    """People of MPII, one prediction for each label in the same order; None for nobody."""
    rows = []
    for number, record in enumerate(dataset.records[: len(people)]):
        extent = np.asarray(record.placement.scale, dtype=np.float64) * PIXELS_OF_SCALE
        rows.append(
            LabelledPerson(
                f"{record.picture.name}, person {record.annotation_id}",
                record.picture,
                labels.positions_px[number] - 1.0,  # MPII counts from 1
                labels.visible[number],
                float(labels.head_px[number]),
                np.asarray(record.placement.center, dtype=np.float64),
                float(extent.max()) / _MARGIN,  # these boxes have their margin
            )
        )
    return _samples(people, rows, MPII16)


def _coco_people(file: CocoFile, wanted: set[int]) -> Iterator[tuple[int, LabelledPerson]]:
    for image in file.images:
        if image.id not in wanted:
            continue
        for number, row, box in labelled_people(file, image):
            keypoints = read_keypoints(row, file.where(number))
            if keypoints[:, 2].max() > 0:
                yield (
                    image.id,
                    LabelledPerson(
                        f"{image.path.name}, annotation {row.get('id', number)}",
                        image.path,
                        keypoints[:, :2],
                        keypoints[:, 2] > 0,
                        float(np.sqrt(row["area"])),
                        np.asarray(box[:2] + box[2:] / 2, dtype=np.float64),
                        float(max(box[2:])),
                    ),
                )


def _distance(person: KeypointPerson, label: LabelledPerson) -> float:
    gaps = np.linalg.norm(person.keypoints_px - label.joints_px, axis=1)
    return float(gaps[label.labelled].mean())


def _samples(
    people: Sequence[KeypointPerson], labels: Sequence[LabelledPerson], skeleton: Skeleton
) -> JointSamples | None:
    if not labels:
        return None
    predicted = np.stack([person.keypoints_px for person in people]).astype(np.float64)
    true = np.stack([label.joints_px for label in labels])
    size = np.array([max(label.size_px, 1e-6) for label in labels])
    errors = 100 * np.linalg.norm(predicted - true, axis=2) / size[:, None]
    in_picture = [
        np.stack([label.to_picture(rows) for label, rows in zip(labels, side, strict=True)])
        for side in (predicted, true)
    ]
    return JointSamples(
        skeleton=skeleton,
        keys=[label.key for label in labels],
        errors={"distance": torch.from_numpy(errors)},
        compared=torch.from_numpy(np.stack([label.labelled for label in labels])),
        unit="% of the person's size" if skeleton is COCO17 else "% of the head",
        predicted=torch.from_numpy(in_picture[0]),
        target=torch.from_numpy(in_picture[1]),
        picture=lambda row: labels[row].cut(),
    )
