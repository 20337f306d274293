"""The rasteriser against its slow twin and against pictures known by hand."""

import numpy as np
import pytest
import torch
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from kinemesh.errors import InputError
from kinemesh.rendering import interpolate, project_points, rasterize, reference, vertex_normals
from kinemesh.rendering.rasterizer import rasterize_depth

EDGE = 1e-4  # a pixel centre this near to an edge (in barycentrics) may fall on either side
SIZE = (13, 17)


def soup(seed, count, *, spread=1.2, size=6.0):
    """Random separate triangles, some of them partly or wholly off the screen."""
    rng = np.random.default_rng(seed)
    centre = (rng.random((count, 1, 2)) - 0.5) * spread * np.array(SIZE[::-1]) + np.array(
        SIZE[::-1]
    ) / 2
    xy = centre + rng.normal(size=(count, 3, 2)) * size
    z = rng.uniform(0.5, 4, (count, 3, 1))
    points = np.concatenate([xy, z], -1).reshape(-1, 3).astype(np.float32)
    return points, np.arange(3 * count).reshape(-1, 3)


def is_near_edge(points, face, row, column):
    corners = points[face].astype(np.float64)
    weight = reference.screen_weights(corners, column + 0.5, row + 0.5)
    return np.abs(weight).min() < EDGE or np.abs(weight - 1).min() < EDGE


def assert_same(points, faces, *, cull=False, size=SIZE):
    fast = rasterize(torch.tensor(points)[None], torch.tensor(faces), *size, cull=cull)
    slow = reference.rasterize(points, faces, *size, cull=cull)
    face = fast.face[0].numpy()
    depth, weight = fast.depth[0].numpy(), fast.barycentric[0].numpy()
    for row, column in np.argwhere(face != slow.face):
        both = [f for f in (face[row, column], slow.face[row, column]) if f >= 0]
        tied = abs(depth[row, column] - slow.depth[row, column]) < 2e-6 * slow.depth[row, column]
        assert tied or any(is_near_edge(points, faces[f], row, column) for f in both), (row, column)
    same = face == slow.face
    hit = same & (face >= 0)
    np.testing.assert_allclose(depth[hit], slow.depth[hit], rtol=1e-5)
    np.testing.assert_allclose(weight[hit], slow.barycentric[hit], atol=1e-4)
    assert np.isinf(depth[face < 0]).all()
    assert (weight[face < 0] == 0).all()
    return fast


@pytest.mark.parametrize("cull", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_random_triangles_equal_the_slow_twin(seed, cull):
    points, faces = soup(seed, 25)
    fragments = assert_same(points, faces, cull=cull)
    assert fragments.mask.float().mean() > 0.3


@pytest.mark.parametrize("size", [0.02, 0.4, 60.0, 2000.0])
def test_tiny_and_huge_triangles_equal_the_slow_twin(size):
    assert_same(*soup(7, 30, size=size))


coordinate = st.one_of(
    st.floats(-30, 50, width=32),
    st.integers(-2, 20).map(float),
    st.integers(-2, 20).map(lambda k: k + 0.5),
)
depth_m = st.one_of(st.floats(0.25, 8, width=32), st.sampled_from([-1.0, 0.0, 0.01, 1.0]))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(coordinate, coordinate, depth_m), min_size=3, max_size=12))
def test_any_triangles_equal_the_slow_twin(points):
    points = np.array(points[: len(points) // 3 * 3], dtype=np.float32)
    assert_same(points, np.arange(len(points)).reshape(-1, 3), size=(6, 9))


def test_large_triangles_are_cut_into_tiles_without_loss():
    points = np.array([[-40, -30, 1], [150, 10, 2], [20, 130, 3]], dtype=np.float32)
    fragments = assert_same(points, np.array([[0, 1, 2]]), size=(70, 90))
    assert fragments.mask.sum() > 2000


def test_degenerate_behind_and_non_finite_faces_are_left_out():
    good = [[0, 0, 1], [0, 9, 1], [9, 0, 1]]
    bad = [
        [[1, 1, 1], [4, 4, 1], [8, 8, 1]],  # a line
        [[0, 0, 0.01], [0, 9, 1], [9, 0, 1]],  # touches the near plane
        [[0, 0, -1], [0, 9, -1], [9, 0, -1]],
        [[np.nan, 0, 0.5], [0, 9, 0.5], [9, 0, 0.5]],
        [[0, 0, 0.5], [0, np.inf, 0.5], [9, 0, 0.5]],
        [[0, 0, 0.5], [0, 9, np.nan], [9, 0, 0.5]],
        [[0, 0, 0.5], [0, 9, np.inf], [9, 0, 0.5]],
    ]
    points = torch.tensor([*bad, good], dtype=torch.float32).view(1, -1, 3)
    faces = torch.arange(points.shape[1]).view(-1, 3)
    fragments = rasterize(points, faces, 8, 8)
    assert set(fragments.face.unique().tolist()) == {-1, len(bad)}


def test_nothing_to_draw_gives_an_empty_picture():
    fragments = rasterize(torch.zeros(2, 3, 3), torch.tensor([[0, 1, 2]]), 4, 5)
    assert not fragments.mask.any()
    assert fragments.barycentric.shape == (2, 4, 5, 3)
    fragments = rasterize(torch.zeros(1, 0, 3), torch.zeros(0, 3, dtype=torch.int64), 4, 5)
    assert fragments.depth.isinf().all()


def test_equal_depth_goes_to_the_lower_face():
    points = torch.tensor([[0, 0, 2.0], [0, 9, 2], [9, 0, 2]]).repeat(3, 1)[None]
    faces = torch.tensor([[3, 4, 5], [0, 1, 2], [6, 7, 8]])
    face = rasterize(points, faces, 6, 6).face
    assert set(face.unique().tolist()) == {-1, 0}


def test_depth_order_is_right_to_a_few_millionths():
    points = torch.tensor([[0, 0, 2.0], [0, 9, 2], [9, 0, 2]]).repeat(2, 1)[None]
    points[0, :3, 2] *= 1 + 3e-6
    face = rasterize(points, torch.arange(6).view(2, 3), 6, 6).face
    assert set(face.unique().tolist()) == {-1, 1}


def test_a_grid_of_triangles_has_no_cracks():
    rng = np.random.default_rng(0)
    side = 24
    xy = np.stack(np.meshgrid(np.linspace(-3, 43, side), np.linspace(-3, 43, side)), -1)
    xy[1:-1, 1:-1] += rng.uniform(-0.6, 0.6, (side - 2, side - 2, 2))
    points = np.concatenate([xy, rng.uniform(1, 1.5, (side, side, 1))], -1).reshape(1, -1, 3)
    k = np.arange(side * side).reshape(side, side)
    a, b, c, d = (t.ravel() for t in (k[:-1, :-1], k[:-1, 1:], k[1:, :-1], k[1:, 1:]))
    faces = np.concatenate([np.stack([a, c, b], -1), np.stack([b, c, d], -1)])
    fragments = rasterize(torch.tensor(points).float(), torch.tensor(faces), 40, 40, cull=True)
    assert fragments.mask.all()


def sphere(subdivisions=3):
    mesh = trimesh.creation.icosphere(subdivisions=subdivisions)
    return torch.tensor(mesh.vertices).float(), torch.tensor(mesh.faces)


def test_a_sphere_has_its_depth_and_normals():
    vertices, faces = sphere(4)
    focal, principal = torch.tensor([100.0]), torch.tensor([[32.0, 30.0]])
    placed = vertices[None] + torch.tensor([0.0, 0.0, 4.0])
    points = project_points(placed, focal, principal)
    fragments = rasterize(points, faces, 60, 64, cull=True)
    whole = rasterize(points, faces, 60, 64)
    # Without culling only pixels at the silhouette may differ, where a back face can be hit alone.
    assert (fragments.face != whole.face).sum() < 10
    place = interpolate(fragments, faces, placed)[0]
    normal = interpolate(fragments, faces, vertex_normals(placed, faces))[0]
    row, column = fragments.mask[0].nonzero(as_tuple=True)
    place, normal = place[row, column], normal[row, column]
    reprojected = project_points(place[None], focal, principal)[0, :, :2]
    torch.testing.assert_close(reprojected, torch.stack([column, row], 1) + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(place[:, 2], fragments.depth[0, row, column])
    expected = place - torch.tensor([0.0, 0.0, 4.0])
    assert (expected.norm(dim=1) - 1).abs().max() < 0.004  # the facets of a subdivided icosahedron
    assert (torch.nn.functional.normalize(normal, dim=1) - expected).norm(dim=1).max() < 0.03
    assert (normal * place).sum(1).max() < 0.05  # outward normals face the viewer


def test_depth_alone_equals_the_depth_of_the_fragments():
    vertices, faces = sphere()
    points = vertices[None] * torch.tensor([9.0, 9.0, 1.0]) + torch.tensor([12.0, 12.0, 2.0])
    for orthographic in (False, True):
        depth = rasterize_depth(points, faces, 24, 24, orthographic=orthographic)
        expected = rasterize(points, faces, 24, 24, orthographic=orthographic).depth
        torch.testing.assert_close(depth, expected, rtol=1e-5, atol=0)


def test_orthographic_depth_is_linear_on_the_screen():
    points = torch.tensor([[[0.0, 0, 1], [0, 16, 1], [16, 0, 3]]])
    fragments = rasterize(points, torch.tensor([[0, 1, 2]]), 8, 8, orthographic=True)
    expected = 1 + 2 * (torch.arange(8) + 0.5) / 16
    torch.testing.assert_close(fragments.depth[0, 0], expected)


def test_an_image_does_not_depend_on_its_batch():
    vertices, faces = sphere()
    offsets = torch.tensor([[0, 0, 4.0], [0.4, 0.1, 3], [0, 0, 0.5], [-0.3, 0, 9]])
    placed = vertices[None] + offsets[:, None]
    focal, principal = torch.full((4,), 40.0), torch.full((4, 2), 16.0)
    points = project_points(placed, focal, principal)
    together = rasterize(points, faces, 32, 32)
    normals = vertex_normals(placed, faces)
    for k in range(4):
        alone = rasterize(points[k : k + 1], faces, 32, 32)
        assert torch.equal(alone.face[0], together.face[k])
        assert torch.equal(alone.depth[0], together.depth[k])
        assert torch.equal(alone.barycentric[0], together.barycentric[k])
        assert torch.equal(vertex_normals(placed[k : k + 1], faces)[0], normals[k])


def test_vertex_normals_equal_a_loop():
    vertices, faces = sphere(1)
    vertices = torch.stack([vertices, vertices * torch.tensor([1.0, 2.0, 0.5])])
    expected = np.zeros(vertices.shape)
    for image in range(2):
        for a, b, c in faces.tolist():
            p = vertices[image].double().numpy()
            normal = np.cross(p[b] - p[a], p[c] - p[a])
            for corner in (a, b, c):
                expected[image, corner] += normal
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(vertex_normals(vertices, faces).numpy(), expected, atol=1e-5)
    lonely = torch.cat([vertices, torch.zeros(2, 1, 3)], 1)
    assert (vertex_normals(lonely, faces)[:, -1] == 0).all()


def test_interpolation_passes_gradients_to_attributes():
    points = torch.tensor([[[0.0, 0, 1], [0, 9, 2], [9, 0, 3]]])
    faces = torch.tensor([[0, 1, 2]])
    fragments = rasterize(points, faces, 8, 8)
    attributes = torch.rand(1, 3, 2, requires_grad=True)
    interpolate(fragments, faces, attributes).sum().backward()
    expected = fragments.barycentric.sum((0, 1, 2))
    torch.testing.assert_close(attributes.grad[0, :, 0], expected)


@pytest.mark.parametrize(
    ("points", "faces", "size", "word"),
    [
        (torch.zeros(4, 3), torch.zeros(1, 3, dtype=torch.int64), 8, "points_px"),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3), 8, "faces"),
        (torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.int64), 8, "faces"),
        (torch.zeros(1, 4, 3), torch.zeros(1, 3, dtype=torch.int64), 0, "height"),
    ],
)
def test_bad_input_is_refused(points, faces, size, word):
    with pytest.raises(InputError, match=word):
        rasterize(points, faces, size, size)
