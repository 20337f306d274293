"""Which query of a network answers which label: one-to-one, at the smallest total cost.

DETR (Carion et al., ECCV 2020, section 3.1) trains a set of hypotheses by giving each label a query
of its own; PRTR (Li et al., CVPR 2021, section 3.2) does so for the joints of a person. The costs
are computed where the network runs, and all of them reach the CPU in one copy.

Shape legend: L decoder layers, B samples, Q queries, J joints, N people of an image, T labels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from kinemesh.errors import InputError

COORDINATE_COST = 5.0
"""Weight of distances, of joints and of boxes."""
CLASS_COST = 1.0
"""Weight of the probability of the right class."""
OVERLAP_COST = 2.0
"""Weight of the generalised overlap of boxes."""
_WORST = 1e9


def match(logits: Tensor, coords: Tensor, target_BJ2: Tensor) -> Tensor:
    """Give each joint of each sample a query of its own.

    All joints take part. One without a label, with the filler that its data set has in its place,
    occupies a query like any other, as published.

    Args:
        logits: (B,Q,J+1) before softmax, or (L,B,Q,J+1): each layer is matched anew. The last
            class is the background.
        coords: (B,Q,2), or (L,B,Q,2); any unit, the same as the labels'.
        target_BJ2: Places of the joints.

    Returns:
        (B,J) or (L,B,J) int64, the query of each joint, on the device of the logits.

    Raises:
        InputError: There are fewer queries than joints.
    """
    return assign([keypoint_cost(logits, coords, target_BJ2)])[0]


def match_boxes(logits: Tensor, boxes: Tensor, target_BN4: Tensor, people_BN: Tensor) -> Tensor:
    """Give each labelled box of each image a query of its own.

    Args:
        logits: (B,Q,2) or (L,B,Q,2) before softmax: person, no object.
        boxes: (B,Q,4) or (L,B,Q,4) centre x, centre y, width and height in [0,1].
        target_BN4: Labelled boxes; rows that are none may hold anything.
        people_BN: True for a labelled box. The rest gets some of the other queries.

    Returns:
        (B,N) or (L,B,N) int64, the query of each box.

    Raises:
        InputError: There are fewer queries than rows.
    """
    return assign([box_cost(logits, boxes, target_BN4, people_BN)])[0]


@torch.no_grad()
def keypoint_cost(logits: Tensor, coords: Tensor, target_BJ2: Tensor) -> Tensor:
    """Cost (...,B,Q,J) of each joint at each query; see `match`.

    Five times the sum of the absolute differences in x and y, less the joint's probability among
    all classes.
    """
    probability = logits.float().softmax(dim=-1)[..., :-1]
    return COORDINATE_COST * _distances(coords, target_BJ2) - CLASS_COST * probability


@torch.no_grad()
def box_cost(logits: Tensor, boxes: Tensor, target_BN4: Tensor, people_BN: Tensor) -> Tensor:
    """Cost (...,B,Q,N) of each box at each query, by DETR's rule; see `match_boxes`."""
    probability = logits.float().softmax(dim=-1)[..., :1]
    overlap = generalised_iou(boxes.float().unsqueeze(-2), target_BN4.float().unsqueeze(-3))
    distance = _distances(boxes, target_BN4)
    cost = COORDINATE_COST * distance - CLASS_COST * probability - OVERLAP_COST * overlap
    # A column of equal numbers has no say in where the others find their queries.
    return torch.where(people_BN.unsqueeze(-2), cost, 0.0)


def assign(costs: Sequence[Tensor]) -> list[Tensor]:
    """Solve any number of assignment problems after a single copy to the CPU.

    Args:
        costs: (...,Q,T) each: cost of each label T at each query Q.

    Returns:
        For each (...,T) int64: the queries, all different in a row of labels, with the smallest
        sum of costs; on the device of the costs.

    Raises:
        InputError: There are fewer queries than labels.
    """
    for cost in costs:
        queries, labels = cost.shape[-2:]
        if queries < labels:
            raise InputError(
                f"matching: expected at least as many queries as labels, found {queries} queries "
                f"and {labels} labels. Build the network with more queries."
            )
    tables = torch.cat([cost.detach().float().flatten() for cost in costs]).cpu().numpy()
    # After a step that diverged there is nothing to match; that loss is what tells of it.
    tables = np.nan_to_num(tables, nan=_WORST, posinf=_WORST, neginf=-_WORST)
    chosen, start = [], 0
    for cost in costs:
        queries, labels = cost.shape[-2:]
        count = math.prod(cost.shape[:-2])
        part = tables[start : start + cost.numel()].reshape(count, queries, labels)
        start += cost.numel()
        rows = [linear_sum_assignment(table.T)[1] for table in part]
        chosen.append(np.concatenate(rows) if count else np.zeros(0))
    found = torch.from_numpy(np.concatenate(chosen).astype(np.int64))
    device = costs[0].device
    if device.type == "cuda":
        found = found.pin_memory()
    shapes = [(*cost.shape[:-2], cost.shape[-1]) for cost in costs]
    lengths = [math.prod(shape) for shape in shapes]
    parts = torch.split(found.to(device, non_blocking=True), lengths)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def generalised_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalised overlap of boxes (Rezatofighi et al., CVPR 2019), in [-1,1].

    Overlap over union, less the part of the smallest enclosing box that neither covers.

    Args:
        boxes: (...,4) centre x, centre y, width and height.
        others: (...,4); broadcast against ``boxes``.

    Returns:
        (...); 0 overlap and no gap where both boxes are empty.
    """
    low, high = _corners(boxes)
    other_low, other_high = _corners(others)
    shared = _area(torch.maximum(low, other_low), torch.minimum(high, other_high))
    union = _area(low, high) + _area(other_low, other_high) - shared
    hull = _area(torch.minimum(low, other_low), torch.maximum(high, other_high))
    tiny = torch.finfo(union.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _distances(points: Tensor, targets: Tensor) -> Tensor:
    """(...,Q,T) sums of absolute differences."""
    return (points.float().unsqueeze(-2) - targets.float().unsqueeze(-3)).abs().sum(dim=-1)


def _corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    centre, side = boxes.chunk(2, dim=-1)
    return centre - side / 2, centre + side / 2


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(dim=-1)
