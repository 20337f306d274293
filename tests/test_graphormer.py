"""Mesh Graphormer at a tiny size; its values at full size are held by the parity tests."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.graphormer import (
    EfficientNetLiteBackbone,
    GraphormerConfig,
    GraphormerEncoder,
    HRNetBackbone,
    MeshGraphormer,
)
from tests.tolerances import TOL

JOINTS, COARSE = 3, 5
CONFIG = GraphormerConfig(
    joints=JOINTS,
    coarse_vertices=COARSE,
    upsampled=(8, 12),
    camera_tokens="vertices",
    camera_hidden=6,
    grid_channels=16,
    pooled_channels=10,
    hidden_dims=(16, 8, 8),
    feed_forward_dims=(32, 16, 16),
    out_dims=(12, 8, 3),
    layers=2,
    positions=20,
)
ADJACENCY = torch.eye(COARSE) * 0.5 + torch.eye(COARSE).roll(1, 0) * 0.5


def hrnet() -> HRNetBackbone:
    return HRNetBackbone(
        2, stem_width=4, head_planes=(1, 2, 3, 4), pooled_channels=10, modules=(1, 1, 1)
    )


def network(config: GraphormerConfig = CONFIG, backbone: nn.Module | None = None) -> MeshGraphormer:
    torch.manual_seed(0)
    joints, coarse = torch.randn(JOINTS, 3), torch.randn(COARSE, 3)
    return MeshGraphormer(config, backbone or hrnet(), joints, coarse, ADJACENCY)


@pytest.mark.parametrize("backbone", ["hrnet", "efficientnet-lite"])
@pytest.mark.parametrize("camera_tokens", ["vertices", "joints+vertices"])
def test_forward_and_backward(backbone, camera_tokens):
    lite = backbone == "efficientnet-lite"
    channels = {"grid_channels": 320, "pooled_channels": 320} if lite else {}
    config = replace(CONFIG, camera_tokens=camera_tokens, **channels)
    net = network(config, EfficientNetLiteBackbone() if lite else hrnet())
    output = net(torch.rand(2, 3, 64, 96))
    assert output.camera.shape == (2, 3)
    assert output.joints.shape == (2, JOINTS, 3)
    assert [v.shape for v in output.vertices] == [(2, n, 3) for n in (COARSE, 8, 12)]
    (output.camera.sum() + output.joints.sum() + output.vertices[-1].square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_one_image_keeps_its_batch_axis():
    output = network().eval()(torch.rand(1, 3, 64, 64))
    assert output.camera.shape == (1, 3)


def test_one_upsampling():
    net = network(replace(CONFIG, upsampled=(9,))).eval()
    assert not hasattr(net, "upsampling2")
    assert net(torch.rand(1, 3, 32, 32)).vertices[-1].shape == (1, 9, 3)


def test_heads_read_the_right_tokens():
    """Camera and up-sampling against plain sums over the encoder's outputs."""
    net = network().eval()
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        tokens = net.trans_encoder(net.tokens(image).dense())
        output = net(image)
    coarse = tokens[:, JOINTS : JOINTS + COARSE]
    torch.testing.assert_close(output.joints, tokens[:, :JOINTS])
    torch.testing.assert_close(output.vertices[0], coarse)
    up = net.upsampling
    mid = torch.stack(
        [sum(up.weight[i, j] * coarse[:, j] for j in range(COARSE)) + up.bias[i] for i in range(8)],
        dim=1,
    )
    torch.testing.assert_close(output.vertices[1], mid, **TOL[torch.float32])
    scalars = coarse @ net.cam_param_fc.weight[0] + net.cam_param_fc.bias
    hidden = scalars @ net.cam_param_fc2.weight.T + net.cam_param_fc2.bias
    camera = hidden @ net.cam_param_fc3.weight.T + net.cam_param_fc3.bias
    torch.testing.assert_close(output.camera, camera, **TOL[torch.float32])


def test_mask_reaches_queries_and_not_the_grid():
    grid, pooled = torch.randn(1, 16, 2, 2), torch.randn(1, 10)
    net = network(backbone=_Answer(grid, pooled)).eval()
    mask = torch.ones(1, JOINTS + COARSE, 1)
    mask[:, 1] = 0
    image = torch.empty(0)
    plain, masked = net.tokens(image).dense(), net.tokens(image, mask).dense()
    assert plain.shape == (1, JOINTS + COARSE + 4, 13)
    torch.testing.assert_close(masked[0, 1], torch.full((13,), 0.01))
    keep = [i for i in range(plain.shape[1]) if i != 1]
    assert torch.equal(plain[:, keep], masked[:, keep])
    torch.testing.assert_close(plain[0, 0], torch.cat([net.template[0], pooled[0]]))
    row_major = net.grid_feat_dim(grid[0, :, 0, 1])  # the second cell is one to the right
    torch.testing.assert_close(plain[0, JOINTS + COARSE + 1], row_major)


class _Answer(nn.Module):
    """A backbone whose outputs are known."""

    def __init__(self, *outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, _image):
        return self.outputs


@pytest.mark.parametrize(
    "flags", [(False,) * 3, (True, False, False), (False, True, True), (True,) * 3]
)
def test_graph_in_any_subset_of_blocks(flags):
    """Each graph block works at its own width; factored and dense tokens agree."""
    net = network(replace(CONFIG, graph_blocks=flags)).double().eval()
    for block, width, has_graph in zip(net.trans_encoder, CONFIG.hidden_dims, flags, strict=True):
        for layer in block.bert.encoder.layer:
            assert (layer.graph_conv is not None) == has_graph
            if has_graph:
                assert layer.graph_conv.lin1.W.shape == (width // 2, width)
    image = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    keep = (torch.rand(2, JOINTS + COARSE, 1) > 0.3).double()
    tokens = net.tokens(image, keep)
    fast, slow = net.trans_encoder(tokens), net.trans_encoder(tokens.dense())
    torch.testing.assert_close(fast, slow, **TOL[torch.float64])
    fast.square().sum().backward()
    assert all(p.grad is not None for p in net.trans_encoder.parameters())


def test_compiles_into_one_graph():
    """With its backbone, and in training with masks."""
    torch._dynamo.reset()
    net = network(replace(CONFIG, layers=1, graph_blocks=(True, False, True), dropout=0.0)).eval()
    image, keep = torch.rand(2, 3, 64, 64), torch.ones(2, JOINTS + COARSE, 1)
    keep[0, 3] = 0
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    expected, found = net(image, keep), compiled(image, keep)
    torch.testing.assert_close(found.vertices[-1], expected.vertices[-1])
    found.vertices[-1].sum().backward()


def test_attention_is_of_the_last_block():
    net = network().eval()
    image = torch.rand(1, 3, 64, 64)
    plain, traced = net(image), net(image, return_attention=True)
    torch.testing.assert_close(plain.vertices[-1], traced.vertices[-1], **TOL[torch.float32])
    tokens = JOINTS + COARSE + 4
    assert [a.shape for a in traced.attention] == [(1, 4, tokens, tokens)] * 2
    assert [h.shape for h in traced.hidden] == [(1, tokens, 8)] * 3
    assert plain.attention == ()


def test_constants_stay_out_of_the_state_dict():
    names = set(network().state_dict())
    assert not {n for n in names if "template" in n or "adjacency" in n}
    assert "trans_encoder.2.bert.encoder.layer.1.graph_conv.lin1.W" in names
    assert "trans_encoder.1.bert.encoder.layer.1.graph_conv.lin1.W" not in names


def test_eight_samples_can_be_overfitted():
    torch.manual_seed(0)
    net = network(replace(CONFIG, dropout=0.0, grid_channels=4, pooled_channels=10), _Noise())
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    image = torch.arange(8)
    # Random points, so only the coarse level: the lifted ones are linear in it.
    target = torch.randn(8, JOINTS + COARSE, 3, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(400):
        output = net(image)
        loss = (torch.cat([output.joints, output.vertices[0]], 1) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


class _Noise(nn.Module):
    """Eight fixed feature maps instead of a backbone."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.grid = torch.randn(8, 4, 2, 2, generator=generator)
        self.pooled = torch.randn(8, 10, generator=generator)

    def forward(self, index):
        return self.grid[index], self.pooled[index]


def test_wrong_sizes_are_refused():
    joints, coarse = torch.zeros(JOINTS, 3), torch.zeros(COARSE, 3)
    with pytest.raises(InputError, match="template_joints: expected shape"):
        MeshGraphormer(CONFIG, hrnet(), coarse, coarse, ADJACENCY)
    with pytest.raises(InputError, match="adjacency: expected shape"):
        MeshGraphormer(CONFIG, hrnet(), joints, coarse, torch.eye(4))
    with pytest.raises(InputError, match="grid_channels=320"):
        MeshGraphormer(CONFIG, EfficientNetLiteBackbone(), joints, coarse, ADJACENCY)
    net = network()
    with pytest.raises(InputError, match="keep_mask: expected shape"):
        net(torch.rand(2, 3, 32, 32), keep_mask=torch.ones(2, JOINTS, 1))
    with pytest.raises(InputError, match="position table"):
        net(torch.rand(2, 3, 128, 128))


def test_encoder_refuses_dimensions_that_do_not_fit():
    with pytest.raises(InputError, match="one entry per block"):
        GraphormerEncoder(4, (8, 8), (8,), (8, 3), (False, False))
    with pytest.raises(InputError, match="graph_slice and adjacency"):
        GraphormerEncoder(4, (8,), (8,), (3,), (True,))
    with pytest.raises(InputError, match="graph_slice: expected 5 tokens"):
        GraphormerEncoder(4, (8,), (8,), (3,), (True,), slice(1, 5), ADJACENCY)


def test_encoder_alone():
    encoder = GraphormerEncoder(
        4, (8, 8), (16, 16), (8, 3), (False, True), slice(1, 6), ADJACENCY, layers=1
    ).eval()
    tokens = torch.randn(2, 7, 4)
    chained = encoder[1](encoder[0](tokens).tokens).tokens
    torch.testing.assert_close(encoder(tokens), chained)
