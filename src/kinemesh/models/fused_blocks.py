"""Blocks of the backbones and transformers, made of the fused layers.

Each class stands for the class it is built from, takes the same arguments and returns the same
values up to rounding; see `optimised`, which puts them in place.

Shape legend: B batch, C channels, H and W size of a map, T tokens.
"""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.models.bert_block import AddNorm, SelfAttention
from kinemesh.models.efficientnet_lite import InvertedResidual, SamePadConv2d, same_padding
from kinemesh.models.fused_layers import Activation, FusedConv2d, FusedLinear, Kernels
from kinemesh.models.hrnet import BasicBlock, HighResolutionModule
from kinemesh.models.point_sampling import ShortcutBlock
from kinemesh.models.resnet import Bottleneck


class FusedSamePadConv2d(FusedConv2d):
    """A fused `SamePadConv2d`, which pads for the size it is given."""

    def __init__(
        self,
        conv: SamePadConv2d,
        norm: nn.Module | None,
        activation: Activation = "none",
        dtype: torch.dtype = torch.float32,
        kernels: Kernels = "onednn",
    ) -> None:
        super().__init__(conv, norm, activation, dtype, kernels)
        self._stride, self._kernel = conv.stride[0], conv.kernel_size[0]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C',ceil(H/stride),ceil(W/stride))."""
        if self._stride > 1:
            top, bottom = same_padding(x_BCHW.shape[-2], self._kernel, self._stride)
            left, right = same_padding(x_BCHW.shape[-1], self._kernel, self._stride)
            x_BCHW = F.pad(x_BCHW, (left, right, top, bottom))
        return super().forward(x_BCHW)


ConvMaker = Callable[[nn.Module, nn.Module | None, Activation], FusedConv2d]
"""Fuses a convolution, the norm after it and the activation after that."""


class FusedSequence(nn.Sequential):
    """A sequence that ends in a fused convolution, which can add to a given sum."""

    def add_to(self, total_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return ``activation(total + sequence(x))``; ``total`` may be overwritten."""
        *first, last = self
        for layer in first:
            x_BCHW = layer(x_BCHW)
        assert isinstance(last, FusedConv2d)
        return last.add_to(total_BCHW, x_BCHW)


def fuse_sequence(layers: nn.Module, make: ConvMaker, end: Activation = "none") -> FusedSequence:
    """Fuse nested sequences of convolution, batch norm and ReLU.

    Args:
        layers: `nn.Sequential` of these layers or of such sequences.
        make: Makes the fused convolutions.
        end: Activation after the last layer, if that is not a ReLU itself.

    Raises:
        TypeError: There is another layer between them.
    """
    flat = [layer for layer in layers.modules() if not isinstance(layer, nn.Sequential)]
    fused = []
    while flat:
        conv = flat.pop(0)
        if not isinstance(conv, nn.Conv2d):
            raise TypeError(f"expected a convolution, found {type(conv).__name__}")
        norm = flat.pop(0) if flat and is_norm(flat[0]) else None
        activation: Activation = "none" if flat else end
        if flat and isinstance(flat[0], nn.ReLU):
            flat.pop(0)
            activation = "relu"
        fused.append(make(conv, norm, activation))
    return FusedSequence(*fused)


def is_norm(layer: nn.Module) -> bool:
    """Whether it is a batch norm, frozen or not, that `fold_batch_norm` takes."""
    return hasattr(layer, "running_mean") and hasattr(layer, "running_var")


class FusedBasicBlock(nn.Module):
    """A `BasicBlock` of two calls. The input is overwritten."""

    def __init__(self, block: BasicBlock, make: ConvMaker) -> None:
        super().__init__()
        self.first = make(block.conv1, block.bn1, "relu")
        self.second = make(block.conv2, block.bn2, "relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C,H,W)."""
        return self.second.add_to(x_BCHW, self.first(x_BCHW))


class FusedBottleneck(nn.Module):
    """A `Bottleneck` of three or four calls. Without a down-sampling the input is overwritten."""

    def __init__(self, block: Bottleneck, make: ConvMaker) -> None:
        super().__init__()
        self.first = make(block.conv1, block.bn1, "relu")
        self.second = make(block.conv2, block.bn2, "relu")
        self.third = make(block.conv3, block.bn3, "relu")
        self.skip: nn.Module = nn.Identity()
        if not isinstance(block.downsample, nn.Identity):
            self.skip = fuse_sequence(block.downsample, make)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C',H',W')."""
        return self.third.add_to(self.skip(x_BCHW), self.second(self.first(x_BCHW)))


class FusedShortcutBlock(nn.Module):
    """A `ShortcutBlock` of three calls."""

    def __init__(self, block: ShortcutBlock, make: ConvMaker) -> None:
        super().__init__()
        self.first = make(block.conv1, block.bn1, "relu")
        self.second = make(block.conv2, block.bn2, "relu")
        self.skip = fuse_sequence(block.downsample, make)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C',H,W)."""
        return self.second.add_to(self.skip(x_BCHW), self.first(x_BCHW))


class FusedHighResolutionModule(nn.Module):
    """A `HighResolutionModule` that sums coarse maps before it enlarges them. Overwrites its input.

    Nearest up-sampling commutes with sums, so the maps that come from below are added at the
    coarsest size they share and enlarged by two from step to step, and ReLU is part of the last
    call. The terms of a sum are the same in another order.
    """

    def __init__(self, module: HighResolutionModule, make: ConvMaker) -> None:
        super().__init__()
        count = len(module.branches)
        self.branches = nn.ModuleList(
            nn.Sequential(*(FusedBasicBlock(cast(BasicBlock, block), make) for block in branch))
            for branch in cast(list[nn.Sequential], list(module.branches))
        )
        rows = cast(list[list[nn.Sequential]], list(module.fuse_layers))
        self.up = nn.ModuleList(
            nn.ModuleList(make(rows[i][j][0], rows[i][j][1], "none") for j in range(i + 1, count))
            for i in range(count)
        )
        self.down = nn.ModuleList(
            nn.ModuleList(
                fuse_sequence(rows[i][j], make, "relu" if j == i - 1 else "none") for j in range(i)
            )
            for i in range(count)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return one map per branch, fine to coarse, with the shapes that came in."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._fuse(maps, target) for target in range(len(maps))]

    def _fuse(self, maps: list[Tensor], target: int) -> Tensor:
        up = cast(nn.ModuleList, self.up[target])
        down = cast(nn.ModuleList, self.down[target])
        below: Tensor | None = None
        for layer, x in reversed(list(zip(up, maps[target + 1 :], strict=True))):
            below = layer(x) if below is None else add_enlarged(layer(x), below)
        total = maps[target].clone() if below is None else add_enlarged(maps[target], below)
        for layer, x in zip(down, maps[:target], strict=True):
            total = cast(FusedSequence, layer).add_to(total, x)
        return F.relu_(total) if target == 0 else total


def add_enlarged(fine_BCHW: Tensor, coarse_BChw: Tensor) -> Tensor:
    """``fine + nearest(coarse)`` for maps whose sides are whole multiples, in one pass."""
    B, C, h, w = coarse_BChw.shape
    rows, columns = fine_BCHW.shape[2] // h, fine_BCHW.shape[3] // w
    blocks_BChiwj = fine_BCHW.view(B, C, h, rows, w, columns)
    total_BChiwj = blocks_BChiwj + coarse_BChw[:, :, :, None, :, None]
    return total_BChiwj.flatten(4, 5).flatten(2, 3)


class FusedInvertedResidual(nn.Module):
    """An `InvertedResidual` of two or three calls. Where it skips, the input is overwritten."""

    def __init__(self, block: InvertedResidual, make: ConvMaker) -> None:
        super().__init__()
        self.expand: nn.Module = nn.Identity()
        if block.expands:
            self.expand = make(block._expand_conv, block._bn0, "relu6")
        self.depthwise = make(block._depthwise_conv, block._bn1, "relu6")
        self.project = make(block._project_conv, block._bn2, "none")
        self.skips = block.skips

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C',H,W)."""
        y = self.depthwise(self.expand(x_BCHW))
        return self.project.add_to(x_BCHW, y) if self.skips else self.project(y)


class FusedAddNorm(nn.Module):
    """An `AddNorm` whose sum is part of the product."""

    def __init__(self, add_norm: AddNorm, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        self.dense = FusedLinear(add_norm.dense, "none", dtype, kernels)
        self.LayerNorm = add_norm.LayerNorm

    def forward(self, x: Tensor, residual_BTH: Tensor) -> Tensor:
        """Return (B,T,H)."""
        out_BTH: Tensor = self.LayerNorm(self.dense.add_to(residual_BTH, x))
        return out_BTH


class FusedSelfAttention(nn.Module):
    """A `SelfAttention` in bfloat16 as two batched products around a softmax.

    PyTorch's fused attention for CPUs multiplies small tiles; for hundreds of tokens oneDNN's whole
    products in bfloat16 take half of its time. In float32 they do not, so it stays there.
    """

    def __init__(self, attention: SelfAttention, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        self.heads = attention.heads
        self.qkv = FusedLinear(attention.qkv, "none", dtype, kernels)

    def forward(self, x_BTH: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        """Return the context (B,T,H), and the probabilities (B,A,T,T) if asked for."""
        B, T, _ = x_BTH.shape
        heads_BT3AK = self.qkv(x_BTH).view(B, T, 3, self.heads, -1)
        # One copy puts the heads into the batch, which is what a batched product wants.
        query_NTK, key_NTK, value_NTK = heads_BT3AK.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
        scale = query_NTK.shape[-1] ** -0.5
        scores_NTT = torch.baddbmm(
            query_NTK.new_zeros(()), query_NTK, key_NTK.mT, beta=0, alpha=scale
        )
        probability_NTT = scores_NTT.softmax(dim=-1)
        context_NTK = torch.bmm(probability_NTT, value_NTK)
        context_BTH = context_NTK.view(B, self.heads, T, -1).transpose(1, 2).flatten(2)
        if not return_attention:
            return context_BTH, None
        return context_BTH, probability_NTT.view(B, self.heads, T, T).float()
