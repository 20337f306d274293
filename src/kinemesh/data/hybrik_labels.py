"""From a label of Human3.6M, 3DPW, MPI-INF-3DHP or COCO to what POTTER's mesh network learns."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.bodies.hybrik_bodies import SMPL_FLIP_PAIRS
from kinemesh.data.hybrik_augmentation import (
    FULLY_LABELLED,
    LABELLED_2D,
    PLAIN,
    WITHOUT_OCCLUDER,
    HybrikAugmentation,
    HybrikVariation,
    Pairs,
    flip_axis_angles,
    flip_camera_points,
    flip_places,
    flip_twists,
    turn_axis_angle,
    turn_points,
)
from kinemesh.data.hybrik_crop import (
    BOX_FACTOR,
    SIDE,
    crop_affine,
    move_points,
    normalised,
    square_of,
    warp,
)
from kinemesh.data.hybrik_records import HybrikSample
from kinemesh.data.hybrik_targets import (
    CAMERA_OF_PLACES,
    DEPTH_UNIT_M,
    camera_target,
    place_targets,
    quaternion_targets,
)
from kinemesh.data.mesh_dataset import decode_picture
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17

Float = NDArray[np.float64]
HybrikName = Literal["h36m", "3dpw", "3dhp", "coco"]

JOINTS, TURNING, SHAPES = 29, 24, 10
_H36M_PAIRS: Pairs = ((1, 4), (2, 5), (3, 6), (11, 14), (12, 15), (13, 16))


@dataclass(frozen=True)
class HybrikSource:
    """What one data set's labels are like.

    Attributes:
        name: Of the data set.
        joints: N, joints of its places.
        root: Which of them is the root.
        pairs: Left and right among them.
        to_smpl: Joint of the 29 by joint of the data set; empty where they are the same.
        augmentation: How its samples vary in training.
        box_factor: Side of the crop over the longer side of the labelled box.
    """

    name: HybrikName
    joints: int
    root: int
    pairs: Pairs
    to_smpl: Mapping[int, int]
    augmentation: HybrikAugmentation
    box_factor: float = BOX_FACTOR


def _smpl_source(name: HybrikName, box_factor: float = BOX_FACTOR) -> HybrikSource:
    same: Mapping[int, int] = MappingProxyType({})
    return HybrikSource(name, JOINTS, 0, SMPL_FLIP_PAIRS, same, FULLY_LABELLED, box_factor)


SOURCES: Mapping[HybrikName, HybrikSource] = MappingProxyType(
    {
        # its boxes are already loose
        "h36m": _smpl_source("h36m", box_factor=1.0),
        "3dpw": _smpl_source("3dpw"),
        "3dhp": HybrikSource(
            "3dhp",
            joints=28,
            root=4,
            pairs=tuple((left, left + 5) for left in (*range(8, 13), *range(18, 23))),
            to_smpl=MappingProxyType(
                {4: 0, 19: 4, 24: 5, 20: 7, 25: 8, 5: 12, 9: 16, 14: 17, 10: 18, 15: 19}
                | {11: 20, 16: 21}
            ),
            augmentation=WITHOUT_OCCLUDER,
        ),
        "coco": HybrikSource(
            "coco",
            joints=17,
            root=0,
            pairs=COCO17.flip_pairs,
            to_smpl=MappingProxyType(
                {13: 4, 14: 5, 15: 7, 16: 8, 5: 16, 6: 17, 7: 18, 8: 19, 9: 20, 10: 21}
            ),
            augmentation=LABELLED_2D,
        ),
    }
)


@dataclass(frozen=True)
class HybrikLabel:
    """One labelled person; arrays are float64, N joints of the data set.

    Attributes:
        source: The data set.
        picture: File of the picture.
        corners: (4,) left, top, right and bottom of the box.
        places: (N, 3) image pixels, and depth about the root in metres.
        visible: (N, 3) which of these numbers are labelled.
        points: (M, 3) metres in the camera's frame: M = 24 of SMPL, or N; None of 2D data.
        joints_17: (17, 3) metres in the camera's axes, Human3.6M's joints (of 3DHP its own 17);
            None where unknown.
        theta: (24, 3) axis times angle, the first to the camera's axes; None where unknown.
        betas: (10,) shape; None where unknown.
        twist: (23, 2) cosine and sine, zero where unknown.
        twist_weight: (23, 2).
        activity: Number of the activity, -1 where unknown.
        sequence: Number of the recording, -1 where unknown.
    """

    source: HybrikSource
    picture: Path
    corners: Float
    places: Float
    visible: Float
    points: Float | None
    joints_17: Float | None
    theta: Float | None
    betas: Float | None
    twist: Float
    twist_weight: Float
    activity: int = -1
    sequence: int = -1


def make_sample(
    label: HybrikLabel, rng: np.random.RandomState | None, size: int = SIDE
) -> HybrikSample:
    """Read the picture, vary it, cut the crop and work out the targets.

    Args:
        label: The person.
        rng: What varies the sample as in training; None leaves it plain.
        size: Side of the crop.

    Raises:
        InputError: The picture is missing or damaged.
    """
    picture = read_picture(label.picture)
    height, width = picture.shape[:2]
    variation = PLAIN
    if rng is not None:
        augmentation = label.source.augmentation
        occluder = augmentation.draw_occluder(rng, label.corners, width, height)
        if occluder is not None:
            x, y, wide, high = occluder
            picture[y : y + high, x : x + wide] = rng.random_sample((high, wide, 3)) * 255
        variation = augmentation.draw(rng)
    label = varied(label, variation, width)
    center_px, side_px = square_of(label.corners, label.source.box_factor)
    side_px *= variation.scale
    affine = crop_affine(center_px, side_px, variation.rotation_deg, size)
    crop = warp(picture[:, ::-1] if variation.flip else picture, affine, size)
    if variation.color != PLAIN.color:
        crop = np.clip(crop * np.array(variation.color), 0, 255)
    fields = targets_of(label, affine, size) | {
        "image": torch.from_numpy(normalised(crop)),
        "center_px": _tensor(center_px),
        "side_px": torch.tensor(side_px, dtype=torch.float32),
    }
    return cast(HybrikSample, fields)


def read_picture(path: Path) -> NDArray[np.uint8]:
    """A picture (H, W, 3) uint8 RGB that may be written to.

    Raises:
        InputError: The file is missing or no picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: expected the picture of a label, found none ({error.strerror}). Check that "
            "the pictures lie where the data set's own archive puts them."
        ) from error
    return decode_picture(content, str(path))


def varied(label: HybrikLabel, variation: HybrikVariation, width: int) -> HybrikLabel:
    """The label mirrored and turned as the picture is; ``width`` is that of the picture."""
    if variation.flip:
        label = _flipped(label, width)
    angle = variation.rotation_deg
    if not angle:
        return label
    theta = label.theta
    if theta is not None:
        theta = theta.copy()
        theta[0] = turn_axis_angle(theta[0], angle)
    return replace(
        label,
        points=None if label.points is None else turn_points(label.points, angle),
        joints_17=None if label.joints_17 is None else turn_points(label.joints_17, angle),
        theta=theta,
    )


def _flipped(label: HybrikLabel, width: int) -> HybrikLabel:
    source, points, known, theta = label.source, label.points, label.joints_17, label.theta
    places, visible = flip_places(label.places, label.visible, width, source.pairs)
    left, top, right, bottom = label.corners
    turning = tuple(pair for pair in SMPL_FLIP_PAIRS if max(pair) < TURNING)
    # the points of SMPL's labels are the joints that turn, without the ends of bones
    pairs = turning if points is not None and len(points) == TURNING else source.pairs
    twist, weight = flip_twists(label.twist, label.twist_weight, turning)
    return replace(
        label,
        corners=np.array([width - 1 - right, top, width - 1 - left, bottom]),
        places=places,
        visible=visible,
        points=points if points is None else flip_camera_points(points, source.root, pairs),
        joints_17=known if known is None else flip_camera_points(known, 0, _H36M_PAIRS),
        theta=theta if theta is None else flip_axis_angles(theta, turning),
        twist=twist,
        twist_weight=weight,
    )


def targets_of(label: HybrikLabel, affine: Float, size: int = SIDE) -> dict[str, Tensor]:
    """All fields of a sample but the picture and its square.

    Args:
        label: After `varied`.
        affine: From the image to the crop.
        size: Side of the crop.
    """
    source = label.source
    uvd, uvd_weight = place_targets(
        move_points(label.places, affine, label.visible), label.visible, size
    )
    camera, xyz, xyz_weight = CAMERA_OF_PLACES, np.zeros((TURNING, 3)), np.zeros((TURNING, 3))
    if label.points is not None:
        relative = label.points - label.points[source.root]
        count = len(relative)
        camera = camera_target(relative, uvd[:count], uvd_weight[:count])
        xyz = _to_smpl(relative / DEPTH_UNIT_M, source, TURNING)
        xyz_weight = _to_smpl(np.ones_like(relative), source, TURNING)
    known = label.theta is not None and label.betas is not None
    theta = np.zeros((TURNING, 4)) if label.theta is None else quaternion_targets(label.theta)
    joints_17 = np.zeros((0, 3)) if label.joints_17 is None else label.joints_17
    return {
        "uvd": _tensor(_to_smpl(uvd * label.visible, source, JOINTS)),
        "uvd_weight": _tensor(_to_smpl(uvd_weight, source, JOINTS)),
        "xyz": _tensor(xyz),
        "xyz_weight": _tensor(xyz_weight),
        "theta": _tensor(theta),
        "theta_weight": torch.full((TURNING, 4), float(known)),
        "betas": _tensor(np.zeros(SHAPES) if label.betas is None else label.betas),
        "twist": _tensor(label.twist),
        "twist_weight": _tensor(label.twist_weight),
        "smpl_weight": torch.full((1,), float(known)),
        "camera_scale": torch.tensor([camera.scale], dtype=torch.float32),
        "camera_shift": _tensor(camera.shift),
        "joints_17": _tensor(joints_17 - joints_17[:1]),
        "vertices": torch.zeros(0, 3),
        "activity": torch.tensor(label.activity),
        "sequence": torch.tensor(label.sequence),
    }


def _to_smpl(values: Float, source: HybrikSource, count: int) -> Float:
    """Rows of a data set's joints among SMPL's, zero where it has none."""
    if not source.to_smpl:
        return values[:count]
    placed = np.zeros((count, values.shape[1]))
    for own, joint in source.to_smpl.items():
        placed[joint] = values[own]
    return placed


def _tensor(values: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
