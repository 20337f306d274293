"""Mesh Graphormer against the outputs of the official code under weights drawn from names."""

import pytest
import torch

from kinemesh.models.hrnet import HRNet
from tests.parity.cases import mesh_transformer_cases
from tests.parity.mesh_transformers import MeshTransformers


@pytest.fixture(scope="module")
def networks() -> MeshTransformers:
    return MeshTransformers("graphormer")


@pytest.mark.parametrize("case", mesh_transformer_cases("graphormer"))
def test_network_equals_the_official_one(networks, case):
    networks.compare(case).assert_passed()


@pytest.mark.parametrize("case", mesh_transformer_cases("graphormer"))
def test_names_and_shapes_are_the_official_ones(networks, case):
    assert networks.official_shapes(case) == case.shapes


def test_sizes_are_the_published_ones():
    """The published counts include the classifier and other dead tensors."""
    with torch.device("meta"):
        counts = {width: sum(p.numel() for p in HRNet(width).parameters()) for width in (64, 40)}
    classifier = 2048 * 1000 + 1000
    assert counts[64] == 128_059_944 - classifier
    # The published W40 network differs from the W64 one in the backbone alone.
    assert counts[64] - counts[40] == 226_212_270 - 155_709_486
