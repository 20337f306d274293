"""Losses of PointHMR (Kim et al., CVPR 2023, section 3.4): METRO's, and one of the heat maps.

A heat map is compared with a single position: where the labelled vertex falls with the camera that
the network predicts in the same step. Binary cross-entropy over all positions and a Dice term are
added up. The official code writes every target down as a picture of 112 x 112, and enlarges every
prediction to it; both losses follow from the share at one position and two sums over the map that
the network sampled with, at a quarter of the size and without any target in memory. The numbers
are the same up to rounding (`tests/slow_heat_maps.py` writes them out).

Everything is masked instead of selected, so no step waits for the device.

Legend: B batch, N coarse vertices, H x W positions of a heat map, P = H W.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.mesh_losses import MeshLossWeights, MeshTargets, MeshTransformerLoss
from kinemesh.models.point_hmr import PointHmrOutput

ENLARGEMENT = 2
"""Side of the maps that losses speak of over that of the maps that features are sampled with."""
_DICE_SLACK = 1e-5
_LEAST_LOG = -100.0  # PyTorch's, of the logarithms in a binary cross-entropy
_LEAST_SLOPE = 1e-12  # and of the denominator of its derivative
_FAR = 1e6  # positions: so far outside that it matters no more how far


@dataclass(frozen=True)
class PointLossWeights(MeshLossWeights):
    """Weights of the terms; the defaults are the published ones.

    Attributes:
        heat: Of the heat maps.
        cross_entropy: Of the binary cross-entropy within the heat maps; Dice has 1.
    """

    heat: float = 10.0
    cross_entropy: float = 1000.0


class HeatTargets(NamedTuple):
    """Where heat maps should be high.

    Attributes:
        index_BN: (B,N) int64 flat position, row by row, in the enlarged map; 0 where not kept.
        kept_BN: (B,N) bool, False for points that are outside of the map.
    """

    index_BN: Tensor
    kept_BN: Tensor


def heat_targets(points_BN2: Tensor, side: int) -> HeatTargets:
    """Positions of projected points in square maps.

    Coordinates are cut to whole numbers towards zero, and only the flat index has to lie in the
    map. So a point less than one position left of or above the map belongs to its border, and one
    beyond the left or right border comes in again a row above or below. The published training has
    both, and so has this.

    Args:
        points_BN2: Signed crop coordinates, [-1, 1] inside. No gradient flows through positions.
        side: Of the maps.
    """
    # not a number, or too far away for an integer: outside, like all that is far away
    scaled_BN2 = torch.nan_to_num((points_BN2.detach() + 1) * 0.5 * side, nan=-_FAR)
    x_BN, y_BN = scaled_BN2.clamp(-_FAR, _FAR).to(torch.int64).unbind(dim=-1)
    flat_BN = side * y_BN + x_BN
    kept_BN = (flat_BN >= 0) & (flat_BN < side * side)
    return HeatTargets(torch.where(kept_BN, flat_BN, 0), kept_BN)


class HeatTerms(NamedTuple):
    """The two parts of the heat-map loss, means over the maps that count.

    Attributes:
        dice: () one minus the Dice coefficient.
        cross_entropy: () binary cross-entropy, mean over all positions of the enlarged map.
    """

    dice: Tensor
    cross_entropy: Tensor


def heat_map_terms(
    heat_BNHW: Tensor,
    targets: HeatTargets,
    has_B: Tensor | None = None,
    enlargement: int = ENLARGEMENT,
) -> HeatTerms:
    """Compare heat maps with one position each.

    Enlarging repeats a cell in a block of r x r and divides it by r^2, so that shares still sum to
    one. With p = share / r^2 at the target and q over all cells, the cross-entropy of a map is
    ``-log p + log(1 - p) - r^2 sum log(1 - q)`` over its number of positions, and Dice is
    ``2 (p + e) / (sum of shares + 1 + 2 e)``.

    Args:
        heat_BNHW: Shares that sum to one, as the network samples with.
        targets: Positions in the enlarged maps, whose side is ``enlargement`` times H.
        has_B: 1 for samples with a labelled mesh, else 0; all if None.
        enlargement: r.

    Returns:
        Zeros that are part of the graph where no map counts.

    Raises:
        InputError: Targets and maps are not of the same vertices.
    """
    if heat_BNHW.ndim != 4 or heat_BNHW.shape[:2] != targets.index_BN.shape:
        raise InputError(
            f"heat: expected maps (B, N, H, W) for targets of shape "
            f"{tuple(targets.index_BN.shape)}, found {tuple(heat_BNHW.shape)}."
        )
    side = heat_BNHW.shape[-1] * enlargement
    row, column = targets.index_BN // side, targets.index_BN % side
    cell_BN = row // enlargement * heat_BNHW.shape[-1] + column // enlargement
    counts_BN = targets.kept_BN if has_B is None else targets.kept_BN & (has_B[:, None] > 0)
    shares_BNP = heat_BNHW.flatten(2)
    at_target_BN = shares_BNP.gather(2, cell_BN[..., None])[..., 0] / enlargement**2

    positions = shares_BNP.shape[-1] * enlargement**2
    empty_BN: Tensor = -_LogOfComplements.apply(shares_BNP, enlargement)  # type: ignore[no-untyped-call]
    one, zero = torch.ones_like(at_target_BN), torch.zeros_like(at_target_BN)
    hit_BN = F.binary_cross_entropy(at_target_BN, one, reduction="none")
    hit_BN = hit_BN - F.binary_cross_entropy(at_target_BN, zero, reduction="none")
    overlap_BN = 2 * (at_target_BN + _DICE_SLACK)
    dice_BN = 1 - overlap_BN / (shares_BNP.sum(dim=-1) + 1 + 2 * _DICE_SLACK)

    maps = counts_BN.sum().clamp(min=1)
    dice = torch.where(counts_BN, dice_BN, 0).sum() / maps
    return HeatTerms(dice, torch.where(counts_BN, empty_BN + hit_BN, 0).sum() / maps / positions)


class _LogOfComplements(torch.autograd.Function):
    """Sum of log(1 - q) over an enlarged map; only the map that came in is kept for the way back.

    Value and derivative are those of PyTorch's binary cross-entropy with a target of zero.
    """

    @staticmethod
    def forward(ctx: Any, shares_BNP: Tensor, enlargement: int) -> Tensor:
        ctx.save_for_backward(shares_BNP)
        ctx.enlargement = enlargement
        logs_BNP = torch.log1p(shares_BNP * (-1 / enlargement**2)).clamp_(min=_LEAST_LOG)
        return logs_BNP.sum(dim=-1) * enlargement**2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (shares_BNP,) = ctx.saved_tensors
        q_BNP = shares_BNP / ctx.enlargement**2
        slope_BNP = q_BNP.sub(1).mul_(q_BNP).clamp_(max=-_LEAST_SLOPE)
        return q_BNP.div_(slope_BNP).mul_(gradients[0][..., None]), None


class PointHmrLoss(MeshTransformerLoss):
    """All loss terms of a `PointHmrOutput`.

    Args:
        topology: The mesh that the network predicts.
        weights: Weights of the terms.

    Raises:
        InputError: There is not one level weight for each mesh of the topology.
    """

    weights: PointLossWeights

    def __init__(self, topology: Topology, weights: PointLossWeights) -> None:
        super().__init__(topology, weights)

    def heat_targets(self, output: PointHmrOutput, targets: MeshTargets) -> HeatTargets:
        """Where the labelled coarse vertices fall with the predicted camera."""
        coarse_BN3 = targets.vertices_BV3.index_select(1, self.get_buffer(self._levels[0]))
        points_BN2 = WeakPerspective.from_vector(output.camera).project(coarse_BN3)
        return heat_targets(points_BN2, output.heat.shape[-1] * ENLARGEMENT)

    def forward(self, output: PointHmrOutput, targets: MeshTargets) -> dict[str, Tensor]:  # type: ignore[override]
        """Compute every term.

        Args:
            output: What the network predicts.
            targets: What is known.

        Returns:
            The terms of `MeshTransformerLoss`, ``loss_heat_dice``, ``loss_heat_bce``, and the
            weighted sum ``total`` of all.

        Raises:
            InputError: Shapes of prediction and target differ.
        """
        terms = super().forward(output, targets)  # type: ignore[arg-type]
        total = terms.pop("total")
        heat = heat_map_terms(output.heat, self.heat_targets(output, targets), targets.has_mesh_B)
        weights = self.weights
        weighted = weights.heat * (heat.dice + weights.cross_entropy * heat.cross_entropy)
        return terms | {
            "loss_heat_dice": heat.dice,
            "loss_heat_bce": heat.cross_entropy,
            "total": total + weighted,
        }
