"""The heat-map loss written out: enlarged predictions against pictures of ones and zeros."""

import torch
import torch.nn.functional as F
from torch import Tensor

SLACK = 1e-5


def enlarged(heat_BNHW: Tensor, times: int) -> Tensor:
    """(B,N,rH,rW): every share in a block of r x r positions, which divide it among them."""
    rows = heat_BNHW.repeat_interleave(times, dim=2)
    return rows.repeat_interleave(times, dim=3) / times**2


def one_hot(index_BN: Tensor, positions: int) -> Tensor:
    """(B,N,positions) float32."""
    return F.one_hot(index_BN, positions).float()


def terms_of_maps(prediction_MP: Tensor, target_MP: Tensor) -> tuple[Tensor, Tensor]:
    """One minus Dice, and binary cross-entropy, of each of M maps."""
    bce_M = F.binary_cross_entropy(prediction_MP, target_MP, reduction="none").mean(dim=-1)
    overlap_M = (prediction_MP * target_MP).sum(dim=-1) + SLACK
    total_M = prediction_MP.sum(dim=-1) + target_MP.sum(dim=-1) + 2 * SLACK
    return 1 - 2 * overlap_M / total_M, bce_M


def heat_map_terms(
    logits_BNHW: Tensor, index_BN: Tensor, kept_BN: Tensor, has_B: Tensor, times: int
) -> tuple[Tensor, Tensor]:
    """The two means over kept maps of labelled samples, as the official code goes about it."""
    large = F.interpolate(logits_BNHW, scale_factor=times, mode="nearest").flatten(2)
    shares_BNP = large.softmax(dim=-1)
    chosen = kept_BN & (has_B > 0)[:, None]
    target_MP = one_hot(index_BN[chosen], shares_BNP.shape[-1])
    dice_M, bce_M = terms_of_maps(shares_BNP[chosen], target_MP)
    return dice_M.mean(), bce_M.mean()


def index_of(x: float, y: float, side: int) -> int | None:
    """Flat position of a point in signed coordinates, None where it is outside."""
    column, row = int((x + 1) * 0.5 * side), int((y + 1) * 0.5 * side)
    flat = side * row + column
    return flat if 0 <= flat < side * side else None


def as_tensors(points: list[tuple[float, float]], side: int) -> tuple[Tensor, Tensor]:
    """Indices and flags of points one by one."""
    found = [index_of(x, y, side) for x, y in points]
    kept = torch.tensor([index is not None for index in found])
    return torch.tensor([index or 0 for index in found]), kept
