"""Rendered pictures of several people and hands with the labels of a detection data set.

All subjects of a scene stand before one camera under one light. Each is rendered into its own part
of the picture; the nearest surface of a pixel wins, so that people and hands hide each other, and
themselves, as they would. Labels follow from the same depths: boxes hold the pixels that are seen,
and a keypoint that something nearer covers is marked as hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kinemesh.bodies.topology import Kind
from kinemesh.data.detection_scenes import (
    ScenePeople,
    SceneSample,
    make_scene_sample,
    relative_boxes,
    relative_keypoints,
)
from kinemesh.data.keypoint_crop import ColorOrder, Picture, Size
from kinemesh.data.synthetic.backgrounds import sample_background
from kinemesh.data.synthetic.cameras import (
    NEAREST_M,
    body_rotation,
    sample_hand_rotation,
)
from kinemesh.data.synthetic.dataset import Split
from kinemesh.data.synthetic.degradation import degrade, develop
from kinemesh.data.synthetic.scene import (
    OVERSAMPLING,
    SRGB_TO_LINEAR,
    Array,
    load_stage,
    sample_light,
    sample_noise,
)
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17, HAND21

SIZE: Size = (320, 256)
NOBODY = -1

_STREAM = 1  # sets the generators apart from those of `SyntheticDataset`
_BODY_M, _HAND_M = 1.7, 0.19  # heights that sizes in the picture are meant for
_LEAST_SHARE = {"body": 0.25, "hand": 0.4}  # of the subject's own pixels that must be seen
_LEAST_PX = {"body": 150.0, "hand": 40.0}
_LEAST_HAND = 0.1  # seen pixels over the square of the hand's length: none from the forearm's end
_HAND_BEGINS = 0.97  # of the forearm's coordinate, which is 1 at the wrist
# How deep a joint may lie under the skin and clothes that are seen before it, metres.
_DEPTH_M = {"nose": 0.06, "eye": 0.05, "ear": 0.05, "shoulder": 0.14, "elbow": 0.09, "wrist": 0.08}
_DEPTH_M |= {"hip": 0.2, "knee": 0.12, "ankle": 0.09}
_HAND_DEPTH_M = 0.022


@dataclass(frozen=True)
class RenderedScene:
    """A picture with the labels of everybody in it, in pixels.

    Pixel coordinates run from (0, 0) to (W, H), with pixel centres at +0.5.

    Attributes:
        picture: (H, W, 3) uint8 RGB.
        boxes: (N, 4) float32 left, top, right, bottom of the seen part of people.
        keypoints: (N, 17, 3) float32 x, y and 2 visible, 1 hidden, 0 outside (x = y = 0).
        areas: (N,) float32 seen pixels of people.
        hand_boxes: (M, 4) float32, of hands without their forearm.
        hand_keypoints: (M, 21, 3) float32.
    """

    picture: Picture
    boxes: Array
    keypoints: Array
    areas: Array
    hand_boxes: Array
    hand_keypoints: Array


class SyntheticScenes(Dataset[SceneSample]):
    """Rendered scenes, endless and reproducible.

    Scene i is drawn from a generator seeded with (seed, split, i) alone: it is the same in any
    batch, order and process. Nothing is loaded before the first sample. See
    `kinemesh.data.synthetic.SyntheticDataset` for the threads of a process that shares its cores.

    Args:
        seed: Any non-negative integer.
        size: Width and height of the picture in pixels.
        length: Number of samples.
        split: "train", "val" or "test"; they draw from disjoint streams.
        order: Order of the colour channels of the samples.
        people: Least and largest number of people that are drawn; those whom others hide nearly
            whole are taken away.
        hands: Least and largest number of right hands with a forearm.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        seed: int,
        size: Size = SIZE,
        length: int = 10**7,
        split: Split = "train",
        order: ColorOrder = "rgb",
        people: tuple[int, int] = (1, 4),
        hands: tuple[int, int] = (0, 2),
    ) -> None:
        for name, value, allowed in (("split", split, Split), ("order", order, ColorOrder)):
            if value not in get_args(allowed):
                expected = " or ".join(repr(choice) for choice in get_args(allowed))
                raise InputError(f"{name}: expected {expected}, found {value!r}.")
        if seed < 0 or length < 1 or min(size) < 64:
            raise InputError(
                "seed, length, size: expected a seed of at least 0, a length of at least 1 and "
                f"sides of at least 64 px, found {seed}, {length} and {size}."
            )
        for name, (least, most) in (("people", people), ("hands", hands)):
            if not 0 <= least <= most:
                raise InputError(f"{name}: expected 0 <= least <= most, found {least}, {most}.")
        if people[1] + hands[1] == 0:
            raise InputError("people, hands: expected somebody, found none of both.")
        self.seed, self.size, self.length = seed, size, length
        self.split: Split = split
        self.order: ColorOrder = order
        self.people, self.hands = people, hands

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> SceneSample:
        """Scene ``index``; see `SceneSample` for the fields."""
        scene, size = self.render(index), self.size
        people = ScenePeople(
            relative_boxes(scene.boxes, *size),
            relative_keypoints(scene.keypoints, *size),
            scene.areas,
            relative_boxes(scene.hand_boxes, *size),
            relative_keypoints(scene.hand_keypoints, *size),
        )
        picture = scene.picture if self.order == "rgb" else scene.picture[:, :, ::-1]
        return make_scene_sample(picture, people, index % self.length, size)

    def render(self, index: int) -> RenderedScene:
        """Scene ``index`` with its labels in pixels."""
        rng = self._generator(index)
        camera = _Camera.draw(rng, self.size)
        counts = [int(rng.integers(low, high + 1)) for low, high in (self.people, self.hands)]
        # people first, the tallest before the others: it is the one that always stays
        heights = np.sort(np.exp(rng.uniform(np.log(0.3), np.log(1.25), counts[0])))[::-1]
        light = sample_light(rng)
        layers = [_draw_body(rng, camera, float(height), light) for height in heights]
        layers += [_draw_hand(rng, camera, light) for _ in range(counts[1])]
        stack = _stack_seen([layer for layer in layers if layer.drawn], camera.rendered_size)
        return _label(_compose(rng, stack, self.size), stack, camera)

    def _generator(self, index: int) -> np.random.Generator:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is outside a data set of {self.length} samples")
        split = get_args(Split).index(self.split)
        return np.random.default_rng([self.seed, split, index % self.length, _STREAM])


@dataclass(frozen=True)
class _Camera:
    """One camera for a scene.

    Attributes:
        size: Width and height of the picture.
        focal_px: In pixels of the picture; the principal point is its centre.
        pitch_rad: Looking down is positive.
        roll_rad: About the line of sight.
    """

    size: Size
    focal_px: float
    pitch_rad: float
    roll_rad: float

    @classmethod
    def draw(cls, rng: np.random.Generator, size: Size) -> "_Camera":
        pitch = np.clip(rng.normal(6, 9), -25, 45)
        roll = np.clip(rng.normal(0, 5), -25, 25)
        focal = max(size) * rng.uniform(0.9, 1.8)
        return cls(size, float(focal), float(np.radians(pitch)), float(np.radians(roll)))

    @property
    def rendered_size(self) -> Size:
        """Size of the pictures before they are reduced."""
        return round(self.size[0] * OVERSAMPLING), round(self.size[1] * OVERSAMPLING)

    def translation(self, points: Array, middle_px: Array, distance_m: float) -> Array:
        """Move turned points (V, 3) so that their middle is seen at a place, at a distance."""
        low, high = points.min(0), points.max(0)
        middle = (low + high) / 2
        distance = max(distance_m, NEAREST_M + middle[2] - low[2])
        offset = (middle_px - np.array(self.size) / 2) / self.focal_px * distance
        return np.asarray([*offset, distance] - middle, dtype=np.float32)

    def project(self, points: Array) -> NDArray[np.float64]:
        """Points (N, 3), camera frame, metres, to pixels (N, 2) of the picture."""
        ahead = np.maximum(points[:, 2:], 1e-6).astype(np.float64)
        return points[:, :2] / ahead * self.focal_px + np.array(self.size) / 2


@dataclass(frozen=True, eq=False)
class _Layer:
    """One rendered subject: its window of the enlarged picture, and what its labels need.

    Attributes:
        kind: "body" or "hand".
        joints: (J, 3) camera frame, metres.
        window: Left, top, right, bottom in pixels of the enlarged picture.
        colour: (h, w, 3) float32 linear.
        depth: (h, w) float32 metres, infinite where the subject is not.
        boxed: (h, w) bool, the part that a box shall hold.
        least_px: Pixels of this part that must be seen.
    """

    kind: Kind
    joints: Array
    window: tuple[int, int, int, int]
    colour: Array
    depth: Array
    boxed: NDArray[np.bool_]
    least_px: float

    @property
    def drawn(self) -> bool:
        """Whether any of it is in the picture."""
        return bool(self.boxed.any())

    @property
    def part(self) -> tuple[slice, slice]:
        """Rows and columns of the window."""
        left, top, right, bottom = self.window
        return slice(top, bottom), slice(left, right)


def _draw_body(
    rng: np.random.Generator, camera: _Camera, height: float, light: dict[str, Array]
) -> _Layer:
    """Somebody who would be ``height`` times as tall as the picture if they stood upright."""
    frontal = rng.random() < 0.6
    yaw = rng.normal(0, np.radians(45)) if frontal else rng.uniform(-np.pi, np.pi)
    rotation = body_rotation(yaw, camera.pitch_rad, camera.roll_rad)
    across, down = rng.uniform(0.08, 0.92), np.clip(rng.normal(0.55, 0.12), 0.25, 0.85)
    place = np.array([across, down], dtype=np.float32) * np.array(camera.size)
    distance = camera.focal_px * _BODY_M / (height * camera.size[1])
    return _render(rng, "body", rotation, place, distance, camera, light)


def _draw_hand(rng: np.random.Generator, camera: _Camera, light: dict[str, Array]) -> _Layer:
    """A hand in front of the camera."""
    length = np.exp(rng.uniform(np.log(0.14), np.log(0.45)))
    place = rng.uniform(0.1, 0.9, 2) * np.array(camera.size)
    distance = camera.focal_px * _HAND_M / (float(length) * camera.size[1])
    return _render(rng, "hand", None, place.astype(np.float32), distance, camera, light)


def _render(
    rng: np.random.Generator,
    kind: Kind,
    rotation: Array | None,
    place_px: Array,
    distance_m: float,
    camera: _Camera,
    light: dict[str, Array],
) -> _Layer:
    stage = load_stage(kind)
    subject = stage.draw_subject(rng)
    if rotation is None:
        rotation = sample_hand_rotation(rng, subject.joints)
    noise = sample_noise(rng, kind)
    vertices = subject.vertices @ rotation.T
    move = camera.translation(vertices, place_px, distance_m)
    joints = subject.joints @ rotation.T + move
    dressed = stage.dress((vertices + move)[None], [subject.look])
    zoom = camera.rendered_size[0] / camera.size[0]
    window = _window(camera.project(dressed[0].numpy()) * zoom, camera.rendered_size)
    left, top, right, bottom = window
    size = (right - left, bottom - top)
    if min(size) < 1:
        nothing = np.zeros((0, 0), dtype=np.float32)
        return _Layer(kind, joints, (0, 0, 0, 0), nothing[..., None], nothing, nothing > 0, 0.0)
    middle = np.array(camera.size) * zoom / 2 - [left, top]
    rendering = stage.shade(
        dressed,
        [subject.look],
        focal_px=torch.tensor([camera.focal_px * zoom]),
        principal_px=torch.tensor(middle, dtype=torch.float32)[None],
        size=size,
        light=[light],
        noise=[noise],
    )
    boxed, least_px = rendering.depth.isfinite(), _LEAST_PX[kind]
    if kind == "hand":
        least_px = max(least_px, _LEAST_HAND * (camera.focal_px * _HAND_M / distance_m) ** 2)
        proper = (stage.rig.masks["sleeve"] >= _HAND_BEGINS)[stage.rig.faces].all(dim=1)
        boxed &= proper[rendering.face.clamp(min=0)]
    return _Layer(
        kind,
        joints,
        window,
        rendering.rgba[0, ..., :3].numpy(),
        rendering.depth[0].numpy(),
        boxed[0].numpy(),
        least_px * zoom**2,
    )


def _window(points_px: NDArray, size: Size) -> tuple[int, int, int, int]:
    """Whole pixels that points may touch, cut to the picture."""
    low = np.clip(np.floor(points_px.min(0)), 0, size).astype(int).tolist()
    high = np.clip(np.ceil(points_px.max(0)), 0, size).astype(int).tolist()
    return low[0], low[1], high[0], high[1]


@dataclass(frozen=True)
class _Stack:
    """Layers in one picture, the nearest in front.

    Attributes:
        layers: The subjects.
        owner: (H, W) int64 number of the layer that is seen, `NOBODY` before the background.
        colour: (H, W, 3) float32 linear, 0 before the background.
        depth: (H, W) float32 metres, infinite before the background.
    """

    layers: Sequence[_Layer]
    owner: NDArray[np.int64]
    colour: Array
    depth: Array

    @classmethod
    def of(cls, layers: Sequence[_Layer], size: Size) -> "_Stack":
        """Stack layers in a picture of this size."""
        owner = np.full(size[::-1], NOBODY, dtype=np.int64)
        depth = np.full(size[::-1], np.inf, dtype=np.float32)
        colour = np.zeros((*size[::-1], 3), dtype=np.float32)
        for number, layer in enumerate(layers):
            near = layer.depth < depth[layer.part]
            owner[layer.part][near] = number
            depth[layer.part][near] = layer.depth[near]
            colour[layer.part][near] = layer.colour[near]
        return cls(layers, owner, colour, depth)

    def seen(self, number: int) -> NDArray[np.bool_]:
        """The boxed part of a layer that nobody covers, in its window."""
        layer = self.layers[number]
        return np.asarray(layer.boxed & (self.owner[layer.part] == number))

    def most_hidden(self) -> int | None:
        """The layer of which too little is seen, and the least; None if all are seen enough."""
        worst, least = None, 1.0
        for number, layer in enumerate(self.layers):
            pixels = float(self.seen(number).sum())
            share = pixels / max(float(layer.boxed.sum()), 1.0) / _LEAST_SHARE[layer.kind]
            # the first one is shown however small it is, unless somebody covers it
            part = min(share, pixels / layer.least_px) if number else share
            if part < least:
                worst, least = number, part
        return worst

    def main_cover(self, number: int) -> int:
        """The layer that covers most of another, which is covered."""
        layer = self.layers[number]
        owners = self.owner[layer.part][layer.boxed]
        return int(np.bincount(owners[owners != number]).argmax())


def _stack_seen(layers: Sequence[_Layer], size: Size) -> _Stack:
    """Stack layers without those of which too little would be seen.

    The first one stays: whoever covers it leaves instead.
    """
    while True:
        stack = _Stack.of(layers, size)
        gone = stack.most_hidden()
        if gone is None:
            return stack
        gone = gone or stack.main_cover(0)
        layers = [layer for number, layer in enumerate(layers) if number != gone]


def _compose(rng: np.random.Generator, stack: _Stack, size: Size) -> Picture:
    """Reduce the enlarged picture, put it before a background and photograph it."""
    coverage = (stack.owner != NOBODY).astype(np.float32)[..., None]
    rgba = np.concatenate([stack.colour, coverage], axis=2)
    rgba = np.asarray(cv2.resize(rgba, size, interpolation=cv2.INTER_AREA))
    # no painted figures: they would be people without a label
    behind = sample_background(rng, max(size), people=0.0)[: size[1], : size[0]]
    background = SRGB_TO_LINEAR[behind] * np.float32(np.exp(rng.normal(0.0, 0.3)))
    image = degrade(rng, develop(rng, rgba[..., :3] + background * (1 - rgba[..., 3:])))
    return np.asarray(image * 255 + 0.5, dtype=np.uint8)


def _label(picture: Picture, stack: _Stack, camera: _Camera) -> RenderedScene:
    boxes: dict[Kind, list[Array]] = {"body": [], "hand": []}
    keypoints: dict[Kind, list[Array]] = {"body": [], "hand": []}
    areas: list[float] = []
    zoom = np.array(camera.rendered_size * 2) / np.array(camera.size * 2)
    for number, layer in enumerate(stack.layers):
        seen = stack.seen(number)
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        inner = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        boxes[layer.kind].append((inner + layer.window[:2] * 2) / zoom)
        keypoints[layer.kind].append(_keypoints(stack, number, camera))
        if layer.kind == "body":
            areas.append(float(seen.sum()) / (zoom[0] * zoom[1]))
    return RenderedScene(
        picture,
        np.reshape(boxes["body"], (-1, 4)).astype(np.float32),
        np.reshape(keypoints["body"], (-1, len(COCO17), 3)).astype(np.float32),
        np.array(areas, dtype=np.float32),
        np.reshape(boxes["hand"], (-1, 4)).astype(np.float32),
        np.reshape(keypoints["hand"], (-1, len(HAND21), 3)).astype(np.float32),
    )


def _keypoints(stack: _Stack, number: int, camera: _Camera) -> Array:
    """(J, 3) x, y in pixels and a flag.

    A joint is seen where the surface before it is the subject's own and not much nearer than the
    joint, at its pixel or one beside it.
    """
    layer = stack.layers[number]
    pixels = camera.project(layer.joints)
    inside = ((pixels >= 0) & (pixels < camera.size)).all(axis=1) & (layer.joints[:, 2] > NEAREST_M)
    zoom = camera.rendered_size[0] / camera.size[0]
    limit = np.array(camera.rendered_size) - 1
    visible = np.zeros(len(pixels), dtype=bool)
    for shift in _NEIGHBOURS:
        place = np.clip(np.where(inside[:, None], pixels, 0) * zoom + shift, 0, limit).astype(int)
        owner, depth = (m[place[:, 1], place[:, 0]] for m in (stack.owner, stack.depth))
        visible |= (owner == number) & (depth > layer.joints[:, 2] - _depth_allowed(layer.kind))
    flags = np.where(visible, 2, 1)
    labelled = np.concatenate([pixels, flags[:, None]], axis=1)
    return np.where(inside[:, None], labelled, 0).astype(np.float32)


_NEIGHBOURS = tuple(np.array([x, y]) for x in (-1, 0, 1) for y in (-1, 0, 1))


def _depth_allowed(kind: Kind) -> Array:
    """(J,) how much nearer than a joint its skin may be, metres."""
    if kind == "hand":
        return np.full(len(HAND21), _HAND_DEPTH_M, dtype=np.float32)
    names = (joint.split("_")[-1] for joint in COCO17.joints)
    return np.array([_DEPTH_M[name] for name in names], dtype=np.float32)
