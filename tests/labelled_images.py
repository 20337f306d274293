"""Small labelled images, and tiny classifiers to learn them.

As a program it trains for two steps: ``python -m tests.labelled_images DATA OUTPUT``.
"""

import io
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kinemesh.models.potter_classifier import PotterClassifierConfig
from kinemesh.training import train
from kinemesh.training.classifier_recipes import potter_classifier
from kinemesh.training.classifier_task import ClassifierRecipe

CLASSES = ("across", "down", "falling", "rising")
SIDE = 32


def striped(name: str, rng: np.random.Generator) -> Image.Image:
    """Stripes whose direction is the class; phase, width and colours are not."""
    y, x = np.mgrid[:40, :48]
    along = {"across": y, "down": x, "falling": x - y}.get(name, x + y)
    wave = np.sin(along / rng.uniform(1.5, 2.5) + rng.uniform(0, 6))[..., None] > 0
    colors = rng.integers(0, 256, (2, 3))
    return Image.fromarray(np.where(wave, *colors).astype(np.uint8))


def write_folders(folder: Path, count: int = 2, classes=CLASSES) -> Path:
    """``folder/CLASS/N.png``."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            striped(name, rng).save(folder / name / f"{number}.png")
    return folder


def write_tar(path: Path, folder: Path, rows) -> None:
    """Images of class folders as a shard; ``rows`` are (class number, file)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (label, file) in enumerate(rows):
            content = {f"n{number:04d}.cls": str(label).encode()}
            content[f"n{number:04d}.png"] = (folder / file).read_bytes()
            for name, data in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def tiny(folder: Path, output: Path, **changes: object) -> ClassifierRecipe:
    """The published recipe with a tiny network, tiny images and few steps."""
    return replace(
        potter_classifier(),
        **{
            "network": PotterClassifierConfig(
                layers=(1, 1, 1, 1),
                widths=(32, 32, 32, 32),
                mlp_ratios=(2, 2, 2, 2),
                classes=len(CLASSES),
            ),
            "side": SIDE,
            "data": f"imagenet:{folder}",
            "batch_size": 8,
            "workers": 0,
            "threads": 1,
            "device": "cpu",
            "log_every": 1,
            "output": output,
            **changes,
        },
    )


if __name__ == "__main__":
    # a run ends its group of processes, but a second one with the same address does not come about
    torch.distributed.destroy_process_group = lambda *_: None
    train(tiny(Path(sys.argv[1]), Path(sys.argv[2]), steps=2, batch_size=4))
