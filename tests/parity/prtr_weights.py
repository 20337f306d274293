"""Weights of PRTR's goldens: drawn by name, then some of them scaled as the manifest says.

Under the plain rule all queries of a fresh network give nearly the same output, so a golden would
not notice a mistake in attention; ``post_scale`` makes them differ.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tests.seeded_weights import COUNTERS, parameter


@dataclass(eq=False)
class DrawnWeights:
    """Tensors by official name; the draws of the network before are used again."""

    _drawn: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def state(
        self, shapes: Mapping[str, tuple[int, ...]], salt: str, post_scale: Any = ()
    ) -> dict[str, Tensor]:
        """State dict of the official names and shapes.

        Args:
            shapes: Of all tensors that are drawn; counters are zero.
            salt: Of the draws.
            post_scale: The manifest's rules.
        """
        kept: dict[tuple[object, ...], Tensor] = {}
        state = {}
        for name, shape in shapes.items():
            if name.endswith(COUNTERS):
                state[name] = torch.zeros(shape, dtype=torch.int64)
                continue
            key = (name, shape, salt)
            if key not in self._drawn:
                self._drawn[key] = torch.from_numpy(parameter(name, shape, salt))
            kept[key] = self._drawn[key]
            state[name] = post_scaled(name, kept[key], post_scale)
        self._drawn = kept
        return state


def post_scaled(name: str, value: Tensor, rules: Any) -> Tensor:
    """A drawn tensor times the factors that the manifest gives for its name.

    Raises:
        ValueError: A rule is written in a way that is not understood.
    """
    for rule in rules:
        known = {"suffix", "name", "factor", "rows"}
        rows = rule.get("rows", "all")
        if set(rule) - known or rows not in {"all", "first 2/3 (query and key)"}:
            raise ValueError(f"post_scale: cannot understand {rule}")
        if name == rule.get("name") or ("suffix" in rule and name.endswith(rule["suffix"])):
            count = len(value) if rows == "all" else len(value) // 3 * 2
            value = torch.cat([value[:count] * rule["factor"], value[count:]])
    return value
