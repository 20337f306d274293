"""PointHMR: a mesh from image features that are sampled where its vertices are.

Kim et al., "Sampling is Matter: Point-guided 3D Human Mesh Reconstruction" (CVPR 2023). A heat map
for each coarse vertex guides the sampling of its feature (`point_sampling`); camera, grid cells,
joints and vertices become tokens; four encoders, in which a vertex attends to ever nearer ones
(`progressive_attention`), turn them into a camera and places; the mesh's own fixed maps lift the
coarse vertices to the finer levels. Everything about the mesh comes from a `Topology`.

Module names equal those of the official code. Shape legend: B batch, S image side, J joints,
N coarse vertices, G grid cells, T = 1 + G + J + N tokens, D width, V vertices of a level, H x W and
h x w sizes of the fine and of the coarse map, A heads.
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import CoarseLevel, Topology
from kinemesh.errors import InputError
from kinemesh.models.hop_masks import hop_mask, vertex_hops
from kinemesh.models.mesh_transformer import check_choice, check_shape
from kinemesh.models.point_sampling import MapHead, heat_maps, sample_features
from kinemesh.models.position_encoding import sine_position_code
from kinemesh.models.progressive_attention import ActivationName, ProgressiveTransformer

FINE_STRIDE, GRID_STRIDE = 4, 32
"""Pixels between the positions of the heat maps, and between those of the grid."""


@dataclass(frozen=True)
class PointHmrConfig:
    """Sizes of a `PointHmr`; the defaults are those of the published body.

    Attributes:
        joints: J.
        coarse_vertices: N.
        upsampled: Vertices of the finer levels, coarse to full.
        width: Channels of the sampled features.
        position_width: Channels of the learned positions, which stand beside the features.
        second_width: Width of the last two encoders.
        feed_forward: Width inside the feed-forward parts of the first and of the last two encoders.
        hops: Farthest vertex that a vertex attends to, in edges, in each encoder.
        layers: Layers of each encoder.
        heads: A.
        dropout: In the encoders.
        activation: ``"relu"`` or ``"gelu"``.
        resolution: S; the learned positions belong to it.

    Raises:
        InputError: A size does not suit the others.
    """

    joints: int = 14
    coarse_vertices: int = 431
    upsampled: tuple[int, ...] = (1723, 6890)
    width: int = 512
    position_width: int = 128
    second_width: int = 128
    feed_forward: tuple[int, int] = (1024, 512)
    hops: tuple[int, int, int, int] = (7, 5, 3, 1)
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1
    activation: ActivationName = "relu"
    resolution: int = 224

    def __post_init__(self) -> None:
        check_choice("activation", self.activation, get_args(ActivationName))
        if self.width % 4:
            raise InputError(f"width: expected a multiple of 4, found {self.width}.")
        if self.resolution % GRID_STRIDE or self.resolution < GRID_STRIDE:
            raise InputError(
                f"resolution: expected a multiple of {GRID_STRIDE} px, found {self.resolution}."
            )
        if len(self.hops) != 4 or len(self.feed_forward) != 2:
            raise InputError(
                "hops, feed_forward: expected a number for each of the four encoders and of the "
                f"two widths, found {self.hops} and {self.feed_forward}."
            )

    @classmethod
    def hand(cls) -> "PointHmrConfig":
        """The hand of an unpublished draft, on MANO's mesh."""
        return cls(joints=21, coarse_vertices=195, upsampled=(778,))

    @property
    def cells(self) -> int:
        """G."""
        return (self.resolution // GRID_STRIDE) ** 2

    @property
    def token_width(self) -> int:
        """Width of the first two encoders."""
        return self.width + self.position_width


class PointHmrOutput(NamedTuple):
    """What the network predicts.

    Attributes:
        camera: (B,3) weak perspective (s, tx, ty): ``p = s (xy + t)`` in [-1, 1] over the crop.
        joints: (B,J,3) metres, x right, y down, z forward.
        vertices: One (B,V,3) for each level, coarse to full; as trained, about the root of the
            mesh. The joints' origin is fixed by nothing but their projection.
        heat: (B,N,H,W) where the heat maps put each coarse vertex: shares that sum to one. See
            `point_sampling.mean_places` for points.
        attention: Empty, or (B,A,T,T) of every layer, first to last; rows are queries. See
            `PointHmr.joint_tokens` and `PointHmr.vertex_tokens` for the tokens' order.
    """

    camera: Tensor
    joints: Tensor
    vertices: tuple[Tensor, ...]
    heat: Tensor
    attention: tuple[Tensor, ...] = ()


class MeshConstants(NamedTuple):
    """What the network takes from a mesh.

    Attributes:
        hops_NN: (N,N) distances, see `hop_masks.vertex_hops`.
        upsampling: One (V,N) for each finer level, coarse to full: its vertices as sums of the
            coarse ones.
    """

    hops_NN: Tensor
    upsampling: tuple[Tensor, ...]

    @classmethod
    def of(cls, topology: Topology) -> "MeshConstants":
        """Those of a topology.

        A finer level's vertices are vertices of the full mesh, so one map, from the coarsest level
        to the full mesh, has the rows of all. The official matrices go from level to level, which
        is the same: they leave the vertices of the coarser level where they are.
        """
        full_VN = _dense_upsampling(topology.coarse)
        finer = [full_VN[level.vertex_index] for level in reversed(topology.levels[:-1])]
        return cls(vertex_hops(topology.coarse), (*finer, full_VN))


def _dense_upsampling(level: CoarseLevel) -> Tensor:
    # Dense: 0.01 GMAC a crop, and no scattered additions on the way back.
    dense_VN = level.up_weight.new_zeros(len(level.up_index), len(level))
    return dense_VN.scatter_add_(1, level.up_index, level.up_weight)


class PointHmr(nn.Module):
    """The whole network, on any mesh and any backbone.

    Args:
        config: Sizes.
        backbone: `point_hmr_backbones.PointHRNet` or `PointResNet`: maps an image to `PointMaps`
            and says ``fine_channels`` and ``coarse_channels``.
        mesh: Distances and up-sampling; `MeshConstants.of` takes them from a topology.

    Raises:
        InputError: The mesh does not have the sizes of ``config``.
    """

    position_code: Tensor
    grid_position_code: Tensor
    upsampling: Tensor

    def __init__(self, config: PointHmrConfig, backbone: nn.Module, mesh: MeshConstants) -> None:
        super().__init__()
        N = config.coarse_vertices
        check_shape("mesh.hops_NN", mesh.hops_NN, (N, N))
        found = tuple(tuple(level_VN.shape) for level_VN in mesh.upsampling)
        if found != (wanted := tuple((count, N) for count in config.upsampled)):
            raise InputError(f"mesh.upsampling: expected shapes {wanted}, found {found}.")
        self.config = config
        self.backbone = backbone
        fine, coarse = int(backbone.fine_channels), int(backbone.coarse_channels)  # type: ignore[arg-type]
        self.feature_extract_layer = MapHead(fine, config.width, blocks=2)
        self.heatmap_layer = MapHead(fine, N, blocks=2)
        self.grid_layer = MapHead(coarse, config.width, blocks=1)
        self.cam_layer = nn.Linear(N, 1)
        free = 1 + config.cells + config.joints
        self.joint_token_embed = nn.Embedding(config.joints, config.width)
        self.token_position_embed = nn.Embedding(free + N, config.position_width)
        self.transformer = ProgressiveTransformer(
            (config.token_width, config.second_width),
            config.heads,
            config.feed_forward,
            config.layers,
            config.dropout,
            config.activation,
            [hop_mask(mesh.hops_NN, reach, free) for reach in config.hops],
        )
        # Constants of mesh and crop, all out of the state dict.
        self.register_buffer("upsampling", torch.cat(mesh.upsampling), persistent=False)
        for name, stride in (
            ("position_code", FINE_STRIDE),
            ("grid_position_code", GRID_STRIDE),
        ):
            side = config.resolution // stride
            # on the device of the mesh, also where the parameters are built without storage
            valid_1HW = mesh.hops_NN.new_ones(1, side, side, dtype=torch.bool)
            code_1DHW = sine_position_code(valid_1HW, config.width)
            self.register_buffer(name, code_1DHW, persistent=False)

    @property
    def joint_tokens(self) -> slice:
        """Which tokens are the joints; the camera's and the grid's come before them."""
        first = 1 + self.config.cells
        return slice(first, first + self.config.joints)

    @property
    def vertex_tokens(self) -> slice:
        """Which tokens are the coarse vertices: the last."""
        first = self.joint_tokens.stop
        return slice(first, first + self.config.coarse_vertices)

    def tokens(self, image_B3SS: Tensor) -> tuple[Tensor, Tensor]:
        """Run the backbone and the sampling.

        Args:
            image_B3SS: RGB, normalised with ImageNet's mean and standard deviation.

        Returns:
            Tokens (B,T,D) in the order camera, grid row by row, joints, vertices, each with its
            learned position behind; and the heat maps (B,N,H,W).

        Raises:
            InputError: The image has another side than the network was built for.
        """
        side = self.config.resolution
        check_shape("image", image_B3SS, (len(image_B3SS), 3, side, side))
        fine, coarse = self.backbone(image_B3SS)
        heat_BNHW = heat_maps(self.heatmap_layer(fine))
        features_BDHW = self.feature_extract_layer(fine) + self.position_code
        sampled_BND = sample_features(heat_BNHW, features_BDHW)
        camera_B1D = self.cam_layer(sampled_BND.mT).mT
        grid_BGD = (self.grid_layer(coarse) + self.grid_position_code).flatten(2).mT
        joints_BJD = self.joint_token_embed.weight.expand(len(image_B3SS), -1, -1)
        content_BTD = torch.cat([camera_B1D, grid_BGD, joints_BJD, sampled_BND], dim=1)
        positions = self.token_position_embed.weight.expand(len(image_B3SS), -1, -1)
        return torch.cat([content_BTD, positions], dim=-1), heat_BNHW

    def forward(self, image_B3SS: Tensor, return_attention: bool = False) -> PointHmrOutput:
        """Predict camera, joints and mesh.

        Args:
            image_B3SS: See `tokens`, also for errors.
            return_attention: Also return the attention of every layer.
        """
        tokens_BTD, heat_BNHW = self.tokens(image_B3SS)
        attention: list[Tensor] | None = [] if return_attention else None
        points = slice(self.joint_tokens.start, None)
        camera_B3, points_BP3 = self.transformer(tokens_BTD, points, attention)
        joints_BJ3, coarse_BN3 = points_BP3.split(
            [self.config.joints, self.config.coarse_vertices], dim=1
        )
        finer = (self.upsampling @ coarse_BN3).split(list(self.config.upsampled), dim=1)
        vertices = (coarse_BN3, *finer)
        return PointHmrOutput(camera_B3, joints_BJ3, vertices, heat_BNHW, tuple(attention or ()))
