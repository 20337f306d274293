"""Pose and shape from vertices: a batched least-squares fit of a body model to meshes.

The energy is ``sum |x_v - y_v|^2 + m (sum |log R_i|^2 / a^2 + sum shape_k^2)``: the distances, and
a prior that keeps bones near the rest pose and shapes near the mean. Its weight m follows the
noise: as for the most probable parameters it is in proportion to the squared distances that remain,
so that it vanishes on meshes that the body can reach and holds back fingers and toes on rough ones.
The energy is minimised by the method of Levenberg and Marquardt with exact derivatives (`minimise`,
`FitSystem`), on vertices of every bone (`select_vertices`), from a start in closed form or from the
parameters of the frame before.

Legend of shapes: B batch, V vertices of the mesh, M vertices of the fit, N bones, K shape
coefficients, J joints, P parameters, D coordinates of the vertices and joints of the fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from kinemesh.bodies.fit_selection import select_vertices
from kinemesh.bodies.fit_solver import Problem, minimise, stiffness
from kinemesh.bodies.fit_start import bone_weights, closest_rotations, turned_toward
from kinemesh.bodies.fit_system import FitSystem, State
from kinemesh.bodies.parameters import BodyParameters, Side, mirror_signs
from kinemesh.bodies.posable import PosableBody
from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError

CHUNK = 8
"""Bodies solved at once; the derivatives of one take about 6 MB."""
TURNS = 3
"""Rounds before the first step: bones turn by themselves, then shape and place are solved for."""
JOINT_SHARE = 0.2
"""Weight of all joints together, over that of all vertices."""


@dataclass(frozen=True)
class Fit:
    """What a fit found: parameters of each body, and the steps that each of them took."""

    parameters: list[BodyParameters]
    steps: list[int]


def fit_bodies(
    body: PosableBody,
    vertices_BV3: Tensor,
    joints_BJ3: Tensor | None = None,
    weights: Tensor | None = None,
    start: Sequence[BodyParameters | None] | None = None,
    shape: Tensor | None = None,
    *,
    sides: Sequence[Side | None] | None = None,
    topology: Topology | None = None,
) -> list[BodyParameters]:
    """Find pose and shape of meshes.

    Args:
        body: The body of all of them.
        vertices_BV3: (B, V, 3) meshes of its topology, camera frame, metres.
        joints_BJ3: (B, J, 3) joints of ``topology``, camera frame, metres, where a network finds
            them beside the mesh and they too should be met; together they count a fifth of the
            vertices.
        weights: (V,) or (B, V) weights of the vertices, not negative; equal if None.
        start: For each mesh the parameters of the frame before, or None for a start in closed form.
        shape: (K,) or (B, K) coefficients to keep; fitted if None.
        sides: For each mesh "left" or "right" for a hand; None for a body. Left hands are fitted as
            right ones in a mirror.
        topology: What the joints are regressed by; needed with them.

    Returns:
        Parameters of each mesh. ``residual_mm`` is the mean distance of all vertices, without
        weights.

    Raises:
        InputError: A shape does not fit, a number is not finite, the start is another body's, or
            joints come without a topology.
    """
    fitter = _fitter(body, topology if joints_BJ3 is not None else None)
    return fitter.fit(vertices_BV3, joints_BJ3, weights, start, shape, sides).parameters


class BodyFitter:
    """Fits meshes of one body; making one chooses vertices and takes a fraction of a second.

    Args:
        body: The body.
        topology: Regresses the joints, for fits that have any.
    """

    def __init__(self, body: PosableBody, topology: Topology | None = None) -> None:
        self.body, self.topology = body, topology
        selection = select_vertices(body, topology)
        self.chosen_M, self.regressor_JM = selection.vertices, selection.regressor
        self.system = FitSystem(body.select(self.chosen_M))
        self.stiffness_N = stiffness(body)
        self.bone_weights_NM = bone_weights(self.system.body)

    def fit(
        self,
        vertices_BV3: Tensor,
        joints_BJ3: Tensor | None = None,
        weights: Tensor | None = None,
        start: Sequence[BodyParameters | None] | None = None,
        shape: Tensor | None = None,
        sides: Sequence[Side | None] | None = None,
    ) -> Fit:
        """Fit meshes; arguments and errors as for `fit_bodies`."""
        count = len(vertices_BV3)
        weights_BV = self._checked(vertices_BV3, joints_BJ3, weights)
        shape_BK = None if shape is None else self._checked_shape(shape, count)
        starts = [None] * count if start is None else list(start)
        which = [None] * count if sides is None else list(sides)
        if len(starts) != count or len(which) != count:
            raise InputError(
                f"start and sides: expected one for each of {count} meshes, found {len(starts)} "
                f"and {len(which)}; put None where there is none"
            )
        found = Fit([], [])
        for first in range(0, count, CHUNK):
            some = slice(first, first + CHUNK)
            part = self._fit_some(
                vertices_BV3[some].detach().float(),
                None if joints_BJ3 is None else joints_BJ3[some].detach().float(),
                weights_BV[some],
                starts[some],
                None if shape_BK is None else shape_BK[some],
                which[some],
            )
            found = Fit(found.parameters + part.parameters, found.steps + part.steps)
        return found

    @torch.no_grad()
    def _fit_some(
        self,
        vertices_BV3: Tensor,
        joints_BJ3: Tensor | None,
        weights_BV: Tensor,
        start: Sequence[BodyParameters | None],
        shape_BK: Tensor | None,
        sides: Sequence[Side | None],
    ) -> Fit:
        """Fit a chunk, each mesh about its own middle, where float32 has digits to spare."""
        flip_B13 = mirror_signs(sides)[:, None]
        middle_B13 = vertices_BV3.mean(1, keepdim=True)
        vertices_BV3 = (vertices_BV3 - middle_B13) * flip_B13
        if joints_BJ3 is not None:
            joints_BJ3 = (joints_BJ3 - middle_B13) * flip_B13
        problem = self._problem(vertices_BV3, joints_BJ3, weights_BV, shape_BK is None)
        before = self._state(start, shape_BK)
        shift_B3 = (before.translation - middle_B13[:, 0]) * flip_B13[:, 0]
        state, steps_B = minimise(
            problem, self._start(problem, replace(before, translation=shift_B3), start)
        )
        placed_BV3 = (
            self.body.pose(state.rotations, state.shape).vertices + state.translation[:, None]
        )
        residual_B = (placed_BV3 - vertices_BV3).norm(dim=-1).mean(1)
        shift_B3 = state.translation * flip_B13[:, 0] + middle_B13[:, 0]
        parameters = [
            BodyParameters(
                body=self.body.name,
                rotations=state.rotations[row].numpy(),
                shape=state.shape[row].numpy(),
                translation_m=shift_B3[row].numpy(),
                residual_mm=1000 * float(residual_B[row]),
                side=side,
            )
            for row, side in enumerate(sides)
        ]
        return Fit(parameters, steps_B.tolist())

    def _problem(
        self,
        vertices_BV3: Tensor,
        joints_BJ3: Tensor | None,
        weights_BV: Tensor,
        free_shape: bool,
    ) -> Problem:
        target_BM3, weight_BM = vertices_BV3[:, self.chosen_M], weights_BV[:, self.chosen_M]
        regressor_JM = self.regressor_JM[:0]
        if joints_BJ3 is not None:
            regressor_JM = self.regressor_JM
            count = joints_BJ3.shape[1]
            of_joint_B1 = JOINT_SHARE * weight_BM.sum(1, keepdim=True) / count
            # few vertices of a joint stand for all: what counts is how far the joint should move
            assert self.topology is not None  # `_checked` refuses joints without one
            moved_BJ3 = joints_BJ3 - self.topology.joints(vertices_BV3)
            target_BM3 = torch.cat([target_BM3, self.regressor_JM @ target_BM3 + moved_BJ3], 1)
            weight_BM = torch.cat([weight_BM, of_joint_B1.expand(-1, count)], 1)
        target_BD = target_BM3.mT.flatten(1)
        return Problem(
            self.system,
            regressor_JM,
            target_BD,
            weight_BM.repeat(1, 3),
            self.stiffness_N,
            free_shape,
        )

    def _state(self, start: Sequence[BodyParameters | None], shape_BK: Tensor | None) -> State:
        """The given starts, and the mean body at rest where there is none."""
        bones, shapes = len(self.body.bones), len(self.body.shape_basis)
        state = State(
            torch.eye(3).repeat(len(start), bones, 1, 1),
            torch.zeros(len(start), shapes),
            torch.zeros(len(start), 3),
        )
        for row, given in enumerate(start):
            if given is None:
                continue
            self._check_start(given)
            state.rotations[row] = torch.from_numpy(given.rotations)
            state.shape[row] = torch.from_numpy(given.shape)
            state.translation[row] = torch.from_numpy(given.translation_m)
        state = replace(state, rotations=closest_rotations(state.rotations))
        return state if shape_BK is None else replace(state, shape=shape_BK.clone())

    def _start(
        self, problem: Problem, before: State, start: Sequence[BodyParameters | None]
    ) -> State:
        """Bones turned toward the mesh by themselves, or the given start where that is nearer."""
        count, vertices = len(start), len(self.chosen_M)
        target_BM3 = problem.target.view(count, 3, -1)[..., :vertices].mT
        state = before
        for _ in range(TURNS):
            rotations_BN33 = turned_toward(
                self.system.body,
                self.bone_weights_NM,
                state.rotations,
                self.system.vertices(state),
                target_BM3,
            )
            state = problem.shaped(replace(state, rotations=rotations_BN33))
        has_start_B = torch.tensor([given is not None for given in start])
        nearer_B = has_start_B & (problem.misfit(before) < problem.misfit(state))
        return state.put(nearer_B, before[nearer_B])

    def _checked(
        self, vertices_BV3: Tensor, joints_BJ3: Tensor | None, weights: Tensor | None
    ) -> Tensor:
        """Weights (B, V), once all numbers are known to be usable."""
        count, vertices = len(vertices_BV3), len(self.body.template)
        _check("vertices_BV3", vertices_BV3, (count, vertices, 3), self.body.name)
        if joints_BJ3 is not None:
            if not len(self.regressor_JM):
                raise InputError(
                    "joints_BJ3: joints need the topology whose regressor gives them; "
                    "pass topology=, or leave the joints out"
                )
            _check("joints_BJ3", joints_BJ3, (count, len(self.regressor_JM), 3), self.body.name)
        if weights is None:
            return torch.ones(count, vertices)
        weights_BV = weights.detach().float().expand(count, -1)
        _check("weights", weights_BV, (count, vertices), self.body.name)
        if count and not (weights_BV[:, self.chosen_M] >= 0).all():
            raise InputError("weights: expected numbers not below 0, found some; cut them off")
        return weights_BV

    def _checked_shape(self, shape: Tensor, count: int) -> Tensor:
        shape_BK = shape.detach().float().expand(count, -1)
        _check("shape", shape_BK, (count, len(self.body.shape_basis)), self.body.name)
        return shape_BK

    def _check_start(self, given: BodyParameters) -> None:
        expected = (self.body.name, len(self.body.bones), len(self.body.shape_basis))
        found = (given.body, len(given.rotations), len(given.shape))
        if found != expected:
            raise InputError(
                "start: expected parameters of body '{}' with {} bones and {} shape coefficients, "
                "found '{}' with {} and {}; fit each kind by itself".format(*expected, *found)
            )


def _check(name: str, value: Tensor, shape: tuple[int, ...], body: str) -> None:
    if value.shape != shape:
        raise InputError(
            f"{name}: expected shape {shape} for body '{body}', found {tuple(value.shape)}; "
            "choose the body whose topology the network has"
        )
    if not value.isfinite().all():
        raise InputError(f"{name}: expected finite numbers, found others; was the mesh predicted?")


@lru_cache(maxsize=4)
def _fitter(body: PosableBody, topology: Topology | None) -> BodyFitter:
    """Kept, since choosing vertices takes longer than a fit."""
    return BodyFitter(body, topology)
