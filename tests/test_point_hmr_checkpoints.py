"""PointHMR's official checkpoints: there and back, dead tensors, sizes, damage, backbones."""

import pytest
import torch

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.inference.mesh_networks import adapt_network
from kinemesh.models.checkpoints import FAMILIES, family_of, from_official, to_official
from kinemesh.models.conversion import convert_checkpoint, export_official, note_on_sizes
from kinemesh.models.hrnet import HRNet
from kinemesh.models.point_hmr_backbones import PointHRNet
from kinemesh.models.point_hmr_checkpoints import config_of, dead_names, load_backbone_trunk
from kinemesh.models.registry import load_model, save_model
from kinemesh.models.variants import VARIANTS, blank_network, describe_variant
from tests.seeded_weights import input_image
from tests.tiny_point_hmr import SIDE, TINY, TINY_HRNET, small_body, tiny


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    return tmp_path_factory.mktemp("assets")


@pytest.fixture(scope="module")
def body(assets):
    return small_body(assets)


def official_file(network, path, prefix="module."):
    state = to_official(network.state_dict(), "point-hmr")
    # values that nothing may depend on
    dead = dead_names(state)
    noise = {n: torch.randn(v.shape) if n in dead else v for n, v in state.items()}
    torch.save({prefix + name: value for name, value in noise.items()}, path)
    return state


def test_there_and_back_is_the_same(body):
    network = tiny(body)
    official = to_official(network.state_dict(), "point-hmr")
    assert family_of(official) == "point-hmr"
    # two embeddings, and seven convolutions with their norms
    assert len(dead_names(official)) == 2 + 7 * 6
    converted = from_official(official, heads=2)
    assert list(converted.state) == list(network.state_dict())
    for name, value in network.state_dict().items():
        assert torch.equal(converted.state[name], value), name
    assert set(converted.dropped) == official.keys() - network.state_dict().keys()
    assert converted.backbone == {**TINY_HRNET, "name": "hrnet"}


def test_sizes_are_read_from_the_shapes():
    for name in ("point-hmr-body-w32", "point-hmr-hand-w32", "point-hmr-body-r50"):
        variant = VARIANTS[name]
        network = blank_network(variant.config, variant.backbone)
        shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert config_of(shapes) == variant.config


def test_a_checkpoint_becomes_a_weight_file(body, assets, tmp_path):
    """Sizes of the finer levels are SMPL's, which this body has not: the mesh is refused."""
    path = tmp_path / "h36m.pth"
    network = tiny(body)
    official = official_file(network, path)
    done = convert_checkpoint(path, heads=2)
    assert (done.converted.family, done.variant) == ("point-hmr", None)
    with pytest.raises(InputError, match="1723, 6890"):
        load_model(done.path, assets)
    assert "widths 24, 8" in note_on_sizes(done.path)
    again, family, count = export_official(done.path)
    assert (family, count) == ("point-hmr", len(official))
    state = torch.load(again, weights_only=True)
    for name, value in network.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_counter_may_be_absent_and_nothing_else(body):
    official = to_official(tiny(body).state_dict(), "point-hmr")
    fewer = {n: v for n, v in official.items() if not n.endswith("num_batches_tracked")}
    converted = from_official(fewer, heads=2)
    assert len(converted.added) > 10
    del fewer["cam_layer.bias"]
    with pytest.raises(InputError, match=r"1 missing: cam_layer\.bias"):
        from_official(fewer)
    damaged = dict(official)
    damaged["transformer.xyz_regressor.weight"] = torch.zeros(3, 7)
    with pytest.raises(InputError, match=r"xyz_regressor\.weight: expected \(3, 8\)"):
        from_official(damaged)
    with pytest.raises(InputError, match="Use --family point-hmr"):
        from_official(official, "metro-body")
    assert FAMILIES["point-hmr"].task == "body"


@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
def test_a_backbone_is_taken_out_of_a_larger_file(prefix, tmp_path):
    sizes = {"stem_width": 4, "modules": (1, 1, 1)}
    planes = {"head_planes": (2, 2, 2, 4), "pooled_channels": 8}
    whole = HRNet(4, **sizes, **planes)
    path = tmp_path / "hrnet.pth"
    torch.save({prefix + name: value for name, value in whole.state_dict().items()}, path)
    trunk = PointHRNet(4, **sizes)
    assert "hrnet.pth" in load_backbone_trunk(trunk, path)
    held = whole.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in trunk.state_dict().items())
    with pytest.raises(InputError, match="of another shape"):
        load_backbone_trunk(PointHRNet(8, **sizes), path)


def test_the_predictor_takes_it(tmp_path):
    topology = load_topology("anny-body")
    sizes = {"backbone": TINY_HRNET, **TINY, "layers": 1}
    record = describe_variant("point-hmr-body-w32", topology, **sizes)
    save_model(tmp_path / "a.safetensors", tiny(topology, layers=1), topology, record)
    network, topology, record = load_model(tmp_path / "a.safetensors")
    adapted, _ = adapt_network(network, topology, record)
    with torch.no_grad():
        found = adapted(input_image("images", (1, 3, SIDE, SIDE)).sigmoid())
    assert found.vertices.shape == (1, len(topology.template), 3)
    assert found.joints_2d.shape == (1, len(topology.skeleton), 2)
