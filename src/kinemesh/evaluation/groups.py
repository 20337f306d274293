"""Scores by skin tone and age of the synthetic people, who are drawn with both.

The skin tone is the class of the individual typology angle ``ITA = atan2(L* - 50, b*)`` in degrees
(Chardon et al., International Journal of Cosmetic Science 13, 1991) of the tone that the skin was
painted with, in CIE L*a*b* under D65; its six classes are those of Del Bino and Bernerd (British
Journal of Dermatology 169, 2013). Light and camera come after it: a dark skin in bright light may
look lighter in the picture than a light one in the shade, and gloves and clothes may cover it.

The age is Anny's phenotype, whose anchors are 0 for a baby, 1/3 for a child, 2/3 for a young adult
and 1 for an old one. Below 0.6 are those whom the bank of shapes has as children; adults from the
middle between young and old are called old.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.data.synthetic import SyntheticDataset

SKIN_TONES = (
    ("very light", 55.0),
    ("light", 41.0),
    ("intermediate", 28.0),
    ("tan", 10.0),
    ("brown", -30.0),
    ("dark", -math.inf),
)
"""Classes of the individual typology angle, each with the degrees that it lies above."""
AGES = (("old adult", 5 / 6), ("adult", 0.6), ("child", -math.inf))
"""Ages, each with the phenotype from which it begins."""
TRAITS = {
    "skin tone": tuple(name for name, _ in SKIN_TONES),
    "age": tuple(name for name, _ in reversed(AGES)),
}
"""What people are grouped by, and the groups in the order of a table."""


@dataclass(frozen=True)
class GroupScore:
    """Scores of the samples of one group.

    Attributes:
        trait: A key of `TRAITS`.
        group: One of its groups.
        samples: How many.
        mpjpe_mm: With the roots moved together.
        pa_mpjpe_mm: After the best similarity of each sample.
        pa_mpjpe_error_mm: Standard error of that mean. Two groups whose means lie nearer to each
            other than three times this may well be alike. NaN for a single sample.
        error_px: Mean 2D error of the joints inside the crop, crop pixels.
    """

    trait: str
    group: str
    samples: int
    mpjpe_mm: float
    pa_mpjpe_mm: float
    pa_mpjpe_error_mm: float
    error_px: float

    def to_dict(self) -> dict[str, Any]:
        """All of it for a JSON record; what is not a number is null."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


def typology_angle(rgb: NDArray[np.floating]) -> float:
    """Individual typology angle of an sRGB colour (3,) in [0, 1], degrees; lighter is larger."""
    lightness, _, yellow = cv2.cvtColor(
        np.asarray(rgb, dtype=np.float32).reshape(1, 1, 3), cv2.COLOR_RGB2Lab
    )[0, 0].tolist()
    return math.degrees(math.atan2(lightness - 50, yellow))


def skin_tone(rgb: NDArray[np.floating]) -> str:
    """The class of a skin colour; see the module's docstring."""
    angle = typology_angle(rgb)
    return next(name for name, least in SKIN_TONES if angle > least)


def age_group(age: float) -> str:
    """The group of Anny's age; see the module's docstring."""
    return next(name for name, least in AGES if age >= least)


def groups_of(dataset: SyntheticDataset, count: int) -> dict[str, list[str]]:
    """The group of each of the first samples, by trait."""
    people = [
        (skin_tone(one.look.skin_rgb), age_group(one.age)) for one in dataset.subjects(range(count))
    ]
    return {"skin tone": [tone for tone, _ in people], "age": [age for _, age in people]}


def group_scores(
    groups: Mapping[str, Sequence[str]], columns: Mapping[str, NDArray[np.floating]]
) -> tuple[GroupScore, ...]:
    """Mean scores of each group that has a sample, in the order of `TRAITS`.

    Args:
        groups: From `groups_of`, for N samples.
        columns: (N,) each: ``mpjpe_mm``, ``pa_mpjpe_mm``, and ``error_px``, which is NaN for a
            sample without a joint inside the crop.
    """
    return tuple(
        _score(trait, group, np.array(found) == group, columns)
        for trait, found in groups.items()
        for group in TRAITS[trait]
        if group in found
    )


def _score(
    trait: str, group: str, rows: NDArray[np.bool_], columns: Mapping[str, NDArray[np.floating]]
) -> GroupScore:
    joints, aligned, places = (
        columns[name][rows].astype(np.float64) for name in ("mpjpe_mm", "pa_mpjpe_mm", "error_px")
    )
    seen = places[~np.isnan(places)]
    return GroupScore(
        trait,
        group,
        len(aligned),
        float(joints.mean()),
        float(aligned.mean()),
        float(aligned.std(ddof=1) / math.sqrt(len(aligned))) if len(aligned) > 1 else math.nan,
        float(seen.mean()) if len(seen) else math.nan,
    )


def group_table(scores: Iterable[GroupScore]) -> list[str]:
    """Lines of text: one for each group, under a line of headings."""
    head = (
        f"{'trait':<11}{'group':<13}{'samples':>8}{'MPJPE mm':>10}{'PA-MPJPE mm':>16}{'2D px':>8}"
    )
    return [head] + [
        f"{one.trait:<11}{one.group:<13}{one.samples:>8}{one.mpjpe_mm:>10.1f}"
        f"{one.pa_mpjpe_mm:>9.1f} ± {one.pa_mpjpe_error_mm:<4.1f}{one.error_px:>8.1f}"
        for one in scores
    ]
