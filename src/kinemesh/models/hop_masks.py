"""Who may attend to whom: attention that is limited by distance on the mesh.

PointHMR (Kim, Gwon, Park, Kwon, Um and Kim, CVPR 2023, section 3.3) lets a vertex attend to the
vertices that are at most h edges away, with h shrinking from encoder to encoder. The distance is
the number of edges of the shortest path, not a length, and all heads share the mask.

Shape legend: E edges, N vertices, F tokens that are no vertices, T = F + N tokens.
"""

import functools

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor

from kinemesh.bodies.topology import CoarseLevel
from kinemesh.errors import InputError

UNREACHABLE = torch.iinfo(torch.int16).max
"""Distance of vertices that no path connects."""


def vertex_hops(level: CoarseLevel) -> Tensor:
    """Edges on the shortest path between any two vertices of a level.

    The distances of a mesh are computed once in a process: every network that is built on it, and
    every copy of its edges, takes the same ones.

    Args:
        level: Coarse mesh; only its edges count.

    Returns:
        (N,N) int16 on the CPU, zero on the diagonal, `UNREACHABLE` where there is no path.
    """
    edges_E2 = level.edges.cpu().numpy().astype(np.int64)
    return _hops(len(level), edges_E2.tobytes()).clone()


@functools.lru_cache(maxsize=8)
def _hops(count: int, edges: bytes) -> Tensor:
    first, second = np.frombuffer(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(count, count))
    distances_NN = shortest_path(graph.tocsr(), directed=False, unweighted=True)
    distances_NN[~np.isfinite(distances_NN)] = UNREACHABLE
    return torch.from_numpy(distances_NN.astype(np.int16))


def hop_mask(hops_NN: Tensor, reach: int, free: int) -> Tensor:
    """Pairs of tokens of which the first, as a query, may attend to the second.

    Args:
        hops_NN: Distances, as `vertex_hops` gives them.
        reach: Largest distance h between two vertices.
        free: F, tokens in front of the vertices that attend to all, and all to them.

    Returns:
        (T,T) bool, True where attention is allowed.

    Raises:
        InputError: ``reach`` is negative, so that a vertex might not attend to itself.
    """
    if reach < 0:
        raise InputError(f"hops: expected reaches of 0 or more edges, found {reach}.")
    total = free + len(hops_NN)
    allowed_TT = hops_NN.new_ones(total, total, dtype=torch.bool)
    allowed_TT[free:, free:] = hops_NN <= reach
    return allowed_TT
