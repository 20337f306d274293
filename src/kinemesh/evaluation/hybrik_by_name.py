"""Evaluations of POTTER's mesh network as the command line names them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from kinemesh.bodies.hybrik_anny import AnnyHybrik
from kinemesh.data.hybrik_dataset import PREFIXES, HybrikDataset, names_hybrik, open_hybrik
from kinemesh.data.hybrik_records import HybrikSample, collate_hybrik
from kinemesh.data.synthetic.hybrik import SYNTHETIC_HYBRIK, SyntheticHybrik
from kinemesh.errors import InputError
from kinemesh.evaluation.hybrik import HybrikColumns, HybrikResult, ProtocolName, score_hybrik
from kinemesh.evaluation.hybrik_samples import joint_samples, sample_keys
from kinemesh.evaluation.hybrik_side import HybrikSide
from kinemesh.evaluation.samples import SampleListener
from kinemesh.models.potter_body import ARCHITECTURE, PotterBody
from kinemesh.models.registry import load_model, read_record, weight_path

HYBRIK_DATASETS = (
    SYNTHETIC_HYBRIK,
    *(f"{prefix}FOLDER" for prefix, name in PREFIXES.items() if name != "coco"),
)
"""What `evaluate_hybrik` takes, for help and messages."""
SYNTHETIC_COUNT = 256


@dataclass(frozen=True)
class HybrikEvaluation:
    """What decides a run over a data set, and its score.

    Attributes:
        flip_test: Average over each crop and its mirror image, as published scores do.
        count: How many people; None: all, or 256 rendered ones.
        batch_size: Crops at a time.
        workers: Processes that read data.
    """

    flip_test: bool = True
    count: int | None = None
    batch_size: int = 32
    workers: int = 0


def is_hybrik_dataset(dataset: str) -> bool:
    """Whether a data set is one that `evaluate_hybrik` takes."""
    return dataset == SYNTHETIC_HYBRIK or names_hybrik(dataset)


def load_potter_body(model: str | Path, assets: Path | None = None) -> PotterBody:
    """A network of POTTER for human meshes with its body, in eval mode, on the CPU.

    Args:
        model: A weight file of training, or a converted official checkpoint.
        assets: Folder with SMPL and its joint regressor; a network on Anny's body needs none.

    Raises:
        InputError: The file holds another kind of network, or a file of SMPL is missing.
    """
    path = weight_path(model)
    architecture = read_record(path).get("architecture")
    if architecture != ARCHITECTURE:
        raise InputError(
            f"{path}: expected a network of POTTER for human meshes ({ARCHITECTURE}), found "
            f"{architecture!r}."
        )
    return cast(PotterBody, load_model(path, assets)[0])


def evaluate_hybrik(
    model: str | Path,
    dataset: str,
    options: HybrikEvaluation | None = None,
    *,
    assets: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    listener: SampleListener | None = None,
) -> HybrikResult:
    """Score a network of POTTER for human meshes.

    Args:
        model: As for `load_potter_body`.
        dataset: ``h36m-hybrik:``, ``3dpw-hybrik:`` or ``3dhp-hybrik:`` and a folder or file, or
            ``synthetic-hybrik``.
        options: Flip test and so on.
        assets: As for `load_potter_body`.
        device: Where to compute.
        progress: Told about each batch.
        listener: Given each batch joint by joint, for example to draw a report.

    Raises:
        InputError: A file is missing, or model and data set do not fit together.
    """
    options = options or HybrikEvaluation()
    protocol = protocol_of(dataset)
    network = load_potter_body(model, assets)
    size = network.network.config.side
    shown, posed = dataset == SYNTHETIC_HYBRIK, isinstance(network.body, AnnyHybrik)
    if shown != posed:
        bodies = ("SMPL", "Anny")
        raise InputError(
            f"{model}: this network poses {bodies[posed]}, but {dataset} is labelled with "
            f"{bodies[shown]}. Choose a model and a data set of the same body: "
            f"{', '.join(HYBRIK_DATASETS)}."
        )
    if dataset == SYNTHETIC_HYBRIK:
        options = replace(options, count=options.count or SYNTHETIC_COUNT)
    samples = _open(dataset, size, options.count)
    total = len(samples)  # type: ignore[arg-type]
    loader = DataLoader(
        samples, options.batch_size, collate_fn=collate_hybrik, num_workers=options.workers
    )
    side = HybrikSide(network.to(device), flip_test=options.flip_test)
    keys = sample_keys(samples) if listener is not None else ()

    def show(done: int, rows: HybrikColumns, images: Tensor) -> None:
        if listener is not None:
            first = done - len(images)
            listener(joint_samples(rows, protocol, keys[first:done], images))
        if progress is not None:
            progress(done, total)

    columns = side.columns(loader, device, show)
    regressor = "the body's own" if protocol == "own" else "J_regressor_h36m of SMPL's mesh"
    result = score_hybrik(columns, protocol, (str(model), dataset), regressor)
    notes = ["with flip test" if options.flip_test else "without flip test"]
    outside = samples.table.outside if isinstance(samples, HybrikDataset) else 0
    if outside:
        notes.append(f"without {outside} people of whose box nothing is in the picture")
    return replace(result, notes=(*result.notes, *notes))


def protocol_of(dataset: str) -> ProtocolName:
    """How a data set is scored.

    Raises:
        InputError: It has no labels that could be compared.
    """
    if dataset == SYNTHETIC_HYBRIK:
        return "own"
    for prefix, name in PREFIXES.items():
        if dataset.startswith(prefix) and name != "coco":
            return name
    raise InputError(
        f"{dataset}: expected a data set with labels in space: {', '.join(HYBRIK_DATASETS)}."
    )


def _open(dataset: str, size: int, count: int | None) -> Dataset[HybrikSample]:
    if dataset == SYNTHETIC_HYBRIK:
        assert count is not None
        return SyntheticHybrik(0, size, count, "test")
    samples = open_hybrik(dataset, size=size)
    return samples if count is None else Subset(samples, range(min(count, len(samples))))
