"""What the locations of a `kinemesh.models.detector.Detector` shall say, and how wrong they are.

FCOS (Tian et al., ICCV 2019): a location near the middle of a box, on the level for the box's size,
is to give its class and sides; all others are background.

Shape legend: B photos, N labelled boxes, L locations, C classes. Boxes are left, top, right, bottom
in pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemesh.models.detector import CLASSES, PERSON, STRIDES, DetectorOutput, locations
from kinemesh.models.detector_decoding import box_area

BACKGROUND = -1
"""Label of locations that show nothing, and of rows that fill up a batch."""
CENTRE_RADIUS = 1.5
"""A location counts for boxes whose middle is no farther away, in strides, along both axes."""
LEVEL_REACH = 4.0
"""Distance in strides from a location to the farthest side of a box, up to which a level serves;
half of it is where the finer one ends. The coarsest level has no end, the finest no beginning."""

_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss, as published


@dataclass(frozen=True)
class DetectorTargets:
    """What the locations shall say.

    Attributes:
        labels: (B, L) int64 classes, or `BACKGROUND`.
        distances: (B, L, 4) to left, top, right and bottom, pixels; 1 at the background.
        centreness: (B, L) in 0..1; 0 at the background.
        counted: (B, L, C) bool; false where the class is left open.
    """

    labels: Tensor
    distances: Tensor
    centreness: Tensor
    counted: Tensor


@torch.no_grad()
def assign_targets(
    boxes_BN4: Tensor, labels_BN: Tensor, ignored_BN: Tensor, side: int
) -> DetectorTargets:
    """Say what each location is to give.

    A location serves a box if it lies inside, within `CENTRE_RADIUS` strides of its middle, and
    its level is that for the distance to the farthest side; of several boxes it serves the
    smallest. Inside of an ignored box the class is left open, for hands that of both sides.

    Args:
        boxes_BN4: Labelled boxes in pixels of the square.
        labels_BN: int64 classes, `BACKGROUND` in rows without a box.
        ignored_BN: bool, boxes that need not be found, but may be.
        side: Of the square in pixels.
    """
    places, strides = locations(side, boxes_BN4.device)
    offsets_BLN4 = _sides(places, boxes_BN4)
    inside = offsets_BLN4.amin(-1) > 0
    served = inside & _central(places, strides, boxes_BN4) & _of_level(offsets_BLN4, strides)
    served &= ((labels_BN >= 0) & ~ignored_BN)[:, None]
    area = torch.where(served, box_area(boxes_BN4)[:, None], torch.inf)
    smallest, chosen = area.min(dim=-1)
    found = smallest.isfinite()
    labels = torch.where(found, labels_BN.gather(1, chosen), BACKGROUND)
    index = chosen[..., None, None].expand(-1, -1, 1, 4)
    distances = offsets_BLN4.gather(2, index)[:, :, 0]
    distances = torch.where(found[..., None], distances, torch.ones_like(distances))
    return DetectorTargets(
        labels,
        distances,
        torch.where(found, centreness(distances), 0.0),
        _counted(inside, labels_BN, ignored_BN, labels),
    )


def centreness(distances: Tensor) -> Tensor:
    """How central a location is, ``sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b))`` (equation 3)."""
    first, last = distances[..., :2], distances[..., 2:]
    ratio = torch.minimum(first, last) / torch.maximum(first, last).clamp(min=1e-6)
    return ratio.prod(dim=-1).clamp(min=0).sqrt()


def _sides(places_L2: Tensor, boxes_BN4: Tensor) -> Tensor:
    """(B, L, N, 4) distances from the locations to the sides, negative outside."""
    places = places_L2[None, :, None]
    return torch.cat(
        [places - boxes_BN4[:, None, :, :2], boxes_BN4[:, None, :, 2:] - places], dim=-1
    )


def _central(places_L2: Tensor, strides_L: Tensor, boxes_BN4: Tensor) -> Tensor:
    """(B, L, N) whether locations are near the middles of boxes."""
    middles = (boxes_BN4[..., :2] + boxes_BN4[..., 2:]) / 2
    away = (places_L2[None, :, None] - middles[:, None]).abs().amax(dim=-1)
    return away <= CENTRE_RADIUS * strides_L[None, :, None]


def _of_level(offsets_BLN4: Tensor, strides_L: Tensor) -> Tensor:
    """(B, L, N) whether the level of locations is that for boxes of such a reach."""
    reach, strides = offsets_BLN4.amax(dim=-1), strides_L[None, :, None]
    above = (reach > LEVEL_REACH / 2 * strides) | (strides == STRIDES[0])
    below = (reach <= LEVEL_REACH * strides) | (strides == STRIDES[-1])
    return above & below


def _counted(inside_BLN: Tensor, labels_BN: Tensor, ignored_BN: Tensor, found_BL: Tensor) -> Tensor:
    """(B, L, C): all but the classes of ignored boxes; what a location serves always counts."""
    classes = torch.arange(len(CLASSES), device=labels_BN.device)
    same_kind = (labels_BN[..., None] == PERSON) == (classes == PERSON)
    open_BNC = same_kind & (ignored_BN & (labels_BN >= 0))[..., None]
    left_open = (inside_BLN[..., None] & open_BNC[:, None]).any(dim=2)
    return ~left_open | (found_BL[..., None] == classes)


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of each logit (Lin et al., ICCV 2017, equation 5); ``wanted`` is 0 or 1."""
    probability = logits.sigmoid()
    right = probability * wanted + (1 - probability) * (1 - wanted)
    weight = _ALPHA * wanted + (1 - _ALPHA) * (1 - wanted)
    plain = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return weight * (1 - right) ** _GAMMA * plain


def giou_loss(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - GIoU (Rezatofighi et al., CVPR 2019) of boxes about one location.

    Args:
        found: (..., 4) positive distances to left, top, right, bottom.
        wanted: (..., 4) the same of the labels.

    Returns:
        (...), from 0 to 2.
    """
    inner, outer = torch.minimum(found, wanted), torch.maximum(found, wanted)
    shared, hull = _area(inner), _area(outer)
    union = _area(found) + _area(wanted) - shared
    return 1 - shared / union + (hull - union) / hull


def _area(distances: Tensor) -> Tensor:
    return (distances[..., :2] + distances[..., 2:]).prod(dim=-1)


def detector_losses(output: DetectorOutput, targets: DetectorTargets) -> dict[str, Tensor]:
    """The three terms of FCOS, whose sum is minimised.

    Returns:
        ``classes``, focal loss over the number of served locations; ``boxes``, GIoU loss weighted
        by the wanted centre-ness; ``centres``, binary cross-entropy of the centre-ness.
    """
    served = targets.labels >= 0
    count = served.sum().clamp(min=1)
    classes = torch.arange(len(CLASSES), device=served.device)
    wanted = (targets.labels[..., None] == classes).float()
    per_logit = focal_loss(output.logits.float(), wanted) * targets.counted
    weight = targets.centreness[served]
    per_box = giou_loss(output.distances.float()[served], targets.distances[served])
    centre = F.binary_cross_entropy_with_logits(
        output.centre_logits.float()[served], weight, reduction="sum"
    )
    return {
        "classes": per_logit.sum() / count,
        "boxes": (per_box * weight).sum() / weight.sum().clamp(min=1e-6),
        "centres": centre / count,
    }
