"""A person as numbers that can be averaged over time: where they stand, and their shape about it.

Filters work on the root's direction and log depth, and on everything else relative to the root.
Depth of one picture is by far the noisiest number, so that it wants a filter of its own, and a
filtered depth along a filtered direction keeps the mesh where it was seen in the picture.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.geometry.closest_rotation import closest_rotation
from kinemesh.inference.person import Person
from kinemesh.inference.placement import NEAR_M
from kinemesh.skeletons import get_skeleton

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MotionState:
    """T frames of one track.

    Attributes:
        place: (T, 3) x / z, y / z and log z of the root in the camera frame; zeros without depth.
        local: (T, J + V, 3) joints and vertices minus the root, metres, and one point more where
            there are parameters, the body's origin; (T, 0, 3) without depth.
        turns: (T, N, 9) local rotations of fitted parameters, which need not be rotations after a
            filter; (T, 0, 9) without any.
        shape: (T, K) their shape coefficients; (T, 0) without any.
        joints_px: (T, J, 2) pixels of the image.
        box_px: (T, 4) x, y, width and height.
        confidence: (T, J).
        score: (T,).
    """

    place: Array
    local: Array
    turns: Array
    shape: Array
    joints_px: Array
    box_px: Array
    confidence: Array
    score: Array

    def __len__(self) -> int:
        return len(self.score)

    def at(self, frame: int) -> "MotionState":
        """One frame, with T = 1."""
        part = slice(frame, frame + 1)
        return MotionState(*(values[part] for values in self.fields()))

    def fields(self) -> tuple[Array, ...]:
        """The arrays in the order of the attributes."""
        return (
            self.place,
            self.local,
            self.turns,
            self.shape,
            self.joints_px,
            self.box_px,
            self.confidence,
            self.score,
        )


@dataclass(frozen=True, eq=False)
class TrackSize:
    """What stays the same along a track.

    Attributes:
        size_m: `body_size` that the person shall have. They are scaled about the camera, which
            changes their distance and nothing in the picture. None leaves them as they are.
        shape: (K,) shape coefficients of fitted parameters; None leaves them as they are.
    """

    size_m: float | None = None
    shape: Array | None = None


def state_of(person: Person, size: TrackSize | None = None) -> MotionState:
    """A person in the camera frame as a state of one frame, of the size of their track."""
    size = size or TrackSize()
    place, local = np.zeros(3), np.zeros((0, 3))
    turns, shape = np.zeros((0, 9)), np.zeros(0)
    fitted = person.parameters
    if fitted is not None:
        turns = fitted.rotations.reshape(-1, 9).astype(np.float64)
        shape = fitted.shape.astype(np.float64) if size.shape is None else size.shape
    if person.has_depth:
        origin = np.zeros((0, 3)) if fitted is None else fitted.translation_m[None]
        points = np.concatenate([person.joints, person.vertices, origin]).astype(np.float64)
        own = 0.0 if size.size_m is None else body_size(person)
        points *= size.size_m / own if size.size_m is not None and own > 0 else 1.0
        roots = get_skeleton(person.skeleton).root_indices()
        root = points[list(roots)].mean(axis=0)
        depth = max(float(root[2]), NEAR_M)
        place = np.array([root[0] / depth, root[1] / depth, np.log(depth)])
        local = points - root
    return MotionState(
        place[None],
        local[None],
        turns[None],
        shape[None],
        person.joints_px[None].astype(np.float64),
        np.array([person.box_px], np.float64),
        person.joint_confidence[None].astype(np.float64),
        np.array([person.score], np.float64),
    )


def stack_states(states: list[MotionState]) -> MotionState:
    """States one after the other."""
    columns = zip(*(state.fields() for state in states), strict=True)
    return MotionState(*(np.concatenate(column) for column in columns))


def person_of(state: MotionState, like: Person, size_m: float | None = None) -> Person:
    """The person of a state of one frame; faces, skeleton, side and camera are those of ``like``.

    Parameters go along as a filter left them: near the mesh, but fitted to another one, whose
    residual they keep. What else was computed of ``like`` alone, an explanation and the expected
    errors of its joints, is left out.

    Args:
        state: T = 1.
        like: Somebody of the same track.
        size_m: `body_size` that the person shall have, scaled about the root: a mean of poses is
            smaller than each of them. None leaves them as they are.
    """
    joints, vertices, fitted = like.joints, like.vertices, like.parameters
    if like.has_depth:
        x, y, log_depth = state.place[0]
        root = np.array([x, y, 1.0]) * np.exp(log_depth)
        own = _bones_m(state.local[0, : len(joints)], like.skeleton)
        scale = 1.0 if size_m is None or own == 0 else size_m / own
        points = (scale * state.local[0] + root).astype(np.float32)
        ends = np.cumsum([len(joints), len(vertices)])
        joints, vertices, origin = np.split(points, ends)
        if fitted is not None:
            turns = torch.from_numpy(state.turns[0].reshape(-1, 3, 3))
            fitted = replace(
                fitted,
                rotations=closest_rotation(turns).float().numpy(),
                shape=state.shape[0].astype(np.float32),
                translation_m=origin[0],
            )
    left, top, width, height = state.box_px[0].tolist()
    return replace(
        like,
        joints=joints,
        vertices=vertices,
        joints_px=state.joints_px[0].astype(np.float32),
        joint_confidence=state.confidence[0].astype(np.float32),
        box_px=(left, top, width, height),
        score=float(state.score[0]),
        explanation=None,
        parameters=fitted,
        joint_spread_m=None,
        keypoint_spread_px=None,
    )


def body_size(person: Person) -> float:
    """Sum of the lengths of the skeleton's bones in metres; 0 for somebody without depth."""
    if not person.has_depth:
        return 0.0
    return _bones_m(person.joints.astype(np.float64), person.skeleton)


def _bones_m(joints: Array, skeleton: str) -> float:
    parents = get_skeleton(skeleton).parents
    tree = [(joint, parent) for joint, parent in enumerate(parents) if parent >= 0]
    ends = joints[np.array(tree)]
    return float(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1).sum())
