"""Lifting: 3D joints of a hand from its 2D joints alone, by a plain transformer encoder.

Each joint is a token. The encoder is Vaswani et al.'s (2017) with norms before the sublayers (Xiong
et al., 2020). No picture is seen, so this is the baseline that networks on images have to beat.

Shape legend: B batch, J joints, W width of a token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError

_EXTENT_PX = 1e-6  # least side of a box: a single joint still has a place
_INITIAL_STD = 0.02


@dataclass(frozen=True)
class JointLifterConfig:
    """Sizes of a `JointLifter`.

    Attributes:
        joints: J.
        width: W, a multiple of ``heads``.
        layers: Encoder layers.
        heads: Attention heads.
        feed_forward: Hidden units of the feed-forward networks.
        dropout: Share of activations that training drops.
    """

    joints: int = 21
    width: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 256
    dropout: float = 0.0

    def __post_init__(self) -> None:
        sizes = (self.joints, self.width, self.layers, self.heads, self.feed_forward)
        if min(sizes) < 1 or self.width % self.heads:
            raise InputError(
                "joints, width, layers, heads, feed_forward: expected 1 or more each and a width "
                f"that is a multiple of the heads, found {sizes}."
            )
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout: expected a share in [0, 1), found {self.dropout}.")


class JointLifter(nn.Module):
    """The whole network.

    Args:
        config: Sizes.
    """

    def __init__(self, config: JointLifterConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(2, config.width)
        self.position = nn.Parameter(torch.empty(config.joints, config.width))
        self.missing = nn.Parameter(torch.empty(config.width))
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.feed_forward,
            config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False
        )
        self.head = nn.Linear(config.width, 3)
        for values in (self.position, self.missing):
            nn.init.normal_(values, std=_INITIAL_STD)
        for block in self.encoder.layers:  # the encoder copies one layer, weights and all
            for weight in block.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_uniform_(weight)

    def forward(self, joints_2d_BJ2: Tensor, visible_BJ: Tensor | None = None) -> Tensor:
        """Lift joints.

        Args:
            joints_2d_BJ2: Places in a picture, x right and y down, in any unit and about any
                origin: `box_coordinates` takes both out.
            visible_BJ: True (or above 0) where the joint is known; None: all are.

        Returns:
            (B,J,3) about the wrist, of unit size: `JointStatistics.denormalise` makes millimetres.

        Raises:
            InputError: The shapes do not fit.
        """
        if joints_2d_BJ2.ndim != 3 or joints_2d_BJ2.shape[1:] != (self.config.joints, 2):
            raise InputError(
                f"joints_2d: expected shape (B, {self.config.joints}, 2), found "
                f"{tuple(joints_2d_BJ2.shape)}."
            )
        if visible_BJ is None:
            visible_BJ = torch.ones_like(joints_2d_BJ2[..., 0])
        if visible_BJ.shape != joints_2d_BJ2.shape[:2]:
            raise InputError(
                f"visible: expected shape {tuple(joints_2d_BJ2.shape[:2])}, found "
                f"{tuple(visible_BJ.shape)}."
            )
        known_BJ1 = (visible_BJ > 0)[..., None]
        places_BJ2 = box_coordinates(joints_2d_BJ2, visible_BJ)
        tokens_BJW = torch.where(known_BJ1, self.embedding(places_BJ2), self.missing)
        joints_BJ3: Tensor = self.head(self.encoder(tokens_BJW + self.position))
        return joints_BJ3


def box_coordinates(joints_2d_BJ2: Tensor, visible_BJ: Tensor) -> Tensor:
    """Places in the box of the known joints: its middle at 0, its longer side from -1 to 1.

    Args:
        joints_2d_BJ2: Places in any unit; unknown ones may hold anything, NaN too.
        visible_BJ: True (or above 0) where the joint is known.

    Returns:
        (B,J,2), 0 for unknown joints.
    """
    known_BJ1 = (visible_BJ > 0)[..., None]
    low_B12 = joints_2d_BJ2.where(known_BJ1, torch.inf).amin(1, keepdim=True)
    high_B12 = joints_2d_BJ2.where(known_BJ1, -torch.inf).amax(1, keepdim=True)
    half_B11 = (high_B12 - low_B12).amax(2, keepdim=True).clamp(min=_EXTENT_PX) / 2
    places_BJ2 = (joints_2d_BJ2 - (low_B12 + high_B12) / 2) / half_B11
    # the box of no joint at all is not a number
    return places_BJ2.where(known_BJ1, 0.0)
