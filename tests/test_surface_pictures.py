"""Depth, normals and masks are those of a known ball, pixel for pixel."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
import trimesh

from kinemesh.errors import InputError
from kinemesh.formats.surface_pictures import (
    FLAT_NORMAL,
    Surface,
    encode_depth,
    encode_mask,
    encode_nearness,
    encode_normals,
    see_surface,
)
from kinemesh.inference.person import Person, PhotoCamera
from tests.fake_predictor import fake_people

WIDTH, HEIGHT, FOCAL = 90, 70, 100.0
RADIUS = 0.5


def ball(x: float = 0.0, y: float = 0.0, z: float = 3.0) -> Person:
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=RADIUS)
    return replace(
        fake_people("body")[0],
        vertices=np.add(mesh.vertices, (x, y, z)).astype(np.float32),
        faces=np.asarray(mesh.faces, np.int64),
        camera=PhotoCamera(FOCAL, (WIDTH / 2, HEIGHT / 2), (WIDTH, HEIGHT)),
    )


@cache
def rays() -> np.ndarray:
    """(H, W, 3) directions through the pixel centres, z = 1."""
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    flat = np.stack([x - WIDTH / 2, y - HEIGHT / 2], -1) / FOCAL
    return np.dstack([flat, np.ones((HEIGHT, WIDTH))])


def true_depth(centre: tuple[float, float, float]) -> np.ndarray:
    """Where each ray meets the ball first, infinite where it does not."""
    along, square = rays() @ centre, (rays() ** 2).sum(-1)
    root = along**2 - square * (np.dot(centre, centre) - RADIUS**2)
    return np.where(root > 0, (along - np.sqrt(np.maximum(root, 0))) / square, np.inf)


def decode(content: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    return picture[:, :, ::-1] if picture.ndim == 3 else picture


def inside(depth: np.ndarray) -> np.ndarray:
    """Pixels that are not at the outline, where the ball's triangles are seen edge-on."""
    return cv2.erode(np.isfinite(depth).astype(np.uint8), np.ones((7, 7))) > 0


def test_depth_is_in_millimetres() -> None:
    centre = (0.2, -0.1, 3.0)
    found = decode(encode_depth(see_surface([ball(*centre)])))
    expected = true_depth(centre)
    assert (found.dtype, found.shape) == (np.uint16, (HEIGHT, WIDTH))
    middle = inside(expected)
    assert middle.sum() > 500
    np.testing.assert_allclose(found[middle], expected[middle] * 1000, atol=4)
    assert found[0, 0] == 0


def test_normals_have_the_colours_of_controlnet() -> None:
    centre = (0.0, 0.0, 3.0)
    found = decode(encode_normals(see_surface([ball(*centre)])))
    depth = true_depth(centre)
    normals = (rays() * np.where(np.isfinite(depth), depth, 0)[..., None] - centre) / RADIUS
    expected = (1 - normals) * 127.5  # left, up and to the viewer are the negated camera axes
    middle = inside(depth)
    np.testing.assert_allclose(found[middle], expected[middle], atol=4)
    left, right = found[HEIGHT // 2, WIDTH // 2 - 12], found[HEIGHT // 2, WIDTH // 2 + 12]
    top, bottom = found[HEIGHT // 2 - 12, WIDTH // 2], found[HEIGHT // 2 + 12, WIDTH // 2]
    assert left[0] > right[0] + 100  # red is left
    assert top[1] > bottom[1] + 100  # green is up
    assert found[HEIGHT // 2, WIDTH // 2, 2] > 250  # blue faces the viewer
    assert tuple(found[0, 0]) == FLAT_NORMAL


def test_mask_is_where_the_ball_is() -> None:
    centre = (0.3, 0.1, 2.5)
    found = decode(encode_mask(see_surface([ball(*centre)])))
    assert set(np.unique(found)) == {0, 255}
    assert ((found == 255) != np.isfinite(true_depth(centre))).mean() < 0.01


def test_nearness_is_white_near_and_black_where_nothing_is() -> None:
    near, far = ball(-0.4, 0, 2.0), ball(0.9, 0, 4.0)
    surface = see_surface([near, far])
    grey = decode(encode_nearness(surface))
    assert (grey.dtype, grey.max()) == (np.uint8, 255)
    assert grey[grey > 0].min() == 51
    depth = surface.in_photo(surface.depth_m, np.inf)
    hit = np.isfinite(depth)
    inverse = 1 / depth[hit]
    share = (inverse - inverse.min()) / np.ptp(inverse)
    np.testing.assert_allclose(grey[hit], 51 + 204 * share, atol=0.6)
    assert not grey[~hit].any()


def test_the_nearest_person_is_in_front_and_each_alone_is_whole() -> None:
    near, far = ball(-0.1, 0, 2.0), ball(0.1, 0, 3.5)
    together, behind = (decode(encode_depth(see_surface(p))) for p in ([near, far], [far]))
    in_front = decode(encode_depth(see_surface([near])))
    both = (in_front > 0) & (behind > 0)
    assert both.sum() > 100
    np.testing.assert_array_equal(together[both], in_front[both])
    only = (behind > 0) & (in_front == 0)
    np.testing.assert_array_equal(together[only], behind[only])


@pytest.mark.parametrize("place", [(9, 0, 3), (0, 0, -3), (0, 0, 0.2), (-1.3, 0.9, 3)])
def test_outside_behind_and_around_the_camera(place: tuple[float, float, float]) -> None:
    surface = see_surface([ball(*place)])
    depth = decode(encode_depth(surface))
    assert depth.shape == (HEIGHT, WIDTH)
    if place[2] < 0 or place[0] == 9:
        assert not depth.any()
        assert set(np.unique(decode(encode_nearness(surface)))) == {0}


def test_far_away_is_the_largest_depth() -> None:
    surface = Surface((2, 1), (0, 0, 2, 1), np.array([[70.0, 1.0]]), np.zeros((1, 2, 3)))
    assert decode(encode_depth(surface)).tolist() == [[65535, 1000]]


def test_people_without_a_mesh() -> None:
    person = replace(ball(), vertices=np.zeros((0, 3), np.float32))
    with pytest.raises(InputError, match="network without one"):
        see_surface([person])
