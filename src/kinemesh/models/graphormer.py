"""Mesh Graphormer (Lin, Wang and Liu, ICCV 2021): a mesh from one image.

Joint and vertex queries (a template position and the pooled image feature) and the cells of the
image's feature grid are the tokens of three transformer blocks of shrinking width. Some blocks, as
published the last, mix neighbouring vertices by graph convolution.

Shape legend: B batch, J joints, N coarse vertices, Q = J + N queries, G grid cells,
T = Q + G tokens, D token width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import BlockChain
from kinemesh.models.efficientnet_lite import FEATURE_CHANNELS, EfficientNetLite0
from kinemesh.models.graph_convolution import GraphTokens
from kinemesh.models.hrnet import HRNet
from kinemesh.models.mesh_transformer import (
    MeshTransformer,
    MeshTransformerConfig,
    check_channels,
    check_shape,
)
from kinemesh.models.query_tokens import QueryTokens


@dataclass(frozen=True, kw_only=True)
class GraphormerConfig(MeshTransformerConfig):
    """Sizes of a `MeshGraphormer`; the defaults are the published ones.

    The other fields are those of `MeshTransformerConfig` and `BlockSizes`.

    Attributes:
        graph_blocks: Which blocks have graph convolutions.
        grid_channels: Channels of the backbone's map.
        pooled_channels: Channels of the backbone's pooled vector.
    """

    hidden_dims: tuple[int, ...] = (1024, 256, 64)
    feed_forward_dims: tuple[int, ...] = (2048, 512, 128)
    graph_blocks: tuple[bool, ...] = (False, False, True)
    grid_channels: int = 1024
    pooled_channels: int = 2048

    @classmethod
    def body(cls) -> "GraphormerConfig":
        """The published body network on SMPL's mesh; the same for HRNet-W64 and W40."""
        return cls(14, 431, (1723, 6890), "vertices", 250)

    @classmethod
    def hand(cls) -> "GraphormerConfig":
        """The published hand network on MANO's mesh; the same for HRNet-W64 and W40."""
        return cls(21, 195, (778,), "joints+vertices", 150)


class HRNetBackbone(HRNet):
    """HRNet as (grid map before the last convolution, pooled vector after it)."""

    def forward(self, image_B3SS: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return (B,1024,S/32,S/32) and (B,2048); the image is normalised as ImageNet's."""
        features = super().forward(image_B3SS)
        return features.grid, features.pooled


class EfficientNetLiteBackbone(EfficientNetLite0):
    """EfficientNet-Lite0 as (map of stride 32, its mean)."""

    grid_channels = FEATURE_CHANNELS[-1]
    pooled_channels = FEATURE_CHANNELS[-1]

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return (B,320,H/32,W/32) and (B,320), from an ``efficientnet_lite.normalise`` image."""
        grid = self.features(image_B3HW)[-1]
        return grid, grid.mean(dim=(2, 3))


class GraphormerEncoder(BlockChain):
    """Transformer blocks in a chain, some of them with graph convolutions.

    Args:
        in_dim: D of the first block.
        hidden_dims: Hidden width of each block.
        feed_forward_dims: Feed-forward width of each block.
        out_dims: Output width of each block, the input width of the next.
        graph_blocks: Which blocks convolve their graph tokens, at their own hidden width.
        graph_slice: The tokens that are graph nodes, with start and stop; needed with any graph
            block.
        adjacency: (N,N) adjacency of these tokens, see `GraphTokens`.
        layers: BERT layers in each block.
        heads: Attention heads.
        dropout: Probability.
        positions: Size of each block's position table.

    Raises:
        InputError: The sequences differ in length, or slice and adjacency do not fit.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: Sequence[int],
        feed_forward_dims: Sequence[int],
        out_dims: Sequence[int],
        graph_blocks: Sequence[bool] = (False, False, True),
        graph_slice: slice | None = None,
        adjacency: Tensor | None = None,
        layers: int = 4,
        heads: int = 4,
        dropout: float = 0.1,
        positions: int = 512,
    ) -> None:
        graph = _graph_tokens(graph_slice, adjacency) if any(graph_blocks) else None
        super().__init__(
            in_dim,
            hidden_dims,
            feed_forward_dims,
            out_dims,
            [graph if has_graph else None for has_graph in graph_blocks],
            layers,
            heads,
            dropout,
            positions,
        )


def _graph_tokens(graph_slice: slice | None, adjacency: Tensor | None) -> GraphTokens:
    if graph_slice is None or adjacency is None:
        raise InputError(
            "graph_slice and adjacency: both are needed when a block has graph convolutions; "
            "give them or set graph_blocks to False throughout."
        )
    graph = GraphTokens(int(graph_slice.start or 0), adjacency)
    if graph_slice.stop != graph.stop or graph_slice.step not in {None, 1}:
        raise InputError(
            f"graph_slice: expected {adjacency.shape[0]} tokens in a row, one for each row of the "
            f"adjacency, found {graph_slice}."
        )
    return graph


class MeshGraphormer(MeshTransformer):
    """The whole network, on any mesh and any backbone.

    Args:
        config: Sizes.
        backbone: Module that maps an image to a grid map (B,grid_channels,h,w) and a pooled vector
            (B,pooled_channels). h x w may be anything that fits the position table.
        template_joints: (J,3) joints of the template, metres, about its root.
        template_coarse: (N,3) coarse vertices of the template, same frame.
        adjacency: (N,N) row-normalised ``D^-1 (A + I)`` of the coarse mesh.

    Raises:
        InputError: A tensor or the backbone does not have the sizes of ``config``.
    """

    def __init__(
        self,
        config: GraphormerConfig,
        backbone: nn.Module,
        template_joints: Tensor,
        template_coarse: Tensor,
        adjacency: Tensor,
    ) -> None:
        J, N = config.joints, config.coarse_vertices
        check_shape("adjacency", adjacency, (N, N))
        check_channels(backbone, "grid_channels", config.grid_channels)
        check_channels(backbone, "pooled_channels", config.pooled_channels)
        token_dim = 3 + config.pooled_channels
        encoder = GraphormerEncoder(
            token_dim,
            config.hidden_dims,
            config.feed_forward_dims,
            config.out_dims,
            config.graph_blocks,
            slice(J, J + N),
            adjacency,
            config.layers,
            config.heads,
            config.dropout,
            config.positions,
        )
        super().__init__(config, backbone, template_joints, template_coarse, encoder)
        self.config = config
        self.grid_feat_dim = nn.Linear(config.grid_channels, token_dim)

    def tokens(self, image: Tensor, keep_mask: Tensor | None = None) -> QueryTokens:
        """Queries with the pooled feature in factors, then the grid; arguments as of `forward`."""
        grid_BCHW, pooled_BF = self.backbone(image)
        self._check_mask(keep_mask, len(pooled_BF))
        grid_BGD = self.grid_feat_dim(grid_BCHW.flatten(2).transpose(1, 2))
        return QueryTokens(
            self.template, pooled_BF.unsqueeze(1), keep_BQ1=keep_mask, others_BGD=grid_BGD
        )
