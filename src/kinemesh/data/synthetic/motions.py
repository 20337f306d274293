"""Motion capture in the Acclaim form: a skeleton file (ASF) and its motion files (AMC).

The form is the one of the CMU Graphics Lab motion capture database. A skeleton file states the
units, the root's channels, for every bone its rest direction, length, local axes, degrees of
freedom with their limits, and the hierarchy. A motion file states, frame by frame, the values of
those degrees of freedom.

A bone turns about its own local axes. With ``C`` the rotation of these axes in the rest pose and
``M`` the rotation of the frame's angles, the bone's rotation relative to its parent is
``C M C^T``, written in the axes of the rest pose. ``R_global = R_global(parent) @ C M C^T``, and a
bone points along ``R_global @ direction``.

Frame of everything here: the file's own, for CMU x to the person's left, y up, z forward.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from kinemesh.errors import InputError

Array = npt.NDArray[np.float64]

INCH_M = 0.0254
"""The unit of length of an ASF file, 1 / ``length``, is an inch."""

TRANSLATIONS = ("tx", "ty", "tz")
ROTATIONS = ("rx", "ry", "rz")
ROOT = "root"


@dataclasses.dataclass(frozen=True)
class Bone:
    """One bone of an ASF file, at rest.

    Attributes:
        name: Its name; the first bone is always ``"root"``, of length zero.
        parent: Index of the bone that it hangs from, -1 for the root.
        direction: (3,) unit vector from its head to its tail; zero for the root.
        length_m: Distance from its head to its tail.
        axes: (3, 3) rotation ``C`` whose columns are the bone's local axes.
        channels: Degrees of freedom in the order of the motion file, such as ``("rx", "rz")``.
        limits: Lowest and highest value of each channel, in radians; empty if the file has none.
    """

    name: str
    parent: int
    direction: Array
    length_m: float
    axes: Array
    channels: tuple[str, ...]
    limits: tuple[tuple[float, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class AcclaimSkeleton:
    """The skeleton of an ASF file: bones with every parent before its children.

    Attributes:
        name: The file's ``:name``.
        bones: The bones, root first.
        metres_per_unit: Factor from the file's lengths to metres.
    """

    name: str
    bones: tuple[Bone, ...]
    metres_per_unit: float

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the bones, in order."""
        return tuple(bone.name for bone in self.bones)

    def __getitem__(self, name: str) -> Bone:
        return self.bones[self.names.index(name)]


@dataclasses.dataclass(frozen=True)
class Motion:
    """A motion of T frames of a skeleton with B bones.

    Attributes:
        skeleton: The skeleton that moves.
        root_m: (T, 3) position of the root, metres.
        rotations: (T, B, 3, 3) rotation of each bone relative to its parent, rest axes.
    """

    skeleton: AcclaimSkeleton
    root_m: Array
    rotations: Array

    def __len__(self) -> int:
        return len(self.root_m)


@dataclasses.dataclass(frozen=True)
class GlobalPose:
    """The bones of a motion in the frame of the file.

    Attributes:
        rotations: (T, B, 3, 3) rotation of each bone from its rest orientation.
        heads_m: (T, B, 3) where each bone begins, metres.
        tails_m: (T, B, 3) where each bone ends, metres.
    """

    rotations: Array
    heads_m: Array
    tails_m: Array


def forward_kinematics(motion: Motion) -> GlobalPose:
    """Chain the bones of a motion from the root outward."""
    bones = motion.skeleton.bones
    rotations = np.empty_like(motion.rotations)
    heads = np.empty((*rotations.shape[:2], 3))
    tails = np.empty_like(heads)
    for index, bone in enumerate(bones):
        local = motion.rotations[:, index]
        if bone.parent < 0:
            rotations[:, index], heads[:, index] = local, motion.root_m
        else:
            rotations[:, index] = rotations[:, bone.parent] @ local
            heads[:, index] = tails[:, bone.parent]
        tails[:, index] = heads[:, index] + rotations[:, index] @ (bone.direction * bone.length_m)
    return GlobalPose(rotations, heads, tails)


def euler_rotation(angles: Array, order: str) -> Array:
    """Rotation that turns about fixed axes one after the other.

    Args:
        angles: (..., n) radians, one for each letter of ``order``.
        order: Axes in the order in which they act, for example ``"xyz"`` for ``Rz Ry Rx``.

    Returns:
        (..., 3, 3) rotation matrices.
    """
    result = np.broadcast_to(np.eye(3), (*angles.shape[:-1], 3, 3))
    for position, letter in enumerate(order):
        axis = "xyz".index(letter)
        row, column = (axis + 1) % 3, (axis + 2) % 3
        cosine, sine = np.cos(angles[..., position]), np.sin(angles[..., position])
        turn = np.zeros(result.shape)
        turn[..., axis, axis] = 1.0
        turn[..., row, row] = turn[..., column, column] = cosine
        turn[..., row, column], turn[..., column, row] = -sine, sine
        result = turn @ result
    return np.array(result)


def read_asf(path: str | Path) -> AcclaimSkeleton:
    """Read a skeleton file.

    Raises:
        InputError: The file is missing or does not follow the form; the message names the line.
    """
    return _SkeletonReader(_Lines(Path(path))).read()


def read_amc(path: str | Path, skeleton: AcclaimSkeleton) -> Motion:
    """Read a motion file that belongs to ``skeleton``.

    Every frame must state every bone with degrees of freedom (``:FULLY-SPECIFIED``). Angles are
    degrees, or radians after ``:RADIANS``.

    Raises:
        InputError: The file is missing, has no frames, or does not fit the skeleton; the message
            names the line.
    """
    lines = _Lines(Path(path))
    moving = {bone.name: bone for bone in skeleton.bones if bone.channels}
    frames: list[dict[str, list[float]]] = []
    radians_per_unit = np.pi / 180
    for words in lines:
        if words[0].startswith(":"):
            keyword = words[0].lower()
            radians_per_unit = 1.0 if keyword == ":radians" else radians_per_unit
        elif len(words) == 1 and words[0].isdigit():
            _check_frame(lines, frames, moving)
            frames.append({})
        elif not frames:
            lines.fail("expected a frame number before the first bone", words[0])
        else:
            _read_bone(lines, words, moving, frames[-1])
    _check_frame(lines, frames, moving)
    if not frames:
        lines.fail("expected at least one frame", "the end of the file")
    return _assemble(skeleton, frames, radians_per_unit)


def _read_bone(
    lines: "_Lines", words: list[str], moving: dict[str, Bone], frame: dict[str, list[float]]
) -> None:
    name = words[0]
    if name not in moving:
        lines.fail("expected a bone of the skeleton that has degrees of freedom", name)
    if name in frame:
        lines.fail("expected each bone once in a frame", f"'{name}' again")
    values = lines.numbers(words[1:])
    channels = moving[name].channels
    if len(values) != len(channels):
        expected = f"expected {len(channels)} values for '{name}' ({' '.join(channels)})"
        lines.fail(expected, str(len(values)))
    frame[name] = values


def _check_frame(
    lines: "_Lines", frames: list[dict[str, list[float]]], moving: dict[str, Bone]
) -> None:
    if frames and (missing := moving.keys() - frames[-1].keys()):
        expected = f"expected all {len(moving)} moving bones in frame {len(frames)}"
        lines.fail(expected, f"none for {', '.join(sorted(missing))}")


def _assemble(
    skeleton: AcclaimSkeleton, frames: list[dict[str, list[float]]], radians_per_unit: float
) -> Motion:
    root_m = np.zeros((len(frames), 3))
    rotations = np.tile(np.eye(3), (len(frames), len(skeleton.bones), 1, 1))
    for index, bone in enumerate(skeleton.bones):
        if not bone.channels:
            continue
        values = np.array([frame[bone.name] for frame in frames])
        turns = [position for position, name in enumerate(bone.channels) if name in ROTATIONS]
        order = "".join(bone.channels[position][1] for position in turns)
        angles = values[:, turns] * radians_per_unit
        rotations[:, index] = bone.axes @ euler_rotation(angles, order) @ bone.axes.T
        for position, name in enumerate(bone.channels):
            if name in TRANSLATIONS:
                axis = TRANSLATIONS.index(name)
                root_m[:, axis] = values[:, position] * skeleton.metres_per_unit
    return Motion(skeleton, root_m, rotations)


class _Lines:
    """The lines of a text file as words, without comments; knows where it is when it fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        try:
            self._text = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            message = f"{path}: cannot be read ({error.strerror}); check the path"
            raise InputError(message) from error
        except UnicodeDecodeError as error:
            message = f"{path}: expected an ASF or AMC text file, found binary content"
            raise InputError(message) from error

    def __iter__(self) -> Iterator[list[str]]:
        for number, line in enumerate(self._text, start=1):
            self.number = number
            if words := line.split("#", 1)[0].split():
                yield words

    def fail(self, expected: str, found: str) -> NoReturn:
        message = (
            f"{self.path}, line {self.number}: {expected}, found {found}. "
            "Fetch the file again from mocap.cs.cmu.edu, or use the ASF file of the same subject"
        )
        raise InputError(message)

    def numbers(self, words: list[str]) -> list[float]:
        try:
            values = [float(word) for word in words]
        except ValueError:
            self.fail("expected numbers", repr(" ".join(words)))
        if not np.isfinite(values).all():
            self.fail("expected finite numbers", repr(" ".join(words)))
        return values

    def vector(self, words: list[str]) -> Array:
        values = self.numbers(words[:3])
        if len(values) != 3:
            self.fail("expected three numbers", repr(" ".join(words)))
        return np.array(values)


@dataclasses.dataclass
class _BoneEntry:
    """A bone of the ``:bonedata`` section while it is being read, in the units of the file."""

    name: str = ""
    direction: Array = dataclasses.field(default_factory=lambda: np.zeros(3))
    length: float = 0.0
    axis: Array = dataclasses.field(default_factory=lambda: np.zeros(3))
    axis_order: str = "xyz"
    channels: tuple[str, ...] = ()
    limits: list[tuple[float, float]] = dataclasses.field(default_factory=list)


class _SkeletonReader:
    """Reads an ASF file section by section, then puts the bones into the order of the tree."""

    def __init__(self, lines: _Lines) -> None:
        self.lines = lines
        self.name = ""
        self.length_unit = 1.0
        self.radians_per_unit = np.pi / 180
        self.root = _BoneEntry(name=ROOT, channels=(*TRANSLATIONS, *ROTATIONS))
        self.entries: dict[str, _BoneEntry] = {}
        self.children: dict[str, list[str]] = {}
        self.open_bone: _BoneEntry | None = None
        self.in_limits = False

    def read(self) -> AcclaimSkeleton:
        section = ""
        readers = {
            "units": self._units,
            "root": self._root,
            "bonedata": self._bonedata,
            "hierarchy": self._hierarchy,
        }
        for words in self.lines:
            if words[0].startswith(":"):
                section = words[0][1:].lower()
                self.name = " ".join(words[1:]) if section == "name" else self.name
            elif section in readers:
                readers[section]([word.lower() for word in words[:1]] + words[1:])
        if not self.entries or not self.children:
            self.lines.fail("expected the sections :bonedata and :hierarchy", "the end of the file")
        return AcclaimSkeleton(self.name, self._order(), INCH_M / self.length_unit)

    def _units(self, words: list[str]) -> None:
        if words[0] == "length":
            (self.length_unit,) = self.lines.numbers(words[1:2])
            if self.length_unit <= 0:
                self.lines.fail("expected a positive unit of length", words[1])
        elif words[0] == "angle":
            if words[1].lower() not in ("deg", "rad"):
                self.lines.fail("expected 'deg' or 'rad'", repr(words[1]))
            self.radians_per_unit = 1.0 if words[1].lower() == "rad" else np.pi / 180

    def _root(self, words: list[str]) -> None:
        if words[0] == "order":
            self.root.channels = self._channels(words[1:], (*TRANSLATIONS, *ROTATIONS))
        elif words[0] == "axis":
            self.root.axis_order = self._axis_order(words[1:])
        elif words[0] == "orientation":
            self.root.axis = self.lines.vector(words[1:])

    def _bonedata(self, words: list[str]) -> None:
        keyword = words[0]
        if keyword == "begin":
            self.open_bone = _BoneEntry()
        elif self.open_bone is None:
            self.lines.fail("expected 'begin'", repr(keyword))
        elif keyword == "end":
            self._close(self.open_bone)
            self.open_bone = None
        else:
            self._bone_property(self.open_bone, words)

    def _bone_property(self, bone: _BoneEntry, words: list[str]) -> None:
        keyword, values = words[0], words[1:]
        self.in_limits = keyword == "limits" or (self.in_limits and keyword.startswith("("))
        if keyword == "name":
            bone.name = " ".join(values)
        elif keyword == "direction":
            bone.direction = self.lines.vector(values)
        elif keyword == "length":
            bone.length = self.lines.numbers(values[:1] or ["nothing"])[0]
        elif keyword == "axis":
            bone.axis, bone.axis_order = self.lines.vector(values), self._axis_order(values[3:])
        elif keyword == "dof":
            bone.channels = self._channels(values, ROTATIONS)
        elif self.in_limits:
            bone.limits.append(self._limit(values if keyword == "limits" else words))
        elif keyword not in ("id", "bodymass", "cofmass"):
            self.lines.fail("expected a property of a bone", repr(keyword))

    def _close(self, bone: _BoneEntry) -> None:
        if not bone.name or bone.name in self.entries or bone.name == ROOT:
            self.lines.fail("expected a new bone name before 'end'", repr(bone.name))
        if bone.length > 0 and not np.linalg.norm(bone.direction) > 0:
            self.lines.fail(f"expected a direction of bone '{bone.name}'", "none")
        if bone.limits and len(bone.limits) != len(bone.channels):
            expected = f"expected {len(bone.channels)} limits of bone '{bone.name}', one for a dof"
            self.lines.fail(expected, str(len(bone.limits)))
        self.entries[bone.name] = bone

    def _channels(self, words: list[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
        channels = tuple(word.lower() for word in words)
        if len(set(channels)) != len(channels) or not set(channels) <= set(allowed):
            self.lines.fail(f"expected channels among {' '.join(allowed)}", repr(" ".join(words)))
        return channels

    def _axis_order(self, words: list[str]) -> str:
        order = "".join(words).lower()
        if sorted(order) != ["x", "y", "z"]:
            self.lines.fail("expected an order of axes such as XYZ", repr(" ".join(words)))
        return order

    def _limit(self, words: list[str]) -> tuple[float, float]:
        text = " ".join(words)
        if not (text.startswith("(") and text.endswith(")")):
            self.lines.fail("expected a limit such as (-20.0 45.0)", repr(text))
        try:
            low, high = (float(word) for word in text[1:-1].split())
        except ValueError:
            self.lines.fail("expected two numbers in a limit", repr(text))
        return low * self.radians_per_unit, high * self.radians_per_unit

    def _hierarchy(self, words: list[str]) -> None:
        parent, children = words[0], words[1:]
        if parent in ("begin", "end") and not children:
            return
        parent = ROOT if parent.lower() == ROOT else parent
        placed = {name for names in self.children.values() for name in names}
        for child in children:
            if child not in self.entries:
                self.lines.fail("expected a bone of :bonedata", repr(child))
            if child in placed:
                self.lines.fail("expected one parent for each bone", f"a second for '{child}'")
        self.children.setdefault(parent, []).extend(children)

    def _order(self) -> tuple[Bone, ...]:
        bones = [self._bone(self.root, -1)]
        for index, parent in enumerate(bones):  # the list grows while it is walked: breadth first
            for name in self.children.get(parent.name, []):
                bones.append(self._bone(self.entries[name], index))
        if missing := self.entries.keys() - {bone.name for bone in bones}:
            found = ", ".join(sorted(missing)) + " apart from it"
            self.lines.fail("expected every bone to hang from the root in :hierarchy", found)
        return tuple(bones)

    def _bone(self, entry: _BoneEntry, parent: int) -> Bone:
        norm = float(np.linalg.norm(entry.direction))
        axes = euler_rotation(entry.axis * self.radians_per_unit, entry.axis_order)
        return Bone(
            name=entry.name,
            parent=parent,
            direction=entry.direction / norm if norm > 0 else entry.direction,
            length_m=entry.length * INCH_M / self.length_unit,
            axes=axes,
            channels=entry.channels,
            limits=tuple(entry.limits),
        )
