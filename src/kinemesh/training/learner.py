"""What changes while learning: the weights, their average and the optimiser."""

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kinemesh.bodies.topology import strip_prefix
from kinemesh.errors import InputError
from kinemesh.optional import require
from kinemesh.training.config import TrainConfig
from kinemesh.training.ema import WeightAverage
from kinemesh.training.task import (
    Batch,
    ClipsGradients,
    OwnParameterGroups,
    Task,
    default_parameter_groups,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


class Learner:
    """A network under training, on the accelerator's device.

    Args:
        task: Builds the network and computes its losses.
        config: Optimiser, precision and averaging.
        accelerator: Accelerate's ``Accelerator``.
    """

    def __init__(self, task: Task, config: TrainConfig, accelerator: "Accelerator") -> None:
        self.task, self.config, self.accelerator = task, config, accelerator
        self.model: nn.Module = task.build_model().to(accelerator.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = WeightAverage(self.model, config.ema_decay)
        groups = (
            task.parameter_groups(self.model, config.optim)
            if isinstance(task, OwnParameterGroups)
            else default_parameter_groups(self.model, config.optim)
        )
        if not groups:
            raise InputError("The task's model has no parameter that requires a gradient.")
        self.adam = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas)
        self.peaks: list[float] = [group["lr"] for group in self.adam.param_groups]
        self.wrapped, self.optimizer = accelerator.prepare(self.model, self.adam)
        self.wrapped.train()

    def place(self, batch: Batch) -> Batch:
        """Move a batch to the device, without waiting for the copy."""
        utils = require("accelerate.utils", "train")
        batch = utils.send_to_device(batch, self.accelerator.device, non_blocking=True)
        return (
            utils.recursively_apply(_channels_last, batch) if self.config.channels_last else batch
        )

    def update(self, batch: Batch, factor: float, updates: int) -> dict[str, Tensor]:
        """Make one update and return its losses, still on the device.

        Args:
            batch: Batch on the device.
            factor: Factor on the peak learning rates.
            updates: Updates made before.

        Returns:
            The task's losses and ``grad_norm``, the L2 norm of the gradients before clipping
            (left out with fp16, where infinite gradients are expected and skipped).
        """
        for group, peak in zip(self.adam.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        losses = self.task.loss(self.wrapped, batch)
        if "total" not in losses:
            raise InputError(f"The task's loss returned {sorted(losses)}, but 'total' is needed.")
        self.accelerator.backward(losses["total"])
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.optim.clip_norm or math.inf
        )
        if isinstance(self.task, ClipsGradients):
            self.task.clip_gradients(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average.update(self.model, updates)
        return losses if self.config.mixed_precision == "fp16" else {**losses, "grad_norm": norm}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the state: ``model.*``, ``ema.*``, ``optimizer.<parameter>.<moment>``."""
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.average.decay:
            averaged = self.average.model.state_dict()
            state |= {f"ema.{name}": value for name, value in averaged.items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.adam.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{key}"] = value
        return state

    def scaler_state(self) -> dict[str, Any] | None:
        """State of the loss scaling of fp16, if it is in use."""
        scaler = self.accelerator.scaler
        return scaler.state_dict() if scaler is not None else None

    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any] | None) -> None:
        """Take over what ``tensors`` and ``scaler_state`` returned.

        Raises:
            InputError: The tensors belong to another network.
        """
        try:
            self.model.load_state_dict(strip_prefix(tensors, "model."))
            if self.average.decay:
                self.average.model.load_state_dict(strip_prefix(tensors, "ema."))
        except RuntimeError as error:
            raise InputError(
                f"The checkpoint holds another network than the recipe builds: {error}. "
                "Continue with the recipe that wrote it, or start again in another --output."
            ) from error
        moments = strip_prefix(tensors, "optimizer.")
        parameters = dict(self.model.named_parameters())
        for key, value in moments.items():
            name, moment = key.rsplit(".", 1)
            self.adam.state[parameters[name]][moment] = _beside(parameters[name], value)
        if scaler and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(scaler)


def _beside(parameter: Tensor, moment: Tensor) -> Tensor:
    # Moments share the strides of their parameter, as if they had never been saved; the step
    # counter, a scalar, stays on the CPU, where AdamW keeps it.
    if moment.shape != parameter.shape or moment.ndim == 0:
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype).copy_(moment)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
