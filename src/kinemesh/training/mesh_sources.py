"""Data for training and validation of mesh networks, by the names that a recipe gives."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_dataset import MeshOptions
from kinemesh.data.mesh_tsv import MeshTsvDataset
from kinemesh.data.records import Sample, collate
from kinemesh.data.sources import FREIHAND, FREIHAND_EVALUATION, SYNTHETIC, open_dataset
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.errors import InputError
from kinemesh.evaluation import batches
from kinemesh.protocols import HUMAN36M_P2, human36m_p2_rows
from kinemesh.training.batches import held_out_batches
from kinemesh.training.mesh_task import FirstSamples

KEPT_BYTES = 2**28
"""Synthetic samples are rendered once and kept where their pictures take no more memory."""
_VALIDATION_BATCH = 32
_PLURAL: Mapping[Kind, str] = {"body": "bodies", "hand": "hands"}


def is_synthetic(spec: str) -> bool:
    """Whether a data set is rendered here."""
    return spec in SYNTHETIC


def check_fits(spec: str, kind: Kind) -> None:
    """Refuse data of another kind than a mesh network of bodies or of hands learns from.

    What is wrong with a folder or a file that may be such data is said when it is opened.

    Raises:
        InputError: It is of another kind; the message says which kinds fit.
    """
    prefixes = (FREIHAND, FREIHAND_EVALUATION) if kind == "hand" else ()
    is_yaml = spec.lower().endswith((".yaml", ".yml"))
    if SYNTHETIC.get(spec) == kind or is_yaml or spec.startswith(prefixes) or Path(spec).is_dir():
        return
    freihand = f"{FREIHAND}FOLDER, " if kind == "hand" else ""
    raise InputError(
        f"--data: '{spec}' does not fit this recipe, which learns meshes of {_PLURAL[kind]}. "
        f"What fits: {freihand}the .yaml of a TSV set, or synthetic-{kind}."
    )


def open_training(
    spec: str, samples: int, seed: int, resolution: int, *, augment: bool = True
) -> Dataset[Sample]:
    """Open data to train on.

    Args:
        spec: Anything that `kinemesh.data.sources.open_dataset` takes, but shards.
        samples: How many different samples of a synthetic set.
        seed: Key of what is random.
        resolution: Side of the crops.
        augment: Vary stored samples at random as published.

    Raises:
        InputError: There is no such data set, it is damaged, or it has no access by index.
    """
    if is_synthetic(spec):
        stream = SyntheticDataset(SYNTHETIC[spec], seed, resolution, samples, "train")
        pictures = samples * 3 * resolution**2 * torch.float32.itemsize
        return FirstSamples(stream, samples) if pictures <= KEPT_BYTES else stream
    # masks are drawn on the device of the network, which knows how many tokens there are
    options = MeshOptions(augment, seed, resolution, mask_tokens=(0, 0))
    dataset = open_dataset(spec, options=options)
    if isinstance(dataset, IterableDataset):
        raise InputError(
            f"--data: '{spec}' holds shards, which have no access by index, so a run could not be "
            "resumed to the sample. Name the data set that they were made from."
        )
    return dataset


def open_validation(
    spec: str, samples: int, seed: int, resolution: int, *, protocol: str, workers: int = 0
) -> Iterable[dict[str, Tensor]]:
    """Open data to choose weights by, in batches that can be gone through again and again.

    Args:
        spec: Anything that `kinemesh.data.sources.open_dataset` takes.
        samples: How many held-out samples of a synthetic set; stored sets are taken whole.
        seed: Key of what is random.
        resolution: Side of the crops.
        protocol: Name of the protocol; Human3.6M's leaves out rows that do not belong to it.
        workers: Processes that read stored samples.

    Raises:
        InputError: There is no such data set, or it is damaged.
    """
    if is_synthetic(spec):
        stream = SyntheticDataset(SYNTHETIC[spec], seed, resolution, split="val")
        return list(batches(stream, samples))
    options = MeshOptions(False, seed, resolution, mask_tokens=(0, 0))
    dataset = open_dataset(spec, options=options)
    if protocol == HUMAN36M_P2.name and isinstance(dataset, MeshTsvDataset):
        rows = human36m_p2_rows(dataset.image_keys())
        dataset = dataset if rows is None else Subset(dataset, rows)
    return held_out_batches(dataset, collate, _VALIDATION_BATCH, workers)
