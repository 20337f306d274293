"""Where to look in a photo: given boxes, those of a detector, or the whole of it."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kinemesh.inference.boxes import Box, as_boxes
from kinemesh.inference.images import LoadedImage

if TYPE_CHECKING:
    from kinemesh.inference.detectors import Detector

WHOLE = "whole"
"""In place of boxes: the whole photo is one crop, and nothing is searched."""

logger = logging.getLogger(__name__)


def places_to_look(
    photo: LoadedImage,
    boxes: str | Iterable[Box | Sequence[float] | Mapping[str, Any]] | None,
    detector: "Detector | None",
    *,
    keep_sides: bool = True,
) -> list[Box] | None:
    """The boxes of a photo, or None for the whole of it.

    Args:
        photo: The photo.
        boxes: What `as_boxes` takes, `WHOLE`, or None for what the detector finds.
        detector: Asked where ``boxes`` is None; None finds nothing.
        keep_sides: Whether the detector may say which hand is a left one.

    Raises:
        InputError: A box is not usable.
    """
    if isinstance(boxes, str) and boxes == WHOLE:
        return None
    if boxes is not None:
        return as_boxes(boxes)
    if detector is None:
        return None
    found = detector.detect(photo)
    if not found:
        # a photo that was cut out by hand has no surroundings to find anybody in
        logger.warning("Nobody was found in the photo: the whole of it is taken as one box.")
    return (found if keep_sides else without_sides(found)) or None


def without_sides(boxes: Iterable[Box]) -> list[Box]:
    """Boxes of hands of which nobody says whether they are left or right ones."""
    return [replace(box, side=None) for box in boxes]
