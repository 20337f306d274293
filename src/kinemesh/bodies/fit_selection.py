"""Which vertices of a mesh a fit looks at: enough for every bone, and evenly spread.

Legend of shapes: V vertices of the mesh, M of the fit, J joints.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemesh.bodies.posable import PosableBody
from kinemesh.bodies.topology import Topology

PER_BONE = 1.5
"""Vertices taken of a bone, over the square root of the number that it moves most."""
LEAST_PER_BONE = 8


MOST_PER_JOINT = 16
"""Regressors of joints spread over hundreds of vertices, which a fit need not all pose."""


@dataclass(frozen=True)
class Selection:
    """The vertices of a fit, and the joints that it regresses from them.

    Attributes:
        vertices: (M,) int64 indices into the mesh.
        regressor: (J, M) float32 weights, rows sum to one; J is 0 for a fit of vertices alone.
    """

    vertices: Tensor
    regressor: Tensor


def select_vertices(body: PosableBody, topology: Topology | None) -> Selection:
    """Vertices of every bone, and with a topology some of those that its joints come from.

    Of the vertices that one bone moves more than any other, those farthest from each other are
    taken (farthest-point sampling). Heads have many vertices and finger bones few, so their number
    grows with the square root.
    """
    owner_V = body.skin_weights.argmax(1)
    groups = [torch.nonzero(owner_V == bone)[:, 0] for bone in range(len(body.bones))]
    kept = [group[_spread(body.template[group], _wanted(len(group)))] for group in groups]
    thin_JV = torch.zeros(0, len(owner_V)) if topology is None else _thinned(body, topology)
    used = torch.nonzero(thin_JV.any(0))[:, 0]
    chosen_M = torch.unique(torch.cat([*kept, used]))
    return Selection(chosen_M, thin_JV[:, chosen_M])


def _thinned(body: PosableBody, topology: Topology) -> Tensor:
    """(J, V) regressor with few vertices in a row.

    Their weights differ as little as they can from the full regressor's and give the same joints of
    the template.
    """
    full_JV = torch.zeros(len(topology.skeleton), len(body.template))
    full_JV.scatter_add_(1, topology.regressor_index, topology.regressor_weight)
    thin_JV = torch.zeros_like(full_JV)
    for row, weights_V in enumerate(full_JV):
        support = torch.nonzero(weights_V)[:, 0]
        chosen = support[_spread(body.template[support], MOST_PER_JOINT)]
        joint_3 = weights_V @ body.template / weights_V.sum()
        offsets_3R = (body.template[chosen] - joint_3).T.double()
        conditions_4R = torch.cat([offsets_3R, torch.ones_like(offsets_3R[:1])])
        kept_R = weights_V[chosen].double() / weights_V[chosen].sum()
        lack_4 = offsets_3R.new_tensor([0, 0, 0, 1]) - conditions_4R @ kept_R
        thin_JV[row, chosen] = (kept_R + torch.linalg.pinv(conditions_4R) @ lack_4).float()
    return thin_JV


def _wanted(count: int) -> int:
    return max(LEAST_PER_BONE, math.ceil(PER_BONE * math.sqrt(count)))


def _spread(points_V3: Tensor, wanted: int) -> Tensor:
    """Indices of up to ``wanted`` points far from each other, the first far from their mean."""
    chosen: list[int] = []
    if len(points_V3):
        distance_V = (points_V3 - points_V3.mean(0)).square().sum(1)
    for _ in range(min(wanted, len(points_V3))):
        index = int(distance_V.argmax())
        away_V = (points_V3 - points_V3[index]).square().sum(1)
        distance_V = torch.minimum(distance_V, away_V) if chosen else away_V
        chosen.append(index)
    return torch.tensor(chosen, dtype=torch.int64)
