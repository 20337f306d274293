"""POTTER's mesh training as published: two configurations and the run whose log was released.

Source: Zheng et al., POTTER (CVPR 2023), its configuration files and its log. Common to all: Adam
without weight decay, the learning rate times 0.2 after epochs 50 and 80, the gradient of each
tensor clipped to a norm of 5, crops of 256 px.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

DROPS = (50, 80)
FACTOR = 0.2
CLIP_NORM = 5.0


@dataclass(frozen=True, kw_only=True)
class PotterRun:
    """One published run.

    Attributes:
        start: What it started from.
        processes: GPUs.
        batch_size: Samples of one GPU in one update.
        lr: Learning rate of the beginning.
        epochs: Passes over the mix.
        stopped_after: Epochs after which it was stopped; the same as ``epochs`` if it was not.
        seed: Of everything; None where it is not known.
        milestones: Epoch, and PA-MPJPE in mm on Human3.6M and 3DPW after it, of its log.
    """

    start: str
    processes: int = 8
    batch_size: int = 24
    lr: float = 1e-4
    epochs: int = 200
    stopped_after: int = 200
    seed: int | None = None
    milestones: tuple[tuple[int, float, float], ...] = ()


POTTER_RUNS: Mapping[str, PotterRun] = MappingProxyType(
    {
        "potter-hmr": PotterRun(start="a trunk trained on COCO's keypoints"),
        "potter-hmr-short": PotterRun(
            start="a trunk trained on COCO's keypoints", epochs=20, stopped_after=20
        ),
        "potter-hmr-log": PotterRun(
            start="a trunk trained on COCO's keypoints",
            processes=4,
            batch_size=28,
            lr=2e-4,
            stopped_after=105,
            seed=123123,
            milestones=((1, 46.78, 50.37), (21, 37.56, 46.92), (51, 35.60, 45.45)),
        ),
    }
)
"""By the name of the recipe that repeats it."""
