"""DETR's transformer and position codes at tiny sizes; the goldens are in test_parity_prtr.py."""

import math

import pytest
import torch
from torch import nn

from kinemesh.errors import InputError
from kinemesh.models.detr import MLP, DetrTransformer, MultiheadAttention, attention_maps
from kinemesh.models.position_encoding import (
    LearnedPositionEncoding,
    SinePositionEncoding,
    position_encoding,
)
from tests.tolerances import TOL

DOUBLE = TOL[torch.float64]


def tiny(**options) -> DetrTransformer:
    torch.manual_seed(0)
    network = DetrTransformer(16, 4, 2, 3, 24, **options).double()
    with torch.no_grad():
        for parameter in network.parameters():  # biases and norms that a mistake would move
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def inputs(batch: int = 2, height: int = 4, width: int = 3):
    torch.manual_seed(1)
    source = torch.randn(batch, 16, height, width, dtype=torch.float64)
    query = torch.randn(5, 16, dtype=torch.float64)
    return source, query, SinePositionEncoding(16)(source)


def some_padding() -> torch.Tensor:
    padding = torch.zeros(2, 4, 3, dtype=torch.bool)
    padding[1, 3:] = padding[1, :, 2:] = True
    return padding


@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_torch(masked):
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 4, 12), torch.randn(2, 6, 12), torch.randn(2, 6, 12)
    keep = torch.rand(2, 6) > 0.3 if masked else None
    padding = None if keep is None else ~keep
    expected, weights = theirs(query, key, value, padding, average_attn_weights=False)
    torch.testing.assert_close(ours(query, key, value, keep), expected, **TOL[torch.float32])
    probabilities = ours.probabilities(query, key, keep)
    torch.testing.assert_close(probabilities, weights, **TOL[torch.float32])
    expected, _ = theirs(query, query, query)
    torch.testing.assert_close(ours(query, query, query), expected, **TOL[torch.float32])


def test_attention_wants_whole_heads():
    with pytest.raises(InputError, match="multiple of 3 heads, found 16"):
        MultiheadAttention(16, 3)


def test_dropout_of_attention_acts_in_training_only():
    torch.manual_seed(0)
    attention, x = MultiheadAttention(8, 2, dropout=0.5), torch.randn(1, 6, 8)
    assert not torch.equal(attention(x, x, x), attention(x, x, x))
    attention.eval()
    assert torch.equal(attention(x, x, x), attention(x, x, x))


def test_post_norm_spelled_out():
    """One image, by the equations of the paper's appendix A.3."""
    network, (source, query, position) = tiny(), inputs(batch=1)
    x, p = source[0].flatten(1).T, position[0].flatten(1).T

    def attend(module, q, k, v):
        heads, width = module.heads, q.shape[-1] // module.heads
        wq, wk, wv = module.in_proj_weight.chunk(3)
        bq, bk, bv = module.in_proj_bias.chunk(3)
        q, k, v = q @ wq.T + bq, k @ wk.T + bk, v @ wv.T + bv
        parts = []
        for head in range(heads):
            s = slice(head * width, (head + 1) * width)
            parts.append((q[:, s] @ k[:, s].T / math.sqrt(width)).softmax(-1) @ v[:, s])
        return module.out_proj(torch.cat(parts, -1))

    def feed_forward(layer, y):
        return layer.linear2(layer.linear1(y).clamp(min=0))

    for layer in network.encoder.layers:
        x = layer.norm1(x + attend(layer.self_attn, x + p, x + p, x))
        x = layer.norm2(x + feed_forward(layer, x))
    target, expected = torch.zeros_like(query), []
    for layer in network.decoder.layers:
        coded = target + query
        target = layer.norm1(target + attend(layer.self_attn, coded, coded, target))
        target = layer.norm2(target + attend(layer.multihead_attn, target + query, x + p, x))
        target = layer.norm3(target + feed_forward(layer, target))
        expected.append(network.decoder.norm(target))
    output = network(source, query, position)
    torch.testing.assert_close(output.queries_LBQD[:, 0], torch.stack(expected), **DOUBLE)
    torch.testing.assert_close(output.memory_BDHW[0].flatten(1).T, x, **DOUBLE)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_padding_is_never_looked_at(pre_norm):
    network, (source, query, position) = tiny(pre_norm=pre_norm), inputs()
    padding = some_padding()
    other = torch.where(padding[:, None], torch.full_like(source, 7.0), source)
    first = network(source, query, position, padding).queries_LBQD
    torch.testing.assert_close(network(other, query, position, padding).queries_LBQD, first)
    assert not torch.allclose(network(source, query, position).queries_LBQD[:, 1], first[:, 1])
    # As a smaller image by itself.
    alone = network(source[1:, :, :3, :2], query, position[:, :, :3, :2])
    torch.testing.assert_close(alone.queries_LBQD[:, 0], first[:, 1], **DOUBLE)


def test_pre_norm_has_a_norm_behind_the_encoder():
    assert {"encoder.norm.weight", "encoder.norm.bias"} == set(tiny(pre_norm=True).state_dict()) - (
        set(tiny().state_dict())
    )


def test_last_layer_alone():
    network, arguments = tiny(), inputs()
    every = network(*arguments).queries_LBQD
    last = network(*arguments, every_layer=False).queries_LBQD
    assert every.shape == (3, 2, 5, 16)
    assert torch.equal(every[-1:], last)


def test_attention_maps_on_request():
    network, (source, query, position) = tiny(), inputs()
    output, maps = attention_maps(network, source, query, position, some_padding())
    expected = network(source, query, position, some_padding())
    assert torch.equal(output.queries_LBQD, expected.queries_LBQD)
    assert maps["encoder.layers.1.self_attn"].shape == (2, 4, 12, 12)
    assert maps["decoder.layers.0.self_attn"].shape == (2, 4, 5, 5)
    cross = maps["decoder.layers.2.multihead_attn"]
    assert cross.shape == (2, 4, 5, 12)
    assert len(maps) == 2 + 2 * 3
    torch.testing.assert_close(cross.sum(-1), torch.ones_like(cross[..., 0]), **DOUBLE)
    assert cross[1].unflatten(-1, (4, 3))[..., some_padding()[1]].abs().max() == 0
    assert not any(module._forward_hooks for module in network.modules())


def test_initialisation():
    torch.manual_seed(0)
    network = DetrTransformer(32, 4, 1, 1, 64)
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1:  # Xavier's limit, nearly reached
            limit = math.sqrt(6 / sum(parameter.shape))
            assert 0.95 * limit < parameter.abs().max() <= limit, name
        elif "attn" in name:
            assert not parameter.any(), name


def test_gradient_reaches_everything():
    network, arguments = tiny().train(), inputs()
    network(*arguments).queries_LBQD.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(p.grad.any() for n, p in network.named_parameters() if "norm" not in n)


def test_mlp_spelled_out():
    torch.manual_seed(0)
    mlp, x = MLP(6, 2), torch.randn(3, 4, 6)
    first, second, third = mlp.layers
    expected = third(second(first(x).clamp(min=0)).clamp(min=0))
    torch.testing.assert_close(mlp(x), expected)
    assert mlp(x).shape == (3, 4, 2)


def slow_sine(rows, columns, height, width, d):
    """One number at a time, for a map whose first rows and columns count."""
    code = torch.zeros(d, height, width)
    for i in range(height):
        for j in range(width):
            y = min(i + 1, rows) * (j < columns) / (rows * (j < columns) + 1e-6) * 2 * math.pi
            x = min(j + 1, columns) * (i < rows) / (columns * (i < rows) + 1e-6) * 2 * math.pi
            for k in range(d // 2):
                period = 10000 ** (2 * (k // 2) / (d // 2))
                function = math.cos if k % 2 else math.sin
                code[k, i, j] = function(y / period)
                code[d // 2 + k, i, j] = function(x / period)
    return code


def test_sine_code_spelled_out():
    encoding, source = SinePositionEncoding(16), torch.zeros(2, 16, 4, 3)
    whole = slow_sine(4, 3, 4, 3, 16)
    torch.testing.assert_close(encoding(source)[0], whole, **TOL[torch.float32])
    masked = encoding(source, some_padding())
    torch.testing.assert_close(masked[0], whole, **TOL[torch.float32])
    torch.testing.assert_close(masked[1], slow_sine(3, 2, 4, 3, 16), **TOL[torch.float32])
    assert not list(encoding.state_dict())
    assert encoding(source.bfloat16()).dtype == torch.bfloat16


def test_learned_code_has_columns_first():
    torch.manual_seed(0)
    encoding = LearnedPositionEncoding(8, size=5)
    code = encoding(torch.zeros(2, 3, 4, 3))
    assert code.shape == (1, 8, 4, 3)
    torch.testing.assert_close(code[0, :4, 2, 1], encoding.col_embed.weight[1])
    torch.testing.assert_close(code[0, 4:, 2, 1], encoding.row_embed.weight[2])
    weight = encoding.row_embed.weight
    assert weight.min() >= 0
    assert weight.max() <= 1
    with pytest.raises(InputError, match=r"at most 5 x 5 cells .* found 6 x 2"):
        encoding(torch.zeros(1, 3, 6, 2))


def test_codes_by_name():
    assert isinstance(position_encoding("sine", 8), SinePositionEncoding)
    assert isinstance(position_encoding("learned", 8), LearnedPositionEncoding)
    with pytest.raises(InputError, match="'sine' or 'learned', found 'none'"):
        position_encoding("none", 8)
    with pytest.raises(InputError, match="multiple of 4, found 6"):
        position_encoding("sine", 6)
