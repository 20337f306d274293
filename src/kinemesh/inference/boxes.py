"""Boxes of people or hands: text and JSON in, checked boxes out."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kinemesh.errors import InputError

if TYPE_CHECKING:
    from kinemesh.inference.images import LoadedImage

Side = Literal["left", "right"]
_KEYS = ("bbox", "score", "side")
_EXAMPLE = "for example --boxes '40,30,200,260' or '40,30,200,260;300,20,180,240'"


@dataclass(frozen=True)
class Box:
    """An upright rectangle in the image, in pixels, origin at the upper left corner.

    Attributes:
        x: Left edge.
        y: Upper edge.
        width: Extent to the right.
        height: Extent downward.
        score: Confidence of the detector in 0..1, None where it said nothing.
        side: Which hand it holds, None where it is not known.
    """

    x: float
    y: float
    width: float
    height: float
    score: float | None = None
    side: Side | None = None

    @property
    def xywh(self) -> tuple[float, float, float, float]:
        """Left, top, width and height."""
        return self.x, self.y, self.width, self.height


class BoxTable:
    """Boxes for one or many images.

    Args:
        common: Boxes for every image.
        by_name: Boxes by image path or file name; used in place of ``common``.
        origin: Name for messages.

    Attributes:
        origin: Name for messages.
    """

    def __init__(
        self,
        common: Sequence[Box] = (),
        by_name: Mapping[str, Sequence[Box]] | None = None,
        origin: str = "--boxes",
    ) -> None:
        self._common = tuple(common)
        self._by_name = by_name
        self.origin = origin

    @property
    def is_by_name(self) -> bool:
        """Whether each image has boxes of its own."""
        return self._by_name is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the images that have an entry; none in a table for every image."""
        return tuple(self._by_name or ())

    def __contains__(self, name: str) -> bool:
        return self._by_name is None or name in self._by_name

    def for_image(self, path: str | Path) -> tuple[Box, ...]:
        """Boxes of one image: by its path as given, else by its file name.

        Raises:
            InputError: The table is by name and has no entry for this image.
        """
        if self._by_name is None:
            return self._common
        for name in (str(path), Path(path).name):
            if name in self._by_name:
                return tuple(self._by_name[name])
        raise InputError(
            f"{self.origin} has no entry for the image '{Path(path).name}'. "
            "Add one (an empty list means that nobody is in the image)."
        )

    def unmatched(self, paths: Iterable[str | Path]) -> list[str]:
        """Names that have an entry and are of none of some images."""
        known = {name for path in paths for name in (str(path), Path(path).name)}
        return [name for name in self.names if name not in known]

    def detect(self, photo: "LoadedImage") -> list[Box]:
        """Boxes of a photo, so that a table can stand for a detector.

        Raises:
            InputError: The table is by name, and the photo has none or is not in it.
        """
        if photo.path is None and self._by_name is not None:
            raise InputError(
                f"{self.origin} names boxes by file, but the image is an array. Give its boxes."
            )
        return list(self.for_image(photo.path or ""))


def read_boxes(text: str) -> BoxTable:
    """Read the value of ``--boxes``: ``"x,y,w,h;x,y,w,h"`` or the name of a JSON file.

    Raises:
        InputError: The text or the file is neither, or a box has no extent or is not finite.
    """
    if is_boxes_file(text):
        return load_boxes(text.strip())
    return BoxTable(parse_boxes(text))


def is_boxes_file(text: str) -> bool:
    """Whether the value of ``--boxes`` names a file (it ends in .json) and is not boxes itself."""
    return text.strip().lower().endswith(".json")


def parse_boxes(text: str) -> list[Box]:
    """Parse ``"x,y,w,h;x,y,w,h"`` (pixels).

    Raises:
        InputError: A part is not four finite numbers, or a box has no extent.
    """
    parts = [part for part in text.split(";") if part.strip()]
    if not parts:
        raise InputError(f"--boxes is empty. Give x,y,w,h in pixels, {_EXAMPLE}")
    boxes = []
    for number, part in enumerate(parts, start=1):
        try:
            values = [float(value) for value in part.split(",")]
        except ValueError as error:
            raise InputError(
                f"Box {number} of --boxes: expected four numbers x,y,w,h, found '{part.strip()}'; "
                f"{_EXAMPLE}. A file of boxes must end in .json"
            ) from error
        boxes.append(_box(values, None, None, f"Box {number} of --boxes"))
    return boxes


def load_boxes(path: str | Path) -> BoxTable:
    """Read boxes from a JSON file.

    The file holds a list of boxes (used for every image) or an object from image name to such a
    list. A box is ``[x, y, w, h]`` or ``{"bbox": [x, y, w, h], "score": 0.9, "side": "left"}``,
    where score and side may be left out.

    Raises:
        InputError: The file is missing, is not such JSON, or a box is wrong.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"Cannot read the boxes in '{path}': {error.strerror}.") from error
    except ValueError as error:
        raise InputError(f"Expected JSON in '{path}': {error}. {_shape_hint()}") from error
    except RecursionError as error:
        raise InputError(f"The JSON in '{path}' is nested too deeply. {_shape_hint()}") from error
    _refuse_coco(content, path)
    if isinstance(content, list):
        return BoxTable(_boxes(content, f"'{path}'"), origin=f"'{path}'")
    if isinstance(content, dict):
        by_name = {
            name: _boxes(entry, f"'{path}', image '{name}'") for name, entry in content.items()
        }
        return BoxTable(by_name=by_name, origin=f"'{path}'")
    raise InputError(f"'{path}' holds a {type(content).__name__}. {_shape_hint()}")


def as_boxes(boxes: str | Iterable[Box | Sequence[float] | Mapping[str, Any]]) -> list[Box]:
    """Boxes from the forms that the Python interface takes.

    Args:
        boxes: ``"x,y,w,h;..."``, or an iterable of Box, of four numbers, or of mappings with the
            keys ``bbox``, ``score`` and ``side``. An array of shape (N, 4) is such an iterable.

    Raises:
        InputError: A box is none of these.
    """
    if isinstance(boxes, str):
        return parse_boxes(boxes)
    return [
        box if isinstance(box, Box) else _entry(box, f"boxes[{index}]")
        for index, box in enumerate(boxes)
    ]


def check_inside(box: Box, image_size: tuple[int, int]) -> None:
    """Refuse a box that shares no pixel with the image; one that reaches over the border is fine.

    Args:
        box: The box, in pixels.
        image_size: Width and height in pixels.

    Raises:
        InputError: The box lies outside.
    """
    width, height = image_size
    _check_extent(box, "The box")
    if box.x >= width or box.y >= height or box.x + box.width <= 0 or box.y + box.height <= 0:
        raise InputError(
            f"The box {_text(box)} lies outside the image, which is {width}x{height} pixels. "
            "Boxes are x,y,w,h in pixels of the upright image, from its upper left corner."
        )


def clip_box(box: Box, image_size: tuple[int, int]) -> Box | None:
    """The part of a box inside the image (width, height in pixels); None if there is none."""
    width, height = image_size
    left, top = max(box.x, 0.0), max(box.y, 0.0)
    right, bottom = min(box.x + box.width, width), min(box.y + box.height, height)
    if right <= left or bottom <= top:
        return None
    return replace(box, x=left, y=top, width=right - left, height=bottom - top)


def at_least(boxes: Iterable[Box], min_score: float) -> list[Box]:
    """Boxes with at least a score, and those without one."""
    return [box for box in boxes if box.score is None or box.score >= min_score]


def check_score(name: str, value: float) -> None:
    """Refuse a limit for scores outside of 0..1.

    Raises:
        InputError: It is outside.
    """
    if not 0 <= value <= 1:
        raise InputError(f"{name}: expected a number from 0 to 1, found {value}.")


def whole_image(image_size: tuple[int, int]) -> Box:
    """The box that covers the image."""
    return Box(0.0, 0.0, float(image_size[0]), float(image_size[1]))


def _boxes(entries: object, where: str) -> list[Box]:
    if not isinstance(entries, list):
        raise InputError(f"{where}: expected a list of boxes. {_shape_hint()}")
    if len(entries) == 4 and all(isinstance(value, (int, float)) for value in entries):
        entries = [entries]
    return [_entry(entry, f"{where}, box {index}") for index, entry in enumerate(entries, 1)]


def _entry(entry: object, where: str) -> Box:
    if not isinstance(entry, Mapping):
        return _box(entry, None, None, where)
    if "bbox" not in entry:
        raise InputError(f"{where}: the key 'bbox' is missing. {_shape_hint()}")
    unknown = [str(key) for key in entry if key not in _KEYS]
    if unknown:
        raise InputError(
            f"{where}: unknown key '{unknown[0]}'; a box has the keys {', '.join(_KEYS)}. "
            f"{_shape_hint()}"
        )
    score, side = entry.get("score"), entry.get("side")
    if side not in (None, "left", "right"):
        raise InputError(f"{where}: side must be 'left' or 'right', found {side!r}.")
    if score is not None and not _is_finite_number(score):
        raise InputError(f"{where}: score must be a finite number, found {score!r}.")
    return _box(entry["bbox"], score, side, where)


def _box(values: object, score: float | None, side: Side | None, where: str) -> Box:
    try:
        x, y, width, height = (_number(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: expected four numbers x, y, w, h, found {values!r}.") from error
    box = Box(x, y, width, height, None if score is None else float(score), side)
    _check_extent(box, where)
    return box


def _number(value: Any) -> float:
    """A number as float; text and truth values, which float() would take, are refused."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError
    return float(value)


def _is_finite_number(value: object) -> bool:
    try:
        return math.isfinite(_number(value))
    except (TypeError, ValueError, OverflowError):
        return False


def _refuse_coco(content: object, path: Path) -> None:
    """Refuse annotations and results of COCO, whose parts could be taken for image names."""
    is_annotations = isinstance(content, dict) and bool({"annotations", "images"} & content.keys())
    is_results = isinstance(content, list) and any(
        isinstance(entry, dict) and "image_id" in entry for entry in content
    )
    if is_annotations or is_results:
        raise InputError(
            f"'{path}' looks like a file of COCO, which names images by number. Expected a list "
            f"of boxes, or an object from file name to such a list. {_shape_hint()}"
        )


def _check_extent(box: Box, where: str) -> None:
    if not all(math.isfinite(value) for value in box.xywh):
        raise InputError(f"{where}: expected finite numbers x,y,w,h, found {_text(box)}.")
    if box.width <= 0 or box.height <= 0:
        raise InputError(
            f"{where}: width and height must be above 0, found {_text(box)}. Boxes are x,y,w,h, "
            "not two corners."
        )


def _text(box: Box) -> str:
    return ",".join(f"{value:g}" for value in box.xywh)


def _shape_hint() -> str:
    return 'Write [[x, y, w, h], ...] or {"photo.jpg": [[x, y, w, h], ...]}, in pixels.'
