"""Whole networks against the official outputs, driven by a manifest alone.

The manifest of a system gives for each case the official tensor names and shapes, a configuration
with a salt, the shapes of the inputs and the rules by which weights follow from names. Nothing here
knows a system: `tests.parity.mesh_transformers` and its kin build the networks.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.seeded_weights import COUNTERS, normal, parameter

FIRST_VALUES = 32  # of each tapped tensor
Rule = Callable[[str, tuple[int, ...], np.ndarray, str], np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """One golden file and what the manifest says about it.

    Attributes:
        name: Of the case and its file.
        config: Free-form numbers of the network.
        inputs: Shape of each input.
        shapes: Official tensor names and shapes.
        rules: How weights follow from names, in words.
        folder: Where the golden files are.
    """

    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, tuple[int, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    rules: tuple[str, ...]
    folder: Path

    @property
    def salt(self) -> str:
        """What all draws of the case are salted with."""
        return str(self.config.get("salt", ""))

    def golden(self) -> dict[str, np.ndarray]:
        """The arrays of the case's file."""
        with np.load(self.folder / f"{self.name}.npz") as arrays:
            return dict(arrays)


def read_manifest(path: Path, golden_folder: Path) -> list[Case]:
    """All cases of a manifest, in its order."""
    return [
        Case(
            name,
            entry["config"],
            {key: tuple(shape) for key, shape in entry["inputs"].items()},
            {key: tuple(shape) for key, shape in entry["state_dict"].items()},
            tuple(entry["weight_rule"]),
            golden_folder,
        )
        for name, entry in json.loads(path.read_text("utf-8")).items()
    ]


# Weights -------------------------------------------------------------------------------------

_START = "start from seeded.load(state_dict, salt)"
_RULE = re.compile(r"every name matching (?P<pattern>.+?) : (?P<action>.+)")
_SCALE = re.compile(r"value \* (?:np\.)?float32\((?P<factor>[-+.\deE]+)\)")
_DRAW = re.compile(r"seeded\.draw\(name, shape, salt\) itself\b.*")


def parse_rules(rules: Iterable[str]) -> list[tuple[re.Pattern[str], Rule]]:
    """Patterns of names with what to do to their values, in order.

    Raises:
        ValueError: A rule is written in a way that is not understood.
    """
    parsed = []
    for rule in rules:
        if rule == _START:
            continue
        match = _RULE.fullmatch(rule)
        action = _action(match["action"]) if match else None
        if match is None or action is None:
            raise ValueError(f"weight_rule: cannot understand {rule!r}")
        parsed.append((re.compile(match["pattern"]), action))
    return parsed


def _action(text: str) -> Rule | None:
    if scale := _SCALE.fullmatch(text):
        factor = np.float32(scale["factor"])
        return lambda _name, _shape, value, _salt: value * factor
    if _DRAW.fullmatch(text):
        return lambda name, shape, _value, salt: normal(name, shape, salt)
    return None


@dataclass(eq=False)
class WeightDrawer:
    """Draws the tensors of a case by name; those of the case before are used again.

    Two hundred million numbers take seconds to draw, and cases share most of them.
    """

    _last: dict[tuple[object, ...], Tensor] = field(default_factory=dict)

    def state(self, case: Case, skip: Callable[[str], bool] = lambda _: False) -> dict[str, Tensor]:
        """State dict with the official names.

        Args:
            case: Which names, shapes, rules and salt.
            skip: Names whose values do not matter: they get zeros that take no memory.
        """
        rules = parse_rules(case.rules)
        kept: dict[tuple[object, ...], Tensor] = {}
        state = {}
        for name, shape in case.shapes.items():
            if skip(name):
                state[name] = torch.zeros(()).expand(shape)
                continue
            if name.endswith(COUNTERS):
                state[name] = torch.zeros(shape, dtype=torch.int64)
                continue
            key = (name, shape, case.salt, case.rules)
            if key not in self._last:
                self._last[key] = torch.from_numpy(_value(name, shape, case.salt, rules))
            state[name] = kept[key] = self._last[key]
        self._last = kept
        return state


def _value(
    name: str, shape: tuple[int, ...], salt: str, rules: list[tuple[re.Pattern[str], Rule]]
) -> np.ndarray:
    value = parameter(name, shape, salt)
    for pattern, rule in rules:
        if pattern.search(name):
            value = rule(name, shape, value, salt)
    return value


# Taps ----------------------------------------------------------------------------------------


class Taps:
    """Records the output of submodules under their names, while it is in a ``with`` block.

    Of a tuple the first tensor is kept and of a list the last, as the goldens do.
    """

    def __init__(self, root: nn.Module, prefix: str = "", wanted: Iterable[str] = ()) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._root, self._prefix, self._wanted = root, prefix, set(wanted)
        self._handles: list[Any] = []

    def __enter__(self) -> dict[str, Tensor]:
        for name, module in self._root.named_modules():
            if self._prefix + name in self._wanted:
                hook = self._hook(self._prefix + name)
                self._handles.append(module.register_forward_hook(hook))
        return self.outputs

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Callable[[nn.Module, object, Any], None]:
        def record(_module: nn.Module, _inputs: object, output: Any) -> None:
            while not isinstance(output, Tensor):
                output = output[-1] if isinstance(output, list) else output[0]
            self.outputs[name] = output.detach()

        return record


def tapped_names(golden: Mapping[str, np.ndarray]) -> set[str]:
    """Modules that a golden file speaks about."""
    return {key.split("/")[1] for key in golden if key.startswith("tap/")}


def tap_arrays(outputs: Mapping[str, Tensor]) -> dict[str, object]:
    """Tensors by name as goldens hold them: shape, [mean, unbiased standard deviation], start."""
    arrays: dict[str, object] = {}
    for name, output in outputs.items():
        values = output.detach().double().reshape(-1)
        arrays[f"tap/{name}/shape"] = np.array(output.shape)
        arrays[f"tap/{name}/stats"] = torch.stack([values.mean(), values.std()])
        arrays[f"tap/{name}/first32"] = values[:FIRST_VALUES]
    return arrays
