"""2D keypoints as rows of COCO's result format, and hands as COCO-WholeBody adds them.

Source: https://cocodataset.org/#format-results (keypoint detection); the names of the hands' lists
are those of COCO-WholeBody (Jin et al., ECCV 2020).
"""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from kinemesh.data.detection_boxes import PERSON
from kinemesh.errors import InputError
from kinemesh.inference.person import Person
from kinemesh.skeletons import COCO17, get_skeleton, joint_map

HALF_PIXEL = 0.5
"""COCO counts from the centre of the first pixel, `Person.joints_px` from its corner."""
FORMAT = "kinemesh.coco"


def coco_image_id(file_name: str | None) -> int:
    """COCO's number of an image: what its name says if that is a number, as in COCO itself.

    Other names have no number; theirs is the CRC-32 of the name, the same in every run. An image
    without a name has the number 0.
    """
    if file_name is None:
        return 0
    stem = file_name.rsplit(".", 1)[0]
    if stem.isascii() and stem.isdigit():
        return int(stem)
    return zlib.crc32(file_name.encode("utf-8", "surrogateescape"))


def coco_rows(
    people: Sequence[Person], image_id: int, file_name: str | None = None
) -> list[dict[str, Any]]:
    """Rows of a result file, one for each person, in the order of ``people``.

    A hand whose person is known (`Person.owner`) is in the row of that person.

    Args:
        people: All people of one photo, each with COCO's joints or some of them, or a hand.
        image_id: Number of the photo in the annotation file.
        file_name: Its name; readers of COCO's format ignore it.

    Returns:
        ``image_id``; ``category_id`` 1; ``keypoints``, x, y and confidence of COCO's 17 joints in
        pixels, where a joint that the network does not know is three zeros; ``score``; ``bbox``
        (x, y, width, height). The 21 joints of a hand are in ``lefthand_kpts`` or
        ``righthand_kpts``; ``keypoints`` of a hand by itself are 17 times three zeros.

    Raises:
        InputError: The network finds none of COCO's joints.
    """
    rows = {
        index: _row(person, image_id, file_name)
        for index, person in enumerate(people)
        if _row_number(index, people) == index
    }
    for index, person in enumerate(people):
        if person.side is not None:
            rows[_row_number(index, people)][f"{person.side}hand_kpts"] = _flat(_numbers(person))
    return list(rows.values())


def _row_number(index: int, people: Sequence[Person]) -> int:
    """Whose row a person is in: a hand's is that of its body, if that is there."""
    owner = people[index].owner
    known = owner is not None and 0 <= owner < len(people) and people[owner].side is None
    return owner if owner is not None and known else index


def encode_coco(
    people: Sequence[Person], file_name: str | None = None, image_id: int | None = None
) -> bytes:
    """`coco_rows` as the bytes of a JSON file; the number is `coco_image_id` if not given.

    Rows of several photos are put together by joining the lists.
    """
    number = coco_image_id(file_name) if image_id is None else image_id
    rows = coco_rows(people, number, file_name)
    return ("[" + ",\n".join(json.dumps(row, allow_nan=False) for row in rows) + "]\n").encode()


def _row(person: Person, image_id: int, file_name: str | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "image_id": image_id,
        "category_id": PERSON,
        "keypoints": [0.0] * (3 * len(COCO17)),
        "score": round(float(person.score), 4),
        "bbox": [round(float(value), 2) for value in person.box_px],
        "format": FORMAT,
    }
    if file_name is not None:
        row["file_name"] = file_name.encode("utf-8", "replace").decode()
    if person.side is not None:
        return row
    source = joint_map(get_skeleton(person.skeleton), COCO17)
    if not any(joint is not None for joint in source):
        raise InputError(
            f"COCO's format holds the joints of '{COCO17.name}', but a person has "
            f"'{person.skeleton}' joints, of which none is among them. Save it as 'json' or 'csv'."
        )
    numbers, nothing = _numbers(person), np.zeros(3)
    row["keypoints"] = _flat(np.array([nothing if j is None else numbers[j] for j in source]))
    return row


def _numbers(person: Person) -> np.ndarray:
    """(J, 3) x, y and confidence as COCO counts."""
    return np.column_stack([person.joints_px - HALF_PIXEL, person.joint_confidence])


def _flat(numbers: np.ndarray) -> list[float]:
    values: list[float] = np.round(numbers.astype(float), 4).ravel().tolist()
    return values
