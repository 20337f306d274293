"""A template mesh carried along by predicted joints: where vertices are before they are refined.

A network that must invent the surface from nothing gives lumpy meshes until it has seen very many
images. Here the template follows the joints as a rigid-segment puppet, so that the network only
learns what the joints do not say. Twist about a limb is the least that the joints allow.

Rotations are constants to autograd; gradients reach the joints through the segments' places and
lengths.

Shapes: B batch, J joints, N vertices, K segments, D = 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinemesh.errors import InputError
from kinemesh.geometry.rotations import rotation_6d_to_matrix, shortest_rotation
from kinemesh.skeletons import Skeleton, mean_of

Joints = tuple[str, ...]


@dataclass(frozen=True)
class Segment:
    """A rigid piece between two places, each the mean of some joints.

    Attributes:
        start: Joints at its near end.
        end: Joints at its far end.
        parent: Name of the joints ``end`` of the segment that carries it; None for a root segment.
        across: For a root segment: the joints (from, to) of a second direction, which fixes its
            rotation about its own axis.
    """

    start: Joints
    end: Joints
    parent: Joints | None = None
    across: tuple[Joints, Joints] | None = None


_HIPS, _SHOULDERS = ("left_hip", "right_hip"), ("left_shoulder", "right_shoulder")
_EYES, _EARS = ("left_eye", "right_eye"), ("left_ear", "right_ear")


def _limb(side: str, names: Sequence[str]) -> list[Segment]:
    joints = [(f"{side}_{name}",) for name in names]
    carriers = [_SHOULDERS, *joints[1:]]
    return [
        Segment(start, end, carrier)
        for start, end, carrier in zip(joints[:-1], joints[1:], carriers, strict=False)
    ]


def _finger(name: str) -> list[Segment]:
    knuckles: list[Joints] = [(f"{name}_{i}",) for i in range(1, 5)]
    palm = Segment(("wrist",), knuckles[0], ("middle_1",))
    return [palm, *(Segment(a, b, a) for a, b in pairwise(knuckles))]


SEGMENTS: dict[str, tuple[Segment, ...]] = {
    "coco17": (
        Segment(_HIPS, _SHOULDERS, across=(("right_shoulder",), ("left_shoulder",))),
        Segment(_EARS, _EYES, across=(("right_ear",), ("left_ear",))),
        *_limb("left", ("shoulder", "elbow", "wrist")),
        *_limb("right", ("shoulder", "elbow", "wrist")),
        *_limb("left", ("hip", "knee", "ankle")),
        *_limb("right", ("hip", "knee", "ankle")),
    ),
    "hand21": (
        Segment(("wrist",), ("middle_1",), across=(("index_1",), ("pinky_1",))),
        *(
            segment
            for name in ("thumb", "index", "middle", "ring", "pinky")
            for segment in _finger(name)
            if segment.end != ("middle_1",)
        ),
    ),
}
"""Segments by the name of the skeleton; a segment stands after the one that carries it."""


class PosedTemplate(nn.Module):
    """Vertices of a template that follow joints.

    Args:
        skeleton: A skeleton of `SEGMENTS`.
        joints_J3: Template joints, metres.
        vertices_N3: Template vertices in the same frame.
        neighbours: Segments that move a vertex.
    """

    start_KJ: Tensor
    end_KJ: Tensor
    across_KJ: Tensor
    frame_K33: Tensor
    weight_NK: Tensor
    along_NK: Tensor
    offset_NK3: Tensor
    axis_K3: Tensor
    length_K: Tensor

    def __init__(
        self, skeleton: Skeleton, joints_J3: Tensor, vertices_N3: Tensor, neighbours: int = 3
    ) -> None:
        super().__init__()
        if skeleton.name not in SEGMENTS:
            raise InputError(
                f"No segments are known for the skeleton '{skeleton.name}'; expected one of "
                f"{', '.join(SEGMENTS)}. Add them to kinemesh.models.posed_template.SEGMENTS."
            )
        segments = SEGMENTS[skeleton.name]
        ends = [segment.end for segment in segments]
        self.parents = [None if s.parent is None else ends.index(s.parent) for s in segments]
        start, end = (
            torch.stack([mean_of(skeleton, joints) for joints in side])
            for side in ([s.start for s in segments], ends)
        )
        across = torch.stack([_across(skeleton, segment) for segment in segments])
        origin, vector = start @ joints_J3, (end - start) @ joints_J3
        length = vector.norm(dim=-1)
        axis = vector / length[:, None]
        reach = vertices_N3[:, None] - origin
        along = (reach * axis).sum(-1)
        constants = {
            "start_KJ": start,
            "end_KJ": end,
            "across_KJ": across,
            "axis_K3": axis,
            "length_K": length,
            "frame_K33": rotation_6d_to_matrix(torch.cat([axis, across @ joints_J3], -1)),
            "along_NK": along,
            "offset_NK3": reach - along[..., None] * axis,
            "weight_NK": segment_weights(reach, along, length, neighbours),
        }
        for name, value in constants.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, joints_BJ3: Tensor) -> Tensor:
        """Carry the template along with joints (B, J, 3): vertices (B, N, 3), same frame."""
        start_BK3 = self.start_KJ @ joints_BJ3
        vector_BK3 = (self.end_KJ - self.start_KJ) @ joints_BJ3
        length_BK = (vector_BK3.square().sum(-1) + 1e-12).sqrt()
        turn_BK33 = self._rotations(joints_BJ3.detach(), vector_BK3.detach())
        thickness_B = (length_BK.sum(1) / self.length_K.sum()).detach()
        stretch_BK = length_BK / self.length_K
        local_BNK3 = (
            self.offset_NK3 * thickness_B[:, None, None, None]
            + (self.along_NK * stretch_BK[:, None])[..., None] * self.axis_K3
        )
        moved_BNK3 = torch.einsum("bkij,bnkj->bnki", turn_BK33, local_BNK3) + start_BK3[:, None]
        return (moved_BNK3 * self.weight_NK[..., None]).sum(2)

    def _rotations(self, joints_BJ3: Tensor, vector_BK3: Tensor) -> Tensor:
        """Rotation (B, K, 3, 3) of each segment: its carrier's, then a least swing."""
        axis_BK3 = F.normalize(vector_BK3, dim=-1)
        across_BK3 = self.across_KJ @ joints_BJ3
        turns: list[Tensor] = []
        for k, parent in enumerate(self.parents):
            if parent is None:
                now_B33 = rotation_6d_to_matrix(torch.cat([axis_BK3[:, k], across_BK3[:, k]], -1))
                turns.append(now_B33 @ self.frame_K33[k].T)
            else:
                carried = turns[parent]
                swing = shortest_rotation(carried @ self.axis_K3[k], axis_BK3[:, k])
                turns.append(swing @ carried)
        return torch.stack(turns, dim=1)


def _across(skeleton: Skeleton, segment: Segment) -> Tensor:
    if segment.across is None:
        return torch.zeros(len(skeleton))
    first, second = segment.across
    return mean_of(skeleton, second) - mean_of(skeleton, first)


def segment_weights(
    reach_NK3: Tensor, along_NK: Tensor, length_K: Tensor, neighbours: int
) -> Tensor:
    """Weights (N, K) of the nearest segments, falling with the sixth power of the distance."""
    beyond = along_NK - along_NK.clamp(min=0).minimum(length_K)
    beside = reach_NK3.square().sum(-1) - along_NK.square()
    distance = (beside.clamp(min=0) + beyond.square()).sqrt()
    nearest = distance.topk(neighbours, largest=False)
    weight = (nearest.values + 0.01 * length_K.mean()) ** -6
    spread = torch.zeros_like(distance).scatter(1, nearest.indices, weight)
    return spread / spread.sum(1, keepdim=True)
