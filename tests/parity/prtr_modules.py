"""PRTR's modules by themselves: transformer, position codes, deformable attention.

The manifest gives states and sizes; inputs are drawn by name.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kinemesh.models.deformable_attention import (
    DeformableAttention,
    Levels,
    deformable_attention,
    initial_offsets,
)
from kinemesh.models.deformable_detr import token_references
from kinemesh.models.detr import DetrTransformer
from kinemesh.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from kinemesh.models.prtr_deformable import logit
from tests.parity.prtr_weights import DrawnWeights
from tests.seeded_weights import input_image


def arrays(
    entries: Mapping[str, Mapping[str, Any]], golden: Mapping[str, np.ndarray]
) -> dict[str, object]:
    """Our values by golden key.

    Args:
        entries: Of the manifest, by name.
        golden: For the sizes and numbers that no entry gives.
    """
    salt = _input_salt(entries)
    ours: dict[str, object] = {}
    for name, entry in entries.items():
        if name.startswith("transformer_"):
            ours |= {f"{name}/{key}": value for key, value in _transformer(entry, salt).items()}
    ours |= _positions({"salt": salt, **entries["pos_learned"]}, golden)
    ours |= _deformable_arrays(entries["msda_module"], salt)
    values = torch.from_numpy(golden["inverse_sigmoid_in"])
    return ours | {"inverse_sigmoid_in": values, "inverse_sigmoid_out": logit(values)}


def _input_salt(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The salt of all inputs: that of the module's weights without the module's own mark."""
    return str(entries["msda_module"]["salt"]).replace("msda:", "")


def _seeded(module: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    """Load a module with its drawn state."""
    shapes = {name: tuple(shape) for name, shape in entry["state_dict"].items()}
    salt, post_scale = entry.get("salt", ""), entry.get("post_scale", ())
    module.load_state_dict(DrawnWeights().state(shapes, salt, post_scale))
    return module.eval()


@torch.no_grad()
def _transformer(entry: Mapping[str, Any], salt: str) -> dict[str, Tensor]:
    config = entry["config"]
    network = DetrTransformer(
        config["d_model"],
        config["nhead"],
        config["enc"],
        config["dec"],
        config["ff"],
        pre_norm=config["pre_norm"],
    )
    _seeded(network, entry)
    source = input_image("src", tuple(entry["inputs"]["src"]), salt)
    query = input_image("query", tuple(entry["inputs"]["query"]), salt)
    position = SinePositionEncoding(config["d_model"])(source)
    hidden, memory = network(source, query, position)
    padding = torch.zeros(len(source), *source.shape[-2:], dtype=torch.bool)
    padding[1, 4:] = padding[1, :, 3:] = True  # as the entry's "mask" says
    masked, _ = network(source, query, position, padding)
    return {"hs": hidden, "memory": memory, "hs_masked": masked}


@torch.no_grad()
def _positions(entry: Mapping[str, Any], golden: Mapping[str, np.ndarray]) -> dict[str, object]:
    arrays: dict[str, object] = {}
    for key, code in (
        ("pos_sine_256_12x9", SinePositionEncoding(256)),
        ("pos_learned_256_12x9", _seeded(LearnedPositionEncoding(256), entry)),
    ):
        height, width = golden[key].shape[-2:]
        arrays[key] = code(torch.zeros(1, 1, height, width))[:, ::8]
    return arrays


@torch.no_grad()
def _deformable_arrays(entry: Mapping[str, Any], salt: str) -> dict[str, object]:
    config, inputs = entry["config"], entry["inputs"]
    sizes = [(height, width) for height, width in config["spatial_shapes"]]
    module = DeformableAttention(
        config["d_model"], config["levels"], config["heads"], config["points"]
    )
    _seeded(module, entry)
    query, flat = (
        input_image(name, tuple(inputs[name]), salt) for name in ("msda.query", "msda.flatten")
    )
    shape = tuple(inputs["msda.ref (clip(0.5+0.2z,0,1))"])
    reference = (0.5 + 0.2 * input_image("msda.ref", shape, salt)).clamp(0, 1)
    centres = token_references(sizes, torch.device("cpu"))
    return {
        "msda_core/out": _core(config, len(query), query.shape[1], salt),
        "msda_module/out": module(query, reference, flat, Levels.of(sizes, query)),
        "msda_init/sampling_offsets_bias": initial_offsets(8, 4, 4).flatten(),
        "msda_encoder_reference_points": centres[None, :, None].expand(1, -1, len(sizes), -1),
    }


def _core(config: Mapping[str, Any], batch: int, queries: int, salt: str) -> Tensor:
    sizes = [(height, width) for height, width in config["spatial_shapes"]]
    heads, levels, points = config["heads"], config["levels"], config["points"]
    tokens = sum(height * width for height, width in sizes)
    value = input_image("msda.value", (batch, tokens, heads, config["d_model"] // heads), salt)
    shape = (batch, queries, heads, levels, points)
    locations = 0.5 + 0.4 * input_image("msda.loc", (*shape, 2), salt)
    weights = input_image("msda.attn", (*shape[:3], levels * points), salt).softmax(-1)
    return deformable_attention(value, sizes, locations, weights.reshape(shape))
