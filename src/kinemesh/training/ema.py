"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import Tensor, nn


def ema_decay_at(decay: float, updates: int) -> float:
    """Decay of update number ``updates`` (from 0): small at first, so early weights fade fast."""
    return min(decay, (1 + updates) / (10 + updates))


class WeightAverage:
    """A copy of a network whose weights trail those of the original.

    Floating-point parameters and buffers (batch statistics) are averaged; counters are copied.

    Args:
        model: Network to follow; the copy takes its device and memory format.
        decay: Share of the old average that each update keeps, once warmed up. With 0 there is no
            copy: the average is the network itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False) if decay else model
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, updates: int) -> None:
        """Move the average toward ``model``: ``a <- d a + (1 - d) w``.

        Args:
            model: The unwrapped network that is being trained.
            updates: Updates made before this one.
        """
        if not self.decay:
            return
        average, current = _tensors(self.model), _tensors(model)
        moving = [key for key, value in average.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [average[key] for key in moving],
            [current[key] for key in moving],
            1.0 - ema_decay_at(self.decay, updates),
        )
        for key in average.keys() - set(moving):
            average[key].copy_(current[key])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())
