"""A tiny task, its recipe, and a script that trains it; the tests import it and run it."""

import json
import os
import random
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Dataset, default_collate

from kinemesh.training import OptimConfig, Recipe, ScheduleConfig, train

TRUE_WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 3.0]])


class Points(Dataset):
    """Points of a noisy plane; the noise comes from the global random states on purpose."""

    def __init__(self, length=97, noise=0.1):
        self.length, self.noise = length, noise

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        x = np.random.default_rng(index).normal(size=4).astype(np.float32)
        noise = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        return {"x": x, "y": x @ TRUE_WEIGHT[0].numpy() + np.float32(self.noise * (noise - 1.5))}


class Plane:
    """Regress a plane with a small network that has kernels, batch statistics and dropout."""

    metric = "error"
    seconds_a_step = 0.0
    nan_at = -1  # call of loss() that returns NaN
    signal_at = -1  # call of loss() during which SIGTERM arrives

    def __init__(self, recipe):
        self.recipe = recipe
        self.calls = 0

    def build_model(self):
        if self.recipe.linear:
            return nn.Linear(4, 1)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 2)),
            nn.Conv2d(1, 8, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(8, 1),
        )

    def train_dataset(self):
        return Points(noise=self.recipe.noise)

    def collate(self, samples):
        return default_collate(samples)

    def loss(self, model, batch):
        self.calls += 1
        time.sleep(self.seconds_a_step)
        error = (model(batch["x"])[:, 0] - batch["y"]) ** 2
        if self.calls == self.nan_at:
            error = error * float("nan")
        if self.calls == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"total": error.mean(), "largest": error.max()}

    def validate(self, model, device):
        assert not model.training
        assert not torch.is_grad_enabled()
        torch.rand(3)  # must leave no trace in training
        x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)).to(device)
        return {"error": float((model(x) - x @ TRUE_WEIGHT.T.to(device)).square().mean())}

    def picture(self, model, device):
        return np.full((4, 6, 3), 200, dtype=np.uint8)

    def save_weights(self, model, path, metadata):
        save_file(model.state_dict(), path, metadata={"kinemesh": json.dumps(metadata)})


@dataclass
class PlaneRecipe(Recipe):
    """The loop's settings and those of the tiny task."""

    linear: bool = False
    noise: float = 0.1
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-2))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(warmup_steps=5))

    def build_task(self):
        return Plane(self)


def plane(output, **changes):
    """Settings small enough for a test."""
    settings = {
        "steps": 40,
        "batch_size": 8,
        "threads": 1,
        "device": "cpu",
        "validate_every": 15,
        "checkpoint_every": 10,
        "log_every": 1,
        "ema_decay": 0.9,
        "output": Path(output),
    }
    return PlaneRecipe(**(settings | changes))


if __name__ == "__main__":
    Plane.seconds_a_step = float(sys.argv[3])
    changes = json.loads(sys.argv[2])
    if "resume" in changes:
        changes["resume"] = Path(changes["resume"])
    train(plane(sys.argv[1], **changes))
