"""Registered variants: published sizes, every mesh, forward and backward at a small size."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from kinemesh.bodies import load_topology
from kinemesh.bodies.official_assets import mano_topology, smpl_topology
from kinemesh.errors import InputError
from kinemesh.models.checkpoints import FAMILIES, to_official
from kinemesh.models.counting import count_macs, official_gmac
from kinemesh.models.graphormer import MeshGraphormer
from kinemesh.models.graphormer_pose import PoseGraphormer
from kinemesh.models.metro import Metro
from kinemesh.models.point_hmr import PointHmr
from kinemesh.models.registry import parameter_count
from kinemesh.models.variants import (
    VARIANTS,
    blank_network,
    build_network,
    build_variant,
    describe_variant,
    get_variant,
)
from tests.body_fixtures import write_mano_assets, write_smpl_assets

PUBLISHED = {  # all parameters, the dead included (METRO: spec 16; Mesh Graphormer: spec 7)
    "metro-body-w64": 243_070_293,
    "metro-body-w40": 243_070_293 - 128_059_944 + 57_557_160,
    "metro-body-r50": 243_070_293 - 128_059_944 + 23_508_032,
    "metro-hand-w64": 229_427_461,
    "metro-hand-w40": 229_427_461 - 128_059_944 + 57_557_160,
    "metro-hand-r50": 229_427_461 - 128_059_944 + 23_508_032,
    "graphormer-body-w64": 226_212_270,
    "graphormer-body-w40": 155_709_486,
    "graphormer-hand-w64": 213_666_312,
    "graphormer-hand-w40": 213_666_312 - 128_059_944 + 57_557_160,
    "point-hmr-body-w32": 59_086_504,
}
KINDS = {"metro": Metro, "graphormer": MeshGraphormer, "graphormer-pose": PoseGraphormer}
KINDS["point-hmr"] = PointHmr
TINY_HRNET = {
    "name": "hrnet",
    "width": 4,
    "stem_width": 4,
    "head_planes": (2, 2, 2, 4),
    "pooled_channels": 24,
    "modules": (1, 1, 1),
}
TINY_RESNET = {"name": "resnet", "depth": 50, "width": 2}
TINY = {
    "hidden_dims": (16, 8, 8),
    "feed_forward_dims": (16, 16, 16),
    "out_dims": (12, 8, 3),
    "layers": 1,
    "heads": 2,
}


TINY_TRUNKS = ({"name": "hrnet", "width": 4, "stem_width": 4, "modules": (1, 1, 1)}, TINY_RESNET)
TINY_POINT_HMR = {"width": 16, "position_width": 8, "second_width": 8, "layers": 1, "heads": 2}
BY_FORMULA = [name for name in VARIANTS if not name.startswith("point-hmr")]


def tiny(name: str) -> dict:
    """Overrides that make a variant small."""
    if name.startswith("point-hmr"):
        return {**TINY_POINT_HMR, "backbone": TINY_TRUNKS[name.endswith("r50")]}
    if name.endswith("r50"):
        return {**TINY, "backbone": TINY_RESNET, "map_channels": 64}
    if name.startswith("metro"):
        return {**TINY, "backbone": TINY_HRNET, "map_channels": 24}
    return {**TINY, "backbone": TINY_HRNET, "grid_channels": 16, "pooled_channels": 24}


@pytest.fixture(scope="module")
def meshes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    write_smpl_assets(folder / "full", form="npz")
    write_mano_assets(folder / "hand", form="npz")
    write_smpl_assets(folder / "small", vertices=60, form="npz")
    return {
        "small-smpl": smpl_topology(folder / "small"),
        "smpl": smpl_topology(folder / "full"),
        "mano": mano_topology(folder / "hand"),
        "anny-body": load_topology("anny-body"),
        "anny-hand": load_topology("anny-hand"),
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_the_published_ones(name):
    variant = VARIANTS[name]
    network = blank_network(variant.config, variant.backbone)
    assert parameter_count(network) == variant.parameters
    if variant.family is None:
        return
    live = network.state_dict()
    official = to_official(live, variant.family)
    counted = parameter_count(network) - sum(map(torch.Tensor.numel, live.values()))
    counted += sum(map(torch.Tensor.numel, official.values()))  # buffers of both cancel
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    dead = [n for n in official if ".fuse_layers." in n and n not in live]
    counted -= sum(official[n].numel() for n in dead if n.endswith(statistics))
    assert counted == PUBLISHED[name]


@pytest.mark.parametrize("name", VARIANTS)
def test_multiply_adds_are_those_of_the_official_code(name):
    variant = VARIANTS[name]
    if name in BY_FORMULA:
        counted = official_gmac(variant.config, variant.backbone)
    else:  # no image feature is repeated: what runs here is what runs there
        network = blank_network(variant.config, variant.backbone).eval()
        counted = count_macs(network, torch.empty(1, 3, 224, 224, device="meta")) / 1e9
    assert round(counted, 1) == variant.gmac


def test_the_table_in_the_documentation_is_this_one():
    text = (Path(__file__).parents[1] / "docs" / "models.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{v.name}` | {sum_of(v):,} | {v.parameters:,} | {v.gmac} |" for v in VARIANTS.values()
    ]


def sum_of(variant) -> int:
    """Parameters with the dead ones, as the official logs count."""
    return PUBLISHED.get(variant.name, variant.parameters)


def test_names_say_what_the_variants_are():
    for name, variant in VARIANTS.items():
        system, task, backbone = name.rsplit("-", 2)
        assert variant.name == name
        assert variant.architecture.removesuffix("-pose") == system
        assert variant.task == {"handpose": "hand"}.get(task, task)
        depth = int(backbone[1:])
        spec = ("resnet" if backbone.startswith("r") else "hrnet", depth)
        assert tuple(variant.backbone.values()) == spec
        assert variant.family is None or variant.family in FAMILIES


@pytest.mark.parametrize("name", VARIANTS)
def test_published_sizes_follow_from_smpl_and_mano(name, meshes):
    variant = VARIANTS[name]
    topology = meshes["smpl" if variant.task == "body" else "mano"]
    record = describe_variant(name, topology)
    network = build_network(record, topology, blank=True)
    assert network.config == variant.config
    assert type(network) is KINDS[variant.architecture]
    assert record["variant"] == name
    assert len(record["joints"]) == variant.config.joints


@pytest.mark.parametrize(
    ("name", "mesh"),
    [(name, "own") for name in VARIANTS]
    + [(name, "anny") for name in VARIANTS if name.endswith("w40")],
)
def test_small_networks_run_forward_and_backward(name, mesh, meshes):
    torch.manual_seed(0)
    variant = VARIANTS[name]
    own = "small-smpl" if variant.task == "body" else "mano"
    topology = meshes[own if mesh == "own" else f"anny-{variant.task}"]
    network = build_variant(name, topology, **tiny(name))
    output = network(torch.rand(2, 3, 224, 224))
    joints = topology.skeleton.joints if topology.token_joints is None else topology.token_joints
    assert output.camera.shape == (2, 3)
    assert output.joints.shape == (2, len(joints), 3)
    total = output.camera.square().sum() + output.joints.square().sum()
    if not isinstance(network, PoseGraphormer):
        sizes = [*(len(level) for level in reversed(topology.levels)), len(topology.template)]
        assert [v.shape[1] for v in output.vertices] == sizes
        total = total + output.vertices[-1].square().sum()
    total.backward()
    untouched = [n for n, p in network.named_parameters() if p.grad is None]
    assert untouched == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "field", "found"),
    [
        ("metro-hand-r50", "camera_tokens", "'vertices' or 'joints\\+vertices'"),
        ("metro-hand-r50", "image_feature", "'cells' or 'pooled'"),
        ("graphormer-hand-w40", "camera_tokens", "'vertices' or 'joints\\+vertices'"),
        ("graphormer-handpose-w40", "adjacency", "'normalised' or 'raw'"),
    ],
)
def test_words_of_a_configuration_are_checked(name, field, found):
    with pytest.raises(InputError, match=f"{field}: expected {found}, found 'foo'"):
        build_variant(name, **{field: "foo"})
    record = describe_variant(name)
    record["config"][field] = ["foo"]
    with pytest.raises(InputError, match=f"{field}: expected {found}"):
        build_network(record, None)


@pytest.mark.parametrize(
    "name", ["metro-body-w40", "graphormer-hand-w40", "graphormer-handpose-w40"]
)
def test_the_record_builds_the_same_network(name):
    record = json.loads(json.dumps(describe_variant(name, **tiny(name))))
    assert record["variant"] is None  # changed sizes are not the registered ones
    assert record["normalisation"] == "imagenet"
    topology = load_topology(f"anny-{record['task']}")
    built = build_network(record, topology)
    direct = build_variant(name, **tiny(name))
    assert built.config == direct.config
    built.load_state_dict(direct.state_dict())
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(built.eval()(image).joints, direct.eval()(image).joints)


def test_blank_networks_keep_their_mesh(meshes):
    blank = build_network(describe_variant("graphormer-hand-w40"), meshes["anny-hand"], blank=True)
    assert {p.device.type for p in blank.state_dict().values()} == {"meta"}
    persistent = blank.state_dict()
    others = {n: b for n, b in blank.named_buffers() if n not in persistent}
    assert others
    assert {b.device.type for b in others.values()} == {"cpu"}


def test_a_backbone_of_ones_own():
    class Flat(nn.Module):
        def forward(self, image):
            return image.new_zeros(len(image), 8, 7, 7)

    overrides = {**TINY, "backbone": Flat(), "map_channels": 8}
    network = build_variant("metro-body-w40", **overrides)
    assert network(torch.zeros(1, 3, 224, 224)).joints.shape == (1, 17, 3)
    with pytest.raises(InputError, match="found a module"):
        describe_variant("metro-body-w40", **overrides)


def test_wrong_requests_are_refused(meshes):
    with pytest.raises(InputError, match="metro-body-w64"):
        get_variant("metro")
    with pytest.raises(InputError, match="no field 'depth'"):
        build_variant("metro-body-w40", depth=3)
    with pytest.raises(InputError, match="recovers a body"):
        build_variant("metro-body-w40", meshes["mano"])
    with pytest.raises(InputError, match=r"made for 14 joints.*topology 'anny-body' has 17"):
        build_network(describe_variant("metro-body-w40", meshes["smpl"]), meshes["anny-body"])
    with pytest.raises(InputError, match="needs a mesh"):
        build_network(describe_variant("metro-body-w40"), None)


@pytest.mark.parametrize("name", VARIANTS)
def test_cards_say_what_is_published_and_that_no_weights_are_shipped(name):
    card = VARIANTS[name].card()
    assert card["name"] == name
    assert {"license", "paper", "resolution", "parameters", "published", "weights"} <= set(card)
    assert "none shipped" in card["weights"]
    assert "not measured here" in card["published"] or card["published"].startswith("none")
