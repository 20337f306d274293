"""Graph convolution on mesh vertices (Kipf and Welling, ICLR 2017) as Mesh Graphormer uses it.

Mesh Graphormer (Lin, Wang and Liu, ICCV 2021, section 3.2) puts one residual block of a graph
convolution between the attention and the feed-forward part of a transformer layer.

Shape legend: B batch, N graph nodes, C channels in, H = C / 2 hidden channels.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError

LAYER_NORM_EPS = 1e-12  # BERT's value; 1e-5 changes outputs by up to 1e-4


@dataclass(frozen=True, eq=False)
class GraphTokens:
    """Which tokens of a sequence are graph nodes, and how they are joined.

    Attributes:
        start: Index of the first node in the token sequence.
        adjacency: (N,N) float32; row i holds the weights with which node i gathers its neighbours
            and itself. Mesh Graphormer uses ``D^-1 (A + I)``, whose rows sum to 1.
    """

    start: int
    adjacency: Tensor

    def __post_init__(self) -> None:
        """Refuse anything but a square matrix.

        Raises:
            InputError: ``adjacency`` is not square or ``start`` is negative.
        """
        shape = tuple(self.adjacency.shape)
        if len(shape) != 2 or shape[0] != shape[1]:
            raise InputError(f"adjacency: expected a square matrix (N,N), found shape {shape}.")
        if self.start < 0:
            raise InputError(f"start: expected a token index of at least 0, found {self.start}.")

    @property
    def stop(self) -> int:
        """Index after the last node in the token sequence."""
        return self.start + self.adjacency.shape[0]


class GraphLinear(nn.Module):
    """The same linear map for each node; ``W`` is (out, in) and ``b`` (out,)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        bound = 1.0 / (in_channels * out_channels)
        self.W = nn.Parameter(torch.empty(out_channels, in_channels).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Return (B,N,out)."""
        return F.linear(x_BNC, self.W, self.b)


class GraphConvolution(nn.Module):
    """``A (x W) + b`` with a constant adjacency A; ``weight`` is (in, out).

    The initial range is ``6 / sqrt(in + out)``: in the original the root does not cover the 6, so
    it is wider than Glorot's.
    """

    adjacency: Tensor

    def __init__(self, in_channels: int, out_channels: int, adjacency: Tensor) -> None:
        super().__init__()
        bound = 6.0 / math.sqrt(in_channels + out_channels)
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound))
        # The mesh, not the training, decides the adjacency: it stays out of the state dict.
        self.register_buffer("adjacency", adjacency.clone().float(), persistent=False)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Return (B,N,out)."""
        out_BNC = torch.matmul(x_BNC, self.weight)
        return torch.baddbmm(self.bias, self.adjacency.expand(len(out_BNC), -1, -1), out_BNC)


class GraphResidualBlock(nn.Module):
    """``x + lin2(relu(norm2(conv(relu(norm1(lin1(relu(pre_norm(x)))))))))``.

    Args:
        channels: C, even; the convolution works on C / 2 channels.
        adjacency: (N,N), see `GraphTokens`.
    """

    def __init__(self, channels: int, adjacency: Tensor) -> None:
        super().__init__()
        hidden = channels // 2
        self.pre_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.lin1 = GraphLinear(channels, hidden)
        self.norm1 = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.conv = GraphConvolution(hidden, hidden, adjacency)
        self.norm2 = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)
        self.lin2 = GraphLinear(hidden, channels)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Return (B,N,C)."""
        y_BNH = self.lin1(F.relu(self.pre_norm(x_BNC)))
        y_BNH = self.conv(F.relu(self.norm1(y_BNH)))
        y_BNC: Tensor = self.lin2(F.relu(self.norm2(y_BNH)))
        return x_BNC + y_BNC
