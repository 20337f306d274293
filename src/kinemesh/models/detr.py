"""DETR's transformer: an encoder of image cells and a decoder of learned queries.

Carion et al., "End-to-End Object Detection with Transformers" (ECCV 2020), appendix A.3. Position
codes are added to queries and keys of every attention, never to values. Tensor names equal those of
the official code; sequences are batch-first.

Shape legend: B batch, T tokens of the image, Q queries, D width, M heads, C channels, H and W size
of a map, L decoder layers, N tokens of any kind, K keys.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError


class MultiheadAttention(nn.Module):
    """Attention with the packed tensors of `torch.nn.MultiheadAttention`.

    Args:
        width: D.
        heads: M; each has D / M channels.
        dropout: Share of attention weights that training drops.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"width: expected a multiple of {heads} heads, found {width}.")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query_BND: Tensor, key_BKD: Tensor, value_BKD: Tensor, keep_BK: Tensor | None = None
    ) -> Tensor:
        """Return (B,N,D).

        Args:
            query_BND: What asks.
            key_BKD: What is compared; the same object as ``query_BND`` in self-attention, whose two
                products are then one.
            value_BKD: What is mixed.
            keep_BK: (B,K) bool, False for keys that nothing may look at.
        """
        query, key = self._query_and_key(query_BND, key_BKD)
        width = query_BND.shape[-1]
        value = self._project(value_BKD, slice(2 * width, None))
        mixed_BMND = F.scaled_dot_product_attention(
            query,
            key,
            self._split(value),
            attn_mask=None if keep_BK is None else keep_BK[:, None, None],
            dropout_p=self.dropout if self.training else 0.0,
        )
        out: Tensor = self.out_proj(mixed_BMND.transpose(1, 2).flatten(2))
        return out

    def probabilities(
        self, query_BND: Tensor, key_BKD: Tensor, keep_BK: Tensor | None = None
    ) -> Tensor:
        """(B,M,N,K) how much each query looks at each key; arguments as of `forward`."""
        query, key = self._query_and_key(query_BND, key_BKD)
        scores_BMNK = torch.matmul(query, key.mT) * query.shape[-1] ** -0.5
        if keep_BK is not None:
            scores_BMNK = scores_BMNK.masked_fill(~keep_BK[:, None, None], float("-inf"))
        return torch.softmax(scores_BMNK, dim=-1)

    def _query_and_key(self, query_BND: Tensor, key_BKD: Tensor) -> tuple[Tensor, Tensor]:
        width = query_BND.shape[-1]
        if query_BND is key_BKD:
            query, key = self._project(query_BND, slice(0, 2 * width)).chunk(2, dim=-1)
        else:
            query = self._project(query_BND, slice(0, width))
            key = self._project(key_BKD, slice(width, 2 * width))
        return self._split(query), self._split(key)

    def _project(self, x_BND: Tensor, rows: slice) -> Tensor:
        return F.linear(x_BND, self.in_proj_weight[rows], self.in_proj_bias[rows])

    def _split(self, x_BND: Tensor) -> Tensor:
        return x_BND.reshape(*x_BND.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerLayer(nn.Module):
    """What encoder and decoder layers share: the feed-forward network and residuals with norms.

    Args:
        width: D.
        feed_forward: Hidden units of the feed-forward network.
        dropout: Share of activations that training drops.
        pre_norm: Normalise the input of a branch instead of the sum.
    """

    def __init__(self, width: int, feed_forward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.dropout, self.pre_norm = dropout, pre_norm
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)

    def feed_forward(self, x_BND: Tensor) -> Tensor:
        """Two linear layers with a ReLU between."""
        hidden = F.dropout(F.relu(self.linear1(x_BND)), self.dropout, self.training)
        out: Tensor = self.linear2(hidden)
        return out

    def residual(
        self, x_BND: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``norm(x + branch(x))``, or ``x + branch(norm(x))`` with pre-norm."""
        y = branch(norm(x_BND) if self.pre_norm else x_BND)
        x_BND = x_BND + F.dropout(y, self.dropout, self.training)
        return x_BND if self.pre_norm else norm(x_BND)


class EncoderLayer(TransformerLayer):
    """Self-attention of image tokens; arguments as of `TransformerLayer`."""

    def __init__(
        self, width: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__(width, feed_forward, dropout, pre_norm)
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, tokens_BTD: Tensor, position_BTD: Tensor, keep_BT: Tensor | None = None
    ) -> Tensor:
        """Return (B,T,D); ``keep_BT`` is False for tokens that nothing may look at."""

        def attend(x: Tensor) -> Tensor:
            located = x + position_BTD
            out: Tensor = self.self_attn(located, located, x, keep_BT)
            return out

        tokens_BTD = self.residual(tokens_BTD, self.norm1, attend)
        return self.residual(tokens_BTD, self.norm2, self.feed_forward)


class DecoderLayer(TransformerLayer):
    """Self-attention of queries, then attention to the image; as `TransformerLayer`."""

    def __init__(
        self, width: int, heads: int, feed_forward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__(width, feed_forward, dropout, pre_norm)
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.multihead_attn = MultiheadAttention(width, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)

    def forward(
        self,
        target_BQD: Tensor,
        query_QD: Tensor,
        memory_BTD: Tensor,
        located_BTD: Tensor,
        keep_BT: Tensor | None = None,
    ) -> Tensor:
        """Return (B,Q,D).

        Args:
            target_BQD: What the queries know so far.
            query_QD: Learned code of each query.
            memory_BTD: Output of the encoder.
            located_BTD: The same with the position code added.
            keep_BT: (B,T) bool, False for tokens that nothing may look at.
        """

        def attend_queries(x: Tensor) -> Tensor:
            coded = x + query_QD
            out: Tensor = self.self_attn(coded, coded, x)
            return out

        def attend_image(x: Tensor) -> Tensor:
            out: Tensor = self.multihead_attn(x + query_QD, located_BTD, memory_BTD, keep_BT)
            return out

        target_BQD = self.residual(target_BQD, self.norm1, attend_queries)
        target_BQD = self.residual(target_BQD, self.norm2, attend_image)
        return self.residual(target_BQD, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """Encoder layers; only with pre-norm a norm follows the last."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, feed_forward, dropout, pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(
        self, tokens_BTD: Tensor, position_BTD: Tensor, keep_BT: Tensor | None = None
    ) -> Tensor:
        """Return (B,T,D); arguments as of `EncoderLayer`."""
        for layer in self.layers:
            tokens_BTD = layer(tokens_BTD, position_BTD, keep_BT)
        out: Tensor = self.norm(tokens_BTD)
        return out


class Decoder(nn.Module):
    """Decoder layers that share one last norm: the heads see it, the next layer does not."""

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        feed_forward: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, feed_forward, dropout, pre_norm) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        query_QD: Tensor,
        memory_BTD: Tensor,
        position_BTD: Tensor,
        keep_BT: Tensor | None = None,
        every_layer: bool = True,
    ) -> Tensor:
        """Return (L,B,Q,D), or (1,B,Q,D) of the last layer alone; as `DecoderLayer`."""
        located_BTD = memory_BTD + position_BTD
        target = torch.zeros_like(query_QD).expand(len(memory_BTD), -1, -1)
        targets = []
        for layer in self.layers:
            target = layer(target, query_QD, memory_BTD, located_BTD, keep_BT)
            targets.append(target)
        kept = torch.stack(targets) if every_layer else target[None]
        out: Tensor = self.norm(kept)
        return out


class DetrOutput(NamedTuple):
    """What `DetrTransformer` computes.

    Attributes:
        queries_LBQD: The queries after each decoder layer, normalised; L is 1 if only the last
            was asked for.
        memory_BDHW: The encoded map.
    """

    queries_LBQD: Tensor
    memory_BDHW: Tensor


class DetrTransformer(nn.Module):
    """Encoder and decoder.

    Args:
        width: D.
        heads: M.
        encoder_layers: Layers of the encoder.
        decoder_layers: L.
        feed_forward: Hidden units of the feed-forward networks.
        dropout: Share of activations and attention weights that training drops.
        pre_norm: See `TransformerLayer`.
    """

    def __init__(
        self,
        width: int = 256,
        heads: int = 8,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        feed_forward: int = 2048,
        dropout: float = 0.0,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        sizes = (width, heads, feed_forward, dropout, pre_norm)
        self.encoder = Encoder(encoder_layers, *sizes)
        self.decoder = Decoder(decoder_layers, *sizes)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self,
        map_BDHW: Tensor,
        query_QD: Tensor,
        position_BDHW: Tensor,
        padding_BHW: Tensor | None = None,
        *,
        every_layer: bool = True,
    ) -> DetrOutput:
        """Encode a map and decode the queries.

        Args:
            map_BDHW: (B,D,H,W) features.
            query_QD: Learned code of each query.
            position_BDHW: Position code, (B,D,H,W) or (1,D,H,W).
            padding_BHW: (B,H,W) bool, True for cells that nothing may look at.
            every_layer: Whether the queries after all decoder layers are wanted or the last only.
        """
        tokens_BTD = map_BDHW.flatten(2).transpose(1, 2)
        position_BTD = position_BDHW.flatten(2).transpose(1, 2)
        keep_BT = None if padding_BHW is None else ~padding_BHW.flatten(1)
        memory_BTD = self.encoder(tokens_BTD, position_BTD, keep_BT)
        queries = self.decoder(query_QD, memory_BTD, position_BTD, keep_BT, every_layer)
        return DetrOutput(queries, memory_BTD.transpose(1, 2).reshape(map_BDHW.shape))


class MLP(nn.Module):
    """Linear layers with ReLUs between.

    Args:
        width: Input and hidden units.
        out_width: Output units.
        layers: Linear layers.
    """

    def __init__(self, width: int, out_width: int, layers: int = 3) -> None:
        super().__init__()
        widths = [width] * (layers - 1)
        self.layers = nn.ModuleList(nn.Linear(width, out) for out in (*widths, out_width))

    def forward(self, x: Tensor) -> Tensor:
        """Return (...,out_width) for (...,width)."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


def attention_maps(network: nn.Module, *inputs: Any) -> tuple[Any, dict[str, Tensor]]:
    """Run a network and also return what each of its attentions looked at.

    Args:
        network: Anything with `MultiheadAttention` inside.
        *inputs: Arguments of its forward.

    Returns:
        The network's output, and (B,M,N,K) probabilities by the module's name.
    """
    maps: dict[str, Tensor] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def record(module: nn.Module, arguments: tuple[Any, ...], _output: Any) -> None:
            assert isinstance(module, MultiheadAttention)
            query, key, _value, *keep = arguments
            maps[name] = module.probabilities(query, key, *keep)

        return record

    handles = [
        module.register_forward_hook(recorder(name))
        for name, module in network.named_modules()
        if isinstance(module, MultiheadAttention)
    ]
    try:
        return network(*inputs), maps
    finally:
        for handle in handles:
            handle.remove()
