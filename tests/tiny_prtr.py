"""PRTR's networks in sizes that run in milliseconds."""

import torch
from torch import Tensor, nn

from kinemesh.models.prtr_variants import build_keypoint_network, describe_keypoint_variant
from tests.seeded_weights import COUNTERS, parameter

TINY_RESNET = {"name": "resnet", "depth": 50, "width": 2}
TINY_HRNET = {
    "name": "hrnet",
    "width": 4,
    "stem_width": 4,
    "head_planes": (2, 2, 2, 4),
    "pooled_channels": 24,
    "modules": (1, 1, 1),
}
TINY = {"heads": 2, "encoder_layers": 1, "decoder_layers": 2, "feed_forward": 24}
TINY_OVERRIDES = {
    "prtr": {**TINY, "backbone": TINY_RESNET, "width": 16, "queries": 20, "size": (64, 96)},
    "prtr-hrnet": {**TINY, "backbone": TINY_HRNET, "width": 16, "queries": 20, "size": (64, 96)},
    "prtr-deformable": {
        **TINY,
        "backbone": TINY_RESNET,
        "width": 32,
        "queries": 20,
        "encoder_points": 3,
        "decoder_points": 2,
        "size": (64, 96),
    },
    "prtr-sequential": {
        **TINY,
        "backbone": TINY_RESNET,
        "width": 16,
        "keypoint_width": 32,
        "person_queries": 6,
        "keypoint_queries": 20,
        "levels": (1, 3),
        "rows": 4,
        "columns": 3,
        "dropout": 0.0,
        "size": (64, 128),
    },
}
_BASES = {
    "prtr": "prtr-coco-res50-384x288",
    "prtr-hrnet": "prtr-coco-w32-384x288",
    "prtr-deformable": "prtr-coco-deform-res50-384x288",
    "prtr-sequential": "prtr-sequential",
}


def tiny_record(kind: str, **overrides) -> dict:
    """Metadata of a small network; ``kind`` is a key of `TINY_OVERRIDES`."""
    return describe_keypoint_variant(_BASES[kind], **(TINY_OVERRIDES[kind] | overrides))


def tiny_network(kind: str, **overrides) -> tuple[nn.Module, dict]:
    """A small network with random weights that tell queries apart, in eval mode, and its record."""
    record = tiny_record(kind, **overrides)
    torch.manual_seed(0)
    network = build_keypoint_network(record)
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith("query_embed.weight"):
                value.mul_(4)
            if "kpt_embed" in name or "class_embed" in name:
                value.normal_(std=0.3)
    return network.eval(), record


def seeded_state(network: nn.Module) -> dict[str, Tensor]:
    """Other values for all tensors of a network, by name."""
    return {
        name: torch.full_like(value, 7)
        if name.endswith(COUNTERS)
        else torch.from_numpy(parameter(name, tuple(value.shape), ""))
        for name, value in network.state_dict().items()
    }
