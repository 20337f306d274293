import numpy as np
import pytest
import torch
from trimesh import Trimesh
from trimesh.creation import icosphere

from kinemesh.bodies import load_rig, load_topology
from kinemesh.bodies.bake_poses import random_body_poses, random_hand_poses, rotation_matrices
from kinemesh.bodies.coarsening import (
    EdgeGraph,
    coarsen,
    dual_mesh,
    farthest_points,
    fit_upsampling,
    nearest_coarse,
    unique_edges,
    upsampling_error,
)
from kinemesh.errors import InputError

pytest.importorskip("scipy")


@pytest.fixture(scope="module")
def sphere() -> Trimesh:
    return icosphere(subdivisions=3, radius=0.1)


@pytest.fixture(scope="module")
def graph(sphere: Trimesh) -> EdgeGraph:
    return EdgeGraph.of_mesh(np.asarray(sphere.vertices), np.asarray(sphere.faces))


def all_distances(mesh: Trimesh) -> np.ndarray:
    """Slow twin of the geodesics: Floyd and Warshall on the edge lengths."""
    distance = np.full((len(mesh.vertices),) * 2, np.inf)
    np.fill_diagonal(distance, 0)
    for (i, j), length in zip(mesh.edges_unique, mesh.edges_unique_length, strict=True):
        distance[i, j] = distance[j, i] = length
    for middle in range(len(distance)):
        distance = np.minimum(distance, distance[:, middle, None] + distance[middle])
    return distance


def test_edges_are_unique_and_sorted(sphere: Trimesh) -> None:
    edges = unique_edges(np.asarray(sphere.faces))
    expected = {tuple(sorted(edge)) for edge in sphere.edges.tolist()}
    assert len(edges) == len(expected)
    assert set(map(tuple, edges.tolist())) == expected


def test_farthest_points_equal_the_slow_twin() -> None:
    mesh = icosphere(subdivisions=2, radius=0.1)
    distance = all_distances(mesh)
    expected = [5]
    while len(expected) < 30:
        expected.append(int(distance[expected].min(0).argmax()))
    graph = EdgeGraph.of_mesh(np.asarray(mesh.vertices), np.asarray(mesh.faces))
    chosen = farthest_points(graph, 30, 5)
    # Symmetric meshes have ties, which rounding may break; the covering radius must agree.
    radius = [distance[list(points)].min(0).max() for points in (chosen, expected)]
    assert radius[0] == pytest.approx(radius[1], rel=0.15)
    assert len(set(chosen.tolist())) == 30


def test_farthest_points_are_nested_and_repeatable(graph: EdgeGraph) -> None:
    many = farthest_points(graph, 60, 3)
    assert np.array_equal(many[:20], farthest_points(graph, 20, 3))
    assert np.array_equal(many, farthest_points(graph, 60, 3))


def test_nearest_cells_equal_the_slow_twin(graph: EdgeGraph) -> None:
    chosen = farthest_points(graph, 40, 0)
    distance = graph.distances(chosen)
    cell = graph.nearest(chosen)
    own = distance[cell, np.arange(len(cell))]
    np.testing.assert_allclose(own, distance.min(0), atol=1e-12)
    assert np.array_equal(cell[chosen], np.arange(40))


def test_unreachable_parts_are_never_chosen(sphere: Trimesh) -> None:
    both = sphere + icosphere(subdivisions=2, radius=0.02)
    vertices, faces = np.asarray(both.vertices), np.asarray(both.faces)
    graph = EdgeGraph.of_mesh(vertices, faces)
    chosen = farthest_points(graph, 50, 0)
    assert chosen.max() < len(sphere.vertices)
    cell = graph.nearest(chosen)
    assert bool((cell[len(sphere.vertices) :] == -1).all())
    near = nearest_coarse(graph, vertices, chosen, 10)
    expected = np.linalg.norm(vertices[chosen] - vertices[-1], axis=1).argmin()
    assert near[-1, 0] == expected
    with pytest.raises(InputError, match="expected at most"):
        farthest_points(graph, len(vertices), 0)


def test_dual_of_a_sphere_is_a_closed_surface(sphere: Trimesh, graph: EdgeGraph) -> None:
    chosen = farthest_points(graph, 60, 0)
    edges, faces = dual_mesh(graph.nearest(chosen), np.asarray(sphere.faces))
    coarse = Trimesh(sphere.vertices[chosen], faces, process=False)
    assert coarse.is_watertight
    assert coarse.is_winding_consistent
    assert coarse.volume == pytest.approx(sphere.volume, rel=0.15)
    assert 60 - len(edges) + len(faces) == 2
    assert np.array_equal(edges, unique_edges(faces))


def test_weights_of_an_exact_combination_are_found() -> None:
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(size=(50, 10, 3)))
    truth = torch.from_numpy(rng.dirichlet(np.ones(10)))
    target = torch.einsum("scd,c->sd", coarse, truth)[:, None]
    samples = torch.cat([coarse, target], 1)
    index = torch.arange(10).expand(11, 10)
    weight = fit_upsampling(samples, torch.arange(10), index, noise_m=0.0)
    torch.testing.assert_close(weight[10], truth.float(), rtol=0, atol=1e-5)
    torch.testing.assert_close(weight[:10], torch.eye(10))


def test_fit_equals_lstsq_with_the_constraint_eliminated() -> None:
    """Slow twin: substitute the last weight and append the noise term as equations."""
    rng = np.random.default_rng(1)
    near, target, noise = rng.normal(size=(20, 4, 3)), rng.normal(size=(20, 3)), 0.3
    equations = near.transpose(0, 2, 1).reshape(-1, 4)
    free = np.concatenate([np.eye(3), -np.ones((1, 3))])
    fixed = np.array([0, 0, 0, 1.0])
    damping = noise * np.sqrt(len(equations)) * np.eye(4)
    system = np.concatenate([equations @ free, damping @ free])
    right = np.concatenate([target.reshape(-1) - equations @ fixed, -damping @ fixed])
    expected = fixed + free @ np.linalg.lstsq(system, right, rcond=None)[0]
    samples = torch.from_numpy(np.concatenate([near, target[:, None]], 1))
    index = torch.arange(4).expand(5, 4)
    weight = fit_upsampling(samples, torch.arange(4), index, noise_m=noise)
    np.testing.assert_allclose(weight[4].numpy(), expected, atol=1e-6)


def test_coarsen_a_sphere(sphere: Trimesh) -> None:
    template = torch.from_numpy(np.array(sphere.vertices)).float()
    faces = torch.from_numpy(np.array(sphere.faces))
    stretch = 1 + 0.3 * torch.rand(40, 1, 3, generator=torch.Generator().manual_seed(0))
    samples = template * stretch
    fine, coarse = coarsen(template, faces, samples, (120, 40))
    assert torch.equal(fine.vertex_index[:40], coarse.vertex_index)
    assert template[fine.vertex_index[0], 1] == template[:, 1].min()
    torch.testing.assert_close(fine.up_weight.sum(1), torch.ones(len(template)))
    errors = [upsampling_error(level, samples)["mean_mm"] for level in (fine, coarse)]
    assert max(errors) < 0.05  # ten neighbours span every linear map


@pytest.mark.parametrize("counts", [(), (40, 120), (5,)])
def test_bad_counts_are_refused(sphere: Trimesh, counts: tuple[int, ...]) -> None:
    template = torch.from_numpy(np.array(sphere.vertices)).float()
    faces = torch.from_numpy(np.array(sphere.faces))
    with pytest.raises(InputError, match="counts"):
        coarsen(template, faces, template[None], counts)


def test_foreign_neighbours_are_refused() -> None:
    samples = torch.randn(4, 12, 3)
    with pytest.raises(InputError, match="own"):
        fit_upsampling(samples, torch.arange(5), torch.ones(12, 3, dtype=torch.int64))


@pytest.mark.parametrize(("name", "limits_mm"), [("anny-body", (0.6, 1.3)), ("anny-hand", (0.2,))])
def test_shipped_levels_rebuild_unseen_poses(name: str, limits_mm: tuple[float, ...]) -> None:
    rig, topology = load_rig(name), load_topology(name)
    rng = np.random.default_rng(99)
    poses = random_body_poses if name == "anny-body" else random_hand_poses
    shapes = torch.stack([rig.sample_shape(rng) for _ in range(12)])
    vertices = rig.topology_vertices(rig.pose(poses(rig, 12, rng), shapes))
    for level, limit in zip(topology.levels, limits_mm, strict=True):
        assert upsampling_error(level, vertices)["mean_mm"] < limit


def test_rotation_matrices_are_rotations() -> None:
    rotvec = torch.tensor([[0.0, 0.0, np.pi / 2], [0.3, -0.2, 0.9]])
    rotation = rotation_matrices(rotvec.float())
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    torch.testing.assert_close(rotation[0], quarter, atol=1e-6, rtol=0)
    torch.testing.assert_close(rotation[1] @ rotation[1].T, torch.eye(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(rotation[1] @ rotvec[1].float(), rotvec[1].float())
