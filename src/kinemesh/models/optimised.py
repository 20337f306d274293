"""Networks rewritten for inference: the same outputs in less time.

`optimise` exchanges layers of a network for fused ones (`fused_layers`): batch norm becomes part of
its convolution, activations and sums part of the call before them, and weights are kept in the
order in which the CPU's kernels read them. Maps are kept channels last. With bfloat16 the backbone
and the layers of the transformer multiply in bfloat16, while residual sums, norms, graph
convolutions and everything that is measured in metres stay in float32.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import AddNorm, BlockChain, Intermediate, Layer, SelfAttention
from kinemesh.models.efficientnet_lite import EfficientNetLite0, InvertedResidual, SamePadConv2d
from kinemesh.models.fused_blocks import (
    FusedAddNorm,
    FusedBasicBlock,
    FusedBottleneck,
    FusedHighResolutionModule,
    FusedInvertedResidual,
    FusedSamePadConv2d,
    FusedSelfAttention,
    FusedShortcutBlock,
    fuse_sequence,
    is_norm,
)
from kinemesh.models.fused_layers import (
    Activation,
    FusedConv2d,
    FusedLinear,
    FusedTokenLinear,
    Kernels,
    onednn_available,
)
from kinemesh.models.fused_pooling import FusedMLP
from kinemesh.models.hrnet import BasicBlock, HighResolutionModule, HRNet
from kinemesh.models.point_sampling import MapHead, ShortcutBlock
from kinemesh.models.pooling_attention import MLP
from kinemesh.models.potter_hand import PotterHand
from kinemesh.models.potter_mesh import PotterMesh
from kinemesh.models.query_tokens import TokenLinear
from kinemesh.models.resnet import Bottleneck, ResNet

Mode = Literal["eager", "compiled"]

# Stems: convolution and norm are attributes of the network, and its forward has the activation
# after them; applying it twice changes nothing.
_STEMS: dict[type[nn.Module], tuple[tuple[str, str, Activation], ...]] = {
    HRNet: (("conv1", "bn1", "relu"), ("conv2", "bn2", "relu")),
    ResNet: (("conv1", "bn1", "relu"),),
    EfficientNetLite0: (("_conv_stem", "_bn0", "relu6"), ("_conv_head", "_bn1", "relu6")),
}

# The layer that makes a backbone's last map. What comes after it is float32 whatever the backbone
# multiplies in, so its output is widened.
_LAST: dict[type[nn.Module], str] = {
    HRNet: "final_layer",
    ResNet: "layer4",
    EfficientNetLite0: "_blocks.15",
}


# Layers whose weights the network itself reads, to multiply them with each other first.
_READ: dict[type[nn.Module], tuple[str, ...]] = {
    PotterHand: ("final_layer", "pose_layer"),
    PotterMesh: ("final_layer", "pose_layer"),
}


class _Widened(nn.Module):
    """A layer with its output in float32."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out.float()


class OptimisedNetwork(nn.Module):
    """What `optimise` returns: a network for inference on images of any batch size.

    Attributes of the original network (``config``, ``resolution``, ...) can be read from it.
    """

    def __init__(self, network: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        self._run = run

    @torch.no_grad()
    def forward(self, image_B3SS: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the original network, without gradients; arguments after the image are passed on."""
        image_B3SS = image_B3SS.contiguous(memory_format=torch.channels_last)
        return self._run(image_B3SS, *args, **kwargs)

    def train(self, mode: bool = True) -> "OptimisedNetwork":
        """Refuse training mode: norms are folded and weights are packed.

        Raises:
            InputError: ``mode`` is True.
        """
        if mode:
            raise InputError(
                "An optimised network cannot be trained; train the original and optimise it again."
            )
        return super().train(mode)

    def __getattr__(self, name: str) -> Any:
        """Look where modules do, then in the original network."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


def optimise(
    network: nn.Module,
    dtype: torch.dtype = torch.float32,
    mode: Mode = "eager",
    kernels: Kernels | None = None,
) -> OptimisedNetwork:
    """Rewrite a network for inference on the CPU; the original is not changed.

    Both hold weights, so delete the original if memory is short.

    Args:
        network: A network on the CPU made of this package's backbones and transformer blocks;
            layers of other kinds are kept. Switched to evaluation.
        dtype: float32, which keeps the outputs up to rounding, or bfloat16.
        mode: "eager" runs at once. "compiled" has `torch.compile` write kernels for each new input
            shape, which takes about a minute for a large network.
        kernels: "onednn" or "plain", see `fused_layers`; by default oneDNN's where they are there
            and nothing is compiled.

    Raises:
        InputError: Another dtype, or the network is not on the CPU.
    """
    _check(network, dtype)
    if kernels is None:
        packed = mode == "eager" and onednn_available(dtype)
        kernels = "onednn" if packed else "plain"
    rewritten = _Rewriter(dtype, kernels).rewrite(network).eval()
    run: Callable[..., Any] = rewritten
    if mode == "compiled":
        # Constant weights let the compiler choose their layout, as packing does in eager mode.
        run = torch.compile(rewritten, fullgraph=True, options={"freezing": True})
    return OptimisedNetwork(rewritten, run).eval()


def _check(network: nn.Module, dtype: torch.dtype) -> None:
    if dtype not in {torch.float32, torch.bfloat16}:
        raise InputError(f"dtype: expected torch.float32 or torch.bfloat16, found {dtype}.")
    devices = {str(tensor.device) for tensor in network.parameters()} - {"cpu"}
    if devices:
        raise InputError(f"network: expected its parameters on the CPU, found {sorted(devices)}.")


class _Rewriter:
    """Copies a tree of modules and exchanges those that have a fused twin."""

    def __init__(self, dtype: torch.dtype, kernels: Kernels) -> None:
        self.dtype, self.kernels = dtype, kernels

    def rewrite(self, module: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return a fused twin, or a copy of the module around rewritten children.

        ``dtype`` is that of products below this module.
        """
        if isinstance(module, (HRNet, ResNet, EfficientNetLite0, Layer, MapHead)):
            dtype = self.dtype
        if isinstance(module, BlockChain):
            return self._chain(module)
        if isinstance(module, nn.TransformerEncoderLayer):
            return module  # has a fused path of its own, which reads the weights of its parts
        twin = self._twin(module, dtype)
        return self._copy(module, dtype) if twin is None else twin

    def _chain(self, chain: BlockChain) -> nn.Module:
        """All blocks in the chosen dtype, but for the ends of the last, whose output is metres."""
        clone = self._copy(chain, self.dtype)
        last = str(len(chain) - 1)
        clone.__dict__["_modules"][last] = self.rewrite(chain[-1])
        return clone

    def _twin(self, module: nn.Module, dtype: torch.dtype) -> nn.Module | None:
        make = partial(self._conv, dtype=dtype)
        linear = partial(FusedLinear, dtype=dtype, kernels=self.kernels)
        twins: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
            BasicBlock: lambda block: FusedBasicBlock(block, make),
            Bottleneck: lambda block: FusedBottleneck(block, make),
            ShortcutBlock: lambda block: FusedShortcutBlock(block, make),
            HighResolutionModule: lambda block: FusedHighResolutionModule(block, make),
            InvertedResidual: lambda block: FusedInvertedResidual(block, make),
            AddNorm: lambda half: FusedAddNorm(half, dtype, self.kernels),
            MLP: lambda part: FusedMLP(part, make),
            Intermediate: lambda half: linear(half.dense, "gelu"),
            nn.Linear: linear,
            TokenLinear: lambda layer: FusedTokenLinear(layer, dtype, self.kernels),
            nn.Conv2d: lambda conv: make(conv, None, "none"),
            SamePadConv2d: lambda conv: make(conv, None, "none"),
        }
        if dtype == torch.bfloat16:
            twins[SelfAttention] = lambda part: FusedSelfAttention(part, dtype, self.kernels)
        if type(module) is nn.Sequential and _only_convolutions(module):
            return fuse_sequence(module, make)
        twin = twins.get(type(module))
        return None if twin is None else twin(module)

    def _conv(
        self,
        conv: nn.Module,
        norm: nn.Module | None,
        activation: Activation,
        dtype: torch.dtype,
    ) -> FusedConv2d:
        kind = FusedSamePadConv2d if isinstance(conv, SamePadConv2d) else FusedConv2d
        return kind(conv, norm, activation, dtype, self.kernels)  # type: ignore[arg-type]

    def _copy(self, module: nn.Module, dtype: torch.dtype) -> nn.Module:
        clone = copy.copy(module)
        for table in ("_parameters", "_buffers", "_modules"):
            clone.__dict__[table] = dict(module.__dict__[table])
        children = clone.__dict__["_modules"]
        for conv, norm, activation in self._stems(module):
            children[conv] = self._conv(children[conv], children[norm], activation, dtype)
            children[norm] = nn.Identity()
        read = _READ.get(type(module), ())
        for name, child in children.items():
            if child is not None and not isinstance(child, FusedConv2d) and name not in read:
                children[name] = self.rewrite(child, dtype)
        for kind, last in _LAST.items():
            has_last = isinstance(module, kind) and hasattr(module, last.partition(".")[0])
            if has_last and dtype != torch.float32:
                clone.set_submodule(last, _Widened(clone.get_submodule(last)))
        return clone

    @staticmethod
    def _stems(module: nn.Module) -> list[tuple[str, str, Activation]]:
        return [
            stem
            for kind, stems in _STEMS.items()
            if isinstance(module, kind)
            for stem in stems
            if hasattr(module, stem[0])
        ]


def _only_convolutions(sequence: nn.Module) -> bool:
    """Whether `fuse_sequence` can take it."""
    layers = [layer for layer in sequence.modules() if not isinstance(layer, nn.Sequential)]
    known = all(isinstance(layer, (nn.Conv2d, nn.ReLU)) or is_norm(layer) for layer in layers)
    return known and bool(layers) and isinstance(layers[0], nn.Conv2d)
