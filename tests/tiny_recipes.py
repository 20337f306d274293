"""The recipes of METRO and Mesh Graphormer with a tiny network, on eight samples.

As a program it runs some for two steps, each: ``python -m tests.tiny_recipes DATA OUTPUT NAME...``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kinemesh.training import train
from kinemesh.training.mesh_transformer_task import MeshTransformerRecipe, NetworkChanges
from kinemesh.training.published import PUBLISHED
from kinemesh.training.recipes import RECIPES
from tests.mesh_training_data import SAMPLES, write_body_data, write_hand_data

PUBLISHED_NAMES = tuple(PUBLISHED)
SYNTHETIC_NAMES = tuple(f"{name}-synthetic" for name in PUBLISHED)
NAMES = PUBLISHED_NAMES + SYNTHETIC_NAMES


def write_data(folder: Path) -> None:
    """Data and assets for all published recipes."""
    write_body_data(folder / "body")
    write_hand_data(folder / "hand")


def tiny(name: str, folder: Path, output: Path, **changes: object) -> MeshTransformerRecipe:
    """Recipe ``name`` with every number published but those of size, data and intervals."""
    recipe = RECIPES[name]()
    assert isinstance(recipe, MeshTransformerRecipe)
    recipe.network = NetworkChanges(
        width=4,
        stem_width=8,
        head_planes=(4, 4, 4, 8),
        pooled_channels=32,
        modules=(1, 1, 1),
        hidden_dims=(32, 32, 16),
        feed_forward_dims=(32, 32, 32),
        out_dims=(16, 16, 3),
        layers=1,
        heads=2,
    )
    if name in PUBLISHED:
        stored = folder / recipe.kind
        recipe.assets = stored / "assets"
        recipe.data = (
            str(stored / "tsv" / "people.yaml")
            if recipe.kind == "body"
            else f"freihand:{stored / 'freihand'}"
        )
        if recipe.protocol != "none":
            recipe.validation_data = recipe.data
    recipe.fine_tune = False
    recipe.resolution = 64
    recipe.samples = recipe.batch_size = SAMPLES
    recipe.validation_samples = 2
    recipe.workers, recipe.threads, recipe.device = 0, 1, "cpu"
    recipe.log_every = 1
    recipe.validate_every = recipe.checkpoint_every = 1000
    recipe.output = output
    for field, value in changes.items():
        assert hasattr(recipe, field)
        setattr(recipe, field, value)
    return recipe


def run_all(data: Path, output: Path, names: Sequence[str]) -> None:
    """Two steps of each recipe."""
    for name in names:
        settings = {"steps": 2, "batch_size": SAMPLES // 2, "resolution": 32}
        train(tiny(name, data, output / name, **settings))


if __name__ == "__main__":
    # a run ends its group of processes, but a second one with the same address does not come about
    torch.distributed.destroy_process_group = lambda *_: None
    run_all(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
