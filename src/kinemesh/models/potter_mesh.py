"""POTTER's mesh network up to the body model: 29 joints, twists, shape and camera from a crop.

A heat-map branch reads the joints' places in the image and their depth; a parameter branch reads
the twist of each bone, the body's shape and the camera. Inverse kinematics and the body model
follow elsewhere. Tensor names equal those of the official code (POTTER: Zheng et al., CVPR 2023;
the head is HybrIK's: Li et al., CVPR 2021).

Shape legend: B batch, J joints, C channels of the head, S image side in pixels, D depth cells, H
and W height and width of the volume, T bones with a twist, K shape coefficients.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.pooling_attention import global_norm
from kinemesh.models.potter_trunk import PotterTrunk, TrunkConfig, folded_weight, widened

_STRIDE = 4  # of the volume
_CROP = 256.0  # the camera's side of the crop, a constant in the official code
_EPSILON = 1e-9
_UNINFORMED_CAMERA = (0.9, 0.0, 0.0)
_STARTING_STD = 1e-3


@dataclass(frozen=True)
class PotterMeshConfig(TrunkConfig):
    """Sizes of a `PotterMesh`; the defaults are published.

    Attributes:
        joints: J.
        side: S, a multiple of 32.
        depth: D; None: S / 4, as the volume's other sides, which is published.
        head_width: C.
        hidden: Units of the two layers of the parameter branch.
        head_dropout: Share of them that training drops.
        twists: T.
        shapes: K.
        focal_px: Focal length of the camera, for crops of 256 px.
        depth_range_m: Metres from the nearest to the farthest depth, the unit of the joints.
    """

    joints: int = 29
    side: int = 256
    depth: int | None = None
    head_width: int = 256
    hidden: int = 1024
    head_dropout: float = 0.2
    twists: int = 23
    shapes: int = 10
    focal_px: float = 1000.0
    depth_range_m: float = 2.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 32 or self.side % 32:
            raise InputError(f"side: expected a multiple of 32 px, found {self.side}.")
        if min(self.focal_px, self.depth_range_m) <= 0:
            raise InputError("focal_px, depth_range_m: expected positive numbers.")

    @property
    def cells(self) -> int:
        """H and W."""
        return self.side // _STRIDE

    @property
    def depth_cells(self) -> int:
        """D."""
        return self.cells if self.depth is None else self.depth


class PotterMeshRaw(NamedTuple):
    """What the network predicts.

    Attributes:
        joints_uvd: (B,J,3): x and y in [-0.5, 0.5] of the crop's width and height, and depth about
            the root in units of ``depth_range_m``; x right, y down, z forward.
        joints_xyz: (B,J,3) in the camera's frame about its root position, units of
            ``depth_range_m``; in evaluation about the first joint.
        confidence: (B,J) largest logit of each joint's volume, the official ``maxvals``.
        twist: (B,T,2) cosine and sine of the twists, not of unit length.
        shape: (B,K) shape coefficients.
        shape_offset: (B,K) the part of them that was read from the image.
        camera_scale: (B,1) s; the root is 1000 / (256 s) metres away.
        camera_shift: (B,2) tx, ty, metres.
        camera_root: (B,1,3) the first joint in the camera's frame, metres.
    """

    joints_uvd: Tensor
    joints_xyz: Tensor
    confidence: Tensor
    twist: Tensor
    shape: Tensor
    shape_offset: Tensor
    camera_scale: Tensor
    camera_shift: Tensor
    camera_root: Tensor


class PotterMesh(nn.Module):
    """Heat-map and parameter branch on one trunk.

    Args:
        config: Sizes.
        mean_shape: (K,) the shape that the network predicts offsets from; zeros if None. It is in
            the state dict, as in official files.

    Raises:
        InputError: ``mean_shape`` does not have K values.
    """

    init_shape: Tensor
    init_cam: Tensor

    def __init__(self, config: PotterMeshConfig, mean_shape: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        mean_shape = torch.zeros(config.shapes) if mean_shape is None else mean_shape
        if mean_shape.shape != (config.shapes,):
            raise InputError(
                f"mean_shape: expected ({config.shapes},), found {tuple(mean_shape.shape)}."
            )
        self.register_buffer("init_shape", mean_shape.detach().clone().float())
        self.register_buffer("init_cam", torch.tensor(_UNINFORMED_CAMERA))
        self._build_heatmap_branch(config)
        self.fc1 = nn.Linear(config.widths[-1], config.hidden)
        self.fc2 = nn.Linear(config.hidden, config.hidden)
        self.drop = nn.Dropout(config.head_dropout)
        self.decshape = nn.Linear(config.hidden, config.shapes)
        self.decphi = nn.Linear(config.hidden, 2 * config.twists)
        self.deccam = nn.Linear(config.hidden, 3)

    def _build_heatmap_branch(self, config: PotterMeshConfig) -> None:
        joints, width = config.joints, config.head_width
        self.poolattnformer_pose = PotterTrunk(config)
        entry = nn.Conv2d(config.widths[0], width, 1)
        assert entry.bias is not None
        nn.init.normal_(entry.weight, std=_STARTING_STD)
        nn.init.zeros_(entry.bias)
        self.up_sample = nn.Sequential(entry, nn.GELU())
        self.norm1 = global_norm(width)
        self.final_layer = nn.Conv2d(width, joints * config.depth_cells, 1)
        self.pose_layer = nn.Sequential(
            nn.Conv3d(joints, joints, 1),
            nn.GELU(),
            global_norm(joints),
            nn.Conv3d(joints, joints, 1),
        )
        self.norm2 = global_norm(joints)

    def forward(self, image_B3SS: Tensor) -> PotterMeshRaw:
        """Predict joints and parameters.

        Args:
            image_B3SS: Crops, RGB, normalised as the weights were trained: the published ones with
                ImageNet's statistics in the order blue, green, red.

        Raises:
            InputError: The image does not have the side of the configuration.
        """
        side = self.config.side
        if image_B3SS.shape[-2:] != (side, side):
            raise InputError(
                f"image: expected {side} x {side} px, found {tuple(image_B3SS.shape[-2:])}; resize "
                "the crop, or build the network with another side."
            )
        trunk = self.poolattnformer_pose(image_B3SS)
        logits_BJDHW = self.logits(self.norm1(self.up_sample(trunk.fine)))
        with torch.autocast(image_B3SS.device.type, enabled=False):  # a cell is many millimetres
            uvd_BJ3 = expected_cells(widened(logits_BJDHW))
        offset_BK, twist_BT2, camera_B3 = self._read_parameters(
            self.poolattnformer_pose.norm3(trunk.coarse)
        )
        camera_B3 = camera_B3 + self.init_cam
        xyz_BJ3, root_B13 = self.back_project(uvd_BJ3, camera_B3)
        return PotterMeshRaw(
            joints_uvd=uvd_BJ3,
            joints_xyz=xyz_BJ3 if self.training else xyz_BJ3 - xyz_BJ3[:, :1],
            confidence=logits_BJDHW.flatten(2).amax(2),
            twist=twist_BT2,
            shape=offset_BK + self.init_shape,
            shape_offset=offset_BK,
            camera_scale=camera_B3[:, :1],
            camera_shift=camera_B3[:, 1:],
            camera_root=root_B13,
        )

    def logits(self, features_BCHW: Tensor) -> Tensor:
        """(B,J,D,H,W) before softmax.

        The first convolution of ``pose_layer`` is one with ``final_layer``, and the norm before
        the second is part of its weight, so the large volume is read a few times less.
        """
        weight, bias = folded_weight(self.final_layer, self.pose_layer[0])  # type: ignore[arg-type]
        channels = F.gelu(F.conv2d(features_BCHW, weight, bias))
        sizes = (self.config.depth_cells, *channels.shape[2:])
        volume_BJV = channels.reshape(len(channels), self.config.joints, -1)
        norm, mix = self.pose_layer[2], self.pose_layer[3]
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(mix, nn.Conv3d)
        assert mix.bias is not None
        variance_B11, mean_B11 = torch.var_mean(volume_BJV, (1, 2), correction=0, keepdim=True)
        scale_B1J = norm.weight * (variance_B11 + norm.eps).rsqrt()
        shift_BJ1 = norm.bias[:, None] - scale_B1J.mT * mean_B11
        weight_JJ = mix.weight.flatten(1)
        bias_BJ1 = weight_JJ @ shift_BJ1 + mix.bias[:, None]
        mixed_BJV = torch.baddbmm(bias_BJ1, weight_JJ * scale_B1J, volume_BJV)
        out: Tensor = self.norm2(mixed_BJV)
        return out.reshape(*out.shape[:2], *sizes)

    def _read_parameters(self, coarse_BChw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Shape offset (B,K), twists (B,T,2) and camera offset (B,3)."""
        pooled = coarse_BChw.mean(dim=(2, 3))
        hidden = self.drop(self.fc2(self.drop(self.fc1(pooled))))
        return (
            self.decshape(hidden),
            self.decphi(hidden).reshape(-1, self.config.twists, 2),
            self.deccam(hidden),
        )

    def back_project(self, uvd_BJ3: Tensor, camera_B3: Tensor) -> tuple[Tensor, Tensor]:
        """Joints in the camera's frame.

        Args:
            uvd_BJ3: As `PotterMeshRaw.joints_uvd`.
            camera_B3: s, tx, ty.

        Returns:
            (B,J,3) about the camera's root position, in units of ``depth_range_m``, and the first
            joint (B,1,3) in the camera's frame, metres.
        """
        unit = self.config.depth_range_m
        scale_B11, shift_B12 = camera_B3[:, None, :1], camera_B3[:, None, 1:]
        distance_B11 = 1000.0 / (_CROP * scale_B11 + _EPSILON)
        uv_BJ2, depth_BJ1 = uvd_BJ3[..., :2], uvd_BJ3[..., 2:]
        along_BJ2 = uv_BJ2 * (_CROP / self.config.focal_px)
        xy_BJ2 = (along_BJ2 * (depth_BJ1 * unit + distance_B11) - shift_B12) / unit
        xyz_BJ3 = torch.cat([xy_BJ2, depth_BJ1], dim=2)
        root_B13 = xyz_BJ3[:, :1] * unit + torch.cat([shift_B12, distance_B11], dim=2)
        return xyz_BJ3, root_B13


def expected_cells(logits_BJDHW: Tensor) -> Tensor:
    """Soft argmax (B,J,3) of volumes: x, y and depth as shares of the axes, minus a half.

    A cell counts with its index, not its centre, as published.
    """
    batch, joints, depth, height, width = logits_BJDHW.shape
    heights_BJV = logits_BJDHW.flatten(2)
    weights_BJV = (heights_BJV - heights_BJV.amax(2, keepdim=True)).exp()
    x_W, y_H, z_D = (_cells(size, logits_BJDHW) for size in (width, height, depth))
    ones_HW = x_W.new_ones(height, width)
    plane_P3 = torch.stack([ones_HW * x_W, ones_HW * y_H[:, None], ones_HW], dim=2).flatten(0, 1)
    # One product gives each depth's mass and its moments in x and y.
    moments_BJD3 = weights_BJV.reshape(batch, joints, depth, height * width) @ plane_P3
    mass_BJD = moments_BJD3[..., 2]
    sums_BJ3 = torch.cat([moments_BJD3[..., :2].sum(2), (mass_BJD @ z_D)[..., None]], dim=2)
    expected_BJ3: Tensor = sums_BJ3 / mass_BJD.sum(2)[..., None]
    return expected_BJ3 - 0.5


def _cells(size: int, like: Tensor) -> Tensor:
    """Places of an axis' cells in [0,1)."""
    return torch.arange(size, device=like.device, dtype=like.dtype) / size
