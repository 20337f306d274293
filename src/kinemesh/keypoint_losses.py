"""Losses of networks that predict sets: keypoints of a person, people of an image.

`KeypointSetLoss` is PRTR's (Li et al., CVPR 2021, section 3.2), `DetectionSetLoss` is DETR's for
one kind of object (Carion et al., ECCV 2020, section 3.1). Every decoder layer is matched and
scored by itself; the total is the sum of all layers.

Shape legend: L decoder layers, B samples, Q queries, J joints, K = J + 1 classes, N people.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.matching import assign, box_cost, generalised_iou, keypoint_cost
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_sequential import Detections

BACKGROUND_WEIGHT = 0.1
"""Weight of a query without a label in the classification loss."""


@dataclass(frozen=True)
class KeypointTargets:
    """Labels of B people.

    Attributes:
        places_BJ2: In the unit of the network's coordinates; without a label, a finite filler.
        weight_BJ1: 1 where a joint is labelled, 0 where not.
        has_B: 1 for people whose joints are labelled at all; None: all. The others have no part.
        people: () number of people that the sums are divided by; None: those of ``has_B``. In
            several processes it is the mean over them, so that the mean of their losses is the loss
            of the whole batch, in which a process without such people has its part.

    Raises:
        InputError: The shapes differ.
    """

    places_BJ2: Tensor
    weight_BJ1: Tensor
    has_B: Tensor | None = None
    people: Tensor | None = None

    def __post_init__(self) -> None:
        people, joints = self.places_BJ2.shape[:2]
        expected: dict[str, tuple[int, ...]] = {
            "places": (people, joints, 2),
            "weight": (people, joints, 1),
        }
        found = {"places": self.places_BJ2.shape, "weight": self.weight_BJ1.shape}
        if self.has_B is not None:
            expected["has"], found["has"] = (people,), self.has_B.shape
        for name, shape in expected.items():
            if tuple(found[name]) != shape:
                raise InputError(
                    f"keypoint targets, {name}: expected the shape {shape}, found "
                    f"{tuple(found[name])}."
                )


def stack_layers(output: KeypointSetOutput) -> tuple[Tensor, Tensor]:
    """Logits (L,B,Q,K) and coordinates (L,B,Q,2) of all layers, first to last."""
    layers = (*output.auxiliary, output)
    return torch.stack([x.logits for x in layers]), torch.stack([x.coords for x in layers])


@dataclass(frozen=True)
class KeypointSetLoss:
    """Classes and places of the keypoints of people.

    The classification loss knows no visibility: the query that was matched to a joint without a
    label has to say that joint, too. Its place costs nothing, but the joint is counted in the
    divisor. Both are as published.

    Attributes:
        coordinate_weight: Weight of the places beside the classes.
        background_weight: Weight of queries without a joint in the classification loss.
    """

    coordinate_weight: float = 5.0
    background_weight: float = BACKGROUND_WEIGHT

    def __call__(self, output: KeypointSetOutput, targets: KeypointTargets) -> dict[str, Tensor]:
        """Match and score a batch.

        Args:
            output: Hypotheses whose last class is the background.
            targets: Labels.

        Returns:
            ``loss_ce``, ``loss_kpts`` and ``cardinality_error`` of the last layer, the same with
            ``_0``, ``_1``, ... of those before, ``class_error`` in percent, and ``total``. The two
            errors have no gradient.

        Raises:
            InputError: Shapes do not fit, or there are fewer queries than joints.
        """
        logits_LBQK, coords_LBQ2 = stack_layers(output)
        joints = targets.places_BJ2.shape[1]
        if logits_LBQK.shape[-1] != joints + 1:
            raise InputError(
                f"logits: expected {joints + 1} classes for {joints} joints, found "
                f"{logits_LBQK.shape[-1]}."
            )
        cost = keypoint_cost(logits_LBQK, coords_LBQ2, targets.places_BJ2)
        return self.of_layers(logits_LBQK, coords_LBQ2, assign([cost])[0], targets)

    def of_layers(
        self,
        logits_LBQK: Tensor,
        coords_LBQ2: Tensor,
        query_LBJ: Tensor,
        targets: KeypointTargets,
    ) -> dict[str, Tensor]:
        """As the call, for hypotheses that have been matched."""
        logits_LBQK, coords_LBQ2 = logits_LBQK.float(), coords_LBQ2.float()
        joints = targets.places_BJ2.shape[1]
        label_J = torch.arange(joints, device=query_LBJ.device)
        class_LBQ = torch.full(logits_LBQK.shape[:-1], joints, device=query_LBJ.device)
        class_LBQ = class_LBQ.scatter(2, query_LBJ, label_J.expand_as(query_LBJ))
        divisor: Tensor | None = None
        if targets.people is not None:
            # every person has one query for each joint, and the others are background
            spare = logits_LBQK.shape[2] - joints
            divisor = targets.people * (joints + self.background_weight * spare)
        losses_L = {
            "loss_ce": weighted_cross_entropy(
                logits_LBQK, class_LBQ, self.background_weight, targets.has_B, divisor
            ),
            "loss_kpts": _coordinate_loss(coords_LBQ2, query_LBJ, targets),
        }
        total = (losses_L["loss_ce"] + self.coordinate_weight * losses_L["loss_kpts"]).sum()
        logits = logits_LBQK.detach()
        has_B = targets.has_B
        losses_L["cardinality_error"] = _cardinality_error(logits, joints, has_B)
        wrong = _class_error(logits[-1], query_LBJ[-1], label_J.expand_as(query_LBJ[-1]), has_B)
        return by_layer(losses_L) | {"class_error": wrong, "total": total}


@dataclass(frozen=True)
class DetectionTargets:
    """Labels of B images.

    Attributes:
        boxes_BN4: Centre x, centre y, width and height in [0,1]; rows after the last are finite.
        people_BN: True where a row is a person.
        people: () number of people that the sums are divided by; None: those here, at least 1.
    """

    boxes_BN4: Tensor
    people_BN: Tensor
    people: Tensor | None = None

    @property
    def divisor(self) -> Tensor:
        """What sums over people are divided by."""
        return self.people_BN.sum().clamp(min=1) if self.people is None else self.people


@dataclass(frozen=True)
class DetectionSetLoss:
    """Person or not, and boxes: DETR's loss with a single class of objects.

    Attributes:
        distance_weight: Weight of the absolute differences of boxes.
        overlap_weight: Weight of one less the generalised overlap.
        background_weight: Weight of queries without a person in the classification loss.
    """

    distance_weight: float = 5.0
    overlap_weight: float = 2.0
    background_weight: float = BACKGROUND_WEIGHT

    def __call__(self, output: Detections, targets: DetectionTargets) -> dict[str, Tensor]:
        """Match and score a batch.

        Args:
            output: Detections; class 0 is the person.
            targets: Labels.

        Returns:
            ``loss_ce``, ``loss_bbox``, ``loss_giou`` and ``cardinality_error`` of the last layer,
            the same with ``_0``, ``_1``, ... of those before, ``class_error`` in percent, and
            ``total``.

        Raises:
            InputError: There are fewer queries than rows of labels.
        """
        logits_LBQ2, boxes_LBQ4 = stack_detections(output)
        cost = box_cost(logits_LBQ2, boxes_LBQ4, targets.boxes_BN4, targets.people_BN)
        return self.of_layers(logits_LBQ2, boxes_LBQ4, assign([cost])[0], targets)

    def of_layers(
        self, logits_LBQ2: Tensor, boxes_LBQ4: Tensor, query_LBN: Tensor, targets: DetectionTargets
    ) -> dict[str, Tensor]:
        """As the call, for detections that have been matched."""
        logits_LBQ2, boxes_LBQ4 = logits_LBQ2.float(), boxes_LBQ4.float()
        nobody = ~targets.people_BN.expand_as(query_LBN)
        class_LBQ = torch.ones(logits_LBQ2.shape[:-1], dtype=torch.int64, device=nobody.device)
        class_LBQ = class_LBQ.scatter(2, query_LBN, nobody.long())
        chosen_LBN4 = boxes_LBQ4.gather(2, query_LBN[..., None].expand(-1, -1, -1, 4))
        target_BN4, people_BN = targets.boxes_BN4.float(), targets.people_BN
        distance_LBN = (chosen_LBN4 - target_BN4).abs().sum(dim=-1)
        gap_LBN = 1 - generalised_iou(chosen_LBN4, target_BN4)
        losses_L = {
            "loss_ce": weighted_cross_entropy(logits_LBQ2, class_LBQ, self.background_weight),
            "loss_bbox": _sum_over_people(distance_LBN, people_BN) / targets.divisor,
            "loss_giou": _sum_over_people(gap_LBN, people_BN) / targets.divisor,
        }
        weighted = self.distance_weight * losses_L["loss_bbox"]
        weighted = weighted + self.overlap_weight * losses_L["loss_giou"]
        total = (losses_L["loss_ce"] + weighted).sum()
        found_LB = (logits_LBQ2.detach().argmax(dim=-1) == 0).sum(dim=-1)
        error_LB = (found_LB - people_BN.sum(dim=-1)).abs().float()
        losses_L["cardinality_error"] = error_LB.mean(dim=-1)
        said_BN = logits_LBQ2[-1].detach().argmax(dim=-1).gather(1, query_LBN[-1])
        wrong = 100 * ((said_BN != 0) & people_BN).sum() / people_BN.sum().clamp(min=1)
        return by_layer(losses_L) | {"class_error": wrong, "total": total}


def stack_detections(output: Detections) -> tuple[Tensor, Tensor]:
    """Logits (L,B,Q,2) and boxes (L,B,Q,4) of all layers, first to last."""
    layers = (*output.auxiliary, output)
    return torch.stack([x.logits for x in layers]), torch.stack([x.boxes for x in layers])


def weighted_cross_entropy(
    logits_LBQK: Tensor,
    class_LBQ: Tensor,
    background_weight: float,
    has_B: Tensor | None = None,
    divisor: Tensor | None = None,
) -> Tensor:
    """(L,) weighted mean of the cross-entropy over all queries of all samples that count.

    The last class is the background and has its own weight; the others have 1. ``divisor`` () is
    what the weighted sum is divided by; None: the sum of the weights.
    """
    weight_LBQ = torch.where(class_LBQ == logits_LBQK.shape[-1] - 1, background_weight, 1.0)
    if has_B is not None:
        weight_LBQ = weight_LBQ * has_B[:, None]
    surprise = F.cross_entropy(logits_LBQK.flatten(0, 2), class_LBQ.flatten(), reduction="none")
    weighted_LBQ = weight_LBQ * surprise.reshape(class_LBQ.shape)
    if divisor is not None:
        return weighted_LBQ.sum(dim=(1, 2)) / divisor
    # without a sample that counts the sum is zero, and stays part of the graph
    smallest = background_weight or torch.finfo(weight_LBQ.dtype).tiny
    return weighted_LBQ.sum(dim=(1, 2)) / weight_LBQ.sum(dim=(1, 2)).clamp(min=smallest)


def by_layer(values_L: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scalars by name: the last layer's own, those before with ``_0``, ``_1`` and so on."""
    named: dict[str, Tensor] = {}
    for name, values in values_L.items():
        *before, last = values.unbind()
        named[name] = last
        named |= {f"{name}_{layer}": value for layer, value in enumerate(before)}
    return named


def _coordinate_loss(coords_LBQ2: Tensor, query_LBJ: Tensor, targets: KeypointTargets) -> Tensor:
    """(L,) half of the sum of the absolute differences of labelled joints, a person."""
    chosen_LBJ2 = coords_LBQ2.gather(2, query_LBJ[..., None].expand(-1, -1, -1, 2))
    error_LBJ2 = targets.weight_BJ1 * (chosen_LBJ2 - targets.places_BJ2).abs()
    people: Tensor | int = max(len(targets.places_BJ2), 1)
    if targets.has_B is not None:
        error_LBJ2 = error_LBJ2 * targets.has_B[:, None, None]
        people = targets.has_B.sum().clamp(min=1)
    if targets.people is not None:
        people = targets.people
    return error_LBJ2.sum(dim=(1, 2, 3)) / (2 * people)


def _sum_over_people(values_LBN: Tensor, people_BN: Tensor) -> Tensor:
    return torch.where(people_BN, values_LBN, 0.0).sum(dim=(1, 2))


def _cardinality_error(logits_LBQK: Tensor, joints: int, has_B: Tensor | None) -> Tensor:
    """(L,) how far the number of queries that say a joint is from the number of joints."""
    found_LB = (logits_LBQK.argmax(dim=-1) != joints).sum(dim=-1)
    error_LB = (found_LB - joints).abs().float()
    if has_B is None:
        return error_LB.mean(dim=-1)
    return (error_LB * has_B).sum(dim=-1) / has_B.sum().clamp(min=1)


def _class_error(
    logits_BQK: Tensor, query_BJ: Tensor, label_BJ: Tensor, has_B: Tensor | None
) -> Tensor:
    """Percentage of matched queries whose likeliest class is not the joint they are matched to."""
    right_BJ = (logits_BQK.argmax(dim=-1).gather(1, query_BJ) == label_BJ).float()
    if has_B is None:
        return 100 - 100 * right_BJ.mean()
    return 100 - 100 * (right_BJ.mean(dim=1) * has_B).sum() / has_B.sum().clamp(min=1)
