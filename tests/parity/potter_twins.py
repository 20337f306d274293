"""POTTER's heads and pooling written out: the slow, obvious twins of the networks.

Every layer of the official code runs, on the whole volume and in its order, so that its outputs can
be recorded.
"""

import torch
from torch import Tensor

from kinemesh.models.potter_hand import PotterHand
from kinemesh.models.potter_mesh import PotterMesh


class WrittenOutHand(PotterHand):
    """The hand network with sums over the volume that ``pose_layer`` makes."""

    def forward(self, image_B3SS: Tensor) -> Tensor:
        """As the parent's, with the norm that nothing reads."""
        trunk = self.poolattnformer_pose(image_B3SS)
        self.poolattnformer_pose.norm3(trunk.coarse)
        joints_BJ3: Tensor = self.pose_3d_head(
            self.marginals(self.norm1(self.up_sample(trunk.fine)))
        )
        return joints_BJ3

    def marginals(self, features_BCHW: Tensor) -> Tensor:
        """As the parent's."""
        volume = _volume(self.final_layer(features_BCHW), self.config.joints)
        volume = self.pose_layer(volume)
        return torch.cat([volume.sum((2, 3)), volume.sum((2, 4)), volume.sum((3, 4))], dim=2)


class WrittenOutMesh(PotterMesh):
    """The mesh network with each layer of the heat-map branch by itself."""

    def logits(self, features_BCHW: Tensor) -> Tensor:
        """As the parent's."""
        volume = _volume(self.final_layer(features_BCHW), self.config.joints)
        out: Tensor = self.norm2(self.pose_layer(volume))
        return out


def _volume(channels: Tensor, joints: int) -> Tensor:
    return channels.reshape(len(channels), joints, -1, *channels.shape[2:])


def expected_cells(logits_BJDHW: Tensor) -> Tensor:
    """Soft argmax with a softmax over all cells and a sum over each axis."""
    batch, joints, *sizes = logits_BJDHW.shape
    share = logits_BJDHW.flatten(2).softmax(2).reshape(batch, joints, *sizes)
    axes = {4: (2, 3), 3: (2, 4), 2: (3, 4)}  # the others, by axis of x, y and depth
    places = [
        (share.sum(others) * torch.arange(share.shape[axis])).sum(2) / share.shape[axis]
        for axis, others in axes.items()
    ]
    return torch.stack(places, dim=2) - 0.5


def pooled_to_4(values: Tensor) -> Tensor:
    """Adaptive average pooling of the last axis, bin by bin."""
    length = values.shape[-1]
    bins = [(k * length // 4, -(-(k + 1) * length // 4)) for k in range(4)]
    return torch.stack([values[..., start:stop].mean(-1) for start, stop in bins], dim=-1)


def patchwise_attention(x_BCHW: Tensor) -> Tensor:
    """Sum over four cells of the map pooled along each side."""
    rows, columns = pooled_to_4(x_BCHW), pooled_to_4(x_BCHW.mT)
    return torch.einsum("bcik,bcjk->bcij", rows, columns)


def embedwise_attention(x_BCHW: Tensor) -> Tensor:
    """The same for the vector of each position as a matrix of 32 rows."""
    batch, channels, height, width = x_BCHW.shape
    tokens = x_BCHW.flatten(2).transpose(1, 2)
    matrices = tokens.reshape(batch, height * width, 32, channels // 32)
    rows, columns = pooled_to_4(matrices), pooled_to_4(matrices.mT)
    product = torch.einsum("bnrk,bndk->bnrd", rows, columns)
    return product.flatten(2).transpose(1, 2).reshape(x_BCHW.shape)
