"""METRO at a tiny size; its values at full size are held by the parity tests."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.metro import HRNetMap, Metro, MetroConfig
from kinemesh.models.resnet import ResNetBackbone
from tests.tolerances import TOL

JOINTS, COARSE = 3, 5
SMALL = {
    "joints": JOINTS,
    "coarse_vertices": COARSE,
    "camera_hidden": 6,
    "hidden_dims": (16, 8, 8),
    "feed_forward_dims": (24, 20, 16),
    "out_dims": (12, 8, 3),
    "layers": 2,
    "positions": 9,
}
BODY = replace(MetroConfig.body(), **SMALL, upsampled=(8, 12), cells=6, map_channels=10)
HAND = replace(MetroConfig.hand(), **SMALL, upsampled=(9,), map_channels=10)


class Map(nn.Module):
    """A convolution in the place of a backbone."""

    def __init__(self, channels: int = 10) -> None:
        super().__init__()
        self.map_channels = channels
        self.conv = nn.Conv2d(3, channels, 32, 32)

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image)


def network(config: MetroConfig, backbone: nn.Module | None = None) -> Metro:
    torch.manual_seed(0)
    joints, coarse = torch.randn(JOINTS, 3), torch.randn(COARSE, 3)
    return Metro(config, backbone or Map(), joints, coarse)


def hrnet() -> HRNetMap:
    return HRNetMap(
        2, stem_width=4, head_planes=(1, 2, 3, 4), pooled_channels=10, modules=(1, 1, 1)
    )


@pytest.mark.parametrize("backbone", ["hrnet", "resnet"])
@pytest.mark.parametrize("config", [BODY, HAND], ids=["body", "hand"])
def test_forward_and_backward(config, backbone):
    made = hrnet() if backbone == "hrnet" else ResNetBackbone(50, width=2)
    net = network(replace(config, map_channels=made.map_channels), made)
    keep = torch.ones(2, JOINTS + COARSE, 1)
    keep[:, 2] = 0
    output = net(torch.rand(2, 3, 64, 96), keep)
    assert output.camera.shape == (2, 3)
    assert output.joints.shape == (2, JOINTS, 3)
    levels = (COARSE, *config.upsampled)
    assert [v.shape for v in output.vertices] == [(2, n, 3) for n in levels]
    (output.camera.sum() + output.joints.sum() + output.vertices[-1].square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("config", [BODY, HAND], ids=["body", "hand"])
def test_tokens_are_template_then_image_feature(config):
    """Against the published layer: a convolution whose channels are the cells of the map."""
    net = network(config).double().eval()
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    features = net.backbone(image)
    if config is BODY:
        cells = features.flatten(2).transpose(1, 2)
        expected = net.conv_learn_tokens(cells)
        row_major = features[:, :, 1, 0]  # the fourth cell starts the second row
        torch.testing.assert_close(cells[:, 3], row_major)
    else:
        expected = features.mean((2, 3))[:, None].expand(-1, JOINTS + COARSE, -1)
    dense = net.tokens(image).dense()
    assert torch.equal(dense[..., :3], net.template.expand(2, -1, -1))
    torch.testing.assert_close(dense[..., 3:], expected, **TOL[torch.float64])


@pytest.mark.parametrize("config", [BODY, HAND], ids=["body", "hand"])
def test_factored_and_dense_tokens_give_the_same_network(config):
    net = network(config).double().eval()
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    keep = (torch.rand(2, JOINTS + COARSE, 1) > 0.3).double()
    results = []
    for dense in (False, True):
        net.zero_grad()
        tokens = net.tokens(image, keep)
        out = net.trans_encoder(tokens.dense() if dense else tokens)
        out.square().sum().backward()
        gradients = [p.grad for p in net.parameters() if p.grad is not None]
        results.append([out.detach(), *(g.clone() for g in gradients)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


def test_attention_is_of_the_last_block_and_its_rows_sum_to_one():
    net = network(BODY).eval()
    image = torch.rand(1, 3, 64, 96)
    plain, traced = net(image), net(image, return_attention=True)
    torch.testing.assert_close(plain.vertices[-1], traced.vertices[-1], **TOL[torch.float32])
    tokens = JOINTS + COARSE
    assert [a.shape for a in traced.attention] == [(1, 4, tokens, tokens)] * 2
    assert [h.shape for h in traced.hidden] == [(1, tokens, 8)] * 3
    for attention in traced.attention:
        torch.testing.assert_close(attention.sum(-1), torch.ones(1, 4, tokens))
    assert plain.attention == plain.hidden == ()


def test_a_masked_query_sees_nothing_of_the_image():
    net = network(HAND).eval()
    keep = torch.ones(1, JOINTS + COARSE, 1)
    keep[:, 1] = 0
    first, second = (net.tokens(torch.rand(1, 3, 64, 64), keep) for _ in range(2))
    assert torch.equal(first.dense()[:, 1], second.dense()[:, 1])
    assert not torch.equal(first.dense()[:, 0], second.dense()[:, 0])


def test_published_sizes():
    for config, blocks, dead in (
        (MetroConfig.body(), 102_256_646, 44_833_408),
        (MetroConfig.hand(), 101_182_022, 42_834_624),
    ):
        with torch.device("meta"):
            joints = torch.zeros(config.joints, 3)
            net = Metro(config, Map(2048), joints, torch.zeros(config.coarse_vertices, 3))
        count = sum(p.numel() for p in net.trans_encoder.parameters())
        assert count == blocks - dead


@pytest.mark.parametrize("config", [BODY, HAND], ids=["body", "hand"])
def test_compiles_into_one_graph(config):
    torch._dynamo.reset()
    net = network(replace(config, layers=1, dropout=0.0), Map())
    image, keep = torch.rand(2, 3, 64, 96), torch.ones(2, JOINTS + COARSE, 1)
    keep[0, 3] = 0
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(image, keep).joints, net(image, keep).joints)


def test_wrong_sizes_are_refused():
    joints, coarse = torch.zeros(JOINTS, 3), torch.zeros(COARSE, 3)
    with pytest.raises(InputError, match=r"template_coarse: expected shape \(5, 3\)"):
        Metro(BODY, Map(), joints, joints)
    with pytest.raises(InputError, match="map_channels=10, this backbone has 4"):
        Metro(BODY, Map(4), joints, coarse)
    with pytest.raises(InputError, match="out_dims: expected 3 as the last"):
        network(replace(BODY, out_dims=(12, 8, 4)))
    net = network(BODY)
    with pytest.raises(InputError, match="feature map of 6 cells"):
        net(torch.rand(2, 3, 64, 64))
    with pytest.raises(InputError, match="keep_mask: expected shape"):
        net(torch.rand(2, 3, 64, 96), torch.ones(2, COARSE, 1))
    with pytest.raises(InputError, match="position table"):
        network(replace(BODY, positions=7))(torch.rand(1, 3, 64, 96))
