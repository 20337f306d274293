"""Aria's camera model and the pin-hole view made of it."""

import numpy as np
import pytest

from kinemesh.errors import InputError
from kinemesh.geometry.fisheye import Fisheye624, PinholeView, Undistortion
from tests.ego_exo4d_release import VIDEO


def slow_pixel(parameters, ray):
    """The model's equations for one ray, written out."""
    f, cx, cy, *k, p0, p1, s0, s1, s2, s3 = parameters
    a, b = ray[0] / ray[2], ray[1] / ray[2]
    r = (a * a + b * b) ** 0.5
    theta = np.arctan(r)
    bent = theta * (1 + sum(value * theta ** (2 * i + 2) for i, value in enumerate(k)))
    u, v = (a * bent / r, b * bent / r) if r else (a, b)
    q, m = u * u + v * v, p0 * u + p1 * v
    x = u + 2 * u * m + p0 * q + s0 * q + s1 * q**2
    y = v + 2 * v * m + p1 * q + s2 * q + s3 * q**2
    return f * x + cx, f * y + cy


def test_rays_project_as_the_equations_say():
    rays = np.random.default_rng(0).normal(size=(40, 3)) + np.array([0, 0, 3])
    rays[0] = 0, 0, 2
    expected = [slow_pixel(VIDEO, ray) for ray in rays]
    np.testing.assert_allclose(Fisheye624(np.array(VIDEO)).project(rays), expected, rtol=1e-12)


def test_the_view_is_the_bilinear_picture_where_the_camera_sees_it():
    camera = Fisheye624(np.array([20.0, 23.7, 24.2, *VIDEO[3:]]))
    view = PinholeView(size=24, focal_px=9.0, center_px=11.5)
    undistortion = Undistortion(camera, (48, 50), view, max_angle_rad=0.8)
    picture = np.random.default_rng(1).integers(0, 256, (50, 48, 3)).astype(np.uint8)
    made = undistortion.apply(picture)
    assert 0 < undistortion.valid.sum() < 24 * 24
    for row in range(24):
        for column in range(24):
            ray = np.array([(column - 11.5) / 9, (row - 11.5) / 9, 1.0])
            x, y = slow_pixel(camera.parameters, ray)
            seen = np.arctan(np.hypot(*ray[:2])) <= 0.8 and 0 <= x <= 47 and 0 <= y <= 49
            assert undistortion.valid[row, column] == seen
            if not seen:
                assert (made[row, column] == 0).all()
                continue
            j, i = int(x), int(y)
            u, v = x - j, y - i
            corners = picture[i : i + 2, j : j + 2].astype(float)
            exact = (1 - v) * ((1 - u) * corners[0, 0] + u * corners[0, 1])
            exact += v * ((1 - u) * corners[1, 0] + u * corners[1, 1])
            np.testing.assert_allclose(made[row, column], np.floor(exact + 1e-4), atol=0)


def test_an_even_picture_stays_even():
    undistortion = Undistortion(Fisheye624(np.array(VIDEO)))
    made = undistortion.apply(np.full((1408, 1408, 1), 201, np.uint8))
    assert set(np.unique(made)) == {0, 201}
    assert ((made[..., 0] > 0) == undistortion.valid).all()


def test_a_picture_that_ends_at_the_last_pixel_is_sampled_there():
    flat = Fisheye624(np.array([10.0, 7.0, 7.0, *[0.0] * 12]))
    view = PinholeView(size=3, focal_px=10 / np.tan(0.4) * 0.4, center_px=1.0)
    picture = np.arange(8 * 8, dtype=np.uint8).reshape(8, 8, 1)
    undistortion = Undistortion(flat, (8, 8), view)
    assert undistortion.valid[1, 1]
    assert undistortion.apply(picture)[1, 1, 0] == 63


@pytest.mark.parametrize("parameters", [[1.0] * 14, [np.nan] * 15, [0.0] * 15])
def test_wrong_parameters_are_refused(parameters):
    with pytest.raises(InputError, match="15 finite numbers"):
        Fisheye624(np.array(parameters))


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(InputError, match="1408 x 1408"):
        Undistortion(Fisheye624(np.array(VIDEO))).apply(np.zeros((704, 704, 3), np.uint8))
