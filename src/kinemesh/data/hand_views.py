"""Two ways to show a network a hand of a wide picture: as published, and as rendered hands look.

Ego-Exo4D's baseline sees the published square (`kinemesh.data.hand_crop`), and its joints have the
axes of the camera. Rendered hands have a camera of their own that looks at them. A network that was
trained on them tells joints in the axes of such a camera, so that what it says of a hand at the
border of a wide picture has to be turned by the ray of that hand, by up to 55 degrees here. Its
crops are cut as in prediction: a smaller margin, and no black border.

The stretch of a wide picture away from its middle stays in the crop.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.data.hand_crop import crop_hand, hand_affine, place_hand
from kinemesh.data.keypoint_crop import Picture
from kinemesh.geometry.cameras import PerspectiveCamera, ray_rotation
from kinemesh.geometry.crops import box_to_square, crop_matrix, warp_crop
from kinemesh.geometry.fisheye import EGO_EXO4D_VIEW

Float = NDArray[np.float64]

FACING_MARGIN = 1.1
"""Side of the crop over the longer side of the box, for networks trained on rendered hands."""
_HALF_PIXEL = 0.5  # the labels have the centre of the first pixel at 0
_FROM_PORTRAIT = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
"""From the axes of the upright picture to those of the camera, which lies on its side."""


class HandCut(NamedTuple):
    """What a network is shown of a hand.

    Attributes:
        picture: (S, S, 3) uint8.
        affine: (2, 3) from the pixels of the picture to those of the crop, centres at integers.
        axes: (3, 3) from the axes that the network tells joints in to those of the camera.
        center_px: (2,) float32, middle of the crop in the picture.
        side_px: () float32, side of the crop in the picture.
    """

    picture: Picture
    affine: Float
    axes: Float
    center_px: NDArray[np.float32]
    side_px: np.float32


def cut_hand(picture: Picture, box_px: NDArray, size: int) -> HandCut:
    """The published crop of a box (4,) x1, y1, x2, y2; joints keep the camera's axes."""
    placement = place_hand(box_px)
    affine = hand_affine(placement, size)
    crop = crop_hand(picture, affine, size)
    return HandCut(crop, affine, np.eye(3), placement.center_px, placement.side_px)


def cut_hand_facing(
    picture: Picture, box_px: NDArray, size: int, *, portrait: bool = False
) -> HandCut:
    """The crop of a box (4,) x1, y1, x2, y2 for networks that were trained on rendered hands.

    Args:
        picture: (H, W, 3) uint8, a picture of Ego-Exo4D.
        box_px: The box, centres of pixels at integers.
        size: Side of the crop in pixels.
        portrait: The picture is upright; the joints' axes are those of the camera all the same.
    """
    corners = torch.from_numpy(np.asarray(box_px, dtype=np.float64)) + _HALF_PIXEL
    box = torch.cat([corners[:2], corners[2:] - corners[:2]])
    center, side = box_to_square(box[None], FACING_MARGIN)
    matrix = crop_matrix(center, side, size)[0]
    crop = warp_crop(picture, matrix, size, border="replicate")
    affine = matrix.double().numpy().copy()
    affine[:, 2] += _HALF_PIXEL * affine[:, :2].sum(axis=1) - _HALF_PIXEL
    return HandCut(
        crop,
        affine,
        facing_axes(box_px, portrait=portrait),
        (center[0].numpy() - _HALF_PIXEL).astype(np.float32),
        np.float32(side[0]),
    )


def facing_axes(box_px: NDArray, *, portrait: bool = False) -> Float:
    """(3, 3) from a camera that looks at the middle of a box to Ego-Exo4D's camera."""
    corners = torch.from_numpy(np.asarray(box_px, dtype=np.float64))
    view = EGO_EXO4D_VIEW
    camera = PerspectiveCamera.with_square_pixels(
        (view.size, view.size),
        torch.tensor(view.focal_px, dtype=torch.float64),
        torch.full((2,), view.center_px, dtype=torch.float64),
    )
    turn = ray_rotation((corners[None, :2] + corners[None, 2:]) / 2, camera)[0].numpy()
    return np.asarray(_FROM_PORTRAIT @ turn if portrait else turn, dtype=np.float64)
