"""Protocols of 2D keypoint scores, and results that print themselves with theirs.

An AP or a PCKh depends on whose boxes the people were cut out by, on the flip test, on the
suppression of duplicates and on the joints. A :class:`KeypointProtocol` states all of it.
``docs/keypoint-protocols.md`` describes those that are built in.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17, MPII16, Skeleton

GROUND_TRUTH_BOXES = "ground truth"
"""People are placed by their labels; not comparable with scores that have to find them first."""


@dataclass(frozen=True)
class KeypointProtocol:
    """How keypoints of people are scored.

    Attributes:
        name: Short name for the command line.
        title: For people.
        joint_set: The joints that are compared.
        unit: Of the numbers: empty for shares in [0, 1], or ``"%"``.
        boxes: Whose boxes place the people, for example ``"ground truth"`` or
            ``"detector (dets.json)"``.
        flip_test: Whether the prediction is the mean over the picture and its mirror image.
        include_background: Whether the background takes part in the softmax of the read-out; None
            where joints are read out without one.
        joint_score_above: A person's score is the mean of its joint scores strictly above this,
            times the score of its box; None where people have no score.
        oks_nms_above: Of two people in an image whose OKS is strictly above this the better one
            stays; None for no suppression.
        rules: What else decides the number.
    """

    name: str
    title: str
    joint_set: Skeleton
    unit: str = ""
    boxes: str = GROUND_TRUTH_BOXES
    flip_test: bool = True
    include_background: bool | None = False
    joint_score_above: float | None = None
    oks_nms_above: float | None = None
    rules: tuple[str, ...] = ()

    def conditions(self) -> tuple[str, ...]:
        """One line for each thing that decides the number."""
        background = "left out of the softmax"
        if self.include_background is None:
            background = "takes no part, joints are read out by their logits without a softmax"
        elif self.include_background:
            background = "part of the softmax, NOT as published"
        lines = [
            f"boxes: {self.boxes}",
            f"flip test: {'yes' if self.flip_test else 'no'}",
            f"background: {background}",
            f"joints: {self.joint_set.name} ({len(self.joint_set)})",
        ]
        if self.joint_score_above is not None:
            lines.append(
                f"score of a person: mean of joint scores > {self.joint_score_above:g}, "
                "times the box's"
            )
        nms = "none" if self.oks_nms_above is None else f"OKS > {self.oks_nms_above:g}"
        lines.append(f"suppression: {nms}")
        return (*lines, *self.rules)

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record."""
        return {
            "name": self.name,
            "title": self.title,
            "joint_set": self.joint_set.name,
            "unit": self.unit,
            "boxes": self.boxes,
            "flip_test": self.flip_test,
            "include_background": self.include_background,
            "joint_score_above": self.joint_score_above,
            "oks_nms_above": self.oks_nms_above,
            "rules": list(self.rules),
        }


COCO_KEYPOINTS = KeypointProtocol(
    name="coco-keypoints",
    title="COCO keypoints (Lin et al. 2014)",
    joint_set=COCO17,
    joint_score_above=0.2,
    oks_nms_above=0.9,
    rules=("OKS .50:.05:.95, 20 people an image, areas from 32^2 (M: to 96^2, L: above)",),
)
MPII_PCKH = KeypointProtocol(
    name="mpii-pckh",
    title="MPII, PCKh@0.5 (Andriluka et al. 2014)",
    joint_set=MPII16,
    unit="%",
    rules=("Mean: by visible joints, without pelvis and thorax",),
)
KEYPOINT_PROTOCOLS = {protocol.name: protocol for protocol in (COCO_KEYPOINTS, MPII_PCKH)}


def get_keypoint_protocol(name: str) -> KeypointProtocol:
    """Protocol by name.

    Raises:
        InputError: No protocol has this name.
    """
    if name not in KEYPOINT_PROTOCOLS:
        raise InputError(
            f"There is no keypoint protocol '{name}'. Protocols: {', '.join(KEYPOINT_PROTOCOLS)}."
        )
    return KEYPOINT_PROTOCOLS[name]


@dataclass(frozen=True)
class KeypointResult:
    """The numbers of one model on one data set, with the protocol that made them.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        protocol: The protocol.
        values: The numbers by name, in the order of the report and the protocol's unit; NaN where
            nothing in the data counts.
        counts: How many there were of what, for example ``{"images": 28}``.
        notes: What a reader should know.
    """

    model: str
    dataset: str
    protocol: KeypointProtocol
    values: Mapping[str, float]
    counts: Mapping[str, int]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        lines = [
            f"{self.model} on {self.dataset}",
            f"protocol {self.protocol.name}: {self.protocol.title}",
            *(f"  {condition}" for condition in self.protocol.conditions()),
            "  counted: " + ", ".join(f"{count} {name}" for name, count in self.counts.items()),
            *(f"{name}  {self._number(value)}" for name, value in self.values.items()),
            *(f"note: {note}" for note in self.notes),
        ]
        return "\n".join(lines)

    def _number(self, value: float) -> str:
        if math.isnan(value):
            return "- (nothing to score)"
        return f"{value:.3f} {self.protocol.unit}" if self.protocol.unit else f"{value:.4f}"

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; a number of nothing is null."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "protocol": self.protocol.to_dict(),
            "values": {
                name: None if math.isnan(value) else value for name, value in self.values.items()
            },
            "counts": dict(self.counts),
            "notes": list(self.notes),
        }
