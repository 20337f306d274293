"""Many pictures of each rendered subject: turned, cut, beside others, at the border of a photo.

A pass over the layers of a `LayerBank` shows every subject once, and every pass shows it in another
way: the background, the light of the picture, the occluders and the camera's defects are new, and
so is what `Restaging` says. Labels follow exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kinemesh.data.records import Sample
from kinemesh.data.synthetic.dataset import make_sample
from kinemesh.data.synthetic.layers import SIDE, Layer, LayerBank
from kinemesh.data.synthetic.scene import Array, compose
from kinemesh.errors import InputError

_TRIES = 6  # of a placement that would show where the layer ends
_PIXEL = 1.5  # how far outside of the crop the end of a layer must lie
_MOST_HIDDEN = 0.4  # share of the subject that somebody before it may cover


@dataclass(kw_only=True)
class Restaging:
    """How often pictures have what photos have and plain renderings have not; shares in [0, 1]."""

    turned: float = 0.15
    """Turned by any angle in the image: people who lie, hang or bend down."""
    cut: float = 0.6
    """A window of the rendering, so that more of the subject is outside of the crop."""
    others: float = 0.4
    """Somebody else, or another hand, behind or before the subject."""
    border: float = 0.3
    """The photo ends within the crop; its outermost pixels are repeated, as `predict` does."""

    def __post_init__(self) -> None:
        for item in fields(self):
            share = getattr(self, item.name)
            if not 0 <= share <= 1:
                raise InputError(f"restaging.{item.name}: expected 0 to 1, found {share}.")


class RestagedDataset(Dataset[Sample]):
    """Pictures of the first layers of a bank, reproducible by index and step.

    Args:
        bank: The layers.
        count: How many of them.
        resolution: Side S of the square crop in pixels.
        restaging: What is varied.
    """

    def __init__(self, bank: LayerBank, count: int, resolution: int, restaging: Restaging) -> None:
        if count < 1:
            raise InputError(f"layers: expected at least 1, found {count}.")
        self.bank, self.count, self.resolution = bank, count, resolution
        self.restaging = restaging
        self.step = 0

    def __len__(self) -> int:
        return self.count

    def set_step(self, step: int) -> None:
        """Say which training step the next samples belong to."""
        self.step = step

    def __getitem__(self, index: int) -> Sample:
        """One picture of layer ``index``."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several pictures, whose layers are rendered together where they are new."""
        rngs = [self.bank.generator(index, self.step) for index in indices]
        others = [self._draw_other(rng) for rng in rngs]
        wanted = sorted({*indices, *(other for other in others if other is not None)})
        layers = dict(zip(wanted, self.bank.get(wanted), strict=True))
        return [
            self._make(rng, layers[index], None if other is None else layers[other])
            for rng, index, other in zip(rngs, indices, others, strict=True)
        ]

    def _draw_other(self, rng: np.random.Generator) -> int | None:
        number = int(rng.integers(self.count))
        return number if rng.random() < self.restaging.others else None

    def _make(self, rng: np.random.Generator, layer: Layer, other: Layer | None) -> Sample:
        size, kind = self.resolution, self.bank.kind
        place = _place(rng, layer, self.restaging, size)
        rgba, depth = _warp(layer.rgba, place, size), _warp_depth(layer.depth_m, place, size)
        behind: list[Array] = []
        before: list[Array] = []
        if other is not None:
            extra = _warp_other(rng, other, place, size, upright=kind == "body")
            covered = (extra[..., 3] * rgba[..., 3]).sum() / max(float(rgba[..., 3].sum()), 1.0)
            in_front = rng.random() < 0.5 and covered < _MOST_HIDDEN
            (before if in_front else behind).append(extra)
        border = _draw_border(rng, size) if rng.random() < self.restaging.border else None
        image = compose(rng, rgba, depth, kind, behind=behind, before=before, border=border)
        return _label(layer, place, image, border)


def _place(
    rng: np.random.Generator, layer: Layer, restaging: Restaging, size: int
) -> NDArray[np.float64]:
    """(2, 3) matrix from pixels of the layer to those of the crop, which shows no end of it."""
    turned, cut = rng.random() < restaging.turned, rng.random() < restaging.cut
    for _ in range(_TRIES):
        angle = rng.normal(0, 10)
        if turned:
            angle = 90.0 * rng.integers(1, 4) if rng.random() < 0.5 else rng.uniform(-180, 180)
        window = rng.uniform(0.7, 1.0) if cut else rng.uniform(0.95, 1.0)
        reach = (1 - window) / 2
        shift = rng.uniform(-reach, reach, 2) * size / window
        matrix = _similarity(angle, size / SIDE / window, shift, size)
        if _hides_cuts(matrix, layer, size):
            return matrix
    return _similarity(0.0, size / SIDE, np.zeros(2), size)


def _similarity(
    angle_deg: float, scale: float, shift_px: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    """(2, 3): turn a layer about its centre, scale it and move its centre from the crop's."""
    radians = np.radians(angle_deg)
    cos, sin = scale * np.cos(radians), scale * np.sin(radians)
    linear = np.array([[cos, -sin], [sin, cos]])
    offset = size / 2 + shift_px - linear @ np.full(2, SIDE / 2)
    return np.column_stack([linear, offset])


def _hides_cuts(matrix: NDArray[np.float64], layer: Layer, size: int) -> bool:
    """Whether all sides that cut through the subject lie outside of the crop."""
    corners = np.array([[0, SIDE], [0, 0], [SIDE, 0], [SIDE, SIDE]], dtype=np.float64)
    places = corners @ matrix[:, :2].T + matrix[:, 2]
    for side in np.flatnonzero(layer.cut):
        ends = places[[side, (side + 1) % 4]]
        outside = [*(ends.max(0) < _PIXEL), *(ends.min(0) > size - _PIXEL)]
        if not any(outside):
            return False
    return True


def _warp(rgba: Array, matrix: NDArray[np.float64], size: int) -> Array:
    """(size, size, 4): the layer in the crop, smoothed by drawing it larger first."""
    zoom = SIDE / size
    large = cv2.warpAffine(rgba, _about_centres(matrix * zoom), (SIDE, SIDE))
    return np.asarray(cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA))


def _warp_depth(depth: Array, matrix: NDArray[np.float64], size: int) -> Array:
    far = cv2.warpAffine(
        depth,
        _about_centres(matrix),
        (size, size),
        flags=cv2.INTER_NEAREST,
        borderValue=(np.inf,) * 4,
    )
    return np.asarray(far)


def _about_centres(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """OpenCV counts pixels from their centres, everything here from their corners."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ np.full(2, 0.5) - 0.5
    return moved


def _warp_other(
    rng: np.random.Generator,
    layer: Layer,
    place: NDArray[np.float64],
    size: int,
    *,
    upright: bool,
) -> Array:
    """(size, size, 4) somebody else at another place of the crop, mirrored half of the time."""
    mirrored = rng.random() < 0.5
    scale = float(np.hypot(*place[:, 0])) * rng.uniform(0.6, 1.25)
    empty = np.zeros((size, size, 4), dtype=np.float32)
    for _ in range(_TRIES):
        aside = rng.choice([-1.0, 1.0]) * rng.uniform(0.25, 0.8)
        along = rng.normal(0, 0.12) if upright else rng.uniform(-0.6, 0.6)
        angle = rng.normal(0, 8) if upright else rng.uniform(-180, 180)
        matrix = _similarity(angle, scale, np.array([aside, along]) * size, size)
        if mirrored:
            # x -> SIDE - x before everything else
            matrix = np.column_stack([-matrix[:, 0], matrix[:, 1], matrix[:, 2]])
            matrix[:, 2] -= matrix[:, 0] * SIDE
        if _hides_cuts(matrix, layer, size):
            return _warp(layer.rgba, matrix, size)
    return empty


def _draw_border(rng: np.random.Generator, size: int) -> NDArray[np.int64]:
    """(4,) the photo's first column and row and last column and row in the crop."""
    depth = (rng.uniform(0.03, 0.22, 4) * size).astype(np.int64)
    chance = np.array([0.3, 0.2, 0.3, 0.6])  # most often the photo ends below
    depth *= rng.random(4) < chance
    return np.array([depth[0], depth[1], size - 1 - depth[2], size - 1 - depth[3]])


def _label(
    layer: Layer, matrix: NDArray[np.float64], image: Array, border: NDArray[np.int64] | None
) -> Sample:
    """The record of a picture.

    The axes are those of a camera that looks at the middle of the crop, as in pictures that were
    rendered for it; its distance and focal length are left unknown.
    """
    size = len(image)
    placed = layer.joints + layer.root
    pixels = placed[:, :2] / placed[:, 2:] * layer.focal_px + SIDE / 2
    pixels = pixels @ matrix[:, :2].T + matrix[:, 2]
    low, high = (np.zeros(2), np.full(2, size)) if border is None else (border[:2], border[2:] + 1)
    inside = ((pixels >= low) & (pixels <= high)).all(axis=1, keepdims=True)
    rotation = _axes(matrix, layer.focal_px, size)
    return make_sample(
        image,
        np.concatenate([pixels, inside], axis=1),
        layer.joints @ rotation.T,
        layer.vertices @ rotation.T,
    )


def _axes(matrix: NDArray[np.float64], focal_px: float, size: int) -> Array:
    """(3, 3) axes of the layer's camera to those of one that looks at the middle of the crop."""
    linear = matrix[:, :2]
    middle = np.linalg.solve(linear, np.full(2, size / 2) - matrix[:, 2]) - SIDE / 2
    ray = np.array([*middle, focal_px])
    z = ray / np.linalg.norm(ray)
    x = np.array([1.0, 0.0, 0.0]) - z[0] * z
    x /= np.linalg.norm(x)
    looking = np.stack([x, np.cross(z, x), z])
    turn = np.eye(3)
    turn[:2, :2] = linear / np.sqrt(np.linalg.det(linear))
    return np.asarray(turn @ looking, dtype=np.float32)
