"""What every comparison with the official numbers has in common.

A *case* is one golden file (or one part of it). `compare` holds everything in it against our
values: a golden array with no value of ours is a failure, and so is a value of ours that no golden
speaks about. Each module of this package has a function ``compare_...(golden folder)`` or
``compare(golden_folder) -> list[Comparison]``; ``tests/parity_report.py`` prints what they return,
and the tests assert it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from tests.tolerances import PARITY_ATOL


class Tolerance(NamedTuple):
    """Allowed difference: ``absolute + relative * max |golden array|``; (0, 0) means to the bit."""

    absolute: float = PARITY_ATOL
    relative: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.absolute:.0e}"] if self.absolute else []
        parts += [f"{self.relative:.0e} of the largest value"] if self.relative else []
        return " + ".join(parts) or "exact"


EXACT = Tolerance(0.0, 0.0)


@dataclass(frozen=True)
class Comparison:
    """Our values against one golden case.

    Attributes:
        name: The case.
        absolute: Largest absolute difference of any number.
        relative: Largest difference over the largest absolute value of the golden array it is in.
        tolerance: What was allowed; where arrays differ in this, the widest is printed.
        count: Golden arrays compared.
        worst: Key of the array with the largest part of its tolerance used.
        failures: One line for each array that does not agree; empty when the case passes.
        skipped: Golden keys that are not compared, each with its reason.
        used: Largest part of its tolerance that an array uses, that of ``worst``; 1 is all of it.
    """

    name: str
    absolute: float
    relative: float
    tolerance: Tolerance
    count: int
    worst: str
    failures: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    used: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether every array agrees and there was at least one."""
        return self.count > 0 and not self.failures

    @classmethod
    def broken(cls, name: str, why: str) -> "Comparison":
        """A case that could not be compared at all."""
        return cls(name, float("nan"), float("nan"), Tolerance(), 0, "", (why,))

    def assert_passed(self) -> None:
        """Raise an AssertionError that names what differs."""
        assert not self.failures, f"{self.name}:\n" + "\n".join(self.failures)
        assert self.count > 0, f"{self.name}: nothing was compared"


def compare(
    name: str,
    ours: Mapping[str, object],
    golden: Mapping[str, np.ndarray],
    tolerance: Tolerance = Tolerance(),  # noqa: B008 - immutable
    special: Mapping[str, Tolerance] | None = None,
    skipped: Mapping[str, str] | None = None,
) -> Comparison:
    """Hold our values against golden ones, key by key.

    Args:
        name: Name of the case.
        ours: Tensors, arrays, numbers or strings by golden key; compared in float64, or for
            equality where they are no numbers. Shapes must be the same.
        golden: What the official code computed.
        tolerance: For all keys but those of ``special``.
        special: Tolerances by prefix of the key; the longest prefix that fits counts.
        skipped: Golden keys (or prefixes that end with ``*``) that cannot be compared, with why.
    """
    special, skipped = special or {}, skipped or {}
    reasons = {key: why for key in golden if (why := _reason(key, skipped)) is not None}
    failures = [
        f"{key}: a golden array without a value of ours"
        for key in golden.keys() - ours.keys() - reasons.keys()
    ]
    failures += [
        f"{key}: a value of ours that is not in the golden file"
        for key in ours.keys() - golden.keys()
    ]
    absolute = relative = used = 0.0
    worst, widest, count = "", tolerance, 0
    for key in sorted(ours.keys() & golden.keys()):
        allowed = _tolerance(key, tolerance, special)
        widest = max(widest, allowed, key=lambda t: (t.relative, t.absolute))
        count += 1
        difference, scale = _difference(ours[key], golden[key])
        limit = allowed.absolute + allowed.relative * scale
        if not difference <= limit:  # neither may be NaN
            failures.append(f"{key}: differs by {difference:.3g}, allowed {limit:.3g} ({allowed})")
        absolute, relative = max(absolute, difference), max(relative, difference / (scale or 1.0))
        part = difference / limit if limit else difference
        if not worst or part > used:
            worst, used = key, part
    notes = tuple(f"{key}: {why}" for key, why in sorted(reasons.items()))
    return Comparison(name, absolute, relative, widest, count, worst, tuple(failures), notes, used)


def _reason(key: str, skipped: Mapping[str, str]) -> str | None:
    for pattern, why in skipped.items():
        if key == pattern or (pattern.endswith("*") and key.startswith(pattern[:-1])):
            return why
    return None


def _tolerance(key: str, default: Tolerance, special: Mapping[str, Tolerance]) -> Tolerance:
    fitting = [prefix for prefix in special if key.startswith(prefix)]
    return special[max(fitting, key=len)] if fitting else default


def _difference(ours: object, golden: np.ndarray) -> tuple[float, float]:
    """Largest absolute difference, infinite for NaN and other shapes, and largest golden value."""
    value = ours.detach().cpu().numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    if value.shape != golden.shape:
        return float("inf"), 1.0
    if not np.issubdtype(golden.dtype, np.number) and golden.dtype != bool:
        return (0.0 if np.array_equal(value, golden) else float("inf")), 1.0
    if golden.size == 0:
        return 0.0, 1.0
    expected = golden.astype(np.float64)
    difference = np.abs(value.astype(np.float64) - expected).max()
    if not np.isfinite(difference):
        return float("inf"), 1.0
    return float(difference), float(np.abs(expected).max())
