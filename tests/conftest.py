"""Fixtures shared by the tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the repository; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder '../shared' with the reference data")
    return SHARED
