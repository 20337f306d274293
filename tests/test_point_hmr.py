"""PointHMR: any mesh and backbone, tokens, masks, attention, optimised and checkpointed twins."""

import copy

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.models.activation_checkpointing import checkpoint_activations
from kinemesh.models.attention_maps import attention_vector
from kinemesh.models.optimised import optimise
from kinemesh.models.point_hmr import MeshConstants, PointHmr, PointHmrConfig
from kinemesh.models.point_hmr_backbones import PointHRNet
from kinemesh.models.point_sampling import heat_maps, mean_places, sample_features
from kinemesh.models.registry import load_model, save_model
from kinemesh.models.variants import build_network, describe_variant
from tests.seeded_weights import input_image
from tests.tiny_point_hmr import SIDE, TINY, TINY_HRNET, small_body, tiny
from tests.tolerances import TOL


@pytest.fixture(scope="module")
def body(tmp_path_factory):
    return small_body(tmp_path_factory.mktemp("assets"))


def image(batch: int = 2) -> torch.Tensor:
    return input_image("images", (batch, 3, SIDE, SIDE))


@pytest.mark.parametrize("name", ["point-hmr-body-w32", "point-hmr-body-r50", "point-hmr-hand-w32"])
def test_it_runs_on_anny(name):
    topology = load_topology("anny-body" if "body" in name else "anny-hand")
    network = tiny(topology, name, heads=2, layers=1)
    with torch.no_grad():
        output = network(image())
    levels = (*(len(level) for level in reversed(topology.levels)), len(topology.template))
    assert [tuple(v.shape) for v in output.vertices] == [(2, count, 3) for count in levels]
    assert output.joints.shape == (2, len(topology.token_skeleton), 3)
    assert output.camera.shape == (2, 3)
    assert output.heat.shape == (2, levels[0], SIDE // 4, SIDE // 4)
    torch.testing.assert_close(output.heat.sum((2, 3)), torch.ones(2, levels[0]))


def test_finer_levels_are_the_meshs_own_upsampling(body):
    network = tiny(body)
    with torch.no_grad():
        coarse, middle, full = network(image()).vertices
    torch.testing.assert_close(full, body.coarse.upsample(coarse), **TOL[torch.float32])
    again = body.levels[0].upsample(middle)
    torch.testing.assert_close(full, again, **TOL[torch.float32])
    torch.testing.assert_close(middle, full[:, body.levels[0].vertex_index])


def test_every_parameter_learns(body):
    network = tiny(body).train()
    output = network(image())
    total = output.camera.square().sum() + output.joints.square().sum()
    (total + output.vertices[-1].square().sum()).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias before a softmax over keys shifts all scores of a query alike
    assert idle == []


def test_tokens_stand_in_the_published_order(body):
    network = tiny(body)
    with torch.no_grad():
        tokens, heat = network.tokens(image())
    cells, J, N = 4, 14, len(body.coarse)
    assert tokens.shape == (2, 1 + cells + J + N, 24)
    assert (network.joint_tokens, network.vertex_tokens) == (slice(5, 19), slice(19, 19 + N))
    content, positions = tokens.split([16, 8], dim=-1)
    assert torch.equal(positions[0], network.token_position_embed.weight)
    assert torch.equal(content[0, network.joint_tokens], network.joint_token_embed.weight)
    with torch.no_grad():
        fine, coarse = network.backbone(image())
        grid = network.grid_layer(coarse) + network.grid_position_code
        features = network.feature_extract_layer(fine) + network.position_code
    assert torch.equal(content[:, 1:5], grid.flatten(2).mT)
    places = (heat[:, :, None] * features[:, None]).sum((3, 4))  # the sum, written out
    torch.testing.assert_close(content[:, network.vertex_tokens], places, **TOL[torch.float32])


def test_a_sharp_heat_map_samples_one_place():
    logits = torch.full((1, 2, 4, 6), -1e4)
    logits[0, 0, 1, 2] = logits[0, 1, 3, 5] = 0
    features = torch.randn(1, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    heat = heat_maps(logits)
    sampled = sample_features(heat, features)
    torch.testing.assert_close(sampled[0, 0], features[0, :, 1, 2])
    torch.testing.assert_close(sampled[0, 1], features[0, :, 3, 5])
    expected = torch.tensor([[[5 / 6 - 1, 3 / 4 - 1], [11 / 6 - 1, 7 / 4 - 1]]])
    torch.testing.assert_close(mean_places(heat), expected)


def test_nothing_is_attended_to_beyond_the_reach(body):
    network = tiny(body, hops=(2, 1, 1, 0))
    with torch.no_grad():
        output = network(image(), return_attention=True)
    hops = MeshConstants.of(body).hops_NN
    vertices, free = network.vertex_tokens, network.vertex_tokens.start
    assert len(output.attention) == 8
    for layer, attention in enumerate(output.attention):
        assert attention.shape == (2, 2, free + 4, free + 4)
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        among = attention[:, :, vertices, vertices]
        reach = (2, 1, 1, 0)[layer // 2]
        assert (among[:, :, hops > reach] == 0).all()
        assert (among[:, :, hops <= reach] > 0).all()
        assert (attention[:, :, :free] > 0).all()
        assert (attention[:, :, :, :free] > 0).all()
    shares = attention_vector(output.attention[-1], network.joint_tokens.start + 7, free)
    assert shares.shape == (2, 4)


def test_attention_changes_nothing_else(body):
    network = tiny(body)
    with torch.no_grad():
        plain, told = network(image()), network(image(), return_attention=True)
    assert torch.equal(plain.vertices[-1], told.vertices[-1])
    assert plain.attention == ()


def test_layers_begin_alike():
    network = build_network(describe_variant("point-hmr-body-w32", None, **_small()), _anny())
    assert isinstance(network, PointHmr)
    transformer = network.transformer
    wide, narrow = transformer.transformer_1.layers[0], transformer.transformer_3.layers[0]
    for first, encoders in (
        (wide, (transformer.transformer_1, transformer.transformer_2)),
        (narrow, (transformer.transformer_3, transformer.transformer_4)),
    ):
        for layer in (layer for encoder in encoders for layer in encoder.layers):
            for one, other in zip(first.parameters(), layer.parameters(), strict=True):
                assert torch.equal(one, other)
                assert one is other or one.data_ptr() != other.data_ptr()


def _small():
    return {"backbone": TINY_HRNET, **TINY}


def _anny():
    return load_topology("anny-body")


def test_optimised_gives_the_same_outputs(body):
    network = tiny(body)
    with torch.no_grad():
        expected = network(image())
    found = optimise(network)(image())
    for one, other in zip(found.vertices, expected.vertices, strict=True):
        torch.testing.assert_close(one, other, **TOL[torch.float32])
    torch.testing.assert_close(found.heat, expected.heat, **TOL[torch.float32])
    rough = optimise(network, torch.bfloat16)(image())
    assert rough.vertices[-1].dtype == torch.float32
    assert (rough.vertices[-1] - expected.vertices[-1]).abs().max() < 0.1


def test_recomputed_activations_change_no_digit(body):
    network = tiny(body).train()
    again = copy.deepcopy(network)
    assert checkpoint_activations(again) >= 4 + 3 + 8 + 3
    assert list(again.state_dict()) == list(network.state_dict())
    for each in (network, again):
        torch.manual_seed(3)  # dropout
        output = each(image())
        (output.vertices[-1].square().sum() + output.heat.square().sum()).backward()
    for (name, one), other in zip(network.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=0, msg=name)
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_a_weight_file_brings_it_back(body, tmp_path):
    network = tiny(_anny(), layers=1)
    record = describe_variant("point-hmr-body-w32", _anny(), **(_small() | {"layers": 1}))
    assert record["resolution"] == SIDE
    save_model(tmp_path / "small.safetensors", network, _anny(), record, half=False)
    loaded, topology, found = load_model(tmp_path / "small.safetensors")
    assert (found["architecture"], topology.name) == ("point-hmr", "anny-body")
    with torch.no_grad():
        one, other = network(image()), loaded(image())
    assert torch.equal(one.vertices[0], other.vertices[0])
    # the weights of the mesh's up-sampling are stored in half precision
    torch.testing.assert_close(one.vertices[-1], other.vertices[-1], rtol=0, atol=1e-4)


# Refusals --------------------------------------------------------------------------------------


def test_bad_sizes_are_refused(body):
    with pytest.raises(InputError, match=r"image: expected shape \(2, 3, 64, 64\)"):
        tiny(body)(torch.zeros(2, 3, 96, 96))
    with pytest.raises(InputError, match="heads"):
        tiny(body, heads=5)
    with pytest.raises(InputError, match="activation"):
        PointHmrConfig(activation="tanh")
    with pytest.raises(InputError, match="resolution"):
        PointHmrConfig(resolution=100)
    with pytest.raises(InputError, match="width"):
        PointHmrConfig(width=30)
    with pytest.raises(InputError, match="hops"):
        PointHmrConfig(hops=(3, 1))
    with pytest.raises(InputError, match="hops"):
        tiny(body, hops=(3, 2, 1, -1))
    mesh = MeshConstants.of(body)
    with pytest.raises(InputError, match="hops_NN"):
        PointHmr(PointHmrConfig(), PointHRNet(4), mesh)
    config = PointHmrConfig(coarse_vertices=4, upsampled=(15, 61))
    with pytest.raises(InputError, match="upsampling"):
        PointHmr(config, PointHRNet(4), mesh)


def test_gelu_is_the_other_activation(body):
    relu, gelu = tiny(body), tiny(body, activation="gelu")
    gelu.load_state_dict(relu.state_dict())
    with torch.no_grad():
        assert not torch.allclose(relu(image()).camera, gelu(image()).camera, atol=1e-4)
