"""The least-squares problem of a fit and how it is minimised (Marquardt 1963).

Legend of shapes: B batch, M vertices of the fit, J joints, N bones, K shape coefficients, P
parameters, D = 3 (M + J) coordinates, x of all vertices and joints first.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinemesh.bodies.fit_system import FitSystem, State
from kinemesh.bodies.posable import PosableBody
from kinemesh.geometry.rotations import matrix_to_axis_angle

MOST_TRIALS = 40
SPREAD_RAD = {
    "pelvis": 0.1,
    "toe": 0.2,
    "eye": 0.2,
    "metacarpal": 0.15,
    "spine": 0.25,
    "neck": 0.25,
}
OTHER_SPREAD_RAD = 0.4
"""Root mean square of a bone's angle, as the prior has it, by what its name contains."""
INDEPENDENT = 200
"""Errors of a mesh are smooth: its vertices say as much as this number of independent ones."""
LEAST_NOISE_M = 5e-5
"""Settles what no vertex determines, such as a turn of the pelvis against all that hangs on it."""
START_NOISE_M = 0.01
"""Of a pose in closed form; keeps the first shape plausible."""
LEAST_DAMPING, FIRST_DAMPING, MOST_DAMPING, LEAST_FACTOR = 1e-6, 1e-4, 1e4, 0.1
"""Relative to the diagonal of the equations."""
MOST_GROWTH = 100.0
"""Factor of the damping after six steps that were refused one after the other; then it ends."""
ENOUGH = 5e-3
"""A step that lowers the energy by less than this share is the last, or the second such."""
LEAST_LEFT = 0.1
"""Least share of the misfit that counts as noise."""
SETTLED_M = 2e-5
"""So is one after which the distances are this small, root mean square of a coordinate."""


@dataclass(frozen=True)
class Equations:
    """Linear equations ``matrix x = side`` of B bodies, float64.

    Attributes:
        matrix: (B, P, P), symmetric and not negative.
        side: (B, P).
        prior: (B,) float32 weight of the prior in them.
    """

    matrix: Tensor
    side: Tensor
    prior: Tensor

    def __getitem__(self, rows: Tensor) -> "Equations":
        return Equations(self.matrix[rows], self.side[rows], self.prior[rows])

    def with_prior(self, prior_B: Tensor, prior_PP: Tensor, pull_BP: Tensor) -> "Equations":
        """The same with a prior of some weight, from its matrix and half its gradient."""
        matrix_BPP = self.matrix + prior_B[:, None, None] * prior_PP
        return Equations(matrix_BPP, self.side - prior_B[:, None] * pull_BP, prior_B)

    def put(self, rows: Tensor, other: "Equations") -> None:
        """Write other equations into some rows."""
        for name, value in vars(other).items():
            getattr(self, name)[rows] = value

    def solve(self, damping_B: Tensor) -> tuple[Tensor, Tensor]:
        """Damped solution (B, P), float32, and (B,) by how much it should lower the energy.

        All parameters are brought to one scale first.
        """
        scale_BP = self.matrix.diagonal(dim1=1, dim2=2).clamp(min=1e-20).rsqrt()
        scaled_BPP = self.matrix * scale_BP[:, :, None] * scale_BP[:, None]
        side_BP = scale_BP * self.side
        scaled_BPP.diagonal(dim1=1, dim2=2).add_(damping_B[:, None])
        factor_BPP, _ = torch.linalg.cholesky_ex(scaled_BPP)
        solution_BP = torch.cholesky_solve(side_BP[..., None], factor_BPP)[..., 0]
        gain_B = (solution_BP * (side_BP + damping_B[:, None] * solution_BP)).sum(1)
        return (scale_BP * solution_BP).float(), gain_B.clamp(min=1e-30)


@dataclass(frozen=True)
class Problem:
    """What B bodies should meet.

    Attributes:
        system: The body's equations.
        regressor: (J, M) joints from the vertices of the fit.
        target: (B, D) coordinates to meet, metres.
        weight: (B, D) weights of their squared distances.
        stiffness: (N,) of `stiffness`.
        free_shape: Whether the shape is fitted, and not kept.
    """

    system: FitSystem
    regressor: Tensor
    target: Tensor
    weight: Tensor
    stiffness: Tensor
    free_shape: bool

    def __getitem__(self, rows: Tensor) -> "Problem":
        return replace(self, target=self.target[rows], weight=self.weight[rows])

    def misfit(self, state: State) -> Tensor:
        """(B,) weighted sum of the squared distances."""
        values_B3M = self.system.vertices(state).mT
        distance_BD = self._with_joints(values_B3M).flatten(1) - self.target
        return (self.weight * distance_BD.square()).sum(1)

    def prior_weight(self, misfit_B: Tensor) -> Tensor:
        """(B,) factor of the prior: the noise that a misfit shows, in the misfit's unit."""
        least_B = LEAST_NOISE_M**2 * self.weight.sum(1)
        return torch.maximum(misfit_B, least_B) / (3 * INDEPENDENT)

    def prior(self, state: State) -> Tensor:
        """(B,) energy of pose and shape under the prior."""
        angle_BN3 = matrix_to_axis_angle(state.rotations)
        pose_B = angle_BN3.square().sum(2) @ self.stiffness
        return pose_B + state.shape.square().sum(1) * self.free_shape

    def equations(self, state: State, misfit_B: Tensor) -> "Equations":
        """Linear equations of the next step.

        The prior's weight follows the noise that is left when the step is taken, as the equations
        foresee it: what stands before it is mostly not noise.
        """
        matrix_BPP, side_BP = self._products(state, turns=True)
        prior_PP, pull_BP = self._prior_terms(state)
        least = Equations(matrix_BPP, side_BP, torch.zeros(len(side_BP)))
        least = least.with_prior(self.prior_weight(torch.zeros(len(side_BP))), prior_PP, pull_BP)
        _, gain_B = least.solve(torch.full((len(side_BP),), FIRST_DAMPING))
        left_B = torch.maximum(misfit_B - gain_B, LEAST_LEFT * misfit_B).float()
        raw = Equations(matrix_BPP, side_BP, torch.zeros(len(side_BP)))
        return raw.with_prior(self.prior_weight(left_B), prior_PP, pull_BP)

    def shaped(self, state: State) -> State:
        """The best place for bodies in this pose, and with a free shape the best shape too."""
        matrix_BPP, side_BP = self._products(state, turns=False)
        first = 3 * len(self.stiffness)
        matrix_BQQ, side_BQ = matrix_BPP[:, first:, first:], side_BP[:, first:]
        if self.free_shape:
            prior_B = START_NOISE_M**2 * self.weight.sum(1) / (3 * INDEPENDENT)
            matrix_BQQ.diagonal(dim1=1, dim2=2)[:, :-3] += prior_B[:, None]
            side_BQ[:, :-3] -= prior_B[:, None] * state.shape
        equations = Equations(matrix_BQQ, side_BQ, torch.zeros(len(side_BQ)))
        solution_BQ, _ = equations.solve(torch.full((len(side_BQ),), FIRST_DAMPING))
        shape_BK = state.shape + solution_BQ[:, :-3]
        return State(state.rotations, shape_BK, state.translation + solution_BQ[:, -3:])

    def _products(self, state: State, turns: bool) -> tuple[Tensor, Tensor]:
        """``J^T W J`` and ``J^T W (target - values)``, group by group; zero where nothing is free.

        Without ``turns`` those of the rotations are left at zero.
        """
        system, pose = self.system, self.system.pose(state)
        B, K = state.shape.shape
        M, first = len(system.body.template), 3 * len(self.stiffness)
        size = first + K + 3
        weight_B3D = self.weight.view(B, 3, -1)
        apart_B3D = self.target.view(B, 3, -1) - self._with_joints(pose.vertices.mT)
        matrix_BPP = torch.zeros(B, size, size, dtype=torch.float64)
        side_BP = torch.zeros(B, size, dtype=torch.float64)
        joints_BP3J = torch.zeros(B, size, 3, len(self.regressor))
        for group in system.groups:
            rows_Bp3m = system.rows(pose, group, turns=turns)
            index = group.parameters if turns else group.parameters[-(K + 3) :]
            if not self.free_shape:
                rows_Bp3m[:, -(K + 3) : -3] = 0
            matrix_Bpp, side_Bp = _product(
                rows_Bp3m, weight_B3D[..., group.vertices], apart_B3D[..., group.vertices]
            )
            matrix_BPP[:, index[:, None], index] += matrix_Bpp
            side_BP[:, index] += side_Bp
            regressor_Jm = self.regressor[:, group.vertices]
            if regressor_Jm.any():
                joints_BP3J[:, index] += rows_Bp3m @ regressor_Jm.T
        if len(self.regressor):
            of_joints = _product(joints_BP3J, weight_B3D[..., M:], apart_B3D[..., M:])
            matrix_BPP, side_BP = matrix_BPP + of_joints[0], side_BP + of_joints[1]
        return matrix_BPP, side_BP

    def _with_joints(self, coordinates_B3M: Tensor) -> Tensor:
        """(B, 3, M) coordinates of the vertices to (B, 3, M + J), with those of the joints."""
        return torch.cat([coordinates_B3M, coordinates_B3M @ self.regressor.T], -1)

    def _prior_terms(self, state: State) -> tuple[Tensor, Tensor]:
        """Matrix (P, P) and gradient (B, P) of half the prior's energy."""
        B, N = state.rotations.shape[:2]
        turned_BN33, _ = self.system.body.kinematics(state.rotations, torch.zeros(B, N, 3))
        # log R is along the axis of R, so a turn about the frame's axes changes it by G^T w
        angle_BN3 = (turned_BN33 @ matrix_to_axis_angle(state.rotations)[..., None])[..., 0]
        stiff_NN = self.stiffness[:, None] * self.system.local_NN
        free = float(self.free_shape)
        pull_BP = [(stiff_NN.T @ angle_BN3).flatten(1), state.shape * free, torch.zeros(B, 3)]
        turns_QQ = torch.kron(self.system.local_NN.T @ stiff_NN, torch.eye(3))
        shapes_KK = free * torch.eye(state.shape.shape[1])
        return _diagonal(turns_QQ, shapes_KK, torch.zeros(3, 3)), torch.cat(pull_BP, 1)


def _diagonal(*blocks: Tensor) -> Tensor:
    matrix: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return matrix


def _product(rows_BP3M: Tensor, weight_B3M: Tensor, apart_B3M: Tensor) -> tuple[Tensor, Tensor]:
    """``J^T W J`` and ``J^T W distance``, float64."""
    weighted_BPD = (rows_BP3M * weight_B3M[:, None]).flatten(2)
    matrix_BPP = weighted_BPD @ rows_BP3M.flatten(2).mT
    side_BP1 = weighted_BPD @ apart_B3M.flatten(1)[..., None]
    return matrix_BPP.double(), side_BP1[..., 0].double()


def stiffness(body: PosableBody) -> Tensor:
    """(N,) inverse squares of the angles that the prior expects; 0 for the first bone."""
    spread = [
        next((value for part, value in SPREAD_RAD.items() if part in bone), OTHER_SPREAD_RAD)
        for bone in body.bones
    ]
    return torch.tensor([0.0, *(value**-2 for value in spread[1:])])


def minimise(problem: Problem, state: State) -> tuple[State, Tensor]:
    """Take steps until they no longer help.

    Args:
        problem: What to meet.
        state: Where to start.

    Returns:
        The best state found, and (B,) int64, how often the derivatives of each body were computed.
    """
    count, shapes = state.shape.shape
    size = 3 * len(problem.stiffness) + shapes + 3
    equations = Equations(
        torch.zeros(count, size, size, dtype=torch.float64),
        torch.zeros(count, size, dtype=torch.float64),
        torch.zeros(count),
    )
    damping_B = torch.full((count,), FIRST_DAMPING, dtype=torch.float64)
    growth_B = torch.full((count,), 2.0, dtype=torch.float64)
    misfit_B = problem.misfit(state)
    steps_B, in_a_row_B = torch.zeros(2, count, dtype=torch.int64)
    rows = stale = torch.arange(count)
    for _ in range(MOST_TRIALS):
        if not len(rows):
            break
        if len(stale):  # after a step that was refused the equations are still the same
            equations.put(stale, problem[stale].equations(state[stale], misfit_B[stale]))
            steps_B[stale] += 1
        part, here, linear = problem[rows], state[rows], equations[rows]
        damping_b = damping_B[rows]
        change_bP, gain_b = linear.solve(damping_b)
        trial = problem.system.moved(here, change_bP)
        misfit_b = part.misfit(trial)
        before_b = misfit_B[rows] + linear.prior * part.prior(here)
        drop_b = before_b - misfit_b - linear.prior * part.prior(trial)
        better_b = drop_b > 0
        state = state.put(rows[better_b], trial[better_b])
        misfit_B[rows[better_b]] = misfit_b[better_b]
        _adapt(damping_B, growth_B, rows, drop_b / gain_b, better_b)
        is_little_b = better_b & (drop_b < ENOUGH * before_b)
        in_a_row_B[rows] = torch.where(is_little_b, in_a_row_B[rows] + 1, 0)
        # when it was damped a step may be little and the next one not
        little_b = is_little_b & ((in_a_row_B[rows] > 1) | (gain_b < ENOUGH * before_b / 2))
        little_b &= (in_a_row_B[rows] > 1) | (damping_b <= FIRST_DAMPING)
        stuck_b = growth_B[rows] > MOST_GROWTH
        settled_b = misfit_B[rows] < SETTLED_M**2 * part.weight.sum(1)
        wanted_b = ~(little_b | stuck_b | settled_b)
        rows, stale = rows[wanted_b], rows[wanted_b & better_b]
    return state, steps_B


def _adapt(
    damping_B: Tensor, growth_B: Tensor, rows: Tensor, trust_b: Tensor, better_b: Tensor
) -> None:
    """Damp less after a step that did what the linear model said, and more and more after failures.

    The rule is Nielsen's (Damping parameter in Marquardt's method, 1999).
    """
    factor_b = torch.where(
        better_b, (1 - (2 * trust_b.double() - 1) ** 3).clamp(LEAST_FACTOR, 2.0), growth_B[rows]
    )
    damping_B[rows] = (damping_B[rows] * factor_b).clamp(LEAST_DAMPING, MOST_DAMPING)
    growth_B[rows] = torch.where(better_b, 2.0, 2.0 * growth_B[rows])
