"""Whether tensors by name are those that a network of some sizes has, told tensor by tensor."""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from kinemesh.errors import InputError

_LISTED = 8


def check_tensors(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    family: str,
    official: Callable[[str], str] = str,
) -> None:
    """Compare names and shapes, see `differences`.

    Args:
        state: What a file holds, by our names.
        wanted: Shapes of what the network has.
        family: Kind of checkpoint, for the message.
        official: Turns our name into the one that the file has, for the message.

    Raises:
        InputError: A tensor is missing, unknown or of another shape.
    """
    if problems := differences(state, wanted, official):
        raise InputError(
            f"The tensors do not make a network of the family {family!r} "
            f"({len(wanted)} tensors expected, {len(state)} found): {problems}"
        )


def differences(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, tuple[int, ...]],
    official: Callable[[str], str] = str,
) -> str:
    """What is missing and unknown (counted, the first eight by name), and all other shapes.

    Returns:
        Text for a message; empty where names and shapes are equal.
    """
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    differing = [
        f"{official(name)}: expected {shape}, found {tuple(state[name].shape)}"
        for name, shape in wanted.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {what}: {some(map(official, names))}"
        for what, names in (("missing", missing), ("unknown", unknown))
        if names
    ]
    if differing:
        lines = "".join(f"\n  {line}" for line in differing)
        problems.append(f"{len(differing)} of another shape:{lines}")
    return "; ".join(problems)


def count_differences(state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> int:
    """How many tensors are missing, unknown or of another shape."""
    differing = [n for n, shape in wanted.items() if n in state and tuple(state[n].shape) != shape]
    return len(state.keys() ^ wanted.keys()) + len(differing)


def note_on_values(state: Mapping[str, Tensor]) -> str:
    """That tensors hold NaN or infinity, and which; empty where all values are numbers."""
    names = [name for name, value in state.items() if not bool(torch.isfinite(value).all())]
    if not names:
        return ""
    return (
        f"{len(names)} of {len(state)} tensors hold values that are infinite or not a number: "
        f"{some(names)}. Whatever depends on them is useless; copy or download the file again."
    )


def some(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
