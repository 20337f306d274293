"""Object keypoint similarity, suppression of duplicates by it, and the score of a person.

Rules of the published top-down scores (HRNet, PRTR); the similarity is COCO's (Lin et al. 2014),
taken over all joints and with the mean area of two crops in place of a labelled area.

Shape legend: G images, N people of an image, J joints.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import KeypointPerson

COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)
"""How far apart annotators of each joint of ``coco17`` were, over the root of the person's area."""
_TINY = float(np.spacing(1))
_NUMBERS_AT_ONCE = 1 << 24  # of the table of all pairs and joints: bounds the memory


def oks_matrix(
    keypoints_px: Tensor, area_px2: Tensor, sigmas: Sequence[float] = COCO_SIGMAS
) -> Tensor:
    """Similarity of all pairs of people of an image.

    e = d^2 / (2 sigma)^2 / mean area / 2, and the similarity is the mean of exp(-e) over all
    joints, visible or not.

    Args:
        keypoints_px: (...,N,J,2).
        area_px2: (...,N), positive.
        sigmas: J numbers.

    Returns:
        (...,N,N) in [0,1], of the type and on the device of the keypoints.

    Raises:
        InputError: The number of joints is not that of the sigmas.
    """
    if keypoints_px.shape[-2] != len(sigmas):
        raise InputError(
            f"keypoints: expected {len(sigmas)} joints, as there are sigmas, found "
            f"{keypoints_px.shape[-2]}."
        )
    x, y = keypoints_px.unbind(dim=-1)
    squared = (x[..., None, :] - x[..., None, :, :]).square_()
    squared += (y[..., None, :] - y[..., None, :, :]).square_()
    mean_area = (area_px2[..., None] + area_px2[..., None, :]) / 2 + _TINY
    variances = (2 * torch.as_tensor(sigmas, dtype=x.dtype, device=x.device)).square()
    squared /= variances
    squared /= 2 * mean_area[..., None]
    return squared.neg_().exp_().mean(dim=-1)


def person_scores(
    joint_scores: Tensor, box_scores: Tensor, joint_score_above: float = 0.2
) -> Tensor:
    """Mean of the joint scores (N,J) strictly above a limit (0 if there are none), times the box's.

    The limit is compared in the type of the joint scores: 0.2 in float32 is not above 0.2.

    Returns:
        (N,) of the type of the boxes' scores.
    """
    counts = joint_scores > joint_score_above
    total = torch.where(counts, joint_scores.to(box_scores.dtype), 0.0).sum(dim=-1)
    return total / counts.sum(dim=-1).clamp_min(1) * box_scores


def best_first(scores: Tensor) -> Tensor:
    """Order (...,N) by descending score; people of equal scores come in reverse order."""
    return torch.argsort(scores, dim=-1, stable=True).flip(-1)


def suppressed(similarity_GNN: Tensor, threshold: float) -> Tensor:
    """Who is suppressed, when people come best first.

    From the best on, everybody still there suppresses whoever follows and is more similar to them
    than the threshold; as similar is not enough.

    Returns:
        (G,N) bool.
    """
    close = (similarity_GNN > threshold).triu(diagonal=1)  # row suppresses column
    gone = torch.zeros_like(close[:, 0])
    for row in range(close.shape[1]):
        gone = gone | (close[:, row] & ~gone[:, row, None])
    return gone


def select_people(
    people: Sequence[KeypointPerson],
    *,
    joint_score_above: float = 0.2,
    oks_nms_above: float | None = 0.9,
    sigmas: Sequence[float] = COCO_SIGMAS,
    device: torch.device | str = "cpu",
) -> tuple[list[int], NDArray[np.float64]]:
    """Score people and leave duplicates out, image by image.

    All images are computed at once, in float64 where the device has it.

    Args:
        people: In any order.
        joint_score_above: See `person_scores`.
        oks_nms_above: See `suppressed`; None keeps everybody.
        sigmas: Of the joints.
        device: Where to compute.

    Returns:
        Indices of those who stay: images in the order in which they first occur, people best
        first. And the scores (N,) of all people.
    """
    if not people:
        return [], np.zeros(0)
    _check_joints(people, len(sigmas))
    device = torch.device(device)
    kind = torch.float32 if device.type == "mps" else torch.float64
    keypoints = _column([person.keypoints_px for person in people], device, kind)
    areas = _column([person.area for person in people], device, kind)
    scores = person_scores(
        _column([person.scores for person in people], device, torch.float32),
        _column([person.box_score for person in people], device, kind),
        joint_score_above,
    )
    images: dict[int, list[int]] = {}
    for index, person in enumerate(people):
        images.setdefault(person.image_id, []).append(index)
    kept: dict[int, list[int]] = {}
    for group in _groups(images, len(sigmas)):
        rows, real = (part.to(device) for part in _padded([images[key] for key in group]))
        order = best_first(scores[rows].masked_fill(~real, -torch.inf))
        rows, real = rows.gather(1, order), real.gather(1, order)
        if oks_nms_above is not None:
            gone = suppressed(oks_matrix(keypoints[rows], areas[rows], sigmas), oks_nms_above)
            real = real & ~gone
        for key, row, stays in zip(group, rows.cpu(), real.cpu(), strict=True):
            kept[key] = row[stays].tolist()
    return [index for key in images for index in kept[key]], scores.double().cpu().numpy()


def _check_joints(people: Sequence[KeypointPerson], joints: int) -> None:
    for index, person in enumerate(people):
        if len(person.scores) != joints:
            raise InputError(
                f"person {index} (image {person.image_id}): expected {joints} joints, found "
                f"{len(person.scores)}. Take a model for the joints of this protocol."
            )


def _column(values: Sequence[float | NDArray], device: torch.device, kind: torch.dtype) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float64)).to(device=device, dtype=kind)


def _groups(images: dict[int, list[int]], joints: int) -> Iterator[list[int]]:
    """Images of similar numbers of people together, as many as the memory allows."""
    group: list[int] = []
    for key in sorted(images, key=lambda key: -len(images[key])):
        if group and (len(group) + 1) * len(images[group[0]]) ** 2 * joints > _NUMBERS_AT_ONCE:
            yield group
            group = []
        group.append(key)
    yield group


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Indices (G,N), short rows filled up with their first person, and which are real (G,N)."""
    longest = max(len(row) for row in rows)
    index = torch.tensor([[*row, *[row[0]] * (longest - len(row))] for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    return index, torch.arange(longest) < lengths[:, None]
