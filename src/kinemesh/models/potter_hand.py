"""POTTER's hand network: 21 joints about the wrist from the crop of one hand.

Each joint gets a volume over depth, height and width; its sums along the three axes are read by a
small network. The volumes are neither normalised to 1 nor turned into coordinates. Left and right
hands share one network and are not mirrored. Tensor names equal those of the official code
(Ego-Exo4D hand pose baseline, after POTTER: Zheng et al., CVPR 2023).

Shape legend: B batch, J joints, C channels of the head, S image side in pixels, D depth cells, H
and W height and width of the volume.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.pooling_attention import global_norm
from kinemesh.models.potter_trunk import PotterTrunk, TrunkConfig, folded_weight, widened

_STRIDE = 4  # of the volume


@dataclass(frozen=True)
class PotterHandConfig(TrunkConfig):
    """Sizes of a `PotterHand`; the defaults are published.

    Attributes:
        joints: J.
        side: S, a multiple of 32.
        depth: D; None: S / 4, as the volume's other sides, which is published.
        head_width: C.
        lifting_width: Hidden units of the network that reads the sums.
    """

    joints: int = 21
    side: int = 224
    depth: int | None = None
    head_width: int = 256
    lifting_width: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 32 or self.side % 32:
            raise InputError(f"side: expected a multiple of 32 px, found {self.side}.")
        if min(self.joints, self.depth_cells, self.head_width, self.lifting_width) < 1:
            raise InputError(
                "joints, depth, head_width, lifting_width: expected 1 or more each, found "
                f"{(self.joints, self.depth, self.head_width, self.lifting_width)}."
            )

    @property
    def cells(self) -> int:
        """H and W."""
        return self.side // _STRIDE

    @property
    def depth_cells(self) -> int:
        """D."""
        return self.cells if self.depth is None else self.depth


class PotterHand(nn.Module):
    """The whole network.

    Args:
        config: Sizes.
    """

    def __init__(self, config: PotterHandConfig) -> None:
        super().__init__()
        self.config = config
        joints, width = config.joints, config.head_width
        self.poolattnformer_pose = PotterTrunk(config)
        self.norm1 = global_norm(width)
        self.up_sample = nn.Sequential(nn.Conv2d(config.widths[0], width, 1), nn.GELU())
        self.final_layer = nn.Conv2d(width, joints * config.depth_cells, 1)
        self.pose_layer = nn.Sequential(
            nn.Conv3d(joints, joints, 1),
            nn.GELU(),
            nn.GroupNorm(joints, joints),
            nn.Conv3d(joints, joints, 1),
        )
        self.pose_3d_head = nn.Sequential(
            nn.Linear(2 * config.cells + config.depth_cells, config.lifting_width),
            nn.ReLU(),
            nn.GroupNorm(joints, joints),
            nn.Linear(config.lifting_width, 3),
        )
        # No output depends on it; distributed training would wait for its gradient.
        self.poolattnformer_pose.norm3.requires_grad_(False)

    def forward(self, image_B3SS: Tensor) -> Tensor:
        """Predict joints.

        Args:
            image_B3SS: Crops, RGB, normalised with ImageNet's mean and standard deviation.

        Returns:
            (B,J,3) about the wrist, of unit size: `JointStatistics.denormalise` makes millimetres.

        Raises:
            InputError: The image does not have the side of the configuration.
        """
        side = self.config.side
        if image_B3SS.shape[-2:] != (side, side):
            raise InputError(
                f"image: expected {side} x {side} px, found {tuple(image_B3SS.shape[-2:])}; resize "
                "the crop, or build the network with another side."
            )
        fine = self.poolattnformer_pose(image_B3SS).fine
        features_BCHW = self.norm1(self.up_sample(fine))
        joints_BJ3: Tensor = self.pose_3d_head(self.marginals(features_BCHW))
        return joints_BJ3

    def marginals(self, features_BCHW: Tensor) -> Tensor:
        """Sums of each joint's volume along two axes: (B,J,W+H+D), over x, y and z.

        Norm and last convolution of ``pose_layer`` are linear in each joint's sums, so they are
        applied to the sums, and the first is one convolution with ``final_layer``.
        """
        weight, bias = folded_weight(self.final_layer, self.pose_layer[0])  # type: ignore[arg-type]
        channels = F.gelu(F.conv2d(features_BCHW, weight, bias))
        sizes = (self.config.joints, self.config.depth_cells, *channels.shape[2:])
        volume_BJDHW = widened(channels).reshape(-1, *sizes)
        with torch.autocast(volume_BJDHW.device.type, enabled=False):
            return self._normed_and_mixed(_sums(volume_BJDHW), volume_BJDHW)

    def _normed_and_mixed(self, sums_BJA: Tensor, volume_BJDHW: Tensor) -> Tensor:
        """What ``pose_layer`` after its GELU, and sums, make of the volume.

        Args:
            sums_BJA: (B,J,W+H+D) of the volume before the norm.
            volume_BJDHW: That volume, for its mean and variance.
        """
        norm, mix = self.pose_layer[2], self.pose_layer[3]
        assert isinstance(norm, nn.GroupNorm)
        assert isinstance(mix, nn.Conv3d)
        assert mix.bias is not None
        variance_BJ1, mean_BJ1 = torch.var_mean(volume_BJDHW.flatten(2), 2, False, keepdim=True)
        terms_A = _terms_in_sums(volume_BJDHW)
        scale_BJ1 = norm.weight[:, None] * (variance_BJ1 + norm.eps).rsqrt()
        normed_BJA = (sums_BJA - terms_A * mean_BJ1) * scale_BJ1 + terms_A * norm.bias[:, None]
        return mix.weight.flatten(1) @ normed_BJA + terms_A * mix.bias[:, None]


def _sums(volume_BJDHW: Tensor) -> Tensor:
    """(B,J,W+H+D): the volume summed over all axes but x, but y and but z."""
    plane_BJHW = volume_BJDHW.sum(2)
    sums = (plane_BJHW.sum(2), plane_BJHW.sum(3), volume_BJDHW.sum((3, 4)))
    return torch.cat(sums, dim=2)


def _terms_in_sums(volume_BJDHW: Tensor) -> Tensor:
    """(W+H+D): how many cells each entry of `_sums` adds."""
    depth, height, width = volume_BJDHW.shape[2:]
    x = volume_BJDHW.new_full((width,), depth * height)
    y = volume_BJDHW.new_full((height,), depth * width)
    return torch.cat([x, y, volume_BJDHW.new_full((depth,), height * width)])
