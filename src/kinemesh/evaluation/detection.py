"""Average precision of detected people and hands, computed by COCO's tool.

Boxes are those of the seen part, left, top, right, bottom in pixels of a photo. Ignored labels
count as COCO's crowds do: what lies in them is neither right nor wrong.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kinemesh.data.coco_keypoints import CocoFile
from kinemesh.data.detection_boxes import PERSON as COCO_PERSON
from kinemesh.data.detection_boxes import read_box
from kinemesh.data.keypoint_dataset import read_picture
from kinemesh.data.synthetic.cut_outs import CutOutBank
from kinemesh.data.synthetic.detection_scenes import DetectionScenes, collate_detection
from kinemesh.errors import InputError
from kinemesh.geometry.letterbox import Letterbox
from kinemesh.models.detector import CLASSES, PERSON
from kinemesh.models.detector_decoding import DecodingOptions, Detections, decode
from kinemesh.models.detector_files import load_detector_network
from kinemesh.optional import require

Progress = Callable[[int, int], None]
Row = dict[str, Any]

COCO, SYNTHETIC = "coco:", "synthetic-detection"
_SCORED = DecodingOptions(least_score=0.01)
"""A curve of precision needs the unlikely boxes as well."""
_EVERY_SIZE, _MOST_BOXES = 0, -1  # places in the tool's table: all areas, 100 boxes a photo


@dataclass
class DetectionTable:
    """Collects labels and detections photo by photo, and scores them.

    Attributes:
        images: Rows of photos for COCO's tool.
        labels: Rows of labelled boxes.
        found: Rows of detected boxes.
    """

    images: list[Row] = field(default_factory=list)
    labels: list[Row] = field(default_factory=list)
    found: list[Row] = field(default_factory=list)

    def add(
        self,
        size: tuple[int, int],
        labelled: tuple[NDArray, NDArray, NDArray],
        found: tuple[NDArray, NDArray, NDArray],
    ) -> None:
        """Add a photo.

        Args:
            size: Its width and height in pixels.
            labelled: Boxes (N, 4), classes (N,) and which are ignored (N,).
            found: Boxes (K, 4), classes (K,) and scores (K,).
        """
        image = len(self.images) + 1
        self.images.append({"id": image, "width": size[0], "height": size[1]})
        for box, label, ignored in zip(*labelled, strict=True):
            row = _row(image, box, label)
            extra = {"id": len(self.labels) + 1, "iscrowd": int(ignored)}
            self.labels.append(row | extra | {"area": row["bbox"][2] * row["bbox"][3]})
        for box, label, score in zip(*found, strict=True):
            self.found.append(_row(image, box, label) | {"score": float(score)})

    def scores(self, classes: Sequence[int] = range(len(CLASSES))) -> dict[str, float]:
        """AP50 and AP (.50:.05:.95) of each class in 0..1; NaN where no such box is labelled.

        Raises:
            MissingExtraError: ``faster-coco-eval`` is not installed.
        """
        tool = require("faster_coco_eval", "eval")
        if not self.found:
            counted = {row["category_id"] - 1 for row in self.labels if not row["iscrowd"]}
            scores = {number: 0.0 if number in counted else float("nan") for number in classes}
            return {_name(what, n): scores[n] for n in classes for what in ("AP50", "AP")}
        truth = tool.COCO(
            {
                "info": {},
                "images": [dict(row) for row in self.images],
                "annotations": [dict(row) for row in self.labels],
                "categories": [{"id": n + 1, "name": name} for n, name in enumerate(CLASSES)],
            }
        )
        found = truth.loadRes([dict(row) for row in self.found])
        evaluation = tool.COCOeval_faster(truth, found, "bbox", print_function=_nothing)
        evaluation.evaluate()
        evaluation.accumulate()
        precision = np.asarray(evaluation.eval["precision"])
        return {
            _name(what, number): _mean(precision[part, :, number, _EVERY_SIZE, _MOST_BOXES])
            for number in classes
            for what, part in (("AP50", slice(0, 1)), ("AP", slice(None)))
        }


def _row(image: int, box: NDArray, label: int) -> Row:
    left, top, right, bottom = (float(value) for value in box)
    corner = [left, top, right - left, bottom - top]
    return {"image_id": image, "category_id": int(label) + 1, "bbox": corner}


def _name(what: str, label: int) -> str:
    return f"{what} {CLASSES[label]}"


def _mean(precision: NDArray) -> float:
    """The tool writes -1 where there is nothing to find."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")


def _nothing(*_lines: object) -> None:
    """Takes what the tool would print."""


@torch.inference_mode()
def find(
    network: nn.Module,
    image_B3SS: Tensor,
    device: torch.device | str,
    options: DecodingOptions | None = None,
) -> list[Detections]:
    """Detections in uint8 squares (B, 3, S, S), on the CPU, in pixels of the square."""
    output = network(image_B3SS.to(device).float() / 255)
    found = decode(output, image_B3SS.shape[-1], options)
    return [Detections(one.boxes.cpu(), one.scores.cpu(), one.labels.cpu()) for one in found]


def score_scenes(
    network: nn.Module, batches: Iterable[Mapping[str, Tensor]], device: torch.device | str
) -> dict[str, float]:
    """AP50 and AP of each class on synthetic scenes.

    Args:
        network: A `kinemesh.models.detector.Detector` in eval mode, on ``device``.
        batches: Collated samples of `DetectionScenes`.
        device: Where to compute.
    """
    table = DetectionTable()
    for batch in batches:
        side = batch["image"].shape[-1]
        for row, found in enumerate(find(network, batch["image"], device, _SCORED)):
            there = batch["labels"][row] >= 0
            columns = (batch[name][row][there].numpy() for name in ("boxes", "labels", "ignored"))
            boxes, labels, ignored = columns
            table.add((side, side), (boxes, labels, ignored), _columns(found))
    return table.scores()


def _columns(found: Detections) -> tuple[NDArray, NDArray, NDArray]:
    return found.boxes.numpy(), found.labels.numpy(), found.scores.numpy()


@dataclass(frozen=True)
class DetectionResult:
    """Scores of a detector on a data set.

    Attributes:
        model: Name of the model.
        dataset: Name of the data set.
        values: AP50 and AP of classes, in 0..1.
        counts: How many there were of what.
        rules: What else decides the numbers.
    """

    model: str
    dataset: str
    values: Mapping[str, float]
    counts: Mapping[str, int]
    rules: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; NaN becomes None."""
        values = {k: None if np.isnan(v) else v for k, v in self.values.items()}
        return {
            "model": self.model,
            "dataset": self.dataset,
            "protocol": {"name": "coco-boxes", "rules": list(self.rules)},
            "values": values,
            "counts": dict(self.counts),
        }

    def __str__(self) -> str:
        numbers = [f"  {name:<16} {value:6.3f}" for name, value in self.values.items()]
        counts = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        rules = [f"  {rule}" for rule in self.rules]
        return "\n".join([f"{self.model} on {self.dataset}", *numbers, f"  {counts}", *rules])


def evaluate_coco_people(
    network: nn.Module,
    annotations: str | Path,
    *,
    side: int,
    images: Path | None = None,
    split: str | None = None,
    count: int | None = None,
    device: torch.device | str = "cpu",
    model: str = "detector",
    progress: Progress | None = None,
) -> DetectionResult:
    """Average precision of people on photos with COCO's labels.

    Args:
        network: A detector in eval mode, on ``device``.
        annotations: The JSON file, or the folder of the data set.
        side: Of the square that the network sees, pixels.
        images: Folder of the pictures; None looks beside the annotations.
        split: Which annotation file of a folder.
        count: How many images; all if None.
        device: Where to compute.
        model: Its name.
        progress: Told about each photo.

    Raises:
        InputError: A file is missing or damaged, or has no labels.
        MissingExtraError: ``faster-coco-eval`` is not installed.
    """
    require("faster_coco_eval", "eval")
    file = CocoFile(annotations, images, split)
    if not file.labelled:
        raise InputError(f"'{file.path}': expected annotations, found images only.")
    table, chosen = DetectionTable(), file.images[:count]
    for number, image in enumerate(chosen, start=1):
        photo = read_picture(image.path, "rgb", f"'{file.path}', image {image.id}")
        box = Letterbox((photo.shape[1], photo.shape[0]), side)
        square = torch.from_numpy(box.fill(photo)).permute(2, 0, 1)
        boxes, labels, scores = _columns(find(network, square[None], device, _SCORED)[0])
        table.add(box.size, _people(file, image), (box.to_photo(boxes), labels, scores))
        if progress is not None:
            progress(number, len(chosen))
    people = sum(row["iscrowd"] == 0 for row in table.labels)
    rules = (
        f"COCO boxes, all areas, 100 boxes a photo; photos in a square of {side} px",
        "hands have no labels there",
    )
    counts = {"images": len(chosen), "labelled people": people}
    return DetectionResult(model, str(file.path), table.scores([PERSON]), counts, rules)


def evaluate_synthetic_scenes(
    network: nn.Module,
    *,
    side: int,
    count: int = 256,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    model: str = "detector",
    progress: Progress | None = None,
) -> DetectionResult:
    """Average precision of people and hands on rendered photos of the test split.

    Args:
        network: A detector in eval mode, on ``device``.
        side: Of the square that the network sees, pixels.
        count: How many photos.
        batch_size: Photos at a time.
        device: Where to compute.
        model: Its name.
        progress: Told about each batch.

    Raises:
        MissingExtraError: ``faster-coco-eval`` is not installed.
    """
    require("faster_coco_eval", "eval")
    with TemporaryDirectory() as folder:
        bank = CutOutBank(folder, seed=0, split="test")
        scenes = DetectionScenes(bank, side, bodies=count, hands=count // 2 + 1, length=count)

        def batches() -> Iterator[dict[str, Tensor]]:
            for first in range(0, count, batch_size):
                last = min(first + batch_size, count)
                yield collate_detection([scenes[index] for index in range(first, last)])
                if progress is not None:
                    progress(last, count)

        values = score_scenes(network, batches(), device)
    rules = (f"COCO boxes of seen parts, all areas; photos in a square of {side} px",)
    return DetectionResult(model, SYNTHETIC, values, {"photos": count}, rules)


def evaluate_detector(
    model: str | Path,
    dataset: str,
    *,
    count: int | None = None,
    batch_size: int = 16,
    images: Path | None = None,
    split: str | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> DetectionResult:
    """Score a detector's weight file on a data set by its name.

    Args:
        model: The weight file.
        dataset: ``synthetic-detection``, or ``coco:`` and a folder or annotation file.
        count: How many photos; 256 synthetic ones, or all of COCO's, if None.
        batch_size: Synthetic photos at a time.
        images: COCO: folder of the pictures; None looks beside the annotations.
        split: COCO: which annotation file of a folder.
        device: Where to compute.
        progress: Told how far it is.

    Raises:
        InputError: The file holds something else, or the data set is none of these.
    """
    network, record = load_detector_network(model)
    network, side = network.to(device), int(record["resolution"])
    name = str(model)
    if dataset == SYNTHETIC:
        return evaluate_synthetic_scenes(
            network,
            side=side,
            count=count or 256,
            batch_size=batch_size,
            device=device,
            model=name,
            progress=progress,
        )
    if not dataset.startswith(COCO):
        raise InputError(
            f"{name} finds people and hands in photos and has no score on {dataset}. Score it on "
            f"{SYNTHETIC} or {COCO}FOLDER."
        )
    return evaluate_coco_people(
        network,
        dataset.removeprefix(COCO),
        side=side,
        images=images,
        split=split,
        count=count,
        device=device,
        model=name,
        progress=progress,
    )


def _people(file: CocoFile, image: Any) -> tuple[NDArray, NDArray, NDArray]:
    boxes, crowds = [], []
    for number, row in image.annotations:
        if row.get("category_id", COCO_PERSON) == COCO_PERSON:
            x, y, width, height = read_box(row, file.where(number)).tolist()
            boxes.append((x, y, x + width, y + height))
            crowds.append(bool(row.get("iscrowd", 0)))
    labels = np.full(len(boxes), PERSON)
    return np.reshape(boxes, (-1, 4)), labels, np.array(crowds, dtype=bool)


_COLOURS = ((255, 220, 60), (255, 120, 40), (60, 150, 255))


def draw_boxes(
    photo: NDArray[np.uint8], boxes: NDArray, labels: NDArray, texts: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of an RGB photo with boxes: people yellow, left hands orange, right hands blue."""
    drawn = photo.copy()
    for box, label, text in zip(boxes, labels, texts, strict=True):
        left, top, right, bottom = (round(float(value)) for value in box)
        colour = _COLOURS[int(label)]
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, 1)
        cv2.putText(drawn, text, (left + 2, top + 10), cv2.FONT_HERSHEY_SIMPLEX, 0.32, colour, 1)
    return drawn
