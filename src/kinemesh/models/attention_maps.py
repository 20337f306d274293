"""What one joint attends to: the picture of METRO (Lin, Wang and Liu, CVPR 2021, figure 5).

Shape legend: B batch, A attention heads, T tokens, J joints, N coarse vertices, P points.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kinemesh.errors import InputError

OFFICIAL_SKIP = 14
"""Tokens that the published pictures leave out, for hands too, though a hand has 21 joints."""


def attention_vector(attention_BATT: Tensor, joint: int, skip: int) -> Tensor:
    """How much a joint attends to each vertex, from 0 (least) to 1 (most).

    The heads are averaged, and each token's attention is taken relative to what all tokens
    together pay to it, so that tokens that everybody looks at do not outshine the others.

    Args:
        attention_BATT: (B,A,T,T) probabilities of one layer; rows are queries.
        joint: Token whose attention is wanted; the published pictures take the right elbow of a
            body (7) and the wrist of a hand (0).
        skip: Tokens to leave out at the start, the number of joints; `OFFICIAL_SKIP` gives the
            published pictures' numbers for hands. Any grid tokens stay at the end.

    Returns:
        (B, T - skip).

    Raises:
        InputError: There is no such joint token, or nothing is left.
    """
    tokens = attention_BATT.shape[-1]
    if not 0 <= joint < tokens or not 0 <= skip < tokens:
        raise InputError(
            f"joint, skip: expected token indices from 0 to {tokens - 1}, found {joint} and {skip}."
        )
    mean_BTT = attention_BATT.mean(dim=1)
    shares_BT = mean_BTT[:, joint] / mean_BTT.sum(dim=1)
    shares_BT = shares_BT[:, skip:]
    low_B1 = shares_BT.amin(dim=1, keepdim=True)
    high_B1 = shares_BT.amax(dim=1, keepdim=True)
    return (shares_BT - low_B1) / (high_B1 - low_B1)


class Evidence(NamedTuple):
    """What a network looked at in a crop, said by the network itself.

    Attributes:
        attention: (B,J,N) how much each joint attends to each coarse vertex in the last layer, see
            `joint_attention`.
        sampled: (B,P,2) where image features were sampled, in signed crop coordinates, -1 to 1; a
            point for each coarse vertex or for each joint. None where features have no place.
    """

    attention: Tensor
    sampled: Tensor | None = None


def joint_attention(attention_BATT: Tensor, joints: slice, vertices: slice) -> Tensor:
    """`attention_vector` of all joints at once, with the tokens named instead of counted.

    Args:
        attention_BATT: (B,A,T,T) probabilities of one layer; rows are queries.
        joints: Which tokens are the joints.
        vertices: Which tokens are the coarse vertices.

    Returns:
        (B,J,N), for each joint from 0 (the vertex with the least) to 1 (with the most).
    """
    mean_BTT = attention_BATT.float().mean(dim=1)
    shares_BTT = mean_BTT / mean_BTT.sum(dim=1, keepdim=True)
    shares_BJN = shares_BTT[:, joints, vertices]
    low_BJ1 = shares_BJN.amin(dim=2, keepdim=True)
    span_BJ1 = shares_BJN.amax(dim=2, keepdim=True) - low_BJ1
    # a joint that attends to all vertices alike would divide by zero
    return (shares_BJN - low_BJ1) / span_BJ1.clamp(min=torch.finfo(torch.float32).tiny)
