"""POTTER's trunk: a pyramid of pooling attention, and the stream that keeps its resolution.

The backbone makes maps of stride 4, 8, 16 and 32. The high-resolution stream brings the coarser
ones back to stride 4, one after the other, and adds them. Tensor names equal those of the official
code (POTTER: Zheng et al., CVPR 2023, section 3.2).

Shape legend: B batch, C channels, H and W size of the image in pixels, h and w of a map.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.pooling_attention import PoolFormerBlock, draw_weight, global_norm

Depths = tuple[int, int, int, int]
Ratios = tuple[float, float, float, float]
_STRIDE = 32  # of the coarsest map


@dataclass(frozen=True)
class PyramidConfig:
    """Sizes of the backbone; the defaults are those of the pose networks.

    Attributes:
        layers: Blocks of the four stages.
        widths: Channels of the four stages, multiples of 32.
        mlp_ratios: Hidden units of the feed-forward networks for one channel.
        dropout: Share of activations that training drops in feed-forward networks.
        drop_path: Share of samples for which training leaves out the branches of the last block;
            it grows linearly from 0 at the first.
    """

    layers: Depths = (2, 2, 6, 2)
    widths: Depths = (64, 128, 320, 512)
    mlp_ratios: Ratios = (4, 4, 4, 4)
    dropout: float = 0.1
    drop_path: float = 0.1

    def __post_init__(self) -> None:
        for name in ("layers", "widths", "mlp_ratios"):
            values = getattr(self, name)
            if len(values) != 4 or min(values) <= 0:
                raise InputError(f"{name}: expected four positive numbers, found {values}.")


@dataclass(frozen=True)
class TrunkConfig(PyramidConfig):
    """Sizes of a `PotterTrunk`; those of the stream are constants in the official code.

    Attributes:
        stream_layers: Blocks after each of the three sums.
        stream_mlp_ratios: Hidden units of their feed-forward networks for one channel.
    """

    stream_layers: tuple[int, int, int] = (2, 2, 4)
    stream_mlp_ratios: tuple[float, float, float] = (2, 2, 4)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("stream_layers", "stream_mlp_ratios"):
            values = getattr(self, name)
            if len(values) != 3 or min(values) <= 0:
                raise InputError(f"{name}: expected three positive numbers, found {values}.")


class PatchEmbed(nn.Module):
    """A strided convolution from an image or a map to the next coarser map."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int = 3,
        stride: int = 2,
        padding: int = 1,
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, kernel, stride, padding)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,out_channels,h,w)."""
        out: Tensor = self.proj(x_BCHW)
        return out


class PatchSplit(nn.Module):
    """Doubles a map's sides: nearest neighbours, convolution and, if wanted, a norm."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = global_norm(out_channels) if norm else nn.Identity()

    def forward(self, x_BChw: Tensor) -> Tensor:
        """Return (B,out_channels,2h,2w)."""
        out: Tensor = self.norm(self.proj(F.interpolate(x_BChw, scale_factor=2.0)))
        return out


class Pyramid(nn.Module):
    """The four stages, without what comes after them.

    Args:
        config: Sizes.
    """

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__()
        widths, total = config.widths, sum(config.layers)
        rates = iter([config.drop_path * n / max(total - 1, 1) for n in range(total)])
        self.patch_embed = PatchEmbed(3, widths[0], kernel=7, stride=4, padding=2)
        self.network = nn.ModuleList()
        for stage, (width, depth) in enumerate(zip(widths, config.layers, strict=True)):
            if stage:
                self.network.append(PatchEmbed(widths[stage - 1], width))
            blocks = [
                PoolFormerBlock(width, config.mlp_ratios[stage], config.dropout, next(rates))
                for _ in range(depth)
            ]
            self.network.append(nn.Sequential(*blocks))

    def maps(self, image_B3HW: Tensor) -> list[Tensor]:
        """The stages' maps, fine to coarse: (B,C,H/4,W/4) to (B,C,H/32,W/32)."""
        x = self.patch_embed(image_B3HW)
        found = []
        for index, layer in enumerate(self.network):
            x = layer(x)
            if index % 2 == 0:
                found.append(x)
        return found


class PotterBackbone(Pyramid):
    """The stages with a norm on each map that leaves; the next stage gets the map before it."""

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config)
        self.norm0, self.norm2, self.norm4, self.norm6 = map(global_norm, config.widths)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """Return the maps of the four stages, see `maps`; the image is normalised."""
        norms = (self.norm0, self.norm2, self.norm4, self.norm6)
        return [norm(x) for norm, x in zip(norms, self.maps(image_B3HW), strict=True)]


class HighResolutionStream(nn.Module):
    """Brings the coarser maps to stride 4, one after the other, with blocks after each sum.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        fine, second, third, coarse = config.widths
        self.patch_emb1 = PatchSplit(second, fine, norm=False)
        self.patch_emb2 = _splits(third, second, fine)
        self.patch_emb3 = _splits(coarse, third, second, fine)
        self.Block1, self.Block2, self.Block3 = (
            _blocks(fine, depth, ratio, config)
            for depth, ratio in zip(config.stream_layers, config.stream_mlp_ratios, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B,C,h,w) with the channels and size of the first of the four ``maps``."""
        x = self.Block1(self.patch_emb1(maps[1]) + maps[0])
        x = self.Block2(self.patch_emb2(maps[2]) + x)
        out: Tensor = self.Block3(self.patch_emb3(maps[3]) + x)
        return out


def _splits(*widths: int) -> nn.Sequential:
    """Splits from each width to the next; all but the last have a norm."""
    last = len(widths) - 2
    pairs = enumerate(itertools.pairwise(widths))
    return nn.Sequential(*(PatchSplit(*pair, norm=step != last) for step, pair in pairs))


def _blocks(width: int, depth: int, ratio: float, config: TrunkConfig) -> nn.Sequential:
    rates = [config.drop_path * n / max(depth - 1, 1) for n in range(depth)]
    return nn.Sequential(*(PoolFormerBlock(width, ratio, config.dropout, rate) for rate in rates))


class TrunkMaps(NamedTuple):
    """What the pose networks read.

    Attributes:
        fine: (B,C,H/4,W/4) of the high-resolution stream, normalised.
        coarse: (B,C,H/32,W/32) of the backbone, normalised once.
    """

    fine: Tensor
    coarse: Tensor


class PotterTrunk(nn.Module):
    """Backbone and high-resolution stream, with fresh weights as published.

    ``norm3``, the second norm of the coarse map, is left to the networks that read that map.

    Args:
        config: Sizes.
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.poolattn_cls = PotterBackbone(config)
        self.stage1 = HighResolutionStream(config)
        self.norm0 = global_norm(config.widths[0])
        self.norm3 = global_norm(config.widths[-1])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                draw_weight(module)

    def forward(self, image_B3HW: Tensor) -> TrunkMaps:
        """Return the two maps; the image is normalised.

        Raises:
            InputError: A side of the image is not a multiple of 32.
        """
        if image_B3HW.shape[-1] % _STRIDE or image_B3HW.shape[-2] % _STRIDE:
            raise InputError(
                f"image: expected sides that are multiples of {_STRIDE} px, found "
                f"{tuple(image_B3HW.shape[-2:])}; resize or pad the crop."
            )
        maps = self.poolattn_cls(image_B3HW)
        return TrunkMaps(self.norm0(self.stage1(maps)), maps[-1])


def widened(values: Tensor) -> Tensor:
    """At least float32: what autocast made narrower is too coarse for long sums."""
    return values if values.dtype in {torch.float32, torch.float64} else values.float()


def folded_weight(first: nn.Conv2d, second: nn.Conv3d) -> tuple[Tensor, Tensor]:
    """Weight (I D,C,1,1) and bias (I D) of a 1 x 1 convolution followed by one over joints.

    The first makes J D channels, joint-major; the second mixes the J joints of each cell into I.
    The product costs next to nothing beside the volume that it spares.
    """
    mix_IJ = second.weight.flatten(1)
    joints = mix_IJ.shape[1]
    assert first.bias is not None
    assert second.bias is not None
    weight_JDC = first.weight.reshape(joints, -1, first.in_channels)
    weight_IDC = torch.einsum("ij,jdc->idc", mix_IJ, weight_JDC)
    bias_ID = mix_IJ @ first.bias.reshape(joints, -1) + second.bias[:, None]
    return weight_IDC.flatten(0, 1)[:, :, None, None], bias_ID.flatten()
