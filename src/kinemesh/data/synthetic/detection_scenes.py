"""Synthetic photos with the boxes of people and hands, made of cut-outs before a background.

Labels follow from the pixels: a box holds what is seen of a person or a hand, and what too little
is seen of is ignored, neither to be found nor a mistake when it is. A hand that reaches into the
photo is a hand alone, and its forearm is ignored as a person.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.bodies.topology import Kind
from kinemesh.data.synthetic.backgrounds import sample_background
from kinemesh.data.synthetic.cut_outs import (
    LEFT,
    NOTHING,
    RIGHT,
    SUBJECT,
    CutOut,
    CutOutBank,
)
from kinemesh.data.synthetic.dataset import Split
from kinemesh.data.synthetic.degradation import degrade, develop
from kinemesh.data.synthetic.occluders import sample_occluders
from kinemesh.data.synthetic.scene import SRGB_TO_LINEAR
from kinemesh.errors import InputError
from kinemesh.geometry.letterbox import Letterbox
from kinemesh.models.detector import LEFT_HAND, PERSON, RIGHT_HAND

Array = NDArray[np.float32]
Size = tuple[int, int]

_KINDS = {"people": 0.6, "hands": 0.21, "both": 0.13, "empty": 0.06}
_MORE_PEOPLE = 0.55  # chance of one more person, and of still one more
_MOST_PEOPLE = 7
_LARGEST_ASPECT = 2.0
_BODY_M, _HAND_M = 1.7, 0.18
_LEAST_SHARE = 0.2  # of what the photo holds of a person that must not be covered
_LEAST_PX = {PERSON: 12.0, LEFT_HAND: 9.0, RIGHT_HAND: 9.0}  # of the longer side of a box
_LEAST_HAND = 0.12  # seen pixels over the square of the length that an open hand would have
_NOBODY = -1
_STREAM = 3  # sets the generators apart from those of the other synthetic data


class DetectionSample(TypedDict):
    """One square picture with N boxes."""

    image: Tensor
    """(3, S, S) uint8 RGB."""
    boxes: Tensor
    """(N, 4) float32 left, top, right, bottom, pixels of the square."""
    labels: Tensor
    """(N,) int64 numbers of `kinemesh.models.detector.CLASSES`."""
    ignored: Tensor
    """(N,) bool: may be found, but need not be."""


def collate_detection(samples: Sequence[DetectionSample]) -> dict[str, Tensor]:
    """Stack samples; rows that fill up have the label -1 and an empty box."""
    most = max(1, *(len(sample["labels"]) for sample in samples))
    batch = {
        "image": torch.stack([sample["image"] for sample in samples]),
        "boxes": torch.zeros(len(samples), most, 4),
        "labels": torch.full((len(samples), most), -1, dtype=torch.int64),
        "ignored": torch.zeros(len(samples), most, dtype=torch.bool),
    }
    for row, sample in enumerate(samples):
        count = len(sample["labels"])
        batch["boxes"][row, :count] = sample["boxes"]
        batch["labels"][row, :count] = sample["labels"]
        batch["ignored"][row, :count] = sample["ignored"]
    return batch


@dataclass(frozen=True)
class DetectionScene:
    """A photo and its labels in pixels.

    Attributes:
        photo: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 left, top, right, bottom.
        labels: (N,) int64 numbers of `kinemesh.models.detector.CLASSES`.
        ignored: (N,) bool.
    """

    photo: NDArray[np.uint8]
    boxes: Array
    labels: NDArray[np.int64]
    ignored: NDArray[np.bool_]


class DetectionScenes(Dataset[DetectionSample]):
    """Synthetic photos of people and hands at all scales, endless and reproducible.

    Scene i is drawn from a generator seeded with (seed, split, i) alone; the seed and split are
    those of the bank. A process that shares its cores with others should call
    ``torch.set_num_threads(1)`` and ``cv2.setNumThreads(0)`` first.

    Args:
        bank: Where people and hands come from.
        side: S of the square in pixels, the longer side of the photo.
        bodies: How many different people the bank is asked for.
        hands: How many different hands.
        length: Number of samples.

    Raises:
        InputError: A number is out of its range.
    """

    def __init__(
        self,
        bank: CutOutBank,
        side: int = 320,
        bodies: int = 8000,
        hands: int = 3000,
        length: int = 10**7,
    ) -> None:
        if min(bodies, hands, length) < 1 or side < 64:
            raise InputError(
                "bodies, hands, length, side: expected at least 1, 1, 1 and 64, found "
                f"{bodies}, {hands}, {length} and {side}."
            )
        self.bank, self.side, self.length = bank, side, length
        self.counts: dict[Kind, int] = {"body": bodies, "hand": hands}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> DetectionSample:
        """Scene ``index`` in its square."""
        scene = self.render(index)
        height, width = scene.photo.shape[:2]
        square = Letterbox((width, height), self.side).fill(scene.photo)
        return DetectionSample(
            image=torch.from_numpy(square).permute(2, 0, 1).contiguous(),
            boxes=torch.from_numpy(scene.boxes),
            labels=torch.from_numpy(scene.labels),
            ignored=torch.from_numpy(scene.ignored),
        )

    def render(self, index: int) -> DetectionScene:
        """Scene ``index``; the longer side of its photo is that of the square."""
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside a data set of {self.length} samples")
        split = get_args(Split).index(self.bank.split)
        rng = np.random.default_rng([self.bank.seed, split, index % self.length, _STREAM])
        size = _draw_size(rng, self.side)
        figures = self._draw_figures(rng, size)
        canvas = _Canvas.before(rng, size)
        # the nearest last; pixels a metre tell the distance
        for number, figure in enumerate(sorted(figures, key=lambda figure: figure.px_per_m)):
            canvas.paste(rng, figure, number)
        canvas.cover(rng)
        labels = _Labels(self.side)
        for number, figure in enumerate(canvas.figures):
            labels.add(canvas, number, figure)
        return labels.scene(canvas.photograph(rng))

    def _draw_figures(self, rng: np.random.Generator, size: Size) -> list["_Figure"]:
        kind = rng.choice(list(_KINDS), p=list(_KINDS.values()))
        people = hands = 0
        if kind in ("people", "both"):
            people = min(int(rng.geometric(1 - _MORE_PEOPLE)), _MOST_PEOPLE)
        if kind in ("hands", "both"):
            hands = int(rng.choice([1, 2, 3], p=[0.65, 0.3, 0.05]))
        figures = [_place_body(rng, self._draw(rng, "body"), size) for _ in range(people)]
        return figures + [_place_hand(rng, self._draw(rng, "hand"), size) for _ in range(hands)]

    def _draw(self, rng: np.random.Generator, kind: Kind) -> CutOut:
        cut_out = self.bank.get(kind, int(rng.integers(self.counts[kind])))
        return cut_out.mirrored() if rng.random() < 0.5 else cut_out


def _draw_size(rng: np.random.Generator, side: int) -> Size:
    """Width and height of a photo, one of them the side of the square."""
    reach = np.log(_LARGEST_ASPECT)
    aspect = float(np.exp(rng.uniform(-reach, reach)))
    width, height = side * min(1.0, aspect), side * min(1.0, 1 / aspect)
    return round(width), round(height)


@dataclass(frozen=True)
class _Figure:
    """A cut-out at its place.

    Attributes:
        cut_out: What is pasted.
        left, top: Pixels of the photo.
        zoom: Pixels of the photo for one of the cut-out.
    """

    cut_out: CutOut
    left: int
    top: int
    zoom: float

    @property
    def size(self) -> Size:
        height, width = self.cut_out.picture.shape[:2]
        return max(1, round(width * self.zoom)), max(1, round(height * self.zoom))

    @property
    def px_per_m(self) -> float:
        return self.cut_out.scale * self.zoom

    @property
    def hand_px(self) -> float:
        """Length in the photo of an open hand at the subject's distance."""
        return _HAND_M * self.px_per_m


def _place_body(rng: np.random.Generator, cut_out: CutOut, size: Size) -> _Figure:
    """Somebody anywhere; where the rendering was cut, the border of the photo cuts as well."""
    height, width = cut_out.picture.shape[:2]
    if cut_out.cut.any():
        zoom = np.exp(rng.uniform(np.log(0.45), np.log(1.5))) * max(size) / max(width, height)
    else:
        tall = np.exp(rng.uniform(np.log(0.12), np.log(1.6)))
        zoom = tall * size[1] / (_BODY_M * cut_out.scale)
        zoom = min(zoom, 3.0 * max(size) / max(width, height))
    left_cut, top_cut, right_cut, bottom_cut = cut_out.cut
    if left_cut and right_cut:
        zoom = max(zoom, 1.02 * size[0] / width)
    if top_cut and bottom_cut:
        zoom = max(zoom, 1.02 * size[1] / height)
    middle = np.clip(rng.normal(0.55, 0.17), 0.1, 0.95)
    left = _along(rng, width * zoom, size[0], rng.uniform(0.02, 0.98), left_cut, right_cut)
    top = _along(rng, height * zoom, size[1], float(middle), top_cut, bottom_cut)
    return _Figure(cut_out, left, top, float(zoom))


def _along(
    rng: np.random.Generator, length: float, room: int, middle: float, first: bool, last: bool
) -> int:
    """Where a figure begins along one axis; a side that cuts it lies at or beyond the border."""
    over = rng.uniform(0.0, 0.15) * length
    if first and last:
        return round(rng.uniform(room - length, 0))
    if first:
        return round(-over)
    if last:
        return round(room - length + over)
    return round(middle * room - length / 2)


def _place_hand(rng: np.random.Generator, cut_out: CutOut, size: Size) -> _Figure:
    """A hand that reaches in; most often the border hides where its forearm ends."""
    height, width = cut_out.picture.shape[:2]
    rows, columns = np.nonzero(cut_out.picture[..., 3] > SUBJECT)
    middle = np.array([columns.mean(), rows.mean()]) if len(rows) else np.array([width, height]) / 2
    share = np.exp(rng.uniform(np.log(0.1), np.log(0.95)))
    zoom = share * max(size) / (_HAND_M * cut_out.scale)
    zoom = float(min(zoom, 4.0 * max(size) / max(width, height)))
    hide = rng.random() < 0.75
    for _ in range(40):
        corner = rng.uniform(0.08, 0.92, 2) * size - middle * zoom
        tail = corner + cut_out.tail * zoom
        if not hide or not ((tail > 0) & (tail < size)).all():
            break
    return _Figure(cut_out, round(float(corner[0])), round(float(corner[1])), zoom)


class _Canvas:
    """A photo in the making, in linear light, with what each pixel shows.

    Args:
        light: (H, W, 3) float32, the background.
    """

    def __init__(self, light: Array) -> None:
        self.light = light
        self.owner = np.full(light.shape[:2], _NOBODY, dtype=np.int16)
        self.parts = np.full(light.shape[:2], NOTHING, dtype=np.uint8)
        self.figures: list[_Figure] = []
        self.drawn: list[int] = []

    @classmethod
    def before(cls, rng: np.random.Generator, size: Size) -> "_Canvas":
        """Begin with a background; painted figures would be people without a label."""
        behind = sample_background(rng, max(size), people=0.0)[: size[1], : size[0]]
        return cls(SRGB_TO_LINEAR[behind] * np.float32(np.exp(rng.normal(0.0, 0.3))))

    def paste(self, rng: np.random.Generator, figure: _Figure, number: int) -> None:
        """Put a figure before all that is there."""
        gain = np.float32(np.exp(rng.normal(-0.2, 0.35)))
        tint = np.exp(rng.normal(0.0, 0.04, 3)).astype(np.float32)
        self.figures.append(figure)
        height, width = self.light.shape[:2]
        corner = np.array([figure.left, figure.top])
        low = np.maximum(corner, 0)
        high = np.minimum(corner + figure.size, (width, height))
        if (high <= low).any():
            self.drawn.append(0)
            return
        colour, parts = _resized(figure, low, high)
        here = (slice(low[1], high[1]), slice(low[0], high[0]))
        coverage = colour[..., 3:]
        self.light[here] = self.light[here] * (1 - coverage) + colour[..., :3] * (gain * tint)
        seen = (coverage[..., 0] > 0.5) & (parts > NOTHING)
        self.owner[here][seen] = number
        self.parts[here][seen] = parts[seen]
        self.drawn.append(int(seen.sum()))

    def cover(self, rng: np.random.Generator) -> None:
        """Sometimes put objects before everybody."""
        height, width = self.light.shape[:2]
        for occluder in sample_occluders(rng, max(height, width), "body"):
            alpha = occluder.alpha[:height, :width]
            colour = occluder.colour[:height, :width]
            self.light += alpha[..., None] * (colour - self.light)
            self.owner[alpha > 0.5] = _NOBODY

    def photograph(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 sRGB with the camera's defects."""
        image = degrade(rng, develop(rng, np.maximum(self.light, 0)))
        return np.asarray(image * 255 + 0.5, dtype=np.uint8)


def _resized(figure: _Figure, low: NDArray, high: NDArray) -> tuple[Array, NDArray[np.uint8]]:
    """The part of a figure between two corners of the photo.

    Returns:
        (h, w, 4) float32 linear light, premultiplied, and coverage; (h, w) uint8 parts.
    """
    picture = figure.cut_out.picture
    size, source = np.array(figure.size), np.array(picture.shape[1::-1])
    # cut before resizing: of somebody who fills many photos, one is needed
    corner = np.array([figure.left, figure.top])
    first = np.floor((low - corner) * source / size).astype(int)
    last = np.minimum(np.ceil((high - corner) * source / size).astype(int), source)
    picture = picture[first[1] : last[1], first[0] : last[0]]
    parts = picture[..., 3]
    covered = (parts > NOTHING).astype(np.float32)[..., None]
    colour = np.concatenate([SRGB_TO_LINEAR[picture[..., :3]] * covered, covered], axis=2)
    shape = (int(high[0] - low[0]), int(high[1] - low[1]))
    way = cv2.INTER_AREA if figure.zoom < 1 else cv2.INTER_LINEAR
    grown = cv2.resize(colour, shape, interpolation=way)
    return np.asarray(grown), _resized_parts(parts, shape)


def _resized_parts(parts: NDArray[np.uint8], shape: Size) -> NDArray[np.uint8]:
    """Parts (h, w) at another size; a pixel shows the part that fills most of what is covered."""
    planes = np.stack([parts == part for part in (SUBJECT, LEFT, RIGHT)], axis=2)
    areas = cv2.resize(planes.astype(np.float32), shape, interpolation=cv2.INTER_AREA)
    areas = areas.reshape(shape[1], shape[0], 3)
    return np.where(areas.max(axis=2) > 0, areas.argmax(axis=2) + SUBJECT, NOTHING).astype(np.uint8)


class _Labels:
    """Collects the boxes of a photo.

    Args:
        side: Of the square that the photo will be seen in, to which least sizes refer.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self.boxes: list[Array] = []
        self.labels: list[int] = []
        self.ignored: list[bool] = []

    def add(self, canvas: _Canvas, number: int, figure: _Figure) -> None:
        """Label one figure and its hands."""
        seen = canvas.owner == number
        pixels = int(seen.sum())
        hidden = pixels < _LEAST_SHARE * canvas.drawn[number]
        self._label(seen, PERSON, ignored=hidden or figure.cut_out.kind == "hand")
        for part, label in ((LEFT, LEFT_HAND), (RIGHT, RIGHT_HAND)):
            hand = seen & (canvas.parts == part)
            small = int(hand.sum()) < _LEAST_HAND * figure.hand_px**2
            self._label(hand, label, ignored=small)

    def _label(self, seen: NDArray[np.bool_], label: int, *, ignored: bool) -> None:
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if not len(rows):
            return
        box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float32)
        self.boxes.append(box)
        self.labels.append(label)
        self.ignored.append(ignored or float((box[2:] - box[:2]).max()) < _LEAST_PX[label])

    def scene(self, photo: NDArray[np.uint8]) -> DetectionScene:
        """The labels with their photo."""
        return DetectionScene(
            photo,
            np.reshape(self.boxes, (-1, 4)).astype(np.float32),
            np.array(self.labels, dtype=np.int64),
            np.array(self.ignored, dtype=np.bool_),
        )
