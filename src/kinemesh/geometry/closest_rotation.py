"""The rotation closest to a 3x3 matrix, for very many matrices at once.

A library's singular value decomposition handles one small matrix after the other. Here each step
of the one-sided Jacobi method (Hestenes 1958) works on the whole batch, a dozen arithmetic
operations on long arrays, with a fixed number of sweeps, so that nothing waits for the device.
One-sided Jacobi is as accurate as any method: its singular vectors are good to rounding even where
singular values are tiny (Demmel and Veselic 1992).

Legend: B batch; a *planar* array has the batch as its last axis.
"""

import torch
from torch import Tensor

SWEEPS = {torch.float32: 4, torch.float64: 5}
"""Convergence is quadratic; one sweep more than the worst of a million hostile matrices needed."""
PAIRS = ((0, 1), (0, 2), (1, 2))


def closest_rotation(matrix_B33: Tensor, reflection: bool = False) -> Tensor:
    """Rotation R that maximises ``tr(R^T M)``, and so minimises ``|R - M|``.

    With M = U S V^T it is U diag(1, 1, det(U V^T)) V^T. Where several rotations are equally good
    (M of rank below two, or mirrored with two equal small singular values) it is one of them.

    The gradient is that of the optimality condition ``R^T M`` symmetric, which needs no difference
    of singular values: it is finite where they repeat, and zero where the rotation is not unique.

    Args:
        matrix_B33: (B, 3, 3), float32 or float64. NaN gives NaN in that matrix alone.
        reflection: Whether R may have determinant -1 where that is closer: R is then U V^T.

    Returns:
        (B, 3, 3), orthogonal up to rounding.
    """
    with torch.no_grad():
        planar_33B = matrix_B33.detach().permute(1, 2, 0)
        sign_B = torch.ones_like(planar_33B[0, 0])
        if reflection:
            # -1 turns a matrix of negative determinant into one whose closest rotation is proper
            mirrored_B = (_cross(planar_33B[0], planar_33B[1]) * planar_33B[2]).sum(dim=0) < 0
            sign_B = torch.where(mirrored_B, -1.0, sign_B)
        rotation_33B = sign_B * _solve(sign_B * planar_33B)
        rotation_B33 = rotation_33B.permute(2, 0, 1)
    if torch.is_grad_enabled() and matrix_B33.requires_grad:
        return rotation_B33 + _first_order(rotation_B33, matrix_B33)
    return rotation_B33


def _solve(matrix_33B: Tensor) -> Tensor:
    """Proper rotations, planar."""
    size_B = matrix_33B.abs().amax(dim=(0, 1))
    eye_331 = torch.eye(3, dtype=size_B.dtype, device=size_B.device)[..., None]
    eye_33B = eye_331.expand_as(matrix_33B)
    # squares of numbers near one neither overflow nor vanish
    scaled_33B = torch.where(size_B == 0, eye_33B, matrix_33B / size_B)
    # column k of M above column k of V, so that both turn in one operation
    columns = [torch.cat((scaled_33B[:, k], eye_33B[:, k])) for k in range(3)]
    for _ in range(SWEEPS[size_B.dtype]):
        for p, q in PAIRS:
            columns[p], columns[q] = _turn(columns[p], columns[q])
    first_6B, second_6B = _two_longest(columns)
    left, right = (_frame(first_6B[half], second_6B[half]) for half in (slice(3), slice(3, 6)))
    outer = [u[:, None] * v[None] for u, v in zip(left, right, strict=True)]
    return outer[0] + outer[1] + outer[2]


def _turn(p_6B: Tensor, q_6B: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate two columns in their plane so that their upper halves become orthogonal."""
    upper_p, upper_q = p_6B[:3], q_6B[:3]
    difference_B = upper_q.square().sum(dim=0) - upper_p.square().sum(dim=0)
    twice_B = 2 * (upper_p * upper_q).sum(dim=0)
    root_B = (difference_B.square() + twice_B.square()).sqrt()
    divisor_B = difference_B + torch.copysign(root_B, difference_B)
    tangent_B = twice_B / torch.where(divisor_B == 0, 1.0, divisor_B)
    cosine_B = (1 + tangent_B.square()).rsqrt()
    sine_B = cosine_B * tangent_B
    return cosine_B * p_6B - sine_B * q_6B, sine_B * p_6B + cosine_B * q_6B


def _two_longest(columns: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The two columns with the longest upper halves, the longest first."""
    lengths = [column[:3].square().sum(dim=0) for column in columns]

    def put_longer_first(i: int, j: int) -> None:
        swap_B = lengths[i] < lengths[j]
        for values in (columns, lengths):
            first, second = values[i], values[j]
            values[i] = torch.where(swap_B, second, first)
            values[j] = torch.where(swap_B, first, second)

    for i, j in ((1, 2), (0, 1), (1, 2)):
        put_longer_first(i, j)
    return columns[0], columns[1]


def _frame(first_3B: Tensor, second_3B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Right-handed orthonormal frame whose first axes follow two nearly orthogonal vectors.

    The third axis is their cross product, which makes the rotation proper without a determinant.
    A vanishing second vector is replaced by any orthogonal one.
    """
    x_3B = _unit(first_3B)
    y_3B = _unit(second_3B)
    y_3B = y_3B - x_3B * (x_3B * y_3B).sum(dim=0)
    lost_B = y_3B.square().sum(dim=0) < 0.25
    y_3B = torch.where(lost_B, _perpendicular(x_3B), _unit(y_3B))
    return x_3B, y_3B, _cross(x_3B, y_3B)


def _perpendicular(unit_3B: Tensor) -> Tensor:
    """A unit vector at a right angle to each unit vector, without a branch (Duff et al. 2017)."""
    x_B, y_B, z_B = unit_3B.unbind()
    sign_B = torch.copysign(torch.ones_like(z_B), z_B)
    a_B = -1 / (sign_B + z_B)
    return torch.stack((1 + sign_B * x_B.square() * a_B, sign_B * x_B * y_B * a_B, -sign_B * x_B))


def _unit(vector_3B: Tensor) -> Tensor:
    length_B = vector_3B.square().sum(dim=0).sqrt()
    return vector_3B / torch.where(length_B == 0, 1.0, length_B)


def _cross(a_3B: Tensor, b_3B: Tensor) -> Tensor:
    product_3B: Tensor = torch.linalg.cross(a_3B, b_3B, dim=0)
    return product_3B


def _first_order(rotation_B33: Tensor, matrix_B33: Tensor) -> Tensor:
    """Zero, with the derivative of the rotation by the matrix.

    A change dM turns R by R [w], where (tr(P) I - P) w = vee(A - A^T) with A = R^T M and its
    symmetric part P. Only the right side is differentiated: at the solution it is zero.
    """
    a_B33 = rotation_B33.mT @ matrix_B33
    skew_B3 = torch.stack(
        (
            a_B33[:, 2, 1] - a_B33[:, 1, 2],
            a_B33[:, 0, 2] - a_B33[:, 2, 0],
            a_B33[:, 1, 0] - a_B33[:, 0, 1],
        ),
        dim=1,
    )
    fixed_B33 = a_B33.detach()
    trace_B = fixed_B33.diagonal(dim1=1, dim2=2).sum(dim=1)
    eye_33 = torch.eye(3, dtype=trace_B.dtype, device=trace_B.device)
    system_B33 = trace_B[:, None, None] * eye_33 - (fixed_B33 + fixed_B33.mT) / 2
    turn_B3 = (_inverse(system_B33) @ skew_B3[..., None])[..., 0]
    turn_B3 = turn_B3 - turn_B3.detach()
    x, y, z = turn_B3.unbind(dim=1)
    zero = torch.zeros_like(x)
    rows = (zero, -z, y, z, zero, -x, -y, x, zero)
    return rotation_B33 @ torch.stack(rows, dim=1).view(-1, 3, 3)


def _inverse(system_B33: Tensor) -> Tensor:
    """Inverse of symmetric matrices by cofactors; zero where one is singular up to rounding."""
    a, b, c = system_B33.unbind(dim=1)
    cofactors_B33 = torch.stack(
        (torch.linalg.cross(b, c), torch.linalg.cross(c, a), torch.linalg.cross(a, b)), dim=1
    )
    determinant_B = (a * cofactors_B33[:, 0]).sum(dim=1)
    size_B = system_B33.diagonal(dim1=1, dim2=2).sum(dim=1).abs()
    regular_B = determinant_B.abs() > 8 * torch.finfo(a.dtype).eps * size_B**3
    inverse_B33 = cofactors_B33 / torch.where(regular_B, determinant_B, 1.0)[:, None, None]
    return torch.where(regular_B[:, None, None], inverse_B33, 0.0)
