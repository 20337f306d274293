"""Training in less memory: activations are computed again instead of kept (Chen et al., 2016).

A checkpointed block keeps only its input. The backward pass runs the block's forward once more, so
a step costs up to a third more arithmetic and needs the activations of one block at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kinemesh.models import detr, hrnet, resnet
from kinemesh.models.bert_block import Layer
from kinemesh.models.deformable_detr import DeformableDecoderLayer, DeformableEncoderLayer
from kinemesh.models.point_hmr_backbones import OuterBranchesModule
from kinemesh.models.point_sampling import MapHead
from kinemesh.models.pooling_attention import PoolFormerBlock
from kinemesh.models.progressive_attention import MaskedLayer


class _Checkpointed(nn.Module):
    """Mixed in before a block's class: its forward keeps the arguments alone."""

    def forward(self, *inputs: Any) -> Any:
        """As the block; arguments and results as there."""
        return _recomputed(self, super().forward, *inputs)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


class _CheckpointedLayer(_Checkpointed, Layer):
    pass


class _CheckpointedEncoderLayer(_Checkpointed, detr.EncoderLayer):
    pass


class _CheckpointedDecoderLayer(_Checkpointed, detr.DecoderLayer):
    pass


class _CheckpointedDeformableEncoderLayer(_Checkpointed, DeformableEncoderLayer):
    pass


class _CheckpointedDeformableDecoderLayer(_Checkpointed, DeformableDecoderLayer):
    pass


class _CheckpointedModule(_Checkpointed, hrnet.HighResolutionModule):
    pass


class _CheckpointedBottleneck(_Checkpointed, resnet.Bottleneck):
    pass


class _CheckpointedOuterModule(_Checkpointed, OuterBranchesModule):
    pass


class _CheckpointedMaskedLayer(_Checkpointed, MaskedLayer):
    pass


class _CheckpointedPoolFormerBlock(_Checkpointed, PoolFormerBlock):
    pass


class _CheckpointedHead(MapHead):
    """A head's blocks one by one: all of a head at once are a third of its network's memory."""

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """As the head."""
        for block in self:
            x_BCHW = _recomputed(block, block, x_BCHW)
        return x_BCHW


_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    Layer: _CheckpointedLayer,
    PoolFormerBlock: _CheckpointedPoolFormerBlock,
    detr.EncoderLayer: _CheckpointedEncoderLayer,
    detr.DecoderLayer: _CheckpointedDecoderLayer,
    DeformableEncoderLayer: _CheckpointedDeformableEncoderLayer,
    DeformableDecoderLayer: _CheckpointedDeformableDecoderLayer,
    hrnet.HighResolutionModule: _CheckpointedModule,
    resnet.Bottleneck: _CheckpointedBottleneck,
    OuterBranchesModule: _CheckpointedOuterModule,
    MaskedLayer: _CheckpointedMaskedLayer,
    MapHead: _CheckpointedHead,
}


def checkpoint_activations(network: nn.Module) -> int:
    """Make the blocks of a network compute their activations again in the backward pass.

    Those are the layers of all transformers, HRNet's exchange modules and bottlenecks. Names,
    values and gradients stay; dropout draws the same numbers again, and batch norm's running
    statistics are updated once. Without gradients nothing changes.

    Returns:
        How many blocks were changed.
    """
    count = 0
    for module in network.modules():
        twin = _TWINS.get(type(module))
        if twin is not None:
            module.__class__ = twin
            count += 1
    return count


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """The second forward normalises by the batch again but must not count it again."""
    norms = [
        module
        for module in block.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.training
        and module.track_running_stats
    ]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
