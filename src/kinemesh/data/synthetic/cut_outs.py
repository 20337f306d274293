"""Rendered people and hands without a background, kept in files, from which scenes are made.

A person takes a tenth of a second to render and a few milliseconds to paste. So each is rendered
once, when it is first asked for, and written to a folder; another size, place, brightness and the
mirror image make it a new one in each scene.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.bodies import Rig
from kinemesh.bodies.topology import Kind
from kinemesh.data.synthetic.dataset import Split, check_stream
from kinemesh.data.synthetic.scene import Scene, Stage, load_stage
from kinemesh.errors import InputError
from kinemesh.files import atomic_path

Array = NDArray[np.float32]

SIDE = 448
"""Pixels of the square that cut-outs are rendered in."""
NOTHING, SUBJECT, LEFT, RIGHT = range(4)
"""Parts of a cut-out: beside it, the subject, its left and its right hand."""

_STREAM = 2  # sets the generators apart from those of the other synthetic data
_VERSION = 1  # of the files; another one is rendered again
_GAMMA = 2.2
_BRIGHT = 99.5  # percentile of the light that becomes white
_HAND_BONES = ("wrist", "metacarpal", "finger")
_MOSTLY = 0.5  # of a vertex's skinning weights
_HAND_BEGINS = 0.97  # of the forearm's coordinate, which is 1 at the wrist


@dataclass(frozen=True, eq=False)
class CutOut:
    """A rendered subject, cut to the rectangle that holds it.

    Attributes:
        kind: "body" or "hand".
        picture: (h, w, 4) uint8: sRGB, and one of `NOTHING`, `SUBJECT`, `LEFT` and `RIGHT`.
        scale: Pixels of the picture for one metre at the subject's distance.
        cut: (4,) bool: whether left, top, right and bottom side cut through the subject, since it
            went on beyond what was rendered.
        tail: (2,) pixels of the picture, x and y: the forearm's end of a hand; of bodies the
            middle.
    """

    kind: Kind
    picture: NDArray[np.uint8]
    scale: float
    cut: NDArray[np.bool_]
    tail: Array

    def mirrored(self) -> "CutOut":
        """As seen in a mirror: left hands become right ones."""
        exchange = np.array([NOTHING, SUBJECT, RIGHT, LEFT], dtype=np.uint8)
        picture = self.picture[:, ::-1].copy()
        picture[..., 3] = exchange[picture[..., 3]]
        tail = np.array([self.picture.shape[1] - self.tail[0], self.tail[1]], dtype=np.float32)
        return CutOut(self.kind, picture, self.scale, self.cut[[2, 1, 0, 3]], tail)


class CutOutBank:
    """Cut-outs by number; each is rendered once and then read from a folder.

    Cut-out i is drawn from a generator seeded with (seed, split, kind, i) alone, so that processes
    may share the folder, and a damaged or missing file is made again.

    Args:
        folder: Where the files are; made when the first one is written.
        seed: Any non-negative integer.
        split: "train", "val" or "test"; they draw from disjoint streams.

    Raises:
        InputError: The split is unknown or the seed is negative.
    """

    def __init__(self, folder: str | Path, seed: int, split: Split = "train") -> None:
        check_stream(split, seed)
        self.folder = Path(folder)
        self.seed = seed
        self.split: Split = split

    def get(self, kind: Kind, number: int) -> CutOut:
        """A cut-out, from its file or rendered now.

        Raises:
            InputError: The folder cannot be written.
        """
        path = self.folder / f"{self.split}-{self.seed}-{kind}-v{_VERSION}-{number:06d}.npz"
        found = _read(path, kind)
        if found is None:
            found = render_cut_out(kind, self._generator(kind, number))
            _write(path, found)
        return found

    def _generator(self, kind: Kind, number: int) -> np.random.Generator:
        split, which = get_args(Split).index(self.split), get_args(Kind).index(kind)
        return np.random.default_rng([self.seed, split, number, _STREAM, which])


def render_cut_out(kind: Kind, rng: np.random.Generator) -> CutOut:
    """Draw and render somebody: whole, cut by the frame as in a portrait, or a hand."""
    stage = load_stage(kind)
    while True:
        cut_out = _render(stage, stage.sample(rng, SIDE))
        if cut_out is not None:  # a view may miss its subject
            return cut_out


def _render(stage: Stage, scene: Scene) -> CutOut | None:
    rendering = stage.shade(
        stage.dress(scene.vertices[None], [scene.look]),
        [scene.look],
        focal_px=torch.tensor([scene.view.focal_px]),
        principal_px=torch.full((1, 2), SIDE / 2),
        size=(SIDE, SIDE),
        light=[scene.light],
        noise=[scene.noise],
    )
    face = rendering.face[0].numpy()
    parts = np.where(face >= 0, face_parts(stage.kind)[face], NOTHING).astype(np.uint8)
    colour = rendering.rgba[0, ..., :3].numpy()
    rows, columns = (np.flatnonzero((parts > 0).any(axis=axis)) for axis in (1, 0))
    if len(rows) < 2 or len(columns) < 2:
        return None
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    window = (slice(box[1], box[3]), slice(box[0], box[2]))
    encoded = _encode(colour, parts > 0)
    picture = np.concatenate([encoded, parts[..., None]], axis=2)[window]
    return CutOut(
        stage.kind,
        np.ascontiguousarray(picture),
        float(scene.view.focal_px / scene.root[2]),
        box == np.array([0, 0, SIDE, SIDE]),
        _tail(stage, scene) - box[:2].astype(np.float32),
    )


def _encode(colour: Array, covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Linear light to sRGB levels, the brightest of it to white."""
    white = max(float(np.percentile(colour[covered], _BRIGHT)), 1e-3)
    levels = np.clip(colour / white, 0, 1) ** (1 / _GAMMA) * 255
    return np.asarray(levels + 0.5, dtype=np.uint8)


def _tail(stage: Stage, scene: Scene) -> Array:
    """(2,) pixels of the rendered square: the vertices at the forearm's end, or the middle."""
    if stage.kind == "body":
        return np.full(2, SIDE / 2, dtype=np.float32)
    end = stage.rig.masks["sleeve"].numpy()
    points = scene.vertices[end <= np.quantile(end, 0.02)].mean(axis=0)
    place = points[:2] / max(float(points[2]), 1e-3) * scene.view.focal_px + SIDE / 2
    return np.asarray(place, dtype=np.float32)


@functools.cache
def face_parts(kind: Kind) -> NDArray[np.uint8]:
    """(F,) the part that each face of a rig belongs to."""
    rig = load_stage(kind).rig
    if kind == "hand":
        proper = (rig.masks["sleeve"] >= _HAND_BEGINS)[rig.faces].all(dim=1).numpy()
        return np.where(proper, RIGHT, SUBJECT).astype(np.uint8)
    parts = np.full(len(rig.faces), SUBJECT, dtype=np.uint8)
    for side, part in ((".L", LEFT), (".R", RIGHT)):
        parts[_of_hand(rig, side)] = part
    return parts


def _of_hand(rig: Rig, side: str) -> NDArray[np.bool_]:
    """(F,) faces whose corners move with the hand of one side, ".L" or ".R"."""
    bones = [
        number
        for number, name in enumerate(rig.bones)
        if name.startswith(_HAND_BONES) and name.endswith(side)
    ]
    weight = rig.skin_matrix[:, bones].sum(dim=1)
    return cast(NDArray[np.bool_], (weight > _MOSTLY)[rig.faces].all(dim=1).numpy())


def _read(path: Path, kind: Kind) -> CutOut | None:
    """A stored cut-out; None where there is none, or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            encoded, numbers = file["png"], file["numbers"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    picture = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or numbers.shape != (7,):
        return None
    cut = numbers[1:5] > 0
    return CutOut(kind, cast(Any, picture), float(numbers[0]), cut, numbers[5:].astype(np.float32))


def _write(path: Path, cut_out: CutOut) -> None:
    """Write a file of a PNG picture (channels in the order that OpenCV was given) and numbers."""
    flags = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    _, encoded = cv2.imencode(".png", cut_out.picture, flags)
    numbers = np.concatenate([[cut_out.scale], cut_out.cut, cut_out.tail]).astype(np.float64)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, png=encoded, numbers=numbers)
    except OSError as error:
        raise InputError(
            f"Cannot write rendered people to '{path.parent}' ({error.strerror}). Name a folder "
            "with some gigabytes of space with --cut-outs."
        ) from error
