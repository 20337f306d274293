"""Official names and shapes against the manifests, both ways, and errors that name tensors."""

import json
import re

import pytest
import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.models.checkpoints import FAMILIES, family_of, from_official, to_official
from kinemesh.models.graphormer import GraphormerConfig
from kinemesh.models.hrnet import HRNet
from kinemesh.models.metro import MetroConfig
from kinemesh.models.resnet import ResNet
from kinemesh.models.variants import VARIANTS, blank_backbone, blank_network, build_backbone
from tests.seeded_weights import mesh_transformer_state

CASES = (
    "metro_body_w64",
    "metro_hand_w64",
    "metro_body_r50",
    "metro_hand_r50",
    "graphormer_body_w64",
    "graphormer_hand_w64",
)
MESH_FAMILIES = [n for n, f in FAMILIES.items() if f.architecture in ("metro", "graphormer")]
SMALL_HRNET = {
    "name": "hrnet",
    "width": 4,
    "stem_width": 6,
    "head_planes": (2, 3, 4, 5),
    "pooled_channels": 12,
    "modules": (1, 2, 1),
}
SMALL_RESNET = {"name": "resnet", "depth": 50, "width": 4}
SMALL_BLOCKS = {"hidden_dims": (16, 12), "feed_forward_dims": (20, 24), "out_dims": (8, 3)}
SMALL_METRO = {
    "joints": 5,
    "coarse_vertices": 7,
    "upsampled": (9, 30),
    "camera_hidden": 6,
    "layers": 2,
    "heads": 2,
    "positions": 40,
    **SMALL_BLOCKS,
}
GRAPH = {"graph_blocks": (True, False), "grid_channels": 20, "pooled_channels": 12}


def small_config(family: str):
    body = family.endswith("body")
    camera = "vertices" if body else "joints+vertices"
    if family.startswith("graphormer"):
        return GraphormerConfig(**SMALL_METRO, camera_tokens=camera, **GRAPH)
    return MetroConfig(
        **SMALL_METRO,
        camera_tokens=camera,
        image_feature="cells" if body else "pooled",
        cells=4 if body else 49,
        map_channels=12,
    )


def our_state(network, salt="") -> dict[str, Tensor]:
    """Seeded values for the tensors of a network."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return mesh_transformer_state(shapes, salt=salt)


def small_state(family: str) -> dict[str, Tensor]:
    return our_state(blank_network(small_config(family), SMALL_HRNET))


def shapes_of(state) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.fixture(scope="module", params=CASES)
def case(request, shared):
    """Manifest entry, its family, and its tensors without storage."""
    system = request.param.split("_")[0]
    manifest = json.loads((shared / "parity" / system / "manifest.json").read_text())
    entry = manifest[request.param]
    blank = {n: torch.empty(shape, device="meta") for n, shape in entry["state_dict"].items()}
    return entry, f"{system}-{entry['config']['kind']}", blank


def test_manifests_are_taken_whole(case):
    entry, family, blank = case
    assert family_of(blank) == family
    converted = from_official(blank, family, heads=entry["config"]["num_attention_heads"])
    assert sorted(converted.dropped) == sorted(entry["unused"])
    assert converted.added == ()
    ours = blank_network(converted.config, converted.backbone)
    assert shapes_of(converted.state) == shapes_of(ours.state_dict())


def test_manifests_are_written_in_their_own_order(case):
    entry, family, blank = case
    converted = from_official(blank, family)
    back = to_official(converted.state, family)
    expected = {name: tuple(shape) for name, shape in entry["state_dict"].items()}
    assert list(back) == list(expected)
    assert shapes_of(back) == expected


def test_sizes_of_the_manifests_are_those_of_the_registered_variants(case):
    entry, family, blank = case
    arch = {"hrnet-w64": "w64", "resnet50": "r50"}[entry["config"]["arch"]]
    variant = VARIANTS[f"{family}-{arch}"]
    converted = from_official(blank, family)
    assert converted.config == variant.config
    assert converted.backbone == variant.backbone
    assert list(converted.config.hidden_dims) == entry["config"]["hidden_feat_dim"]
    assert list(converted.config.feed_forward_dims) == entry["config"]["intermediate_size"]
    if "which_gcn" in entry["config"]:
        assert list(map(int, converted.config.graph_blocks)) == entry["config"]["which_gcn"]


@pytest.mark.parametrize("family", MESH_FAMILIES)
def test_round_trips_are_exact(family):
    ours = small_state(family)
    official = to_official(ours, family)
    converted = from_official(official, family, heads=2, joints=5)
    assert converted.config == small_config(family)
    assert converted.backbone == SMALL_HRNET
    assert_same(converted.state, ours)
    assert_same(to_official(converted.state, family), official)


def test_query_key_and_value_stand_in_this_order():
    ours = small_state("metro-hand")
    name = "trans_encoder.0.bert.encoder.layer.1.attention.self"
    official = to_official(ours, "metro-hand")
    for part, kind in enumerate(("query", "key", "value")):
        for tensor in ("weight", "bias"):
            rows = ours[f"{name}.qkv.{tensor}"][16 * part : 16 * (part + 1)]
            assert torch.equal(official[f"{name}.{kind}.{tensor}"], rows)


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_a_resnet_is_counted_in_official_files(depth):
    backbone = {**SMALL_RESNET, "depth": depth}
    config = MetroConfig(**{**vars(small_config("metro-body")), "map_channels": 128})
    ours = our_state(blank_network(config, backbone))
    official = to_official(ours, "metro-body")
    tops = {".".join(name.split(".")[:2]) for name in official if name.startswith("backbone.")}
    assert tops == {f"backbone.{number}" for number in (0, 1, 4, 5, 6, 7)}
    converted = from_official(official, "metro-body", heads=2)
    assert (converted.backbone, converted.config) == (backbone, config)
    assert_same(converted.state, ours)


def test_dead_tensors_are_zero_and_norms_are_one():
    official = to_official(small_state("graphormer-body"), "graphormer-body")
    dead = [n for n in official if re.search(r"embeddings\.\w*emb|pooler|skip_conv|classifier", n)]
    assert dead
    assert not [name for name in dead if official[name].any()]
    assert (official["trans_encoder.0.bert.embeddings.LayerNorm.weight"] == 1).all()
    assert official["backbone.classifier.weight"].shape == (1000, 12)


@pytest.mark.parametrize(
    ("family", "kind", "spec", "layer"),
    [
        ("hrnet-imagenet", HRNet, SMALL_HRNET, "classifier"),
        ("resnet-imagenet", ResNet, SMALL_RESNET, "fc"),
    ],
)
def test_imagenet_backbones(family, kind, spec, layer):
    network = kind(**{name: value for name, value in spec.items() if name != "name"})
    ours = our_state(network)
    official = to_official(ours, family)
    assert set(official) - set(ours) == {f"{layer}.weight", f"{layer}.bias"}
    converted = from_official(official, family)
    assert converted.backbone == spec
    assert converted.config is None
    assert sorted(converted.dropped) == [f"{layer}.bias", f"{layer}.weight"]
    assert_same(converted.state, ours)


@pytest.mark.parametrize("spec", [{"name": "hrnet", "width": 40}, {"name": "hrnet", "width": 64}])
def test_published_hrnets_are_recognised(spec):
    state = blank_backbone(spec).state_dict()
    assert from_official(state, "hrnet-imagenet").backbone == spec


def test_old_files_without_counters_are_filled_up():
    ours = small_state("metro-hand")
    official = to_official(ours, "metro-hand")
    old = {n: v for n, v in official.items() if not n.endswith("num_batches_tracked")}
    converted = from_official(old, "metro-hand", heads=2)
    assert set(converted.added) == {n for n in ours if n.endswith("num_batches_tracked")}
    assert_same(converted.state, ours)


@pytest.mark.parametrize("family", [*MESH_FAMILIES, "hrnet-imagenet", "resnet-imagenet"])
def test_a_wrong_family_is_told_which_one_fits(family):
    if FAMILIES[family].is_backbone:
        spec = SMALL_HRNET if family == "hrnet-imagenet" else SMALL_RESNET
        state = to_official(our_state(blank_backbone(spec)), family)
    else:
        state = to_official(small_state(family), family)
    for other in FAMILIES:
        if other != family:
            with pytest.raises(InputError, match=f"--family {family}"):
                from_official(state, other)
            with pytest.raises(InputError, match=f"--family {family}"):
                to_official(state, other)


def test_tensors_of_something_else_are_refused():
    with pytest.raises(InputError, match=r"metro-body, .* fit none of them: encoder\.weight"):
        from_official({"encoder.weight": torch.ones(1)}, "metro-body")
    with pytest.raises(InputError, match="expected one of metro-body"):
        from_official({"encoder.weight": torch.ones(1)}, "metro")


def test_missing_and_unknown_tensors_are_named_and_counted():
    official = to_official(small_state("graphormer-hand"), "graphormer-hand")
    del official["trans_encoder.1.cls_head.bias"]
    del official["cam_param_fc3.weight"]
    official["extra.weight"] = torch.ones(2)
    with pytest.raises(InputError) as caught:
        from_official(official, "graphormer-hand", heads=2)
    message = str(caught.value)
    assert "2 missing: trans_encoder.1.cls_head.bias, cam_param_fc3.weight" in message
    assert "1 unknown: extra.weight" in message


def test_many_missing_tensors_are_shortened():
    official = to_official(small_state("metro-body"), "metro-body")
    kept = {name: value for name, value in official.items() if not name.startswith("backbone.s")}
    gone = len(official) - len(kept)
    with pytest.raises(
        InputError, match=r"missing: backbone\.stage2\S+, .* and \d+ more"
    ) as caught:
        from_official(kept, "metro-body", heads=2)
    assert gone > 100
    # whatever else the missing stages would have told keeps the published value
    assert "trans_encoder" not in str(caught.value)


def test_shapes_are_compared_tensor_by_tensor():
    official = to_official(small_state("metro-body"), "metro-body")
    query = "trans_encoder.0.bert.encoder.layer.1.attention.self.query.weight"
    official[query] = torch.zeros(16, 15)
    official["upsampling2.weight"] = torch.zeros(30, 8)
    with pytest.raises(InputError) as caught:
        from_official(official, "metro-body", heads=2)
    lines = str(caught.value).splitlines()
    assert "2 of another shape" in lines[0]
    assert lines[1:] == [
        f"  {query}: expected (16, 16), found (16, 15)",
        "  upsampling2.weight: expected (30, 9), found (30, 8)",
    ]


def test_resnet_problems_are_told_in_official_names():
    config = MetroConfig(**{**vars(small_config("metro-body")), "map_channels": 128})
    official = to_official(our_state(blank_network(config, SMALL_RESNET)), "metro-body")
    official["backbone.4.0.conv2.weight"] = torch.zeros(4, 4, 1, 1)
    del official["backbone.7.2.bn3.bias"]
    with pytest.raises(InputError) as caught:
        from_official(official, "metro-body", heads=2)
    assert "1 missing: backbone.7.2.bn3.bias" in str(caught.value)
    assert "backbone.4.0.conv2.weight: expected (4, 4, 3, 3), found" in str(caught.value)


def test_heads_that_do_not_divide_the_width_are_refused():
    official = to_official(small_state("metro-hand"), "metro-hand")
    with pytest.raises(InputError, match="heads=5"):
        from_official(official, "metro-hand", heads=5)


def test_tensors_of_any_shape_are_told():
    official = to_official(small_state("metro-body"), "metro-body")
    block = "trans_encoder.0.bert"
    for name in (
        *("cam_param_fc2.weight", "upsampling.weight", "upsampling2.weight"),
        *(f"{block}.position_embeddings.weight", "backbone.conv1.weight"),
    ):
        for value in (torch.tensor(1.0), torch.zeros(3)):
            with pytest.raises(InputError):
                from_official(official | {name: value}, heads=2)
    with pytest.raises(InputError, match=r"found 1 with none: upsampling\.weight"):
        from_official(official | {"upsampling.weight": torch.zeros(9, 0)}, heads=2)


@pytest.mark.parametrize(
    "name",
    [
        "trans_encoder.3000.cls_head.weight",
        "trans_encoder.0.bert.encoder.layer.999999999999.output.dense.weight",
        "trans_encoder." + "9" * 5000 + ".cls_head.weight",
        "backbone.stage2.3000.branches.0.0.conv1.weight",
    ],
)
def test_blocks_are_numbered_without_a_gap(name):
    official = to_official(small_state("metro-body"), "metro-body")
    with pytest.raises(InputError, match=rf"1 unknown: {re.escape(name)}"):
        from_official(official | {name: torch.ones(2, 2)}, "metro-body", heads=2)


@pytest.mark.parametrize("heads", [0, -1])
def test_heads_are_at_least_one(heads):
    official = to_official(small_state("metro-hand"), "metro-hand")
    with pytest.raises(InputError, match=f"heads: expected 1 or more, found {heads}"):
        from_official(official, "metro-hand", heads=heads)


def test_names_are_looked_up_once():
    class Counted(str):
        looks = 0

        def startswith(self, *arguments):
            Counted.looks += 1
            return super().startswith(*arguments)

    ours = {Counted(name): value for name, value in small_state("metro-body").items()}
    to_official(ours, "metro-body")
    assert 0 < Counted.looks < 10 * len(ours)


def test_no_joint_count_is_read_where_no_shape_tells_it():
    official = to_official(small_state("graphormer-body"), "graphormer-body")
    assert from_official(official, "graphormer-body", heads=2).config.joints == 14


def test_backbones_run_only_where_they_can():
    with pytest.raises(InputError, match="graphormer runs on hrnet"):
        build_backbone({"name": "resnet", "depth": 50}, "graphormer")
    with pytest.raises(InputError, match="unexpected keyword argument 'height'"):
        build_backbone({"name": "hrnet", "height": 3}, "metro")


@pytest.mark.parametrize(
    "name",
    [
        *("cam_param_fc2.weight", "upsampling.weight", "conv_learn_tokens.weight"),
        "trans_encoder.1.bert.position_embeddings.weight",
        "trans_encoder.0.bert.encoder.layer.0.intermediate.dense.weight",
        *("trans_encoder.0.cls_head.weight", "backbone.conv1.weight"),
        "backbone.stage2.0.branches.0.0.conv1.weight",
    ],
)
def test_one_odd_tensor_is_named_alone(name):
    family = "metro-body" if name.startswith("conv_learn") else "metro-hand"
    variant = VARIANTS[f"{family}-w64"]
    blank = blank_network(variant.config, variant.backbone)
    official = to_official(blank.state_dict(), family)
    right = tuple(official[name].shape)
    with pytest.raises(InputError) as caught:
        from_official(official | {name: torch.zeros(7, 7)})
    assert "1 of another shape" in str(caught.value)
    lines = str(caught.value).splitlines()
    assert lines[1:] == [f"  {name}: expected {right}, found (7, 7)"]


def test_one_odd_tensor_of_a_network_of_other_sizes_is_named_alone():
    official = to_official(small_state("metro-hand"), "metro-hand")
    for name in ("cam_param_fc2.weight", "trans_encoder.0.cls_head.weight"):
        with pytest.raises(InputError) as caught:
            from_official(official | {name: torch.zeros(7, 7)}, heads=2)
        lines = str(caught.value).splitlines()
        assert len(lines) == 2
        assert lines[1].startswith(f"  {name}: expected")
