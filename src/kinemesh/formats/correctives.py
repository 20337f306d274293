"""Corrections of a surface that depend on the pose, as a few displacements with weights.

SMPL and MANO move each vertex by a linear function of 9 numbers a bone (SMPL, 2015, eq. 9) before
the skin does. No skin holds that, but morph targets do; the corrections of one motion lie near a
space of few dimensions, which its principal components span.

Legend of shapes: T times, P entries of the bones' rotations, V vertices, K displacements.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.posable import PosableBody

LEFT_OUT_M = 1e-5
"""Root mean square over the vertices that the displacements may miss at any time."""


@dataclass(frozen=True, eq=False)
class Correctives:
    """``base + sum_k weights[t, k] * displacements[k]`` is the correction at time t.

    Attributes:
        base: (V, 3) float64 metres, rest frame.
        displacements: (K, V, 3) float64 metres; K is 0 where the base is enough.
        weights: (T, K) float64 in 0..1, since some tools know no others.
    """

    base: np.ndarray
    displacements: np.ndarray
    weights: np.ndarray


def find_correctives(body: PosableBody, rotations_TN33: Tensor) -> Correctives:
    """The corrections of a motion; all zeros for a body that has none.

    Args:
        body: The body.
        rotations_TN33: (T, N, 3, 3) relative to the parent, as in `PosableBody.pose`.
    """
    V, T = len(body.template), len(rotations_TN33)
    if body.pose_basis is None:
        return Correctives(np.zeros((V, 3)), np.zeros((0, V, 3)), np.zeros((T, 0)))
    basis_PD = body.pose_basis.flatten(0, 1).flatten(1).double().numpy()
    change_TP = (rotations_TN33[:, 1:] - torch.eye(3)).flatten(1).double().numpy()
    weights_TK, displacements_KD = _principal(change_TP - change_TP.mean(0), basis_PD, V)
    low, high = weights_TK.min(0), weights_TK.max(0)
    base_D = change_TP.mean(0) @ basis_PD + low @ displacements_KD
    return Correctives(
        base_D.reshape(V, 3),
        (displacements_KD * (high - low)[:, None]).reshape(-1, V, 3),
        (weights_TK - low) / (high - low),
    )


def _principal(
    change_TP: np.ndarray, basis_PD: np.ndarray, vertices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (T, K) and orthonormal displacements (K, D) of ``change @ basis``.

    The work is in the P entries: neither T nor D numbers are ever squared.
    """
    metric_P, axes_PP = np.linalg.eigh(basis_PD @ basis_PD.T)
    known = metric_P > metric_P[-1] * 1e-12
    root_PR = axes_PP[:, known] * np.sqrt(metric_P[known])
    whitened_TR = change_TP @ root_PR  # lengths in it are lengths of corrections
    _, directions_RR = np.linalg.eigh(whitened_TR.T @ whitened_TR)
    weights_TR = (whitened_TR @ directions_RR)[:, ::-1]
    # What is left out after the first k components, at the worst time.
    squares_TR = np.cumsum(weights_TR[:, ::-1] ** 2, axis=1)[:, ::-1]
    count = int((np.sqrt(squares_TR.max(0) / vertices) > LEFT_OUT_M).sum())
    chosen_RK = directions_RR[:, ::-1][:, :count]
    unwhitened_PK = axes_PP[:, known] / np.sqrt(metric_P[known]) @ chosen_RK
    return weights_TR[:, :count], unwhitened_PK.T @ basis_PD
