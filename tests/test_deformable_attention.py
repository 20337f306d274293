"""Deformable attention against its definition, one scalar at a time."""

import math

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.models.deformable_attention import DeformableAttention, Levels, deformable_attention
from kinemesh.models.deformable_detr import DeformableTransformer, token_references
from tests.tolerances import TOL

SIZES = [(3, 4), (2, 1)]
DOUBLE = TOL[torch.float64]


def slow_attention(value, sizes, locations, weights):
    """The kernel's rule with a loop for every index (Deformable DETR, equation 3)."""
    batch, _, heads, width = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    rows = []
    for b in range(batch):
        for q in range(queries):
            for m in range(heads):
                mixed = torch.zeros(width, dtype=value.dtype)
                start = 0
                for l_ in range(levels):
                    height, columns = sizes[l_]
                    for p in range(points):
                        x = locations[b, q, m, l_, p, 0] * columns - 0.5
                        y = locations[b, q, m, l_, p, 1] * height - 0.5
                        left, top = math.floor(x.item()), math.floor(y.item())
                        for j in (left, left + 1):
                            for i in (top, top + 1):
                                if 0 <= i < height and 0 <= j < columns:
                                    share = (1 - (x - j).abs()) * (1 - (y - i).abs())
                                    pixel = value[b, start + i * columns + j, m]
                                    mixed = mixed + weights[b, q, m, l_, p] * share * pixel
                    start += height * columns
                rows.append(mixed)
    return torch.stack(rows).reshape(batch, queries, heads * width)


def drawn(seed: int = 0):
    torch.manual_seed(seed)
    tokens = sum(height * width for height, width in SIZES)
    value = torch.randn(2, tokens, 3, 4, dtype=torch.float64, requires_grad=True)
    # A third of the points lies outside of the maps.
    locations = 0.5 + 0.6 * torch.randn(2, 5, 3, 2, 3, 2, dtype=torch.float64)
    weights = torch.randn(2, 5, 3, 2, 3, dtype=torch.float64)
    return value, SIZES, locations.requires_grad_(), weights.requires_grad_()


def test_value_and_gradient_equal_the_definition():
    value, _, locations, weights = arguments = drawn()
    inputs = (value, locations, weights)
    fast, slow = deformable_attention(*arguments), slow_attention(*arguments)
    torch.testing.assert_close(fast, slow, **DOUBLE)
    seed = torch.randn_like(slow)
    for ours, theirs in zip(
        torch.autograd.grad(fast, inputs, seed),
        torch.autograd.grad(slow, inputs, seed),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, **DOUBLE)
        assert ours.any()


def test_points_outside_give_nothing():
    value, sizes, locations, weights = drawn()
    far = torch.full_like(locations, 3.0)
    assert not deformable_attention(value, sizes, far, weights).any()


def module() -> DeformableAttention:
    torch.manual_seed(0)
    attention = DeformableAttention(12, levels=2, heads=3, points=3).double()
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return attention


def test_module_spelled_out():
    attention = module()
    query, memory = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 14))
    reference = torch.rand(2, 5, 2, 2, dtype=torch.float64)
    value = attention.value_proj(memory).reshape(2, 14, 3, 4)
    offsets = attention.sampling_offsets(query).reshape(2, 5, 3, 2, 3, 2)
    weights = attention.attention_weights(query).reshape(2, 5, 3, 6).softmax(-1)
    size = torch.tensor([[width, height] for height, width in SIZES])  # x is over the width
    locations = reference[:, :, None, :, None] + offsets / size[:, None]
    slow = slow_attention(value, SIZES, locations, weights.reshape(2, 5, 3, 2, 3))
    expected = attention.output_proj(slow)
    fast = attention(query, reference, memory, Levels.of(SIZES, query))
    torch.testing.assert_close(fast, expected, **DOUBLE)


def test_weights_sum_to_one_over_all_levels():
    attention, query = module(), torch.randn(2, 5, 12, dtype=torch.float64)
    reference = torch.rand(2, 5, 2, 2, dtype=torch.float64)
    locations, weights = attention.samples(query, reference, Levels.of(SIZES, query))
    assert locations.shape == (2, 5, 3, 2, 3, 2)
    total = weights.sum((-1, -2))
    torch.testing.assert_close(total, torch.ones_like(total), **DOUBLE)


def test_initial_points_look_along_the_heads_direction():
    attention = DeformableAttention(64, levels=2, heads=8, points=3)
    assert not attention.sampling_offsets.weight.any()
    assert not attention.attention_weights.weight.any()
    assert not attention.attention_weights.bias.any()
    assert not attention.value_proj.bias.any()
    offsets = attention.sampling_offsets.bias.reshape(8, 2, 3, 2)
    torch.testing.assert_close(offsets[:, 0], offsets[:, 1])
    expected = {0: (1, 0), 1: (1, 1), 2: (0, 1), 3: (-1, 1), 6: (0, -1)}
    for head, direction in expected.items():
        for point in range(3):
            goal = torch.tensor(direction) * float(point + 1)
            torch.testing.assert_close(offsets[head, 0, point], goal, rtol=0, atol=1e-5)


def test_width_has_whole_heads():
    with pytest.raises(InputError, match="multiple of 5 heads, found 12"):
        DeformableAttention(12, heads=5)


def test_references_are_the_centres_of_pixels():
    points = token_references(SIZES, torch.device("cpu"))
    assert points.shape == (14, 2)
    torch.testing.assert_close(points[6], torch.tensor([2.5 / 4, 1.5 / 3]))
    torch.testing.assert_close(points[13], torch.tensor([0.5, 1.5 / 2]))


def transformer() -> DeformableTransformer:
    torch.manual_seed(0)
    network = DeformableTransformer(12, 3, 1, 2, 16, levels=2, encoder_points=2, decoder_points=3)
    return network.double().eval()


def test_decoder_uses_second_norm_first():
    """And the queries' second half as their first target; no norm follows the last layer."""
    network = transformer()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    maps = [torch.randn(1, 12, *size, dtype=torch.float64) for size in SIZES]
    query = torch.randn(4, 24, dtype=torch.float64)
    memory: list[torch.Tensor] = []
    network.encoder.layers[-1].register_forward_hook(lambda *args: memory.append(args[-1]))
    output = network(maps, [torch.zeros_like(level) for level in maps], query)
    code, target, levels = query[:, :12], query[:, 12:][None], Levels.of(SIZES, query)
    reference = network.reference_points(code).sigmoid()
    for layer, ours in zip(network.decoder.layers, output.queries_NBQD, strict=True):
        coded = target + code
        target = layer.norm2(target + layer.self_attn(coded, coded, target))
        looked = layer.cross_attn(target + code, reference[None, :, None], memory[0], levels)
        target = layer.norm1(target + looked)
        target = layer.norm3(target + layer.linear2(layer.linear1(target).clamp(min=0)))
        torch.testing.assert_close(ours, target, **DOUBLE)
    torch.testing.assert_close(output.reference_Q2, reference, **DOUBLE)


def test_initialisation_of_the_transformer():
    torch.manual_seed(0)
    network = DeformableTransformer(64, 4, 1, 1, 128)
    assert 0.8 < network.level_embed.std() < 1.2
    assert not network.reference_points.bias.any()
    for name, parameter in network.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            assert not parameter.any(), name
        elif parameter.dim() > 1 and name != "level_embed":
            limit = math.sqrt(6 / sum(parameter.shape))
            assert 0.8 * limit < parameter.abs().max() <= limit, name
