"""Files of detected boxes in COCO's result format, as person detectors write them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError

PERSON = 1
"""COCO's category of people."""


@dataclass(frozen=True)
class DetectedBox:
    """A box that a detector found.

    Attributes:
        image_id: COCO's id of the image.
        box: (4,) float64 x, y, width, height in pixels.
        score: Of the detector.
        row: In the file.
    """

    image_id: int
    box: NDArray[np.float64]
    score: float
    row: int


def read_detections(path: str | Path, least_score: float = 0.0) -> list[DetectedBox]:
    """Detected people of a file: a list of {image_id, category_id, bbox, score}, in its order.

    Boxes are taken as they are, outside of the image as well; other categories are left out.

    Args:
        path: JSON file.
        least_score: Boxes below are left out.

    Raises:
        InputError: The file is missing or no such list; the message names the row.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(
            f"'{path}': expected a list of detections, found {type(rows).__name__}. Name the file "
            "of a detector's results, not of annotations."
        )
    found = [_read_row(row, f"'{path}', row {number}", number) for number, row in enumerate(rows)]
    if rows and not any(found):
        others = ", ".join(sorted({str(row["category_id"]) for row in rows}))
        raise InputError(
            f"'{path}': expected detections with category_id {PERSON} (person), found {others} "
            f"alone. Give people category_id {PERSON}, as COCO does."
        )
    return [box for box in found if box is not None and box.score >= least_score]


def _read_row(row: Any, where: str, number: int) -> DetectedBox | None:
    if not isinstance(row, Mapping):
        raise InputError(f"{where}: expected an object, found {type(row).__name__}.")
    try:
        category, image_id, score = (row[key] for key in ("category_id", "image_id", "score"))
    except KeyError as error:
        raise InputError(
            f"{where}: there is no {error}. Expected image_id, category_id, bbox and score."
        ) from error
    if category != PERSON:
        return None
    if not isinstance(image_id, int) or not isinstance(score, int | float):
        raise InputError(
            f"{where}: expected numbers as image_id and score, found {image_id!r} and {score!r}."
        )
    return DetectedBox(image_id, read_box(row, where), float(score), number)


def read_box(row: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    """The ``bbox`` (4,) of a row.

    Raises:
        InputError: It is missing, or not four finite numbers.
    """
    return read_numbers(row, "bbox", (4,), where)


def read_numbers(
    row: Mapping[str, Any], key: str, shape: tuple[int, ...], where: str
) -> NDArray[np.float64]:
    """An array of a row of a JSON file.

    Raises:
        InputError: It is missing, of another shape, or not of finite numbers.
    """
    try:
        values = np.array(row[key], dtype=np.float64)
    except KeyError as error:
        raise InputError(f"{where}: there is no {error}.") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: '{key}' holds something else than numbers.") from error
    if values.shape != shape or not np.isfinite(values).all():
        raise InputError(
            f"{where}: expected '{key}' of {_shape(shape)} finite numbers, found "
            f"{_shape(values.shape)}: {str(row[key])[:80]}. Mend or drop this row."
        )
    return values


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(str(length) for length in shape) or "single"


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: It is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"'{path}': expected JSON, found damage: {error}") from error
