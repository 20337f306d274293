"""Contact sheets: look at a data set and its labels before training on it."""

from collections.abc import Sequence
from typing import Protocol, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.data.records import Sample
from kinemesh.errors import InputError
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import Skeleton, get_skeleton

Picture = NDArray[np.uint8]

_SKELETONS = {21: "hand21", 17: "coco17", 14: "h36m14", 24: "metro24"}
_GROUND = 236  # grey level behind the view from the side


class _Indexed(Protocol):
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


def contact_sheet(
    dataset: _Indexed,
    count: int = 24,
    columns: int = 4,
    *,
    scale: int = 2,
    skeleton: Skeleton | None = None,
) -> Picture:
    """Tile the first samples of a data set, each beside a copy with its labels drawn.

    Args:
        dataset: Anything that yields :class:`kinemesh.data.records.Sample`.
        count: Number of samples.
        columns: Samples in a row.
        scale: Enlargement of each picture.
        skeleton: Names and parents of the joints; by default chosen by their number.

    Returns:
        (rows * S * scale, columns * 2 * S * scale, 3) uint8 RGB; see `tile_samples`.

    Raises:
        InputError: A number is not positive, or the data set has fewer samples than asked for.
    """
    if min(count, columns, scale) < 1 or count > len(dataset):
        raise InputError(
            f"contact_sheet: expected positive numbers and at most {len(dataset)} samples, found "
            f"count={count}, columns={columns}, scale={scale}."
        )
    samples = [dataset[index] for index in range(count)]
    return tile_samples(samples, columns, scale=scale, skeleton=skeleton)


def tile_samples(
    samples: Sequence[Sample],
    columns: int = 4,
    *,
    scale: int = 1,
    skeleton: Skeleton | None = None,
    side_view: bool = False,
) -> Picture:
    """Tile samples, each beside a copy with its labels drawn.

    The labels are the 2D joints, joined to a skeleton, and the mesh as dots: near vertices bright,
    far ones dark. A label that is missing is not drawn; nor is a mesh whose camera is unknown.

    Args:
        samples: At least one, of equal resolution.
        columns: Samples in a row.
        scale: Enlargement of each picture.
        skeleton: Names and parents of the joints; by default chosen by their number.
        side_view: Add the 3D joints as seen from the person's or hand's side, depth to the right;
            they fill the picture whatever their size.

    Returns:
        (rows * S * scale, columns * P * S * scale, 3) uint8 RGB, where P is 2, or 3 with the view
        from the side.
    """
    cells = [_cell(sample, scale, skeleton, side_view) for sample in samples]
    blank = np.zeros_like(cells[0])
    cells += [blank] * (-len(cells) % columns)
    rows = [np.concatenate(cells[k : k + columns], axis=1) for k in range(0, len(cells), columns)]
    return np.concatenate(rows)


def _cell(sample: Sample, scale: int, skeleton: Skeleton | None, side_view: bool) -> Picture:
    picture = (sample["image"].permute(1, 2, 0).numpy() * 255 + 0.5).astype(np.uint8)
    size = len(picture) * scale
    plain = cast(Picture, cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR))
    skeleton = skeleton or get_skeleton(_SKELETONS[len(sample["joints_2d"])])
    panels = [plain, _draw_labels(plain.copy(), sample, scale, skeleton)]
    if side_view:
        panels.append(_draw_side(sample, size, skeleton))
    return np.concatenate(panels, axis=1)


def _draw_labels(picture: Picture, sample: Sample, scale: int, skeleton: Skeleton) -> Picture:
    if float(sample["has_mesh"]) > 0 and float(sample["focal_px"]) > 0 and len(sample["vertices"]):
        _draw_vertices(picture, sample, scale)
    if float(sample["has_2d"]) > 0:
        joints = sample["joints_2d"].numpy()
        picture = draw_skeleton(
            picture, joints[:, :2] * scale, skeleton, confidence=joints[:, 2], thickness=1
        )
    return picture


def _draw_side(sample: Sample, size: int, skeleton: Skeleton) -> Picture:
    """The 3D joints on the y-z plane, without perspective; empty where they are not labelled."""
    ground = np.full((size, size, 3), _GROUND, dtype=np.uint8)
    joints = sample["joints_3d"].numpy()
    seen = joints[:, 3] > 0
    if not float(sample["has_3d"]) > 0 or not seen.any():
        return ground
    side = joints[:, [2, 1]]
    low, high = side[seen].min(0), side[seen].max(0)
    zoom = 0.8 * size / max(float((high - low).max()), 1e-6)
    pixels = (side - (low + high) / 2) * zoom + size / 2
    return draw_skeleton(ground, pixels, skeleton, confidence=joints[:, 3], thickness=2)


def _draw_vertices(picture: Picture, sample: Sample, scale: int) -> None:
    """One pixel for each vertex, in place; far ones first, so that near ones stay on top."""
    size = len(picture)
    points = (sample["vertices"] + sample["root_m"]).numpy()
    order = np.argsort(-points[:, 2])
    depth = points[order, 2]
    focal = float(sample["focal_px"]) * scale
    pixels = np.floor(points[order, :2] / depth[:, None] * focal + size / 2).astype(np.int64)
    seen = ((pixels >= 0) & (pixels < size)).all(axis=1)
    shade = 90 + 165 * (depth.max() - depth) / max(float(np.ptp(depth)), 1e-6)
    colour = np.stack([0.3 * shade, shade, 0.85 * shade], axis=1).astype(np.uint8)
    picture[pixels[seen, 1], pixels[seen, 0]] = colour[seen]
