"""The pose network at a tiny size. No published numbers exist for it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.graphormer_pose import PoseGraphormer, PoseGraphormerConfig, bone_adjacency
from kinemesh.skeletons import HAND21
from tests.tolerances import TOL

CONFIG = PoseGraphormerConfig(
    grid_channels=6,
    pooled_channels=10,
    hidden_dims=(16, 8, 8),
    feed_forward_dims=(24, 20, 16),
    out_dims=(12, 8, 3),
    layers=2,
    positions=40,
)


class Pair(nn.Module):
    """Two convolutions in the place of a backbone."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.pooled = nn.Conv2d(3, 6, 32, 32), nn.Conv2d(3, 10, 32, 32)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.grid(image), self.pooled(image).mean((2, 3))


def network(config: PoseGraphormerConfig = CONFIG, adjacency: Tensor | None = None):
    torch.manual_seed(0)
    return PoseGraphormer(config, Pair(), adjacency)


@pytest.mark.parametrize("flags", [(False, False, True), (True, True, False), (False,) * 3])
def test_forward_and_backward(flags):
    net = network(replace(CONFIG, graph_blocks=flags))
    output = net(torch.rand(2, 3, 64, 96))
    assert output.camera.shape == (2, 3)
    assert output.joints.shape == (2, 21, 3)
    (output.camera.sum() + output.joints.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_published_size_has_seventy_tokens():
    config = PoseGraphormerConfig()
    with torch.device("meta"):
        net = PoseGraphormer(config, nn.Identity())
    net.backbone = _Answer(torch.zeros(1, 1024, 7, 7), torch.zeros(1, 2048))
    dense = net.tokens(torch.empty(0)).others_BGD
    assert dense.shape == (1, 49, 2048)
    assert net.grid_feat_dim.weight.shape == (2048, 1024)
    assert net.trans_encoder[2].bert.encoder.layer[3].graph_conv.conv.weight.shape == (32, 32)
    assert net.cam_param_fc2.weight.shape == (3, 21)


class _Answer(nn.Module):
    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = tuple(output.to("meta") for output in outputs)

    def forward(self, _image: Tensor) -> tuple[Tensor, ...]:
        return self.outputs


def test_heads_are_the_formulas_written_out():
    net = network().double().eval()
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    grid, pooled = net.backbone(image)
    joints = pooled[:, None].repeat(1, 21, 1)
    cells = net.grid_feat_dim(grid.flatten(2).transpose(1, 2))
    tokens = net.trans_encoder(torch.cat([joints, cells], 1))[:, :21]
    output = net(image)
    torch.testing.assert_close(output.joints, tokens, **TOL[torch.float64])
    scalars = tokens @ net.cam_param_fc.weight[0] + net.cam_param_fc.bias
    camera = scalars @ net.cam_param_fc2.weight.T + net.cam_param_fc2.bias
    torch.testing.assert_close(output.camera, camera, **TOL[torch.float64])


def test_attention_rows_sum_to_one():
    traced = network().eval()(torch.rand(1, 3, 64, 96), return_attention=True)
    assert [a.shape for a in traced.attention] == [(1, 4, 27, 27)] * 2
    for attention in traced.attention:
        torch.testing.assert_close(attention.sum(-1), torch.ones(1, 4, 27))


def test_adjacency_follows_the_bones():
    raw, normalised = bone_adjacency(HAND21, "raw"), bone_adjacency(HAND21, "normalised")
    assert raw.sum() == 40
    assert torch.equal(raw, raw.T)
    assert raw[0].nonzero().flatten().tolist() == [1, 5, 9, 13, 17]
    assert raw.diagonal().sum() == 0
    torch.testing.assert_close(normalised.sum(1), torch.ones(21))
    torch.testing.assert_close(normalised[0, :2], torch.full((2,), 1 / 6))
    torch.testing.assert_close(normalised[4, 3:5], torch.full((2,), 0.5))
    for kind, expected in (("raw", raw), ("normalised", normalised)):
        net = network(replace(CONFIG, adjacency=kind))
        graph = net.trans_encoder[2].bert.encoder.layer[0].graph_conv
        assert torch.equal(graph.conv.adjacency, expected)


def test_compiles_into_one_graph():
    torch._dynamo.reset()
    net = network(replace(CONFIG, layers=1)).eval()
    image = torch.rand(2, 3, 64, 96)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image).joints, net(image).joints)


def test_wrong_sizes_are_refused():
    with pytest.raises(InputError, match=r"adjacency: expected shape \(21, 21\)"):
        network(adjacency=torch.eye(5))
    with pytest.raises(InputError, match=r"adjacency: expected shape \(5, 5\)"):
        network(replace(CONFIG, joints=5))
    with pytest.raises(InputError, match="'normalised' or 'raw'"):
        network(replace(CONFIG, adjacency="kipf"))
    with pytest.raises(InputError, match="out_dims"):
        network(replace(CONFIG, out_dims=(12, 8, 2)))
