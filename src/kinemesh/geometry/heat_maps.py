"""Places read from heat maps.

Legend: B batch, J joints, h x w heat-map cells.
"""

import torch
from torch import Tensor


def soft_argmax(logits_BJhw: Tensor) -> Tensor:
    """Mean position under the softmax of each heat map (integral regression, Sun et al. 2018).

    Returns:
        (B, J, 2) as (x, y) in signed crop coordinates: the centre of the first cell of a row of w
        lies at 1 / w - 1, that of the last at 1 - 1 / w.
    """
    height, width = logits_BJhw.shape[-2:]
    probability_BJhw = logits_BJhw.float().flatten(2).softmax(dim=-1).view(logits_BJhw.shape)
    x_w, y_h = (
        (torch.arange(n, device=logits_BJhw.device) + 0.5) * (2 / n) - 1 for n in (width, height)
    )
    x_BJ = (probability_BJhw.sum(dim=2) * x_w).sum(dim=-1)
    y_BJ = (probability_BJhw.sum(dim=3) * y_h).sum(dim=-1)
    return torch.stack((x_BJ, y_BJ), dim=-1)


def peak_share(logits_BJhw: Tensor, uv_BJ2: Tensor, radius_cells: float = 2.0) -> Tensor:
    """Share (B, J) of each heat map's mass within ``radius_cells`` of its centre of mass."""
    h, w = logits_BJhw.shape[-2:]
    rows = torch.arange(h, device=uv_BJ2.device, dtype=uv_BJ2.dtype) + 0.5
    columns = torch.arange(w, device=uv_BJ2.device, dtype=uv_BJ2.dtype) + 0.5
    dx = columns - (uv_BJ2[..., :1] + 1) * (w / 2)
    dy = rows - (uv_BJ2[..., 1:] + 1) * (h / 2)
    near = dy.square()[..., :, None] + dx.square()[..., None, :] <= radius_cells**2
    mass = logits_BJhw.flatten(2).softmax(-1).view_as(logits_BJhw)
    return (mass * near).sum((2, 3))
