"""PRTR's 18 published training runs, as numbers.

Source: the configuration files of Li et al., CVPR 2021. Common to all: AdamW with a weight decay of
1e-4 for everything, a learning rate of 1e-4 that is halved at the drops, gradients clipped to a
norm of 0.1, no warm-up, no averaging, four GPUs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PROCESSES = 4
LR = 1e-4
WEIGHT_DECAY = 1e-4
CLIP_NORM = 0.1
FACTOR = 0.5

KeypointData = Literal["coco", "mpii"]


@dataclass(frozen=True, kw_only=True)
class PrtrRun:
    """One published run of the registered network of the same name.

    Attributes:
        data: What it was trained on.
        backbone_lr_scale: Learning rate of the backbone over that of the rest.
        batch_size: Crops of one GPU in one update.
        test_batch_size: Crops of one GPU at once in validation.
        epochs: Passes over the data.
        drops: Epochs after which the learning rate is halved.
    """

    data: KeypointData
    backbone_lr_scale: float = 0.1
    batch_size: int = 32
    test_batch_size: int = 64
    epochs: int = 200
    drops: tuple[int, ...]


def _coco(test_batch_size: int) -> PrtrRun:
    return PrtrRun(data="coco", test_batch_size=test_batch_size, drops=(120, 140))


def _w32(data: KeypointData, drops: tuple[int, ...], test_batch_size: int = 32) -> PrtrRun:
    return PrtrRun(
        data=data,
        backbone_lr_scale=1.0,
        batch_size=16,
        test_batch_size=test_batch_size,
        drops=drops,
    )


def _coco_deformable() -> PrtrRun:
    return PrtrRun(data="coco", batch_size=16, test_batch_size=32, epochs=100, drops=(50, 70))


def _mpii(batch_size: int = 32, test_batch_size: int = 64) -> PrtrRun:
    return PrtrRun(
        data="mpii", batch_size=batch_size, test_batch_size=test_batch_size, drops=(130,)
    )


PRTR_RUNS: Mapping[str, PrtrRun] = MappingProxyType(
    {
        "prtr-coco-res50-384x288": _coco(64),
        "prtr-coco-res50-512x384": _coco(32),
        "prtr-coco-res101-384x288": _coco(32),
        "prtr-coco-res101-512x384": _coco(32),
        "prtr-coco-w32-384x288": _w32("coco", (70, 95)),
        "prtr-coco-w32-512x384": _w32("coco", (70, 95)),
        "prtr-coco-deform-res50-384x288": _coco_deformable(),
        "prtr-coco-deform-res101-384x288": _coco_deformable(),
        "prtr-mpii-res50-256x256": _mpii(),
        "prtr-mpii-res50-384x384": _mpii(),
        "prtr-mpii-res50-512x512": _mpii(32, 16),
        "prtr-mpii-res101-256x256": _mpii(),
        "prtr-mpii-res101-384x384": _mpii(),
        "prtr-mpii-res101-512x512": _mpii(16, 32),
        "prtr-mpii-res152-256x256": _mpii(),
        "prtr-mpii-res152-384x384": _mpii(),
        "prtr-mpii-w32-256x256": _w32("mpii", (60,)),
        "prtr-mpii-w32-384x384": _w32("mpii", (60,), 16),
    }
)
"""By the name of the recipe that repeats it, and of the network. Sizes are height by width."""
