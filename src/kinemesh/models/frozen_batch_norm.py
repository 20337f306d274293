"""Batch norm whose statistics and affine map never change, as DETR uses it in a residual network.

Carion et al., ECCV 2020, section 4: the backbone's batch norm keeps ImageNet's statistics. All four
vectors are buffers, so an optimiser does not see them and training mode changes nothing.

Shape legend: B batch, C channels, H and W size of a map.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.models.resnet import ResNetBackbone


class FrozenBatchNorm2d(nn.Module):
    """``(x - running_mean) / sqrt(running_var + eps) * weight + bias`` for each channel.

    Args:
        channels: C.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        return F.batch_norm(
            x_BCHW, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # ImageNet's files come from a trained norm, which counts its batches.
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


class FrozenNormResNet(ResNetBackbone):
    """A residual network as DETR and PRTR train it.

    All batch norms are frozen, and so are the convolutions of the stem and of ``layer1``.

    Args:
        depth: 50, 101 or 152 layers.
        width: Channels of the stem; 64 when published.
    """

    def __init__(self, depth: int = 50, *, width: int = 64) -> None:
        super().__init__(depth, width=width, norm=FrozenBatchNorm2d)
        self.conv1.requires_grad_(False)
        self.layer1.requires_grad_(False)

    @property
    def level_channels(self) -> tuple[int, int, int, int]:
        """Channels of the maps of layers 1 to 4, as `features` returns them."""
        last = self.map_channels
        return last // 8, last // 4, last // 2, last
