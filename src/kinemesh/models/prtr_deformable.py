"""PRTR, two-stage, with a deformable transformer over four levels of a residual network.

Li et al., CVPR 2021, with the transformer of Zhu et al., ICLR 2021. A query's prediction is
relative to its reference point. Tensor names equal those of the official code, which has the heads
once for each decoder layer although they are the same.

Shape legend: B batch, Q queries, D width, C channels, N decoder layers, H and W size of the crop.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.deformable_detr import DeformableTransformer
from kinemesh.models.detr import MLP
from kinemesh.models.frozen_batch_norm import FrozenNormResNet
from kinemesh.models.position_encoding import position_encoding
from kinemesh.models.prtr import KeypointSetOutput, PrtrConfig, body_of, joined_backbone

_GROUPS = 32
_BACKBONE_LEVELS = 3
_PRIOR = 0.01  # probability that a fresh class head gives to every class
_CLAMP = 1e-5


@dataclass(frozen=True)
class DeformablePrtrConfig(PrtrConfig):
    """Sizes of a `DeformablePrtr`; see `PrtrConfig`, whose ``pre_norm`` must be False here.

    Attributes:
        levels: At least 3: layers 2 to 4 of the backbone; each more halves the one before.
        encoder_points: Sampled points per level and head in the encoder.
        decoder_points: The same in the decoder.
    """

    levels: int = 4
    encoder_points: int = 4
    decoder_points: int = 4


def logit(probability: Tensor) -> Tensor:
    """Inverse of the sigmoid for numbers clamped to [0,1], finite at both ends."""
    p = probability.clamp(0, 1)
    return torch.log(p.clamp(min=_CLAMP) / (1 - p).clamp(min=_CLAMP))


class DeformablePrtr(nn.Module):
    """The deformable network.

    Args:
        config: Sizes.
        backbone: Gives four maps by ``features(image)``, of ``level_channels`` channels.

    Raises:
        InputError: There are fewer than 3 levels, or ``pre_norm`` is asked for.
    """

    def __init__(self, config: DeformablePrtrConfig, backbone: FrozenNormResNet) -> None:
        super().__init__()
        if config.levels < _BACKBONE_LEVELS:
            raise InputError(f"levels: expected at least 3, found {config.levels}.")
        if config.pre_norm:
            raise InputError("pre_norm: expected False, the deformable layers have no such form.")
        self.config = config
        width = config.width
        self.backbone = joined_backbone(backbone, position_encoding(config.positions, width))
        self.input_proj = _level_projections(backbone.level_channels[1:], width, config.levels)
        self.transformer = DeformableTransformer(
            width,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.feed_forward,
            config.dropout,
            config.levels,
            config.encoder_points,
            config.decoder_points,
        )
        self.query_embed = nn.Embedding(config.queries, 2 * width)
        class_embed, kpt_embed = nn.Linear(width, config.joints + 1), MLP(width, 2)
        self._initialise(class_embed, kpt_embed.layers[-1])
        # One module under several names: loading by name, the last one counts.
        self.class_embed = nn.ModuleList([class_embed] * config.decoder_layers)
        self.kpt_embed = nn.ModuleList([kpt_embed] * config.decoder_layers)

    def _initialise(self, class_embed: nn.Linear, last: nn.Module) -> None:
        """First predictions: no class at all, at the reference points."""
        nn.init.constant_(class_embed.bias, -math.log((1 - _PRIOR) / _PRIOR))
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        for projection in self.input_proj:
            assert isinstance(projection, nn.Sequential)
            conv = projection[0]
            assert isinstance(conv, nn.Conv2d)
            assert conv.bias is not None
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, image_B3HW: Tensor) -> KeypointSetOutput:
        """Predict keypoint hypotheses; the image as of `Prtr`, its sides of any size."""
        body = body_of(self.backbone)
        assert isinstance(body, FrozenNormResNet)
        _, *features = body.features(image_B3HW)
        source = features[-1]
        maps = [
            project(feature) for project, feature in zip(self.input_proj, features, strict=False)
        ]
        for project in self.input_proj[len(features) :]:
            source = project(source)
            maps.append(source)
        positions = [self.backbone[1](level) for level in maps]
        queries_NBQD, reference_Q2 = self.transformer(maps, positions, self.query_embed.weight)
        coords = torch.sigmoid(self.kpt_embed[-1](queries_NBQD) + logit(reference_Q2))
        return KeypointSetOutput.of_layers(self.class_embed[-1](queries_NBQD), coords)


def _level_projections(channels: tuple[int, ...], width: int, levels: int) -> nn.ModuleList:
    """1x1 convolutions for the backbone's maps, then 3x3 ones of stride 2."""
    convolutions = [nn.Conv2d(channel, width, 1) for channel in channels]
    incoming = channels[-1]
    for _ in range(levels - len(channels)):
        convolutions.append(nn.Conv2d(incoming, width, 3, 2, 1))
        incoming = width
    return nn.ModuleList(nn.Sequential(conv, nn.GroupNorm(_GROUPS, width)) for conv in convolutions)
