"""Pooling attention and its block (POTTER: Zheng et al., CVPR 2023, section 3).

Two branches replace attention's products of all tokens by products of pooled ones. The patch-wise
branch pools the map along its width and its height; the embed-wise branch does the same inside the
vector of each position, laid out as a matrix of 32 rows. Depth-wise convolutions embed both. What
the paper calls LayerNorm is a group norm of one group: statistics over channels and positions.

Shape legend: B batch, C channels, H and W size of a map, N = H W positions, R = 32 rows and
D = C / 32 columns of a position's vector, K = 4 pooled cells.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError

_ROWS = 32
_POOLED = 4
_WEIGHT_STD = 0.02
_LAYER_SCALE = 1e-5


def global_norm(channels: int) -> nn.GroupNorm:
    """The norm of these networks: one group, so one mean and variance a sample."""
    return nn.GroupNorm(1, channels)


def draw_weight(layer: nn.Conv2d | nn.Linear) -> None:
    """Draw a weight as the published trunks do; the bias keeps its value."""
    nn.init.trunc_normal_(layer.weight, std=_WEIGHT_STD)


class DropPath(nn.Module):
    """Leaves a residual branch out for some samples in training (stochastic depth).

    Args:
        share: Of the samples; the others are divided by ``1 - share``.

    Raises:
        InputError: ``share`` is not in [0, 1).
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise InputError(f"drop_path: expected a share in [0, 1), found {share}.")
        self.share = share

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        if not self.training or self.share == 0:
            return x_BCHW
        kept = torch.empty(len(x_BCHW), 1, 1, 1, device=x_BCHW.device, dtype=x_BCHW.dtype)
        return x_BCHW * kept.bernoulli_(1 - self.share).div_(1 - self.share)


def pooled(x: Tensor, axis: int) -> Tensor:
    """Adaptive average pooling of one axis to 4 cells.

    Bins overlap where 4 does not divide the length and repeat where the axis is shorter. PyTorch's
    own pooling takes many times as long on the axes inside a position's vector.
    """
    length = x.shape[axis]
    if length % _POOLED == 0:
        return x.reshape(*x.shape[:axis], _POOLED, -1, *x.shape[axis + 1 :]).mean(axis + 1)
    starts = [cell * length // _POOLED for cell in range(_POOLED)]
    stops = [-(-(cell + 1) * length // _POOLED) for cell in range(_POOLED)]
    bins = [
        x.narrow(axis, start, stop - start).mean(axis)
        for start, stop in zip(starts, stops, strict=True)
    ]
    return torch.stack(bins, dim=axis)


def patchwise_attention(x_BCHW: Tensor) -> Tensor:
    """Product of the map pooled along its width with the map pooled along its height.

    There is neither softmax nor scale.

    Returns:
        (B,C,H,W).
    """
    return pooled(x_BCHW, 3) @ pooled(x_BCHW, 2)


def embedwise_attention(x_BCHW: Tensor) -> Tensor:
    """The same inside the vector of each position, as a matrix of 32 rows and C / 32 columns.

    Returns:
        (B,C,H,W).
    """
    batch, channels, height, width = x_BCHW.shape
    columns = channels // _ROWS
    x_BRDN = x_BCHW.reshape(batch, _ROWS, columns, height * width)
    left_BRKN, right_BKDN = x_BRDN, pooled(x_BRDN, 1)
    if _POOLED % columns:
        left_BRKN = pooled(x_BRDN, 2)
    else:  # cells are columns, some of them repeated: what they meet is added first
        right_BKDN = right_BKDN.reshape(batch, columns, -1, columns, height * width).sum(2)
    # A few products of whole maps: one small matrix product a position takes longer.
    terms = zip(left_BRKN.unsqueeze(3).unbind(2), right_BKDN.unsqueeze(1).unbind(2), strict=True)
    first, *others = terms
    out_BRDN = first[0] * first[1]
    for left, right in others:
        out_BRDN = torch.addcmul(out_BRDN, left, right)
    return out_BRDN.reshape(x_BCHW.shape)


class PoolAttn(nn.Module):
    """Pooling attention on a map that is already normalised.

    Args:
        channels: C, a multiple of 32.

    Raises:
        InputError: It is not.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1 or channels % _ROWS:
            raise InputError(f"widths: expected multiples of {_ROWS} channels, found {channels}.")
        self.norm = global_norm(channels)
        self.proj0, self.proj1, self.proj2 = (
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels) for _ in range(3)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        patches = self.proj0(patchwise_attention(x_BCHW))
        embeds = self.proj1(embedwise_attention(x_BCHW))
        out: Tensor = self.proj2(self.norm(patches + embeds))
        return out


class MLP(nn.Module):
    """Two layers at each position, with dropout after each."""

    def __init__(self, channels: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.drop = nn.Dropout(dropout)
        for layer in (self.fc1, self.fc2):
            draw_weight(layer)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        out: Tensor = self.drop(self.fc2(self.drop(F.gelu(self.fc1(x_BCHW)))))
        return out


class PoolFormerBlock(nn.Module):
    """Pooling attention and a feed-forward network, each normalised first and scaled by channel.

    Args:
        channels: C, a multiple of 32.
        mlp_ratio: Hidden units of the feed-forward network for one channel.
        dropout: Share of its activations that training drops.
        drop_path: Share of samples for which training leaves a branch out.
    """

    def __init__(
        self, channels: int, mlp_ratio: float = 4, dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = global_norm(channels)
        self.token_mixer = PoolAttn(channels)
        self.norm2 = global_norm(channels)
        self.mlp = MLP(channels, int(channels * mlp_ratio), dropout)
        self.drop_path = DropPath(drop_path)
        self.layer_scale_1, self.layer_scale_2 = (
            nn.Parameter(torch.full((channels,), _LAYER_SCALE)) for _ in range(2)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        scale_1, scale_2 = (s.view(-1, 1, 1) for s in (self.layer_scale_1, self.layer_scale_2))
        attended = self.drop_path(self.token_mixer(self.norm1(x_BCHW)))
        mixed = torch.addcmul(x_BCHW, scale_1, attended)
        return torch.addcmul(mixed, scale_2, self.drop_path(self.mlp(self.norm2(mixed))))
