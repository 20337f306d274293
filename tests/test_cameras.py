import math

import numpy as np
import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_to_rotation_6d,
    quaternion_to_matrix,
    rotation_6d_to_matrix,
)
from kinemesh.geometry.cameras import (
    PerspectiveCamera,
    WeakPerspective,
    default_focal_px,
    focal_from_35mm,
    focal_from_fov,
    fov_from_focal,
    perspective_to_weak,
    ray_rotation,
    solve_translation,
    weak_to_perspective,
)
from kinemesh.geometry.crops import crop_matrix, transform_points
from tests.tolerances import TOL

CAMERA = PerspectiveCamera.with_square_pixels((640, 480), 700.0)
OBLONG = PerspectiveCamera(torch.tensor([700.0, 650.0]), torch.tensor([300.0, 250.0]), (640, 480))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _points(batch=4, joints=17, depth=4.0):
    return torch.randn(batch, joints, 3) * 0.4 + torch.tensor([0.2, -0.1, depth])


def test_project_equals_matrix():
    points = _points()
    homogeneous = points @ OBLONG.matrix.T
    expected = homogeneous[..., :2] / homogeneous[..., 2:]
    torch.testing.assert_close(OBLONG.project(points), expected, rtol=1e-5, atol=1e-3)


def test_project_known_values():
    pixel = CAMERA.project(torch.tensor([[0.0, 0.0, 5.0], [1.0, -1.0, 2.0]]))
    assert pixel.tolist() == [[320, 240], [670, -110]]


def test_unproject_round_trip():
    points = _points()
    back = OBLONG.unproject(OBLONG.project(points), points[..., 2])
    torch.testing.assert_close(back, points, rtol=1e-5, atol=1e-5)


def test_batched_cameras():
    camera = PerspectiveCamera.with_square_pixels((640, 480), torch.tensor([500.0, 700.0, 900.0]))
    points = _points(batch=3)
    assert camera.matrix.shape == (3, 3, 3)
    torch.testing.assert_close(camera.project(points)[1], CAMERA.project(points[1]))


def test_behind_the_camera_is_finite():
    points = torch.tensor([[0.1, 0.1, -1.0], [0.1, 0.1, 0.0]], requires_grad=True)
    pixel = CAMERA.project(points)
    pixel.sum().backward()
    assert pixel.isfinite().all()
    assert points.grad.isfinite().all()


def test_focal_lengths():
    assert default_focal_px((300, 400)) == 500
    assert focal_from_35mm(math.hypot(36, 24), (300, 400)) == pytest.approx(500)
    assert focal_from_fov(math.pi / 2, 200) == pytest.approx(100)
    assert fov_from_focal(focal_from_fov(0.7, 640), 640) == pytest.approx(0.7)
    assert math.degrees(fov_from_focal(500, 500)) == pytest.approx(53.13, abs=0.01)
    with pytest.raises(InputError, match="fov_rad"):
        focal_from_fov(math.pi, 100)


def test_camera_refuses_bad_input():
    with pytest.raises(InputError, match="with_square_pixels"):
        PerspectiveCamera(torch.tensor(5.0), torch.zeros(2), (4, 4))
    with pytest.raises(InputError, match="positive"):
        PerspectiveCamera.with_square_pixels((4, 4), -1.0)


def test_weak_projection_shifts_before_scaling():
    weak = WeakPerspective.from_vector(torch.tensor([[2.0, 0.1, -0.2]]))
    signed = weak.project(torch.tensor([[[0.3, 0.4, 9.0]]]))
    torch.testing.assert_close(signed, torch.tensor([[[0.8, 0.4]]]))
    torch.testing.assert_close(
        weak.project_px(torch.tensor([[[0.3, 0.4, 9.0]]]), 224), (signed + 1) * 112
    )
    assert torch.equal(weak.to_vector(), torch.tensor([[2.0, 0.1, -0.2]]))


def _crops():
    center = torch.tensor([[100.0, 80.0], [400.0, 300.0], [630.0, 10.0]])
    side = torch.tensor([120.0, 300.0, 64.0])
    weak = WeakPerspective(
        torch.tensor([0.9, 1.1, 0.5]), torch.tensor([[0.1, -0.2], [0.0, 0.0], [0.3, 0.1]])
    )
    return weak, center, side


@pytest.mark.parametrize("camera", [CAMERA, OBLONG])
def test_weak_perspective_round_trip(camera):
    weak, center, side = _crops()
    there = weak_to_perspective(weak, center, side, camera)
    back = perspective_to_weak(there, center, side, camera)
    torch.testing.assert_close(back.to_vector(), weak.to_vector(), **TOL[torch.float32])


def test_weak_and_full_camera_agree_in_the_plane_of_the_root():
    weak, center, side = _crops()
    points = torch.randn(3, 20, 3) * 0.5
    points[..., 2] = 0
    translation = weak_to_perspective(weak, center, side, CAMERA)
    full = CAMERA.project(points + translation[:, None])
    in_crop = transform_points(crop_matrix(center, side, 224), full)
    torch.testing.assert_close(in_crop, weak.project_px(points, 224), rtol=1e-4, atol=1e-2)


def test_weak_approximation_shrinks_with_distance():
    """The stated error: a point at depth z moves by the factor 1 / (1 + z / depth)."""
    weak, center, side = _crops()
    translation = weak_to_perspective(weak, center, side, CAMERA)
    point = torch.tensor([[[0.2, 0.3, 0.4]]]).expand(3, 1, 3)
    full = CAMERA.project(point + translation[:, None])
    flat = CAMERA.project(point * torch.tensor([1.0, 1.0, 0.0]) + translation[:, None])
    factor = 1 / (1 + 0.4 / translation[:, 2])
    expected = (flat - CAMERA.principal_px) * factor[:, None, None] + CAMERA.principal_px
    torch.testing.assert_close(full, expected, rtol=1e-4, atol=1e-3)


def test_vanishing_scale_stays_finite():
    weak = WeakPerspective(torch.tensor([0.0, -3.0]), torch.zeros(2, 2))
    translation = weak_to_perspective(weak, torch.zeros(2, 2), torch.ones(2), CAMERA)
    assert translation.isfinite().all()
    assert (translation[:, 2] > 0).all()


def test_ray_rotation():
    pixel = torch.rand(6, 2) * torch.tensor([640.0, 480.0])
    rotation = ray_rotation(pixel, OBLONG)
    eye = torch.eye(3).expand(6, 3, 3)
    torch.testing.assert_close(rotation @ rotation.mT, eye, **TOL[torch.float32])
    torch.testing.assert_close(torch.det(rotation), torch.ones(6), **TOL[torch.float32])
    ray = OBLONG.unproject(pixel[:, None], torch.ones(6, 1))[:, 0]
    ray = ray / ray.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(rotation[..., 2], ray, **TOL[torch.float32])
    # shortest: the angle of the rotation is the angle between z and the ray
    angle = matrix_to_axis_angle(rotation).norm(dim=-1)
    torch.testing.assert_close(angle.cos(), ray[:, 2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ray_rotation(OBLONG.principal_px, OBLONG), torch.eye(3))


@pytest.mark.parametrize("camera", [CAMERA, OBLONG])
def test_solve_translation_is_exact_without_noise(camera):
    joints = torch.randn(5, 21, 3) * 0.1
    truth = torch.tensor([0.3, -0.5, 2.0]) + torch.rand(5, 3)
    pixels = camera.project(joints + truth[:, None])
    torch.testing.assert_close(
        solve_translation(joints, pixels, camera), truth, rtol=1e-4, atol=1e-4
    )


def test_solve_translation_equals_slow_twin():
    joints, weights = torch.randn(3, 8, 3) * 0.3, torch.rand(3, 8)
    pixels = CAMERA.project(joints + torch.tensor([0.0, 0.0, 3.0])) + torch.randn(3, 8, 2)
    found = solve_translation(joints, pixels, CAMERA, weights)
    for sample in range(3):
        rows, right = [], []
        for (x, y, z), (u, v), w in zip(
            joints[sample].tolist(), pixels[sample].tolist(), weights[sample].tolist(), strict=True
        ):
            a, b = (u - 320) / 700, (v - 240) / 700
            rows += [[w**0.5, 0, -a * w**0.5], [0, w**0.5, -b * w**0.5]]
            right += [(a * z - x) * w**0.5, (b * z - y) * w**0.5]
        expected = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
        np.testing.assert_allclose(found[sample].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_solve_translation_ignores_weightless_joints_and_refuses_too_few():
    joints, truth = torch.randn(1, 6, 3) * 0.2, torch.tensor([[0.1, 0.2, 3.0]])
    pixels = CAMERA.project(joints + truth[:, None])
    pixels[0, 4], pixels[0, 5] = math.nan, 1e4
    weights = torch.tensor([[1.0, 1, 1, 1, 0, 0]])
    found = solve_translation(joints, pixels, CAMERA, weights)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="sample 0"):
        solve_translation(joints, pixels, CAMERA, torch.tensor([[1.0, 0, 0, 0, 0, 0]]))
    with pytest.raises(InputError, match="two different pixels"):
        solve_translation(joints, pixels, CAMERA, torch.zeros(1, 6))


def _slow_rodrigues(vector):
    angle = np.linalg.norm(vector)
    if angle == 0:
        return np.eye(3)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 0.00999, 0.01001, 0.5, 2.0, 3.0, math.pi - 1e-4, math.pi]


@pytest.mark.parametrize("angle", ANGLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotations_round_trip(angle, dtype):
    axis = torch.nn.functional.normalize(torch.randn(20, 3, dtype=dtype), dim=-1)
    axis[:3] = torch.eye(3, dtype=dtype)
    vector = axis * angle
    matrix = axis_angle_to_matrix(vector)
    expected = np.stack([_slow_rodrigues(v) for v in vector.double().numpy()])
    np.testing.assert_allclose(
        matrix.numpy(), expected, atol=2e-6 if dtype == torch.float32 else 1e-11
    )
    for back in (
        axis_angle_to_matrix(matrix_to_axis_angle(matrix)),
        quaternion_to_matrix(matrix_to_quaternion(matrix)),
        rotation_6d_to_matrix(matrix_to_rotation_6d(matrix)),
    ):
        torch.testing.assert_close(back, matrix, **TOL[dtype])
    if angle < 3.1:
        torch.testing.assert_close(matrix_to_axis_angle(matrix), vector, **TOL[dtype])


def test_rotation_gradients():
    vectors = torch.tensor([[0.0, 0.0, 0.0], [1e-5, 0, 0], [0.3, -1.0, 2.0]], dtype=torch.float64)
    vectors.requires_grad_()
    assert torch.autograd.gradcheck(axis_angle_to_matrix, (vectors,), atol=1e-6)
    matrix_to_axis_angle(axis_angle_to_matrix(vectors)).sum().backward()
    torch.testing.assert_close(vectors.grad, torch.ones_like(vectors), rtol=1e-6, atol=1e-6)
    raw = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_6d_to_matrix, (raw,))


def test_rotation_6d_is_the_first_two_columns_and_orthonormalises():
    matrix = rotation_6d_to_matrix(torch.randn(10, 6))
    eye = torch.eye(3).expand(10, 3, 3)
    torch.testing.assert_close(matrix.mT @ matrix, eye, **TOL[torch.float32])
    torch.testing.assert_close(torch.det(matrix), torch.ones(10), **TOL[torch.float32])
    flat = matrix_to_rotation_6d(matrix)
    assert torch.equal(flat[:, :3], matrix[:, :, 0])
    assert torch.equal(flat[:, 3:], matrix[:, :, 1])
