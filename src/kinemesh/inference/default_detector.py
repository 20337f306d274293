"""The detector that searches photos for which nobody says where to look."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

from kinemesh.inference.boxes import Box
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.own_detector import KINDS, MIN_SCORE, Kind, OwnDetector
from kinemesh.models.detector_files import SHIPPED_DETECTOR
from kinemesh.models.registry import cards


@dataclass(frozen=True)
class DefaultDetector:
    """The shipped detector, which is read from its file when the first photo is searched.

    Attributes:
        kind: What is looked for.
        device: "auto", "cpu" or "cuda".
        min_score: Boxes with a lower score are left out.
    """

    kind: Kind
    device: str = "auto"
    min_score: float = MIN_SCORE

    def of_kind(self, kind: Kind) -> Self:
        """The same for other things."""
        return replace(self, kind=kind)

    def detect(self, photo: LoadedImage) -> list[Box]:
        """Boxes in pixels of the upright photo; see `OwnDetector.detect`.

        Raises:
            InputError: The shipped file is damaged or missing.
        """
        return self._opened.detect(photo)

    @cached_property
    def _opened(self) -> OwnDetector:
        return OwnDetector.load(SHIPPED_DETECTOR, self.device, self.min_score, self.kind)


def default_detector(task: str, device: str = "auto") -> DefaultDetector | None:
    """The shipped detector for a task of predictions; None where none is shipped.

    Args:
        task: "body", "hand", "body,hand" or "pose2d".
        device: "auto", "cpu" or "cuda".
    """
    is_shipped = any(card["name"] == SHIPPED_DETECTOR for card in cards())
    return DefaultDetector(KINDS[task], device) if is_shipped else None
