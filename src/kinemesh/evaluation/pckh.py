"""PCKh of MPII: the share of joints that lie within a part of the head's size of their label.

The head's size is 0.6 times the diagonal of the labelled head box (Andriluka et al. 2014).
Published tables have a column "Mean@0.1"; it is taken at threshold 0.11, and is called so here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.io import loadmat, whosmat
from torch import Tensor

from kinemesh.data.detection_boxes import read_json, read_numbers
from kinemesh.data.mpii import read_official
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import KeypointPerson
from kinemesh.keypoint_protocols import MPII_PCKH, KeypointProtocol, KeypointResult
from kinemesh.skeletons import MPII16

HEAD_OF_BOX = 0.6
HeadSize = Literal["box", "segment"]
_HEAD_RULES: dict[HeadSize, str] = {
    "box": "head size: 0.6 times the diagonal of the head box",
    "segment": "head size: from head top to upper neck, NOT the published rule (no head boxes)",
}
_MAT_NAMES = (
    *("rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor"),
    *("neck", "head", "rwri", "relb", "rsho", "lsho", "lelb", "lwri"),
)
"""What gt_valid.mat calls the joints of ``mpii16``."""
_GROUPS = {
    "Head": ("head_top",),
    "Shoulder": ("left_shoulder", "right_shoulder"),
    "Elbow": ("left_elbow", "right_elbow"),
    "Wrist": ("left_wrist", "right_wrist"),
    "Hip": ("left_hip", "right_hip"),
    "Knee": ("left_knee", "right_knee"),
    "Ankle": ("left_ankle", "right_ankle"),
}
_LEFT_OUT = ("pelvis", "thorax")
THRESHOLDS = {"PCKh@0.5": 0.5, "PCKh@0.11": 0.11, "PCKh@0.1": 0.1}
PUBLISHED_AS = "PCKh@0.11 is what published tables call Mean@0.1"
_ADVICE = "Give gt_valid.mat, or a list in the form of HRNet's valid.json with head boxes."
_WITHOUT_HEADS = (
    "kinemesh eval takes it with --labels, or measures heads from top to neck with --head-size "
    "segment; kinemesh train takes it with --validation-labels, or does without: --protocol own."
)


@dataclass(frozen=True)
class MpiiLabels:
    """What predictions of N people are compared with, in the order of the file.

    Attributes:
        source: Where they come from.
        positions_px: (N,16,2) float64 in the order of ``mpii16``, the first pixel's centre at
            (1, 1), as MPII counts.
        visible: (N,16) bool, joints that count.
        head_px: (N,) float64, sizes of the heads.
        head_size: How they were found.

    Raises:
        InputError: Shapes do not fit, or a person with a joint that counts has no head.
    """

    source: str
    positions_px: NDArray
    visible: NDArray
    head_px: NDArray
    head_size: HeadSize = "box"

    def __post_init__(self) -> None:
        count = len(self.head_px)
        shapes = {
            "positions_px": (self.positions_px, (count, len(MPII16), 2)),
            "visible": (self.visible, (count, len(MPII16))),
            "head_px": (self.head_px, (count,)),
        }
        for name, (array, shape) in shapes.items():
            if array.shape != shape:
                raise InputError(
                    f"'{self.source}', {name}: expected shape {shape}, found {array.shape}."
                )
        bad = self.visible.any(axis=1) & ~(self.head_px > 0)
        if bad.any():
            raise InputError(
                f"'{self.source}', person {int(bad.argmax())}: expected a head of positive size, "
                f"found {self.head_px[bad.argmax()]}."
            )

    @classmethod
    def from_boxes(
        cls, source: str, positions_px: NDArray, visible: NDArray, boxes_px: NDArray
    ) -> "MpiiLabels":
        """Labels with head boxes (N,4) as x1, y1, x2, y2; the others as above."""
        boxes = np.asarray(boxes_px, dtype=np.float64)
        head = HEAD_OF_BOX * np.hypot(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        positions = np.asarray(positions_px, dtype=np.float64)
        return cls(source, positions, np.asarray(visible) > 0, head)

    def first(self, count: int) -> "MpiiLabels":
        """The first people of the file."""
        return replace(
            self,
            positions_px=self.positions_px[:count],
            visible=self.visible[:count],
            head_px=self.head_px[:count],
        )


def read_labels(path: str | Path, head_size: HeadSize = "box") -> MpiiLabels:
    """Read ``gt_valid.mat``, a JSON list in HRNet's form, or MPII's own ``.mat``.

    MPII's own file (``mpii_human_pose_v1_u12_1.mat``) holds the labels of all people for training,
    without a word about which of them are the validation; those are returned. Joints of people
    without a head box do not count.

    Args:
        path: ``.mat``, or ``.json`` whose people have ``joints``, ``joints_vis`` and ``head_box``
            (x1, y1, x2, y2), all counted from 1.
        head_size: "segment" measures heads from head top to upper neck, for lists without head
            boxes; its numbers do not compare with published ones.

    Raises:
        InputError: The file is missing, damaged, something else, or has no head boxes.
    """
    if not Path(path).is_file():
        raise InputError(f"There is no file '{path}'. {_ADVICE}")
    path = Path(path)
    return _read_mat(path) if path.suffix == ".mat" else _read_rows(path, head_size)


def _read_mat(path: Path) -> MpiiLabels:
    try:
        if "RELEASE" in {name for name, *_ in whosmat(path)}:
            return _read_release(path)
        content = loadmat(path)
    except InputError:
        raise
    # SciPy meets a damaged file with whatever its reader stumbles over
    except Exception as error:
        raise InputError(f"'{path}': expected a MATLAB file, found none ({error}).") from error
    keys = ("dataset_joints", "jnt_missing", "pos_gt_src", "headboxes_src")
    if lacking := [key for key in keys if key not in content]:
        raise InputError(f"'{path}': expected {', '.join(keys)}, found no {', '.join(lacking)}.")
    rows = _rows_of_joints(content["dataset_joints"], path)
    positions, missing = content["pos_gt_src"], content["jnt_missing"]
    boxes = content["headboxes_src"]
    count = positions.shape[-1]
    joints = len(rows)
    if (positions.shape, missing.shape, boxes.shape) != (
        (joints, 2, count),
        (joints, count),
        (2, 2, count),
    ):
        raise InputError(
            f"'{path}': expected pos_gt_src ({joints}, 2, N), jnt_missing ({joints}, N) and "
            f"headboxes_src (2, 2, N), found {positions.shape}, {missing.shape}, {boxes.shape}."
        )
    return MpiiLabels.from_boxes(
        str(path),
        positions.transpose(2, 0, 1)[:, rows],
        missing.T[:, rows] == 0,
        boxes.transpose(2, 0, 1).reshape(count, 4),
    )


def _read_release(path: Path) -> MpiiLabels:
    people = read_official(path, "train")
    nowhere = np.full(4, np.nan)
    boxes = np.array([nowhere if p.head_box is None else p.head_box for p in people])
    measured = np.array([p.head_box is not None for p in people])
    if not measured.any():
        raise InputError(f"'{path}': expected head boxes x1, y1, x2, y2, found none. {_ADVICE}")
    return MpiiLabels.from_boxes(
        str(path),
        np.stack([p.joints for p in people]),
        np.stack([p.visible for p in people]) * measured[:, None],
        boxes,
    )


def _rows_of_joints(names: NDArray, path: Path) -> list[int]:
    """Where the joints of ``mpii16`` are, by name."""
    found = [str(np.asarray(name).item()) for name in names.ravel()]
    if lacking := [name for name in _MAT_NAMES if name not in found]:
        raise InputError(
            f"'{path}', dataset_joints: expected {', '.join(_MAT_NAMES)}, found no "
            f"{', '.join(lacking)}."
        )
    return [found.index(name) for name in _MAT_NAMES]


def _read_rows(path: Path, head_size: HeadSize) -> MpiiLabels:
    people = read_json(path)
    if not isinstance(people, list) or not people:
        raise InputError(f"'{path}': expected a list of people. {_ADVICE}")
    joints = _column(people, "joints", (len(MPII16), 2), path)
    visible = _column(people, "joints_vis", (len(MPII16),), path) > 0
    if head_size == "box":
        boxes = _column(people, "head_box", (4,), path)
        return MpiiLabels.from_boxes(str(path), joints, visible, boxes)
    top, neck = MPII16.index("head_top"), MPII16.index("upper_neck")
    # without both ends there is no size, and the person cannot be scored
    visible &= visible[:, [top]] & visible[:, [neck]]
    head = np.linalg.norm(joints[:, top] - joints[:, neck], axis=1)
    return MpiiLabels(str(path), joints, visible, head, "segment")


def _column(people: list[Any], key: str, shape: tuple[int, ...], path: Path) -> NDArray:
    """What each person has under a key (N, *shape)."""
    rows = []
    for number, person in enumerate(people):
        where = f"'{path}', person {number}"
        if not isinstance(person, dict) or key not in person:
            heads = f" {_WITHOUT_HEADS}" if key == "head_box" else ""
            raise InputError(f"{where}: expected an object with '{key}'. {_ADVICE}{heads}")
        rows.append(read_numbers(person, key, shape, where))
    return np.stack(rows)


def correct_joints(
    predictions_px: Tensor, positions_px: Tensor, head_px: Tensor, thresholds: Tensor
) -> Tensor:
    """Which joints lie within each threshold of their label; the threshold itself is within.

    Args:
        predictions_px: (N,J,2).
        positions_px: (N,J,2), counted from the same origin.
        head_px: (N,) sizes of the heads.
        thresholds: (T,) in sizes of heads.

    Returns:
        (T,N,J) bool.
    """
    errors = (predictions_px - positions_px).norm(dim=-1) / head_px[:, None]
    return torch.le(errors, thresholds[:, None, None])


def pckh_scores(
    predictions_px: NDArray | Tensor, labels: MpiiLabels, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """The published numbers, in percent.

    Args:
        predictions_px: (N,16,2) image pixels in the order of ``mpii16`` and of the labels, the
            first pixel's centre at (0, 0), as networks give them.
        labels: Of the same people.
        device: Where to compute; float64 where the device has it.

    Returns:
        Head, Shoulder, Elbow, Wrist, Hip, Knee, Ankle: PCKh@0.5, the plain mean of left and right.
        Mean, PCKh@0.11 and PCKh@0.1: over joints weighted by how often each is visible, without
        pelvis and thorax. NaN where no joint counts.

    Raises:
        InputError: The shape is not that of the labels, or a number is not finite.
    """
    predictions = torch.as_tensor(predictions_px).double()
    if predictions.shape != labels.positions_px.shape or not bool(predictions.isfinite().all()):
        raise InputError(
            f"predictions: expected finite numbers of shape {labels.positions_px.shape}, one "
            f"person for each of '{labels.source}' in its order, found shape "
            f"{tuple(predictions.shape)}."
        )
    device = torch.device(device)
    kind = torch.float32 if device.type == "mps" else torch.float64
    moved = [
        torch.as_tensor(array).to(device=device, dtype=kind)
        for array in (predictions + 1.0, labels.positions_px, labels.head_px, labels.visible)
    ]
    own, true, head, visible = moved
    head = torch.where(head > 0, head, 1.0)  # of people of whom nothing counts
    limits = torch.tensor(list(THRESHOLDS.values()), device=device, dtype=kind)
    correct = (correct_joints(own, true, head, limits) * visible).sum(dim=1).cpu().double()
    counts = visible.sum(dim=0).cpu().double()
    return _summary(correct.numpy(), counts.numpy())


def _summary(correct: NDArray, counts: NDArray) -> dict[str, float]:
    """Numbers of joints (T,16) within each threshold, out of those that count (16,)."""
    values = {}
    for name, joints in _GROUPS.items():
        sides = [MPII16.index(joint) for joint in joints]
        seen = [side for side in sides if counts[side]]
        shares = [100 * correct[0, side] / counts[side] for side in seen]
        values[name] = float(np.mean(shares)) if shares else float("nan")
    kept = [row for row, joint in enumerate(MPII16.joints) if joint not in _LEFT_OUT]
    total = counts[kept].sum()
    means = 100 * correct[:, kept].sum(axis=1) / total if total else np.full(len(correct), np.nan)
    names = ("Mean", *list(THRESHOLDS)[1:])
    return values | {name: float(mean) for name, mean in zip(names, means, strict=True)}


def evaluate_mpii(
    people: Sequence[KeypointPerson],
    labels: MpiiLabels | str | Path,
    protocol: KeypointProtocol = MPII_PCKH,
    *,
    model: str = "predictions",
    device: torch.device | str = "cpu",
) -> KeypointResult:
    """Score predicted people against MPII's labels.

    Args:
        people: One for each of the labels, in their order.
        labels: ``gt_valid.mat`` or a list with head boxes; see `read_labels`.
        protocol: What decides the number.
        model: Name of the model.
        device: Where to compute.

    Raises:
        InputError: There are no people, another number of them, or of other joints.
    """
    if not isinstance(labels, MpiiLabels):
        labels = read_labels(labels)
    if not people:
        raise InputError("There is no predicted person to score. Check the data set and the count.")
    joints = {len(person.scores) for person in people}
    if len(people) != len(labels.head_px) or joints != {len(MPII16)}:
        raise InputError(
            f"people: expected {len(labels.head_px)} of {len(MPII16)} joints, one for each of "
            f"'{labels.source}' in its order, found {len(people)} of {sorted(joints)} joints."
        )
    predictions = np.stack([person.keypoints_px for person in people]).astype(np.float64)
    values = pckh_scores(predictions, labels, device)
    head_rule = _HEAD_RULES[labels.head_size]
    counts = {"people": len(people), "visible joints": int(labels.visible.sum())}
    described = replace(protocol, rules=(*protocol.rules, head_rule))
    return KeypointResult(model, labels.source, described, values, counts, (PUBLISHED_AS,))
