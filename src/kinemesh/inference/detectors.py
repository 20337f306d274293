"""Detectors: from a photo to the boxes of its people, best first, each once.

Everything that has a method ``detect`` is a `Detector`: the network of this library
(`kinemesh.inference.own_detector`), a table of boxes (`kinemesh.inference.boxes.BoxTable`), the
sequential network of PRTR, the networks of the package transformers
(`kinemesh.inference.transformers_detector`), or your own. `load_detector` makes one from the words
of ``--detector``.
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
"""Boxes that a detector is less sure of are left out where nothing else is said.

Our own has another limit, `kinemesh.inference.own_detector.MIN_SCORE`.
"""
FINDS_NO_HANDS = (
    "--detector finds people, and --task hand wants boxes of hands. Leave --detector out: the "
    "shipped one finds hands. Or add --task body,hand to find the hands of people, or say where "
    "hands are with --boxes."
)
OWN = "own"
"""Short name of the shipped detector."""


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
    name: str, device: str = "auto", min_score: float | None = None, *, download: bool = True
) -> Detector:
    """Load a detector by what ``--detector`` calls it.

    Args:
        name: ``"own"`` or ``"kinemesh-detector"``, the shipped network; ``"rtdetr"`` or
            ``"dfine"``, a network of the package transformers, which is downloaded once
            (``"rtdetr@REVISION"`` takes one revision of it); a folder with such a network; or the
            .safetensors file of a detector of this library, or of a sequential network of PRTR.
        device: "auto", "cpu" or "cuda".
        min_score: Boxes with a lower score are left out; None: 0.6 with a detector of this
            library, 0.5 with others.
        download: Whether a published network may be fetched if it is not on this machine.

    Raises:
        InputError: There is no such detector, or it cannot be had or read.
        MissingExtraError: It needs the extra ``detect``.
    """
    limit = MIN_BOX_SCORE if min_score is None else min_score
    check_score("min_box_score", limit)
    path = Path(name)
    if is_published(name):
        return TransformersDetector.published(name, device, limit, download=download)
    # brings torch and the registry of all networks
    from kinemesh.inference.own_detector import MIN_SCORE, OwnDetector  # noqa: PLC0415
    from kinemesh.models.detector_files import SHIPPED_DETECTOR, is_detector_file  # noqa: PLC0415

    own_limit = MIN_SCORE if min_score is None else min_score
    if name in (OWN, SHIPPED_DETECTOR):
        return OwnDetector.load(SHIPPED_DETECTOR, device, own_limit)
    if path.is_dir():
        return TransformersDetector(path, device, limit)
    if not path.is_file():
        raise InputError(
            f"detector: expected {OWN}, {' or '.join(PUBLISHED)}, a folder with a detector of the "
            "package transformers, or a weight file of a detector or of a sequential network of "
            f"PRTR, found '{name}'. To search nothing: --detector none, in Python boxes='whole'."
        )
    if is_detector_file(path):
        return OwnDetector.load(path, device, own_limit)
    return _sequential(path, device, limit)


def is_published(name: str) -> bool:
    """Whether ``--detector`` names a network that is downloaded; these find people alone."""
    return name.partition("@")[0] in PUBLISHED


def for_task(detector: Detector, task: str) -> Detector:
    """A detector for what a task looks for.

    Args:
        detector: From `load_detector`.
        task: "body", "hand", "body,hand" or "pose2d".

    Raises:
        InputError: Hands are wanted of a detector that finds people alone.
    """
    from kinemesh.inference.default_detector import DefaultDetector  # noqa: PLC0415
    from kinemesh.inference.own_detector import KINDS, OwnDetector  # noqa: PLC0415

    if isinstance(detector, (OwnDetector, DefaultDetector)):
        return detector.of_kind(KINDS[task])
    if task == "hand":
        raise InputError(FINDS_NO_HANDS)
    return detector


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
