"""What a network looked at to recover a person, in the pixels of the photo."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from kinemesh.bodies.regions import joint_regions, vertex_regions
from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError

if TYPE_CHECKING:
    from kinemesh.inference.person import Person
    from kinemesh.models.attention_maps import Evidence

Explain = bool | str | Sequence[str]
"""Whether to explain, or the joints whose attention is wanted; True takes `DEFAULT_JOINTS`."""

DEFAULT_JOINTS = {
    "body": ("right_elbow", "left_wrist", "right_knee"),
    "hand": ("wrist", "thumb_4", "index_4"),
}
"""By task; METRO's published pictures take the right elbow of a body and the wrist of a hand."""

CANNOT_EXPLAIN = (
    "this model has no attention of joints to vertices to show. Models that have it: the shipped "
    "body and hand (kinemesh models), and networks of METRO, Mesh Graphormer with a mesh, and "
    "PointHMR."
)


@dataclass(frozen=True, eq=False)
class CropEvidence:
    """`kinemesh.models.attention_maps.Evidence` of one crop, as float64 arrays.

    Attributes:
        attention: (J, N) in 0..1.
        sampled: (P, 2) signed crop coordinates, or None.
    """

    attention: np.ndarray
    sampled: np.ndarray | None

    def mirrored(self) -> "CropEvidence":
        """That of the crop mirrored left to right."""
        if self.sampled is None:
            return self
        return replace(self, sampled=self.sampled * [-1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a network looked at to recover one person; all places are photo pixels.

    Attributes:
        joints: K names of the joints whose attention is told.
        joints_px: (K, 2) where they were found.
        attention: (K, N) how much each attends to each coarse vertex in the last layer, averaged
            over the heads and taken relative to what all tokens pay to that vertex; 0 the least and
            1 the most for a joint.
        vertices_px: (N, 2) the coarse vertices of the predicted mesh, projected.
        vertex_regions: N words: the part of the body each is on.
        sampled_px: (P, 2) where image features were sampled: the mean of each point's heat map.
            None for a network whose features have no place.
        sampled_regions: P words, or none.
        square_px: x and y of the middle of the crop that the network saw, and its side.
    """

    joints: tuple[str, ...]
    joints_px: np.ndarray
    attention: np.ndarray
    vertices_px: np.ndarray
    vertex_regions: tuple[str, ...]
    sampled_px: np.ndarray | None
    sampled_regions: tuple[str, ...]
    square_px: tuple[float, float, float]


def token_joint_names(topology: Topology) -> tuple[str, ...]:
    """Names of the joints that a network carries as tokens, in their order."""
    joints = topology.skeleton.joints
    tokens = topology.token_joints
    return joints if tokens is None else tuple(joints[joint] for joint in tokens)


def explained_joints(explain: Explain, topology: Topology) -> tuple[str, ...]:
    """The joints whose attention is wanted; none if nothing is to be explained.

    Raises:
        InputError: One is not a joint that the network carries, or there is none.
    """
    if isinstance(explain, bool):
        return DEFAULT_JOINTS[topology.kind] if explain else ()
    wanted = (explain,) if isinstance(explain, str) else tuple(explain)
    known = token_joint_names(topology)
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        found = f"'{unknown[0]}'" if unknown else "none"
        raise InputError(
            f"explain: expected joints of this model, found {found}. "
            f"Its joints: {', '.join(known)}."
        )
    return wanted


def split_evidence(evidence: "Evidence") -> list[CropEvidence]:
    """Evidence of a batch, crop by crop."""
    attention, sampled = _array(evidence.attention), evidence.sampled
    places = [None] * len(attention) if sampled is None else list(_array(sampled))
    return [CropEvidence(*pair) for pair in zip(attention, places, strict=True)]


def explain_person(
    person: "Person",
    evidence: CropEvidence,
    joints: Sequence[str],
    topology: Topology,
    square_px: tuple[float, float, float],
) -> Explanation:
    """Put the evidence of a crop on the photo.

    Args:
        person: Who was recovered from the crop.
        evidence: What the network looked at.
        joints: As `explained_joints` returned them.
        topology: The network's mesh.
        square_px: The crop, see `Explanation`.
    """
    known = token_joint_names(topology)
    rows = [known.index(name) for name in joints]
    places = [topology.skeleton.index(name) for name in joints]
    coarse = person.vertices[topology.coarse.vertex_index.numpy()]
    of_vertex = vertex_regions(topology)
    sampled_px, of_sampled = None, tuple[str, ...]()
    if evidence.sampled is not None:
        sampled_px = np.array(square_px[:2]) + evidence.sampled * (square_px[2] / 2)
        has_all = len(sampled_px) == len(of_vertex)
        of_sampled = of_vertex if has_all else joint_regions(topology.skeleton)
    return Explanation(
        joints=tuple(joints),
        joints_px=person.joints_px[places],
        attention=evidence.attention[rows],
        vertices_px=person.camera.project(coarse),
        vertex_regions=of_vertex,
        sampled_px=sampled_px,
        sampled_regions=of_sampled,
        square_px=square_px,
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
