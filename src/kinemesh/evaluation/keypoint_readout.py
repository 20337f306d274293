"""From keypoint hypotheses to the keypoints of people, in pixels of the image.

A network such as PRTR gives Q hypotheses a person, each a class (a joint or the background) and a
place. The read-out gives every joint a query of its own, such that the sum of their values is
largest (Li et al., CVPR 2021, section 3.2). The two-stage networks are read out by probabilities,
with the background left out of the softmax; the sequential one by raw logits.

Shape legend: B samples, K people of an image, Q queries, J joints.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.data.keypoint_crop import PADDING, PIXEL_CENTER, PIXELS_OF_SCALE
from kinemesh.errors import InputError
from kinemesh.matching import assign
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_sequential import SequentialOutput
from kinemesh.skeletons import Skeleton

KeypointNetwork = Callable[[Tensor], KeypointSetOutput]


class Keypoints(NamedTuple):
    """One place a joint.

    Attributes:
        coords: (...,J,2) x and y, in [0,1] of a crop or image, or in pixels.
        scores: (...,J) in [0,1].
    """

    coords: Tensor
    scores: Tensor


@dataclass(frozen=True)
class KeypointPerson:
    """A predicted person, as evaluation takes it from any model.

    Attributes:
        image_id: Of the annotation file.
        keypoints_px: (J,2) float32 in the image, the first pixel's centre at 0 as in COCO's files.
        scores: (J,) float32.
        center_px: (2,) middle of the crop in the image.
        scale: (2,) width and height of the crop over 200 px.
        box_score: Of the detector; 1 for a labelled box.
        area_px2: Of the crop; from ``scale`` if None.

    Raises:
        InputError: Shapes do not fit, a number is not finite, or the area is not positive.
    """

    image_id: int
    keypoints_px: NDArray
    scores: NDArray
    center_px: NDArray
    scale: NDArray
    box_score: float = 1.0
    area_px2: float | None = None

    def __post_init__(self) -> None:
        joints = len(self.scores)
        shapes = {
            "keypoints_px": (self.keypoints_px, (joints, 2)),
            "scores": (self.scores, (joints,)),
            "center_px": (self.center_px, (2,)),
            "scale": (self.scale, (2,)),
        }
        for name, (array, shape) in shapes.items():
            found = np.shape(array)
            if found != shape or not np.isfinite(array).all():
                what = f"shape {found}" if found != shape else "NaN or inf"
                raise InputError(
                    f"{name} of a person in image {self.image_id}: expected finite numbers of "
                    f"shape {shape}, found {what}."
                )
        if not (np.isfinite(self.box_score) and 0 < self.area < np.inf):
            raise InputError(
                f"a person in image {self.image_id}: expected a finite box score and a positive "
                f"area, found {self.box_score} and {self.area} px^2. Drop empty boxes."
            )

    @property
    def area(self) -> float:
        """Area of the crop, px^2."""
        if self.area_px2 is not None:
            return self.area_px2
        return float(np.prod(np.asarray(self.scale, dtype=np.float64) * PIXELS_OF_SCALE))


def assign_queries(values: Tensor) -> Tensor:
    """Give each joint a query of its own so that the sum of their values is largest.

    Args:
        values: (...,Q,J).

    Returns:
        (...,J) int64 on the device of the values. The assignment itself runs on the CPU.

    Raises:
        InputError: There are fewer queries than joints.
    """
    return assign([-values])[0]


def read_out(logits_BQC: Tensor, coords_BQ2: Tensor, include_background: bool = False) -> Keypoints:
    """Read out a two-stage network, whose background is the last class.

    Args:
        logits_BQC: Before softmax, C = J + 1.
        coords_BQ2: In [0,1] of the crop.
        include_background: Whether the background takes part in the softmax.

    Returns:
        Coordinates (B,J,2) in [0,1] of the crop, and probabilities (B,J), float32.
    """
    logits = logits_BQC.float()
    if include_background:
        probability = logits.softmax(dim=-1)[..., :-1]
    else:
        probability = logits[..., :-1].softmax(dim=-1)
    query_BJ = assign_queries(probability)
    return _picked(query_BJ, probability, coords_BQ2)


def read_out_sequential(logits_BKQC: Tensor, coords_BKQ2: Tensor) -> Keypoints:
    """Read out the sequential network, whose background is class 0, by the raw logits of joints.

    Args:
        logits_BKQC: Before softmax, C = J + 1.
        coords_BKQ2: In [0,1] of the image.

    Returns:
        Coordinates (B,K,J,2). The published notebook has no scores; ours (B,K,J) are the
        probabilities that `read_out` would give.
    """
    joint_logits = logits_BKQC.float()[..., 1:]
    query_BKJ = assign_queries(joint_logits)
    return _picked(query_BKJ, joint_logits.softmax(dim=-1), coords_BKQ2)


def _picked(query: Tensor, values: Tensor, coords: Tensor) -> Keypoints:
    """Value and place of each joint at its query (...,J)."""
    scores = values.gather(-2, query[..., None, :]).squeeze(-2)
    places = coords.float().gather(-2, query[..., None].expand(*query.shape, 2))
    return Keypoints(places, scores)


def unflip(keypoints: Keypoints, skeleton: Skeleton) -> Keypoints:
    """Keypoints of a mirrored crop, as keypoints of the crop itself.

    x becomes 1 - x, without the alignment by one pixel that mirroring in training has, and left
    joints change places with right ones.
    """
    order = skeleton.flip_permutation
    x, y = keypoints.coords.unbind(dim=-1)
    mirrored = torch.stack((1 - x, y), dim=-1)
    # a list of indices would be copied to the device, and the host would wait
    return Keypoints(
        torch.stack([mirrored[..., joint, :] for joint in order], dim=-2),
        torch.stack([keypoints.scores[..., joint] for joint in order], dim=-1),
    )


def to_image(
    coords_BJ2: Tensor, center_B2: Tensor, scale_B2: Tensor, size: Sequence[int]
) -> Tensor:
    """Crop coordinates in [0,1] to image pixels: the inverse of the upright crop.

    Args:
        coords_BJ2: x and y in [0,1].
        center_B2: Middle of the crop in the image, pixels.
        scale_B2: Crop over 200 px; only its width counts.
        size: Width and height of the crop, pixels.

    Returns:
        (B,J,2) float32 pixels.
    """
    width = scale_B2[:, 0].float() * PIXELS_OF_SCALE
    extent_B2 = torch.stack((width, width * (size[1] / size[0])), dim=-1)
    return (coords_BJ2.float() - 0.5) * extent_B2[:, None] + center_B2[:, None].float()


def read_out_people(
    plain: KeypointSetOutput,
    mirrored: KeypointSetOutput | None,
    center_B2: Tensor,
    scale_B2: Tensor,
    size: Sequence[int],
    skeleton: Skeleton,
    include_background: bool = False,
) -> Keypoints:
    """Keypoints in the image, from one pass or from both passes of a flip test.

    Each pass is read out by itself and mapped to the image; coordinates and scores are averaged.

    Args:
        plain: Hypotheses of the crops.
        mirrored: Hypotheses of the mirrored crops; None for no flip test.
        center_B2: See `to_image`.
        scale_B2: See `to_image`.
        size: See `to_image`.
        skeleton: The network's joints.
        include_background: See `read_out`.

    Returns:
        Coordinates (B,J,2) in pixels and scores (B,J), float32.

    Raises:
        InputError: The network has other classes than the skeleton's joints and a background.
    """
    passes = [plain] if mirrored is None else [plain, mirrored]
    classes = plain.logits.shape[-1]
    if classes != len(skeleton) + 1:
        raise InputError(
            f"logits: expected {len(skeleton) + 1} classes, the joints of '{skeleton.name}' and a "
            f"background, found {classes}. Take a model for these joints."
        )
    # one call, so that the host waits for the device once
    both = read_out(
        torch.cat([p.logits for p in passes]),
        torch.cat([p.coords for p in passes]),
        include_background,
    )
    count = len(plain.logits)
    found = [Keypoints(both.coords[:count], both.scores[:count])]
    if mirrored is not None:
        found.append(unflip(Keypoints(both.coords[count:], both.scores[count:]), skeleton))
    coords = [to_image(each.coords, center_B2, scale_B2, size) for each in found]
    return Keypoints(
        torch.stack(coords).mean(dim=0), torch.stack([each.scores for each in found]).mean(dim=0)
    )


@torch.no_grad()
def predict_keypoints(
    network: KeypointNetwork,
    image_B3HW: Tensor,
    center_B2: Tensor,
    scale_B2: Tensor,
    skeleton: Skeleton,
    *,
    flip_test: bool = True,
    include_background: bool = False,
) -> Keypoints:
    """Run a two-stage network on crops and read it out in the image, with or without flip test.

    The flip test mirrors the normalised crop itself. Arguments and result as in
    `read_out_people`; the size is that of the crops.
    """
    plain = network(image_B3HW)
    mirrored = network(image_B3HW.flip(-1)) if flip_test else None
    height, width = image_B3HW.shape[-2:]
    return read_out_people(
        plain, mirrored, center_B2, scale_B2, (width, height), skeleton, include_background
    )


def person_columns(
    image_id: Tensor, keypoints: Keypoints, center_B2: Tensor, scale_B2: Tensor, box_score: Tensor
) -> dict[str, Tensor]:
    """Columns of B people for a `kinemesh.evaluation.SampleTable`, which merges processes.

    Args:
        image_id: (B,) int64.
        keypoints: In pixels of the image.
        center_B2: Pixels.
        scale_B2: Crop over 200 px.
        box_score: (B,).
    """
    return {
        "image_id": image_id,
        "keypoints_px": keypoints.coords,
        "scores": keypoints.scores,
        "center_px": center_B2,
        "scale": scale_B2,
        "box_score": box_score,
    }


def people_of(columns: Mapping[str, Tensor]) -> list[KeypointPerson]:
    """People (one a row) of columns as `person_columns` names them."""
    arrays = {name: values.detach().cpu().numpy() for name, values in columns.items()}
    return [
        KeypointPerson(
            image_id=int(arrays["image_id"][row]),
            keypoints_px=arrays["keypoints_px"][row],
            scores=arrays["scores"][row],
            center_px=arrays["center_px"][row],
            scale=arrays["scale"][row],
            box_score=float(arrays["box_score"][row]),
        )
        for row in range(len(arrays["image_id"]))
    ]


def scene_people(
    output: SequentialOutput, image_id: Sequence[int], sizes: Tensor, score_above: float = 0.0
) -> list[KeypointPerson]:
    """People of whole images, from the sequential network.

    The network counts from the corner of the image, people count from the first pixel's centre.

    Args:
        output: Of B images.
        image_id: Of each image.
        sizes: (B,2) height and width of each image without padding, pixels.
        score_above: A person's probability has to be above it.

    Returns:
        Image by image, in the order of the network's rows.
    """
    keypoints = read_out_sequential(output.keypoint_logits, output.keypoint_coords)
    extent_B2 = sizes.to(output.boxes.device).flip(-1).float()  # width, height
    persons_BK = output.persons
    score_BK = output.logits.float().softmax(dim=-1)[..., 0].gather(1, persons_BK)
    boxes = output.boxes.float().gather(1, persons_BK[..., None].expand(-1, -1, 4))
    center, side = (part * extent_B2[:, None] for part in boxes.chunk(2, dim=-1))
    # a box without extent has no OKS; one pixel is the least that can be seen
    scale = side.clamp_min(1.0) * (PADDING / PIXELS_OF_SCALE)
    images = torch.as_tensor(image_id)[:, None].expand(persons_BK.shape)
    coords = keypoints.coords * extent_B2[:, None, None] - PIXEL_CENTER
    pixels = Keypoints(coords, keypoints.scores)
    columns = person_columns(images, pixels, center, scale, score_BK)
    people = people_of({name: values.flatten(0, 1) for name, values in columns.items()})
    return [person for person in people if person.box_score > score_above]
