"""Multiply-adds counted by formula, as published, and counted as the networks run."""

import pytest
import torch
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.counting import backbone_macs, block_macs, count_macs, official_gmac
from kinemesh.models.graphormer import GraphormerConfig
from kinemesh.models.metro import MetroConfig
from kinemesh.models.prtr_variants import build_keypoint_network
from kinemesh.models.variants import VARIANTS, blank_backbone, blank_network
from tests.tiny_prtr import tiny_network

TOTALS = {  # 10^9 multiply-adds of the official networks for one crop of 224 px
    "metro-body-w64": 56.4,
    "metro-hand-w64": 41.8,
    "graphormer-body-w64": 51.3,
    "graphormer-hand-w64": 40.3,
    "graphormer-body-w40": 35.1,
}
BLOCKS = {
    "metro-body-w64": (445, 431, (21.92, 3.77, 1.73)),
    "metro-hand-w64": (216, 195, (12.05, 0.825, 0.068)),
    "graphormer-body-w64": (494, 431, (20.39, 1.65, 0.227)),
    "graphormer-hand-w64": (265, 195, (10.44, 0.760, 0.082)),
}
BACKBONES = [
    ({"name": "hrnet", "width": 64}, 28.89),
    ({"name": "hrnet", "width": 40}, 12.69),
    ({"name": "resnet", "depth": 50}, 4.09),
]


@pytest.mark.parametrize("name", TOTALS)
def test_published_totals(name):
    variant = VARIANTS[name]
    assert official_gmac(variant.config, variant.backbone) == pytest.approx(TOTALS[name], abs=0.05)


BY_FORMULA = [name for name in VARIANTS if not name.startswith("point-hmr")]


@pytest.mark.parametrize("name", BY_FORMULA)
def test_variants_state_the_official_arithmetic(name):
    variant = VARIANTS[name]
    counted = official_gmac(variant.config, variant.backbone)
    assert counted == pytest.approx(variant.gmac, abs=0.05)


@pytest.mark.parametrize("name", BLOCKS)
def test_published_blocks(name):
    tokens, nodes, expected = BLOCKS[name]
    macs = block_macs(VARIANTS[name].config, tokens, 2051, nodes)
    assert [value / 1e9 for value in macs] == pytest.approx(list(expected), rel=5e-3)


@pytest.mark.parametrize(("backbone", "gmac"), BACKBONES)
def test_backbones_by_formula_and_as_they_run(backbone, gmac):
    network = blank_backbone(backbone).eval()
    run = network if backbone["name"] == "hrnet" else network.features
    image = torch.empty(1, 3, 224, 224, device="meta")
    by_formula = backbone_macs(backbone)
    assert by_formula / 1e9 == pytest.approx(gmac, abs=0.005)
    assert count_macs(run, image) == by_formula


@pytest.mark.parametrize("name", BY_FORMULA)
def test_our_networks_multiply_less_than_the_official_ones(name):
    """By the repeated image feature: it enters two linear layers once a token, less once."""
    variant = VARIANTS[name]
    network = blank_network(variant.config, variant.backbone).eval()
    executed = count_macs(network, torch.empty(1, 3, 224, 224, device="meta")) / 1e9
    config = variant.config
    width = getattr(config, "map_channels", None) or config.pooled_channels
    queries = config.joints + getattr(config, "coarse_vertices", 0)
    rows = config.hidden_dims[0] + config.out_dims[0]
    mixes = getattr(config, "image_feature", "pooled") == "cells"
    cells = config.cells + 1 if mixes else 1  # and a cell of ones for the bias
    saved = (queries - cells) * width * rows / 1e9
    if mixes:  # the mixture is made after the projection, in fewer columns
        saved += (config.cells * queries * width - cells * queries * rows) / 1e9
    official = official_gmac(config, variant.backbone)
    assert official - executed == pytest.approx(saved, abs=1e-6)


def test_attention_and_batches_are_counted():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.randn(3, 5, 8)
    expected = 3 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)
    assert count_macs(lambda y: attention(y, y, y, need_weights=False), x) == expected


def test_no_formula_for_other_backbones():
    with pytest.raises(InputError, match="backbone"):
        backbone_macs({"name": "hrnet", "width": 4, "stem_width": 4})


def test_sizes_of_other_meshes():
    body, hand = MetroConfig.body(), GraphormerConfig.hand()
    assert official_gmac(body, {"name": "resnet", "depth": 101}) > official_gmac(
        body, {"name": "resnet", "depth": 50}
    )
    assert official_gmac(hand, BACKBONES[0][0], side=448) > 4 * 28.8


@pytest.mark.parametrize("kind", ["prtr", "prtr-hrnet", "prtr-deformable", "prtr-sequential"])
def test_keypoint_networks_are_counted_as_they_are_built(kind):
    """With parameters that learn, and none of them is frozen afterwards."""
    network, record = tiny_network(kind)
    image = torch.zeros(1, 3, 96, 64)
    learning = [parameter.requires_grad for parameter in network.parameters()]
    assert any(learning)
    counted = count_macs(network, image)
    assert [parameter.requires_grad for parameter in network.parameters()] == learning
    shapes = build_keypoint_network(record, blank=True).eval()
    assert count_macs(shapes, image.to("meta")) == counted
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert counted > sum(layer.weight.numel() for layer in layers)
