"""What the readers of mesh data share: from a stored row to a `Sample`."""

import copy
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Self, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_augmentation import Augmentation, place_joints_2d, turn_points, turn_pose
from kinemesh.data.mesh_crop import (
    PIXELS_OF_SCALE,
    PLAIN_CROP,
    RESOLUTION,
    CropParameters,
    Picture,
    crop_picture,
    misses_picture,
)
from kinemesh.data.mesh_labels import SKELETONS, MeshLabel, MeshRecord, read_label
from kinemesh.data.records import Sample
from kinemesh.errors import InputError
from kinemesh.skeletons import Skeleton, root_position

Float = NDArray[np.float64]

_MASK_TOKENS: dict[Kind, tuple[int, int]] = {"body": (14, 431), "hand": (21, 195)}
_CENTRED_PX = 0.5  # a principal point this near to the centre of the box counts as in the centre
_WORD = 2**32


@dataclass(frozen=True)
class MeshOptions:
    """How samples are made of stored rows.

    Attributes:
        train: Vary the samples at random; else all are cut by ``view``.
        seed: Key of the random variation.
        resolution: Side of the crop.
        augmentation: Strength of the variation; None takes the published one of hand or body.
        view: Crop outside of training, for test-time augmentation.
        mask_tokens: Numbers of joint and of coarse vertex tokens to draw masks for; None takes
            METRO's of hand or body, (0, 0) draws none.
    """

    train: bool = False
    seed: int = 0
    resolution: int = RESOLUTION
    augmentation: Augmentation | None = None
    view: CropParameters = PLAIN_CROP
    mask_tokens: tuple[int, int] | None = None


class MeshDataset(Dataset[Sample], ABC):
    """Rows of pictures with METRO's labels, random access.

    In training, sample i of step (or pass) t is varied by a generator that is seeded with (seed, t,
    i) alone, so that it is the same in any order, batch and process. Say t with `set_step`; while
    nobody does, every pass sees the same variation.

    Args:
        kind: "body" or "hand".
        options: How samples are made.

    Raises:
        InputError: The options do not fit the kind.
    """

    def __init__(self, kind: Kind, options: MeshOptions) -> None:
        augmentation = options.augmentation or Augmentation.for_kind(kind)
        if kind == "hand" and (augmentation.flip or options.view.flip):
            raise InputError(
                "augmentation: hands cannot be mirrored, since the hand model is a right hand. "
                "Set flip to False."
            )
        if options.resolution < 1 or min(options.mask_tokens or (0, 0)) < 0:
            raise InputError(
                "resolution, mask_tokens: expected a positive and two non-negative numbers, found "
                f"{options.resolution} and {options.mask_tokens}."
            )
        self.kind: Kind = kind
        self.options = options
        self.step = 0

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, index: int) -> MeshRecord:
        """Row ``index`` as stored.

        Raises:
            InputError: The row is damaged.
        """

    @property
    def skeleton(self) -> Skeleton:
        """The joint set of the labels."""
        return SKELETONS[self.kind]

    def label(self, index: int) -> MeshLabel:
        """Checked label of row ``index`` in the source image, before any crop."""
        record = self.read(index)
        return read_label(record.annotation, self.kind, record.where)

    def set_step(self, step: int) -> None:
        """Say which training step or pass the next samples belong to."""
        self.step = step

    def with_view(self, view: CropParameters) -> Self:
        """The same rows for evaluation under another crop; files are shared."""
        other = copy.copy(self)
        other.options = replace(self.options, train=False, view=view)
        return other

    def __getitem__(self, index: int) -> Sample:
        """Sample ``index``; see :class:`kinemesh.data.records.Sample` for the fields."""
        index = self._checked(index)
        return self.sample(index, sample_generator(self.options.seed, self.step, index))

    def sample(self, index: int, rng: np.random.RandomState) -> Sample:
        """Sample ``index`` varied by a generator of your own, which evaluation ignores."""
        return make_sample(self.read(self._checked(index)), self.kind, self.options, rng)

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a data set of {len(self)} samples")
        return index % len(self)


def sample_generator(seed: int, step: int, index: int) -> np.random.RandomState:
    """The generator of one sample: a function of seed, step and index alone."""
    return np.random.RandomState([seed % _WORD, step % _WORD, index % _WORD])


def make_sample(
    record: MeshRecord, kind: Kind, options: MeshOptions, rng: np.random.RandomState
) -> Sample:
    """Decode, crop and vary one stored row; warns where the box misses the picture.

    Raises:
        InputError: Picture or label is damaged; the message names the place.
    """
    label = read_label(record.annotation, kind, record.where)
    picture = decode_picture(record.jpeg, record.picture_place)
    augmentation = options.augmentation or Augmentation.for_kind(kind)
    crop = augmentation.draw(rng) if options.train else options.view
    try:
        image = crop_picture(picture, label.center_px, label.scale, crop, options.resolution)
    except InputError as error:
        raise InputError(f"{record.where}: {error}") from error
    if misses_picture(picture, label.center_px, label.scale):
        _warn_of_black_crop(record, label, picture)
    skeleton = SKELETONS[kind]
    joints_2d = place_joints_2d(
        label.joints_2d, skeleton, label.center_px, label.scale, crop, options.resolution
    )
    joints_3d, vertices, root = _rooted(label, skeleton, crop)
    focal = _focal_px(label, crop, options.resolution)
    return Sample(
        image=torch.from_numpy(image),
        joints_2d=_tensor(joints_2d),
        joints_3d=_tensor(joints_3d),
        vertices=_tensor(vertices),
        pose=_tensor(turn_pose(label.pose, crop)),
        betas=_tensor(label.betas),
        keep_mask=_keep_mask(kind, options, augmentation, rng),
        focal_px=torch.tensor(focal, dtype=torch.float32),
        root_m=_tensor(root if focal > 0 else np.zeros(3)),
        center_px=_tensor(label.center_px),
        side_px=torch.tensor(PIXELS_OF_SCALE * label.scale * crop.scale, dtype=torch.float32),
        has_2d=torch.tensor(float(label.has_2d)),
        has_3d=torch.tensor(float(label.has_3d)),
        has_mesh=torch.tensor(float(label.has_mesh)),
    )


def _warn_of_black_crop(record: MeshRecord, label: MeshLabel, picture: Picture) -> None:
    height, width = picture.shape[:2]
    warnings.warn(
        f"{record.where}: the box of {PIXELS_OF_SCALE * label.scale:.4g} px around "
        f"({label.center_px[0]:.6g}, {label.center_px[1]:.6g}) lies beside the picture of {width} "
        f"x {height} px, so its plain crop is black. Mend this row or leave it out.",
        stacklevel=3,
    )


def decode_picture(jpeg: bytes, where: str) -> Picture:
    """Decode to (H, W, 3) uint8 RGB, as OpenCV does.

    Raises:
        InputError: It is no complete picture.
    """
    # OpenCV fills the missing end of a JPEG with grey and only prints a warning
    is_jpeg = jpeg.startswith(b"\xff\xd8")
    cut = is_jpeg and jpeg.rfind(b"\xff\xd9") < jpeg.rfind(b"\xff\xda")
    pixels = np.frombuffer(jpeg, np.uint8)
    picture = None if cut or not len(pixels) else cv2.imdecode(pixels, cv2.IMREAD_COLOR)
    if picture is None:
        what = "one that ends early" if cut else f"{len(jpeg)} bytes of something else"
        raise InputError(
            f"{where}: expected a complete JPEG, found {what}. Copy the file again or leave this "
            "row out of the line list."
        )
    return cast(Picture, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))


def _rooted(
    label: MeshLabel, skeleton: Skeleton, crop: CropParameters
) -> tuple[Float, Float, Float]:
    """Joints (J, 4) and vertices (V, 3) in the turned root frame, and the turned root (3,)."""
    root = root_position(torch.from_numpy(label.joints_3d[:, :3]), skeleton).numpy()
    joints = label.joints_3d.copy()
    joints[:, :3] -= root
    if crop.flip and len(label.vertices):
        raise InputError(
            "augmentation: labelled vertices cannot be mirrored, since their order has no mirror "
            "image. Set flip to False."
        )
    return (
        turn_points(joints, skeleton, crop),
        turn_points(label.vertices - root, None, crop),
        turn_points(root, None, crop)[0],
    )


def _focal_px(label: MeshLabel, crop: CropParameters, resolution: int) -> float:
    """Focal length in crop pixels, 0 unless the camera looks through the centre of the box."""
    if label.camera is None or np.abs(label.camera[:2, 2] - label.center_px).max() > _CENTRED_PX:
        return 0.0
    side = PIXELS_OF_SCALE * label.scale * crop.scale
    return float(label.camera[0, 0] + label.camera[1, 1]) / 2 * resolution / side


def _keep_mask(
    kind: Kind, options: MeshOptions, augmentation: Augmentation, rng: np.random.RandomState
) -> Tensor:
    joints, vertices = options.mask_tokens or _MASK_TOKENS[kind]
    if not options.train:
        return torch.ones(joints + vertices, 1)
    return torch.from_numpy(augmentation.draw_keep_mask(rng, joints, vertices))


def _tensor(values: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
