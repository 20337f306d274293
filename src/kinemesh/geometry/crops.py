"""Square crops of an image by one affine map.

Pixel coordinates are continuous: x to the right, y down, an image of W x H pixels spans
[0, W] x [0, H], and the centre of the first pixel lies at (0.5, 0.5). OpenCV instead puts integer
coordinates on pixel centres; `to_cv2` moves a matrix over to that convention, and `warp_crop` does
so by itself. "Signed" crop coordinates run from -1 (left or top) to +1 (right or bottom border).

Matrices are (B, 2, 3) float32: ``q = M[:, :, :2] p + M[:, :, 2]``.
"""

import math
from typing import Literal, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import InputError

Border = Literal["constant", "replicate"]
_CV2_BORDER = {"constant": cv2.BORDER_CONSTANT, "replicate": cv2.BORDER_REPLICATE}
_SHRINK_LIMIT = 2.0  # bilinear sampling reads 2 x 2 pixels, so it skips pixels beyond this


def crop_matrix(
    center_px: Tensor, side_px: Tensor, resolution: int, rotation_rad: Tensor | float = 0.0
) -> Tensor:
    """Affine map from image pixels to the pixels of a square crop.

    Args:
        center_px: (B, 2) centre of the crop in the image.
        side_px: (B,) side of the square in image pixels, positive.
        resolution: Side of the crop in its own pixels.
        rotation_rad: () or (B,) turn of the picture's content about the crop's centre; positive
            turns clockwise as seen on the screen, the negative of METRO's augmentation angle.

    Returns:
        (B, 2, 3) matrix that sends ``center_px`` to the middle of the crop.

    Raises:
        InputError: Wrong shapes, a side that is not positive, or a value that is not finite.
    """
    if center_px.ndim != 2 or center_px.shape[1] != 2 or side_px.shape != center_px.shape[:1]:
        raise InputError(
            "center_px, side_px: expected shapes (B, 2) and (B,), "
            f"found {tuple(center_px.shape)} and {tuple(side_px.shape)}."
        )
    if not bool(torch.isfinite(center_px).all() and torch.isfinite(side_px).all()):
        raise InputError("center_px, side_px: expected finite numbers. Drop boxes with NaN or inf.")
    if resolution < 1 or not bool((side_px > 0).all()):
        raise InputError(
            "side_px, resolution: expected positive numbers, found a smallest side of "
            f"{float(side_px.min())} and resolution {resolution}. Drop empty boxes."
        )
    angle = torch.as_tensor(rotation_rad, dtype=side_px.dtype, device=side_px.device)
    scale = resolution / side_px
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    linear = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    offset = resolution / 2 - torch.einsum("bij,bj->bi", linear, center_px)
    return torch.cat((linear, offset[..., None]), dim=-1)


def box_to_square(boxes_px: Tensor, margin: float = 1.2) -> tuple[Tensor, Tensor]:
    """Square around boxes, for `crop_matrix`.

    Args:
        boxes_px: (B, 4) as x, y, width, height in image pixels.
        margin: Side of the square over the longer side of the box.

    Returns:
        (B, 2) centres and (B,) sides in image pixels.

    Raises:
        InputError: The shape is not (B, 4).
    """
    if boxes_px.ndim != 2 or boxes_px.shape[1] != 4:
        raise InputError(f"boxes_px: expected shape (B, 4), found {tuple(boxes_px.shape)}.")
    corner, size = boxes_px[:, :2], boxes_px[:, 2:]
    return corner + size / 2, margin * size.amax(dim=1)


def invert_affine(matrix: Tensor) -> Tensor:
    """Inverse of affine maps, (..., 2, 3) to (..., 2, 3), computed in float64.

    Raises:
        InputError: A matrix is singular or does not have shape (..., 2, 3).
    """
    _check_matrix(matrix)
    exact = matrix.double()
    a, b, c, d = exact[..., 0, 0], exact[..., 0, 1], exact[..., 1, 0], exact[..., 1, 1]
    determinant = a * d - b * c
    if not bool((determinant != 0).all()):
        raise InputError(
            "matrix: a singular affine map has no inverse. Check the side of the crop."
        )
    adjugate = torch.stack((torch.stack((d, -b), -1), torch.stack((-c, a), -1)), -2)
    linear = adjugate / determinant[..., None, None]
    offset = -(linear @ exact[..., 2:])
    return torch.cat((linear, offset), dim=-1).to(matrix.dtype)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply affine maps (..., 2, 3) to points (..., N, 2)."""
    _check_matrix(matrix)
    return points @ matrix[..., :2].transpose(-1, -2) + matrix[..., None, :, 2]


def to_signed(points_px: Tensor, resolution: int) -> Tensor:
    """Crop pixels [0, resolution] to signed crop coordinates [-1, 1]."""
    return points_px * (2 / resolution) - 1


def from_signed(points: Tensor, resolution: int) -> Tensor:
    """Signed crop coordinates [-1, 1] to crop pixels [0, resolution]."""
    return (points + 1) * (resolution / 2)


def to_cv2(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same map (2, 3) for code that puts integer coordinates on pixel centres.

    With A the linear part, both ends shift by half a pixel: t' = t + A (0.5, 0.5) - (0.5, 0.5).
    """
    shifted = np.array(matrix, dtype=np.float64)
    shifted[:, 2] += shifted[:, :2].sum(axis=1) * 0.5 - 0.5
    return shifted


def warp_crop(
    image: NDArray,
    matrix: Tensor | NDArray,
    resolution: int,
    *,
    border: Border = "constant",
    border_value: float = 0.0,
) -> NDArray:
    """Cut one crop out of an image with bilinear sampling.

    Where the crop shrinks the picture by more than 2, the part of the image that it covers is first
    reduced by area averaging, so that fine texture does not alias.

    Args:
        image: (H, W) or (H, W, C) with C <= 4; uint8, uint16, float32 or float64.
        matrix: (2, 3) from image to crop in continuous pixel coordinates, from `crop_matrix`.
        resolution: Side of the crop in pixels.
        border: What lies outside of the image: a constant, or its outermost pixels.
        border_value: The constant, for every channel.

    Returns:
        (resolution, resolution[, C]) of the image's type.

    Raises:
        InputError: The image is empty, or the matrix is not an invertible (2, 3).
    """
    if image.ndim not in {2, 3} or image.size == 0:
        raise InputError(f"image: expected (H, W) or (H, W, C) pixels, found shape {image.shape}.")
    forward = torch.as_tensor(np.asarray(matrix, dtype=np.float64))
    backward = invert_affine(forward)
    part, forward_np = _covered_part(image, forward.numpy(), backward, resolution)
    part, forward_np = _reduce(part, forward_np)
    return cast(
        NDArray,
        cv2.warpAffine(
            part,
            to_cv2(forward_np),
            (resolution, resolution),
            flags=cv2.INTER_LINEAR,
            borderMode=_CV2_BORDER[border],
            borderValue=(border_value,) * 4,
        ),
    ).reshape(resolution, resolution, *image.shape[2:])


def _covered_part(
    image: NDArray, forward: NDArray, backward: Tensor, resolution: int
) -> tuple[NDArray, NDArray]:
    """Slice of the image under the crop with a margin, and the map from that slice."""
    height, width = image.shape[:2]
    side = float(resolution)
    corners = torch.tensor([[0, 0], [side, 0], [0, side], [side, side]], dtype=torch.float64)
    covered = transform_points(backward, corners).numpy()
    margin = 2 + 2 * math.ceil(1 / _shrink_scale(forward))
    low = np.floor(covered.min(axis=0)) - margin
    high = np.ceil(covered.max(axis=0)) + margin
    # a crop beside the image still needs one row or column to repeat
    x0, y0 = (int(np.clip(v, 0, n - 1)) for v, n in zip(low, (width, height), strict=True))
    x1, y1 = (
        int(np.clip(v, first + 1, n))
        for v, first, n in zip(high, (x0, y0), (width, height), strict=True)
    )
    moved = forward.copy()
    moved[:, 2] += forward[:, :2] @ np.array([x0, y0], dtype=np.float64)
    return np.ascontiguousarray(image[y0:y1, x0:x1]), moved


def _reduce(part: NDArray, forward: NDArray) -> tuple[NDArray, NDArray]:
    """Shrink by area averaging until bilinear sampling suffices, and the map from the result."""
    shrink = 1 / _shrink_scale(forward)
    if shrink <= _SHRINK_LIMIT:
        return part, forward
    factor = math.floor(shrink * (1 + 1e-6))  # 2.9999999 is 3 in a float32 matrix
    height, width = part.shape[:2]
    small_size = (max(1, round(width / factor)), max(1, round(height / factor)))
    small = cv2.resize(part, small_size, interpolation=cv2.INTER_AREA)
    moved = forward.copy()
    moved[:, 0] *= width / small_size[0]
    moved[:, 1] *= height / small_size[1]
    return small, moved


def _shrink_scale(forward: NDArray) -> float:
    """Crop pixels per image pixel."""
    return math.sqrt(abs(float(np.linalg.det(forward[:, :2]))))


def _check_matrix(matrix: Tensor) -> None:
    if matrix.ndim < 2 or matrix.shape[-2:] != (2, 3):
        raise InputError(f"matrix: expected shape (..., 2, 3), found {tuple(matrix.shape)}.")
