"""The detector of this library: people and hands of a photo in one pass, and nothing downloaded."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import nn

from kinemesh.errors import InputError, KinemeshError
from kinemesh.geometry.letterbox import Letterbox
from kinemesh.inference.boxes import Box, Side, check_score
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.predictor import resolve_device
from kinemesh.models.detector import CLASSES, LEFT_HAND, PERSON, RIGHT_HAND
from kinemesh.models.detector_decoding import DecodingOptions, Detections, decode
from kinemesh.models.detector_files import load_detector_network
from kinemesh.models.optimised import optimise

MIN_SCORE = 0.6
"""Boxes that the network is less sure of are left out where nothing else is said."""

Kind = Literal["person", "hand", "both"]
KINDS: dict[str, Kind] = {
    "body": "person",
    "pose2d": "person",
    "hand": "hand",
    "body,hand": "both",
}
"""What the tasks of predictions look for."""

_SIDES: dict[int, Side] = {LEFT_HAND: "left", RIGHT_HAND: "right"}


@dataclass(frozen=True)
class FoundBoxes:
    """What a photo shows, best first.

    Attributes:
        people: Boxes without a side.
        hands: Boxes with the side of the body that the hand belongs to.
    """

    people: tuple[Box, ...]
    hands: tuple[Box, ...]


class OwnDetector:
    """Finds people and hands in photos with a `kinemesh.models.detector.Detector`.

    Args:
        network: A `kinemesh.models.detector.Detector`, or what `optimise` made of one; moved to
            ``device``.
        metadata: The record of its weight file; only ``classes`` is looked at.
        device: Where to compute.
        min_score: Boxes with a lower score are left out.
        kind: What `detect` returns: people, hands, or both.

    Raises:
        InputError: The network finds other things, or an argument is out of its range.
    """

    def __init__(
        self,
        network: nn.Module,
        metadata: Mapping[str, Any],
        device: torch.device | str = "cpu",
        min_score: float = MIN_SCORE,
        kind: Kind = "person",
    ) -> None:
        check_score("min_box_score", min_score)
        if tuple(metadata.get("classes", ())) != CLASSES:
            raise InputError(
                f"metadata: expected the classes {', '.join(CLASSES)}, found "
                f"{metadata.get('classes')!r}. Give what load_detector_network returned."
            )
        if kind not in KINDS.values():
            raise InputError(f"kind: expected 'person', 'hand' or 'both', found {kind!r}.")
        self.network = network.to(device).eval()
        self.side = int(network.config.side)  # type: ignore[union-attr, arg-type]
        self.device = torch.device(device)
        self.min_score = min_score
        self.kind = kind

    @classmethod
    def load(
        cls,
        name: str | Path,
        device: str = "cpu",
        min_score: float = MIN_SCORE,
        kind: Kind = "person",
    ) -> Self:
        """Read a weight file, and make it fast on the CPU.

        Args:
            name: "kinemesh-detector", which is shipped, or the path of a weight file.
            device: "auto", "cpu", "cuda" or another torch device.
            min_score: Boxes with a lower score are left out.
            kind: What `detect` returns.

        Raises:
            InputError: There is no such file, or it holds another kind of network.
        """
        place = resolve_device(device)
        network, metadata = load_detector_network(name)
        fast = optimise(network) if place.type == "cpu" else network
        return cls(fast, metadata, place, min_score, kind)

    def of_kind(self, kind: Kind) -> Self:
        """The same network for other things."""
        other = copy.copy(self)
        other.kind = kind
        return other

    def detect(self, photo: LoadedImage) -> list[Box]:
        """Boxes of what ``kind`` says, in pixels of the upright photo: people, then hands.

        Each of the two best first. Hands have a side, people none.
        """
        found = self.find(photo)
        people = found.people if self.kind != "hand" else ()
        hands = found.hands if self.kind != "person" else ()
        return [*people, *hands]

    def find(self, photo: LoadedImage) -> FoundBoxes:
        """Boxes of people and hands, in pixels of the upright photo, in one pass.

        Raises:
            KinemeshError: The network returned numbers that are not finite.
        """
        letterbox = Letterbox(photo.size, self.side)
        detections = self._run(letterbox, photo)
        boxes = letterbox.to_photo(detections.boxes.cpu().numpy()).astype(float).tolist()
        people: list[Box] = []
        hands: list[Box] = []
        rows = zip(boxes, detections.scores.tolist(), detections.labels.tolist(), strict=True)
        for (left, top, right, bottom), score, label in rows:
            if right <= left or bottom <= top:
                continue  # it lay in the padding
            box = Box(left, top, right - left, bottom - top, score, _SIDES.get(label))
            (people if label == PERSON else hands).append(box)
        return FoundBoxes(tuple(people), tuple(hands))

    @torch.inference_mode()
    def _run(self, letterbox: Letterbox, photo: LoadedImage) -> Detections:
        square = torch.from_numpy(letterbox.fill(photo.pixels)).permute(2, 0, 1)[None]
        output = self.network(square.to(self.device).float() / 255)
        if not all(bool(values.isfinite().all()) for values in output):
            raise KinemeshError(
                "The detector returned numbers that are not finite. Its weight file is damaged or "
                "its training diverged; load another one."
            )
        options = DecodingOptions(least_score=self.min_score)
        return decode(output, letterbox.side, options)[0]
