"""Codes that tell a transformer where in a map a token comes from.

The sine code extends that of Vaswani et al. (NeurIPS 2017) to two axes, as DETR does (Carion et
al., ECCV 2020, appendix A.4): half of the channels encode y, the other half x. The learned one
holds a table for each axis.

Shape legend: B batch, D width, H and W size of a map.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError

_TEMPERATURE = 10000
_TABLE_SIZE = 50  # rows and columns that the published learned code has


def sine_position_code(valid_BHW: Tensor, width: int) -> Tensor:
    """Sine and cosine of the position among the pixels that count.

    Positions are 1-based counts of valid pixels along each axis, divided by the largest count and
    multiplied by 2 pi. Channels take sine and cosine in turn; the first half is for y, the second
    for x.

    Args:
        valid_BHW: (B,H,W) bool, False where the map is padding.
        width: D, a multiple of 4.

    Returns:
        (B,D,H,W) float32.
    """
    counts_BHW = valid_BHW.to(torch.float32)
    y_BHW, x_BHW = counts_BHW.cumsum(1), counts_BHW.cumsum(2)
    y_BHW = y_BHW / (y_BHW[:, -1:] + 1e-6) * (2 * math.pi)
    x_BHW = x_BHW / (x_BHW[:, :, -1:] + 1e-6) * (2 * math.pi)
    half = width // 2
    pair = torch.arange(half, device=valid_BHW.device) // 2
    period_D = _TEMPERATURE ** (2 * pair / half)
    angles_BHWAD = torch.stack([y_BHW, x_BHW], dim=-1)[..., None] / period_D
    code = torch.stack([angles_BHWAD[..., 0::2].sin(), angles_BHWAD[..., 1::2].cos()], dim=-1)
    return code.flatten(3).permute(0, 3, 1, 2)


class SinePositionEncoding(nn.Module):
    """`sine_position_code` for a map; it has no tensors.

    Args:
        width: D.

    Raises:
        InputError: The width is not a multiple of 4.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % 4:
            raise InputError(f"width: expected a multiple of 4, found {width}.")
        self.width = width

    def forward(self, map_BCHW: Tensor, padding_BHW: Tensor | None = None) -> Tensor:
        """Return (B,D,H,W) in the map's dtype, or (1,D,H,W) without padding.

        Args:
            map_BCHW: Any map of the size wanted.
            padding_BHW: (B,H,W) bool, True where the map is padding.
        """
        if padding_BHW is None:
            height, width = map_BCHW.shape[-2:]
            valid = torch.ones(1, height, width, dtype=torch.bool, device=map_BCHW.device)
        else:
            valid = ~padding_BHW
        return sine_position_code(valid, self.width).to(map_BCHW.dtype)


class LearnedPositionEncoding(nn.Module):
    """A learned vector for each column and each row; a token gets both.

    Args:
        width: D; the first half is the column's vector, the second the row's.
        size: Rows and columns of the largest map.
    """

    def __init__(self, width: int, size: int = _TABLE_SIZE) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(size, width // 2)
        self.col_embed = nn.Embedding(size, width // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.col_embed.weight)

    def forward(self, map_BCHW: Tensor, padding_BHW: Tensor | None = None) -> Tensor:
        """Return (1,D,H,W); padding is not looked at.

        Raises:
            InputError: The map is larger than the tables.
        """
        height, width = map_BCHW.shape[-2:]
        size = self.row_embed.num_embeddings
        if max(height, width) > size:
            raise InputError(
                f"map: expected at most {size} x {size} cells for the learned positions, found "
                f"{height} x {width}; use a smaller image or the sine code."
            )
        x_DHW = self.col_embed.weight[:width].T[:, None].expand(-1, height, -1)
        y_DHW = self.row_embed.weight[:height].T[:, :, None].expand(-1, -1, width)
        return torch.cat([x_DHW, y_DHW])[None]


PositionEncodingName = Literal["sine", "learned"]


def position_encoding(name: PositionEncodingName, width: int) -> nn.Module:
    """The code of that name.

    Raises:
        InputError: There is no such code.
    """
    if name == "sine":
        return SinePositionEncoding(width)
    if name == "learned":
        return LearnedPositionEncoding(width)
    raise InputError(f"position encoding: expected 'sine' or 'learned', found {name!r}.")
