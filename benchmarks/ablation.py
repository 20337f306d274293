"""What each part of the restaged pictures is worth, on held-out renders and on real photos.

    python benchmarks/ablation.py body --init WEIGHTS --layers FOLDER [--steps 300] [--data FOLDER]

Runs of the recipe synthetic-body or synthetic-hand from the same weights, with the same seed, steps
and rendered subjects: ``plain`` with all shares of `Restaging` at 0, one run for each share alone,
and ``all`` of them; ``start`` is the weights before any of it. Each is scored on held-out rendered
samples and on the labelled photos that docs/real-photos.md lists. When the same command is typed
again, a run that is done is not repeated, and an interrupted one goes on.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

import kinemesh
from _measure import machine
from kinemesh.bodies.topology import Kind
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.synthetic.restaging import Restaging
from kinemesh.errors import InputError
from kinemesh.evaluation import batches, score
from kinemesh.evaluation.real_photos import LabelledSet, read_real_sets
from kinemesh.evaluation.real_scores import RealScore, score_real
from kinemesh.files import sha256, write_json
from kinemesh.inference.labelled_photos import as_placed, predict_labelled
from kinemesh.models.registry import load_model
from kinemesh.training import train
from kinemesh.training.mesh_task import MeshRecipe
from kinemesh.training.recipes import RECIPES
from real_fixtures import NUMBERS, add_options, all_photos

START = "start"
SHOWN = ("pa_mpjpe_mm", "error_px", "pck_2d", "coco_ap")
"""Numbers of a set of photos that the table has, of those that the record holds."""
_WARMUP = 0.1  # share of the steps
_RECORD = "ablation.json"


@dataclass(frozen=True)
class Arm:
    """One run: its name and what its pictures have; None for the weights before any run."""

    name: str
    restaging: Restaging | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("kind", choices=("hand", "body"))
    parser.add_argument("--init", type=Path, required=True, help="weights that all runs start from")
    parser.add_argument("--layers", type=Path, required=True, help="folder of rendered subjects")
    parser.add_argument("--layer-count", type=int, default=30_000, help="how many of them are used")
    parser.add_argument("--steps", type=int, default=300, help="updates of each run")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-4, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=256, help="rendered samples to score on")
    parser.add_argument("--arms", nargs="*", default=[], help="only these runs")
    parser.add_argument("--output", type=Path, help="folder of the runs; runs/ablation-KIND")
    options = parser.parse_args()
    options.output = options.output or Path(f"runs/ablation-{options.kind}")
    try:
        sets = [
            one for one in read_real_sets(options.data, options.sets) if one.kind == options.kind
        ]
        chosen = choose(options.arms)
        base_recipe(options).completed(1)
        for arm in chosen:
            make_folder(folder_of(arm, options))
        records = [run(arm, options, sets) for arm in chosen]
    except InputError as error:
        parser.error(str(error))
    print(table(records))
    path = options.json or options.output / _RECORD
    write_json(path, {"machine": machine(), "settings": settings(options, sets), "arms": records})
    print(f"all numbers in {path}")


def arms() -> list[Arm]:
    """All runs, in the order of the table."""
    everything, names = Restaging(), [item.name for item in fields(Restaging)]
    nothing = replace(everything, **dict.fromkeys(names, 0.0))
    alone = [
        Arm(f"{name} alone", replace(nothing, **{name: getattr(everything, name)}))
        for name in names
    ]
    return [Arm(START, None), Arm("plain", nothing), *alone, Arm("all", everything)]


def choose(names: Sequence[str]) -> list[Arm]:
    """The runs that were asked for.

    Raises:
        InputError: A name is unknown.
    """
    known = arms()
    if unknown := set(names) - {arm.name for arm in known}:
        listed = ", ".join(repr(arm.name) for arm in known)
        raise InputError(f"--arms: there is no {sorted(unknown)}. Runs: {listed}.")
    return [arm for arm in known if not names or arm.name in names]


def base_recipe(options: argparse.Namespace) -> MeshRecipe:
    """What all runs have in common."""
    recipe = RECIPES[f"synthetic-{options.kind}"]()
    assert isinstance(recipe, MeshRecipe)
    recipe.init, recipe.imagenet = options.init, False
    recipe.layers, recipe.layer_folder = options.layer_count, options.layers
    recipe.steps, recipe.batch_size, recipe.seed = options.steps, options.batch_size, options.seed
    recipe.optim = replace(recipe.optim, lr=options.lr)
    recipe.schedule = replace(recipe.schedule, warmup_steps=int(_WARMUP * options.steps))
    recipe.threads, recipe.workers, recipe.device = torch.get_num_threads(), 0, "cpu"
    # the weights at the end are compared, not those of a lucky validation
    recipe.validate_every, recipe.checkpoint_every = options.steps, 50
    recipe.validation_samples = 16
    return recipe


def settings(options: argparse.Namespace, sets: Sequence[LabelledSet]) -> dict[str, Any]:
    """What a finished run must agree in, to be taken as it is."""
    names = ("kind", "layer_count", "steps", "batch_size", "lr", "seed", "held_out")
    kept = {name: getattr(options, name) for name in names}
    photos = {one.name: len(one.samples) for one in sets}
    return {**kept, "init": sha256(options.init), "threads": torch.get_num_threads(), **photos}


def run(arm: Arm, options: argparse.Namespace, sets: Sequence[LabelledSet]) -> dict[str, Any]:
    """Train and score one arm, or take its record if it is there."""
    folder = folder_of(arm, options)
    shares = None if arm.restaging is None else vars(arm.restaging)
    wanted = {**settings(options, sets), "restaging": shares}
    found = read_record(folder / _RECORD)
    if found is not None and found.get("settings") == wanted:
        print(f"{arm.name}: taken from {folder / _RECORD}", flush=True)
        return found
    weights, seconds = options.init, 0.0
    if arm.restaging is not None:
        recipe = base_recipe(options)
        recipe.restaging, recipe.output = arm.restaging, folder
        result = train(recipe)
        if result.best is None:
            raise InputError(f"{arm.name}: its scores are no numbers. Lower --lr.")
        weights, seconds = result.best, seconds_of(folder)
    begun = time.perf_counter()
    record = {
        "name": arm.name,
        "settings": wanted,
        "training_seconds": seconds,
        "synthetic": score_rendered(weights, options),
        "photos": [one.to_dict() for one in score_photos(weights, options.kind, sets)],
    }
    write_json(folder / _RECORD, record)
    took = time.perf_counter() - begun
    print(f"{arm.name}: trained for {seconds:.0f} s, scored in {took:.0f} s", flush=True)
    return record


def folder_of(arm: Arm, options: argparse.Namespace) -> Path:
    """Where the files of a run are."""
    place: Path = options.output / arm.name.replace(" ", "-")
    return place


def make_folder(folder: Path) -> None:
    """Before hours of work.

    Raises:
        InputError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--output: cannot make the folder '{folder}' ({error.strerror}). Choose another one."
        ) from error


def read_record(path: Path) -> dict[str, Any] | None:
    """A finished run; None where there is none, or not a whole one."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def seconds_of(folder: Path) -> float:
    """Time that a run took, with all its parts."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return float(max(row.get("seconds", 0.0) for row in rows))


def score_rendered(weights: Path, options: argparse.Namespace) -> dict[str, float]:
    """Scores on held-out samples that no restaging has touched."""
    network, topology, record = load_model(weights)
    kind: Kind = options.kind
    held_out = SyntheticDataset(kind, options.seed, record["resolution"], split="test")
    rows = batches(held_out, options.held_out)
    return score(network.eval(), rows, topology, torch.device("cpu"))


def score_photos(weights: Path, kind: Kind, sets: Sequence[LabelledSet]) -> list[RealScore]:
    """A score for each set, and one for all photos together."""
    predictor: Any = kinemesh.load(str(weights), "cpu")
    scores = [
        score_real(one, [as_placed(person) for person in predict_labelled(predictor, one)], kind)
        for one in sets
    ]
    return scores + all_photos(kind, {kind: scores})


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line for each number, a column for each run."""
    lines = [
        f"| set | number | {' | '.join(one['name'] for one in records)} |",
        f"|---|---|{'---|' * len(records)}",
    ]

    def add(place: str, head: str, values: Sequence[float | None], form: str) -> None:
        cells = ["–" if value is None else format(value, form) for value in values]
        lines.append(f"| {place} | {head} | {' | '.join(cells)} |")

    for key, head in (("pa_mpjpe_mm", "PA-MPJPE mm"), ("2d_error_px", "2D px of the crop")):
        add("rendered", head, [one["synthetic"][key] for one in records], ".1f")
    for row, first in enumerate(records[0]["photos"]):
        for head, key, form in NUMBERS:
            values = [one["photos"][row][key] for one in records]
            if key in SHOWN and any(value is not None for value in values):
                add(first["dataset"], head, values, form)
    add("training", "minutes", [one["training_seconds"] / 60 for one in records], ".1f")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
