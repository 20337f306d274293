"""The batched Jacobi method against a singular value decomposition in double precision."""

import math

import pytest
import torch

from kinemesh.geometry.closest_rotation import closest_rotation

COUNT = 300
SINGULAR_VALUES = [
    (1, 1, 1),
    (1, 0.5, 0.5),
    (1, 1, 0.3),
    (1, 1 - 1e-7, 1e-7),
    (1, 1, 0),  # planar points
    (1, 0.4, 0),
    (1, 0, 0),  # collinear points
    (1, 1e-12, 0),
    (1, 1e-3, 1e-3),
    (1, 1e-3, 5e-4),
    (1, 1e-6, 1e-9),
    (1e-18, 1e-19, 1e-20),
    (1e18, 1e17, 1e3),
]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _orthogonal(count: int = COUNT) -> torch.Tensor:
    """Proper and mirrored ones."""
    return torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64))[0]


def _matrices(values: tuple[float, float, float]) -> torch.Tensor:
    return _orthogonal() * torch.tensor(values, dtype=torch.float64) @ _orthogonal()


def _best(matrix: torch.Tensor, reflection: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The rotation by a decomposition, and the value of ``tr(R^T M)`` that no other exceeds."""
    u, s, vh = torch.linalg.svd(matrix)
    signs = torch.ones_like(s)
    if not reflection:
        signs[:, 2] = torch.det(u @ vh).sign()
    return u * signs[:, None] @ vh, (s * signs).sum(dim=1)


def _loss(rotation: torch.Tensor, matrix: torch.Tensor, reflection: bool) -> float:
    """How far from the best, relative to the size of the matrix."""
    _, best = _best(matrix, reflection)
    reached = (rotation.double() * matrix).sum(dim=(1, 2))
    return ((best - reached) / torch.linalg.matrix_norm(matrix)).max().item()


@pytest.mark.parametrize("reflection", [False, True])
@pytest.mark.parametrize("values", SINGULAR_VALUES)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-6), (torch.float64, 4e-15)])
def test_as_good_as_any_rotation(values, reflection, dtype, limit):
    matrix = _matrices(values).to(dtype)
    rotation = closest_rotation(matrix, reflection)
    eye = torch.eye(3, dtype=torch.float64)
    assert (rotation.double() @ rotation.double().mT - eye).abs().max() < 4 * limit
    determinant = torch.det(rotation.double())
    assert (determinant.abs() - 1).abs().max() < 4 * limit
    assert reflection or determinant.min() > 0
    assert _loss(rotation, matrix.double(), reflection) < limit


def test_float32_is_better_than_the_decomposition():
    matrix = torch.randn(4000, 3, 3)
    exact, _ = _best(matrix.double(), reflection=False)
    decomposed, _ = _best(matrix, reflection=False)
    mine, theirs = (
        (found.double() - exact).abs().amax(dim=(1, 2)).median().item()
        for found in (closest_rotation(matrix), decomposed)
    )
    assert mine < theirs


@pytest.mark.parametrize("reflection", [False, True])
def test_unique_rotations_are_the_decomposition_s(reflection):
    matrix = _matrices((1.0, 0.6, 0.3))
    expected, _ = _best(matrix, reflection)
    torch.testing.assert_close(closest_rotation(matrix, reflection), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "matrix",
    [torch.zeros(3, 3), torch.eye(3), torch.diag(torch.tensor([2.0, 2.0, 0.0]))],
    ids=["zero", "eye", "planar"],
)
def test_exact_cases(matrix):
    assert torch.equal(closest_rotation(matrix[None])[0], torch.eye(3))


def test_rank_one_of_every_axis():
    """The branch-free perpendicular has its pole at -z."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    matrix = (axes[:, None, :, None] * axes[None, :, None, :]).reshape(-1, 3, 3)
    rotation = closest_rotation(matrix)
    torch.testing.assert_close((rotation * matrix).sum(dim=(1, 2)), torch.ones(36))
    torch.testing.assert_close(torch.det(rotation), torch.ones(36))


def test_nan_stays_in_its_matrix():
    matrix = torch.randn(3, 3, 3)
    clean = closest_rotation(matrix)
    matrix[1, 2, 0] = math.nan
    found = closest_rotation(matrix)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert found[1].isnan().any()


@pytest.mark.parametrize("reflection", [False, True])
def test_gradient(reflection):
    matrix = _matrices((1.0, 0.6, 0.3))[:4].requires_grad_()
    assert torch.autograd.gradcheck(lambda m: closest_rotation(m, reflection), (matrix,))


def test_gradient_where_singular_values_repeat():
    """A decomposition divides by their difference; the rotation itself is smooth there."""
    matrix = (_orthogonal(4) * torch.tensor([1.0, 0.5, 0.5]).double() @ _orthogonal(4)).detach()
    proper = matrix * torch.det(matrix).sign()[:, None, None]
    assert torch.autograd.gradcheck(closest_rotation, (proper.requires_grad_(),))


def test_gradient_is_zero_where_nothing_is_unique():
    matrix = torch.zeros(1, 3, 3)
    matrix[0, 0, 0] = 1.0
    matrix.requires_grad_()
    closest_rotation(matrix)[0, 1, 2].backward()
    assert torch.equal(matrix.grad, torch.zeros(1, 3, 3))


def test_value_does_not_depend_on_the_gradient():
    matrix = torch.randn(50, 3, 3)
    wanted = closest_rotation(matrix)
    assert torch.equal(closest_rotation(matrix.requires_grad_()).detach(), wanted)
