"""METRO's transformer block and Mesh Graphormer's graph convolution against slow twins."""

import math

import pytest
import torch
from torch import Tensor, nn

from kinemesh.errors import InputError
from kinemesh.models.bert_block import TransformerBlock
from kinemesh.models.graph_convolution import GraphConvolution, GraphResidualBlock, GraphTokens
from tests.tolerances import TOL

START, NODES, TOKENS = 2, 3, 7
EXACT = TOL[torch.float64]


def graph() -> GraphTokens:
    """A path of three nodes with self loops, row-normalised: not symmetric."""
    joined = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])
    return GraphTokens(START, joined / joined.sum(1, keepdim=True))


def block(with_graph: bool = True, dropout: float = 0.1) -> TransformerBlock:
    torch.manual_seed(0)
    made = TransformerBlock(
        11, 8, 16, 5, layers=2, dropout=dropout, positions=9, graph=graph() if with_graph else None
    )
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


def slow_norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    variance = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (variance + 1e-12).sqrt() * norm.weight + norm.bias


def slow_attention(x: Tensor, attention: nn.Module) -> Tensor:
    """One sample, one head and one token after the other."""
    width = x.shape[-1] // 4
    rows = attention.self.qkv.weight.split(x.shape[-1]), attention.self.qkv.bias.split(x.shape[-1])
    q, k, v = (x @ weight.T + bias for weight, bias in zip(*rows, strict=True))
    out = torch.zeros_like(x)
    for sample in range(len(x)):
        for head in range(4):
            part = slice(head * width, (head + 1) * width)
            for token in range(x.shape[1]):
                scores = k[sample, :, part] @ q[sample, token, part] / math.sqrt(width)
                weights = scores.exp() / scores.exp().sum()
                out[sample, token, part] = weights @ v[sample, :, part]
    return slow_norm(x + attention.output.dense(out), attention.output.LayerNorm)


def slow_graph(x: Tensor, conv: GraphResidualBlock, adjacency: Tensor) -> Tensor:
    u = slow_norm(x, conv.pre_norm).clamp(min=0) @ conv.lin1.W.T + conv.lin1.b
    u = slow_norm(u, conv.norm1).clamp(min=0) @ conv.conv.weight
    gathered = torch.zeros_like(u)
    for i in range(NODES):
        for j in range(NODES):
            gathered[:, i] += adjacency[i, j] * u[:, j]
    u = slow_norm(gathered + conv.conv.bias, conv.norm2).clamp(min=0)
    return x + u @ conv.lin2.W.T + conv.lin2.b


def slow_block(f: Tensor, net: TransformerBlock) -> Tensor:
    x = net.bert.img_embedding(f)
    for token in range(f.shape[1]):
        x[:, token] += net.bert.position_embeddings.weight[token]
    for layer in net.bert.encoder.layer:
        a = slow_attention(x, layer.attention)
        if layer.graph_conv is not None:
            nodes = slow_graph(
                a[:, START : START + NODES], layer.graph_conv, graph().adjacency.double()
            )
            a = torch.cat([a[:, :START], nodes, a[:, START + NODES :]], 1)
        u = layer.intermediate.dense(a)
        u = u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
        x = slow_norm(a + layer.output.dense(u), layer.output.LayerNorm)
    return net.cls_head(x) + net.residual(f)


@pytest.mark.parametrize("with_graph", [False, True])
def test_equals_slow_twin_in_value_and_gradient(with_graph):
    net = block(with_graph)
    x = torch.randn(2, TOKENS, 11, dtype=torch.float64)
    results = []
    for function in (lambda f: net(f).tokens, lambda f: slow_block(f, net)):
        net.zero_grad()
        out = function(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in net.parameters())])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-8, atol=1e-8)


def test_fused_and_explicit_attention_are_equal():
    net = block()
    x = torch.randn(2, TOKENS, 11, dtype=torch.float64)
    fused, explicit = net(x), net(x, return_attention=True)
    torch.testing.assert_close(fused.tokens, explicit.tokens, **EXACT)
    assert fused.hidden == fused.attention == ()
    assert [h.shape for h in explicit.hidden] == [(2, TOKENS, 8)] * 3
    assert [a.shape for a in explicit.attention] == [(2, 4, TOKENS, TOKENS)] * 2
    for attention in explicit.attention:
        ones = torch.ones(2, 4, TOKENS, dtype=torch.float64)
        torch.testing.assert_close(attention.sum(-1), ones, **EXACT)
    last = net.cls_head(explicit.hidden[-1]) + net.residual(x)
    torch.testing.assert_close(last, explicit.tokens, **EXACT)


def test_graph_changes_only_its_tokens_within_a_layer():
    layer = block().bert.encoder.layer[0]
    x = torch.randn(1, TOKENS, 8, dtype=torch.float64)
    with_graph = layer(x, False)[0]
    layer.graph_conv = None
    changed = (with_graph - layer(x, False)[0]).abs().amax((0, 2)) > 1e-6
    assert changed.tolist() == [START <= t < START + NODES for t in range(TOKENS)]


def test_dropout_acts_in_training_only():
    net = block(dropout=0.5)
    x = torch.randn(1, TOKENS, 11, dtype=torch.float64)
    assert torch.equal(net(x).tokens, net(x).tokens)
    net.train()
    assert not torch.equal(net(x).tokens, net(x).tokens)
    dropped = net(x, return_attention=True).attention[0]
    assert (dropped == 0).any()


def test_initial_values():
    torch.manual_seed(0)
    adjacency = torch.eye(3)
    net = TransformerBlock(256, 128, 256, 128, graph=GraphTokens(0, adjacency))
    for name, parameter in net.named_parameters():
        if "norm" in name.lower():
            assert (parameter == float(name.endswith("weight"))).all()
        elif "graph_conv.conv" in name:
            assert 0.45 < parameter.abs().max() <= 6 / math.sqrt(64 + 64)
        elif "graph_conv" in name:
            assert 0 < parameter.abs().max() <= 1 / (128 * 64)
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05), name


def test_adjacency_follows_the_module_and_stays_out_of_checkpoints():
    conv = GraphConvolution(2, 2, torch.eye(3))
    assert set(conv.state_dict()) == {"weight", "bias"}
    assert conv.double().adjacency.dtype == torch.float64


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="multiple of heads=4"):
        TransformerBlock(4, 6, 8, 3)
    with pytest.raises(InputError, match="at most 9"):
        block()(torch.zeros(1, 10, 11, dtype=torch.float64))
    with pytest.raises(InputError, match="square"):
        GraphTokens(0, torch.zeros(2, 3))
    with pytest.raises(InputError, match="at least 0"):
        GraphTokens(-1, torch.eye(2))
    with pytest.raises(InputError, match="expected tokens 2 to 5"):
        block()(torch.zeros(1, 4, 11, dtype=torch.float64))
