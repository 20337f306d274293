"""METRO, the mesh transformer (Lin, Wang and Liu, CVPR 2021): a mesh from one image.

Each joint and each coarse vertex is a query: its position in the template and an image feature.
For bodies that feature is a learned mixture of the 7 x 7 cells of the backbone's last map, another
one for each query; for hands it is the map's mean. Three transformer blocks of shrinking width
turn the queries into positions.

Shape legend: B batch, J joints, N coarse vertices, Q = J + N queries, S cells of the map,
F channels of the map.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import BlockChain
from kinemesh.models.hrnet import HRNet
from kinemesh.models.mesh_transformer import (
    MeshTransformer,
    MeshTransformerConfig,
    check_channels,
    check_choice,
)
from kinemesh.models.query_tokens import QueryTokens

ImageFeature = Literal["cells", "pooled"]


@dataclass(frozen=True)
class MetroConfig(MeshTransformerConfig):
    """Sizes of a `Metro`; see `MeshTransformerConfig` for the other fields.

    Attributes:
        image_feature: ``"cells"``: each query learns its own mixture of the map's cells;
            ``"pooled"``: all queries get the mean of the map.
        cells: S, cells of the map; needed for ``"cells"``. 7 x 7 for a crop of 224 px.
        map_channels: F.

    Raises:
        InputError: ``image_feature`` or ``camera_tokens`` is none of its two values.
    """

    image_feature: ImageFeature = "pooled"
    cells: int = 49
    map_channels: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("image_feature", self.image_feature, get_args(ImageFeature))

    @classmethod
    def body(cls) -> "MetroConfig":
        """The published body network on SMPL's mesh; the same for all backbones."""
        return cls(
            joints=14,
            coarse_vertices=431,
            upsampled=(1723, 6890),
            camera_tokens="vertices",
            camera_hidden=250,
            hidden_dims=(1024, 256, 128),
            feed_forward_dims=(3072, 3072, 3072),
            image_feature="cells",
        )

    @classmethod
    def hand(cls) -> "MetroConfig":
        """The published hand network on MANO's mesh; the same for all backbones."""
        return cls(
            joints=21,
            coarse_vertices=195,
            upsampled=(778,),
            camera_tokens="joints+vertices",
            camera_hidden=150,
            hidden_dims=(1024, 256, 64),
            feed_forward_dims=(4096, 1024, 256),
            image_feature="pooled",
        )


class HRNetMap(HRNet):
    """HRNet as METRO's backbone: the map after the last convolution."""

    @property
    def map_channels(self) -> int:
        """Channels of the map."""
        return self.pooled_channels

    def forward(self, image_B3SS: Tensor) -> Tensor:  # type: ignore[override]
        """Return (B,2048,S/32,S/32); the image is normalised as ImageNet's."""
        return super().forward(image_B3SS).final


class Metro(MeshTransformer):
    """The whole network, on any mesh and any backbone.

    Args:
        config: Sizes.
        backbone: Module that maps an image to a map (B,map_channels,h,w): `HRNetMap` or
            `kinemesh.models.resnet.ResNetBackbone`.
        template_joints: (J,3) joints of the template, metres, about its root.
        template_coarse: (N,3) coarse vertices of the template, same frame.

    Raises:
        InputError: A tensor or the backbone does not have the sizes of ``config``.
    """

    def __init__(
        self,
        config: MetroConfig,
        backbone: nn.Module,
        template_joints: Tensor,
        template_coarse: Tensor,
    ) -> None:
        check_channels(backbone, "map_channels", config.map_channels)
        encoder = BlockChain(
            3 + config.map_channels,
            config.hidden_dims,
            config.feed_forward_dims,
            config.out_dims,
            layers=config.layers,
            heads=config.heads,
            dropout=config.dropout,
            positions=config.positions,
        )
        super().__init__(config, backbone, template_joints, template_coarse, encoder)
        self.config = config
        if config.image_feature == "cells":
            # A convolution in the published network: the cells are its channels.
            self.conv_learn_tokens = nn.Conv1d(config.cells, len(self.template), 1)

    def tokens(self, image: Tensor, keep_mask: Tensor | None = None) -> QueryTokens:
        """Queries with their image features in factors; arguments as of `forward`."""
        map_BFHW = self.backbone(image)
        self._check_mask(keep_mask, len(map_BFHW))
        if self.config.image_feature == "pooled":
            pooled_B1F = map_BFHW.mean(dim=(2, 3)).unsqueeze(1)
            return QueryTokens(self.template, pooled_B1F, keep_BQ1=keep_mask)
        cells_BSF = map_BFHW.flatten(2).transpose(1, 2)
        if cells_BSF.shape[1] != self.config.cells:
            raise InputError(
                f"image: expected a feature map of {self.config.cells} cells, found "
                f"{tuple(map_BFHW.shape[2:])}; the published networks take 224 x 224 px."
            )
        # A last cell of ones carries the convolution's bias through the same products.
        cells_BSF = F.pad(cells_BSF, (0, 0, 0, 1), value=1.0)
        conv = self.conv_learn_tokens
        assert conv.bias is not None
        mixture_QS = torch.cat([conv.weight[..., 0], conv.bias[:, None]], dim=1)
        return QueryTokens(self.template, cells_BSF, mixture_QS, keep_mask)
