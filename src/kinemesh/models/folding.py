"""Batch norm folded into the convolution before it.

In evaluation mode batch norm is a scale and a shift for each channel (Ioffe and Szegedy, ICML 2015,
section 3.1), so a convolution can carry both:

    gamma (W x + b - mean) / sqrt(var + eps) + beta = (s W) x + (s (b - mean) + beta)

with ``s = gamma / sqrt(var + eps)``.
"""

import torch
from torch import Tensor, nn


def fold_batch_norm(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what ``norm(conv(x))`` does in evaluation.

    The products are taken in float64 and rounded once.

    Args:
        conv: Any 2-d convolution.
        norm: The batch norm of its output, or a frozen one with the same attributes; None if there
            is none.

    Returns:
        Weight (out,in/groups,k,k) and bias (out,), detached, in the dtype of ``conv.weight``.
    """
    weight = conv.weight.detach()
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight, bias
    mean, variance, gamma, beta = (
        getattr(norm, name).detach().double()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    scale = gamma * (variance + norm.eps).rsqrt()
    shift = scale * (bias.double() - mean) + beta
    folded = weight.double() * scale[:, None, None, None]
    return folded.to(weight.dtype), shift.to(weight.dtype)
