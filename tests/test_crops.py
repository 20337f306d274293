import math

import cv2
import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.geometry.crops import (
    box_to_square,
    crop_matrix,
    from_signed,
    invert_affine,
    to_cv2,
    to_signed,
    transform_points,
    warp_crop,
)

GENERATOR = np.random.default_rng(0)


def _matrix(center, side, resolution, rotation=0.0):
    return crop_matrix(torch.tensor([center]), torch.tensor([side]), resolution, rotation)[0]


def test_corners_land_on_corners():
    matrix = _matrix([50.0, 80.0], 40.0, 224)
    points = torch.tensor([[50.0, 80.0], [30.0, 60.0], [70.0, 100.0]])
    expected = torch.tensor([[112.0, 112.0], [0.0, 0.0], [224.0, 224.0]])
    torch.testing.assert_close(transform_points(matrix, points), expected, atol=1e-4, rtol=0)


def test_positive_rotation_is_clockwise_on_screen():
    matrix = _matrix([0.0, 0.0], 2.0, 2, math.pi / 2)
    right = transform_points(matrix, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(right, torch.tensor([[1.0, 2.0]]), atol=1e-6, rtol=0)  # now below


def test_equals_metro_matrix():
    """M0 of the published pre-processing, turned by minus the angle about the crop's centre."""
    cx, cy, side, angle = 100.5, 130.2, 260.0, 25.5
    base = np.diag([224 / side, 224 / side, 1.0])
    base[:2, 2] = 224 * (0.5 - np.array([cx, cy]) / side)
    a = np.radians(-angle)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    middle = np.array([[1, 0, -112], [0, 1, -112], [0, 0, 1.0]])
    metro = np.linalg.inv(middle) @ turn @ middle @ base
    ours = _matrix([cx, cy], side, 224, -math.radians(angle))
    np.testing.assert_allclose(ours.numpy(), metro[:2], atol=1e-4)


def test_round_trip():
    center = torch.tensor([[3000.0, 2000.0], [-20.0, 7.5], [640.0, 360.0]])
    side = torch.tensor([900.0, 33.0, 5000.0])
    matrix = crop_matrix(center, side, 224, torch.tensor([0.3, -2.0, 1.0]))
    points = center[:, None] + side[:, None, None] * (torch.rand(3, 50, 2) - 0.5)
    # float32 pixels near 3000 are 2.4e-4 apart, so the bound of 1e-4 is asked of float64
    exact = crop_matrix(center.double(), side.double(), 224, torch.tensor([0.3, -2.0, 1.0]))
    back = transform_points(invert_affine(exact), transform_points(exact, points.double()))
    assert (back - points).abs().max() < 1e-8
    back = transform_points(invert_affine(matrix), transform_points(matrix, points))
    assert (back - points).abs().max() < 2e-3
    small = transform_points(invert_affine(matrix[1:2]), transform_points(matrix[1:2], points[1:2]))
    assert (small - points[1:2]).abs().max() < 1e-4


def test_signed_round_trip():
    points = torch.rand(4, 2) * 224
    torch.testing.assert_close(from_signed(to_signed(points, 224), 224), points)
    assert to_signed(torch.tensor([0.0, 112.0, 224.0]), 224).tolist() == [-1, 0, 1]


def test_box_to_square():
    center, side = box_to_square(torch.tensor([[10.0, 20.0, 30.0, 50.0]]), margin=1.2)
    assert center.tolist() == [[25, 45]]
    assert side.tolist() == pytest.approx([60])


def _slow_crop(image, matrix, resolution):
    """Bilinear sampling, pixel by pixel, centres at half integers, zero outside."""
    inverse = invert_affine(matrix.double()).numpy()
    out = np.zeros((resolution, resolution, image.shape[2]))
    height, width = image.shape[:2]
    for row in range(resolution):
        for column in range(resolution):
            x, y = inverse[:, :2] @ [column + 0.5, row + 0.5] + inverse[:, 2] - 0.5
            x0, y0 = math.floor(x), math.floor(y)
            for i, j in ((0, 0), (1, 0), (0, 1), (1, 1)):
                if 0 <= x0 + i < width and 0 <= y0 + j < height:
                    weight = abs(1 - i - (x - x0)) * abs(1 - j - (y - y0))
                    out[row, column] += weight * image[y0 + j, x0 + i]
    return out


@pytest.mark.parametrize(
    ("center", "side", "rotation"),
    [([20.0, 15.0], 24.0, 0.0), ([3.0, 2.0], 40.0, 0.7), ([20.3, 14.9], 9.0, -2.0)],
)
def test_warp_equals_slow_twin(center, side, rotation):
    image = GENERATOR.random((30, 40, 3), dtype=np.float32)
    matrix = _matrix(center, side, 32, rotation)
    # OpenCV rounds sampling positions to 1/32 pixel
    np.testing.assert_allclose(
        warp_crop(image, matrix, 32), _slow_crop(image, matrix, 32), atol=0.04
    )


def test_whole_image_crop_is_the_image():
    image = GENERATOR.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(warp_crop(image, _matrix([16.0, 16.0], 32.0, 32), 32), image)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_shrinking_averages(factor):
    """A whole-image crop that shrinks by an integer is the mean of the blocks."""
    side = 16 * factor
    image = GENERATOR.random((side, side), dtype=np.float32)
    blocks = image.reshape(16, factor, 16, factor).mean(axis=(1, 3))
    shrunk = warp_crop(image, _matrix([side / 2, side / 2], float(side), 16), 16)
    np.testing.assert_allclose(shrunk, blocks, atol=1e-5)


def test_shrinking_does_not_alias():
    board = np.indices((401, 401)).sum(axis=0) % 2 * 1.0
    crop = warp_crop(board.astype(np.float32), _matrix([200.0, 200.0], 300.0, 32, 0.4), 32)
    assert np.abs(crop - 0.5).max() < 0.1


def test_ramp_keeps_its_place_when_shrunk():
    """Grey equal to x + 0.5 shows where each crop pixel was read."""
    ramp = np.broadcast_to(np.arange(600, dtype=np.float32) + 0.5, (500, 600)).copy()
    for side in (77.0, 190.0, 333.0):
        matrix = _matrix([301.3, 250.0], side, 32, 0.3)
        inverse = invert_affine(matrix)
        centers = torch.stack(torch.meshgrid(*[torch.arange(32) + 0.5] * 2, indexing="xy"), -1)
        expected = transform_points(inverse, centers.reshape(-1, 2))[:, 0].reshape(32, 32)
        crop = warp_crop(ramp, matrix, 32)
        assert np.abs(crop - expected.numpy()).max() < 0.02 * side / 32 + 0.02


def test_outside_and_borders():
    image = np.full((10, 10, 3), 200, np.uint8)
    far = _matrix([1e6, -1e6], 50.0, 8)
    assert not warp_crop(image, far, 8).any()
    assert (warp_crop(image, far, 8, border="replicate") == 200).all()
    assert (warp_crop(image, far, 8, border_value=9) == 9).all()
    assert warp_crop(image[..., 0], far, 8).shape == (8, 8)
    assert warp_crop(image[..., :1], far, 8).shape == (8, 8, 1)


def test_wide_images_beyond_opencv_limits():
    image = np.zeros((4, 40000), np.uint8)
    image[:, 39000:] = 100
    assert warp_crop(image, _matrix([39500.0, 2.0], 4.0, 4), 4).min() == 100


def test_to_cv2_moves_pixel_centres():
    matrix = _matrix([20.0, 15.0], 24.0, 32, 0.5).double().numpy()
    pixel = np.array([7.0, 9.0])
    moved = cv2.transform(pixel[None, None], to_cv2(matrix))[0, 0] + 0.5
    np.testing.assert_allclose(moved, matrix[:, :2] @ (pixel + 0.5) + matrix[:, 2])


def test_refuses_bad_input():
    one = torch.ones(1)
    with pytest.raises(InputError, match="center_px"):
        crop_matrix(torch.zeros(2), one, 8)
    with pytest.raises(InputError, match="positive"):
        crop_matrix(torch.zeros(1, 2), -one, 8)
    with pytest.raises(InputError, match="finite"):
        crop_matrix(torch.full((1, 2), math.nan), one, 8)
    with pytest.raises(InputError, match="singular"):
        invert_affine(torch.zeros(1, 2, 3))
    with pytest.raises(InputError, match=r"\(\.\.\., 2, 3\)"):
        transform_points(torch.eye(3), torch.zeros(1, 2))
    with pytest.raises(InputError, match="image"):
        warp_crop(np.zeros((0, 4), np.uint8), torch.eye(3)[:2], 8)
    with pytest.raises(InputError, match="boxes_px"):
        box_to_square(torch.zeros(4))
