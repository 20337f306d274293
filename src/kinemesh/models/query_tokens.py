"""Tokens of METRO's first transformer block, kept in factors.

METRO (Lin, Wang and Liu, CVPR 2021, section 3.1) gives each joint and vertex query the template's
position and an image feature: 3 + 2048 numbers, of which the 2048 are the same vector for every
query, or one mixture of 49 grid cells a query. A linear layer on hundreds of such tokens repeats
one product hundreds of times. `QueryTokens` keeps the factors, and `TokenLinear` multiplies each
of them once:

    W [xyz_q, sum_s M_qs cell_s] + b = W_xyz xyz_q + sum_s M_qs (W_image cell_s) + b

Shape legend: B batch, Q queries, C template coordinates, S image cells, F width of a cell,
G grid tokens, T = Q + G tokens, D = C + F token width, H output width of a linear layer.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED_VALUE = 0.01
"""What every component of a masked query becomes in masked vertex modelling."""


class QueryTokens(NamedTuple):
    """A sequence of queries, and behind them tokens of any other kind.

    Attributes:
        template_QC: (Q,C) what a query holds whatever the image is; C may be 0.
        cells_BSF: (B,S,F) image features; S is 1 where every query has the same one.
        mixture_QS: (Q,S) share of each cell in each query, or None for one cell in all queries.
        keep_BQ1: (B,Q,1), 0 where all D components of a query are `MASKED_VALUE`, or None.
        others_BGD: (B,G,D) tokens that follow the queries and are never masked, or None.
    """

    template_QC: Tensor
    cells_BSF: Tensor
    mixture_QS: Tensor | None = None
    keep_BQ1: Tensor | None = None
    others_BGD: Tensor | None = None

    def image_features(self) -> Tensor:
        """(B,Q,F) image feature of each query, written out."""
        if self.mixture_QS is None:
            return self.cells_BSF.expand(-1, len(self.template_QC), -1)
        return torch.matmul(self.mixture_QS, self.cells_BSF)

    def dense(self) -> Tensor:
        """(B,T,D) the sequence written out: what `project` never forms."""
        features_BQF = self.image_features()
        template_BQC = self.template_QC.expand(len(features_BQF), -1, -1)
        tokens_BQD = torch.cat([template_BQC, features_BQF], dim=-1)
        if self.keep_BQ1 is not None:
            tokens_BQD = tokens_BQD * self.keep_BQ1 + MASKED_VALUE * (1 - self.keep_BQ1)
        if self.others_BGD is None:
            return tokens_BQD
        return torch.cat([tokens_BQD, self.others_BGD], dim=1)

    def project(self, weight_HD: Tensor, bias_H: Tensor) -> Tensor:
        """``dense() @ weight.T + bias``, (B,T,H), with each factor multiplied once."""
        width = self.template_QC.shape[1]
        own_QH = F.linear(self.template_QC, weight_HD[:, :width], bias_H)
        cells_BSH = F.linear(self.cells_BSF, weight_HD[:, width:])
        if self.mixture_QS is None:
            out_BQH = own_QH + cells_BSH
        else:
            mixture_BQS = self.mixture_QS.expand(len(cells_BSH), -1, -1)
            out_BQH = torch.baddbmm(own_QH, mixture_BQS, cells_BSH)
        if self.keep_BQ1 is not None:
            masked_D = torch.full_like(weight_HD[0], MASKED_VALUE)
            masked_H = F.linear(masked_D, weight_HD, bias_H)
            out_BQH = torch.lerp(masked_H, out_BQH, self.keep_BQ1.to(out_BQH.dtype))
        if self.others_BGD is None:
            return out_BQH
        return torch.cat([out_BQH, F.linear(self.others_BGD, weight_HD, bias_H)], dim=1)


class TokenLinear(nn.Linear):
    """A linear layer that takes tokens written out (B,T,D) or in factors."""

    def forward(self, tokens: Tensor | QueryTokens) -> Tensor:
        """Return (B,T,H)."""
        if isinstance(tokens, QueryTokens):
            return tokens.project(self.weight, self.bias)
        return F.linear(tokens, self.weight, self.bias)
