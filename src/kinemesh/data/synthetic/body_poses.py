"""Random body poses: captured ones, mirrored, mixed and varied.

The library holds poses of the CMU motion capture database that differ most from one another (see
`kinemesh.data.synthetic.retarget.build_pose_library`). A sample is one of them, mirrored half of
the time, often with the legs or an arm of another one, with small noise on the large joints and
relaxed fingers.
"""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import torch
from torch import Tensor

from kinemesh.data.synthetic.hand_poses import (
    HAND_BONES,
    HandFrame,
    hand_rotations,
    sample_hand_angles,
)
from kinemesh.data.synthetic.retarget import ARM_BONES, LEG_BONES, BoneRig
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix

Vectors = npt.NDArray[np.float32]

MIRROR_PROBABILITY = 0.5
OTHER_LEGS_PROBABILITY = 0.35
OTHER_ARM_PROBABILITY = 0.35
NOISE_RAD = 0.04
CALM_PROBABILITY = 0.4
"""Share of poses drawn part of the way to the rest pose: the library was chosen for variety, so it
holds few of the quiet stances that most photos show."""


@dataclasses.dataclass(frozen=True)
class PoseLibrary:
    """A set of N body poses.

    Attributes:
        bones: Names of the B bones.
        rotvecs: (N, B, 3) float32 rotations relative to the parent, axis times radians, rest
            frame. The root's is the tilt of the pelvis, without heading.
        thanks: What the source asks to be said with its data.
    """

    bones: tuple[str, ...]
    rotvecs: Vectors
    thanks: str

    def __len__(self) -> int:
        return len(self.rotvecs)

    @functools.cached_property
    def mirror(self) -> list[int]:
        """For each bone the index of the bone on the other side."""
        other = {"L": "R", "R": "L"}
        names = (name.split(".") for name in self.bones)
        swapped = [".".join([stem, *(other[side] for side in sides)]) for stem, *sides in names]
        return [self.bones.index(name) for name in swapped]

    def indices(self, stems: Sequence[str], sides: Sequence[str] = ("L", "R")) -> list[int]:
        """Indices of the bones ``STEM.SIDE``."""
        return [self.bones.index(f"{stem}.{side}") for side in sides for stem in stems]


def read_pose_library(path: str | Path) -> PoseLibrary:
    """Read a library that `build_pose_library` wrote.

    Raises:
        InputError: The file is missing or no pose library.
    """
    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            metadata = json.loads((file.metadata() or {})["kinemesh"])
            vectors = file.get_tensor("rotvecs").astype(np.float32)
        return PoseLibrary(tuple(metadata["bones"]), vectors, metadata["thanks"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        message = (
            f"{path}: expected a pose library ({error}); "
            "write one with kinemesh.data.synthetic.retarget.build_pose_library"
        )
        raise InputError(message) from error


@functools.cache
def load_pose_library() -> PoseLibrary:
    """The library of the package, read once."""
    asset = importlib.resources.files("kinemesh") / "assets" / "cmu_poses.safetensors"
    with importlib.resources.as_file(asset) as path:
        return read_pose_library(path)


def sample_body_pose(
    rng: np.random.Generator, rig: BoneRig, library: PoseLibrary | None = None
) -> Tensor:
    """Draw a body pose.

    Args:
        rng: Source of all randomness; the same state gives the same pose.
        rig: A rig with the bones of Anny's body, such as `load_rig("anny-body")`; J bones.
        library: Poses to draw from; those of the package if None.

    Returns:
        (J, 3, 3) float32 rotation of each bone relative to its parent, in the axes of the rest
        frame. The root's tilts the pelvis; the heading is left to the caller.

    Raises:
        InputError: The rig lacks a bone of the library or of the hands.
    """
    library = load_pose_library() if library is None else library
    missing = set(library.bones) - set(rig.bones)
    if missing:
        message = (
            f"rig: expected the bones of a body, found none named {', '.join(sorted(missing))}; "
            "use the rig 'anny-body'"
        )
        raise InputError(message)
    vectors = torch.from_numpy(_draw_vectors(rng, library))
    if rng.random() < CALM_PROBABILITY:
        vectors = vectors * rng.uniform(0.2, 0.8)
    pose = torch.eye(3).repeat(len(rig.bones), 1, 1)
    pose[[rig.bones.index(name) for name in library.bones]] = axis_angle_to_matrix(vectors)
    for bone, rotation in relaxed_fingers(rng, rig).items():
        pose[bone] = rotation
    return pose


def sample_body_poses(rngs: Sequence[np.random.Generator], rig: BoneRig) -> Tensor:
    """`sample_body_pose` once for each generator, stacked to (len(rngs), J, 3, 3)."""
    return torch.stack([sample_body_pose(rng, rig) for rng in rngs])


def relaxed_fingers(rng: np.random.Generator, rig: BoneRig) -> dict[int, Tensor]:
    """Relaxed fingers for both hands of a body rig.

    Returns:
        Rotation (3, 3) by bone index, for the fingers and metacarpals; the wrists are left alone.
    """
    frame = HandFrame.of(rig)
    _, angles = sample_hand_angles(rng, 2, "relaxed")
    right, left = hand_rotations(angles, frame)
    mirror = torch.tensor([1.0, -1.0, -1.0])
    left = left * mirror[:, None] * mirror  # the reflection S R S with S = diag(-1, 1, 1)
    result: dict[int, Tensor] = {}
    for row, name in enumerate(HAND_BONES):
        if name.startswith(("finger", "metacarpal")):
            result[frame.bones[row]] = right[row]
            result[rig.bones.index(f"{name}.L")] = left[row]
    return result


def _draw_vectors(rng: np.random.Generator, library: PoseLibrary) -> Vectors:
    vectors = _draw_pose(rng, library)
    if rng.random() < OTHER_LEGS_PROBABILITY:
        legs = library.indices(LEG_BONES)
        vectors[legs] = _draw_pose(rng, library)[legs]
    if rng.random() < OTHER_ARM_PROBABILITY:
        arm = library.indices(ARM_BONES, sides=("L" if rng.random() < 0.5 else "R",))
        vectors[arm] = _draw_pose(rng, library)[arm]
    noise = rng.normal(0.0, NOISE_RAD, vectors.shape)
    return vectors + noise.astype(np.float32)


def _draw_pose(rng: np.random.Generator, library: PoseLibrary) -> Vectors:
    vectors = library.rotvecs[rng.integers(len(library))].copy()
    return mirror_rotvecs(vectors, library) if rng.random() < MIRROR_PROBABILITY else vectors


def mirror_rotvecs(vectors: Vectors, library: PoseLibrary) -> Vectors:
    """The mirror image of a pose (B, 3): sides swapped and turned about a reflected axis.

    Under the reflection of x an axis of rotation (a pseudovector) keeps x and negates y and z.
    """
    return vectors[library.mirror] * np.array([1, -1, -1], np.float32)
