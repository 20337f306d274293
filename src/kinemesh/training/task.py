"""What the loop asks of a task: a model, data, a loss, a validation and a way to save weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from kinemesh.training.config import OptimConfig

Batch: TypeAlias = Any
"""A tensor, or dicts, lists and tuples of tensors: what a task's ``collate`` makes of samples."""


class Task(Protocol):
    """One thing to learn. The loop knows nothing of images, joints or meshes; a task does.

    With ``workers > 0`` the dataset and ``collate`` run in other processes.
    """

    @property
    def metric(self) -> str | None:
        """Key of ``validate``'s result by which the best weights are chosen; lower is better.

        None: the task has nothing to measure. Then neither ``validate`` nor ``picture`` is called,
        and the latest weights count as the best.
        """
        ...

    def build_model(self) -> nn.Module:
        """Build the network on the CPU; the global random state is seeded before this call."""
        ...

    def train_dataset(self) -> Dataset[Any]:
        """Return a map-style dataset with a length; ``__getitems__`` is used where it exists.

        Samples may be a pure function of the index, or use the global random states of python,
        numpy and torch, which the loop seeds from (seed, step, process) before each batch.
        """
        ...

    def collate(self, samples: list[Any]) -> Batch:
        """Join samples into a batch: a tensor or a nesting of dicts, lists and tuples of them."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Compute scalar losses; ``"total"`` is minimised and every entry is logged.

        Call ``model(...)`` itself, not its parts: it may be wrapped for many processes and for
        mixed precision. The keys must be the same at every step.
        """
        ...

    def validate(self, model: nn.Module, device: torch.device) -> dict[str, float]:
        """Score the averaged weights; ``model`` is on ``device``, in eval mode, without gradients.

        Runs in the main process only, while the others wait.
        """
        ...

    def picture(self, model: nn.Module, device: torch.device) -> NDArray[np.uint8] | None:
        """Draw predictions as RGB (H, W, 3), called after ``validate``; None for no picture."""
        ...

    def save_weights(self, model: nn.Module, path: Path, metadata: Mapping[str, Any]) -> None:
        """Write deployable weights to ``path`` (``.safetensors``), with a card beside if wanted.

        Args:
            model: The averaged weights.
            path: File to write; its folder exists and becomes visible when it is complete.
            metadata: ``step`` (int), ``metrics`` (dict), ``recipe`` (flat dict of fields).
        """
        ...


@runtime_checkable
class OwnParameterGroups(Protocol):
    """A task that divides the parameters for the optimiser itself."""

    def parameter_groups(self, model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
        """Return torch parameter groups, each with ``params``, ``lr`` and ``weight_decay``."""
        ...


@runtime_checkable
class ClipsGradients(Protocol):
    """A task that changes the gradients itself before each update."""

    def clip_gradients(self, model: nn.Module) -> None:
        """Change the gradients in place; they are those of all processes, without loss scaling."""
        ...


@runtime_checkable
class StartsFromWeights(Protocol):
    """A task whose model begins with weights from a file."""

    @property
    def started_from(self) -> str | None:
        """What `build_model` loaded, for ``recipe.json``; None before it or without a file."""
        ...


@runtime_checkable
class ChoosesAmongEqual(Protocol):
    """A task that says which of several equally good weights are kept."""

    @property
    def later_is_better(self) -> bool:
        """Whether the later of two equal scores counts as the better one; else the first stays."""
        ...


def default_parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """Spare biases and normalisation from weight decay and slow the backbone down.

    Parameters that need no gradient are left out. Names that begin with ``backbone.`` get
    ``optim.lr * optim.backbone_lr_scale``.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith("backbone."), parameter.ndim > 1)
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": optim.lr * (optim.backbone_lr_scale if backbone else 1.0),
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]
