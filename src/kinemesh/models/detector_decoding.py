"""From the outputs of a `Detector` to boxes: scores, decoding, non-maximum suppression.

Shape legend: B photos, L locations, C classes, K candidates. Boxes are left, top, right, bottom in
pixels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.models.detector import PERSON, DetectorOutput, locations


@dataclass(frozen=True)
class DecodingOptions:
    """What becomes a detection.

    Attributes:
        least_score: Boxes below are left out.
        most_candidates: Best locations and classes of a photo that take part in suppression.
        most_boxes: Best boxes of a photo that stay.
        overlap: Of two boxes of one kind whose intersection over union is larger the better one
            stays. A left and a right hand are of one kind: there is one hand in one place.

    Raises:
        InputError: A number is out of its range.
    """

    least_score: float = 0.05
    most_candidates: int = 300
    most_boxes: int = 100
    overlap: float = 0.6

    def __post_init__(self) -> None:
        if min(self.most_candidates, self.most_boxes) < 1:
            raise InputError("most_candidates, most_boxes: expected at least 1.")
        if not (0 <= self.least_score <= 1 and 0 <= self.overlap <= 1):
            raise InputError("least_score, overlap: expected numbers from 0 to 1.")


@dataclass(frozen=True)
class Detections:
    """What was found in one photo, best first.

    Attributes:
        boxes: (K, 4) float32.
        scores: (K,) float32 in 0..1.
        labels: (K,) int64 numbers of `kinemesh.models.detector.CLASSES`.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def box_iou(first_N4: Tensor, second_M4: Tensor) -> Tensor:
    """Intersection over union (N, M) of boxes; 0 where both are empty."""
    low = torch.maximum(first_N4[:, None, :2], second_M4[None, :, :2])
    high = torch.minimum(first_N4[:, None, 2:], second_M4[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    union = box_area(first_N4)[:, None] + box_area(second_M4)[None] - shared
    return shared / union.clamp(min=1e-9)


def box_area(boxes_N4: Tensor) -> Tensor:
    """Areas (N,), 0 of boxes without extent."""
    return (boxes_N4[..., 2:] - boxes_N4[..., :2]).clamp(min=0).prod(dim=-1)


def suppress(boxes_K4: Tensor, scores_K: Tensor, groups_K: Tensor, overlap: float) -> Tensor:
    """Greedy non-maximum suppression within groups.

    All decisions are repeated together until none changes, which gives the result of the greedy
    rule (Zheng et al., "Enhancing Geometric Factors", IEEE Trans. Cybernetics 2022: Cluster-NMS)
    in a few products of matrices.

    Returns:
        Indices of the boxes that stay, best first; of equal scores the first box is the better.
    """
    order = scores_K.argsort(descending=True, stable=True)
    boxes, groups = boxes_K4[order], groups_K[order]
    covers = (box_iou(boxes, boxes) > overlap) & (groups[:, None] == groups[None])
    covers = covers.triu(diagonal=1)  # the better one covers the worse one
    stays = torch.ones(len(order), dtype=torch.bool, device=order.device)
    while True:
        now = ~(covers & stays[:, None]).any(dim=0)
        if torch.equal(now, stays):
            return order[stays]
        stays = now


def boxes_at(places_L2: Tensor, distances_L4: Tensor) -> Tensor:
    """Boxes (..., L, 4) from the distances of their sides to the locations."""
    return torch.cat([places_L2 - distances_L4[..., :2], places_L2 + distances_L4[..., 2:]], dim=-1)


def decode(
    output: DetectorOutput, side: int, options: DecodingOptions | None = None
) -> list[Detections]:
    """Detections in each photo of a batch, in pixels of the square, cut to it.

    The score is the geometric mean of class probability and centre-ness, as in FCOS's article.

    Args:
        output: Of the network.
        side: Of the square in pixels.
        options: Limits.
    """
    options = options or DecodingOptions()
    places, _ = locations(side, output.logits.device)
    boxes_BL4 = boxes_at(places, output.distances.float()).clamp(0, side)
    centres = output.centre_logits.float().sigmoid()[..., None]
    scores_BLC = (output.logits.float().sigmoid() * centres).sqrt()
    return [
        _select(boxes, scores, options) for boxes, scores in zip(boxes_BL4, scores_BLC, strict=True)
    ]


def _select(boxes_L4: Tensor, scores_LC: Tensor, options: DecodingOptions) -> Detections:
    classes = scores_LC.shape[1]
    best = scores_LC.flatten().topk(min(options.most_candidates, scores_LC.numel()))
    kept = best.values >= options.least_score
    scores, place = best.values[kept], best.indices[kept]
    boxes, labels = boxes_L4[place.div(classes, rounding_mode="floor")], place % classes
    stays = suppress(boxes, scores, labels != PERSON, options.overlap)[: options.most_boxes]
    return Detections(boxes[stays], scores[stays], labels[stays])
