"""What is labelled in HybrIK's data sets, in words and in pictures."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.data.hybrik_crop import pictured
from kinemesh.data.hybrik_records import HybrikSample
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import SMPL24

Picture = NDArray[np.uint8]
_COLUMNS = 2
_SPAN = 0.9  # units of 2.2 m across the view from the side


def describe_hybrik(samples: Sequence[Any]) -> list[str]:
    """Two lines: how much is labelled, and how large the crops are."""
    uvd = torch.stack([sample["uvd_weight"] for sample in samples])
    counts = {
        "3D": sum(bool(sample["xyz_weight"].any()) for sample in samples),
        "rotations and shape": sum(bool(sample["smpl_weight"].any()) for sample in samples),
        "twists": sum(bool(sample["twist_weight"].any()) for sample in samples),
    }
    listed = ", ".join(f"{name} {count}/{len(samples)}" for name, count in counts.items())
    sides = [float(sample["side_px"]) for sample in samples]
    share = float((uvd[..., 0] > 0).float().mean())
    return [
        f"labelled   {share:.0%} of {uvd.shape[1]} joints in the crop, {listed}",
        f"crops      {samples[0]['image'].shape[-1]} px, of {min(sides):.0f} to {max(sides):.0f} "
        "px in the picture",
    ]


def tile_hybrik(samples: Sequence[HybrikSample]) -> Picture:
    """Tile crops, each beside its joints, and its joints in space from the person's side.

    Returns:
        (rows * S, 2 * 3 * S, 3) uint8 RGB.
    """
    cells = [np.concatenate(_views(sample), axis=1) for sample in samples]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % _COLUMNS)
    rows = [
        np.concatenate(cells[first : first + _COLUMNS], axis=1)
        for first in range(0, len(cells), _COLUMNS)
    ]
    return cast(Picture, np.concatenate(rows))


def _views(sample: HybrikSample) -> list[Picture]:
    picture = pictured(sample["image"])
    side = len(picture)
    turning = len(SMPL24)
    places = ((sample["uvd"][:turning, :2] + 0.5) * side).numpy()
    seen = sample["uvd_weight"][:turning, 0]
    beside = ((sample["xyz"][:, [2, 1]] / _SPAN + 0.5) * side).numpy()
    blank = np.full_like(picture, 24)
    return [
        picture,
        draw_skeleton(picture, places, SMPL24, confidence=seen, thickness=2),
        draw_skeleton(blank, beside, SMPL24, confidence=sample["xyz_weight"][:, 0], thickness=2),
    ]
