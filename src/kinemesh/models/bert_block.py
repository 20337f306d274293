"""The transformer block of METRO (Lin, Wang and Liu, CVPR 2021, section 3.2).

A block embeds its tokens to a hidden width, adds learned positions, runs post-norm BERT layers
(Devlin et al., 2019) and projects to an output width, with a linear skip from the block's input.
Mesh Graphormer adds a graph convolution to the layers, see `graph_convolution`.

Shape legend: B batch, T tokens, D block input width, H hidden width, O block output width,
A attention heads, K = H / A head width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.graph_convolution import LAYER_NORM_EPS, GraphResidualBlock, GraphTokens
from kinemesh.models.query_tokens import QueryTokens, TokenLinear

_INITIAL_STD = 0.02


class BlockOutput(NamedTuple):
    """What a block returns.

    Attributes:
        tokens: (B,T,O).
        hidden: Empty, or the embedding and the output of each layer, layers + 1 times (B,T,H).
        attention: Empty, or the probabilities of each layer, (B,A,T,T), rows are queries. In
            training mode they are those after dropout, as they were used.
    """

    tokens: Tensor
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all tokens.

    ``qkv`` makes queries, keys and values in one product; its rows are in this order.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = dropout

    def forward(self, x_BTH: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        """Return the context (B,T,H), and the probabilities (B,A,T,T) if asked for."""
        heads_BT3AK = self.qkv(x_BTH).unflatten(-1, (3, self.heads, -1))
        query_BATK, key_BATK, value_BATK = heads_BT3AK.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        probability_BATT = None
        if return_attention:
            scores_BATT = query_BATK @ key_BATK.transpose(-1, -2) / math.sqrt(query_BATK.shape[-1])
            probability_BATT = F.dropout(scores_BATT.softmax(dim=-1), dropout)
            context_BATK = probability_BATT @ value_BATK
        else:
            context_BATK = F.scaled_dot_product_attention(
                query_BATK, key_BATK, value_BATK, dropout_p=dropout
            )
        return context_BATK.transpose(1, 2).flatten(2), probability_BATT


class AddNorm(nn.Module):
    """``LayerNorm(residual + dropout(dense(x)))``, the end of both halves of a layer."""

    def __init__(self, in_width: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(in_width, width)
        self.dropout = nn.Dropout(dropout)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, residual_BTH: Tensor) -> Tensor:
        """Return (B,T,H)."""
        out_BTH: Tensor = self.LayerNorm(residual_BTH + self.dropout(self.dense(x)))
        return out_BTH


class Attention(nn.Module):
    """Self-attention, its output projection, the residual and the norm."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self = SelfAttention(width, heads, dropout)
        self.output = AddNorm(width, width, dropout)

    def forward(self, x_BTH: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        """Return (B,T,H) and, if asked for, the probabilities (B,A,T,T)."""
        context_BTH, probability_BATT = self.self(x_BTH, return_attention)
        return self.output(context_BTH, x_BTH), probability_BATT


class Intermediate(nn.Module):
    """First half of the feed-forward part: linear and the exact (erf) GELU."""

    def __init__(self, width: int, feed_forward_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, feed_forward_width)

    def forward(self, x_BTH: Tensor) -> Tensor:
        """Return (B,T,feed-forward width)."""
        return F.gelu(self.dense(x_BTH))


class Layer(nn.Module):
    """One BERT layer, with a graph block on some of its tokens if ``graph`` is given."""

    def __init__(
        self,
        width: int,
        feed_forward_width: int,
        heads: int,
        dropout: float,
        graph: GraphTokens | None,
    ) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.intermediate = Intermediate(width, feed_forward_width)
        self.output = AddNorm(feed_forward_width, width, dropout)
        self.graph_conv: GraphResidualBlock | None = None
        if graph is not None:
            self.graph_conv = GraphResidualBlock(width, graph.adjacency)
            self.graph_start, self.graph_stop = graph.start, graph.stop

    def _convolve(self, x_BTH: Tensor, block: GraphResidualBlock) -> Tensor:
        start, stop = self.graph_start, self.graph_stop
        if x_BTH.shape[1] < stop:
            raise InputError(
                f"tokens: expected tokens {start} to {stop} to be graph nodes, found only "
                f"{x_BTH.shape[1]} tokens."
            )
        nodes_BNH = block(x_BTH[:, start:stop])
        return torch.cat([x_BTH[:, :start], nodes_BNH, x_BTH[:, stop:]], dim=1)

    def forward(self, x_BTH: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        """Return (B,T,H) and, if asked for, the attention probabilities (B,A,T,T)."""
        x_BTH, probability_BATT = self.attention(x_BTH, return_attention)
        if self.graph_conv is not None:
            x_BTH = self._convolve(x_BTH, self.graph_conv)
        return self.output(self.intermediate(x_BTH), x_BTH), probability_BATT


class LayerStack(nn.Module):
    """The layers of a block, one after the other."""

    def __init__(self, layers: list[Layer]) -> None:
        super().__init__()
        self.layer = nn.ModuleList(layers)


class TokenEncoder(nn.Module):
    """Linear embedding, learned absolute positions and the layers."""

    def __init__(
        self, in_dim: int, hidden_dim: int, positions: int, dropout: float, layers: list[Layer]
    ) -> None:
        super().__init__()
        self.img_embedding = TokenLinear(in_dim, hidden_dim)
        self.position_embeddings = nn.Embedding(positions, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.encoder = LayerStack(layers)

    def forward(self, tokens: Tensor | QueryTokens, return_attention: bool) -> BlockOutput:
        """Return hidden tokens (B,T,H), with all states and probabilities if asked for."""
        x_BTH: Tensor = self.img_embedding(tokens)
        count, positions = x_BTH.shape[1], self.position_embeddings.num_embeddings
        if count > positions:
            raise InputError(
                f"tokens: expected at most {positions}, the size of the position table, found "
                f"{count}; build the block with a larger 'positions'."
            )
        x_BTH = self.dropout(x_BTH + self.position_embeddings.weight[:count])
        hidden, attention = [x_BTH], []
        for layer in self.encoder.layer:
            x_BTH, probability_BATT = layer(x_BTH, return_attention)
            hidden.append(x_BTH)
            attention.append(probability_BATT)
        if not return_attention:
            return BlockOutput(x_BTH)
        return BlockOutput(x_BTH, tuple(hidden), tuple(attention))


class TransformerBlock(nn.Module):
    """One of METRO's chained blocks, ``cls_head(encode(x)) + residual(x)``.

    Weights start as BERT's: linear and embedding weights N(0, 0.02), linear biases 0, norms 1
    and 0; graph blocks keep their own initial ranges.

    Args:
        in_dim: D.
        hidden_dim: H, a multiple of ``heads``.
        feed_forward_dim: Width inside the feed-forward part of a layer.
        out_dim: O.
        layers: Number of BERT layers.
        heads: A.
        dropout: Probability, on the embedding, the attention and both halves of a layer.
        positions: Size of the position table, the largest T that is accepted.
        graph: Tokens that pass a graph convolution in each layer, or None.

    Raises:
        InputError: ``hidden_dim`` is not a multiple of ``heads``.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        feed_forward_dim: int,
        out_dim: int,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        positions: int = 512,
        graph: GraphTokens | None = None,
    ) -> None:
        super().__init__()
        if heads < 1 or hidden_dim % heads:
            raise InputError(
                f"hidden_dim: expected a multiple of heads={heads}, found {hidden_dim}."
            )
        stack = [Layer(hidden_dim, feed_forward_dim, heads, dropout, graph) for _ in range(layers)]
        self.bert = TokenEncoder(in_dim, hidden_dim, positions, dropout, stack)
        self.cls_head = nn.Linear(hidden_dim, out_dim)
        self.residual = TokenLinear(in_dim, out_dim)
        self.apply(_initialise)

    def forward(self, tokens: Tensor | QueryTokens, return_attention: bool = False) -> BlockOutput:
        """Transform (B,T,D) to (B,T,O).

        Args:
            tokens: (B,T,D), or the same in factors.
            return_attention: Also return hidden states and attention probabilities. This takes
                the explicit formula in place of the fused kernel; the tokens are the same.

        Raises:
            InputError: T is larger than the position table.
        """
        encoded = self.bert(tokens, return_attention)
        tokens_BTO = self.cls_head(encoded.tokens) + self.residual(tokens)
        return BlockOutput(tokens_BTO, encoded.hidden, encoded.attention)


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """Sizes of a `BlockChain`, which every configuration of a network has.

    Attributes:
        hidden_dims: Width of each block.
        feed_forward_dims: Width inside the feed-forward part of each block.
        out_dims: Output width of each block; the last is 3.
        layers: BERT layers in each block.
        heads: Attention heads in each layer.
        dropout: Probability.
        positions: Size of the position tables, the largest number of tokens.
    """

    hidden_dims: tuple[int, ...]
    feed_forward_dims: tuple[int, ...]
    out_dims: tuple[int, ...] = (512, 128, 3)
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    positions: int = 512


class BlockChain(nn.ModuleList):
    """Transformer blocks of changing width, each fed with the output of the one before.

    Args:
        in_dim: D of the first block.
        hidden_dims: Hidden width of each block.
        feed_forward_dims: Feed-forward width of each block.
        out_dims: Output width of each block, the input width of the next.
        graphs: For each block its graph tokens or None; None stands for no graph in any block.
        layers: BERT layers in each block.
        heads: Attention heads.
        dropout: Probability.
        positions: Size of each block's position table.

    Raises:
        InputError: The sequences differ in length.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        feed_forward_dims: Sequence[int],
        out_dims: Sequence[int],
        graphs: Sequence[GraphTokens | None] | None = None,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        positions: int = 512,
    ) -> None:
        super().__init__()
        graphs = [None] * len(hidden_dims) if graphs is None else graphs
        lengths = {len(hidden_dims), len(feed_forward_dims), len(out_dims), len(graphs)}
        if len(lengths) != 1 or not hidden_dims:
            raise InputError(
                "hidden_dims, feed_forward_dims, out_dims and graph_blocks: expected one entry "
                f"per block in each, found lengths {sorted(lengths)}."
            )
        for hidden, feed_forward, out_dim, graph in zip(
            hidden_dims, feed_forward_dims, out_dims, graphs, strict=True
        ):
            self.append(
                TransformerBlock(
                    in_dim, hidden, feed_forward, out_dim, layers, heads, dropout, positions, graph
                )
            )
            in_dim = out_dim

    def forward(self, tokens: Tensor | QueryTokens) -> Tensor:
        """Transform (B,T,D), or the same in factors, to (B,T,last out_dim)."""
        return self.encode(tokens).tokens

    def encode(self, tokens: Tensor | QueryTokens, return_attention: bool = False) -> BlockOutput:
        """As `forward`, with hidden states and attention of the last block if asked for."""
        last = len(self) - 1
        output: BlockOutput = self[0](tokens, return_attention and last == 0)
        for index in range(1, len(self)):
            output = self[index](output.tokens, return_attention and index == last)
        return output


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
