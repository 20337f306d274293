"""Conversion between linear light and the sRGB encoding of image files (IEC 61966-2-1)."""

import torch
from torch import Tensor


def srgb_to_linear(encoded: Tensor) -> Tensor:
    """Linear light in [0, 1] of sRGB values in [0, 1], any shape."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Values in [0, 1], sRGB encoded, of linear light, any shape; light above 1 is clipped."""
    linear = linear.clamp(0, 1)
    return torch.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * linear.clamp(min=1e-9) ** (1 / 2.4) - 0.055
    )
