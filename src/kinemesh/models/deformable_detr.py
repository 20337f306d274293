"""Deformable DETR's transformer over a pyramid of maps (Zhu et al., ICLR 2021, section 4).

The encoder's tokens are the pixels of all levels, and every attention to the image is deformable.
This is the plain form: no refinement of reference points from layer to layer. Tensor names equal
those of the official code.

Shape legend: B batch, T tokens of all levels, Q queries, D width, L levels, N decoder layers,
H and W size of a level.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.models.deformable_attention import DeformableAttention, Levels, Sizes
from kinemesh.models.detr import MultiheadAttention, TransformerLayer


class DeformableEncoderLayer(TransformerLayer):
    """Deformable self-attention of the tokens, then the feed-forward network."""

    def __init__(
        self, width: int, heads: int, levels: int, points: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__(width, feed_forward, dropout, pre_norm=False)
        self.self_attn = DeformableAttention(width, levels, heads, points)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, tokens_BTD: Tensor, position_BTD: Tensor, reference_BTL2: Tensor, levels: Levels
    ) -> Tensor:
        """Return (B,T,D); see `DeformableAttention` for the references."""

        def attend(x: Tensor) -> Tensor:
            out: Tensor = self.self_attn(x + position_BTD, reference_BTL2, x, levels)
            return out

        tokens_BTD = self.residual(tokens_BTD, self.norm1, attend)
        return self.residual(tokens_BTD, self.norm2, self.feed_forward)


class DeformableDecoderLayer(TransformerLayer):
    """Self-attention of queries, deformable attention to the image, feed-forward network.

    The norm after the self-attention is ``norm2``, that after the deformable one ``norm1``.
    """

    def __init__(
        self, width: int, heads: int, levels: int, points: int, feed_forward: int, dropout: float
    ) -> None:
        super().__init__(width, feed_forward, dropout, pre_norm=False)
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.cross_attn = DeformableAttention(width, levels, heads, points)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        target_BQD: Tensor,
        query_QD: Tensor,
        reference_BQL2: Tensor,
        memory_BTD: Tensor,
        levels: Levels,
    ) -> Tensor:
        """Return (B,Q,D); see `DeformableAttention` for references and memory."""

        def attend_queries(x: Tensor) -> Tensor:
            coded = x + query_QD
            out: Tensor = self.self_attn(coded, coded, x)
            return out

        def attend_image(x: Tensor) -> Tensor:
            out: Tensor = self.cross_attn(x + query_QD, reference_BQL2, memory_BTD, levels)
            return out

        target_BQD = self.residual(target_BQD, self.norm2, attend_queries)
        target_BQD = self.residual(target_BQD, self.norm1, attend_image)
        return self.residual(target_BQD, self.norm3, self.feed_forward)


class _Layers(nn.Module):
    """Holds layers under their official names."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)


def token_references(sizes: Sizes, device: torch.device) -> Tensor:
    """(T,2) x and y of the centres of all pixels of all levels, in [0,1] of the level."""
    centres = []
    for height, width in sizes:
        y, x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) / height,
            (torch.arange(width, device=device) + 0.5) / width,
            indexing="ij",
        )
        centres.append(torch.stack([x, y], dim=-1).flatten(0, 1))
    return torch.cat(centres)


class DeformableDetrOutput(NamedTuple):
    """What `DeformableTransformer` computes.

    Attributes:
        queries_NBQD: The queries after each decoder layer.
        reference_Q2: x and y in (0,1) of the points that the queries start from; the same for all
            images.
    """

    queries_NBQD: Tensor
    reference_Q2: Tensor


class DeformableTransformer(nn.Module):
    """Encoder and decoder over levels.

    Args:
        width: D.
        heads: Of each attention.
        encoder_layers: Layers of the encoder.
        decoder_layers: N.
        feed_forward: Hidden units of the feed-forward networks.
        dropout: Share of activations that training drops.
        levels: L.
        encoder_points: Sampled points per level and head in the encoder.
        decoder_points: The same in the decoder.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feed_forward: int = 2048,
        dropout: float = 0.0,
        levels: int = 4,
        encoder_points: int = 4,
        decoder_points: int = 4,
    ) -> None:
        super().__init__()
        self.encoder = _Layers(
            [
                DeformableEncoderLayer(width, heads, levels, encoder_points, feed_forward, dropout)
                for _ in range(encoder_layers)
            ]
        )
        self.decoder = _Layers(
            [
                DeformableDecoderLayer(width, heads, levels, decoder_points, feed_forward, dropout)
                for _ in range(decoder_layers)
            ]
        )
        self.level_embed = nn.Parameter(torch.empty(levels, width))
        self.reference_points = nn.Linear(width, 2)
        self._initialise()

    def _initialise(self) -> None:
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.initialise()
        nn.init.zeros_(self.reference_points.bias)
        nn.init.normal_(self.level_embed)

    def forward(
        self, maps: Sequence[Tensor], positions: Sequence[Tensor], query_Q2D: Tensor
    ) -> DeformableDetrOutput:
        """Encode the levels and decode the queries.

        Args:
            maps: (B,D,H,W) of each level.
            positions: Position code of each level, without the code of the level itself; a batch of
                1 broadcasts.
            query_Q2D: (Q,2D) the queries' codes and behind them their initial targets.
        """
        levels = Levels.of([(level.shape[-2], level.shape[-1]) for level in maps], maps[0])
        tokens_BTD = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        position_BTD = torch.cat(
            [
                position.flatten(2).transpose(1, 2) + level_D
                for position, level_D in zip(positions, self.level_embed, strict=True)
            ],
            dim=1,
        )
        centres_T2 = token_references(levels.sizes, tokens_BTD.device).to(tokens_BTD.dtype)
        for layer in self.encoder.layers:
            tokens_BTD = layer(tokens_BTD, position_BTD, centres_T2[None, :, None], levels)
        query_QD, target_QD = query_Q2D.chunk(2, dim=-1)
        reference_Q2 = self.reference_points(query_QD).sigmoid()
        target = target_QD.expand(len(tokens_BTD), -1, -1)
        targets = []
        for layer in self.decoder.layers:
            target = layer(target, query_QD, reference_Q2[None, :, None], tokens_BTD, levels)
            targets.append(target)
        return DeformableDetrOutput(torch.stack(targets), reference_Q2)
