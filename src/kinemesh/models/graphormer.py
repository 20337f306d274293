"""Mesh Graphormer (Lin, Wang and Liu, ICCV 2021): a mesh from one image.

Joint and vertex queries (a template position and the pooled image feature) and the cells of the
image's feature grid are the tokens of three transformer blocks of shrinking width. The last block
mixes neighbouring vertices by graph convolution. Its 3-d outputs are positions; learned linear
maps lift the coarse mesh to the full one, and a linear stack gives a weak-perspective camera.

Module names equal those of the published checkpoints.

Shape legend: B batch, J joints, N coarse vertices, Q = J + N queries, G grid cells,
T = Q + G tokens, D token width, V vertices.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import BlockOutput, TransformerBlock
from kinemesh.models.efficientnet_lite import FEATURE_CHANNELS, EfficientNetLite0
from kinemesh.models.graph_convolution import GraphTokens
from kinemesh.models.hrnet import HRNet

MASKED_VALUE = 0.01
"""What every component of a masked query becomes in masked vertex modelling."""


@dataclass(frozen=True)
class GraphormerConfig:
    """Sizes of a `MeshGraphormer`; the defaults are the published ones.

    Attributes:
        joints: J.
        coarse_vertices: N, vertices of the mesh inside the transformer.
        upsampled: Vertices after each learned up-sampling, coarse to full.
        camera_tokens: Outputs that the camera is read from; the grid's never are.
        camera_hidden: Width inside the camera head.
        grid_channels: Channels of the backbone's map.
        pooled_channels: Channels of the backbone's pooled vector.
        hidden_dims: Width of each block.
        feed_forward_dims: Width inside the feed-forward part of each block.
        out_dims: Output width of each block; the last is 3.
        graph_blocks: Which blocks have graph convolutions.
        layers: BERT layers in each block.
        heads: Attention heads in each layer.
        dropout: Probability.
        positions: Size of the position tables, the largest number of tokens.
    """

    joints: int
    coarse_vertices: int
    upsampled: tuple[int, ...]
    camera_tokens: Literal["vertices", "joints+vertices"]
    camera_hidden: int
    grid_channels: int = 1024
    pooled_channels: int = 2048
    hidden_dims: tuple[int, ...] = (1024, 256, 64)
    feed_forward_dims: tuple[int, ...] = (2048, 512, 128)
    out_dims: tuple[int, ...] = (512, 128, 3)
    graph_blocks: tuple[bool, ...] = (False, False, True)
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    positions: int = 512

    @classmethod
    def body(cls) -> "GraphormerConfig":
        """The published body network on SMPL's mesh; the same for HRNet-W64 and W40."""
        return cls(14, 431, (1723, 6890), "vertices", 250)

    @classmethod
    def hand(cls) -> "GraphormerConfig":
        """The published hand network on MANO's mesh; the same for HRNet-W64 and W40."""
        return cls(21, 195, (778,), "joints+vertices", 150)


class MeshOutput(NamedTuple):
    """What a mesh network predicts.

    Attributes:
        camera: (B,3) weak perspective (s, tx, ty): ``p = s (xy + t)`` in [-1, 1] over the crop.
        joints: (B,J,3) metres, x right, y down, z forward; as trained, about the root joint.
        vertices: One (B,V,3) for each level, coarse to full, in the frame of the joints.
        hidden: Empty, or the hidden states of the last block, see `BlockOutput`.
        attention: Empty, or the attention of the last block, with the grid tokens last.
    """

    camera: Tensor
    joints: Tensor
    vertices: tuple[Tensor, ...]
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()


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


class GraphormerEncoder(nn.ModuleList):
    """Transformer blocks in a chain, some of them with graph convolutions.

    Args:
        in_dim: D of the first block.
        hidden_dims: Hidden width of each block.
        feed_forward_dims: Feed-forward width of each block.
        out_dims: Output width of each block, the input width of the next.
        graph_blocks: Which blocks convolve their graph tokens.
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
        super().__init__()
        lengths = {len(hidden_dims), len(feed_forward_dims), len(out_dims), len(graph_blocks)}
        if len(lengths) != 1:
            raise InputError(
                "hidden_dims, feed_forward_dims, out_dims and graph_blocks: expected one entry "
                f"per block in each, found lengths {sorted(lengths)}."
            )
        graph = _graph_tokens(graph_slice, adjacency) if any(graph_blocks) else None
        for hidden, feed_forward, out_dim, has_graph in zip(
            hidden_dims, feed_forward_dims, out_dims, graph_blocks, strict=True
        ):
            self.append(
                TransformerBlock(
                    in_dim,
                    hidden,
                    feed_forward,
                    out_dim,
                    layers,
                    heads,
                    dropout,
                    positions,
                    graph if has_graph else None,
                )
            )
            in_dim = out_dim

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Transform (B,T,D) to (B,T,last out_dim)."""
        return self.encode(tokens_BTD).tokens

    def encode(self, tokens_BTD: Tensor, return_attention: bool = False) -> BlockOutput:
        """As `forward`, with hidden states and attention of the last block if asked for."""
        output = BlockOutput(tokens_BTD)
        for index, block in enumerate(self):
            output = block(output.tokens, return_attention and index == len(self) - 1)
        return output


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


class MeshGraphormer(nn.Module):
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

    template: Tensor

    def __init__(
        self,
        config: GraphormerConfig,
        backbone: nn.Module,
        template_joints: Tensor,
        template_coarse: Tensor,
        adjacency: Tensor,
    ) -> None:
        super().__init__()
        J, N = config.joints, config.coarse_vertices
        _check_shape("template_joints", template_joints, (J, 3))
        _check_shape("template_coarse", template_coarse, (N, 3))
        _check_shape("adjacency", adjacency, (N, N))
        _check_channels(backbone, config)
        self.config = config
        self.backbone = backbone
        template_Q3 = torch.cat([template_joints, template_coarse]).float()
        # The template comes from the mesh, not from training: it stays out of the state dict.
        self.register_buffer("template", template_Q3, persistent=False)
        token_dim = 3 + config.pooled_channels
        self.grid_feat_dim = nn.Linear(config.grid_channels, token_dim)
        self.trans_encoder = GraphormerEncoder(
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
        self._build_heads()

    def _build_heads(self) -> None:
        config = self.config
        sizes = (config.coarse_vertices, *config.upsampled)
        self._upsampling_names = []
        for stage, (coarse, fine) in enumerate(itertools.pairwise(sizes), start=1):
            name = "upsampling" if stage == 1 else f"upsampling{stage}"
            self.add_module(name, nn.Linear(coarse, fine))
            self._upsampling_names.append(name)
        self._camera_start = config.joints if config.camera_tokens == "vertices" else 0
        camera_tokens = config.joints + config.coarse_vertices - self._camera_start
        self.cam_param_fc = nn.Linear(3, 1)
        self.cam_param_fc2 = nn.Linear(camera_tokens, config.camera_hidden)
        self.cam_param_fc3 = nn.Linear(config.camera_hidden, 3)

    def forward(
        self,
        image: Tensor,
        keep_mask: Tensor | None = None,
        return_attention: bool = False,
    ) -> MeshOutput:
        """Predict camera, joints and mesh.

        Args:
            image: (B,3,H,W), normalised as the backbone wants it.
            keep_mask: (B,Q,1), 1 where a query is kept and 0 where it is masked (masked vertex
                modelling, used in training); None keeps all. Grid tokens are never masked.
            return_attention: Also return hidden states and attention of the last block.

        Raises:
            InputError: ``keep_mask`` has another shape, or there are more tokens than positions.
        """
        grid_BCHW, pooled_BC = self.backbone(image)
        tokens_BTD = self._tokens(grid_BCHW, pooled_BC, keep_mask)
        encoded = self.trans_encoder.encode(tokens_BTD, return_attention)
        queries_BQ3 = encoded.tokens[:, : len(self.template)]
        joints_BJ3 = queries_BQ3[:, : self.config.joints]
        vertices = self._upsample(queries_BQ3[:, self.config.joints :])
        camera_B3 = self._camera(queries_BQ3[:, self._camera_start :])
        return MeshOutput(camera_B3, joints_BJ3, vertices, encoded.hidden, encoded.attention)

    def _tokens(self, grid_BCHW: Tensor, pooled_BC: Tensor, keep_mask: Tensor | None) -> Tensor:
        B, Q = len(pooled_BC), len(self.template)
        queries_BQD = torch.cat(
            [self.template.expand(B, Q, 3), pooled_BC[:, None].expand(B, Q, -1)], dim=-1
        )
        if keep_mask is not None:
            _check_shape("keep_mask", keep_mask, (B, Q, 1))
            queries_BQD = queries_BQD * keep_mask + MASKED_VALUE * (1 - keep_mask)
        grid_BGD = self.grid_feat_dim(grid_BCHW.flatten(2).transpose(1, 2))
        return torch.cat([queries_BQD, grid_BGD], dim=1)

    def _upsample(self, coarse_BN3: Tensor) -> tuple[Tensor, ...]:
        """All levels, coarse to full; a map acts along the vertices, alike for x, y and z."""
        levels = [coarse_BN3]
        for name in self._upsampling_names:
            levels.append(self.get_submodule(name)(levels[-1].transpose(1, 2)).transpose(1, 2))
        return tuple(levels)

    def _camera(self, tokens_BN3: Tensor) -> Tensor:
        x_B1N = self.cam_param_fc(tokens_BN3).transpose(1, 2)
        camera_B13: Tensor = self.cam_param_fc3(self.cam_param_fc2(x_B1N))
        return camera_B13[:, 0]


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InputError(f"{name}: expected shape {shape}, found {tuple(tensor.shape)}.")


def _check_channels(backbone: nn.Module, config: GraphormerConfig) -> None:
    for name in ("grid_channels", "pooled_channels"):
        expected, found = getattr(config, name), getattr(backbone, name, None)
        if found not in {None, expected}:
            raise InputError(
                f"backbone: the configuration expects {name}={expected}, this backbone has {found};"
                f" build the configuration with {name}={found}."
            )
