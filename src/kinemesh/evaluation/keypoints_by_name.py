"""Evaluations of 2D keypoints as the command line names them: a model, a data set, and boxes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from kinemesh.data.coco_keypoints import GROUND_TRUTH, CocoFile, CocoKeypoints
from kinemesh.data.detection_scenes import CocoScenes, SceneOptions, collate_scenes
from kinemesh.data.keypoint_dataset import KeypointDataset, KeypointOptions
from kinemesh.data.keypoint_records import collate_keypoints
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.data.synthetic.scene_crops import write_coco_scenes
from kinemesh.data.synthetic.scenes import SIZE as SCENE_SIZE
from kinemesh.data.synthetic.scenes import SyntheticScenes
from kinemesh.errors import InputError
from kinemesh.evaluation.coco_ap import (
    CocoLabels,
    evaluate_coco,
    read_labels,
    result_rows,
    write_results,
)
from kinemesh.evaluation.keypoint_readout import (
    KeypointPerson,
    people_of,
    person_columns,
    predict_keypoints,
    scene_people,
)
from kinemesh.evaluation.keypoint_samples import coco_samples, mpii_samples
from kinemesh.evaluation.pckh import HeadSize, evaluate_mpii
from kinemesh.evaluation.pckh import read_labels as read_mpii_labels
from kinemesh.evaluation.samples import SampleListener
from kinemesh.keypoint_protocols import (
    COCO_KEYPOINTS,
    GROUND_TRUTH_BOXES,
    MPII_PCKH,
    KeypointProtocol,
    KeypointResult,
)
from kinemesh.models.prtr_sequential import SequentialPrtr
from kinemesh.models.registry import load_keypoint_model
from kinemesh.optional import require
from kinemesh.skeletons import get_skeleton

COCO, MPII = "coco:", "mpii:"
SYNTHETIC: dict[str, dict[str, tuple[int, int]]] = {
    "synthetic-keypoints": {"people": (1, 2), "hands": (0, 0)},
    "synthetic-scenes": {"people": (1, 4), "hands": (0, 1)},
}
"""Rendered data sets, and how many people and hands their scenes have."""
SYNTHETIC_COUNT = 128
"""Scenes where no count is given."""
KEYPOINT_DATASETS = (f"{COCO}FOLDER|FILE.json", f"{MPII}FOLDER|FILE", *SYNTHETIC)
"""What `evaluate_keypoints` takes, for help and messages."""
_SCENE_BATCH = 4  # whole images are large, and each is padded to the largest
_LARGEST_SCENE = 640  # pixels; networks for photos see smaller scenes enlarged


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
        count: How many images (COCO, scenes) or people (MPII); None: all, `SYNTHETIC_COUNT` of
            rendered scenes.
        results: COCO: result file to write. A test split, which has no labels, needs it.
        batch_size: Crops at a time; of whole images at most four.
        workers: Processes that read data.
        include_background: Let the background take part in the softmax of the read-out; published
            scores leave it out.

    Raises:
        InputError: The batch size or the count is below 1, or the number of workers below 0.
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
    include_background: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("workers", 0), ("count", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                option = name.replace("_", "-")
                raise InputError(f"--{option}: expected at least {least}, found {value}.")


def is_keypoint_dataset(dataset: str) -> bool:
    """Whether a data set is one that `evaluate_keypoints` takes."""
    # a forgotten colon is better answered here than by other evaluations
    return dataset.startswith((COCO, MPII)) or dataset in (COCO[:-1], MPII[:-1], *SYNTHETIC)


def evaluate_keypoints(
    model: str | Path,
    dataset: str,
    options: KeypointEvaluation | None = None,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    listener: SampleListener | None = None,
) -> KeypointResult:
    """Score a model of 2D keypoints.

    Args:
        model: A weight file that `kinemesh.models.registry.load_keypoint_model` reads.
        dataset: ``coco:`` or ``mpii:`` and a folder or annotation file; ``synthetic-keypoints`` or
            ``synthetic-scenes``, whose scenes are rendered and scored as COCO's photos.
        options: Boxes, flip test and so on.
        device: Where to compute.
        progress: Told about each batch.
        listener: Given all labelled people joint by joint at the end, for example to draw a report.

    Returns:
        The scores; without a number for a test split, of which only the result file is written.

    Raises:
        InputError: A file is missing, or model, data set and options do not fit together.
        MissingExtraError: ``faster-coco-eval`` is not installed (COCO).
    """
    if not is_keypoint_dataset(dataset):
        raise InputError(
            f"A model of 2D keypoints is scored on {' or '.join(KEYPOINT_DATASETS)}, found "
            f"{dataset!r}."
        )
    if f"{dataset.removesuffix(':')}:" in (COCO, MPII):
        raise InputError(
            f"'{dataset}' names no data: expected {' or '.join(KEYPOINT_DATASETS[:2])}."
        )
    options = options or KeypointEvaluation()
    network, record = load_keypoint_model(model)
    wanted = "mpii16" if dataset.startswith(MPII) else "coco17"
    if record["skeleton"] != wanted:
        raise InputError(
            f"{model}: its joints are those of {record['skeleton']}, but {dataset} has those of "
            f"{wanted}. Choose a model and a data set of the same joints."
        )
    run = _Run(network.to(device), record, options, torch.device(device), progress, listener)
    if dataset.startswith(MPII):
        return _on_mpii(run, dataset.removeprefix(MPII), str(model))
    if dataset in SYNTHETIC:
        return _on_synthetic(run, dataset, str(model))
    return _on_coco(run, dataset.removeprefix(COCO), str(model))


@dataclass(frozen=True, eq=False)
class _Run:
    """A loaded model and how it is run."""

    network: nn.Module
    record: dict[str, Any]
    options: KeypointEvaluation
    device: torch.device
    progress: Callable[[int, int], None] | None
    listener: SampleListener | None = None

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
                include_background=self.options.include_background,
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
        for batch in self.batches(
            samples, collate_scenes, min(self.options.batch_size, _SCENE_BATCH)
        ):
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
    _check_unused("COCO", labels=options.labels, head_size=options.head_size == "segment")
    if isinstance(run.network, SequentialPrtr):
        return _on_coco_scenes(run, place, split, model)
    boxes: str | Path = GROUND_TRUTH if options.boxes is None else options.boxes
    samples = CocoKeypoints(place, options.images, boxes=boxes, options=run.crops(), split=split)
    _check_split(samples.file.path, options.split)
    labels = _coco_labels(run, samples.file)
    if labels is None and options.boxes is None:
        raise InputError(
            f"'{samples.file.path}' is a test split, whose people have no boxes. Give a "
            "detector's with --boxes FILE.json."
        )
    chosen = [image.id for image in samples.file.images][: options.count]
    people_chosen = _of_images(samples, chosen)
    if not len(people_chosen):
        raise InputError(
            f"'{samples.file.path if options.boxes is None else options.boxes}': expected people "
            f"in the first {len(chosen)} images, found none that could be scored (no crowd, with a "
            "box and a labelled joint). Check the file, and --count if you gave it."
        )
    described = GROUND_TRUTH_BOXES if options.boxes is None else f"detector ({options.boxes.name})"
    protocol = replace(
        COCO_KEYPOINTS,
        boxes=described,
        flip_test=options.flip_test,
        include_background=options.include_background,
    )
    people = run.people(people_chosen)
    return _coco_result(run, model, samples.file, labels, people, protocol, chosen)


def _coco_labels(run: _Run, file: CocoFile) -> CocoLabels | None:
    """What people are compared with, or None for a test split; read before hours of work."""
    if file.labelled:
        require("faster_coco_eval", "eval")
        return read_labels(file.path)
    if run.options.results is None:
        raise InputError(
            f"'{file.path}' has no annotations, as a test split: nothing can be scored. Give "
            "--results FILE.json to write the file for COCO's server."
        )
    if run.listener is not None:
        raise InputError(
            f"--report: '{file.path}' has no annotations, as a test split: there are no scores to "
            "report. Leave --report out."
        )
    return None


def _coco_result(
    run: _Run,
    model: str,
    file: CocoFile,
    labels: CocoLabels | None,
    people: list[KeypointPerson],
    protocol: KeypointProtocol,
    chosen: Sequence[int],
) -> KeypointResult:
    results = run.options.results
    if labels is None:
        assert results is not None
        rows = result_rows(people, protocol, run.device)
        write_results(results, rows)
        counts = {
            "images": len(chosen),
            "predicted people": len(people),
            "after suppression": len(rows),
        }
        note = f"without labels nothing was scored; '{results}' is the file for COCO's server"
        return KeypointResult(model, str(file.path), protocol, {}, counts, (note,))
    if run.listener is not None and (samples := coco_samples(people, file, chosen)):
        run.listener(samples)
    return evaluate_coco(
        people,
        labels,
        protocol,
        model=model,
        image_ids=chosen,
        results=results,
        device=run.device,
    )


def _on_coco_scenes(run: _Run, place: str, split: str | None, model: str) -> KeypointResult:
    options = run.options
    _check_unused(
        "a network that finds people by itself",
        boxes=options.boxes,
        include_background=options.include_background,
    )
    shortest, longest = run.record["resolution"]
    view = SceneOptions(shortest=shortest, longest=longest, order=run.record["color_order"])
    samples = CocoScenes(place, options.images, options=view, split=split)
    _check_split(samples.file.path, options.split)
    labels = _coco_labels(run, samples.file)
    rows = list(range(len(samples)))[: options.count]
    chosen = [samples.scenes[row][0].id for row in rows]
    protocol = replace(
        COCO_KEYPOINTS,
        boxes="none: the network sees whole images and finds the people",
        flip_test=False,
        include_background=None,
    )
    people = run.scenes(Subset(samples, rows))
    return _coco_result(run, model, samples.file, labels, people, protocol, chosen)


def _on_synthetic(run: _Run, dataset: str, model: str) -> KeypointResult:
    """Render scenes of the test stream into files of COCO, and score on those."""
    options = run.options
    _check_unused(
        dataset,
        boxes=options.boxes,
        split=options.split,
        images=options.images,
        labels=options.labels,
        head_size=options.head_size == "segment",
    )
    require("faster_coco_eval", "eval")
    count = options.count or SYNTHETIC_COUNT
    crowd = SYNTHETIC[dataset]
    scenes = SyntheticScenes(
        0, _scene_size(run), split="test", people=crowd["people"], hands=crowd["hands"]
    )
    with TemporaryDirectory() as folder:
        file = write_coco_scenes(folder, scenes, range(count), split="test")
        result = _on_coco(run, str(file), model)
    return replace(result, dataset=f"{dataset} ({count} rendered scenes)")


def _scene_size(run: _Run) -> tuple[int, int]:
    """Width and height: those of the sequential network, if it is one for scenes."""
    if not isinstance(run.network, SequentialPrtr):
        return SCENE_SIZE
    shortest, longest = run.record["resolution"]
    return (longest, shortest) if longest <= _LARGEST_SCENE else SCENE_SIZE


def _on_mpii(run: _Run, place: str, model: str) -> KeypointResult:
    options = run.options
    _check_unused("MPII", boxes=options.boxes, results=options.results)
    samples = MpiiKeypoints(
        place, options.images, options=run.crops(), split=options.split or "valid"
    )
    official = samples.path.parent / "gt_valid.mat"
    path = options.labels or (official if official.is_file() else samples.path)
    labels = read_mpii_labels(path, options.head_size)
    if len(labels.head_px) != len(samples):
        raise InputError(
            f"'{path}' labels {len(labels.head_px)} people, but '{samples.path}' has "
            f"{len(samples)}. Give the labels of this split with --labels."
        )
    count = len(samples) if options.count is None else min(options.count, len(samples))
    if options.count is not None:
        labels = labels.first(count)
    protocol = replace(
        MPII_PCKH,
        flip_test=options.flip_test,
        include_background=options.include_background,
    )
    people = run.people(Subset(samples, range(count)))
    if run.listener is not None and (shown := mpii_samples(people, samples, labels)):
        run.listener(shown)
    result = evaluate_mpii(people, labels, protocol, model=model, device=run.device)
    if samples.path.suffix != ".mat":
        return result
    note = "MPII's own file does not say who is the validation: not the people of published scores"
    return replace(result, notes=(*result.notes, note))


def _check_unused(what: str, **unused: object) -> None:
    """Refuse what was given, but would silently be ignored."""
    given = [name.replace("_", "-") for name, value in unused.items() if value]
    if given:
        raise InputError(f"--{given[0]}: {what} has no use for it. Leave it out.")


def _default_split(place: Path) -> str | None:
    """Of several annotation files in a folder that of the validation."""
    files = [*place.glob("person_keypoints_*.json"), *place.glob("*/person_keypoints_*.json")]
    return "val" if len(files) > 1 else None


def _check_split(path: Path, split: str | None) -> None:
    """A folder's only annotation file is taken whatever is wanted; a score says which it is."""
    found = path.stem.split("_")[-1]
    if split is not None and not found.startswith(split):
        raise InputError(
            f"--split: expected the annotations (person_keypoints_{split}*.json), found those of "
            f"{found} alone: '{path}'. Leave --split out, or name another folder."
        )


def _of_images(samples: KeypointDataset, images: Sequence[int]) -> Subset[Any]:
    """The people of some images."""
    wanted = set(images)
    rows = [row for row, record in enumerate(samples.records) if record.image_id in wanted]
    return Subset(samples, rows)
