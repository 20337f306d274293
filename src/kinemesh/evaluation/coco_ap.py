"""COCO's keypoint scores of predicted people, and the result file that COCO's server takes.

The numbers are those of the official tool; ``faster-coco-eval`` (extra ``eval``) computes them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinemesh.data.detection_boxes import PERSON, read_box, read_json, read_numbers
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import KeypointPerson
from kinemesh.evaluation.oks import select_people
from kinemesh.files import write_json
from kinemesh.keypoint_protocols import COCO_KEYPOINTS, KeypointProtocol, KeypointResult
from kinemesh.optional import require
from kinemesh.skeletons import COCO17

METRICS = ("AP", "AP.50", "AP.75", "AP(M)", "AP(L)", "AR", "AR.50", "AR.75", "AR(M)", "AR(L)")
"""In the order of the official tool. Models are chosen by the first."""
_NUMBERS = 3 * len(COCO17)
_NONE_OF_SIZE = -1  # what the tool says where there is nothing to find
_WANTED = "a COCO person_keypoints file"

Row = dict[str, Any]


@dataclass(frozen=True)
class CocoLabels:
    """The people of an annotation file.

    Attributes:
        source: Where they come from, for messages.
        images: The entries of the images.
        annotations: Of people, with 51 keypoint numbers each.
    """

    source: str
    images: tuple[Row, ...]
    annotations: tuple[Row, ...]

    @property
    def image_ids(self) -> frozenset[int]:
        """Of all images."""
        return frozenset(int(image["id"]) for image in self.images)

    @property
    def labelled_people(self) -> int:
        """People with a labelled keypoint, without crowds: those that can be found."""
        return sum(
            1 for person in self.annotations if person["num_keypoints"] and not person["iscrowd"]
        )

    def of_images(self, image_ids: Collection[int]) -> "CocoLabels":
        """Those of some images only.

        Raises:
            InputError: The file has no such image.
        """
        _check_images(image_ids, self)
        wanted = set(image_ids)
        return replace(
            self,
            images=tuple(image for image in self.images if image["id"] in wanted),
            annotations=tuple(one for one in self.annotations if one["image_id"] in wanted),
        )


def read_labels(path: str | Path) -> CocoLabels:
    """Read a COCO annotation file of people's keypoints.

    Raises:
        InputError: It is missing, damaged, or something else; test splits have no labels.
    """
    content = read_json(path)
    return labels_from(content, str(path))


def labels_from(content: Any, source: str) -> CocoLabels:
    """The same from the content of such a file; ``source`` is its name in messages."""
    where = f"'{source}'"
    missing = [key for key in ("images", "annotations") if not _is_rows(content, key)]
    if missing == ["annotations"]:
        raise InputError(
            f"{where}: expected annotations, found images only, as in a test split. Nothing can be "
            "scored; write the result file and send it to COCO's server."
        )
    if missing:
        raise InputError(
            f"{where}: expected {_WANTED} with lists 'images' and 'annotations', found "
            f"{_described(content)}."
        )
    _check_category(content, where)
    if not content["images"]:
        raise InputError(f"{where}: expected at least one image, found none.")
    ids = {image.get("id") for image in content["images"]}
    if not all(isinstance(one, int) for one in ids):
        raise InputError(f"{where}: expected a whole number as id of each image.")
    if len(ids) != len(content["images"]):
        raise InputError(f"{where}: expected an id of its own for each image, found repeats.")
    people = [
        _checked_person(row, one, ids, where)
        for row, one in enumerate(content["annotations"])
        if one.get("category_id") == PERSON
    ]
    if len({person["id"] for person in people}) != len(people):
        raise InputError(f"{where}: expected an id of its own for each annotation, found repeats.")
    return CocoLabels(source, tuple(content["images"]), tuple(people))


def _is_rows(content: Any, key: str) -> bool:
    rows = content.get(key) if isinstance(content, dict) else None
    return isinstance(rows, list) and all(isinstance(row, dict) for row in rows)


def _described(content: Any) -> str:
    if isinstance(content, dict):
        return "an object with " + (", ".join(list(content)[:8]) or "nothing")
    return f"a list of {len(content)}" if isinstance(content, list) else type(content).__name__


def _check_category(content: Mapping[str, Any], where: str) -> None:
    rows = content["categories"] if _is_rows(content, "categories") else []
    names = [tuple(row.get("keypoints", ())) for row in rows if row.get("id") == PERSON]
    if names and names[0] and names[0] != COCO17.joints:
        raise InputError(
            f"{where}: expected COCO's 17 keypoints for category {PERSON}, found {len(names[0])}: "
            f"{', '.join(map(str, names[0][:5]))}, ... Take {_WANTED}."
        )


def _checked_person(row: int, one: Row, image_ids: Collection[Any], where: str) -> Row:
    """What scoring needs of an annotation; the tool writes into it, so it is a copy."""
    name = f"{where}, annotation {one.get('id', row)}"
    keys = ("id", "image_id", "keypoints", "bbox", "area")
    if lacking := [key for key in keys if key not in one]:
        raise InputError(
            f"{name}: expected {', '.join(keys)}, found no {', '.join(lacking)}. Take {_WANTED}."
        )
    if not isinstance(one["id"], int) or one["id"] < 1:
        raise InputError(f"{name}: expected an id from 1 up, which the official tool relies on.")
    if one["image_id"] not in image_ids:
        raise InputError(f"{name}: its image {one['image_id']} is not among the file's images.")
    points = read_numbers(one, "keypoints", (_NUMBERS,), name)
    read_box(one, name)
    labelled = int((points[2::3] > 0).sum())
    return {key: one[key] for key in keys} | {
        "category_id": PERSON,
        "iscrowd": int(one.get("iscrowd", 0)),
        "num_keypoints": int(one.get("num_keypoints", labelled)),
    }


def result_rows(
    people: Sequence[KeypointPerson],
    protocol: KeypointProtocol = COCO_KEYPOINTS,
    device: torch.device | str = "cpu",
) -> list[Row]:
    """Score people, suppress duplicates, and make the rows of a result file.

    This with `write_results` is all that a test split needs.

    Args:
        people: Of any model, in any order.
        protocol: The limits for scores and suppression.
        device: Where similarities are computed.

    Returns:
        Image by image, best first. Each row has image_id, category_id, 51 keypoint numbers whose
        every third is the joint's score, score, center (2,) and scale (2,).

    Raises:
        InputError: A person has not 17 joints.
    """
    limit = protocol.joint_score_above
    kept, scores = select_people(
        people,
        joint_score_above=0.0 if limit is None else limit,
        oks_nms_above=protocol.oks_nms_above,
        device=device,
    )
    return [_row(people[index], float(scores[index])) for index in kept]


def _row(person: KeypointPerson, score: float) -> Row:
    numbers = np.column_stack([person.keypoints_px, person.scores])
    return {
        "image_id": person.image_id,
        "category_id": PERSON,
        "keypoints": numbers.ravel().tolist(),
        "score": score,
        "center": np.asarray(person.center_px).tolist(),
        "scale": np.asarray(person.scale).tolist(),
    }


def write_results(path: str | Path, rows: Sequence[Row]) -> None:
    """Write a result file, whole or not at all."""
    write_json(path, list(rows), indent=None)


def read_results(path: str | Path) -> list[Row]:
    """Read a result file.

    Raises:
        InputError: It is missing, damaged, empty, or something else.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"'{path}': expected a list of results, found {_described(rows)}.")
    for number, row in enumerate(rows):
        where = f"'{path}', result {number}"
        if not isinstance(row, dict) or {"image_id", "keypoints", "score"} - row.keys():
            raise InputError(
                f"{where}: expected image_id, keypoints and score, found {_described(row)}."
            )
        read_numbers(row, "keypoints", (_NUMBERS,), where)
        read_numbers(row, "score", (), where)
    _check_any(rows)
    return rows


def _check_any(rows: Sequence[Any]) -> None:
    if not rows:
        raise InputError(
            "There is no predicted person to score: the list of results is empty. Check the data "
            "set, the number of images (--count) and the boxes."
        )


def _check_images(image_ids: Collection[int], labels: CocoLabels) -> None:
    unknown = sorted(set(image_ids) - labels.image_ids)
    if unknown:
        raise InputError(
            f"'{labels.source}' has no image {', '.join(map(str, unknown[:5]))}"
            f"{', ...' if len(unknown) > 5 else ''}, for which there are predictions "
            f"({len(unknown)} such images). Take the annotation file of the images predicted."
        )


def coco_scores(rows: Sequence[Row], labels: CocoLabels) -> dict[str, float]:
    """The official tool's ten numbers of result rows, in [0,1].

    Args:
        rows: As `result_rows` or `read_results` give them.
        labels: Of all images that count, also those for which nothing was predicted.

    Returns:
        By the names of `METRICS`; NaN where the labels have nobody of that size.

    Raises:
        InputError: There is no row, or one of an image that the labels do not have.
        MissingExtraError: ``faster-coco-eval`` is not installed.
    """
    tool = require("faster_coco_eval", "eval")
    _check_any(rows)
    _check_images({row["image_id"] for row in rows}, labels)
    truth = tool.COCO(_dataset(labels))
    # the tool writes into what it is given
    found = truth.loadRes([dict(row, category_id=PERSON) for row in rows])
    evaluation = tool.COCOeval_faster(truth, found, "keypoints", print_function=_nothing)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    stats = [float(value) for value in evaluation.stats[: len(METRICS)]]
    values = [float("nan") if value == _NONE_OF_SIZE else value for value in stats]
    return dict(zip(METRICS, values, strict=True))


def _dataset(labels: CocoLabels) -> Row:
    category = {"id": PERSON, "name": "person", "keypoints": list(COCO17.joints)}
    return {
        "info": {},
        "images": [dict(image) for image in labels.images],
        "annotations": [dict(person) for person in labels.annotations],
        "categories": [category],
    }


def _nothing(*_lines: object) -> None:
    """Takes what the tool would print; the result prints itself."""


def evaluate_coco(
    people: Sequence[KeypointPerson],
    labels: CocoLabels | str | Path,
    protocol: KeypointProtocol = COCO_KEYPOINTS,
    *,
    model: str = "predictions",
    image_ids: Collection[int] | None = None,
    results: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> KeypointResult:
    """Score, suppress, write and evaluate predicted people.

    Args:
        people: Of any model, in any order.
        labels: The annotation file.
        protocol: What decides the number; it must say whose boxes ``people`` were made with.
        model: Name of the model.
        image_ids: Images that were predicted; all of the file if None. Who is not found in them
            counts as missed.
        results: Where to write the result file, if anywhere.
        device: Where similarities are computed.

    Raises:
        InputError: There are no people, or some of an image that the labels do not have.
    """
    if not isinstance(labels, CocoLabels):
        labels = read_labels(labels)
    whole = len(labels.images)
    if image_ids is not None:
        labels = labels.of_images(image_ids)
    _check_any(people)
    _check_images({person.image_id for person in people}, labels)
    rows = result_rows(people, protocol, device)
    if results is not None:
        write_results(results, rows)
    counts = {
        "images": len(labels.images),
        "labelled people": labels.labelled_people,
        "predicted people": len(people),
        "after suppression": len(rows),
    }
    notes = (f"only {len(labels.images)} of {whole} images",) if len(labels.images) < whole else ()
    return KeypointResult(model, labels.source, protocol, coco_scores(rows, labels), counts, notes)
