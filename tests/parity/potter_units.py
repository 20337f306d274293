"""POTTER's parts by themselves: pooling attention, its block, splits and the stream."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.models.pooling_attention import PoolAttn, PoolFormerBlock
from kinemesh.models.potter_trunk import (
    HighResolutionStream,
    PatchEmbed,
    PatchSplit,
    TrunkConfig,
)
from tests.parity.potter_twins import pooled_to_4
from tests.seeded_weights import input_image, parameter

Config = Mapping[str, Any]
_BINS = re.compile(r"adaptive_pool_(\d+)_to_4")


def _split(config: Config) -> nn.Module:
    if config.get("norm") not in {None, "GroupNorm"}:
        raise ValueError(f"norm: there is no {config['norm']!r}")
    return PatchSplit(config["in_chans"], config["embed_dim"], norm=config.get("norm") is not None)


MODULES: dict[str, Callable[[Config, int], nn.Module]] = {
    "PoolAttn": lambda c, _: PoolAttn(c["dim"]),
    "PoolFormerBlock": lambda c, _: PoolFormerBlock(c["dim"], c["mlp_ratio"]),
    "PatchSplit": lambda c, _: _split(c),
    "PatchEmbed": lambda c, out: PatchEmbed(3, out, c["kernel"], c["stride"], c["padding"]),
    "HR_stream": lambda c, _: HighResolutionStream(TrunkConfig(widths=tuple(c["dim"]))),
}


@torch.no_grad()
def arrays(
    entries: Mapping[str, Mapping[str, Any]], golden: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Our values by golden key; lengths whose bins are shown are read from the golden keys."""
    ours: dict[str, object] = {}
    for name, entry in entries.items():
        ours[name] = _output(entry)
    for match in filter(None, map(_BINS.fullmatch, golden)):
        ours[match[0]] = bins(int(match[1]))
    return ours


def bins(length: int) -> Tensor:
    """(1,4): the squares of 0 to L - 1 pooled as `PoolAttn` pools, along both axes of a map."""
    squares = torch.arange(length).float().square()
    along = nn.functional.adaptive_avg_pool2d(squares[None, None], (1, 4))[0]
    torch.testing.assert_close(along, pooled_to_4(squares)[None])
    return along


def _output(entry: Mapping[str, Any]) -> Tensor:
    shapes = {name: tuple(shape) for name, shape in entry["state_dict"].items()}
    config, salt = entry["config"], entry["salt"]
    module = MODULES[config["module"]](config, next(iter(shapes.values()))[0]).eval()
    drawn = {name: parameter(name, shape, salt) for name, shape in shapes.items()}
    module.load_state_dict({name: torch.from_numpy(value) for name, value in drawn.items()})
    inputs = [input_image(name, tuple(shape)) for name, shape in entry["inputs"].items()]
    out: Tensor = module(inputs[0] if len(inputs) == 1 else inputs)
    return out
