"""Detectors: from a photo to the boxes of its people, best first, each once.

Everything that has a method ``detect`` is a `Detector`: a table of boxes
(`kinemesh.inference.boxes.BoxTable`), the sequential network of PRTR, the networks of the package
transformers (`kinemesh.inference.transformers_detector`), or your own. `load_detector` makes one
from the words of ``--detector``.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kinemesh.errors import InputError
from kinemesh.inference.boxes import Box, check_score
from kinemesh.inference.duplicates import tidy_boxes
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.transformers_detector import PUBLISHED, TransformersDetector

if TYPE_CHECKING:
    from kinemesh.inference.keypoints import KeypointPredictor

MIN_BOX_SCORE = 0.5
"""Boxes that a detector is less sure of are left out where nothing else is said."""


class Detector(Protocol):
    """Finds people in photos."""

    def detect(self, photo: LoadedImage) -> list[Box]:
        """Boxes of the people, in pixels of the upright photo; empty if there is nobody."""


class SequentialDetector:
    """The sequential network of PRTR as a detector; its keypoints are put aside.

    Args:
        predictor: Of a sequential network.
        min_score: Boxes with a lower score are left out.

    Raises:
        InputError: The network sees one person at a time and finds nobody.
    """

    def __init__(self, predictor: "KeypointPredictor", min_score: float = MIN_BOX_SCORE) -> None:
        if not predictor.finds_people:
            raise InputError(
                "detector: this network reads the keypoints of one person in each box and finds "
                "no people. Give a sequential network of PRTR."
            )
        self.predictor = predictor
        self.min_score = min_score

    def detect(self, photo: LoadedImage) -> list[Box]:
        """Boxes of the people, best first."""
        people = self.predictor.predict(photo, min_score=self.min_score)
        boxes = [Box(*person.box_px, person.score) for person in people]
        return tidy_boxes(boxes, photo.size, self.min_score)


def load_detector(
    name: str, device: str = "auto", min_score: float = MIN_BOX_SCORE, *, download: bool = True
) -> Detector:
    """Load a detector by what ``--detector`` calls it.

    Args:
        name: ``"rtdetr"`` or ``"dfine"``, a network of the package transformers, which is
            downloaded once (``"rtdetr@REVISION"`` takes one revision of it); a folder with such a
            network; or the .safetensors file of a detector of this library, or of a sequential
            network of PRTR.
        device: "auto", "cpu" or "cuda".
        min_score: Boxes with a lower score are left out.
        download: Whether a published network may be fetched if it is not on this machine.

    Raises:
        InputError: There is no such detector, or it cannot be had or read.
        MissingExtraError: It needs the extra ``detect``.
    """
    check_score("min_box_score", min_score)
    path = Path(name)
    if name.partition("@")[0] in PUBLISHED:
        return TransformersDetector.published(name, device, min_score, download=download)
    if path.is_dir():
        return TransformersDetector(path, device, min_score)
    if path.is_file():
        return _from_file(path, device, min_score)
    raise InputError(
        f"detector: expected {' or '.join(PUBLISHED)}, a folder with a detector of the package "
        f"transformers, or a weight file of a detector or of a sequential network of PRTR, found "
        f"'{name}'."
    )


def _from_file(path: Path, device: str, min_score: float) -> Detector:
    # brings torch and the registry of all networks
    from kinemesh.inference.own_detector import OwnDetector  # noqa: PLC0415
    from kinemesh.inference.predictor import resolve_device  # noqa: PLC0415
    from kinemesh.models.detector_files import is_detector_file  # noqa: PLC0415

    if is_detector_file(path):
        return OwnDetector.load(path, resolve_device(device), min_score)
    return _sequential(path, device, min_score)


def _sequential(path: Path, device: str, min_score: float) -> SequentialDetector:
    from kinemesh.inference.keypoints import KeypointPredictor  # noqa: PLC0415
    from kinemesh.inference.predictor import load  # noqa: PLC0415

    predictor = load(path, device)
    if not isinstance(predictor, KeypointPredictor):
        raise InputError(
            f"detector: '{path}' holds a model of the task '{predictor.task}', which looks at one "
            "person or hand in a box. Give a sequential network of PRTR, or see docs/predict.md."
        )
    return SequentialDetector(predictor, min_score)
