"""A network's answer to one crop, before it is put into the photo."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
from torch import Tensor

from kinemesh.errors import KinemeshError
from kinemesh.inference.explanation import CropEvidence, split_evidence

if TYPE_CHECKING:
    from kinemesh.models.attention_maps import Evidence


class NetworkOutput(Protocol):
    """What a network returns for (B, 3, S, S) crops; the root frame has camera axes."""

    @property
    def joints(self) -> Tensor:
        """(B, J, 3) metres, root frame."""

    @property
    def vertices(self) -> Tensor:
        """(B, V, 3) metres, root frame, full mesh; V is 0 for a network without a mesh."""

    @property
    def joints_2d(self) -> Tensor:
        """(B, J, 2) crop pixels, 0 to S."""

    @property
    def confidence(self) -> Tensor:
        """(B, J) in 0..1."""


@dataclass(frozen=True, eq=False)
class CropPrediction:
    """A network's answer to one crop of side S, as float64 arrays.

    Attributes:
        joints: (J, 3) metres, root frame.
        vertices: (V, 3) metres, root frame.
        joints_px: (J, 2) crop pixels.
        confidence: (J,) in 0..1.
        rightness: How much the crop looks like a right hand: the network's ``side_logits`` where
            it has them, else the mean confidence. Only differences have a meaning.
        evidence: What the network looked at, if it was asked.
        spread: (J, 2) expected distance of ``joints`` (metres) and ``joints_px`` (crop pixels) from
            the truth; None of a network that does not say. Mirroring leaves it as it is.
    """

    joints: np.ndarray
    vertices: np.ndarray
    joints_px: np.ndarray
    confidence: np.ndarray
    rightness: float
    evidence: CropEvidence | None = None
    spread: np.ndarray | None = None

    def mirrored(self, size: int) -> "CropPrediction":
        """The answer to the crop mirrored left to right; twice gives back the same.

        Joint order stays, so this is meant for hands, which have no left and right joints.
        """
        flip = np.array([-1.0, 1.0, 1.0])
        joints_px = np.stack([size - self.joints_px[:, 0], self.joints_px[:, 1]], axis=1)
        return replace(
            self,
            joints=self.joints * flip,
            vertices=self.vertices * flip,
            joints_px=joints_px,
            evidence=None if self.evidence is None else self.evidence.mirrored(),
        )


def split_output(output: NetworkOutput, evidence: "Evidence | None") -> list[CropPrediction]:
    """A network's answer to a batch, and what it looked at, crop by crop.

    Args:
        output: What the network returned; it may also have ``side_logits`` (B,), and ``spread``
            (B, J, 2), which may be None.
        evidence: What it looked at, if it was asked.

    Raises:
        KinemeshError: It holds numbers that are not finite.
    """
    values = [output.joints, output.vertices, output.joints_2d, output.confidence]
    spread_BJ2 = getattr(output, "spread", None)
    values += [] if spread_BJ2 is None else [spread_BJ2]
    fields = [value.double().cpu().numpy() for value in values]
    if not all(np.isfinite(field).all() for field in fields):
        raise KinemeshError(
            "The network returned numbers that are not finite. The weight file is damaged or its "
            "training diverged; check the shipped ones with: kinemesh doctor"
        )
    side_logits = getattr(output, "side_logits", None)
    rightness = fields[3].mean(1) if side_logits is None else side_logits.double().cpu().numpy()
    looked = [None] * len(rightness) if evidence is None else split_evidence(evidence)
    spread = [None] * len(rightness) if spread_BJ2 is None else fields.pop()
    return [CropPrediction(*rows) for rows in zip(*fields, rightness, looked, spread, strict=True)]
