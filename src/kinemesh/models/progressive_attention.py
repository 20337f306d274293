"""PointHMR's transformer: four encoders whose attention narrows on the mesh.

Kim et al., "Sampling is Matter: Point-guided 3D Human Mesh Reconstruction" (CVPR 2023), section
3.3. Two encoders work at full width, a linear map shrinks the tokens, two more follow. Blocked
pairs get no weight at all: their scores are minus infinity before the softmax. Layers normalise
first. The first encoder of either width has no norm at its end; the second has.

Module names equal those of the official code. Shape legend: B batch, T tokens, D width, A heads,
K = D / A channels of a head, I width inside the feed-forward part.
"""

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError

ActivationName = Literal["relu", "gelu"]


class MaskedSelfAttention(nn.Module):
    """Self-attention with a mask for pairs of tokens.

    Tensors and initial values are those of `torch.nn.MultiheadAttention`.

    Args:
        width: D.
        heads: A.
        dropout: Share of attention weights that training drops.

    Raises:
        InputError: The heads do not divide the width.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"heads: expected a divisor of the width {width}, found {heads}.")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x_BTD: Tensor, allowed_TT: Tensor) -> Tensor:
        """Return (B,T,D); ``allowed_TT`` is True where the row may attend to the column."""
        query, key, value = self._split(x_BTD)
        mixed_BATK = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=allowed_TT,
            dropout_p=self.dropout if self.training else 0.0,
        )
        out_BTD: Tensor = self.out_proj(mixed_BATK.transpose(1, 2).flatten(2))
        return out_BTD

    def probabilities(self, x_BTD: Tensor, allowed_TT: Tensor) -> Tensor:
        """(B,A,T,T) how much each token (row) attends to each other, without dropout."""
        query, key, _ = self._split(x_BTD)
        scores_BATT = torch.matmul(query, key.mT) * query.shape[-1] ** -0.5
        scores_BATT = scores_BATT.masked_fill(~allowed_TT, float("-inf"))
        return torch.softmax(scores_BATT, dim=-1)

    def _split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, _ = x_BTD.shape
        packed = F.linear(x_BTD, self.in_proj_weight, self.in_proj_bias)
        query, key, value = packed.view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class MaskedLayer(nn.Module):
    """Attention and a feed-forward network, each on the normalised tokens and added to them.

    Args:
        width: D.
        heads: A.
        feed_forward: I.
        dropout: Of attention weights, of the hidden units and of both branches.
        activation: Between the two linear maps.
    """

    def __init__(
        self, width: int, heads: int, feed_forward: int, dropout: float, activation: ActivationName
    ) -> None:
        super().__init__()
        self.self_attn = MaskedSelfAttention(width, heads, dropout)
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout, self.activation = dropout, activation

    def forward(self, tokens_BTD: Tensor, allowed_TT: Tensor) -> Tensor:
        """Return (B,T,D)."""
        branch = self.self_attn(self.norm1(tokens_BTD), allowed_TT)
        tokens_BTD = tokens_BTD + self._drop(branch)
        activation = F.relu if self.activation == "relu" else F.gelu
        hidden_BTI = activation(self.linear1(self.norm2(tokens_BTD)))
        return tokens_BTD + self._drop(self.linear2(self._drop(hidden_BTI)))

    def probabilities(self, tokens_BTD: Tensor, allowed_TT: Tensor) -> Tensor:
        """(B,A,T,T) attention of this layer for the tokens that come in."""
        return self.self_attn.probabilities(self.norm1(tokens_BTD), allowed_TT)

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class MaskedEncoder(nn.Module):
    """Layers that begin with the same weights and share a mask.

    Args:
        layer: The weights that every layer begins with, as in the official code.
        layers: How many.
        final_norm: Width of a norm after the last layer, or None.
    """

    def __init__(self, layer: MaskedLayer, layers: int, final_norm: int | None = None) -> None:
        super().__init__()
        self.norm = nn.Identity() if final_norm is None else nn.LayerNorm(final_norm)
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(layers))

    def forward(
        self, tokens_BTD: Tensor, allowed_TT: Tensor, attention: list[Tensor] | None = None
    ) -> Tensor:
        """Return (B,T,D), and append the attention (B,A,T,T) of every layer to a list."""
        for layer in self.layers:
            if attention is not None:
                assert isinstance(layer, MaskedLayer)
                attention.append(layer.probabilities(tokens_BTD, allowed_TT))
            tokens_BTD = layer(tokens_BTD, allowed_TT)
        normalised_BTD: Tensor = self.norm(tokens_BTD)
        return normalised_BTD


class ProgressiveTransformer(nn.Module):
    """The four encoders, and what reads positions and the camera from their tokens.

    Args:
        widths: D of the first and of the last two encoders.
        heads: A of all.
        feed_forward: I of the first and of the last two encoders.
        layers: Layers of each encoder.
        dropout: See `MaskedLayer`.
        activation: See `MaskedLayer`.
        masks_TT: One (T,T) bool for each encoder, see `hop_masks.hop_mask`.
    """

    masks: Tensor

    def __init__(
        self,
        widths: tuple[int, int],
        heads: int,
        feed_forward: tuple[int, int],
        layers: int,
        dropout: float,
        activation: ActivationName,
        masks_TT: Sequence[Tensor],
    ) -> None:
        super().__init__()
        wide, narrow = (
            MaskedLayer(width, heads, inner, dropout, activation)
            for width, inner in zip(widths, feed_forward, strict=True)
        )
        self.transformer_1 = MaskedEncoder(wide, layers)
        self.transformer_2 = MaskedEncoder(wide, layers, final_norm=widths[0])
        self.transformer_3 = MaskedEncoder(narrow, layers)
        self.transformer_4 = MaskedEncoder(narrow, layers, final_norm=widths[1])
        self.dim_reduce = nn.Linear(*widths)
        self.xyz_regressor = nn.Linear(widths[1], 3)
        self.cam_predictor = nn.Linear(widths[1], 3)
        # The masks come from the mesh, not from training: they stay out of the state dict, and
        # travel to the device with the network instead of at every step.
        self.register_buffer("masks", torch.stack(list(masks_TT)), persistent=False)

    def forward(
        self, tokens_BTD: Tensor, points: slice, attention: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read the camera from the first token and a place from each of some others.

        Args:
            tokens_BTD: Tokens, the camera's first.
            points: Which tokens have a place.
            attention: If given, the attention of every layer is appended, first to last.

        Returns:
            Camera (B,3), and places (B,points,3) in metres.
        """
        first, second, third, fourth = self.masks.unbind(0)
        tokens_BTD = self.transformer_1(tokens_BTD, first, attention)
        tokens_BTD = self.transformer_2(tokens_BTD, second, attention)
        tokens_BTD = self.dim_reduce(tokens_BTD)
        tokens_BTD = self.transformer_3(tokens_BTD, third, attention)
        tokens_BTD = self.transformer_4(tokens_BTD, fourth, attention)
        return self.cam_predictor(tokens_BTD[:, 0]), self.xyz_regressor(tokens_BTD[:, points])
