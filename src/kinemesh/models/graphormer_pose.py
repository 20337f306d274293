"""Mesh Graphormer without a mesh: 21 hand joints from one image.

A reading of Mesh Graphormer (Lin, Wang and Liu, ICCV 2021) for pose alone. The joint queries hold
the pooled image feature and no template, so they differ by their learned positions only; the graph
convolution runs over the joints, along the bones of the skeleton. There is no mesh, no up-sampling
and no body model. No published weights exist for it.

Shape legend: B batch, J joints, G grid cells, T = J + G tokens, D token width, S image side.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import BlockSizes
from kinemesh.models.graphormer import GraphormerEncoder
from kinemesh.models.mesh_transformer import check_channels, check_choice, check_shape
from kinemesh.models.query_tokens import QueryTokens
from kinemesh.skeletons import HAND21, NO_PARENT, Skeleton

Adjacency = Literal["normalised", "raw"]


@dataclass(frozen=True, kw_only=True)
class PoseGraphormerConfig(BlockSizes):
    """Sizes of a `PoseGraphormer`; with 7 x 7 grid cells it has 70 tokens.

    The other fields are those of `BlockSizes`.

    Attributes:
        joints: J.
        adjacency: How the bones become weights. ``"normalised"``: ``D^-1 (A + I)``, as Mesh
            Graphormer does on its mesh; ``"raw"``: A itself, without self loops.
        grid_channels: Channels of the backbone's map.
        pooled_channels: Channels of the backbone's pooled vector, also D.
        graph_blocks: Which blocks have graph convolutions.

    Raises:
        InputError: ``adjacency`` is none of its two values.
    """

    hidden_dims: tuple[int, ...] = (1024, 256, 64)
    feed_forward_dims: tuple[int, ...] = (2048, 512, 128)
    joints: int = 21
    adjacency: Adjacency = "normalised"
    grid_channels: int = 1024
    pooled_channels: int = 2048
    graph_blocks: tuple[bool, ...] = (False, False, True)

    def __post_init__(self) -> None:
        check_choice("adjacency", self.adjacency, get_args(Adjacency))


class PoseOutput(NamedTuple):
    """What a pose network predicts.

    Attributes:
        camera: (B,3) weak perspective (s, tx, ty): ``p = s (xy + t)`` in [-1, 1] over the crop.
        joints: (B,J,3) metres, x right, y down, z forward; as trained, about the root joint.
        hidden: Empty, or the hidden states of the last block, see `BlockOutput`.
        attention: Empty, or the attention of the last block, with the grid tokens last.
    """

    camera: Tensor
    joints: Tensor
    hidden: tuple[Tensor, ...] = ()
    attention: tuple[Tensor, ...] = ()


class PoseGraphormer(nn.Module):
    """The pose network on any backbone.

    Args:
        config: Sizes.
        backbone: Module that maps an image to a grid map (B,grid_channels,h,w) and a pooled vector
            (B,pooled_channels).
        adjacency: (J,J) weights of the graph convolution; by default those of the bones of
            `kinemesh.skeletons.HAND21`, as ``config.adjacency`` says.

    Raises:
        InputError: The adjacency, the skeleton or the backbone does not fit ``config``.
    """

    def __init__(
        self,
        config: PoseGraphormerConfig,
        backbone: nn.Module,
        adjacency: Tensor | None = None,
    ) -> None:
        super().__init__()
        J, D = config.joints, config.pooled_channels
        if adjacency is None:
            adjacency = bone_adjacency(HAND21, config.adjacency)
        check_shape("adjacency", adjacency, (J, J))
        check_channels(backbone, "grid_channels", config.grid_channels)
        check_channels(backbone, "pooled_channels", config.pooled_channels)
        if config.out_dims[-1] != 3:
            raise InputError(f"out_dims: expected 3 as the last, found {config.out_dims}.")
        self.config = config
        self.backbone = backbone
        self.grid_feat_dim = nn.Linear(config.grid_channels, D)
        self.trans_encoder = GraphormerEncoder(
            D,
            config.hidden_dims,
            config.feed_forward_dims,
            config.out_dims,
            config.graph_blocks,
            slice(0, J),
            adjacency,
            config.layers,
            config.heads,
            config.dropout,
            config.positions,
        )
        self.cam_param_fc = nn.Linear(3, 1)
        self.cam_param_fc2 = nn.Linear(J, 3)

    def tokens(self, image: Tensor) -> QueryTokens:
        """Run the backbone and make the tokens of the first block, joints before grid."""
        grid_BCHW, pooled_BD = self.backbone(image)
        grid_BGD = self.grid_feat_dim(grid_BCHW.flatten(2).transpose(1, 2))
        no_template = pooled_BD.new_empty(self.config.joints, 0)
        return QueryTokens(no_template, pooled_BD.unsqueeze(1), others_BGD=grid_BGD)

    def forward(self, image: Tensor, return_attention: bool = False) -> PoseOutput:
        """Predict camera and joints.

        Args:
            image: (B,3,S,S), normalised as the backbone wants it.
            return_attention: Also return hidden states and attention of the last block.

        Raises:
            InputError: There are more tokens than positions.
        """
        encoded = self.trans_encoder.encode(self.tokens(image), return_attention)
        joints_BJ3 = encoded.tokens[:, : self.config.joints]
        x_B1J = self.cam_param_fc(joints_BJ3).transpose(1, 2)
        camera_B3 = self.cam_param_fc2(x_B1J)[:, 0]
        return PoseOutput(camera_B3, joints_BJ3, encoded.hidden, encoded.attention)


def bone_adjacency(skeleton: Skeleton, kind: Adjacency) -> Tensor:
    """Adjacency of the joints along the bones, (J,J) float32.

    Args:
        skeleton: Its tree; cross links do not count.
        kind: ``"normalised"``: ``D^-1 (A + I)``, rows sum to 1; ``"raw"``: A, 1 for each bone.

    Raises:
        InputError: ``kind`` is neither.
    """
    check_choice("adjacency", kind, get_args(Adjacency))
    joined = torch.zeros(len(skeleton), len(skeleton))
    for joint, parent in enumerate(skeleton.parents):
        if parent != NO_PARENT:
            joined[joint, parent] = joined[parent, joint] = 1.0
    if kind == "raw":
        return joined
    joined += torch.eye(len(skeleton))
    return joined / joined.sum(1, keepdim=True)
