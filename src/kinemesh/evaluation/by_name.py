"""Evaluations as the command line names them: a model, a data set, and a protocol."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from kinemesh.bodies import load_topology
from kinemesh.bodies.official_assets import load_body_model
from kinemesh.bodies.topology import Topology
from kinemesh.data.records import Sample
from kinemesh.data.sources import FREIHAND, FREIHAND_EVALUATION, SYNTHETIC, open_dataset
from kinemesh.errors import InputError
from kinemesh.evaluation.freihand import (
    EVALUATION_COUNT,
    VERTICES,
    SubmissionWriter,
    score_submission,
)
from kinemesh.evaluation.mesh import (
    EvaluationOptions,
    Progress,
    ProtocolResult,
    chosen_rows,
    evaluate_dataset,
)
from kinemesh.evaluation.samples import SampleListener
from kinemesh.evaluation.sides import LabelSide, NetworkSide
from kinemesh.evaluation.synthetic import ARCHITECTURE, Evaluation, evaluate
from kinemesh.models.potter_body import ARCHITECTURE as POTTER_MESH
from kinemesh.models.registry import load_model
from kinemesh.protocols import Points, Protocol, get_protocol
from kinemesh.skeletons import Skeleton, root_position

SYNTHETIC_COUNT = 1024
"""Samples of an endless data set where no count is given."""


def evaluate_model(
    model: str | Path,
    dataset: str,
    protocol: str | None = None,
    options: EvaluationOptions | None = None,
    *,
    assets: Path | None = None,
    submission: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    submission_count: int = EVALUATION_COUNT,
    listener: SampleListener | None = None,
    groups: bool = False,
) -> ProtocolResult | Evaluation:
    """Score a model on a data set.

    Our own networks (guided-graphormer) on synthetic data are shown beside a constant mean shape
    where no protocol is named.

    Args:
        model: Anything that `kinemesh.models.registry.load_model` takes.
        dataset: Anything that `kinemesh.data.sources.open_dataset` takes.
        protocol: "human36m-p2", "3dpw", "freihand" or "own" (the joints and mesh of the model); by
            default "freihand" for networks on MANO and else "own".
        options: Batch size, count, test-time augmentation and so on.
        assets: Folder with the user's SMPL or MANO files: for a model that was stored without its
            mesh, and to make the meshes of labels that hold pose and shape only.
        submission: FreiHAND submission to write, ``.zip``.
        device: Where to compute.
        progress: Told about each batch.
        submission_count: How many samples make a whole submission.
        listener: Given each batch joint by joint, for example to draw a report.
        groups: Also score each skin tone and age of the synthetic people; of our own networks on
            synthetic data, where no protocol is named.

    Raises:
        InputError: A name is unknown, or model, data set, protocol and files do not fit together.
    """
    options = options or EvaluationOptions()
    if dataset in SYNTHETIC and options.count is None:
        options = replace(options, count=SYNTHETIC_COUNT)
    network, topology, metadata = load_model(model, assets)
    _refuse_potter(str(model), metadata, dataset)
    plain = protocol is None and submission is None and not options.tta
    plain = plain and options.averaging == "samples"
    if plain and dataset in SYNTHETIC and metadata["architecture"] == ARCHITECTURE:
        count = options.count or SYNTHETIC_COUNT
        return evaluate(model, dataset, count, groups=groups, device=device, samples=listener)
    if groups:
        raise InputError(
            f"--groups: expected a {ARCHITECTURE} on {' or '.join(SYNTHETIC)}, whose people are "
            "drawn with skin tone and age, without --protocol, --averaging, --tta and "
            f"--submission; found a {metadata['architecture']} on {dataset}. Leave --groups out."
        )
    chosen = get_protocol(protocol or _default_protocol(topology), topology)
    samples = open_dataset(dataset, resolution=metadata["resolution"])
    _check_task(str(model), metadata, dataset, samples)
    topology = topology.to(device)
    own = NetworkSide(network.to(device), topology, metadata)
    labels = LabelSide(topology, _label_skeleton(samples), _body_model(topology, assets, device))
    run: dict[str, Any] = {
        "device": device,
        "names": (str(model), dataset),
        "progress": progress,
        "samples": listener,
    }
    if submission is None:
        return evaluate_dataset(own, labels, samples, chosen, options, **run)
    _check_submission(own, chosen, samples, options, submission_count)
    with SubmissionWriter(submission, submission_count) as writer:

        def write(points: Points) -> None:
            assert points.vertices is not None
            wrist = root_position(points.joints, chosen.joint_set)
            writer.add(points.joints - wrist, points.vertices - wrist)

        return evaluate_dataset(own, labels, samples, chosen, options, **run, listener=write)


def evaluate_submission(
    submission: str | Path, dataset: str, device: torch.device | str = "cpu"
) -> ProtocolResult:
    """The FreiHAND benchmark's scores of a submission.

    Args:
        submission: The zip.
        dataset: The folder with ``evaluation_xyz.json`` and ``evaluation_verts.json``, with or
            without ``freihand:`` or ``freihand-evaluation:`` before it.
        device: Where to compute.

    Raises:
        InputError: A file is missing or damaged.
    """
    folder = dataset.removeprefix(FREIHAND_EVALUATION).removeprefix(FREIHAND)
    protocol, reports = score_submission(submission, folder, device=device)
    return ProtocolResult(str(submission), dataset, protocol, reports)


def _default_protocol(topology: Topology) -> str:
    return "freihand" if topology.name == "mano" else "own"


def _refuse_potter(model: str, metadata: dict[str, Any], dataset: str) -> None:
    if metadata["architecture"] == POTTER_MESH:
        raise InputError(
            f"{model} is a mesh network of POTTER, which has protocols of its own and no score on "
            f"{dataset}. Score it on synthetic-hybrik, h36m-hybrik:FOLDER, "
            "3dpw-hybrik:FOLDER or 3dhp-hybrik:FOLDER."
        )


def _check_task(
    model: str, metadata: dict[str, Any], dataset: str, samples: Dataset[Sample]
) -> None:
    shown = getattr(samples, "kind", metadata["task"])
    if metadata["task"] != shown:
        raise InputError(
            f"The model {model} recovers a {metadata['task']}, but the data set {dataset} shows a "
            f"{shown}. Choose a model and a data set of the same task."
        )


def _label_skeleton(samples: Dataset[Sample]) -> Skeleton:
    skeleton: Skeleton | None = getattr(samples, "skeleton", None)
    if skeleton is not None:
        return skeleton
    return load_topology(f"anny-{samples.kind}").skeleton  # type: ignore[attr-defined]


def _body_model(
    topology: Topology, assets: Path | None, device: torch.device | str
) -> torch.nn.Module | None:
    if assets is None or topology.name not in ("smpl", "mano"):
        return None
    return load_body_model(assets, "smpl" if topology.name == "smpl" else "mano").to(device)


def _check_submission(
    network: NetworkSide,
    protocol: Protocol,
    samples: Dataset[Sample],
    options: EvaluationOptions,
    count: int,
) -> None:
    """Refuse before hours of work what the writer would refuse after them."""
    rows, _ = chosen_rows(samples, protocol, options.count)
    if protocol.name != "freihand":
        raise InputError(
            f"--submission writes a FreiHAND submission, but the protocol is {protocol.name}. "
            "Give --protocol freihand and a network on MANO."
        )
    found = len(network.topology.template) if network.has_mesh else 0
    if found != VERTICES:
        raise InputError(
            f"A FreiHAND submission holds meshes of MANO's {VERTICES} vertices, this network "
            f"has {found or 'no mesh'}. Give a network on MANO, or leave --submission out."
        )
    if len(rows) != count:
        raise InputError(
            f"A FreiHAND submission holds the {count} samples of the evaluation split, found "
            f"{len(rows)}. Give freihand-evaluation:FOLDER as the data set and leave --count out."
        )
