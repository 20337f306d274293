"""Convolutions and linear layers for inference: norm folded in, activation and sum in one pass.

On a CPU most layers around a convolution cost memory traffic and no arithmetic: batch norm, ReLU
and the sum of a residual block each read and write the whole map. oneDNN, the library below
PyTorch's CPU convolutions, can do all of it while a result is still in registers, and keeps weights
in the order its kernels read. PyTorch offers these calls to its compiler as ``torch.ops.mkldnn``;
the layers here make them directly. Where PyTorch lacks them, or on another device, the same layers
are made of plain operations.

Shape legend: B batch, C channels, H and W size of a map, D in and H out width of a linear layer.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kinemesh.models.folding import fold_batch_norm
from kinemesh.models.query_tokens import QueryTokens, TokenLinear

Activation = Literal["none", "relu", "relu6", "gelu"]
Kernels = Literal["onednn", "plain"]
"""``onednn``: weights packed for oneDNN. ``plain``: operations that torch.compile can fuse."""

# Names and parameters that oneDNN's calls know the activations by: attribute, scalars, algorithm.
_POST_OPS: dict[Activation, tuple[str, list[float], str]] = {
    "none": ("none", [], ""),
    "relu": ("relu", [], ""),
    "relu6": ("hardtanh", [0.0, 6.0], ""),
    "gelu": ("gelu", [], "none"),  # algorithm "none" is the exact form with erf
}
_CALLS = (
    "_convolution_pointwise",
    "_convolution_pointwise_",
    "_linear_pointwise",
    "_reorder_convolution_weight",
    "_reorder_linear_weight",
)


def onednn_available(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this build of PyTorch has oneDNN's fused calls and this CPU computes in ``dtype``."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in _CALLS):
        return False
    if dtype == torch.float32:
        return True
    # Without the instructions for it, oneDNN emulates bfloat16 slowly or refuses.
    return dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation by its name."""
    if activation == "relu":
        return F.relu(x)
    if activation == "relu6":
        return F.relu6(x)
    return F.gelu(x) if activation == "gelu" else x


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether each output pixel reads one input pixel."""
    return set(conv.kernel_size) == {1} and {int(size) for size in conv.padding} == {0}


class PackedLayer(nn.Module):
    """A layer whose weight may be packed for oneDNN, which only this process can read.

    For copies and pickles the weight is unpacked and, at the other end, packed again.
    """

    weight: Tensor
    packed: bool

    def pack(self, weight: Tensor) -> Tensor:
        """Bring a plain weight into the order that the kernels of this layer read."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if self.packed:
            plain = self.weight.to_dense(self.weight.dtype)
            state["_buffers"] = {**self._buffers, "weight": plain}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self.packed:
            self._buffers["weight"] = self.pack(self.weight)


class FusedConv2d(PackedLayer):
    """``activation(norm(conv(x)))``, or ``relu(total + norm(conv(x)))``, in one call.

    Inference only: there are no parameters and no gradients. Results are in ``dtype``, whatever
    the input is in. Packed 1x1 convolutions are products of pixels and channels: oneDNN's own 1x1
    kernels want weights packed for one size of map and are ten times slower on another.

    Args:
        conv: Convolution with zero padding.
        norm: Batch norm after it, used with its running statistics, or None.
        activation: What follows.
        dtype: Of weights and products.
        kernels: See `Kernels`.
    """

    bias: Tensor

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None,
        activation: Activation = "none",
        dtype: torch.dtype = torch.float32,
        kernels: Kernels = "onednn",
    ) -> None:
        super().__init__()
        weight, bias = fold_batch_norm(conv, norm)
        weight = weight.to(dtype).contiguous(memory_format=torch.channels_last)
        padding = [int(size) for size in conv.padding]
        self._geometry = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        self.activation = activation
        self.packed = kernels == "onednn"
        self.by_pixel = self.packed and conv.groups == 1 and is_pointwise(conv)
        self.register_buffer(
            "weight", self.pack(weight) if self.packed else weight, persistent=False
        )
        self.register_buffer("bias", bias.to(dtype), persistent=False)

    def pack(self, weight: Tensor) -> Tensor:
        """Order a (C',C,h,w) weight; one of a 1x1 convolution may have lost its last two axes."""
        packed: Tensor
        if self.by_pixel:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))
        else:
            weight = weight.contiguous(memory_format=torch.channels_last)
            packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry)
        return packed

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B,C',H',W')."""
        x_BCHW = x_BCHW.to(self.bias.dtype)
        if not self.packed:
            return activate(self._convolve(x_BCHW), self.activation)
        post_ops = _POST_OPS[self.activation]
        if self.by_pixel:
            out_BHWC: Tensor = torch.ops.mkldnn._linear_pointwise(
                self._pixels(x_BCHW), self.weight, self.bias, *post_ops
            )
            return out_BHWC.permute(0, 3, 1, 2)
        out_BCHW: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x_BCHW, self.weight, self.bias, *self._geometry, *post_ops
        )
        return out_BCHW

    def add_to(self, total_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        """Return ``activation(total + norm(conv(x)))``; ``total`` may be overwritten.

        The activation must be "none" or "relu", which is all that oneDNN puts after a sum.
        """
        x_BCHW = x_BCHW.to(self.bias.dtype)
        if not self.packed:
            return activate(total_BCHW + self._convolve(x_BCHW), self.activation)
        if self.by_pixel:
            total_BHWC = total_BCHW.permute(0, 2, 3, 1).contiguous()
            out_BHWC: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
                self._pixels(x_BCHW), total_BHWC, self.weight, self.bias, "add"
            )
            out_BCHW = out_BHWC.permute(0, 3, 1, 2)
            return F.relu_(out_BCHW) if self.activation == "relu" else out_BCHW
        return torch.ops.mkldnn._convolution_pointwise_.binary(  # type: ignore[no-any-return]
            total_BCHW,
            x_BCHW,
            self.weight,
            self.bias,
            *self._geometry,
            *("add", 1.0, "relu" if self.activation == "relu" else None, [], None),
        )

    def _pixels(self, x_BCHW: Tensor) -> Tensor:
        """(B,H',W',C) what a 1x1 convolution reads."""
        vertical, horizontal = self._geometry[1]
        return x_BCHW[:, :, ::vertical, ::horizontal].permute(0, 2, 3, 1).contiguous()

    def _convolve(self, x_BCHW: Tensor) -> Tensor:
        padding, stride, dilation, groups = self._geometry
        return F.conv2d(x_BCHW, self.weight, self.bias, stride, padding, dilation, groups)


class FusedLinear(PackedLayer):
    """``activation(linear(x))``, or ``total + linear(x)``, in one call.

    Inference only. Results are in ``dtype``, whatever the input is in.

    Args:
        linear: Weight (H,D) and bias, if any.
        activation: What follows.
        dtype: Of weights and products.
        kernels: See `Kernels`.
    """

    bias: Tensor | None

    def __init__(
        self,
        linear: nn.Linear,
        activation: Activation = "none",
        dtype: torch.dtype = torch.float32,
        kernels: Kernels = "onednn",
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.activation = activation
        weight = linear.weight.detach().to(dtype)
        self.packed = kernels == "onednn"
        self.register_buffer(
            "weight", self.pack(weight) if self.packed else weight, persistent=False
        )
        bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        self.register_buffer("bias", bias, persistent=False)

    def pack(self, weight: Tensor) -> Tensor:
        """Order a (H,D) weight."""
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
        return packed

    def forward(self, x: Tensor) -> Tensor:
        """Map (...,D) to (...,H)."""
        x = x.to(self.dtype)
        if not self.packed:
            return activate(F.linear(x, self.weight, self.bias), self.activation)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, *_POST_OPS[self.activation]
        )
        return out

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Return ``total + linear(x)`` in the wider of their dtypes."""
        if not self.packed or total.dtype != self.dtype:
            summed: Tensor = total + self(x)
            return summed
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x.to(self.dtype), total, self.weight, self.bias, "add"
        )
        return out


class FusedTokenLinear(nn.Module):
    """A `TokenLinear` that multiplies tokens written out in ``dtype``, and factors in float32.

    The factors are few, so they cost little, and template positions keep their digits.
    """

    def __init__(self, linear: TokenLinear, dtype: torch.dtype, kernels: Kernels) -> None:
        super().__init__()
        self.factored = linear
        self.dense = FusedLinear(linear, "none", dtype, kernels)

    def forward(self, tokens: Tensor | QueryTokens) -> Tensor:
        """Return (B,T,H)."""
        if isinstance(tokens, Tensor):
            out_BTH: Tensor = self.dense(tokens)
            return out_BTH
        queries_BQH: Tensor = self.factored(tokens._replace(others_BGD=None))
        if tokens.others_BGD is None:
            return queries_BQH
        return torch.cat([queries_BQH, self.dense(tokens.others_BGD)], dim=1)
