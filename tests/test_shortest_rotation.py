"""The rotation of least angle between two directions."""

import torch

from kinemesh.geometry.rotations import shortest_rotation


def test_shortest_rotation_by_its_definition():
    torch.manual_seed(0)
    source, target = (torch.nn.functional.normalize(torch.randn(50, 3), dim=-1) for _ in range(2))
    turn = shortest_rotation(source, target)
    cosine = (source * target).sum(-1)
    usable = cosine > -0.95
    moved = (turn @ source[..., None])[..., 0]
    assert torch.allclose(moved[usable], target[usable], atol=1e-5)
    angle_cosine = (turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert torch.allclose(angle_cosine[usable], cosine[usable], atol=1e-5)
    opposite = shortest_rotation(source[:1], -source[:1])
    assert torch.isfinite(opposite).all()
