"""A mesh with a skeleton in it, whichever body model it came from: what is fitted and animated.

Frame as in :mod:`kinemesh.bodies.rig`: x right, y down, z forward, metres; a body in its rest pose
stands upright and faces the viewer. MANO's hand keeps the axes of its file, as its topology does.
Rotations are deltas in the axes of that frame, relative to the parent bone, and the identity for
all bones gives the rest pose for any shape.

Legend of shapes: B batch, V vertices, N bones, K shape coefficients, F faces.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kinemesh.bodies.assets import ASSETS, load_rig, load_topology
from kinemesh.bodies.mano import HAND21_ORDER, ManoModel
from kinemesh.bodies.official_assets import load_body_model
from kinemesh.bodies.rig import Posed, Rig
from kinemesh.bodies.skinning import BodyModel, tree_depths
from kinemesh.bodies.smpl import SmplModel
from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.skeletons import HAND21, SMPL24

BODIES = (*ASSETS, "smpl", "mano")


@dataclass(frozen=True, eq=False)
class PosableBody:
    """The mesh of a topology, with bones to pose it and coefficients to shape it.

    Attributes:
        name: ``"anny-body"``, ``"anny-hand"``, ``"smpl"`` or ``"mano"``; hands are right hands.
        bones: N bone names, parents before children.
        parents: N indices of the parent bones, -1 for the first.
        faces: (F, 3) int64, counter-clockwise seen from outside.
        skin_weights: (V, N) float32, rows sum to one.
        template: (V, 3) float32 rest vertices of shape zero, metres.
        shape_basis: (K, V, 3) float32 displacement for one unit of each coefficient.
        bone_template: (N, 3) float32 bone heads of shape zero, metres.
        bone_basis: (K, N, 3) float32 displacement of the bone heads.
        pose_basis: (N - 1, 9, V, 3) float32 displacement of the rest vertices for each entry, row
            by row, of a bone's rotation less the identity (SMPL, 2015, eq. 9); None where the
            body has no such correction. The first bone has none.
        axes: (3, 3) float32 rotation from the axes of the model file to those of the rest frame.
    """

    name: str
    bones: tuple[str, ...]
    parents: tuple[int, ...]
    faces: Tensor
    skin_weights: Tensor
    template: Tensor
    shape_basis: Tensor
    bone_template: Tensor
    bone_basis: Tensor
    pose_basis: Tensor | None
    axes: Tensor

    @classmethod
    def of_rig(cls, rig: Rig, topology: Topology) -> "PosableBody":
        """The part of a rig that its topology shows, with all bones.

        Raises:
            InputError: The topology is another body's.
        """
        if rig.name != topology.name or len(rig.topology_index) != len(topology.template):
            raise InputError(
                f"topology: expected that of rig '{rig.name}' with {len(rig.topology_index)} "
                f"vertices, found '{topology.name}' with {len(topology.template)}; load both by "
                "the same name"
            )
        shown = rig.topology_index
        return cls(
            name=rig.name,
            bones=rig.bones,
            parents=rig.parents,
            faces=topology.faces,
            skin_weights=rig.skin_matrix[shown],
            template=rig.template[shown],
            shape_basis=rig.shape_basis[:, shown],
            bone_template=rig.bone_template,
            bone_basis=rig.bone_basis,
            pose_basis=None,
            axes=torch.eye(3),
        )

    @classmethod
    def of_skinning(cls, model: BodyModel, name: str) -> "PosableBody":
        """SMPL or MANO from the user's file, with their pose correctives.

        SMPL is turned upright, by half a turn about x, as `smpl_topology` turns it; its origin is
        that of the file. MANO's rest pose is that of the file's template, a flat hand, and not the
        mean pose that zeros give to `ManoModel`.

        Args:
            model: A `SmplModel` or a `ManoModel`.
            name: Name of the body, which is that of its topology.

        Raises:
            InputError: The model is neither of the two.
        """
        if isinstance(model, SmplModel):
            bones, axes_33 = SMPL24.joints, torch.diag(torch.tensor([1.0, -1.0, -1.0]))
        elif isinstance(model, ManoModel):
            bones, axes_33 = _mano_bones(), torch.eye(3)
        else:
            raise InputError(
                f"model: expected a SmplModel or a ManoModel, found {type(model).__name__}; read "
                "it with kinemesh.bodies.load_body_model"
            )
        skinning = model.skinning
        pose_basis = skinning.pose_basis_PV3.reshape(len(bones) - 1, 3, 3, -1, 3)
        turned = torch.einsum(
            "ai,bj,dk,nijvk->nabvd", axes_33, axes_33, axes_33, pose_basis
        ).flatten(1, 2)
        return cls(
            name=name,
            bones=bones,
            parents=skinning.parents,
            faces=skinning.faces_F3,
            skin_weights=skinning.skin_weights_VJ,
            template=skinning.template_V3 @ axes_33.T,
            shape_basis=skinning.shape_basis_SV3 @ axes_33.T,
            bone_template=skinning.joint_template_J3 @ axes_33.T,
            bone_basis=skinning.joint_shape_basis_SJ3 @ axes_33.T,
            pose_basis=turned.contiguous(),
            axes=axes_33,
        )

    @cached_property
    def tree(self) -> tuple[list[tuple[list[int], list[int]]], list[int]]:
        """Bones by depth, as `kinemesh.bodies.skinning.tree_depths` gives them."""
        return tree_depths(self.parents)

    def bone_index(self, name: str) -> int:
        """Index of the bone called ``name``.

        Raises:
            InputError: There is none.
        """
        if name not in self.bones:
            raise InputError(
                f"name: body '{self.name}' has no bone '{name}'; it has {', '.join(self.bones)}"
            )
        return self.bones.index(name)

    def rest(self, shape_BK: Tensor) -> Posed:
        """Vertices (B, V, 3) and bone heads (B, N, 3) of shapes (B, K) in the rest pose, metres.

        Raises:
            InputError: The shape does not fit.
        """
        self._check("shape_BK", shape_BK, (len(self.shape_basis),))
        return Posed(
            self.template + torch.tensordot(shape_BK, self.shape_basis, dims=1),
            self.bone_template + torch.tensordot(shape_BK, self.bone_basis, dims=1),
        )

    def pose(self, rotations_BN33: Tensor, shape_BK: Tensor) -> Posed:
        """Pose shapes: correctives, forward kinematics, then linear blend skinning.

        The formulas are those of :meth:`kinemesh.bodies.rig.Rig.pose`. The first bone turns the
        whole body about its own head.

        Args:
            rotations_BN33: (B, N, 3, 3) rotations relative to the parent, rest-frame axes.
            shape_BK: (B, K) shape coefficients.

        Returns:
            Vertices (B, V, 3) of the topology's mesh and bone heads (B, N, 3), metres. They are in
            camera axes, wherever the origin of the body is.

        Raises:
            InputError: A shape does not fit, or the batch sizes differ.
        """
        self._check("rotations_BN33", rotations_BN33, (len(self.bones), 3, 3))
        if len(rotations_BN33) != len(shape_BK):
            raise InputError(
                f"rotations_BN33 and shape_BK: expected one batch size, found "
                f"{len(rotations_BN33)} and {len(shape_BK)}; expand one of them"
            )
        rest = self.corrected_rest(rotations_BN33, shape_BK)
        turned_BN33, heads_BN3 = self.kinematics(rotations_BN33, rest.bones)
        linear_BV33, shift_BV3 = self.blend(turned_BN33, heads_BN3, rest.bones)
        return Posed((linear_BV33 @ rest.vertices[..., None])[..., 0] + shift_BV3, heads_BN3)

    def corrected_rest(self, rotations_BN33: Tensor, shape_BK: Tensor) -> Posed:
        """`rest`, with the displacement that belongs to a pose; arguments as for `pose`."""
        rest = self.rest(shape_BK)
        if self.pose_basis is None:
            return rest
        eye_33 = torch.eye(3, dtype=shape_BK.dtype, device=shape_BK.device)
        change_BP = (rotations_BN33[:, 1:] - eye_33).flatten(1)
        correction_BV3 = torch.tensordot(change_BP, self.pose_basis.flatten(0, 1), dims=1)
        return Posed(rest.vertices + correction_BV3, rest.bones)

    def kinematics(self, rotations_BN33: Tensor, rest_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """Rotations from the rest pose (B, N, 3, 3) and posed heads (B, N, 3) of all bones.

        Args:
            rotations_BN33: (B, N, 3, 3) relative to the parent.
            rest_BN3: (B, N, 3) heads in the rest pose.
        """
        depths, order = self.tree
        turned, heads, above = [rotations_BN33[:, :1]], [rest_BN3[:, :1]], [0]
        for bones, places in depths:
            parents = [above[place] for place in places]
            upper_BD33 = turned[-1][:, places]
            reach_BD3 = (rest_BN3[:, bones] - rest_BN3[:, parents])[..., None]
            heads.append(heads[-1][:, places] + (upper_BD33 @ reach_BD3)[..., 0])
            turned.append(upper_BD33 @ rotations_BN33[:, bones])
            above = bones
        return torch.cat(turned, 1)[:, order], torch.cat(heads, 1)[:, order]

    def blend(
        self, turned_BN33: Tensor, heads_BN3: Tensor, rest_BN3: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Blended transforms of the vertices: linear parts (B, V, 3, 3) and shifts (B, V, 3)."""
        offset_BN31 = heads_BN3[..., None] - turned_BN33 @ rest_BN3[..., None]
        transform_BN34 = torch.cat([turned_BN33, offset_BN31], -1)
        # All bodies share the weights, so one wide product replaces B narrow ones.
        blended = self.skin_weights @ transform_BN34.transpose(0, 1).flatten(1)
        blended_BV34 = blended.reshape(len(blended), -1, 3, 4).transpose(0, 1)
        return blended_BV34[..., :3], blended_BV34[..., 3]

    def select(self, vertices: Tensor) -> "PosableBody":
        """The same skeleton with only some vertices (int64 indices) and without faces."""
        basis = self.pose_basis
        return replace(
            self,
            faces=self.faces[:0],
            skin_weights=self.skin_weights[vertices],
            template=self.template[vertices],
            shape_basis=self.shape_basis[:, vertices],
            pose_basis=None if basis is None else basis[:, :, vertices],
        )

    def mirrored(self) -> "PosableBody":
        """The other hand: x negated, faces turned over, bones named for the other side.

        Its pose for rotations ``S R S``, with S = diag(-1, 1, 1), is the mirror image of this
        one's for R (`mirrored_rotations`).
        """
        sign_3 = self.template.new_tensor([-1.0, 1.0, 1.0])
        basis = self.pose_basis
        if basis is not None:
            basis = basis * torch.outer(sign_3, sign_3).reshape(9, 1, 1) * sign_3
        return replace(
            self,
            bones=tuple(_other_side(name) for name in self.bones),
            faces=self.faces[:, [0, 2, 1]],
            template=self.template * sign_3,
            shape_basis=self.shape_basis * sign_3,
            bone_template=self.bone_template * sign_3,
            bone_basis=self.bone_basis * sign_3,
            pose_basis=basis,
        )

    def to(self, device: torch.device | str) -> "PosableBody":
        """Copy with all tensors on ``device``."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    def _check(self, argument: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.shape[1:] != shape or value.ndim != len(shape) + 1:
            expected = ", ".join(["B", *map(str, shape)])
            raise InputError(
                f"{argument}: expected shape ({expected}) for body '{self.name}', "
                f"found {tuple(value.shape)}; see PosableBody.bones and PosableBody.shape_basis"
            )


def posable_body(name: str, assets: str | Path | None = None) -> PosableBody:
    """The posable body of a topology.

    Args:
        name: ``"anny-body"`` or ``"anny-hand"``, which are shipped, or ``"smpl"`` or ``"mano"``.
        assets: Folder with the user's own SMPL or MANO files, which only these two need.

    Raises:
        InputError: The name is unknown, or ``assets`` is needed and lacks the file.
    """
    if name in ASSETS:
        return PosableBody.of_rig(load_rig(name), load_topology(name))
    if name not in ("smpl", "mano"):
        raise InputError(f"name: expected one of {', '.join(BODIES)}, found '{name}'")
    if assets is None:
        raise InputError(
            f"assets: body '{name}' needs a folder with your own {name.upper()} model file, found "
            "none; give the folder with assets= or --assets (docs/body-models.md)"
        )
    family: Literal["smpl", "mano"] = "smpl" if name == "smpl" else "mano"
    return PosableBody.of_skinning(load_body_model(assets, family), name)


@lru_cache
def bone_names(name: str) -> tuple[str, ...]:
    """Bones of `posable_body` of that name, for which nobody needs a model file.

    Raises:
        InputError: The name is unknown.
    """
    if name in ASSETS:
        return load_rig(name).bones
    if name not in BODIES:
        raise InputError(f"name: expected one of {', '.join(BODIES)}, found '{name}'")
    return SMPL24.joints if name == "smpl" else _mano_bones()


def mirrored_rotations(rotations: Tensor) -> Tensor:
    """Rotations (..., 3, 3) in mirrored axes, ``S R S`` with S = diag(-1, 1, 1)."""
    sign_3 = rotations.new_tensor([-1.0, 1.0, 1.0])
    return rotations * torch.outer(sign_3, sign_3)


def _other_side(bone: str) -> str:
    stem, dot, side = bone.rpartition(".")
    return f"{stem}{dot}{'RL'['LR'.index(side)]}" if dot and side in ("L", "R") else bone


def _mano_bones() -> tuple[str, ...]:
    """Names of the bones in the order of the file, which goes by fingers of another order."""
    count = 16
    return tuple(HAND21.joints[HAND21_ORDER.index(joint)] for joint in range(count))
