"""Rendered videos of several people who walk past one another, with the truth of every frame.

One camera stands still under one light. Everybody walks across the picture at a depth of their own,
half of them each way, so that they pass in front of one another in the middle of the video. How
they move comes from motion capture where it is given (`kinemesh.data.synthetic.motions`), else from
smooth paths through the poses of the shipped library.

The rest frame of a body is x to its left, y down, z backward; the world has the axes of a level
camera: x right, y down, z forward, metres, with the camera at the origin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation, RotationSpline

from kinemesh.bodies.rig import Posed
from kinemesh.data.synthetic.appearance import Appearance
from kinemesh.data.synthetic.backgrounds import sample_background
from kinemesh.data.synthetic.body_poses import load_pose_library, relaxed_fingers
from kinemesh.data.synthetic.cameras import body_rotation
from kinemesh.data.synthetic.motions import Motion
from kinemesh.data.synthetic.retarget import FROM_CMU, retarget
from kinemesh.data.synthetic.scene import (
    OVERSAMPLING,
    SRGB_TO_LINEAR,
    Array,
    Stage,
    load_stage,
    sample_light,
    sample_noise,
)
from kinemesh.errors import InputError

CAPTURED_RATE = 120.0
"""Frames a second of the CMU database, before any are left out."""
_STREAM = 2  # sets the generators apart from those of pictures
_CAMERA_HEIGHT_M = 1.4
_POSE_EVERY_S = 0.9  # between poses of the library
_CALM = 0.55  # how much of a library pose is taken
_FLOOR_SMOOTHING_S = 0.15
_SENSOR_NOISE = 0.008


@dataclass(frozen=True, eq=False)
class TrueFrame:
    """A frame and what is in it; P people in the same order in all frames.

    Attributes:
        index: Number of the frame.
        time_s: Seconds since the first one.
        picture: (H, W, 3) uint8 RGB.
        boxes_px: (P, 4) x, y, width, height of all of the person, hidden parts too.
        seen: (P,) share of the person's pixels that nobody covers, of those in the picture; 0 for
            somebody outside.
        joints: (P, J, 3) float32 COCO joints, camera frame, metres.
        joints_px: (P, J, 2) float32 the same in the picture.
        vertices: (P, V, 3) float32 vertices of the topology, camera frame, metres.
    """

    index: int
    time_s: float
    picture: NDArray[np.uint8]
    boxes_px: NDArray[np.float64]
    seen: NDArray[np.float64]
    joints: Array
    joints_px: Array
    vertices: Array


class SyntheticVideo:
    """A rendered video, frame by frame; the same seed gives the same video.

    Args:
        seed: Any non-negative integer.
        frames: How many.
        size: Width and height in pixels.
        people: How many walk.
        frame_rate: Frames a second.
        motions: Captured motions, taken in turn; None takes poses of the shipped library. Whoever
            comes to the end of a motion stands still.
        captured_rate: Frames a second of the motions; a multiple of ``frame_rate`` for even steps.

    Raises:
        InputError: An argument is out of its range.
    """

    def __init__(
        self,
        seed: int,
        frames: int = 100,
        size: tuple[int, int] = (320, 240),
        people: int = 3,
        frame_rate: float = 30.0,
        motions: Sequence[Motion] | None = None,
        captured_rate: float = CAPTURED_RATE,
    ) -> None:
        if seed < 0 or frames < 1 or min(size) < 32 or people < 1 or not frame_rate > 0:
            raise InputError(
                "seed, frames, size, people, frame_rate: expected at least 0, 1, 32 px, 1 and a "
                f"rate above 0, found {seed}, {frames}, {size}, {people} and {frame_rate}."
            )
        self.seed, self.size, self.frame_rate = seed, size, frame_rate
        self.count = frames
        self.times_s = np.arange(frames) / frame_rate
        self.focal_px = 1.1 * max(size)
        rng = np.random.default_rng([seed, _STREAM])
        self._pitch = body_rotation(0.0, float(np.radians(rng.uniform(2, 8))), 0.0)
        self._light = sample_light(rng)
        background = sample_background(rng, max(size), people=0.0)[: size[1], : size[0]]
        self._background = SRGB_TO_LINEAR[background]
        self._walkers = [
            _Walker.draw(rng, number, people, self.times_s, _turn(motions, number), captured_rate)
            for number in range(people)
        ]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[TrueFrame]:
        return (self[index] for index in range(self.count))

    def __getitem__(self, index: int) -> TrueFrame:
        """One frame, rendered when it is asked for."""
        if not 0 <= index < self.count:
            raise IndexError(f"frame {index} is outside a video of {self.count} frames")
        bodies = [walker.placed(index, self._pitch) for walker in self._walkers]
        layers = [
            self._render(walker, body[0])
            for walker, body in zip(self._walkers, bodies, strict=True)
        ]
        picture, seen = self._compose(layers, index)
        joints = np.stack([joints for _, _, joints in bodies])
        boxes = [_box(self.project(vertices)) for vertices, _, _ in bodies]
        return TrueFrame(
            index,
            float(self.times_s[index]),
            picture,
            np.stack(boxes),
            seen,
            joints,
            self.project(joints).astype(np.float32),
            np.stack([labels for _, labels, _ in bodies]),
        )

    def project(self, points: NDArray[np.floating]) -> NDArray[np.float64]:
        """Camera-frame points (..., 3) to pixels (..., 2)."""
        ahead = np.maximum(points[..., 2:], 1e-3).astype(np.float64)
        pixels = points[..., :2] / ahead * self.focal_px + np.array(self.size) / 2
        return np.asarray(pixels, dtype=np.float64)

    def _render(self, walker: "_Walker", vertices: Array) -> tuple[Array, Array]:
        """Colour (H, W, 3) and depth (H, W) of one person in the enlarged picture."""
        zoom = OVERSAMPLING
        size = round(self.size[0] * zoom), round(self.size[1] * zoom)
        colour = np.zeros((size[1], size[0], 3), np.float32)
        depth = np.full((size[1], size[0]), np.inf, np.float32)
        dressed = walker.stage.dress(vertices[None], [walker.look])
        pixels = self.project(dressed[0].numpy()) * zoom
        left, top = np.clip(np.floor(pixels.min(0)), 0, size).astype(int).tolist()
        right, bottom = np.clip(np.ceil(pixels.max(0)), 0, size).astype(int).tolist()
        if right <= left or bottom <= top:
            return colour, depth
        middle = np.array(size) / 2 - [left, top]
        rendering = walker.stage.shade(
            dressed,
            [walker.look],
            focal_px=torch.tensor([self.focal_px * zoom]),
            principal_px=torch.tensor(middle, dtype=torch.float32)[None],
            size=(right - left, bottom - top),
            light=[self._light],
            noise=[walker.noise],
        )
        colour[top:bottom, left:right] = rendering.rgba[0, ..., :3].numpy()
        depth[top:bottom, left:right] = rendering.depth[0].numpy()
        return colour, depth

    def _compose(
        self, layers: Sequence[tuple[Array, Array]], index: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        depths = np.stack([depth for _, depth in layers])
        nearest = depths.argmin(axis=0)
        covered = np.isfinite(depths.min(axis=0))
        colours = np.stack([colour for colour, _ in layers])
        colour = np.take_along_axis(colours, nearest[None, ..., None], axis=0)[0]
        rgba = np.concatenate([colour * covered[..., None], covered[..., None]], axis=2)
        rgba = cv2.resize(rgba.astype(np.float32), self.size, interpolation=cv2.INTER_AREA)
        linear = rgba[..., :3] + self._background * (1 - rgba[..., 3:])
        picture = np.clip(linear, 0, 1) ** (1 / 2.2)
        rng = np.random.default_rng([self.seed, _STREAM, index])
        picture = picture + rng.normal(0, _SENSOR_NOISE, picture.shape)
        own = np.isfinite(depths).sum(axis=(1, 2))
        shown = [((nearest == k) & covered).sum() for k in range(len(layers))]
        seen = np.array(shown) / np.maximum(own, 1)
        return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8), seen


@dataclass(frozen=True, eq=False)
class _Walker:
    """Somebody who walks.

    Attributes:
        stage: What everybody shares.
        look: Colours and clothes.
        noise: Of the surface.
        shape: (1, K) coefficients of the body.
        rotations: (T, N, 3, 3) local rotations of the bones, the root's with the heading.
        path: (T, 2) x and z of the root in the world, metres.
        heights: (T,) captured height of the root about its mean, y down; None where the lowest
            point of the body stands on the floor.
        times_s: (T,) of the frames.
    """

    stage: Stage
    look: Appearance
    noise: dict[str, Array]
    shape: torch.Tensor
    rotations: NDArray[np.float64]
    path: NDArray[np.float64]
    heights: NDArray[np.float64] | None
    times_s: NDArray[np.float64]

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        number: int,
        people: int,
        times_s: NDArray[np.float64],
        motion: Motion | None,
        captured_rate: float,
    ) -> "_Walker":
        stage = load_stage("body")
        sign = 1.0 if number % 2 == 0 else -1.0
        depth = 3.2 + 2.6 * (number + rng.uniform(0.2, 0.8)) / people
        shape = stage.rig.sample_shape(rng)[None]
        look, noise = stage.painter.paint(rng), sample_noise(rng, "body")
        if motion is None:
            rotations = _library_rotations(rng, stage, times_s)
            path = _straight(rng, times_s, depth, sign)
            turn = sign * rng.uniform(0.25, 0.45) * np.pi  # not quite to where they go
            heights = None
        else:
            rotations, path, heights = _captured(rng, motion, stage, times_s * captured_rate)
            along = path[-1] - path[0]
            turn = np.arctan2(along[1], along[0]) - (0.0 if sign > 0 else np.pi)
            turn += rng.normal(0, 0.15)
            spin = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
            path = (path - path[len(path) // 2]) @ spin.T + [rng.normal(0, 0.2), depth]
        heading = Rotation.from_rotvec([0.0, float(turn), 0.0]).as_matrix()
        rotations = rotations.copy()
        rotations[:, 0] = heading @ rotations[:, 0]
        return cls(stage, look, noise, shape, rotations, path, heights, times_s)

    def placed(self, index: int, pitch: Array) -> tuple[Array, Array, Array]:
        """Rig vertices, topology vertices and joints of a frame, camera frame, metres."""
        posed, root = self._posed(index)
        x, z = self.path[index]
        shift = np.array([x, _CAMERA_HEIGHT_M - self._floor[index], z]) - root * [1, 0, 1]
        labels = self.stage.rig.topology_vertices(posed)
        joints = self.stage.topology.joints(labels)[0].numpy()
        parts = posed.vertices[0].numpy(), labels[0].numpy(), joints
        vertices, points, ends = (
            np.asarray((part + shift) @ pitch.T, dtype=np.float32) for part in parts
        )
        return vertices, points, ends

    @cached_property
    def _floor(self) -> NDArray[np.float64]:
        """(T,) the rest frame's height of the floor under the body, y down."""
        lowest = np.array(
            [float(self._posed(i)[0].vertices[0, :, 1].max()) for i in range(len(self.times_s))]
        )
        if self.heights is not None:  # the root turns about a fixed place of the rest frame
            return np.asarray(np.max(lowest + self.heights) - self.heights)
        step = float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else 1.0
        return np.asarray(gaussian_filter1d(lowest, _FLOOR_SMOOTHING_S / step, mode="nearest"))

    def _posed(self, index: int) -> tuple[Posed, NDArray[np.float64]]:
        rotations = torch.as_tensor(self.rotations[index], dtype=torch.float32)[None]
        posed = self.stage.rig.pose(rotations, self.shape)
        return posed, posed.bones[0, 0].double().numpy()


def detections_of(
    frame: TrueFrame,
    rng: np.random.Generator,
    noise: float = 0.04,
    drop_outs: float = 0.1,
    false_alarms: float = 0.0,
) -> NDArray[np.float64]:
    """What an imperfect detector would find: boxes that are moved, missing, or of nobody.

    Somebody of whom less than a third is seen is not found.

    Args:
        frame: The truth.
        rng: The only source of chance.
        noise: Sigma of each edge, over the size of the box.
        drop_outs: Probability that somebody is missed in this frame.
        false_alarms: Probability of one box where nobody is.

    Returns:
        (N, 5) x, y, width, height in pixels, and a score in 0..1.
    """
    height, width = frame.picture.shape[:2]
    rows = []
    for box, seen in zip(frame.boxes_px, frame.seen, strict=True):
        size = np.sqrt(box[2] * box[3])
        corners = np.concatenate([box[:2], box[:2] + box[2:]]) + rng.normal(0, noise * size, 4)
        missed = rng.random() < drop_outs
        if seen > 1 / 3 and not missed:
            rows.append([*corners[:2], *(corners[2:] - corners[:2]), rng.uniform(0.6, 1.0)])
    if rng.random() < false_alarms:
        side = rng.uniform(0.2, 0.5) * height
        place = rng.uniform(0, [width - side, height - side])
        rows.append([*place, side, side, rng.uniform(0.3, 0.7)])
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _turn(motions: Sequence[Motion] | None, number: int) -> Motion | None:
    return motions[number % len(motions)] if motions else None


def _library_rotations(
    rng: np.random.Generator, stage: Stage, times_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(T, N, 3, 3) a smooth way through random poses of the library."""
    library, bones = load_pose_library(), stage.rig.bones
    knots = np.arange(0.0, times_s[-1] + 2 * _POSE_EVERY_S, _POSE_EVERY_S)
    poses = library.rotvecs[rng.integers(len(library), size=len(knots))] * _CALM
    rotations = np.tile(np.eye(3), (len(times_s), len(bones), 1, 1))
    for column, name in enumerate(library.bones):
        spline = RotationSpline(knots, Rotation.from_rotvec(poses[:, column].astype(np.float64)))
        rotations[:, bones.index(name)] = spline(times_s).as_matrix()
    _relax(rng, stage, rotations)
    return rotations


def _straight(
    rng: np.random.Generator, times_s: NDArray[np.float64], depth: float, sign: float
) -> NDArray[np.float64]:
    """(T, 2) across the picture at an even speed, through its middle half way."""
    duration = max(float(times_s[-1]), 1e-6)
    speed = min(rng.uniform(0.8, 1.2), 0.75 * depth / duration)
    x = sign * speed * (times_s - duration / 2) + rng.normal(0, 0.1)
    z = depth + rng.uniform(-0.15, 0.15) * (times_s - duration / 2)
    return np.stack([x, z], axis=1)


def _captured(
    rng: np.random.Generator, motion: Motion, stage: Stage, wanted: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rotations (T, N, 3, 3), path (T, 2) and heights (T,) of a piece of a captured motion.

    ``wanted`` (T,) are its frames, counted from the beginning of the piece.
    """
    spare = len(motion) - 1 - wanted[-1]
    places = np.clip(wanted + (rng.uniform(0, spare) if spare > 0 else 0), 0, len(motion) - 1)
    nearest = np.rint(places).astype(int)
    piece = Motion(motion.skeleton, motion.root_m[nearest], motion.rotations[nearest])
    rotations = np.asarray(retarget(piece, stage.rig))
    root = piece.root_m @ FROM_CMU.T
    _relax(rng, stage, rotations)
    return rotations, root[:, [0, 2]], root[:, 1] - root[:, 1].mean()


def _relax(rng: np.random.Generator, stage: Stage, rotations: NDArray[np.float64]) -> None:
    for bone, rotation in relaxed_fingers(rng, stage.rig).items():
        rotations[:, bone] = rotation.numpy()


def _box(points_px: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = points_px.min(axis=0), points_px.max(axis=0)
    return np.concatenate([low, high - low])
