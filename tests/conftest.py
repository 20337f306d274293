"""Fixtures shared by the tests."""

import os
from pathlib import Path

import pytest
import torch

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
