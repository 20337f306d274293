"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest
import torch

from tests.body_fixtures import write_mano_assets, write_smpl_assets

if "PYTEST_XDIST_WORKER" in os.environ:
    # One test process per core: threads of their own would only make them wait for each other.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder '../shared' with the reference data")
    return SHARED


@pytest.fixture(scope="session")
def made_up_assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a made-up SMPL and a made-up MANO."""
    folder = tmp_path_factory.mktemp("assets")
    write_smpl_assets(folder / "smpl")
    write_mano_assets(folder / "mano")
    return folder
