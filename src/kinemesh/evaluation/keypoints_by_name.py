"""Evaluations of 2D keypoints as the command line names them: a model, a data set, and boxes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from kinemesh.data.coco_keypoints import GROUND_TRUTH, CocoKeypoints
from kinemesh.data.detection_scenes import CocoScenes, SceneOptions, collate_scenes
from kinemesh.data.keypoint_dataset import KeypointDataset, KeypointOptions
from kinemesh.data.keypoint_records import collate_keypoints
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.errors import InputError
from kinemesh.evaluation.coco_ap import evaluate_coco, read_labels
from kinemesh.evaluation.keypoint_readout import (
    KeypointPerson,
    people_of,
    person_columns,
    predict_keypoints,
    scene_people,
)
from kinemesh.evaluation.pckh import HeadSize, evaluate_mpii
from kinemesh.evaluation.pckh import read_labels as read_mpii_labels
from kinemesh.keypoint_protocols import (
    COCO_KEYPOINTS,
    GROUND_TRUTH_BOXES,
    MPII_PCKH,
    KeypointProtocol,
    KeypointResult,
)
from kinemesh.models.prtr_sequential import SequentialPrtr
from kinemesh.models.registry import load_keypoint_model
from kinemesh.skeletons import get_skeleton

COCO, MPII = "coco:", "mpii:"
KEYPOINT_DATASETS = (f"{COCO}FOLDER|FILE.json", f"{MPII}FOLDER|FILE")
"""What `evaluate_keypoints` takes, for help and messages."""
_SCENE_BATCH = 4  # whole images are large, and each is padded to the largest


@dataclass(frozen=True)
class KeypointEvaluation:
    """What decides a run over a data set, and its score.

    Attributes:
        boxes: COCO: a detector's file; None takes the labelled boxes. The sequential network finds
            people by itself, and takes none.
        flip_test: Average over each crop and its mirror image.
        split: Which annotation file of a folder; None: the only one, or "val" ("valid" of MPII).
        images: Folder of the pictures; None looks beside the annotations.
        labels: MPII: file that predictions are compared with; None: ``gt_valid.mat`` beside the
            annotations, or else these.
        head_size: MPII: see `kinemesh.evaluation.pckh.read_labels`.
        count: How many images (COCO) or people (MPII); None: all.
        results: COCO: result file to write.
        batch_size: Crops at a time.
        workers: Processes that read data.
    """

    boxes: Path | None = None
    flip_test: bool = True
    split: str | None = None
    images: Path | None = None
    labels: Path | None = None
    head_size: HeadSize = "box"
    count: int | None = None
    results: Path | None = None
    batch_size: int = 32
    workers: int = 0


def is_keypoint_dataset(dataset: str) -> bool:
    """Whether a data set is one that `evaluate_keypoints` takes."""
    return dataset.startswith((COCO, MPII))


def evaluate_keypoints(
    model: str | Path,
    dataset: str,
    options: KeypointEvaluation | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> KeypointResult:
    """Score a model of 2D keypoints.

    Args:
        model: A weight file that `kinemesh.models.registry.load_keypoint_model` reads.
        dataset: ``coco:`` or ``mpii:`` and a folder or annotation file.
        options: Boxes, flip test and so on.
        device: Where to compute.
        progress: Told about each batch.

    Raises:
        InputError: A file is missing, or model, data set and options do not fit together.
        MissingExtraError: ``faster-coco-eval`` is not installed (COCO).
    """
    if not is_keypoint_dataset(dataset):
        raise InputError(
            f"A model of 2D keypoints is scored on {' or '.join(KEYPOINT_DATASETS)}, found "
            f"{dataset!r}."
        )
    options = options or KeypointEvaluation()
    network, record = load_keypoint_model(model)
    wanted = "coco17" if dataset.startswith(COCO) else "mpii16"
    if record["skeleton"] != wanted:
        raise InputError(
            f"{model}: its joints are those of {record['skeleton']}, but {dataset} has those of "
            f"{wanted}. Choose a model and a data set of the same joints."
        )
    run = _Run(network.to(device), record, options, torch.device(device), progress)
    if dataset.startswith(MPII):
        return _on_mpii(run, dataset.removeprefix(MPII), str(model))
    return _on_coco(run, dataset.removeprefix(COCO), str(model))


@dataclass(frozen=True, eq=False)
class _Run:
    """A loaded model and how it is run."""

    network: nn.Module
    record: dict[str, Any]
    options: KeypointEvaluation
    device: torch.device
    progress: Callable[[int, int], None] | None

    def batches(
        self, samples: Dataset[Any], collate: Callable[[Any], Any], batch_size: int
    ) -> Iterator[dict[str, Any]]:
        """Batches on the device, telling about each."""
        loader = DataLoader(
            samples, batch_size, collate_fn=collate, num_workers=self.options.workers
        )
        total, done = len(samples), 0  # type: ignore[arg-type]
        for batch in loader:
            yield {name: value.to(self.device) for name, value in batch.items()}
            done = min(done + batch_size, total)
            if self.progress is not None:
                self.progress(done, total)

    def people(self, samples: Dataset[Any]) -> list[KeypointPerson]:
        """People of crops, in the order of the samples."""
        skeleton = get_skeleton(self.record["skeleton"])
        people: list[KeypointPerson] = []
        for batch in self.batches(samples, collate_keypoints, self.options.batch_size):
            found = predict_keypoints(
                self.network,
                batch["image"],
                batch["center"],
                batch["scale"],
                skeleton,
                flip_test=self.options.flip_test,
            )
            columns = person_columns(
                batch["image_id"], found, batch["center"], batch["scale"], batch["score"]
            )
            people += people_of(columns)
        return people

    @torch.inference_mode()
    def scenes(self, samples: Dataset[Any]) -> list[KeypointPerson]:
        """People of whole images, by the sequential network."""
        people: list[KeypointPerson] = []
        for batch in self.batches(samples, collate_scenes, _SCENE_BATCH):
            output = self.network(batch["images"], batch["padding_mask"], batch["sizes"])
            sizes = batch["original_size"].flip(-1)  # height, width
            people += scene_people(output, batch["image_id"].tolist(), sizes)
        return people

    def crops(self) -> KeypointOptions:
        """Crops as the model wants them."""
        width, height = self.record["resolution"]
        return KeypointOptions(size=(width, height), order=self.record["color_order"])


def _on_coco(run: _Run, place: str, model: str) -> KeypointResult:
    options = run.options
    split = options.split or _default_split(Path(place))
    _check_unused(options, "COCO", labels=options.labels)
    if isinstance(run.network, SequentialPrtr):
        return _on_coco_scenes(run, place, split, model)
    boxes: str | Path = GROUND_TRUTH if options.boxes is None else options.boxes
    samples = CocoKeypoints(place, options.images, boxes=boxes, options=run.crops(), split=split)
    chosen = [image.id for image in samples.file.images][: options.count]
    described = GROUND_TRUTH_BOXES if options.boxes is None else f"detector ({options.boxes.name})"
    return evaluate_coco(
        run.people(_of_images(samples, chosen)),
        read_labels(samples.file.path),
        replace(COCO_KEYPOINTS, boxes=described, flip_test=options.flip_test),
        model=model,
        image_ids=chosen,
        results=options.results,
        device=run.device,
    )


def _on_coco_scenes(run: _Run, place: str, split: str | None, model: str) -> KeypointResult:
    options = run.options
    _check_unused(options, "a network that finds people by itself", boxes=options.boxes)
    shortest, longest = run.record["resolution"]
    view = SceneOptions(shortest=shortest, longest=longest, order=run.record["color_order"])
    samples = CocoScenes(place, options.images, options=view, split=split)
    rows = list(range(len(samples)))[: options.count]
    chosen = [samples.scenes[row][0].id for row in rows]
    protocol = replace(
        COCO_KEYPOINTS,
        boxes="none: the network sees whole images and finds the people",
        flip_test=False,
    )
    return evaluate_coco(
        run.scenes(Subset(samples, rows)),
        read_labels(samples.file.path),
        protocol,
        model=model,
        image_ids=chosen,
        results=options.results,
        device=run.device,
    )


def _on_mpii(run: _Run, place: str, model: str) -> KeypointResult:
    options = run.options
    _check_unused(options, "MPII", boxes=options.boxes, results=options.results)
    samples = MpiiKeypoints(
        place, options.images, options=run.crops(), split=options.split or "valid"
    )
    official = samples.path.parent / "gt_valid.mat"
    path = options.labels or (official if official.is_file() else samples.path)
    labels = read_mpii_labels(path, options.head_size)
    count = len(samples) if options.count is None else min(options.count, len(samples))
    if options.count is not None:
        labels = labels.first(count)
    protocol: KeypointProtocol = replace(MPII_PCKH, flip_test=options.flip_test)
    people = run.people(Subset(samples, range(count)))
    return evaluate_mpii(people, labels, protocol, model=model, device=run.device)


def _check_unused(options: KeypointEvaluation, what: str, **unused: object) -> None:
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise InputError(f"--{given[0]}: {what} has no use for it. Leave it out.")


def _default_split(place: Path) -> str | None:
    """Of several annotation files in a folder that of the validation."""
    files = [*place.glob("person_keypoints_*.json"), *place.glob("*/person_keypoints_*.json")]
    return "val" if len(files) > 1 else None


def _of_images(samples: KeypointDataset, images: Sequence[int]) -> Dataset[Any]:
    """The people of some images."""
    wanted = set(images)
    rows = [row for row, record in enumerate(samples.records) if record.image_id in wanted]
    return Subset(samples, rows)
