"""A guard that fails where a training step would wait for an accelerator.

On a CPU nothing waits, so nothing would show; the guard looks at the operations instead.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITING = (
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique"),
    "lift_fresh",  # a tensor of Python numbers, also a list of indices: copied while the host waits
)


class NoWaiting(TorchDispatchMode):
    """Fails on operations whose result the host has to wait for, and on boolean indices."""

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        assert not name.startswith(WAITING), f"{operation} waits for the device"
        if name.startswith("index"):
            for tensor in tree_leaves(args[1:]):
                if isinstance(tensor, torch.Tensor):
                    assert tensor.dtype != torch.bool, f"{operation} with a boolean index"
        return operation(*args, **(kwargs or {}))
