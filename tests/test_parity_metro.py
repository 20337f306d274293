"""METRO against the outputs of the official code under weights drawn from names."""

import pytest

from tests.parity import topology
from tests.parity.cases import mesh_transformer_cases
from tests.parity.mesh_transformers import MeshTransformers


@pytest.fixture(scope="module")
def networks() -> MeshTransformers:
    return MeshTransformers("metro")


@pytest.mark.parametrize("case", mesh_transformer_cases("metro"))
def test_network_equals_the_official_one(networks, case):
    networks.compare(case).assert_passed()


@pytest.mark.parametrize("case", mesh_transformer_cases("metro"))
def test_names_and_shapes_are_the_official_ones(networks, case):
    assert networks.official_shapes(case) == case.shapes


@pytest.mark.parametrize("system", ["metro", "graphormer"])
def test_mesh_constants_are_the_official_ones(shared, system):
    results = topology.compare(shared / "parity" / system / "golden")
    assert len(results) == 1
    results[0].assert_passed()
