"""Best similarity between two point sets (orthogonal Procrustes with scale, Umeyama 1991).

Inside, arrays are *planar*, (3, N, B): sums over a few points of very many samples then run over
long stretches of memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.geometry.closest_rotation import closest_rotation

FEW_POINTS = 64
"""Up to here sums of products of long arrays beat a matrix product for each small sample."""


@dataclass(frozen=True)
class Similarity:
    """``q = scale * rotation @ p + translation``.

    Attributes:
        scale: (B,).
        rotation: (B, 3, 3); determinant +1, or -1 where a reflection was allowed and fits better.
        translation: (B, 3) in the unit of the points.
    """

    scale: Tensor
    rotation: Tensor
    translation: Tensor

    def apply(self, points: Tensor) -> Tensor:
        """Move points (B, M, 3)."""
        turn_B33 = self.scale[:, None, None] * self.rotation
        if points.shape[1] > FEW_POINTS:
            return points @ turn_B33.mT + self.translation[:, None]
        turn_331B = turn_B33.permute(1, 2, 0)[:, :, None]
        points_3NB = points.permute(2, 1, 0)
        moved_3NB = self.translation.T[:, None]
        for k in range(3):
            moved_3NB = moved_3NB + turn_331B[:, k] * points_3NB[k]
        return moved_3NB.permute(2, 1, 0)


def coordinates_first(points: Tensor) -> Tensor:
    """The same points (B, N, 3), laid out in memory with all first coordinates before all second.

    Arithmetic on many small samples then runs over long arrays. The numbers and the shape stay.
    """
    return points.permute(2, 1, 0).contiguous().permute(2, 1, 0)


def procrustes_align(
    source: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    scale: bool = True,
    reflection: bool = False,
    check_finite: bool = True,
) -> Similarity:
    """Similarity that takes ``source`` closest to ``target`` in the weighted least-squares sense.

    With centred points, K = sum w t s^T = U S V^T, D = diag(1, 1, sign det(U V^T)), the rotation is
    U D V^T and the scale tr(D S) / sum w |s|^2 (Umeyama 1991, eq. 40-42).

    Input without a unique answer still gives a finite one of least error:
    weights all zero: the identity; source in a single point: scale 1, no rotation, the weighted
    centroids coincide; target in a single point: no rotation, and scale 0 if scale is free;
    collinear points or fewer than three: one of the equally good rotations.
    Gradients are finite; they are zero in the rotation where it has no unique answer.

    Args:
        source: (B, N, 3), any unit.
        target: (B, N, 3), same unit.
        weights: (B, N), not negative; all equal if None.
        scale: Whether the scale is free; it is 1 otherwise (rigid alignment).
        reflection: Whether the rotation may be a reflection (as in FreiHAND's official scores).
        check_finite: Whether to look for NaN and negative weights, which waits for the device.
            Without it NaN gives NaN in the sample that holds it.

    Returns:
        The B similarities.

    Raises:
        InputError: Shapes differ, N is 0, a number is not finite, or a weight is negative.
    """
    _check_shapes(source, target, weights)
    if check_finite:
        _check_values(source, target, weights)
    w_NB = None if weights is None else _normalised(weights.to(source.dtype).T)
    source_mean_3B, s_3NB, source_variance_B = _centred(source.permute(2, 1, 0), w_NB)
    target_mean_3B, t_3NB, target_variance_B = _centred(target.permute(2, 1, 0), w_NB)
    source_flat_B = _is_point(source_variance_B, source_mean_3B)
    target_flat_B = _is_point(target_variance_B, target_mean_3B)
    k_33B = _cross_covariance(t_3NB, s_3NB, w_NB)
    eye_331 = torch.eye(3, dtype=k_33B.dtype, device=k_33B.device)[..., None]
    k_33B = torch.where(source_flat_B | target_flat_B, eye_331, k_33B)
    rotation_B33 = closest_rotation(k_33B.permute(2, 0, 1), reflection)
    rotation_33B = rotation_B33.permute(1, 2, 0)
    factor_B = torch.ones_like(source_variance_B)
    if scale:
        alignment_B = (rotation_33B * k_33B).sum(dim=(0, 1))  # tr(R^T K)
        alignment_B = torch.where(target_flat_B, 0.0, alignment_B)
        free_B = alignment_B / torch.where(source_flat_B, 1.0, source_variance_B)
        factor_B = torch.where(source_flat_B, factor_B, free_B)
    moved_3B = factor_B * (rotation_33B * source_mean_3B).sum(dim=1)
    return Similarity(factor_B, rotation_B33, (target_mean_3B - moved_3B).T)


def _normalised(weights_NB: Tensor) -> Tensor:
    """Weights of sum one, or zero where all are zero."""
    total_B = weights_NB.sum(dim=0)
    return weights_NB / torch.where(total_B > 0, total_B, 1.0)


def _centred(points_3NB: Tensor, w_NB: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (3, B), points without it (3, N, B), and their mean square distance from it (B,)."""
    mean_3B = _mean(points_3NB, w_NB)
    centred_3NB = points_3NB - mean_3B[:, None]
    return mean_3B, centred_3NB, _mean(centred_3NB.square(), w_NB).sum(dim=0)


def _mean(values_3NB: Tensor, w_NB: Tensor | None) -> Tensor:
    return values_3NB.mean(dim=1) if w_NB is None else (w_NB * values_3NB).sum(dim=1)


def _cross_covariance(t_3NB: Tensor, s_3NB: Tensor, w_NB: Tensor | None) -> Tensor:
    """K = sum w t s^T (3, 3, B)."""
    t_3NB = t_3NB / t_3NB.shape[1] if w_NB is None else w_NB * t_3NB
    if t_3NB.shape[1] > FEW_POINTS:
        return (t_3NB.permute(2, 0, 1) @ s_3NB.permute(2, 1, 0)).permute(1, 2, 0)
    return torch.stack([torch.stack([(t * s).sum(dim=0) for s in s_3NB]) for t in t_3NB])


def _is_point(variance_B: Tensor, mean_3B: Tensor) -> Tensor:
    """(B,) whether points of this variance and mean coincide up to rounding."""
    limit = (8 * torch.finfo(mean_3B.dtype).eps) ** 2
    return variance_B <= limit * (mean_3B.square().sum(dim=0) + variance_B)


def _check_shapes(source: Tensor, target: Tensor, weights: Tensor | None) -> None:
    if source.ndim != 3 or source.shape[2] != 3 or source.shape[1] == 0:
        raise InputError(f"source: expected shape (B, N, 3), found {tuple(source.shape)}.")
    if target.shape != source.shape:
        raise InputError(
            f"target: expected the shape of source, {tuple(source.shape)}, "
            f"found {tuple(target.shape)}."
        )
    if weights is not None and weights.shape != source.shape[:2]:
        raise InputError(
            f"weights: expected shape {tuple(source.shape[:2])}, found {tuple(weights.shape)}."
        )


def _check_values(source: Tensor, target: Tensor, weights: Tensor | None) -> None:
    for name, values in (("source", source), ("target", target), ("weights", weights)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise InputError(
                f"{name}: expected finite numbers, found NaN or inf. "
                "Put numbers in place of missing points and give them weight 0."
            )
    if weights is not None and bool((weights < 0).any()):
        raise InputError(f"weights: expected no negative number, found {float(weights.min())}.")
