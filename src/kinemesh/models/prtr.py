"""PRTR, two-stage: keypoints of one person in a crop as a set of hypotheses (Li et al., CVPR 2021).

A residual network or HRNet makes a map of stride 32, DETR's transformer decodes 100 learned
queries, and every query says which joint it is, if any, and where. Tensor names equal those of the
official code.

Shape legend: B batch, Q queries, J joints, D width, C channels, H and W size of the crop in pixels,
h and w size of the map, L decoder layers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kinemesh.models.detr import MLP, DetrTransformer
from kinemesh.models.position_encoding import PositionEncodingName, position_encoding


@dataclass(frozen=True)
class PrtrConfig:
    """Sizes of a `Prtr`; the defaults are published.

    Attributes:
        joints: J; 17 for COCO, 16 for MPII.
        queries: Q.
        width: D, of the transformer.
        heads: Of each attention.
        encoder_layers: Layers of the encoder.
        decoder_layers: L.
        feed_forward: Hidden units of the feed-forward networks.
        dropout: Share of activations that training drops.
        pre_norm: Norms in front of the branches instead of after the sums.
        positions: Kind of position code.
    """

    joints: int = 17
    queries: int = 100
    width: int = 256
    heads: int = 8
    encoder_layers: int = 6
    decoder_layers: int = 6
    feed_forward: int = 2048
    dropout: float = 0.0
    pre_norm: bool = False
    positions: PositionEncodingName = "sine"


class KeypointSetOutput(NamedTuple):
    """Hypotheses, one a query.

    Attributes:
        logits: (B,Q,J+1) before softmax; the last class is the background.
        coords: (B,Q,2) x and y in [0,1] of the crop's width and height.
        auxiliary: The same after each decoder layer but the last, first to last.
    """

    logits: Tensor
    coords: Tensor
    auxiliary: tuple["KeypointSetOutput", ...] = ()

    @classmethod
    def of_layers(cls, logits_LBQK: Tensor, coords_LBQ2: Tensor) -> "KeypointSetOutput":
        """The last layer, with those before it as auxiliary outputs."""
        *before, last = (
            cls(*pair) for pair in zip(logits_LBQK.unbind(), coords_LBQ2.unbind(), strict=True)
        )
        return last._replace(auxiliary=tuple(before))


class NamedBody(nn.Module):
    """Holds a backbone under the name that official files have, ``backbone.0.body``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body


def joined_backbone(body: nn.Module, positions: nn.Module) -> nn.ModuleList:
    """Backbone and position code under their official names."""
    return nn.ModuleList([NamedBody(body), positions])


def body_of(backbone: nn.ModuleList) -> nn.Module:
    """The backbone that `joined_backbone` holds."""
    named = backbone[0]
    assert isinstance(named, NamedBody)
    return named.body


class Prtr(nn.Module):
    """The two-stage network.

    Args:
        config: Sizes.
        backbone: Maps an image (B,3,H,W) to a map (B,C,H/32,W/32) and has ``map_channels``:
            `kinemesh.models.frozen_batch_norm.FrozenNormResNet` or
            `kinemesh.models.metro.HRNetMap`.
    """

    def __init__(self, config: PrtrConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = joined_backbone(backbone, position_encoding(config.positions, config.width))
        channels = backbone.map_channels
        assert isinstance(channels, int)
        self.input_proj = nn.Conv2d(channels, config.width, 1)
        self.transformer = DetrTransformer(
            config.width,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.feed_forward,
            config.dropout,
            config.pre_norm,
        )
        self.query_embed = nn.Embedding(config.queries, config.width)
        self.class_embed = nn.Linear(config.width, config.joints + 1)
        self.kpt_embed = MLP(config.width, 2)

    def forward(self, image_B3HW: Tensor) -> KeypointSetOutput:
        """Predict keypoint hypotheses.

        Args:
            image_B3HW: Crops, normalised; sides are multiples of 32 px. The released residual
                networks take the channels blue, green, red, with red, green, blue's statistics.
        """
        map_BDhw: Tensor = self.input_proj(body_of(self.backbone)(image_B3HW))
        position = self.backbone[1](map_BDhw)
        queries_LBQD = self.transformer(map_BDhw, self.query_embed.weight, position).queries_LBQD
        return KeypointSetOutput.of_layers(
            self.class_embed(queries_LBQD), torch.sigmoid(self.kpt_embed(queries_LBQD))
        )
