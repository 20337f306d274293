"""Parts of POTTER's blocks made of the fused layers; see `optimised`, which puts them in place.

Shape legend: B batch, C channels, H and W size of a map.
"""

from torch import Tensor, nn

from kinemesh.models.fused_blocks import ConvMaker
from kinemesh.models.pooling_attention import MLP


class FusedMLP(nn.Module):
    """An `MLP` in evaluation, whose activation is part of its first product.

    Args:
        mlp: What it stands for.
        make: Fuses a convolution and the activation after it.
    """

    def __init__(self, mlp: MLP, make: ConvMaker) -> None:
        super().__init__()
        self.fc1 = make(mlp.fc1, None, "gelu")
        self.fc2 = make(mlp.fc2, None, "none")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        out: Tensor = self.fc2(self.fc1(x_BCHW))
        return out
