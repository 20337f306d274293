"""Photos with 2D labels alone, for networks that learn their depth from rendered pictures.

A crop is cut as prediction cuts it for the shipped networks: a square around the labelled box with
a small margin, beyond the border of the photo its outermost pixels. The record is that of all mesh
data, without 3D labels, so that photos and rendered samples fit into one batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kinemesh.bodies.topology import Topology
from kinemesh.data.keypoint_dataset import read_picture
from kinemesh.data.mesh_dataset import sample_generator
from kinemesh.data.records import Sample
from kinemesh.errors import InputError
from kinemesh.geometry.crops import (
    Border,
    box_to_square,
    crop_matrix,
    transform_points,
    warp_crop,
)
from kinemesh.skeletons import Skeleton

MARGIN = 1.1
"""Side of the crop over the longer side of the box, as in prediction."""
BORDER: Border = "replicate"
"""What lies beyond the border of the photo, as in prediction."""


@dataclass(frozen=True, eq=False)
class PhotoLabel:
    """One person or hand of a photo.

    Attributes:
        picture: The image file.
        box_px: (4,) x, y, width, height in pixels, from the corner of the first pixel.
        joints: (J, 3) float32: x and y in the same pixels, then 1 where labelled and 0 elsewhere.
        mirrored: Show it mirrored: a left hand, which then looks like a right one.
        where: File and row, for messages.
        size: Width and height of the photo, where the file says them.
    """

    picture: Path
    box_px: NDArray[np.float64]
    joints: NDArray[np.float32]
    mirrored: bool = False
    where: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class PhotoVariation:
    """How one crop departs from that of its box.

    Attributes:
        scale: Factor of the side of the square.
        shift: Move of its centre to the right and down, in sides of the square.
        turn_deg: Turn of the picture, clockwise as seen.
        flip: Mirror it, and exchange left and right.
    """

    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    turn_deg: float = 0.0
    flip: bool = False


@dataclass(frozen=True)
class PhotoAugmentation:
    """How strongly photos vary; normal deviates, each cut at twice its deviation.

    Attributes:
        scale: Deviation of the logarithm of the side: boxes of detectors are not those of people.
        shift: Deviation of both parts of the shift.
        turn_deg: Deviation of the turn.
        flip_share: Share of the samples that are mirrored.
    """

    scale: float = 0.1
    shift: float = 0.04
    turn_deg: float = 12.0
    flip_share: float = 0.5

    def draw(self, rng: np.random.RandomState) -> PhotoVariation:
        """Parameters of one crop."""
        scale, right, down, turn = np.clip(rng.standard_normal(4), -2, 2).tolist()
        return PhotoVariation(
            float(np.exp(self.scale * scale)),
            (self.shift * right, self.shift * down),
            self.turn_deg * turn,
            bool(rng.random_sample() < self.flip_share),
        )


class LabelledPhotos(Dataset[Sample]):
    """Labelled people or hands of photos, cut for a network.

    Args:
        labels: At least one.
        topology: The mesh whose joints are labelled; its vertices are filled with zeros.
        resolution: Side S of the square crop in pixels.
        augmentation: Strength of the variation.

    Raises:
        InputError: There is no label.
    """

    def __init__(
        self,
        labels: Sequence[PhotoLabel],
        topology: Topology,
        resolution: int,
        augmentation: PhotoAugmentation,
    ) -> None:
        if not labels:
            raise InputError("photos: expected labelled photos, found none. Name a larger set.")
        self.labels = labels
        self.skeleton = topology.skeleton
        self.vertices = len(topology.template)
        self.resolution = resolution
        self.augmentation = augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        """Photo ``index`` as its box is, without variation."""
        return self.cut(self.labels[index], PhotoVariation())

    def draw(self, seed: int, step: int, index: int) -> Sample:
        """A photo by chance, varied; the same one for the same three numbers."""
        rng = sample_generator(seed, step, index)
        return self.cut(self.labels[rng.randint(len(self))], self.augmentation.draw(rng))

    def cut(self, label: PhotoLabel, variation: PhotoVariation) -> Sample:
        """One photo under a variation of your own.

        Raises:
            InputError: The picture is missing, damaged, or not as large as its file says.
        """
        pixels = read_picture(label.picture, "rgb", label.where)
        found = pixels.shape[1::-1]
        if label.size not in (None, found):
            raise InputError(
                f"{label.where}: expected a picture of {label.size} px (width, height), found "
                f"{found} in '{label.picture}'. Take the pictures that were labelled."
            )
        side = self.resolution
        center_px, side_px = place_photo(label, variation)
        turn = torch.tensor([np.radians(variation.turn_deg)])
        matrix = crop_matrix(center_px[None], side_px[None], side, turn)[0]
        crop = warp_crop(pixels, matrix, side, border=BORDER)
        places = transform_points(matrix, torch.from_numpy(label.joints[:, :2]))
        joints = np.column_stack([places.numpy(), label.joints[:, 2]])
        if label.mirrored != variation.flip:
            crop, joints = crop[:, ::-1], mirror_joints(joints, self.skeleton, side)
        joints[:, 2] *= ((joints[:, :2] >= 0) & (joints[:, :2] <= side)).all(axis=1)
        image = np.ascontiguousarray(crop.transpose(2, 0, 1), dtype=np.float32)
        return Sample(
            image=torch.from_numpy(image / np.float32(255)),
            joints_2d=torch.from_numpy(joints.astype(np.float32)),
            joints_3d=torch.zeros(len(self.skeleton), 4),
            vertices=torch.zeros(self.vertices, 3),
            pose=torch.zeros(0),
            betas=torch.zeros(0),
            keep_mask=torch.zeros(0, 1),
            focal_px=torch.tensor(0.0),
            root_m=torch.zeros(3),
            center_px=center_px.float(),
            side_px=side_px.float(),
            has_2d=torch.tensor(1.0),
            has_3d=torch.tensor(0.0),
            has_mesh=torch.tensor(0.0),
        )


def place_photo(label: PhotoLabel, variation: PhotoVariation) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre (2,) and side () of the square in the photo, pixels, float32."""
    box = torch.from_numpy(np.asarray(label.box_px, dtype=np.float32))
    center, side = box_to_square(box[None], MARGIN)
    moved = center[0] + side[0] * torch.tensor(variation.shift)
    return moved, side[0] * variation.scale


def mirror_joints(joints: NDArray, skeleton: Skeleton, side: int) -> NDArray:
    """Joints (J, 3) of a crop of ``side`` pixels in the mirrored crop; left and right exchanged."""
    mirrored = joints[list(skeleton.flip_permutation)]
    mirrored[:, 0] = side - mirrored[:, 0]
    return mirrored
