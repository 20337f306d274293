"""Coarse levels of a mesh: geodesic sampling, dual triangulation, least-squares up-sampling.

Coarse vertices are chosen among the full ones by farthest-point sampling on geodesic distances
(Eldar et al., IEEE TIP 1997, with the mesh's edge graph as the metric): every new vertex is the one
farthest from all chosen so far. The order does not depend on how many are asked for, so a coarser
level is a prefix of a finer one. The coarse mesh is the dual of the geodesic Voronoi cells: an edge
where two cells touch, a triangle where three meet. The full mesh is recovered as fixed linear
combinations of nearby coarse vertices, fitted over posed samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

from kinemesh.bodies.topology import CoarseLevel
from kinemesh.errors import InputError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

NEIGHBOURS = 10
COARSE_NOISE_M = 2e-4
UNREACHABLE_M = 1e3


@dataclass(frozen=True)
class EdgeGraph:
    """Edge graph of a mesh with the edge lengths as weights; a scipy CSR matrix (V, V)."""

    matrix: object

    @classmethod
    def of_mesh(cls, vertices_V3: Array, faces_F3: Indices) -> "EdgeGraph":
        """Graph of all edges of ``faces_F3``; vertices without a face stay unconnected."""
        first, second = unique_edges(faces_F3).T
        length = np.linalg.norm(vertices_V3[first] - vertices_V3[second], axis=1)
        count = len(vertices_V3)
        upper = sparse.coo_matrix((length, (first, second)), shape=(count, count)).tocsr()
        return cls(upper + upper.T)

    def distances(self, sources: Sequence[int] | Indices, limit: float = np.inf) -> Array:
        """(S, V) shortest paths from each source, metres; infinite beyond ``limit``."""
        found: Array = csgraph.dijkstra(self.matrix, indices=sources, limit=limit)
        return found

    def nearest(self, sources: Indices) -> Indices:
        """(V,) position in ``sources`` of the nearest one; -1 where none can be reached."""
        *_, source = csgraph.dijkstra(
            self.matrix, indices=sources, min_only=True, return_predecessors=True
        )
        place = np.full(len(source) + 1, -1)
        place[sources] = np.arange(len(sources))
        reached: Indices = place[np.where(source < 0, len(source), source)]
        return reached


def unique_edges(faces_F3: Indices) -> Indices:
    """(E, 2) edges of triangles, each once, smaller index first, sorted."""
    pairs = np.concatenate([faces_F3[:, [0, 1]], faces_F3[:, [1, 2]], faces_F3[:, [2, 0]]])
    edges: Indices = np.unique(np.sort(pairs, axis=1), axis=0)
    return edges


def farthest_points(graph: EdgeGraph, count: int, start: int) -> Indices:
    """Choose ``count`` vertices by geodesic farthest-point sampling.

    Args:
        graph: The mesh's edge graph. Vertices that ``start`` cannot reach are never chosen.
        count: How many vertices.
        start: The first one. Ties go to the smaller index, so the result is reproducible.

    Raises:
        InputError: Fewer than ``count`` vertices can be reached.
    """
    distance = graph.distances([start])[0]
    reachable = np.isfinite(distance)
    if reachable.sum() < count:
        raise InputError(
            f"count: expected at most {reachable.sum()} vertices, the size of the component of "
            f"vertex {start}; found {count}. Ask for fewer"
        )
    distance[~reachable] = -1.0
    chosen = [start]
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        # A path longer than the present radius cannot lower any vertex's distance.
        nearby = graph.distances([chosen[-1]], limit=float(distance.max()))[0]
        distance = np.minimum(distance, nearby)
    return np.array(chosen, dtype=np.int64)


def dual_mesh(cell_V: Indices, faces_F3: Indices) -> tuple[Indices, Indices]:
    """Mesh whose vertices are the cells of a partition of a finer mesh.

    Args:
        cell_V: (V,) cell of each fine vertex; -1 for vertices outside the partition.
        faces_F3: (F, 3) fine triangles.

    Returns:
        Edges (E, 2) between cells that touch, smaller index first, and triangles (T, 3) where
        three cells meet, with the orientation of the fine triangle.
    """
    cells_F3 = cell_V[faces_F3]
    cells_F3 = cells_F3[(cells_F3 >= 0).all(1)]
    edges = unique_edges(cells_F3)
    edges = edges[edges[:, 0] != edges[:, 1]]
    ordered = np.sort(cells_F3, axis=1)
    corner = (np.diff(ordered, axis=1) > 0).all(1)
    _, first = np.unique(ordered[corner], axis=0, return_index=True)
    return edges, cells_F3[corner][np.sort(first)]


def nearest_coarse(
    graph: EdgeGraph, vertices_V3: Array, coarse_C: Indices, neighbours: int
) -> Indices:
    """(V, K) nearest coarse vertices of every vertex, by geodesic distance.

    Parts that no coarse vertex can reach (eyes, tongue) take the Euclidean distance.
    """
    geodesic_CV = graph.distances(coarse_C)
    straight_CV = np.linalg.norm(vertices_V3[coarse_C][:, None] - vertices_V3[None], axis=-1)
    distance_CV = np.where(np.isinf(geodesic_CV), UNREACHABLE_M + straight_CV, geodesic_CV)
    nearest: Indices = np.argsort(distance_CV, axis=0, kind="stable")[:neighbours].T
    return np.ascontiguousarray(nearest)


def fit_upsampling(
    samples_SV3: Tensor,
    coarse_C: Tensor,
    up_index_VK: Tensor,
    *,
    noise_m: float = COARSE_NOISE_M,
    chunk: int = 1024,
) -> Tensor:
    """Weights that rebuild all vertices from their nearest coarse ones, least squares.

    Minimises the squared error as it would be if every coarse coordinate carried independent noise,
    subject to weights that sum to one: large weights would amplify a network's imperfect output.
    Coarse vertices are kept as they are.

    Args:
        samples_SV3: (S, V, 3) posed meshes, metres.
        coarse_C: (C,) coarse vertices in the full mesh.
        up_index_VK: (V, K) the coarse vertices each vertex is made of.
        noise_m: Standard deviation of a coarse coordinate, metres.
        chunk: Vertices solved at a time.

    Returns:
        (V, K) float32.
    """
    own = torch.full((len(up_index_VK),), -1)
    own[coarse_C] = torch.arange(len(coarse_C))
    is_own_VK = up_index_VK == own[:, None]
    if int(is_own_VK.sum()) != len(coarse_C):
        raise InputError(
            "up_index_VK: expected each coarse vertex among its own neighbours; "
            "compute the neighbours from the same mesh"
        )
    weights = []
    for start in range(0, len(up_index_VK), chunk):
        rows = slice(start, start + chunk)
        near_SNK3 = samples_SV3[:, coarse_C[up_index_VK[rows]]]
        weights.append(_solve_weights(near_SNK3, samples_SV3[:, rows], noise_m))
    weight_VK = torch.cat(weights)
    exact_VK = is_own_VK.to(weight_VK.dtype)
    return torch.where(is_own_VK.any(1, keepdim=True), exact_VK, weight_VK).float()


def _solve_weights(near_SNK3: Tensor, target_SN3: Tensor, noise_m: float) -> Tensor:
    """Weights (N, K) of constrained least squares, by the Karush-Kuhn-Tucker equations."""
    near, target = near_SNK3.double(), target_SN3.double()
    # Weights sum to one, so any common origin may be taken; a near one keeps the digits.
    centre = near.mean(2, keepdim=True)
    near_SNK3, target_SN3 = near - centre, target - centre[:, :, 0]
    gram_NKK = torch.einsum("snkd,snld->nkl", near_SNK3, near_SNK3)
    count, size = gram_NKK.shape[:2]
    equations = 3 * len(near_SNK3)
    system = torch.zeros(count, size + 1, size + 1, dtype=torch.float64)
    system[:, :size, :size] = gram_NKK + equations * noise_m**2 * torch.eye(size)
    system[:, size, :size] = system[:, :size, size] = gram_NKK.diagonal(dim1=1, dim2=2).mean()
    right = torch.zeros(count, size + 1, dtype=torch.float64)
    right[:, :size] = torch.einsum("snkd,snd->nk", near_SNK3, target_SN3)
    right[:, size] = system[:, size, 0]
    solution: Tensor = torch.linalg.solve(system, right)
    return solution[:, :size]


def coarsen(
    template_V3: Tensor,
    faces_F3: Tensor,
    samples_SV3: Tensor,
    counts: Sequence[int],
    *,
    skin_faces_F: Tensor | None = None,
    neighbours: int = NEIGHBOURS,
    noise_m: float = COARSE_NOISE_M,
) -> tuple[CoarseLevel, ...]:
    """Build nested coarse levels of a mesh.

    Args:
        template_V3: (V, 3) rest vertices, metres, y down: sampling starts at the top of the head
            or, for a hand that hangs, at the wrist.
        faces_F3: (F, 3) int64.
        samples_SV3: (S, V, 3) posed meshes for the up-sampling fit, metres.
        counts: Numbers of coarse vertices, finest first.
        skin_faces_F: (F,) bool, the faces from whose vertices coarse ones are chosen; all by
            default. Other vertices are rebuilt from the nearest coarse ones.
        neighbours: K of the up-sampling.
        noise_m: Noise of the coarse vertices that the fit allows for, metres.

    Raises:
        InputError: ``counts`` do not fall, or exceed the vertices of the connected skin.
        MissingExtraError: scipy is not installed.
    """
    if sorted(counts, reverse=True) != list(counts) or not counts or counts[-1] < neighbours:
        raise InputError(
            f"counts: expected falling numbers of at least {neighbours}, found {list(counts)}"
        )
    vertices, faces = template_V3.double().numpy(), faces_F3.numpy()
    skin = faces if skin_faces_F is None else faces[skin_faces_F.numpy()]
    whole, skin_graph = EdgeGraph.of_mesh(vertices, faces), EdgeGraph.of_mesh(vertices, skin)
    on_skin = np.unique(skin)
    start = int(on_skin[vertices[on_skin, 1].argmin()])
    chosen = farthest_points(skin_graph, counts[0], start)
    return tuple(
        _fit_level(
            chosen[:count], vertices, skin, whole, skin_graph, samples_SV3, neighbours, noise_m
        )
        for count in counts
    )


def _fit_level(
    coarse: Indices,
    vertices: Array,
    skin: Indices,
    whole: EdgeGraph,
    skin_graph: EdgeGraph,
    samples_SV3: Tensor,
    neighbours: int,
    noise_m: float,
) -> CoarseLevel:
    """Dual mesh and up-sampling of chosen vertices."""
    edges, triangles = dual_mesh(skin_graph.nearest(coarse), skin)
    coarse_C = torch.from_numpy(coarse)
    up_index = torch.from_numpy(nearest_coarse(whole, vertices, coarse, neighbours))
    return CoarseLevel(
        vertex_index=coarse_C,
        edges=torch.from_numpy(edges),
        faces=torch.from_numpy(triangles),
        up_index=up_index,
        up_weight=fit_upsampling(samples_SV3, coarse_C, up_index, noise_m=noise_m),
    )


def upsampling_error(level: CoarseLevel, samples_SV3: Tensor) -> dict[str, float]:
    """Distance between meshes (S, V, 3) and their reconstruction: mean, p95 and max in mm.

    ``noise_gain`` is the root mean square over the vertices of the norm of their weights: by how
    much independent noise of the coarse vertices grows (below one: shrinks).
    """
    rebuilt = level.upsample(samples_SV3[:, level.vertex_index])
    error_mm = (rebuilt - samples_SV3).norm(dim=-1).flatten().numpy() * 1000
    return {
        "mean_mm": float(error_mm.mean()),
        "p95_mm": float(np.percentile(error_mm, 95)),
        "max_mm": float(error_mm.max()),
        "noise_gain": float(level.up_weight.square().sum(1).mean().sqrt()),
    }
