"""Masked vertex modelling: which queries a network may not see (METRO, Lin et al., CVPR 2021)."""

import torch
from torch import Tensor


def draw_keep_mask(
    samples: int, joints: int, vertices: int, ratio: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw masks for a batch on its device, from torch's global random state.

    For joints and for coarse vertices apart, METRO draws ``p`` uniformly in [0, 1) and masks
    ``int(p * ratio * count)`` of the tokens, each choice as likely as any other. Here the tokens
    with the smallest of ``count`` uniform numbers are those, so nothing waits for the device.

    Args:
        samples: B.
        joints: Tokens that are joints.
        vertices: Tokens that are coarse vertices.
        ratio: Largest share of tokens that is masked; METRO takes 0.3 for bodies, 0 for hands.
        device: Where the mask is wanted.

    Returns:
        (B, joints + vertices, 1) float32: 1 where a query is kept, 0 where it is masked.
    """
    parts = [_draw_part(samples, count, ratio, device) for count in (joints, vertices)]
    return torch.cat(parts, dim=1)[..., None]


def _draw_part(samples: int, count: int, ratio: float, device: torch.device | str) -> Tensor:
    masked_B1 = (torch.rand(samples, 1, device=device) * (ratio * count)).floor()
    rank_BN = torch.rand(samples, count, device=device).argsort(dim=1).argsort(dim=1)
    return (rank_BN >= masked_B1).float()
