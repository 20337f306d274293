"""Training losses on joints, vertices, meshes and heat maps.

A data set seldom knows everything about every sample. Two masks say what is known: ``has`` (B,)
selects the samples that carry a kind of label at all, ``confidence`` (B, N) weighs single points.
What is masked out gives no gradient and may hold any number, NaN included. A batch in which nothing
is selected gives a loss of zero that is still part of the graph.

Legend: B batch, N points, J joints, V vertices, F faces, D coordinates, h x w heat-map cells.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from kinemesh.errors import InputError


def check_same_points(prediction: Tensor, target: Tensor) -> None:
    """Refuse a prediction and a target that are not both (B, N, D).

    Raises:
        InputError: The shapes differ.
    """
    if prediction.shape != target.shape or prediction.ndim != 3:
        raise InputError(
            "prediction, target: expected the same shape (B, N, D), "
            f"found {tuple(prediction.shape)} and {tuple(target.shape)}."
        )


def masked_error(
    prediction_BND: Tensor,
    target_BND: Tensor,
    kind: Literal["l1", "mse"],
    confidence_BN: Tensor | None = None,
    has_B: Tensor | None = None,
) -> Tensor:
    """Mean absolute or squared difference over the coordinates of the selected samples.

    ``sum(has * confidence * error) / (sum(has) * N * D)``: points of low confidence still count in
    the divisor, as in METRO's losses, so a sample with few visible points weighs less.

    Args:
        prediction_BND: Points, any unit.
        target_BND: Points, same unit.
        kind: ``"l1"`` or ``"mse"``.
        confidence_BN: Weight of each point; 1 if None.
        has_B: 1 for samples with this label, else 0; 1 if None.

    Returns:
        () in the unit, or the squared unit, of the points.

    Raises:
        InputError: The shapes differ.
    """
    check_same_points(prediction_BND, target_BND)
    weight_BN = torch.ones_like(prediction_BND[..., 0])
    samples: Tensor | int = max(len(weight_BN), 1)  # a number, since a new tensor would be copied
    if confidence_BN is not None:
        weight_BN = weight_BN * confidence_BN
    if has_B is not None:
        weight_BN = weight_BN * has_B[:, None]
        samples = has_B.to(weight_BN.dtype).sum().clamp(min=1)
    weight_BN1 = weight_BN[..., None]
    # replaced before subtracting: zero times NaN would be NaN, in the gradient too
    target_BND = torch.where(weight_BN1 > 0, target_BND, prediction_BND.detach())
    difference_BND = prediction_BND - target_BND
    error_BND = difference_BND.abs() if kind == "l1" else difference_BND.square()
    points = prediction_BND.shape[1] * prediction_BND.shape[2]
    return (weight_BN1 * error_BND).sum() / (samples * points)


def joints_loss(prediction_BJD: Tensor, target_BJE: Tensor, has_B: Tensor | None = None) -> Tensor:
    """Squared error of 2D or 3D joints whose target carries its confidence in a last column.

    Args:
        prediction_BJD: (B, J, D) joints.
        target_BJE: (B, J, D + 1) joints and confidence.
        has_B: Samples with this label; all if None.
    """
    return masked_error(prediction_BJD, target_BJE[..., :-1], "mse", target_BJE[..., -1], has_B)


def vertices_loss(
    prediction_BV3: Tensor, target_BV3: Tensor, has_B: Tensor | None = None
) -> Tensor:
    """Absolute error of vertices in the unit of the input; ``has_B`` as in `masked_error`."""
    return masked_error(prediction_BV3, target_BV3, "l1", has_B=has_B)


def _face_edges(vertices_BV3: Tensor, faces_F3: Tensor) -> Tensor:
    """(B, F, 3, 3): the three edge vectors of each face, in turn around it."""
    corners_BF33 = vertices_BV3[:, faces_F3]
    return corners_BF33.roll(-1, dims=2) - corners_BF33


def _sample_mean(values_BN: Tensor, has_B: Tensor | None) -> Tensor:
    if has_B is None:
        return values_BN.mean()
    selected_BN = torch.where(has_B[:, None] > 0, values_BN, 0.0)
    return selected_BN.sum() / (has_B.sum().clamp(min=1) * values_BN.shape[1])


def _known(target_BV3: Tensor, prediction_BV3: Tensor, has_B: Tensor | None) -> Tensor:
    """The target, with the prediction's values in samples that have none."""
    if has_B is None:
        return target_BV3
    return torch.where(has_B[:, None, None] > 0, target_BV3, prediction_BV3.detach())


def edge_length_loss(
    prediction_BV3: Tensor, target_BV3: Tensor, faces_F3: Tensor, has_B: Tensor | None = None
) -> Tensor:
    """Mean difference of edge lengths, each face counting its three edges.

    It keeps the surface from stretching and folding (Pose2Mesh, Choi et al. 2020, eq. 5).

    Returns:
        () in the unit of the vertices.
    """
    target_BV3 = _known(target_BV3, prediction_BV3, has_B)
    own_BF3 = _length(_face_edges(prediction_BV3, faces_F3))
    true_BF3 = _length(_face_edges(target_BV3, faces_F3))
    return _sample_mean((own_BF3 - true_BF3).abs().flatten(1), has_B)


def normal_consistency_loss(
    prediction_BV3: Tensor, target_BV3: Tensor, faces_F3: Tensor, has_B: Tensor | None = None
) -> Tensor:
    """Mean |cosine| between predicted edges and the target's normal of the same face, in [0, 1].

    Zero when every predicted face lies in a plane parallel to its target (Pose2Mesh, Choi et al.
    2020, eq. 4; after Pixel2Mesh).
    """
    target_BV3 = _known(target_BV3, prediction_BV3, has_B)
    own_BF33 = normalize(_face_edges(prediction_BV3, faces_F3), dim=-1, eps=1e-9)
    true_BF33 = _face_edges(target_BV3, faces_F3)
    normal_BF3 = torch.linalg.cross(true_BF33[..., 0, :], true_BF33[..., 1, :])
    # face areas of a fine mesh in square metres lie near the default eps
    normal_BF13 = normalize(normal_BF3, dim=-1, eps=1e-20)[..., None, :]
    return _sample_mean((own_BF33 * normal_BF13).sum(dim=-1).abs().flatten(1), has_B)


def _length(vectors: Tensor) -> Tensor:
    """Norms with a finite gradient at zero, where a collapsed prediction starts."""
    return (vectors.square().sum(dim=-1) + 1e-16).sqrt()


def heatmap_cross_entropy(
    log_probability_BJhw: Tensor,
    target_BJ2: Tensor,
    confidence_BJ: Tensor | None = None,
    has_B: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of heat maps against sub-pixel targets.

    The target is spread over the four cells around it with bilinear weights, so that it is kept
    exactly: the mean of those cells is the target. Targets outside of the map do not count; those
    in the outer half cell are moved to the centre of the border cells.

    Args:
        log_probability_BJhw: Logarithms of probabilities that sum to 1 over each map, for example
            ``logits.flatten(2).log_softmax(-1).view_as(logits)``.
        target_BJ2: (x, y) in signed crop coordinates [-1, 1].
        confidence_BJ: Weight of each joint; 1 if None.
        has_B: Samples with this label; all if None.

    Returns:
        () in nats: the weighted mean over the joints that count.
    """
    height, width = log_probability_BJhw.shape[-2:]
    weight_BJ = (target_BJ2.abs() <= 1).all(dim=-1).to(log_probability_BJhw.dtype)
    if confidence_BJ is not None:
        weight_BJ = weight_BJ * confidence_BJ
    if has_B is not None:
        weight_BJ = weight_BJ * has_B[:, None]
    target_BJ2 = torch.where(weight_BJ[..., None] > 0, target_BJ2, 0.0)
    size_2 = target_BJ2.new_tensor([width, height])
    cell_BJ2 = ((target_BJ2 + 1) / 2 * size_2 - 0.5).clamp(min=0).minimum(size_2 - 1)
    low_BJ2 = cell_BJ2.floor()
    share_BJ2 = cell_BJ2 - low_BJ2
    flat_BJN = log_probability_BJhw.flatten(2)
    entropy_BJ = torch.zeros_like(weight_BJ)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        x_BJ = (low_BJ2[..., 0].long() + dx).clamp(max=width - 1)
        y_BJ = (low_BJ2[..., 1].long() + dy).clamp(max=height - 1)
        part_x = share_BJ2[..., 0] if dx else 1 - share_BJ2[..., 0]
        part_y = share_BJ2[..., 1] if dy else 1 - share_BJ2[..., 1]
        found_BJ = flat_BJN.gather(2, (y_BJ * width + x_BJ)[..., None])[..., 0]
        entropy_BJ = entropy_BJ - part_x * part_y * found_BJ
    total = weight_BJ.sum()
    return (weight_BJ * entropy_BJ).sum() / torch.where(total > 0, total, 1.0)
