"""Rotations as matrices, axis-angle vectors, unit quaternions and 6D vectors.

All functions take any leading dimensions, act on column vectors (``q = R p``) and keep the type.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SMALL_ANGLE_SQUARED = 1e-4  # below, Taylor series are exact to float32 and safe to differentiate


def skew(vector: Tensor) -> Tensor:
    """(..., 3) to the (..., 3, 3) matrix [v] with ``[v] p = v x p``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    flat = torch.stack((zero, -z, y, z, zero, -x, -y, x, zero), dim=-1)
    return flat.reshape(*vector.shape, 3)


def axis_angle_to_matrix(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis times angle in radians to (..., 3, 3), by Rodrigues' formula.

    Differentiable everywhere, including the zero rotation.
    """
    squared = axis_angle.square().sum(dim=-1)
    small = squared < _SMALL_ANGLE_SQUARED
    angle = torch.where(small, 1.0, squared).sqrt()
    sine = torch.where(small, 1 - squared / 6 * (1 - squared / 20), torch.sin(angle) / angle)
    cosine = torch.where(
        small, 0.5 - squared / 24 * (1 - squared / 30), (1 - torch.cos(angle)) / angle.square()
    )
    v = skew(axis_angle)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return eye + sine[..., None, None] * v + cosine[..., None, None] * (v @ v)


def matrix_to_quaternion(matrix: Tensor) -> Tensor:
    """(..., 3, 3) rotation to (..., 4) unit quaternion (w, x, y, z) with w >= 0.

    Of the four equivalent formulas the one with the largest divisor is taken (Shepperd 1978), so
    no angle loses digits.
    """
    m = matrix
    xx, yy, zz = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    wx, wy, wz = (m[..., j, i] - m[..., i, j] for i, j in ((1, 2), (2, 0), (0, 1)))
    # row k is 4 q_k (w, x, y, z)
    candidates = torch.stack(
        (
            torch.stack((1 + xx + yy + zz, wx, wy, wz), dim=-1),
            torch.stack((wx, 1 + xx - yy - zz, xy, xz), dim=-1),
            torch.stack((wy, xy, 1 - xx + yy - zz, yz), dim=-1),
            torch.stack((wz, xz, yz, 1 - xx - yy + zz), dim=-1),
        ),
        dim=-2,
    )
    best = candidates.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    picked = candidates.take_along_dim(best[..., None, None], dim=-2)[..., 0, :]
    unit = normalize(picked, dim=-1)
    return torch.where(unit[..., :1] < 0, -unit, unit)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """(..., 4) quaternion (w, x, y, z), normalised here, to (..., 3, 3)."""
    unit = normalize(quaternion, dim=-1)
    w, v = unit[..., :1, None], skew(unit[..., 1:])
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return eye + 2 * w * v + 2 * (v @ v)


def matrix_to_axis_angle(matrix: Tensor) -> Tensor:
    """(..., 3, 3) rotation to (..., 3) axis times angle, angle in [0, pi] radians.

    At exactly pi, axis and negated axis are the same rotation; either may be returned.
    """
    quaternion = matrix_to_quaternion(matrix)
    w, v = quaternion[..., 0], quaternion[..., 1:]
    squared = v.square().sum(dim=-1)
    small = squared < _SMALL_ANGLE_SQUARED
    sine = torch.where(small, 1.0, squared).sqrt()
    # angle / sin(angle / 2); with sine s: 2 asin(s) / s = 2 + s^2 / 3 + 3 s^4 / 20
    factor = torch.where(
        small, 2 + squared / 3 + 0.15 * squared.square(), 2 * torch.atan2(sine, w) / sine
    )
    return factor[..., None] * v


def matrix_to_rotation_6d(matrix: Tensor) -> Tensor:
    """(..., 3, 3) to (..., 6): the first column, then the second (Zhou et al. 2019)."""
    return matrix[..., :2].transpose(-1, -2).flatten(-2)


def rotation_6d_to_matrix(vector: Tensor) -> Tensor:
    """(..., 6) to (..., 3, 3): Gram-Schmidt on two columns, the third is their cross product.

    Zhou et al. 2019, section B. Any vector whose halves are neither zero nor parallel is valid.
    """
    first, second = vector[..., :3], vector[..., 3:]
    x = normalize(first, dim=-1)
    y = normalize(second - (x * second).sum(dim=-1, keepdim=True) * x, dim=-1)
    return torch.stack((x, y, torch.linalg.cross(x, y)), dim=-1)


def shortest_rotation(source: Tensor, target: Tensor) -> Tensor:
    """Rotations (..., 3, 3) by the least angle that takes unit ``source`` to unit ``target``.

    R = I + [v] + [v]^2 / (1 + c) with v = source x target and c their cosine (Rodrigues). Opposite
    vectors, which leave the axis open, give a finite matrix that is not a rotation.
    """
    v = torch.linalg.cross(source, target)
    cosine = (source * target).sum(-1)
    cross = skew(v)
    identity = torch.eye(3, dtype=v.dtype, device=v.device)
    return identity + cross + cross @ cross / (1 + cosine).clamp(min=1e-2)[..., None, None]
