"""POTTER's hands against the official numbers; see `tests.parity.potter_hands`."""

import pytest

from tests.parity import potter_hands

CASES = {
    "hand_crop",
    "hand_crop/test_items",
    "hand_loss_metrics",
    "hand_evaluation",
    "dataprep/undistort",
    "dataprep/train_manual",
    "dataprep/train_auto",
    "dataprep/train_manual_portrait",
    "dataprep/test_manual_seed0",
}


@pytest.fixture(scope="module")
def comparisons(shared):
    found = potter_hands.compare(shared / "parity" / "potter" / "golden")
    return {comparison.name: comparison for comparison in found}


@pytest.mark.parametrize("case", sorted(CASES))
def test_hands_agree_with_the_official_numbers(comparisons, case):
    assert comparisons.keys() == CASES
    comparisons[case].assert_passed()
