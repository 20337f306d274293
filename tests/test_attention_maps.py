"""The attention picture's numbers; the official ones are held by the parity tests."""

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.models.attention_maps import attention_vector


def test_equals_the_formula_written_out():
    torch.manual_seed(0)
    attention = torch.rand(2, 3, 6, 6, dtype=torch.float64).softmax(-1)
    got = attention_vector(attention, joint=1, skip=2)
    assert got.shape == (2, 4)
    for sample in range(2):
        mean = attention[sample].mean(0)
        shares = [float(mean[1, token] / mean[:, token].sum()) for token in range(2, 6)]
        low, high = min(shares), max(shares)
        expected = [(share - low) / (high - low) for share in shares]
        assert got[sample].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("joint", "skip"), [(6, 0), (0, 6), (-1, 0)])
def test_tokens_that_are_not_there_are_refused(joint, skip):
    with pytest.raises(InputError, match="from 0 to 5"):
        attention_vector(torch.rand(1, 1, 6, 6), joint, skip)
