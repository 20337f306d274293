"""Rendered subjects with their labels, kept in files, to be placed before ever new backgrounds.

Drawing and rendering somebody takes ten times as long as all the rest of a picture. A `Layer` is
what was rendered, without a background; `kinemesh.data.synthetic.restaging` makes many pictures of
each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.bodies.topology import Kind
from kinemesh.data.synthetic.dataset import CHUNK, Split, check_stream
from kinemesh.data.synthetic.scene import Scene, Stage, load_stage
from kinemesh.errors import InputError
from kinemesh.files import atomic_path

Array = NDArray[np.float32]

SIDE = 192
"""Pixels of the square that layers are rendered in."""

_STREAM = 3  # sets the generators apart from those of the other synthetic data
_VERSION = 1  # of the files; another one is rendered again
_GAMMA = 2.2
_BRIGHT = 99.8  # percentile of the light that becomes the highest level
_PER_METRE, _MIDDLE = 10_000.0, 32_768.0  # levels of the depth


@dataclass(frozen=True, eq=False)
class Layer:
    """A rendered subject and its labels.

    Attributes:
        rgba: (SIDE, SIDE, 4) float32 linear colour premultiplied by coverage.
        depth_m: (SIDE, SIDE) float32 relative to the root joint, infinite beside the subject.
        cut: (4,) bool: whether left, top, right and bottom side cut through the subject.
        joints: (J, 3) float32 root frame, metres.
        vertices: (V, 3) float32 root frame, metres, all vertices of the topology.
        root: (3,) float32, the root joint in the camera frame, metres.
        focal_px: Focal length in pixels of the square; the principal point is its centre.
    """

    rgba: Array
    depth_m: Array
    cut: NDArray[np.bool_]
    joints: Array
    vertices: Array
    root: Array
    focal_px: float


class LayerBank:
    """Layers by number; each is rendered once and then read from a folder.

    Layer i is drawn from a generator seeded with (seed, split, kind, i) alone, so that processes
    may share the folder, and a damaged or missing file is made again.

    Args:
        kind: "hand" or "body".
        folder: Where the files are; made when the first one is written.
        seed: Any non-negative integer.
        split: "train", "val" or "test"; they draw from disjoint streams.

    Raises:
        InputError: The split is unknown or the seed is negative.
    """

    def __init__(self, kind: Kind, folder: str | Path, seed: int, split: Split = "train") -> None:
        check_stream(split, seed)
        self.kind: Kind = kind
        self.folder = Path(folder)
        self.seed = seed
        self.split: Split = split

    def get(self, numbers: Sequence[int]) -> list[Layer]:
        """Layers, from their files or rendered now, several together.

        Raises:
            InputError: The folder cannot be written.
        """
        found = {number: _read(self._path(number)) for number in numbers}
        missing = [number for number, layer in found.items() if layer is None]
        for first in range(0, len(missing), CHUNK):
            chunk = missing[first : first + CHUNK]
            for number, fresh in zip(chunk, self._render(chunk), strict=True):
                _write(self._path(number), fresh)
                # files are rounded: a run that goes on must see what it saw before
                found[number] = _read(self._path(number)) or fresh
        return [layer for number in numbers if (layer := found[number]) is not None]

    def _path(self, number: int) -> Path:
        name = f"{self.split}-{self.seed}-{self.kind}-layer-v{_VERSION}-{number:07d}.npz"
        return self.folder / f"{number // 1000:04d}" / name

    def _render(self, numbers: Sequence[int]) -> list[Layer]:
        stage = load_stage(self.kind)
        scenes = [stage.sample(self.generator(number), SIDE) for number in numbers]
        return render_layers(stage, scenes)

    def generator(self, *numbers: int) -> np.random.Generator:
        """The source of chance for a layer, or for one use of it."""
        split, kind = get_args(Split).index(self.split), get_args(Kind).index(self.kind)
        return np.random.default_rng([self.seed, split, _STREAM, kind, *numbers])


def render_layers(stage: Stage, scenes: Sequence[Scene]) -> list[Layer]:
    """Render scenes that were drawn for a square of `SIDE` pixels."""
    looks = [scene.look for scene in scenes]
    rendering = stage.shade(
        stage.dress(np.stack([scene.vertices for scene in scenes]), looks),
        looks,
        focal_px=torch.tensor([scene.view.focal_px for scene in scenes]),
        principal_px=torch.full((len(scenes), 2), SIDE / 2),
        size=(SIDE, SIDE),
        light=[scene.light for scene in scenes],
        noise=[scene.noise for scene in scenes],
    )
    return [
        _layer(scene, rgba, depth)
        for scene, rgba, depth in zip(
            scenes, rendering.rgba.numpy(), rendering.depth.numpy(), strict=True
        )
    ]


def _layer(scene: Scene, rgba: Array, depth: Array) -> Layer:
    covered = rgba[..., 3] > 0
    sides = [covered[:, 0], covered[0], covered[:, -1], covered[-1]]
    return Layer(
        rgba,
        depth - scene.root[2],
        np.array([side.any() for side in sides]),
        scene.joints - scene.root,
        scene.labels - scene.root,
        scene.root,
        float(scene.view.focal_px),
    )


def _read(path: Path) -> Layer | None:
    """A stored layer; None where there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            colour = cv2.imdecode(file["colour"], cv2.IMREAD_UNCHANGED)
            levels = cv2.imdecode(file["depth"], cv2.IMREAD_UNCHANGED)
            joints, vertices = file["joints"], file["vertices"].astype(np.float32)
            numbers = file["numbers"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile, cv2.error):
        return None
    if colour is None or levels is None or numbers.shape != (9,):
        return None
    rgba = _LINEAR[colour]
    rgba[..., :3] *= numbers[0]
    rgba[..., 3] = colour[..., 3] * np.float32(1 / 255)
    depth = (levels.astype(np.float32) - np.float32(_MIDDLE)) / np.float32(_PER_METRE)
    depth[levels == 0] = np.inf
    cut, root = numbers[1:5] > 0, numbers[5:8].astype(np.float32)
    return Layer(rgba, depth, cut, joints, vertices, root, float(numbers[8]))


_LINEAR = ((np.arange(256) / 255.0) ** _GAMMA).astype(np.float32)


def _write(path: Path, layer: Layer) -> None:
    """Write a file of two PNG pictures (channels in the order that OpenCV was given) and labels.

    Vertices are halves, exact to half a millimetre.
    """
    covered = layer.rgba[..., 3] > 0
    light = layer.rgba[..., :3][covered]
    white = max(float(np.percentile(light, _BRIGHT)) if len(light) else 1.0, 1e-3)
    levels = np.clip(layer.rgba[..., :3] / white, 0, 1) ** (1 / _GAMMA)
    colour = np.dstack([levels, layer.rgba[..., 3:]]) * 255 + 0.5
    depth = np.where(covered, layer.depth_m, 0) * _PER_METRE + _MIDDLE
    depth = np.where(covered & np.isfinite(depth), np.clip(depth, 1, 65_535), 0)
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    numbers = [white, *layer.cut.astype(float), *layer.root.astype(float), layer.focal_px]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            np.savez(
                temporary,
                colour=cv2.imencode(".png", cast(Any, colour.astype(np.uint8)), flags)[1],
                depth=cv2.imencode(".png", cast(Any, depth.astype(np.uint16)), flags)[1],
                joints=layer.joints,
                vertices=layer.vertices.astype(np.float16),
                numbers=np.array(numbers, dtype=np.float64),
            )
    except OSError as error:
        raise InputError(
            f"Cannot write rendered layers to '{path.parent}' ({error.strerror}). Name a folder "
            "with some gigabytes of space with --layer-folder."
        ) from error
