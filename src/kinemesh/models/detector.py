"""A small network that finds people and hands in a whole photo.

FCOS (Tian, Shen, Chen and He, ICCV 2019, with the centre sampling of their 2020 article) on
EfficientNet-Lite0: a feature pyramid of four levels, and at each of its locations the logits of the
classes, the distances to the four sides of a box, and how central the location is in it. Unlike
the published head, convolutions are separated into depthwise and pointwise ones, as in the
backbone, which makes the head a tenth as costly.

Shape legend: B photos, S side of the square, L locations of all levels, C classes, D channels.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.efficientnet_lite import FEATURE_CHANNELS, EfficientNetLite0, normalise

CLASSES = ("person", "left hand", "right hand")
"""What is found; hands by the side of the body that they belong to."""
PERSON, LEFT_HAND, RIGHT_HAND = range(3)
STRIDES = (8, 16, 32, 64)
"""Pixels of the square from one location of a level to the next."""

_GROUPS = 8
_LEAST_SIDE = 2 * STRIDES[-1]  # group norm needs more than one location on each level
_FIRST_SCORE = 0.01  # what an untrained network says of each class: most locations show nothing
_LARGEST_EXPONENT = 6.0  # keeps exp finite at half precision


@dataclass(frozen=True)
class DetectorConfig:
    """Sizes of a `Detector`.

    Attributes:
        side: Of the square that photos are resized to, pixels; at least 128.
        channels: D, of the pyramid and the head; a multiple of 8.
        tower_layers: Convolutions before each output of the head.
        batch_norm_momentum: How fast the backbone's running statistics follow the batches.
        frozen_blocks: Keep the stem and this many of the backbone's 16 blocks as they were loaded:
            what they learned from real photos stays, and the largest maps need no gradient.

    Raises:
        InputError: A number is out of its range.
    """

    side: int = 320
    channels: int = 128
    tower_layers: int = 3
    batch_norm_momentum: float = 0.02
    frozen_blocks: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("side", self.side, self.side >= _LEAST_SIDE, f"at least {_LEAST_SIDE} px"),
            ("channels", self.channels, self.channels % _GROUPS == 0, f"a multiple of {_GROUPS}"),
            ("channels", self.channels, self.channels > 0, "above 0"),
            ("tower_layers", self.tower_layers, self.tower_layers >= 1, "at least 1"),
            (
                "batch_norm_momentum",
                self.batch_norm_momentum,
                0 <= self.batch_norm_momentum <= 1,
                "from 0 to 1",
            ),
            ("frozen_blocks", self.frozen_blocks, 0 <= self.frozen_blocks <= 16, "from 0 to 16"),
        )
        for name, value, holds, wanted in rules:
            if not holds:
                raise InputError(f"{name}: expected {wanted}, found {value}.")


class DetectorOutput(NamedTuple):
    """What the network says at each location, level after level, row after row.

    Attributes:
        logits: (B, L, C) of the classes.
        distances: (B, L, 4) from the location to left, top, right and bottom, pixels, positive.
        centre_logits: (B, L) of the centre-ness.
    """

    logits: Tensor
    distances: Tensor
    centre_logits: Tensor


@functools.lru_cache(maxsize=32)
def level_sizes(side: int) -> tuple[int, ...]:
    """Rows, which are as many as columns, of each level for a square of ``side`` pixels."""
    sizes, size, stride = [], side, 1
    for wanted in STRIDES:
        while stride < wanted:  # each halving rounds up
            size, stride = (size + 1) // 2, stride * 2
        sizes.append(size)
    return tuple(sizes)


def locations(side: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Where the outputs of a square are.

    Returns:
        (L, 2) x and y of the locations in pixels, and (L,) the strides of their levels.
    """
    places, strides = [], []
    for stride, size in zip(STRIDES, level_sizes(side), strict=True):
        axis = (torch.arange(size, device=device, dtype=torch.float32) + 0.5) * stride
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        places.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        strides.append(torch.full((size * size,), float(stride), device=device))
    return torch.cat(places), torch.cat(strides)


class _SeparableConv(nn.Sequential):
    """A depthwise 3x3 convolution, a pointwise one, group norm and ReLU."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        super().__init__(depthwise, pointwise, nn.GroupNorm(_GROUPS, channels), nn.ReLU())


class FeaturePyramid(nn.Module):
    """Coarse maps handed down to finer ones (Lin et al., CVPR 2017), and one still coarser."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(count, channels, 1) for count in in_channels)
        self.smooth = nn.ModuleList(_SeparableConv(channels) for _ in in_channels)
        self.coarser = _SeparableConv(channels, stride=2)

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps (B, C_i, H_i, W_i), fine to coarse, to one more of D channels."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        for level in reversed(range(len(merged) - 1)):
            above = F.interpolate(merged[level + 1], size=merged[level].shape[-2:])
            merged[level] = merged[level] + above
        levels = [smooth(x) for smooth, x in zip(self.smooth, merged, strict=True)]
        return [*levels, self.coarser(levels[-1])]


class DetectorHead(nn.Module):
    """The outputs at each location; one set of weights for all levels."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.class_tower = nn.Sequential(*(_SeparableConv(channels) for _ in range(layers)))
        self.box_tower = nn.Sequential(*(_SeparableConv(channels) for _ in range(layers)))
        self.classes = nn.Conv2d(channels, len(CLASSES), 3, padding=1)
        self.sides = nn.Conv2d(channels, 4, 3, padding=1)
        self.centre = nn.Conv2d(channels, 1, 3, padding=1)
        self.level_scale = nn.Parameter(torch.ones(len(STRIDES)))
        for output in (self.classes, self.sides, self.centre):
            nn.init.normal_(output.weight, std=0.01)
            nn.init.zeros_(output.bias)  # type: ignore[arg-type]
        odds = torch.tensor(_FIRST_SCORE / (1 - _FIRST_SCORE))
        nn.init.constant_(self.classes.bias, float(odds.log()))  # type: ignore[arg-type]

    def forward(self, levels: list[Tensor]) -> DetectorOutput:
        """Outputs of all levels in a row."""
        logits, distances, centres = [], [], []
        for level, x_BDHW in enumerate(levels):
            logits.append(_in_a_row(self.classes(self.class_tower(x_BDHW))))
            boxed = self.box_tower(x_BDHW)
            exponent = self.level_scale[level] * _in_a_row(self.sides(boxed)).float()
            sides = exponent.clamp(max=_LARGEST_EXPONENT).exp() * STRIDES[level]
            distances.append(sides)
            centres.append(_in_a_row(self.centre(boxed))[..., 0])
        return DetectorOutput(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centres, 1))


def _in_a_row(map_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H * W, C)."""
    return map_BCHW.flatten(2).transpose(1, 2)


class Detector(nn.Module):
    """Finds people and hands in square pictures; see the module's docstring.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DetectorConfig | None = None) -> None:
        super().__init__()
        self.config = config or DetectorConfig()
        self.backbone = EfficientNetLite0()
        self.pyramid = FeaturePyramid(FEATURE_CHANNELS[1:], self.config.channels)
        self.head = DetectorHead(self.config.channels, self.config.tower_layers)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.batch_norm_momentum
        for module in self._frozen():
            module.requires_grad_(False).eval()

    def _frozen(self) -> list[nn.Module]:
        count, backbone = self.config.frozen_blocks, self.backbone
        first = [backbone._conv_stem, backbone._bn0] if count else []
        return [*first, *list(backbone._blocks)[:count]]

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, image_B3SS: Tensor) -> DetectorOutput:
        """Search RGB pictures in 0..1.

        Raises:
            InputError: The pictures are not square, or too small.
        """
        shape = tuple(image_B3SS.shape)
        if len(shape) != 4 or shape[-1] != shape[-2] or shape[-1] < _LEAST_SIDE:
            raise InputError(
                f"image_B3SS: expected (B, 3, S, S) with S from {_LEAST_SIDE} up, found {shape}. "
                "Put photos into a square with kinemesh.geometry.letterbox.Letterbox."
            )
        _, *maps = self.backbone.features(normalise(image_B3SS))
        output: DetectorOutput = self.head(self.pyramid(tuple(maps)))
        return output
