"""Finding the photo that results were made from, since they hold its file name alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kinemesh.errors import InputError
from kinemesh.inference.images import image_suffixes, load_image

LONGEST_SIDE_PX = 1920
"""Larger photos are reduced to it on their way to the page."""
_THUMBNAIL = (32, 32)
_LIKE = 12.0
"""Grey levels by which a quarter of a thumbnail may differ from the overlay of the same photo."""


@dataclass(frozen=True)
class PhotoRecord:
    """What results say about their photo.

    Attributes:
        stem: Start of the names of the result files.
        file_name: Name of the photo, None where it is not told.
        size: Width and height in pixels.
    """

    stem: str
    file_name: str | None
    size: tuple[int, int]


def find_photo(
    record: PhotoRecord, folders: Sequence[Path], overlay: Path | None
) -> np.ndarray | None:
    """The photo of some results, (H, W, 3) uint8 RGB, or None if it is nowhere.

    A picture counts if it has the name and the size, and where there is an overlay, if it looks
    like the part of it that no mesh covers; else photos that share a name would be mixed up.

    Args:
        record: What the results say.
        folders: Where to look, the likeliest first; not in their sub-folders.
        overlay: Overlay picture among the results, None without one.
    """
    drawn = None if overlay is None else read_pixels(overlay)
    for path in _candidates(record, folders):
        pixels = read_pixels(path)
        if pixels is None or (pixels.shape[1], pixels.shape[0]) != record.size:
            continue
        if drawn is None or _is_like(pixels, drawn):
            return pixels
    return None


def reduced(pixels: np.ndarray) -> np.ndarray:
    """A picture of at most ``LONGEST_SIDE_PX`` pixels on its longer side."""
    height, width = pixels.shape[:2]
    zoom = LONGEST_SIDE_PX / max(height, width)
    if zoom >= 1:
        return pixels
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


def _candidates(record: PhotoRecord, folders: Sequence[Path]) -> Iterator[Path]:
    if record.file_name is not None:
        names = [record.file_name]
    else:
        names = [record.stem + suffix for suffix in sorted(image_suffixes())]
    for folder in folders:
        for name in names:
            path = folder / name
            if path.is_file():
                yield path


def read_pixels(path: Path) -> np.ndarray | None:
    """The pixels of a picture, None if it is not readable."""
    try:
        return load_image(path).pixels
    except InputError:  # a file that only has the name of the photo
        return None


def _is_like(photo: np.ndarray, overlay: np.ndarray) -> bool:
    small = [
        cv2.resize(pixels, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(float)
        for pixels in (photo, overlay)
    ]
    differences = np.abs(small[0] - small[1]).max(axis=2)
    return bool(np.quantile(differences, 0.25) < _LIKE)
