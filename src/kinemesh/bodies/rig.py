"""A compact rig: linear shape space, forward kinematics and linear blend skinning in plain torch.

Frames as in :mod:`kinemesh.bodies.topology`: x right, y down, z forward, metres. The rest pose of
the body is an A-pose. Rotations are deltas in the axes of that frame, relative to the parent bone:
the identity for all bones gives the rest pose for any shape.

Legend of shapes: B batch, V vertices, N bones, K shape coefficients, J joints, W bones per vertex,
S bodies in the shape bank, P phenotypes, T vertices averaged per finger tip.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.topology import compact_index, regress
from kinemesh.errors import InputError

MIX_PROBABILITY = 0.5


@dataclass(frozen=True)
class Posed:
    """A posed batch: ``vertices`` (B, V, 3) and bone heads ``bones`` (B, N, 3), metres."""

    vertices: Tensor
    bones: Tensor


@dataclass(frozen=True)
class BankMix:
    """Which bodies of a rig's shape bank somebody is made of.

    Attributes:
        first: Row of the bank.
        second: Another row.
        share: How much of the first, 0 to 1; the rest is the second.
    """

    first: int
    second: int
    share: float

    def of(self, rows_SK: Tensor) -> Tensor:
        """(K,) mix of the rows of the bank, or of what else is known of each of its bodies."""
        return torch.lerp(rows_SK[self.second], rows_SK[self.first], self.share)


@dataclass(frozen=True)
class Rig:
    """Everything that synthesis needs of a body or of a right arm and hand.

    Attributes:
        name: Name of the asset; the same as its topology's.
        skeleton: Name of the joint set that :meth:`joints` returns.
        bones: N bone names, parents before children.
        parents: N indices of the parent bones, -1 for the first.
        faces: (F, 3) int64 triangles of the mesh to draw.
        template: (V, 3) float32 vertices of the neutral body in the rest pose.
        shape_basis: (K, V, 3) float32 displacement for one unit of each coefficient.
        bone_template: (N, 3) float32 bone heads of the neutral body.
        bone_basis: (K, N, 3) float32 displacement of the bone heads.
        skin_index: (V, W) int64 bones that move each vertex.
        skin_weight: (V, W) float32, rows sum to one.
        shape_bank: (S, K) float32 coefficients of random bodies.
        bank_phenotypes: (S, P) float32 their phenotypes in [0, 1].
        phenotype_names: P names.
        masks: name -> (V,) float32 values for painting; see ``docs/bodies.md``.
        topology_index: (Vt,) int64 vertices of the rig that are the vertices of the topology.
        joint_bones: J bones whose heads are the joints, -1 where a joint comes from vertices.
        regressor_index: (J, R) int64 vertices of the joints that have no bone.
        regressor_weight: (J, R) float32 weights; zero in the rows of joints that have a bone.
        tip_index: (5, T) int64 extreme vertices of thumb to little finger; empty for the body.
    """

    name: str
    skeleton: str
    bones: tuple[str, ...]
    parents: tuple[int, ...]
    faces: Tensor
    template: Tensor
    shape_basis: Tensor
    bone_template: Tensor
    bone_basis: Tensor
    skin_index: Tensor
    skin_weight: Tensor
    shape_bank: Tensor
    bank_phenotypes: Tensor
    phenotype_names: tuple[str, ...]
    masks: dict[str, Tensor]
    topology_index: Tensor
    joint_bones: tuple[int, ...]
    regressor_index: Tensor
    regressor_weight: Tensor
    tip_index: Tensor

    def bone_index(self, name: str) -> int:
        """Index of the bone called ``name``."""
        if name not in self.bones:
            raise InputError(
                f"name: rig '{self.name}' has no bone '{name}'; it has {', '.join(self.bones)}"
            )
        return self.bones.index(name)

    @cached_property
    def skin_matrix(self) -> Tensor:
        """(V, N) float32 dense skinning weights: one product is faster than gathers on a CPU."""
        dense = torch.zeros(len(self.template), len(self.bones), device=self.template.device)
        return dense.scatter_add_(1, self.skin_index, self.skin_weight)

    @cached_property
    def bone_levels(self) -> tuple[tuple[list[int], list[int]], ...]:
        """Bones by depth below the root, each with its parent's place in the level above."""
        levels: list[tuple[list[int], list[int]]] = [([0], [])]
        while sum(len(bones) for bones, _ in levels) < len(self.bones):
            above = {bone: place for place, bone in enumerate(levels[-1][0])}
            bones = [bone for bone, parent in enumerate(self.parents) if parent in above]
            levels.append((bones, [above[self.parents[bone]] for bone in bones]))
        return tuple(levels)

    def rest(self, shape_BK: Tensor) -> Posed:
        """Vertices and bone heads of shapes (B, K) in the rest pose."""
        self._check("shape_BK", shape_BK, (len(self.shape_basis),))
        return Posed(
            self.template + torch.tensordot(shape_BK, self.shape_basis, dims=1),
            self.bone_template + torch.tensordot(shape_BK, self.bone_basis, dims=1),
        )

    def pose(self, rotations_BN33: Tensor, shape_BK: Tensor) -> Posed:
        """Pose shapes: forward kinematics, then linear blend skinning.

        With rest heads p, the rotation of bone i is ``G_i = G_parent R_i``, its head
        ``P_i = P_parent + G_parent (p_i - p_parent)``, and a vertex v becomes
        ``sum_i w_i (G_i (v - p_i) + P_i)``. The root turns about its own head.

        Args:
            rotations_BN33: (B, N, 3, 3) rotation deltas in rest-frame axes.
            shape_BK: (B, K) shape coefficients.

        Returns:
            Vertices (B, V, 3) and bone heads (B, N, 3), rest frame, metres.

        Raises:
            InputError: A shape does not fit the rig, or the batch sizes differ.
        """
        self._check("rotations_BN33", rotations_BN33, (len(self.bones), 3, 3))
        if len(rotations_BN33) != len(shape_BK):
            raise InputError(
                f"rotations_BN33 and shape_BK: expected one batch size, found "
                f"{len(rotations_BN33)} and {len(shape_BK)}; expand one of them"
            )
        rest = self.rest(shape_BK)
        turned_BN33, heads_BN3 = self._kinematics(rotations_BN33, rest.bones)
        offset_BN31 = heads_BN3[..., None] - turned_BN33 @ rest.bones[..., None]
        transform_BN34 = torch.cat([turned_BN33, offset_BN31], -1)
        # All bodies share the weights, so one wide product replaces B narrow ones.
        blended = self.skin_matrix @ transform_BN34.transpose(0, 1).flatten(1)
        blended_BV34 = blended.reshape(len(blended), -1, 3, 4).transpose(0, 1)
        linear, translation = blended_BV34[..., :3], blended_BV34[..., 3]
        vertices = (linear @ rest.vertices[..., None])[..., 0] + translation
        return Posed(vertices, heads_BN3)

    def world_rotations(self, rotations_BN33: Tensor) -> Tensor:
        """Rotations (B, N, 3, 3) of the bones from the rest pose; arguments as for `pose`."""
        heads = self.bone_template.expand(len(rotations_BN33), -1, -1)
        return self._kinematics(rotations_BN33, heads)[0]

    def joints(self, posed: Posed) -> Tensor:
        """(B, J, 3) joints of ``posed`` in the order of the skeleton, rest frame, metres."""
        joints_BJ3 = regress(posed.vertices, self.regressor_index, self.regressor_weight)
        bone_J = torch.tensor(self.joint_bones, device=joints_BJ3.device)
        heads_BJ3 = posed.bones[:, bone_J.clamp(min=0)]
        return torch.where((bone_J >= 0)[:, None], heads_BJ3, joints_BJ3)

    def topology_vertices(self, posed: Posed) -> Tensor:
        """(B, Vt, 3) vertices of the topology among those of the rig."""
        return posed.vertices[:, self.topology_index]

    def sample_shape(self, rng: np.random.Generator) -> Tensor:
        """(K,) shape: a body of the bank or, half of the time, a mix of two of them."""
        return self.sample_mix(rng).of(self.shape_bank)

    def sample_mix(self, rng: np.random.Generator) -> BankMix:
        """Draw what `sample_shape` draws, so that the phenotypes of the body are known as well."""
        first, second = rng.integers(len(self.shape_bank), size=2).tolist()
        share = float(rng.uniform()) if rng.uniform() < MIX_PROBABILITY else 1.0
        return BankMix(first, second, share)

    def phenotype(self, name: str, mix: BankMix) -> float:
        """A phenotype of a mixed body, mixed as its shape is.

        Raises:
            InputError: The bank does not know it.
        """
        if name not in self.phenotype_names:
            raise InputError(
                f"name: rig '{self.name}' knows no phenotype '{name}'; it knows "
                f"{', '.join(self.phenotype_names)}"
            )
        return float(mix.of(self.bank_phenotypes)[self.phenotype_names.index(name)])

    def to(self, device: torch.device | str) -> "Rig":
        """Copy with all tensors on ``device``."""
        moved: dict[str, Any] = {
            name: getattr(self, name).to(device) for name in (*_INDICES, *_HALVES, *_FLOATS)
        }
        masks = {name: mask.to(device) for name, mask in self.masks.items()}
        return replace(self, **moved, masks=masks)

    def metadata(self) -> dict[str, Any]:
        """What a file must say beside the tensors of :meth:`to_tensors`; plain JSON values."""
        values = {name: getattr(self, name) for name in _METADATA}
        return values | {"masks": list(self.masks)}

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file: narrow integers, float16 except the templates."""
        packed = {name: compact_index(getattr(self, name)) for name in _INDICES}
        packed |= {name: getattr(self, name).half().contiguous() for name in _HALVES}
        packed |= {name: getattr(self, name).float().contiguous() for name in _FLOATS}
        return packed | {"masks": torch.stack(list(self.masks.values())).half()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> "Rig":
        """Inverse of :meth:`to_tensors` and :meth:`metadata`; indices int64, values float32.

        Raises:
            InputError: A tensor or a metadata entry is missing.
        """
        expected = {*_INDICES, *_HALVES, *_FLOATS, "masks"}
        missing = (expected - set(tensors)) | ({*_METADATA, "masks"} - set(metadata))
        if missing:
            raise InputError(
                f"rig: entries {sorted(missing)} are missing; the file is truncated or was not "
                "written by this library"
            )
        index: dict[str, Any] = {name: tensors[name].long() for name in _INDICES}
        value: dict[str, Any] = {name: tensors[name].float() for name in (*_HALVES, *_FLOATS)}
        value["skin_weight"] = value["skin_weight"] / value["skin_weight"].sum(1, keepdim=True)
        masks = dict(zip(metadata["masks"], tensors["masks"].float(), strict=True))
        plain: dict[str, Any] = {
            name: tuple(entry) if isinstance(entry := metadata[name], list | tuple) else entry
            for name in _METADATA
        }
        return cls(**plain, **index, **value, masks=masks)

    def _kinematics(self, rotations_BN33: Tensor, rest_BN3: Tensor) -> tuple[Tensor, Tensor]:
        """World rotations (B, N, 3, 3) and posed heads (B, N, 3), one product per tree level."""
        turned, heads = [rotations_BN33[:, :1]], [rest_BN3[:, :1]]
        for bones, places in self.bone_levels[1:]:
            parents = [self.parents[bone] for bone in bones]
            above = turned[-1][:, places]
            reach = (rest_BN3[:, bones] - rest_BN3[:, parents])[..., None]
            heads.append(heads[-1][:, places] + (above @ reach)[..., 0])
            turned.append(above @ rotations_BN33[:, bones])
        order = [bone for bones, _ in self.bone_levels for bone in bones]
        place = sorted(range(len(order)), key=order.__getitem__)
        return torch.cat(turned, 1)[:, place], torch.cat(heads, 1)[:, place]

    def _check(self, argument: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.shape[1:] != shape or value.ndim != len(shape) + 1:
            expected = ", ".join(["B", *map(str, shape)])
            raise InputError(
                f"{argument}: expected shape ({expected}) for rig '{self.name}', "
                f"found {tuple(value.shape)}; see Rig.bones and Rig.shape_bank"
            )


_METADATA = ("name", "skeleton", "bones", "parents", "phenotype_names", "joint_bones")
_INDICES = ("faces", "skin_index", "topology_index", "regressor_index", "tip_index")
_HALVES = ("shape_basis", "bone_basis", "skin_weight", "shape_bank", "bank_phenotypes")
_FLOATS = ("template", "bone_template", "regressor_weight")
