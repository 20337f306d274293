"""Best similarity between two point sets (orthogonal Procrustes with scale, Umeyama 1991)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemesh.errors import InputError


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
        turned = points @ self.rotation.transpose(-1, -2)
        return self.scale[:, None, None] * turned + self.translation[:, None]


def procrustes_align(
    source: Tensor,
    target: Tensor,
    weights: Tensor | None = None,
    scale: bool = True,
    reflection: bool = False,
) -> Similarity:
    """Similarity that takes ``source`` closest to ``target`` in the weighted least-squares sense.

    With centred points, K = sum w t s^T = U S V^T, D = diag(1, 1, sign det(U V^T)), the rotation is
    U D V^T and the scale tr(D S) / sum w |s|^2 (Umeyama 1991, eq. 40-42).

    Input without a unique answer still gives a finite one of least error:
    weights all zero: the identity; source in a single point: scale 1, no rotation, the weighted
    centroids coincide; target in a single point: no rotation, and scale 0 if scale is free;
    collinear points or fewer than three: one of the equally good rotations.
    Gradients are finite except at those inputs and where two singular values of K agree.

    Args:
        source: (B, N, 3), any unit.
        target: (B, N, 3), same unit.
        weights: (B, N), not negative; all equal if None.
        scale: Whether the scale is free; it is 1 otherwise (rigid alignment).
        reflection: Whether the rotation may be a reflection (as in FreiHAND's official scores).

    Returns:
        The B similarities.

    Raises:
        InputError: Shapes differ, N is 0, a number is not finite, or a weight is negative.
    """
    _check(source, target, weights)
    w = torch.ones_like(source[..., 0]) if weights is None else weights.to(source.dtype)
    total = w.sum(dim=1, keepdim=True)
    w = (w / torch.where(total > 0, total, 1.0))[..., None]
    source_mean, target_mean = (w * source).sum(dim=1), (w * target).sum(dim=1)
    s, t = source - source_mean[:, None], target - target_mean[:, None]
    source_flat, target_flat = _is_point(s, source, w), _is_point(t, target, w)
    k = (w * t).transpose(1, 2) @ s
    rotation, alignment = _rotation(k, source_flat | target_flat, reflection)
    variance = (w * s.square()).sum(dim=(1, 2))
    factor = torch.ones_like(variance)
    if scale:
        free = torch.where(target_flat, 0.0, alignment) / torch.where(source_flat, 1.0, variance)
        factor = torch.where(source_flat, factor, free)
    moved = factor[:, None] * (rotation @ source_mean[..., None])[..., 0]
    return Similarity(factor, rotation, target_mean - moved)


def _rotation(k: Tensor, degenerate: Tensor, reflection: bool) -> tuple[Tensor, Tensor]:
    """Rotation closest to K and tr(D S); the identity where ``degenerate``."""
    eye = torch.eye(3, dtype=k.dtype, device=k.device)
    u, singular, vh = torch.linalg.svd(torch.where(degenerate[:, None, None], eye, k))
    signs = torch.ones_like(singular)
    if not reflection:
        # det is +-1 up to rounding; sign() could only be 0 for a matrix that is no rotation
        signs = torch.cat((signs[:, :2], torch.det(u @ vh).sign()[:, None]), dim=1)
    return u * signs[:, None] @ vh, (signs * singular).sum(dim=1)


def _is_point(centred: Tensor, points: Tensor, w: Tensor) -> Tensor:
    """(B,) whether the weighted points coincide up to rounding."""
    reach = (points.abs() * (w > 0)).amax(dim=(1, 2))
    spread = (centred.abs() * (w > 0)).amax(dim=(1, 2))
    return spread <= 8 * torch.finfo(points.dtype).eps * reach


def _check(source: Tensor, target: Tensor, weights: Tensor | None) -> None:
    if source.ndim != 3 or source.shape[2] != 3 or source.shape[1] == 0:
        raise InputError(f"source: expected shape (B, N, 3), found {tuple(source.shape)}.")
    if target.shape != source.shape:
        raise InputError(
            f"target: expected the shape of source, {tuple(source.shape)}, "
            f"found {tuple(target.shape)}."
        )
    for name, values in (("source", source), ("target", target), ("weights", weights)):
        if values is not None and not bool(torch.isfinite(values).all()):
            raise InputError(
                f"{name}: expected finite numbers, found NaN or inf. "
                "Put numbers in place of missing points and give them weight 0."
            )
    if weights is None:
        return
    if weights.shape != source.shape[:2]:
        raise InputError(
            f"weights: expected shape {tuple(source.shape[:2])}, found {tuple(weights.shape)}."
        )
    if bool((weights < 0).any()):
        raise InputError(f"weights: expected no negative number, found {float(weights.min())}.")
