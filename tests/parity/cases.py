"""The network cases as parameters of a test; without the reference data, one that is skipped."""

from pathlib import Path
from typing import Any

import pytest

from tests.parity.mesh_transformers import MeshTransformers, SystemName
from tests.parity.networks import read_manifest

PARITY = Path(__file__).resolve().parents[3] / "shared" / "parity"


def mesh_transformer_cases(system: SystemName) -> list[Any]:
    """Cases of a manifest in the order in which most is shared, named for the test's report."""
    folder = PARITY / system
    if not folder.is_dir():
        reason = "needs the folder '../shared' with the reference data"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    cases = read_manifest(folder / "manifest.json", folder / "golden")
    return [pytest.param(case, id=case.name) for case in MeshTransformers(system).order(cases)]
