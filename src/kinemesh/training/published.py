"""The published training runs of METRO and Mesh Graphormer, as numbers.

Sources: Lin, Wang and Liu, METRO (CVPR 2021) and Mesh Graphormer (ICCV 2021), with the commands of
their released code; the hand-pose network follows the only training code there is for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from kinemesh.mesh_losses import MeshLossWeights

ProtocolName = Literal["none", "own", "human36m-p2", "3dpw", "freihand"]
"""A protocol of `kinemesh.protocols`; "own": the network's own joints; "none": no scores."""


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """One published run; every other number is the same in all of them.

    Attributes:
        variant: Network, a key of `kinemesh.models.variants.VARIANTS`.
        data: What it was trained on.
        start: What it started from.
        batch_size: Samples of one GPU in one update.
        processes: GPUs.
        epochs: E.
        masked_share: Largest share of masked queries.
        weights: Weights of the loss terms.
        protocol: What chose the best weights; "none": the last ones were taken.
        measure_epochs: Epochs between validations, or between checkpoints without them.
        lr: Learning rate of Adam until half of the epochs, then a tenth of it.
        dropout: In the transformer.
        seed: Of everything.
        resolution: Side of the crop.
    """

    variant: str
    data: str
    start: str = "HRNet-W64 of ImageNet"
    batch_size: int = 32
    processes: int = 8
    epochs: int = 200
    masked_share: float = 0.3
    weights: MeshLossWeights = field(default_factory=MeshLossWeights)
    protocol: ProtocolName = "human36m-p2"
    measure_epochs: int = 1
    lr: float = 1e-4
    dropout: float = 0.1
    seed: int = 88
    resolution: int = 224

    @property
    def task(self) -> Literal["body", "hand"]:
        """What is recovered."""
        return "body" if "-body-" in self.variant else "hand"


_MIXED = "Human3.6M, COCO (40 k), MuCo-3DHP, UP-3D and MPII, joined in one TSV file"
_FREIHAND = "FreiHAND's training set (130,240 pictures)"


def _mixed(variant: str, batch_size: int) -> PublishedRun:
    return PublishedRun(variant=variant, data=_MIXED, batch_size=batch_size)


def _3dpw(variant: str, batch_size: int) -> PublishedRun:
    return PublishedRun(
        variant=variant,
        data="3DPW's training set",
        start="the model of the mixed run",
        batch_size=batch_size,
        epochs=5,
        protocol="3dpw",
    )


def _freihand(variant: str) -> PublishedRun:
    return PublishedRun(
        variant=variant,
        data=_FREIHAND,
        masked_share=0.0,
        weights=MeshLossWeights.hand(),
        protocol="none",
        measure_epochs=10,
    )


def _handpose() -> PublishedRun:
    """One GPU; squared errors of 3D joints alone, so nothing teaches the camera."""
    return PublishedRun(
        variant="graphormer-handpose-w64",
        data=_FREIHAND,
        processes=1,
        epochs=100,
        masked_share=0.0,
        weights=MeshLossWeights(joints_3d=1.0, vertices=0.0, joints_2d=0.0, levels=()),
        protocol="none",
        measure_epochs=10,
    )


PUBLISHED: Mapping[str, PublishedRun] = MappingProxyType(
    {
        "metro-mixed": _mixed("metro-body-w64", 30),
        "metro-3dpw": _3dpw("metro-body-w64", 30),
        "metro-freihand": _freihand("metro-hand-w64"),
        "graphormer-mixed": _mixed("graphormer-body-w64", 25),
        "graphormer-3dpw": _3dpw("graphormer-body-w64", 20),
        "graphormer-freihand": _freihand("graphormer-hand-w64"),
        "graphormer-handpose": _handpose(),
    }
)
"""By the name of the recipe that repeats it."""
