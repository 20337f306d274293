"""Official checkpoints of POTTER: read, written back, and taken as weights to begin with."""

import json

import pytest
import torch

from kinemesh.errors import InputError
from kinemesh.models.checkpoints import FAMILIES, family_of, from_official, to_official
from kinemesh.models.conversion import convert_checkpoint, export_official, note_on_sizes
from kinemesh.models.counting import count_macs
from kinemesh.models.hand_pose_networks import HandPoseNetwork
from kinemesh.models.pooling_attention import PoolAttn
from kinemesh.models.potter_checkpoints import (
    load_initial_potter,
    potter_family_of,
    potter_from_official,
    take_weights,
)
from kinemesh.models.potter_classifier import PotterClassifier, PotterClassifierConfig
from kinemesh.models.potter_counting import potter_gmac
from kinemesh.models.potter_hand import PotterHand, PotterHandConfig
from kinemesh.models.potter_mesh import PotterMesh, PotterMeshConfig
from kinemesh.models.potter_trunk import PotterTrunk
from kinemesh.models.potter_variants import (
    POTTER_VARIANTS,
    build_potter_network,
    build_potter_variant,
    describe_potter_variant,
    get_potter_variant,
)
from kinemesh.models.registry import load_hand_pose_model, load_model, read_weights, save_model
from tests.parity import potter_weights
from tests.parity.potter_networks import written_out
from tests.tiny_potter import TINY, tiny_hand

MESH_SIZES = {**TINY, "joints": 5, "side": 32, "head_width": 16, "hidden": 8, "twists": 4}


PRODUCTS = [(32, 256)] * 4 + [(64, 64), (32, 16), (64, 4)]
"""Channels and cells of each block of the tiny network; embed-wise products are element-wise."""


def tiny_networks():
    torch.manual_seed(5)
    return {
        "potter-hand": tiny_hand(stream_layers=(1, 2, 1), stream_mlp_ratios=(1, 2, 2.5)),
        "potter-mesh": PotterMesh(PotterMeshConfig(**MESH_SIZES, shapes=3)),
        "potter-classifier": PotterClassifier(
            PotterClassifierConfig(layers=(1, 2, 1, 1), widths=(32, 64, 32, 64), classes=7)
        ),
    }


@pytest.mark.parametrize("family", ["potter-hand", "potter-mesh", "potter-classifier"])
def test_sizes_are_read_from_the_shapes_and_the_way_back_is_the_same(family):
    network = tiny_networks()[family]
    official = dict(network.state_dict())
    extra = {"smpl.v_template": torch.zeros(4, 3)} if family == "potter-mesh" else {}
    assert family_of(official | extra) == family
    found = from_official(official | extra)
    assert found.dropped == tuple(extra)
    assert list(found.state) == list(official)
    assert vars(found.config) | {"dropout": 0, "drop_path": 0} == vars(network.config) | {
        "dropout": 0,
        "drop_path": 0,
    }
    back = to_official(found.state, family)
    assert all(back[name] is official[name] for name in official)
    for other in FAMILIES.keys() - {family}:
        with pytest.raises(InputError, match=f"--family {family}"):
            from_official(official, other)


def test_damaged_files_are_named():
    state = dict(tiny_networks()["potter-hand"].state_dict())
    name = "poolattnformer_pose.stage1.Block2.0.mlp.fc2.weight"
    with pytest.raises(InputError, match=r"1 missing: .*Block2\.0\.mlp\.fc2\.weight"):
        from_official({key: value for key, value in state.items() if key != name})
    with pytest.raises(InputError, match=r"fc2\.weight: expected"):
        from_official(state | {name: torch.zeros(3, 3)})
    with pytest.raises(InputError, match="1 unknown: surplus"):
        from_official(state | {"surplus": torch.zeros(1)})
    trunk = {n: v for n, v in state.items() if n.startswith("poolattnformer_pose.")}
    trunk = {name.removeprefix("poolattnformer_pose."): value for name, value in trunk.items()}
    with pytest.raises(InputError, match="POTTER's trunk"):
        from_official(trunk)
    assert potter_family_of({"a": torch.zeros(1)}) is None


def test_a_training_checkpoint_becomes_a_weight_file_and_back(tmp_path):
    network = tiny_networks()["potter-hand"]
    source = tmp_path / "best.pth.tar"
    wrapped = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": wrapped, "val_loss": 0.5}, source)
    done = convert_checkpoint(source)
    assert done.variant is None
    loaded, record = load_hand_pose_model(done.path)
    assert isinstance(loaded, HandPoseNetwork)
    assert record["family"] == "potter-hand"
    assert record["sides"] == "both"
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(image), network.eval()(image))
        joints_m = loaded({"image": image})
    assert joints_m.shape == (2, 21, 3)
    assert torch.equal(joints_m[:, 0], torch.zeros(2, 3))
    with pytest.raises(InputError, match="load_hand_pose_model"):
        load_model(done.path)
    assert "not the sizes of a published network" in note_on_sizes(done.path)
    path, family, count = export_official(done.path, out=tmp_path / "back.bin")
    assert (family, count) == ("potter-hand", len(network.state_dict()))
    again = torch.load(path, weights_only=True)
    assert list(again) == list(network.state_dict())
    assert all(torch.equal(again[name], value) for name, value in network.state_dict().items())


def test_the_mesh_network_and_the_classifier_become_weight_files(tmp_path):
    networks = tiny_networks()
    for family in ("potter-mesh", "potter-classifier"):
        source = tmp_path / f"{family}.pth"
        torch.save(networks[family].state_dict(), source)
        done = convert_checkpoint(source)
        tensors, record = read_weights(done.path)
        assert record["architecture"] == family
        again = build_potter_network(record)
        again.load_state_dict({n.removeprefix("model."): v for n, v in tensors.items()})
        image = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            ours, theirs = again.eval()(image), networks[family].eval()(image)
        for left, right in zip(ours, theirs, strict=True):
            assert torch.equal(left, right)
        assert export_official(done.path)[1] == family
        with pytest.raises(InputError, match="leave --assets out"):
            convert_checkpoint(source, out=tmp_path / "other.safetensors", assets=tmp_path)
    with pytest.raises(InputError, match="SMPL and J_regressor_h36m_correct"):
        load_model(tmp_path / "potter-mesh.safetensors")
    with pytest.raises(InputError, match="a backbone alone"):
        load_model(tmp_path / "potter-classifier.safetensors")


# Weights to begin with -------------------------------------------------------------------------


def test_the_rule_takes_equal_names_and_shapes_and_says_so():
    target = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    before = target[1].bias.clone()
    state = {
        "module.backbone.0.weight": torch.ones(3, 2),
        "backbone.module.0.bias": torch.ones(3),
        "1.weight": torch.ones(9, 9),
    }
    taken = take_weights(target, state)
    assert taken.matched == ("0.weight",)
    assert taken.discarded == ("backbone.module.0.bias", "1.weight")
    assert taken.fresh == ("0.bias", "1.weight", "1.bias")
    assert torch.equal(target[0].weight, torch.ones(3, 2))
    assert torch.equal(target[1].bias, before)
    assert str(taken).startswith("1 of 4 tensors; new: 0.bias")


def test_the_published_lists_of_matched_names(shared):
    (comparison,) = potter_weights.compare(shared / "parity" / "potter" / "golden")
    comparison.assert_passed()
    assert comparison.count == 10


def test_classifier_trunk_and_hand_fill_a_hand_network(tmp_path):
    classifier = PotterClassifier(
        PotterClassifierConfig(
            layers=TINY["layers"], widths=TINY["widths"], mlp_ratios=TINY["mlp_ratios"], classes=3
        )
    )
    donor = tiny_hand()
    trunk = donor.poolattnformer_pose
    files = {
        "classifier": (
            {"state_dict": classifier.state_dict()},
            "poolattnformer_pose.poolattn_cls.",
        ),
        "trunk": (trunk.state_dict(), "poolattnformer_pose."),
        "hand": (donor.state_dict(), ""),
    }
    for name, (content, prefix) in files.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        network = tiny_hand()
        taken = load_initial_potter(network, path)
        source = content.get("state_dict", content)
        filled = [f"{prefix}{key}" for key in source if f"{prefix}{key}" in network.state_dict()]
        assert sorted(taken.matched) == sorted(filled)
        assert set(taken.matched) | set(taken.fresh) == set(network.state_dict())
        for key in taken.matched:
            assert torch.equal(network.state_dict()[key], source[key.removeprefix(prefix)])
    assert len(taken.fresh) == 0


def test_a_weight_file_of_another_side_leaves_its_head_new(tmp_path):
    donor = tiny_hand()
    save_model(tmp_path / "w.safetensors", donor, None, describe_potter_variant("potter-hand"))
    network = PotterHand(PotterHandConfig(**TINY | {"side": 96}))
    taken = load_initial_potter(network, tmp_path / "w.safetensors")
    assert "pose_3d_head.0.weight" in taken.fresh
    assert "pose_layer.0.weight" in taken.matched


def test_useless_files_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(InputError, match=r"other\.pth: expected weights of POTTER"):
        load_initial_potter(tiny_hand(), path)
    torch.save({n: torch.zeros(1, 1, 1) for n in tiny_hand().state_dict()}, path)
    with pytest.raises(InputError, match="no tensor"):
        load_initial_potter(tiny_hand(), path)
    torch.save(tiny_hand().state_dict(), path)
    with pytest.raises(InputError, match="PotterClassifier can begin with"):
        load_initial_potter(PotterClassifier(PotterClassifierConfig()), path)


# Variants --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POTTER_VARIANTS)
def test_parameters_are_the_published_ones(name):
    variant = get_potter_variant(name)
    record = json.loads(json.dumps(describe_potter_variant(name)))
    assert record["variant"] == name
    network = build_potter_network(record, blank=True)
    assert sum(p.numel() for p in network.parameters()) == variant.parameters
    assert variant.card()["parameters"] == variant.parameters
    found = potter_from_official(network.state_dict(), variant.architecture)
    assert vars(found.config) | {"drop": 0} == vars(variant.config) | {"drop": 0}


def test_multiply_adds_are_the_published_ones(shared):
    official = json.loads((shared / "parity/potter/manifest.json").read_text())["_flops"]
    for name, case in (
        ("potter-hand", "hand_pose_224"),
        ("potter-cls-s12", "cls_s12_224"),
        ("potter-cls-s24", "cls_s24_224"),
    ):
        variant = get_potter_variant(name)
        assert potter_gmac(variant.config) == pytest.approx(official[case]["gmacs"], rel=1e-12)
        assert variant.gmac == round(official[case]["gmacs"], 3)
    without_body = sum(
        value
        for part, value in official["hmr_256"]["gmacs_by"].items()
        if part.count(".") == 1 and part.startswith("PoolAttnHRCam.")
    )
    assert potter_gmac(PotterMeshConfig()) == pytest.approx(without_body, rel=1e-9)
    assert official["hmr_256"]["gmacs"] - without_body == pytest.approx(0.008, abs=1e-3)


def test_what_runs_is_less_than_the_official_arithmetic_by_what_is_saved():
    network = tiny_hand().eval()
    written = written_out(tiny_hand()).eval()
    image = torch.zeros(1, 3, 64, 64)
    config = network.config
    blocks = [m for m in network.modules() if isinstance(m, PoolAttn)]
    assert len(blocks) == 7
    products = sum(4 * width * cells for width, cells in PRODUCTS)
    assert count_macs(written, image) + products == pytest.approx(1e9 * potter_gmac(config))
    assert count_macs(network, image) < count_macs(written, image)


def test_smaller_variants_and_unknown_names():
    sizes = TINY | {"side": 32, "depth": 4}
    network = build_potter_variant("potter-hand", **sizes)
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 21, 3)
    assert describe_potter_variant("potter-hand", **sizes)["variant"] is None
    with pytest.raises(InputError, match="there is no field 'width'"):
        build_potter_variant("potter-hand", width=3)
    with pytest.raises(InputError, match="There is no variant 'potter'"):
        get_potter_variant("potter")
    assert isinstance(PotterTrunk(PotterHandConfig(**TINY)), torch.nn.Module)
