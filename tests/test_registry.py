"""Weight files: what is written is read back, and what is not ours is refused."""

import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import save_file

from kinemesh.bodies import load_topology
from kinemesh.errors import InputError
from kinemesh.files import sha256
from kinemesh.models import registry
from kinemesh.models.guided_graphormer import GuidedGraphormer
from kinemesh.models.variants import VARIANTS, build_network, describe_variant
from tests.test_guided_graphormer import TINY
from tests.test_variants import tiny


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    topology = load_topology("anny-hand")
    network = GuidedGraphormer(TINY, topology).eval()
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    metadata = {
        "architecture": "guided-graphormer",
        "config": asdict(TINY),
        "task": "hand",
        "resolution": 64,
    }
    registry.save_model(path, network, topology, metadata, card={"name": "tiny"})
    return path, network


def test_round_trip_changes_outputs_by_half_precision_only(saved):
    path, network = saved
    loaded, topology, record = registry.load_model(path)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        difference = (loaded(image).joints - network(image).joints).abs().max()
    assert difference < 2e-3  # metres; weights are stored in float16
    assert record["task"] == "hand"
    assert topology.name == "anny-hand"


def test_card_carries_the_checksum(saved):
    path, _ = saved
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == sha256(path)


def test_unknown_name_lists_what_there_is():
    with pytest.raises(InputError, match="body"):
        registry.load_model("no-such-model")


def test_a_file_of_another_kind_is_refused(tmp_path):
    text = tmp_path / "a.safetensors"
    text.write_text("not a tensor file")
    with pytest.raises(InputError, match="safetensors"):
        registry.load_model(text)
    foreign = tmp_path / "b.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(InputError, match="kinemesh record"):
        registry.load_model(foreign)


def test_missing_tensors_are_named(saved, tmp_path):
    path, _ = saved
    tensors, record = registry.read_weights(path)
    del tensors["model.heat_maps.weight"]
    broken = tmp_path / "broken.safetensors"
    save_file(tensors, broken, {"kinemesh": json.dumps(record)})
    with pytest.raises(InputError, match=r"heat_maps\.weight"):
        registry.load_model(broken)


def test_files_of_another_version_are_refused(saved, tmp_path):
    path, _ = saved
    tensors, record = registry.read_weights(path)
    other = tmp_path / "other.safetensors"
    reshaped = {**tensors, "model.joint_head.weight": torch.zeros(6, 32)}
    save_file(reshaped, other, {"kinemesh": json.dumps(record)})
    with pytest.raises(InputError, match=r"another version"):
        registry.load_model(other)
    config = {**record["config"], "new_option": 1}
    save_file(tensors, other, {"kinemesh": json.dumps({**record, "config": config})})
    with pytest.raises(InputError, match=r"new_option"):
        registry.load_model(other)


def test_a_damaged_card_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InputError, match=r"broken\.json"):
        registry.cards()
    with pytest.raises(InputError, match="missing"):
        registry.load_model("body")


def test_a_damaged_shipped_file_is_refused(saved, monkeypatch, tmp_path):
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    content = bytearray(saved[0].read_bytes())
    shipped = tmp_path / "tiny.safetensors"
    shipped.write_bytes(content)
    with pytest.raises(InputError, match=r"card tiny\.json is missing"):
        registry.load_model("tiny")
    shipped.with_suffix(".json").write_bytes(saved[0].with_suffix(".json").read_bytes())
    registry.load_model("tiny")
    content[len(content) // 2] ^= 1
    shipped.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        registry.load_model("tiny")


@pytest.mark.parametrize("name", ["body", "hand"])
def test_shipped_models_load_and_match_their_cards(name):
    network, _, record = registry.load_model(name)
    path = registry.weight_path(name)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["sha256"] == sha256(path)
    assert card["license"]
    assert not [v for v in card["recipe"].values() if str(v).startswith("/")]
    assert record["task"] == name
    assert path.stat().st_size < 16e6
    assert not network.training


@pytest.mark.parametrize("half", [True, False])
def test_precision_is_a_choice(half, tmp_path):
    torch.manual_seed(0)
    topology = load_topology("anny-hand")
    record = describe_variant("graphormer-hand-w40", topology, **tiny("graphormer-hand-w40"))
    network = build_network(record, topology)
    path = tmp_path / "tiny.safetensors"
    registry.save_model(path, network, topology, record, half=half)
    loaded, stored, found = registry.load_model(path)
    assert stored.name == "anny-hand"
    assert found["backbone"] == json.loads(json.dumps(record["backbone"]))
    for name, value in network.state_dict().items():
        rounded = half and value.is_floating_point() and value.ndim > 1
        expected = value.half().float() if rounded else value
        assert loaded.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded.state_dict()[name], expected), name


@pytest.mark.parametrize(
    "name", ["metro-body-w40", "graphormer-hand-w40", "graphormer-handpose-w40"]
)
def test_loaded_networks_are_whole_and_can_be_trained_on(name, tmp_path):
    torch.manual_seed(0)
    task = VARIANTS[name].task
    topology = load_topology(f"anny-{task}")
    record = describe_variant(name, topology, **tiny(name))
    network = build_network(record, topology).eval()
    path = tmp_path / "tiny.safetensors"
    registry.save_model(path, network, topology, record, half=False)
    loaded, _, _ = registry.load_model(path)
    path.unlink()  # what was loaded does not lie in the file
    image = torch.rand(1, 3, 224, 224)
    assert torch.equal(loaded(image).joints, network(image).joints)
    tensors = [*loaded.parameters(), *loaded.buffers()]
    assert {value.device.type for value in tensors} == {"cpu"}
    assert all(value.requires_grad for value in loaded.parameters())
    loaded.train()(image.repeat(2, 1, 1, 1)).joints.sum().backward()


def test_a_pose_network_needs_no_mesh(tmp_path):
    name = "graphormer-handpose-w40"
    record = describe_variant(name, **tiny(name))
    path = tmp_path / "pose.safetensors"
    registry.save_model(path, build_network(record, None), None, record)
    network, topology, found = registry.load_model(path)
    assert found["joints"] == list(topology.skeleton.joints)
    assert network(torch.zeros(1, 3, 224, 224)).joints.shape == (1, 21, 3)


def test_a_mesh_of_other_sizes_is_refused(tmp_path):
    record = describe_variant("graphormer-hand-w40", **tiny("graphormer-hand-w40"))
    network = build_network(record, load_topology("anny-hand"))
    path = tmp_path / "tiny.safetensors"
    registry.save_model(path, network, load_topology("anny-body"), record)
    with pytest.raises(InputError, match=r"made for 21 joints.*anny-body"):
        registry.load_model(path)


def test_unknown_architectures_are_named(saved, tmp_path):
    tensors, record = registry.read_weights(saved[0])
    other = tmp_path / "other.safetensors"
    save_file(tensors, other, {"kinemesh": json.dumps({**record, "architecture": "resnext"})})
    with pytest.raises(InputError, match=r"'resnext' is unknown here; .*metro"):
        registry.load_model(other)
