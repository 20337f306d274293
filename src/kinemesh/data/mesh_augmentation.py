"""Random variation of METRO's and Mesh Graphormer's training samples, and what it does to labels.

All numbers come from an explicit `numpy.random.RandomState`, in the order in which the published
code draws them from NumPy's global state: ``RandomState(s)`` yields what ``np.random.seed(s)``
would have, and no process or worker shares a state with another.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_crop import RESOLUTION, CropParameters, crop_affine, turn_about_z
from kinemesh.skeletons import SMPL24, Skeleton

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Augmentation:
    """How strongly training samples vary; `body` and `hand` are the published settings.

    Attributes:
        flip: Mirror half of the samples.
        noise: Largest departure of a colour's factor from 1.
        rotation_deg: Deviation of the turn, which is cut at twice this angle.
        scale: Deviation of the side of the crop from 1, which is cut at this value.
        upright_share: Share of the samples that are not turned.
        masked_share: Largest share of joints, and of coarse vertices, that masked vertex modelling
            hides from the network (METRO section 3.3).
    """

    flip: bool = True
    noise: float = 0.4
    rotation_deg: float = 30.0
    scale: float = 0.25
    upright_share: float = 0.6
    masked_share: float = 0.3

    @classmethod
    def body(cls) -> "Augmentation":
        """Published setting for bodies."""
        return cls()

    @classmethod
    def hand(cls) -> "Augmentation":
        """Published setting for hands: never mirrored, any orientation, nothing masked."""
        return cls(flip=False, rotation_deg=90.0, masked_share=0.0)

    @classmethod
    def for_kind(cls, kind: Kind) -> "Augmentation":
        """Published setting for hands or bodies."""
        return cls.body() if kind == "body" else cls.hand()

    def draw(self, rng: np.random.RandomState) -> CropParameters:
        """Parameters of one crop."""
        flip = bool(rng.uniform() <= 0.5) if self.flip else False
        red, green, blue = rng.uniform(1 - self.noise, 1 + self.noise, 3)
        limit = 2 * self.rotation_deg
        rotation = min(limit, max(-limit, rng.randn() * self.rotation_deg))
        scale = min(1 + self.scale, max(1 - self.scale, rng.randn() * self.scale + 1))
        if rng.uniform() <= self.upright_share:
            rotation = 0.0
        return CropParameters(flip, (red, green, blue), rotation, scale)

    def draw_keep_mask(
        self, rng: np.random.RandomState, joints: int, vertices: int
    ) -> NDArray[np.float32]:
        """(joints + vertices, 1) float32: 1 for the query tokens to keep, 0 for those to hide.

        Joints and coarse vertices are masked independently, each by a uniform share of up to
        ``masked_share``.
        """
        masks = []
        for count in (joints, vertices):
            mask = np.ones((count, 1), dtype=np.float32)
            if count:
                hidden = int(rng.random_sample() * self.masked_share * count)
                mask[rng.choice(count, replace=False, size=hidden)] = 0
            masks.append(mask)
        return np.concatenate(masks)


def place_joints_2d(
    joints: Float,
    skeleton: Skeleton,
    center_px: Float,
    scale: float,
    parameters: CropParameters,
    resolution: int = RESOLUTION,
) -> Float:
    """Move 2D joints from the image into the crop, onto whole pixels as the published code does.

    Args:
        joints: (J, 3) x and y in image pixels, confidence.
        skeleton: The joint set, for the swap of left and right.
        center_px: (2,) centre of the label's box.
        scale: Side of the label's box in units of 200 px, before ``parameters.scale``.
        parameters: The crop.
        resolution: Side of the crop.

    Returns:
        (J, 3) x and y in crop pixels (whole numbers), confidence.
    """
    side = scale * parameters.scale
    matrix = crop_affine(center_px, side, parameters.rotation_deg, resolution)
    placed = joints.copy()
    homogeneous = np.concatenate([joints[:, :2], np.ones((len(joints), 1))], axis=1)
    placed[:, :2] = np.trunc(homogeneous @ matrix.T)[:, :2] + 1
    if parameters.flip:
        placed = placed[list(skeleton.flip_permutation)]
        placed[:, 0] = resolution - placed[:, 0]
    return placed


def turn_points(points: Float, skeleton: Skeleton | None, parameters: CropParameters) -> Float:
    """Turn and mirror 3D points with the picture.

    Args:
        points: (N, 3+) metres, camera axes, about the point that stays in place; further columns
            travel along.
        skeleton: The joint set, for the swap of left and right; None leaves the order.
        parameters: The crop.

    Returns:
        The same shape.
    """
    turned = points.copy()
    turned[:, :3] = points[:, :3] @ turn_about_z(parameters.rotation_deg).T
    if parameters.flip:
        if skeleton is not None:
            turned = turned[list(skeleton.flip_permutation)]
        turned[:, 0] = -turned[:, 0]
    return turned


def turn_pose(pose: Float, parameters: CropParameters) -> Float:
    """Turn and mirror the pose of a body model with the picture.

    Args:
        pose: (P,) axis-angle of each joint, radians; the first is the root's in camera axes.
        parameters: The crop; only SMPL's 72 numbers can be mirrored.

    Returns:
        (P,).
    """
    turned = pose.copy()
    root, _ = cv2.Rodrigues(pose[:3])
    turned[:3] = cv2.Rodrigues(turn_about_z(parameters.rotation_deg) @ root)[0][:, 0]
    if parameters.flip:
        rows = turned.reshape(len(SMPL24), 3)[list(SMPL24.flip_permutation)]
        # a mirror in x keeps the turn about x and reverses those about y and z
        turned = (rows * np.array([1.0, -1.0, -1.0])).reshape(-1)
    return turned
