"""Scores of any model on the labelled boxes of `kinemesh.evaluation.real_photos`.

Only joints that label and model both have by name are compared. Places are measured in 1/256 of the
longer side of the labelled box, so that people of all sizes count alike and no model's own crop
matters. A constant shape, drawn into each box, is what a model must beat.

Shape legend: N samples, J compared joints.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.evaluation.coco_ap import coco_scores
from kinemesh.evaluation.real_photos import LabelledBox, LabelledSet
from kinemesh.metrics import (
    best_aligned,
    keypoint_error_px,
    mpjpe_mm,
    pa_mpjpe_mm,
    pck,
    pck_auc,
    point_distances,
)
from kinemesh.skeletons import COCO17

BOX_PX = 256.0
CLOSE_PX = 25.6
"""PCK in the image counts places within a tenth of the box."""
AUC_PX = 30.0
BODY_PCK_MM = 150.0
"""MPI-INF-3DHP's threshold (Mehta et al. 2017), after the roots were moved together."""
HAND_AUC_MM = 50.0
"""FreiHAND's range, after the best similarity."""
HIPS = ("left_hip", "right_hip")
WRIST = ("wrist",)
_LEAST_ALIGNED = 4  # a similarity takes up three points


@dataclass(frozen=True, eq=False)
class PlacedJoints:
    """A model's answer to one box.

    Attributes:
        joints: Their names.
        points_px: (K, 2) pixels of the photo.
        points_m: (K, 3) metres with the axes of the camera; None from a model without depth.
        scores: (K,) of the joints.
        score: Of the person.
        spread_px: (K,) expected distance of ``points_px`` from the truth, pixels of the photo; None
            from a model that does not say.
    """

    joints: tuple[str, ...]
    points_px: NDArray[Any]
    points_m: NDArray[Any] | None
    scores: NDArray[Any]
    score: float
    spread_px: NDArray[Any] | None = None


@dataclass(frozen=True)
class RealScore:
    """One line of the table. A number that cannot be had is NaN.

    Attributes:
        dataset: Name of the set.
        model: Name of the model.
        samples: Boxes compared.
        joints: Labelled joints compared, over all samples.
        joint_names: Which joints can be compared.
        pa_mpjpe_mm: After the best similarity of each sample.
        mpjpe_mm: With the roots moved together (wrist; middle of the hips).
        auc_3d: Area under PCK: bodies to 150 mm with roots together, hands to 50 mm aligned.
        pck_3d: Bodies: share of joints within 150 mm, roots together.
        error_px: Mean distance in the image, the longer side of the box being 256 px.
        pck_2d: Share of joints within 25.6 such px.
        auc_2d: Area under the same share, to 30 such px.
        coco_ap: COCO's AP of keypoints with labelled boxes.
        protocol: What else decides the numbers.
    """

    dataset: str
    model: str
    samples: int
    joints: int
    joint_names: tuple[str, ...]
    pa_mpjpe_mm: float = math.nan
    mpjpe_mm: float = math.nan
    pck_3d: float = math.nan
    auc_3d: float = math.nan
    error_px: float = math.nan
    pck_2d: float = math.nan
    auc_2d: float = math.nan
    coco_ap: float = math.nan
    protocol: str = ""

    def to_dict(self) -> dict[str, Any]:
        """All fields, for a record; NaN as None, which JSON can hold."""
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in asdict(self).items()
        }


def score_real(
    labels: LabelledSet,
    answers: Sequence[PlacedJoints],
    model: str,
    only: Collection[str] | None = None,
    *,
    coco: bool = True,
) -> RealScore:
    """Compare one answer a sample with the labels.

    Args:
        labels: The set.
        answers: One for each of its samples, all with the same joints.
        model: Name for the table.
        only: Names of joints that may be compared, for models with fewer of them; all if None.
        coco: Whether COCO's AP is computed where the set allows it; needs the extra ``eval``.

    Raises:
        InputError: The number of answers is not that of the samples, or no joint is in common.
    """
    if len(answers) != len(labels.samples) or not answers:
        raise InputError(
            f"answers: expected {len(labels.samples)} for the set {labels.name}, found "
            f"{len(answers)}. Give one answer for each sample."
        )
    names = common_joints(labels.joints, answers[0].joints, only)
    rows = [labels.joints.index(name) for name in names]
    columns = [answers[0].joints.index(name) for name in names]
    valid_NJ = torch.from_numpy(np.stack([one.labelled[rows] for one in labels.samples]))
    score = RealScore(
        labels.name, model, len(answers), int(valid_NJ.sum()), names, protocol=labels.boxes
    )
    score = replace(score, **_places(labels.samples, answers, rows, columns, valid_NJ))
    if labels.has_3d and all(answer.points_m is not None for answer in answers):
        target = _stack([one.points_m for one in labels.samples], rows)
        found = _stack([one.points_m for one in answers], columns)
        score = replace(score, **_depths(labels.kind, names, found, target, valid_NJ))
    if coco and labels.coco is not None and set(COCO17.joints) <= set(answers[0].joints):
        score = replace(score, coco_ap=coco_ap(labels, answers))
    return score


def common_joints(
    labels: Sequence[str], model: Sequence[str], only: Collection[str] | None = None
) -> tuple[str, ...]:
    """Names that both sides have, in the order of the labels.

    Raises:
        InputError: There is none.
    """
    names = tuple(name for name in labels if name in model and (only is None or name in only))
    if not names:
        raise InputError(
            f"The labels ({', '.join(labels[:4])}, ...) and the model ({', '.join(model[:4])}, "
            "...) have no joint in common. Compare hands with hands and bodies with bodies."
        )
    return names


def pooled(scores: Sequence[RealScore], dataset: str) -> RealScore:
    """One line for several sets of the same model; each sample weighs the same.

    COCO's AP is not a mean over samples and is left out.
    """
    numbers: dict[str, Any] = {
        name: _weighted([(getattr(one, name), one.samples) for one in scores])
        for name in (
            *("pa_mpjpe_mm", "mpjpe_mm", "pck_3d", "auc_3d"),
            *("error_px", "pck_2d", "auc_2d"),
        )
    }
    names = tuple(dict.fromkeys(name for one in scores for name in one.joint_names))
    samples, joints = sum(one.samples for one in scores), sum(one.joints for one in scores)
    return RealScore(dataset, scores[0].model, samples, joints, names, **numbers)


def draw_into_box(
    sample: LabelledBox, names: tuple[str, ...], joints_m: Tensor, vertices_m: Tensor
) -> PlacedJoints:
    """A constant shape as an answer: its middle in that of the box, its longer side as long.

    Args:
        sample: What is answered; a left hand gets the mirrored shape.
        names: Of the joints.
        joints_m: (K, 3) metres, axes of the camera.
        vertices_m: (V, 3) of the same shape, whose extent in x and y fills the box.
    """
    flip = torch.tensor([-1.0 if sample.side == "left" else 1.0, 1.0, 1.0])
    joints, vertices = joints_m * flip, vertices_m[:, :2] * flip[:2]
    low, high = vertices.amin(dim=0), vertices.amax(dim=0)
    zoom = sample.side_px / float((high - low).max())
    left, top, width, height = sample.box_px
    middle = np.array([left + width / 2, top + height / 2])
    places = (joints[:, :2] - (low + high) / 2).numpy() * zoom + middle
    ones = np.ones(len(names), dtype=np.float32)
    return PlacedJoints(names, places, joints.numpy(), ones, 1.0)


def coco_ap(labels: LabelledSet, answers: Sequence[PlacedJoints]) -> float:
    """COCO's AP with labelled boxes: no box is missed, and no person is suppressed.

    Raises:
        InputError: The set is not COCO's.
        MissingExtraError: ``faster-coco-eval`` is not installed.
    """
    if labels.coco is None:
        raise InputError(f"The set {labels.name} has no annotations of COCO; score its places.")
    order = [answers[0].joints.index(name) for name in COCO17.joints]
    rows = [
        {
            "image_id": sample.image_id,
            "category_id": 1,
            "keypoints": np.column_stack([answer.points_px[order], answer.scores[order]])
            .ravel()
            .tolist(),
            "score": answer.score,
        }
        for sample, answer in zip(labels.samples, answers, strict=True)
    ]
    return coco_scores(rows, labels.coco)["AP"]


def _places(
    samples: Sequence[LabelledBox],
    answers: Sequence[PlacedJoints],
    rows: list[int],
    columns: list[int],
    valid_NJ: Tensor,
) -> dict[str, Any]:
    """Errors in the image, in units of 1/256 of the box."""
    units = torch.tensor([BOX_PX / one.side_px for one in samples], dtype=torch.float64)
    target = _stack([one.points_px for one in samples], rows) * units[:, None, None]
    found = _stack([one.points_px for one in answers], columns) * units[:, None, None]
    target = torch.where(valid_NJ[..., None], target, 0.0)
    distances = point_distances(found, target)
    errors = keypoint_error_px(found, target, valid_NJ)
    return {
        "error_px": _mean(errors),
        "pck_2d": float(pck(distances, torch.tensor([CLOSE_PX]), valid_NJ)),
        "auc_2d": float(pck_auc(distances, torch.linspace(0, AUC_PX, 100), valid_NJ)),
    }


def _depths(
    kind: str, names: tuple[str, ...], found: Tensor, target: Tensor, valid_NJ: Tensor
) -> dict[str, Any]:
    """Errors of joints in metres; those of samples with too few joints to align are left out."""
    enough = valid_NJ.sum(dim=1) >= _LEAST_ALIGNED
    if not enough.any():
        return {}
    found, target, valid = found[enough], target[enough], valid_NJ[enough]
    aligned, true = best_aligned(found, target, valid)
    numbers = {"pa_mpjpe_mm": _mean(pa_mpjpe_mm(found, target, valid))}
    root = [names.index(name) for name in (WRIST if kind == "hand" else HIPS) if name in names]
    rooted = valid[:, root].all(dim=1) if root else torch.zeros(len(valid), dtype=torch.bool)
    if rooted.any():
        own, other, counts = found[rooted], target[rooted], valid[rooted]
        numbers["mpjpe_mm"] = _mean(mpjpe_mm(own, other, root, counts))
        if kind == "body":
            own, other = (side - side[:, root].mean(dim=1, keepdim=True) for side in (own, other))
            distances = point_distances(own, other) * 1000
            limit = torch.tensor([BODY_PCK_MM])
            numbers["pck_3d"] = float(pck(distances, limit, counts))
            limits = torch.linspace(0, BODY_PCK_MM, 31)
            numbers["auc_3d"] = float(pck_auc(distances, limits, counts))
    if kind == "hand":
        limits = torch.linspace(0, HAND_AUC_MM, 100)
        numbers["auc_3d"] = float(pck_auc(point_distances(aligned, true) * 1000, limits, valid))
    return numbers


def _stack(arrays: Sequence[NDArray[Any] | None], order: list[int]) -> Tensor:
    return torch.from_numpy(
        np.stack([np.asarray(one, dtype=np.float64)[order] for one in arrays if one is not None])
    )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _weighted(values: Sequence[tuple[float, int]]) -> float:
    kept = [(value, weight) for value, weight in values if not math.isnan(value)]
    total = sum(weight for _, weight in kept)
    return sum(value * weight for value, weight in kept) / total if total else math.nan
