"""A posed body and its derivatives by pose, shape and place: one step of a least-squares fit.

A rotation is changed by a small vector w about the head of its bone, in the axes of the frame, so
that everything beyond the joint turns rigidly: ``dx = w x (x - P_i)``. For linear blend skinning
this holds with the weighted share of the vertex that lies beyond the joint in place of x. The
first bone turns about the origin instead: its head may lie far away, as the elbow of a hand does,
and then a small turn would be a long way.

Legend of shapes: B batch, M vertices of the fit, N bones, K shape coefficients, P parameters
(3 N of rotations, K of shape, 3 of translation); m, n and p are those of a group.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kinemesh.bodies.fit_start import closest_rotations
from kinemesh.bodies.posable import PosableBody
from kinemesh.geometry.closest_rotation import closest_rotation
from kinemesh.geometry.rotations import axis_angle_to_matrix, skew

LEAST_SKIN = 0.01
"""A root that moves no vertex by more than this share counts as a root without skin."""

SAME_PLACE_M = 1e-4


@dataclass(frozen=True)
class State:
    """Parameters of B bodies: (B, N, 3, 3) local rotations, (B, K) shapes, (B, 3) metres."""

    rotations: Tensor
    shape: Tensor
    translation: Tensor

    def __getitem__(self, rows: Tensor) -> "State":
        return State(self.rotations[rows], self.shape[rows], self.translation[rows])

    def put(self, rows: Tensor, other: "State") -> "State":
        """A copy with ``other`` in the rows of a mask."""
        copy = replace(self, **{name: value.clone() for name, value in vars(self).items()})
        for name, value in vars(copy).items():
            value[rows] = getattr(other, name)
        return copy


@dataclass(frozen=True)
class Group:
    """Vertices that the same part of the skeleton moves: all other derivatives are zero there.

    Attributes:
        vertices: (m,) int64 into the vertices of the fit.
        bones: (n,) int64, every bone that moves one of them, and those it hangs on.
        parameters: (p,) int64 into the P parameters: turns of these bones, shape, translation.
    """

    vertices: Tensor
    bones: Tensor
    parameters: Tensor


@dataclass(frozen=True)
class Pose:
    """What the derivatives of a state are made of.

    Attributes:
        state: The state.
        rest: (B, M, 3) rest vertices with their pose correctives.
        turned: (B, N, 3, 3) rotations from the rest pose.
        offset: (B, N, 3, 1) what each bone adds after its rotation.
        pivots: (B, N, 3) what each bone turns about.
        linear: (B, M, 3, 3) blended rotations.
        vertices: (B, M, 3) posed and placed vertices.
        by_shape: (B, N, K, 3) derivatives of ``offset`` by the shape.
    """

    state: State
    rest: Tensor
    turned: Tensor
    offset: Tensor
    pivots: Tensor
    linear: Tensor
    vertices: Tensor
    by_shape: Tensor


class FitSystem:
    """The equations of one body.

    Args:
        body: A body with the vertices of the fit alone (`PosableBody.select`).
    """

    def __init__(self, body: PosableBody) -> None:
        self.body = body
        self.beyond_NN = _beyond(body.parents)
        self.weights_NM = body.skin_weights.T.contiguous()
        self.weights_beyond_NM = self.beyond_NN @ self.weights_NM
        self.parents = [max(parent, 0) for parent in body.parents]
        self.carriers = _carriers(body)
        self.local_NN = self._local_turns()
        everything = torch.arange(len(body.template)), torch.arange(len(body.bones))
        self.whole = self._group(*everything)
        self.groups = [self.whole] if body.pose_basis is not None else self._branches()

    def vertices(self, state: State) -> Tensor:
        """(B, M, 3) vertices of B states, metres."""
        posed = self.body.pose(state.rotations, state.shape)
        return posed.vertices + state.translation[:, None]

    def pose(self, state: State) -> Pose:
        """All that `rows` needs of B states."""
        body = self.body
        rest = body.corrected_rest(state.rotations, state.shape)
        turned_BN33, heads_BN3 = body.kinematics(state.rotations, rest.bones)
        linear_BM33, shift_BM3 = body.blend(turned_BN33, heads_BN3, rest.bones)
        points_BM3 = (linear_BM33 @ rest.vertices[..., None])[..., 0] + shift_BM3
        return Pose(
            state=state,
            rest=rest.vertices,
            turned=turned_BN33,
            offset=heads_BN3[..., None] - turned_BN33 @ rest.bones[..., None],
            pivots=torch.cat([-state.translation[:, None], heads_BN3[:, 1:]], 1),
            linear=linear_BM33,
            vertices=points_BM3 + state.translation[:, None],
            by_shape=self._offset_by_shape(turned_BN33),
        )

    def rows(self, pose: Pose, group: Group, *, turns: bool = True) -> Tensor:
        """(B, p, 3, m) derivatives of a group's coordinates by the changes that `moved` takes.

        Without ``turns`` only those by shape and translation are computed.
        """
        B, m = len(pose.vertices), len(group.vertices)
        shifts_B33m = torch.eye(3)[None, :, :, None].expand(B, 3, 3, m)
        rows = [self._by_shape(pose, group), shifts_B33m]
        if turns:
            turns_Bn33m = self._by_rotation(pose, group)
            if self.body.pose_basis is not None:
                turns_Bn33m[:, 1:] += self._by_corrective(pose)
            if self.carriers:
                turns_Bn33m[:, 0] = 0
            rows.insert(0, turns_Bn33m.flatten(1, 2))
        return torch.cat(rows, 1)

    def moved(self, state: State, change_BP: Tensor) -> State:
        """The state after a change: rotation vectors in frame axes, shapes, translations."""
        B, N = state.rotations.shape[:2]
        heads_BN3 = self.body.rest(state.shape).bones
        turned_BN33, _ = self.body.kinematics(state.rotations, heads_BN3)
        vector_BN3 = change_BP[:, : 3 * N].view(B, N, 3)
        local_BN3 = (turned_BN33.mT @ vector_BN3[..., None])[..., 0]
        about_origin_B33 = axis_angle_to_matrix(vector_BN3[:, 0])
        head_B3 = heads_BN3[:, 0]
        place_B31 = about_origin_B33 @ (head_B3 + state.translation)[..., None]
        rotations_BN33 = closest_rotations(state.rotations @ axis_angle_to_matrix(local_BN3))
        return State(
            self._with_root(rotations_BN33),
            state.shape + change_BP[:, 3 * N : -3],
            place_B31[..., 0] - head_B3 + change_BP[:, -3:],
        )

    def _with_root(self, rotations_BN33: Tensor) -> Tensor:
        """The same pose with the root turned as its carriers are, if it has any."""
        if not self.carriers:
            return rotations_BN33
        root_B33 = rotations_BN33[:, 0]
        carried_B33 = closest_rotation(rotations_BN33[:, self.carriers].sum(1))
        rotations_BN33 = rotations_BN33.clone()
        rotations_BN33[:, 0] = root_B33 @ carried_B33
        children = [bone for bone, parent in enumerate(self.body.parents) if parent == 0]
        rotations_BN33[:, children] = carried_B33.mT[:, None] @ rotations_BN33[:, children]
        return rotations_BN33

    def _by_rotation(self, pose: Pose, group: Group) -> Tensor:
        """(B, n, 3, 3, m): for each bone and axis of its turn, the coordinates of the vertices."""
        bones, vertices = group.bones, group.vertices
        rest_B13m = pose.rest[:, vertices].mT[:, None]
        moved_Bn3m = pose.turned[:, bones] @ rest_B13m + pose.offset[:, bones]
        shares_Bn3m = moved_Bn3m * self.weights_NM[bones][:, None, vertices]
        beyond_nn = self.beyond_NN[bones][:, bones]
        arm_Bn3m = (beyond_nn @ shares_Bn3m.flatten(2)).view_as(shares_Bn3m)
        reach_n1m = self.weights_beyond_NM[bones][:, None, vertices]
        arm_Bn3m = arm_Bn3m - pose.pivots[:, bones, :, None] * reach_n1m
        B, n, _, m = arm_Bn3m.shape
        rows_Bn33m = arm_Bn3m.new_zeros(B, n, 3, 3, m)
        for axis in range(3):
            second, third = (axis + 1) % 3, (axis + 2) % 3
            rows_Bn33m[:, :, axis, second] = -arm_Bn3m[:, :, third]
            rows_Bn33m[:, :, axis, third] = arm_Bn3m[:, :, second]
        return rows_Bn33m

    def _by_corrective(self, pose: Pose) -> Tensor:
        """(B, N - 1, 3, 3, M): what the turns do by way of the pose correctives."""
        basis_N9M3 = self.body.pose_basis
        assert basis_N9M3 is not None
        # a turn e in the frame's axes is G^T e in the bone's own, and changes R by R [G^T e]
        axes_BN33 = pose.turned[:, 1:]  # row c is G^T e_c
        change_BN333 = pose.state.rotations[:, 1:, None] @ skew(axes_BN33)
        feature_NQ9 = change_BN333.flatten(3).transpose(0, 1).flatten(1, 2)
        N, _, M, _ = basis_N9M3.shape
        moved_NQ = feature_NQ9 @ basis_N9M3.flatten(2)
        moved_BNcM3 = moved_NQ.view(N, len(axes_BN33), 3, M, 3).transpose(0, 1)
        change_BNcdM: Tensor = torch.einsum("bmde,bncme->bncdm", pose.linear, moved_BNcM3)
        return change_BNcdM

    def _offset_by_shape(self, turned_BN33: Tensor) -> Tensor:
        """(B, N, K, 3): bone heads move with the shape, and what hangs on them too."""
        heads_NKd = self.body.bone_basis.transpose(0, 1)
        reach_NKd = torch.cat([heads_NKd[:1], (heads_NKd - heads_NKd[self.parents])[1:]])
        above_BN33 = turned_BN33[:, self.parents].clone()
        above_BN33[:, 0] = torch.eye(3)
        step_BNKd = reach_NKd @ above_BN33.mT
        place_BNKd = (self.beyond_NN.T @ step_BNKd.flatten(2)).view_as(step_BNKd)
        return place_BNKd - heads_NKd @ turned_BN33.mT

    def _by_shape(self, pose: Pose, group: Group) -> Tensor:
        """(B, K, 3, m) derivatives by the shape coefficients."""
        B, _, K, _ = pose.by_shape.shape
        vertices = group.vertices
        shift_BmQ = self.weights_NM[:, vertices].T @ pose.by_shape.flatten(2)
        shift_BKdm = shift_BmQ.mT.reshape(B, K, 3, len(vertices))
        basis_Kme = self.body.shape_basis[:, vertices]
        own_BKdm: Tensor = torch.einsum("bmde,kme->bkdm", pose.linear[:, vertices], basis_Kme)
        return own_BKdm + shift_BKdm

    def _local_turns(self) -> Tensor:
        """(N, N) how far each bone turns against its parent when bones are turned by `moved`.

        What hangs on a bone turns with it, so that only the bone itself turns against its parent;
        but a root that follows its carriers leaves its other children behind.
        """
        matrix_NN = torch.eye(len(self.parents))
        children = [bone for bone, parent in enumerate(self.body.parents) if parent == 0]
        for carrier in self.carriers:
            matrix_NN[children, carrier] -= 1 / len(self.carriers)
        return matrix_NN

    def _group(self, vertices: Tensor, bones: Tensor) -> Group:
        turns = (3 * bones[:, None] + torch.arange(3)).flatten()
        first = 3 * len(self.parents)
        others = torch.arange(first, first + len(self.body.shape_basis) + 3)
        return Group(vertices, bones, torch.cat([turns, others]))

    def _branches(self) -> list[Group]:
        """Vertices grouped by the limbs that move them.

        A limb is what hangs on a bone that moves at most a quarter of the vertices, if its parent
        moves more. The derivatives of a hand by the other limbs are zero, so that the products
        over the groups take a fraction of the time of one over all.
        """
        reaches_NM = self.weights_beyond_NM > 0
        is_small_N = reaches_NM.sum(1) <= len(self.body.template) // 4
        limbs = [
            bone
            for bone in torch.nonzero(is_small_N)[:, 0].tolist()
            if not is_small_N[self.parents[bone]]
        ]
        _, label_M = torch.unique(reaches_NM[limbs], dim=1, return_inverse=True)
        groups = []
        for label in range(int(label_M.max()) + 1):
            vertices = torch.nonzero(label_M == label)[:, 0]
            moves_N = reaches_NM[:, vertices].any(1)
            groups.append(self._group(vertices, torch.nonzero(moves_N)[:, 0]))
        return groups


def _carriers(body: PosableBody) -> list[int]:
    """Bones whose mean turn is that of a root without skin; none if the root has skin.

    Where its children start at its head, a turn of such a root is the same as one of all of them
    together, which leaves the equations without a single solution. So the children turn, and the
    root follows them: in Anny the two halves of the pelvis.
    """
    if body.skin_weights[:, 0].max() > LEAST_SKIN:
        return []
    children = [bone for bone, parent in enumerate(body.parents) if parent == 0]
    apart_C = (body.bone_template[children] - body.bone_template[0]).norm(dim=-1)
    if apart_C.max() > SAME_PLACE_M:
        return []
    pelvis = [bone for bone in children if "pelvis" in body.bones[bone]]
    return pelvis or children


def _beyond(parents: tuple[int, ...]) -> Tensor:
    """(N, N) matrix, one where bone j is bone i or hangs on it."""
    matrix_NN = torch.eye(len(parents))
    for bone in range(len(parents) - 1, 0, -1):
        matrix_NN[parents[bone]] += matrix_NN[bone]
    return matrix_NN
