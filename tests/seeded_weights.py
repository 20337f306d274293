"""Weights and inputs that follow from their names, so that goldens need no checkpoint.

The reference outputs were computed with tensors whose values depend on nothing but the tensor's
official name, its shape and a salt: the CRC-32 of salt and name seeds NumPy's legacy generator
(whose stream never changes), and its normal numbers are scaled by what the tensor is for.
"""

import math
import zlib

import numpy as np
import torch
from torch import Tensor

COUNTERS = ("num_batches_tracked", "position_ids")


def normal(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Float32 normal numbers that belong to ``name``."""
    generator = np.random.RandomState(zlib.crc32((salt + name).encode()))
    return generator.standard_normal(shape).astype(np.float32)


def input_image(name: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    """A network input: normal noise under a name of its own kind."""
    return torch.from_numpy(normal("input:" + name, shape, salt))


def parameter(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Float32 value of a parameter or buffer, by the general rule."""
    z = normal(name, shape, salt)
    if name.endswith("running_var"):
        value = 1 + 0.1 * np.abs(z)
    elif name.endswith("running_mean"):
        value = 0.1 * z
    elif len(shape) > 1:
        value = z / np.sqrt(math.prod(shape[1:]))  # by the root of the fan-in
    else:
        value = 1 + 0.1 * z if name.endswith("weight") else 0.1 * z
    return value.astype(np.float32)


def mesh_transformer_parameter(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """The general rule with METRO's and Mesh Graphormer's two deviations.

    Doubled variances keep HRNet's outputs small, and position tables of unit scale make hand
    tokens, whose image feature is the same, differ.
    """
    if name.endswith(".bert.position_embeddings.weight"):
        return normal(name, shape, salt)
    value = parameter(name, shape, salt)
    if name.startswith("backbone.") and name.endswith("running_var"):
        value = value * np.float32(2.0)
    return value


def mesh_transformer_state(
    shapes: dict[str, tuple[int, ...]], prefix: str = "", salt: str = ""
) -> dict[str, Tensor]:
    """State dict for ``shapes``, whose names lack ``prefix`` of their official names."""
    state = {}
    for name, shape in shapes.items():
        if name.endswith(COUNTERS):
            state[name] = torch.zeros(shape, dtype=torch.int64)
        else:
            state[name] = torch.from_numpy(
                mesh_transformer_parameter(prefix + name, tuple(shape), salt)
            )
    return state
