"""Tokens in factors against the same tokens written out."""

import pytest
import torch
from torch import Tensor, nn

from kinemesh.models.query_tokens import MASKED_VALUE, QueryTokens, TokenLinear

B, Q, C, S, F, G, H = 2, 5, 3, 4, 7, 6, 8


def tokens(mixed: bool, masked: bool, others: bool, width: int = C) -> QueryTokens:
    torch.manual_seed(0)
    drawn = [
        torch.randn(Q, width, dtype=torch.float64),
        torch.randn(B, S if mixed else 1, F, dtype=torch.float64),
        torch.randn(Q, S, dtype=torch.float64) if mixed else None,
        (torch.rand(B, Q, 1) > 0.4).double() if masked else None,
        torch.randn(B, G, width + F, dtype=torch.float64) if others else None,
    ]
    for part in drawn:
        if part is not None:
            part.requires_grad_()
    return QueryTokens(*drawn)


def written_out(parts: QueryTokens) -> Tensor:
    """Number by number."""
    rows = []
    for b in range(B):
        for q in range(Q):
            cells = parts.cells_BSF[b]
            if parts.mixture_QS is not None:
                cells = parts.mixture_QS[q, :, None] * cells
            row = torch.cat([parts.template_QC[q], cells.sum(0)])
            if parts.keep_BQ1 is not None:
                row = row * parts.keep_BQ1[b, q] + 0.01 * (1 - parts.keep_BQ1[b, q])
            rows.append(row)
        if parts.others_BGD is not None:
            rows.extend(parts.others_BGD[b])
    return torch.stack(rows).unflatten(0, (B, -1))


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_factored_product_equals_the_dense_one_in_value_and_gradient(mixed, masked, others):
    torch.manual_seed(1)
    layer = TokenLinear(C + F, H).double()
    results = []
    for function in (
        layer,
        lambda parts: layer(parts.dense()),
        lambda parts: nn.functional.linear(written_out(parts), layer.weight, layer.bias),
    ):
        parts = tokens(mixed, masked, others)
        layer.zero_grad()
        out = function(parts)
        out.square().sum().backward()
        gradients = [part.grad for part in parts if part is not None]
        results.append([out.detach(), layer.weight.grad.clone(), layer.bias.grad.clone()])
        results[-1] += gradients
    for factored, dense, slow in zip(*results, strict=True):
        torch.testing.assert_close(factored, dense, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(factored, slow, rtol=1e-10, atol=1e-10)


def test_a_masked_query_is_one_value_throughout():
    parts = tokens(mixed=False, masked=True, others=True)
    dense = parts.dense()
    gone = parts.keep_BQ1[..., 0] == 0
    assert gone.any()
    assert (dense[:, :Q][gone] == MASKED_VALUE).all()
    assert torch.equal(dense[:, Q:], parts.others_BGD)  # never masked


def test_queries_without_a_template():
    """They differ by nothing until positions are added."""
    parts = tokens(mixed=False, masked=False, others=False, width=0)
    layer = TokenLinear(F, H).double()
    out = layer(parts)
    torch.testing.assert_close(out, layer(parts.dense()))
    assert (out == out[:, :1]).all()
    out.sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_half_precision_by_autocast():
    parts = QueryTokens(
        *(None if p is None else p.detach().float() for p in tokens(True, True, True))
    )
    layer = TokenLinear(C + F, H)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(parts)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(parts), rtol=0.05, atol=0.05)
