"""Mesh Graphormer guided by 2D heat maps: the small network behind the shipped weights.

Mesh Graphormer (Lin et al., ICCV 2021) gives every query the same pooled image vector. A small
backbone trained for hours, not days, learns faster when the queries know where to look: here a
heat-map branch finds the joints in 2D, the image features at those places become the joint
queries, and each vertex query is a blend of the joint queries near it. The encoder after that is
the paper's, narrow; its joints are given the limb lengths of a person (`limb_lengths`), and its
vertices refine the template as the joints pose it (`posed_template`).

Shapes: B batch, S image side, J joints, N coarse vertices, V full vertices, G grid cells,
D feature width, h x w heat map.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kinemesh.bodies.topology import Topology, regress
from kinemesh.errors import InputError
from kinemesh.geometry.crops import from_signed
from kinemesh.geometry.heat_maps import peak_share, soft_argmax
from kinemesh.models.attention_maps import Evidence, joint_attention
from kinemesh.models.efficientnet_lite import FEATURE_CHANNELS, EfficientNetLite0, normalise
from kinemesh.models.graphormer import GraphormerEncoder
from kinemesh.models.limb_lengths import LimbLengths
from kinemesh.models.posed_template import PosedTemplate


@dataclass(frozen=True)
class GuidedGraphormerConfig:
    """Sizes of a `GuidedGraphormer`.

    Attributes:
        resolution: Side of the square input crop, pixels; a multiple of 32.
        neck_dim: Channels of the stride-4 map that the heat maps are read from.
        query_dim: Width of the joint encoder and of the queries given to the mesh encoder.
        query_layers: Layers of the joint encoder, which sees joints and grid cells only.
        hidden_dims: Hidden widths of the three mesh encoder blocks.
        block_layers: Layers in each block.
        heads: Attention heads of the joint encoder.
        mesh_heads: Attention heads of the mesh encoder, whose many tokens make heads dear.
        neighbours: Joints whose queries are blended to the query of a vertex.
        batch_norm_momentum: How fast the backbone's running statistics follow the batches; the
            backbone's own value suits long training, a short run needs a larger one.
        frozen_blocks: Keep the stem and this many of the backbone's 16 blocks as they were loaded.
            Three blocks make a training step a quarter faster and keep the edge filters that were
            learned from photos.
        spread: Also predict how far off each joint will be.
        mesh_share: Share of a training batch that goes through the mesh encoder, which takes as
            long as the backbone; at least one sample. Joints are learned from all samples.
    """

    resolution: int = 128
    neck_dim: int = 64
    query_dim: int = 128
    query_layers: int = 3
    hidden_dims: tuple[int, int, int] = (64, 48, 32)
    block_layers: int = 2
    heads: int = 4
    mesh_heads: int = 2
    neighbours: int = 3
    batch_norm_momentum: float = 0.01
    frozen_blocks: int = 0
    spread: bool = False
    mesh_share: float = 1.0

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together.

        Raises:
            InputError: A size is impossible; the message names it.
        """
        rules = [
            ("resolution", self.resolution, self.resolution % 32 == 0, "a multiple of 32"),
            ("query_dim", self.query_dim, self.query_dim % self.heads == 0, "divisible by heads"),
            (
                "hidden_dims",
                self.hidden_dims,
                all(width % self.mesh_heads == 0 for width in self.hidden_dims),
                "divisible by mesh_heads",
            ),
            ("frozen_blocks", self.frozen_blocks, 0 <= self.frozen_blocks <= 16, "from 0 to 16"),
            ("mesh_share", self.mesh_share, 0 < self.mesh_share <= 1, "above 0 and at most 1"),
        ]
        for name, value, holds, wanted in rules:
            if not holds:
                raise InputError(f"network.{name} must be {wanted}, found {value}.")


class GuidedOutput(NamedTuple):
    """What the network sees in a batch of crops. The root frame has camera axes, metres.

    Attributes:
        joints: (B, J, 3) root frame.
        coarse: (M, N, 3) coarse vertices, root frame, of the last M samples of the batch: all of
            them, but in training mode `mesh_share` of them. The joints of the others are
            ``lifted``.
        vertices: (B, V, 3) full mesh, root frame; V is 0 in training mode, which needs the
            coarse vertices only.
        joints_2d: (B, J, 2) crop pixels; joints outside the crop lie outside [0, S].
        confidence: (B, J) in [0, 1]: probability of being inside the crop, times the share of the
            heat map within two cells of its peak's centre of mass.
        camera: (B, 3) weak perspective (s, tx, ty): p = s (X_xy + t) in [-1, 1] of the crop.
        inside_logits: (B, J) logit of the joint being inside the crop.
        side_logits: (B,) logit of the crop showing a right hand; meaningless for bodies.
        heat_map_logits: (B, J, h, w).
        lifted: (B, J, 3) joints before the mesh encoder, root frame.
        spread: (B, J, 2) expected distance of ``joints`` (metres) and ``joints_2d`` (crop pixels)
            from the truth; None of a network that does not predict it.
    """

    joints: Tensor
    coarse: Tensor
    vertices: Tensor
    joints_2d: Tensor
    confidence: Tensor
    camera: Tensor
    inside_logits: Tensor
    side_logits: Tensor
    heat_map_logits: Tensor
    lifted: Tensor
    spread: Tensor | None


class FeaturePyramid(nn.Module):
    """Top-down sum of the backbone's maps at the finest stride (Lin et al., CVPR 2017)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(channels, dim, 1) for channels in FEATURE_CHANNELS)
        self.smooth = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False),
            nn.Conv2d(dim, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
        )

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Sum maps at strides 4 to 32 into one (B, D, S/4, S/4) map."""
        total = self.lateral[-1](maps[-1])
        for lateral, finer in zip(list(self.lateral)[-2::-1], maps[-2::-1], strict=True):
            total = lateral(finer) + F.interpolate(total, size=finer.shape[-2:], mode="nearest")
        summed: Tensor = total + self.smooth(total)
        return summed


class GuidedGraphormer(nn.Module):
    """Crop in, joints and mesh out; see the module's docstring."""

    explains = True
    """There is a method `explain`."""

    template_J3: Tensor
    template_N3: Tensor
    anchor_NJ: Tensor
    up_index: Tensor
    up_weight: Tensor
    length_scale: Tensor

    def __init__(self, config: GuidedGraphormerConfig, topology: Topology) -> None:
        """Build for the joints and the coarsest level of ``topology``."""
        super().__init__()
        self.config = config
        self.root_joints = topology.skeleton.root_indices()
        joints, level = topology.template_joints, topology.coarse
        self._register_topology(topology)
        self.limb_lengths = LimbLengths(topology.skeleton, joints)
        self.posed_template = PosedTemplate(
            topology.skeleton, joints, topology.template[level.vertex_index]
        )
        J, D = len(joints), config.query_dim
        cells = (config.resolution // 32) ** 2
        self.backbone = EfficientNetLite0()
        self.neck = FeaturePyramid(config.neck_dim)
        self.heat_maps = nn.Conv2d(config.neck_dim, J, 1)
        self.joint_feature = nn.Linear(config.neck_dim + 3, D)
        self.grid_feature = nn.Linear(FEATURE_CHANNELS[-1], D)
        self.global_feature = nn.Linear(FEATURE_CHANNELS[-1], D)
        self.positions = nn.Parameter(torch.randn(J + cells, D) * 0.02)
        self.joint_encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                D, config.heads, 2 * D, 0.0, "gelu", batch_first=True, norm_first=True
            ),
            config.query_layers,
            norm=nn.LayerNorm(D),
            enable_nested_tensor=False,
        )
        self.joint_head = nn.Linear(D, 7)
        self.camera_head = nn.Linear(D, 3)
        self.spread_head = nn.Linear(D, 2) if config.spread else None
        self.side_head = nn.Linear(FEATURE_CHANNELS[-1], 1)
        self.mesh_encoder = GraphormerEncoder(
            in_dim=D + 3,
            hidden_dims=config.hidden_dims,
            feed_forward_dims=tuple(2 * width for width in config.hidden_dims),
            out_dims=(config.hidden_dims[1], config.hidden_dims[2], 3),
            layers=config.block_layers,
            heads=config.mesh_heads,
            dropout=0.0,
            positions=J + len(level.vertex_index) + cells,
            graph_blocks=(False, False, True),
            graph_slice=slice(J, J + len(level.vertex_index)),
            adjacency=level.adjacency(),
        )
        self._initialise()

    def _register_topology(self, topology: Topology) -> None:
        joints, level = topology.template_joints, topology.coarse
        vertices = topology.template[level.vertex_index]
        scale = joints.norm(dim=-1).max()

        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        constant("length_scale", scale)
        constant("template_J3", joints / scale)
        constant("template_N3", vertices / scale)
        constant("anchor_NJ", joint_blend(vertices, joints, self.config.neighbours))
        constant("up_index", level.up_index)
        constant("up_weight", level.up_weight)

    def _initialise(self) -> None:
        """Start from the mean: no offsets, a camera that fits the template into the crop."""
        for head in (self.joint_head, self.camera_head, self.side_head):
            nn.init.normal_(head.weight, std=0.002)
            nn.init.zeros_(head.bias)
        for module in self.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = self.config.batch_norm_momentum
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        count, backbone = self.config.frozen_blocks, self.backbone
        stem = [backbone._conv_stem, backbone._bn0] if count else []
        return [*stem, *backbone._blocks[:count]]

    def train(self, mode: bool = True) -> Self:
        """Switch to training or evaluation; frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, image: Tensor) -> GuidedOutput:
        """Recover joints and mesh.

        Args:
            image: (B, 3, S, S) RGB in [0, 1].
        """
        return self._run(image, explain=False)[0]

    def explain(self, image: Tensor) -> tuple[GuidedOutput, Evidence]:
        """As `forward`, and what was looked at.

        Returns:
            The output; and what the joints of the mesh encoder attended to, with the places where
            the joints' features were sampled.
        """
        output, attention = self._run(image, explain=True)
        assert attention is not None
        return output, Evidence(attention, soft_argmax(output.heat_map_logits))

    def _run(self, image: Tensor, explain: bool) -> tuple[GuidedOutput, Tensor | None]:
        S = image.shape[-1]
        maps = self.backbone.features(normalise(image))
        neck = self.neck(maps)
        heat_logits = self.heat_maps(neck).float()
        heat_uv = soft_argmax(heat_logits)
        joint_BJD, grid_BGD, pooled = self._queries(maps[-1], neck, heat_uv, heat_logits)
        camera = self._camera(pooled)
        read = self._read_joints(joint_BJD, heat_uv)
        lifted = self._lift(read, camera)
        rows = self._mesh_rows(len(image))
        joints, coarse, attention = self._mesh(
            lifted[rows], read.length_factor[rows], joint_BJD[rows], grid_BGD[rows], explain
        )
        limbs = self._relative(self.limb_lengths(lifted, read.length_factor))
        full = slice(0, 0) if self.training else slice(None)
        with torch.autocast(coarse.device.type, enabled=False):
            vertices = regress(coarse, self.up_index[full], self.up_weight[full])
        sharpness = peak_share(heat_logits, heat_uv)
        output = GuidedOutput(
            joints=torch.cat([limbs[: rows.start], joints]),
            coarse=coarse,
            vertices=vertices,
            joints_2d=from_signed(read.uv, S),
            confidence=read.inside_logits.sigmoid() * sharpness,
            camera=camera,
            inside_logits=read.inside_logits,
            side_logits=self.side_head(maps[-1].mean((2, 3)))[:, 0].float(),
            heat_map_logits=heat_logits,
            lifted=limbs,
            spread=self._spread(joint_BJD, S),
        )
        return output, attention

    def _mesh_rows(self, batch: int) -> slice:
        """The last samples of a batch, which go through the mesh encoder."""
        share = self.config.mesh_share if self.training else 1.0
        return slice(batch - max(1, round(share * batch)), batch)

    def _spread(self, joint: Tensor, side: int) -> Tensor | None:
        """Expected errors; learning them changes nothing else, as the queries are cut off."""
        if self.spread_head is None:
            return None
        unit = torch.stack([self.length_scale, self.length_scale.new_tensor(side / 2)])
        raw: Tensor = self.spread_head(joint.detach()).float()
        return 0.1 * unit * raw.clamp(-6, 6).exp()

    def _queries(
        self, top: Tensor, neck: Tensor, heat_uv: Tensor, heat_logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode joints and grid cells: (B, J, D), (B, G, D) and the pooled vector (B, D)."""
        J = heat_uv.shape[1]
        sampled = F.grid_sample(neck, heat_uv[:, :, None].to(neck.dtype), align_corners=False)
        peak = heat_logits.flatten(2).softmax(-1).amax(-1, keepdim=True)
        place = torch.cat([heat_uv, peak], -1).to(neck.dtype)
        joint = self.joint_feature(torch.cat([sampled[..., 0].transpose(1, 2), place], -1))
        pooled = self.global_feature(top.mean((2, 3)))
        grid = self.grid_feature(top.flatten(2).transpose(1, 2))
        tokens = torch.cat([joint + pooled[:, None], grid], 1) + self.positions
        tokens = self.joint_encoder(tokens)
        return tokens[:, :J], tokens[:, J:], pooled + tokens.mean(1)

    def _camera(self, pooled: Tensor) -> Tensor:
        """Weak-perspective camera, whose scale is positive and starts near one body per crop."""
        raw = self.camera_head(pooled).float()
        scale = raw[:, :1].clamp(-3, 3).exp() / self.length_scale
        return torch.cat([scale, raw[:, 1:]], 1)

    def _read_joints(self, joint: Tensor, heat_uv: Tensor) -> "_JointReading":
        """Correct the heat maps' places (needed outside the crop), read what no map can say."""
        read = self.joint_head(joint).float()
        return _JointReading(
            uv=heat_uv + read[..., :2],
            offset=read[..., 2:5] * self.length_scale,
            inside_logits=read[..., 5],
            length_factor=(0.6 * read[..., 6].tanh()).exp(),
        )

    def _lift(self, read: "_JointReading", camera: Tensor) -> Tensor:
        """Un-project places with the camera's scale, relative to the root, and add the offsets."""
        flat = self._relative(read.uv) / camera[:, None, :1]
        return F.pad(flat, (0, 1)) + read.offset

    def _mesh(
        self, lifted: Tensor, length_factor: Tensor, joint: Tensor, grid: Tensor, explain: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Run the Graphormer encoder on joints, vertices and grid.

        Its joints are offsets to the lifted joints, of which limb directions are kept; its vertices
        are offsets to the template as posed by the joints. Its attention (B, J, N) comes last, if
        it is asked for.
        """
        B, J, _ = lifted.shape
        features = torch.cat([joint, self.anchor_NJ.to(joint.dtype) @ joint, grid], 1)
        template = torch.cat([self.template_J3, self.template_N3]).expand(B, -1, -1)
        places = F.pad(template, (0, 0, 0, grid.shape[1])).to(features.dtype)
        encoded = self.mesh_encoder.encode(torch.cat([places, features], -1), explain)
        points = template.shape[1]
        attention = (
            joint_attention(encoded.attention[-1], slice(J), slice(J, points)) if explain else None
        )
        offsets = encoded.tokens[:, :points].float() * self.length_scale
        with torch.autocast(lifted.device.type, enabled=False):  # half precision loses millimetres
            joints = self.limb_lengths(lifted + offsets[:, :J], length_factor)
            joints = self._relative(joints)
            return joints, self.posed_template(joints) + offsets[:, J:], attention

    def _root(self, points: Tensor) -> Tensor:
        return points[:, list(self.root_joints)].mean(1, keepdim=True)

    def _relative(self, points: Tensor) -> Tensor:
        return points - self._root(points)


class _JointReading(NamedTuple):
    """What is read off each joint's query.

    Attributes:
        uv: (B, J, 2) places in [-1, 1] of the crop.
        offset: (B, J, 3) metres, added to the lifted joint.
        inside_logits: (B, J) logit of being inside the crop.
        length_factor: (B, J) length of the limb that ends in the joint, over the template's.
    """

    uv: Tensor
    offset: Tensor
    inside_logits: Tensor
    length_factor: Tensor


def joint_blend(vertices_N3: Tensor, joints_J3: Tensor, neighbours: int) -> Tensor:
    """Weights (N, J) that blend the nearest joints of each vertex, by inverse square distance."""
    distance = torch.cdist(vertices_N3, joints_J3)
    nearest = distance.topk(neighbours, largest=False)
    soften = 0.05 * joints_J3.norm(dim=-1).max()
    weight = (nearest.values + soften) ** -2
    blend = torch.zeros_like(distance).scatter(1, nearest.indices, weight)
    return blend / blend.sum(1, keepdim=True)
