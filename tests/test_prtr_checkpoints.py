"""PRTR's checkpoints: manifests, training files, there and back, weights to begin with."""

import json

import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.models.checkpoint_files import read_tensors
from kinemesh.models.checkpoints import FAMILIES, family_of, from_official, to_official
from kinemesh.models.conversion import convert_checkpoint, export_official
from kinemesh.models.hrnet import HRNet
from kinemesh.models.prtr import body_of
from kinemesh.models.prtr_checkpoints import load_initial_keypoints
from kinemesh.models.prtr_variants import (
    KEYPOINT_VARIANTS,
    build_keypoint_network,
    keypoint_config_from,
)
from kinemesh.models.registry import load_keypoint_model, save_model
from kinemesh.models.resnet import ResNet
from tests.tiny_prtr import (
    TINY_HRNET,
    TINY_RESNET,
    seeded_state,
    tiny_network,
    tiny_record,
)

CASES = {
    "ts_res50_coco_384x288": ("prtr", "prtr-coco-res50-384x288"),
    "ts_hrnet32_coco_384x288": ("prtr", "prtr-coco-w32-384x288"),
    "ts_res50_mpii_256x256": ("prtr", "prtr-mpii-res50-256x256"),
    "ts_deform_res50_coco_384x288": ("prtr-deformable", "prtr-coco-deform-res50-384x288"),
    "seq_res50": ("prtr-sequential", "prtr-sequential"),
}
KINDS = ("prtr", "prtr-hrnet", "prtr-deformable", "prtr-sequential")
CONSTANTS = {"x_interpolate", "y_interpolate", "mask", "pe"}


def family_of_kind(kind: str) -> str:
    return "prtr" if kind == "prtr-hrnet" else kind


def official_state(kind: str):
    """A small network with official tensors: the same names, values of its own."""
    network, record = tiny_network(kind)
    network.load_state_dict(
        {n: v for n, v in seeded_state(network).items() if n not in CONSTANTS}, strict=False
    )
    return network, record, {n: v.clone() for n, v in network.state_dict().items()}


def as_training_file(state, path, **files):
    """A training checkpoint as the official code writes it: better weights beside the last."""
    torch.save(
        {
            "epoch": 199,
            "model": "pose_transformer",
            "state_dict": {f"module.{n}": torch.zeros_like(v) for n, v in state.items()},
            "best_state_dict": {f"module.{n}": v for n, v in state.items()},
            "perf": np.float64(0.682),
            "optimizer": {"state": {0: {"step": 3}}, "param_groups": [{"lr": 1e-4}]},
        },
        path,
        **files,
    )


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("case", CASES)
def test_manifests_are_taken_whole(case, shared):
    entry = json.loads((shared / "parity" / "prtr" / "manifest.json").read_text())[case]
    family, name = CASES[case]
    blank = {n: torch.empty(shape, device="meta") for n, shape in entry["state_dict"].items()}
    assert family_of(blank) == family
    found = from_official(blank, family)
    assert found.dropped == ()
    assert set(found.added) == (CONSTANTS if family == "prtr-sequential" else set())
    assert found.backbone == KEYPOINT_VARIANTS[name].backbone
    # the goldens' dropout is not told by any tensor
    assert found.config == KEYPOINT_VARIANTS[name].config


@pytest.mark.parametrize("kind", KINDS)
def test_round_trips_are_exact_and_sizes_are_read_from_shapes(kind):
    _, record, state = official_state(kind)
    family = family_of_kind(kind)
    found = from_official(state, heads=2)
    assert found.family == family
    config = keypoint_config_from(record)
    if kind == "prtr-sequential":  # no tensor tells the dropout
        assert found.config.dropout == 0.1
        config = type(config)(**(vars(config) | {"dropout": 0.1}))
    assert found.config == config
    assert found.backbone == record["backbone"]
    assert_same(found.state, state)
    assert_same(to_official(found.state, family), state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("old", [False, True])
def test_training_checkpoints_convert_and_come_back(kind, old, tmp_path):
    network, record, state = official_state(kind)
    as_training_file(state, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=not old)
    done = convert_checkpoint(tmp_path / "checkpoint.pth", heads=2, size=(64, 96))
    found, metadata = load_keypoint_model(done.path)
    assert metadata["family"] == family_of_kind(kind)
    assert metadata["resolution"] == [64, 96]
    assert metadata["skeleton"] == "coco17"
    assert metadata["color_order"] == record["color_order"]
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        for ours, theirs in zip(found(image), network(image), strict=True):
            if isinstance(ours, torch.Tensor):
                assert torch.equal(ours, theirs)
    path, family, count = export_official(done.path)
    assert (family, count) == (family_of_kind(kind), len(state))
    assert_same(read_tensors(path), state)


def test_older_names_and_counters():
    _, _, state = official_state("prtr")
    old = {name.replace("backbone.0.body.", "backbone.body."): v for name, v in state.items()}
    old["backbone.body.bn1.num_batches_tracked"] = torch.tensor(5)
    old["backbone.body.fc.weight"] = torch.ones(3, 3)
    found = from_official(old, "prtr", heads=2)
    assert_same(found.state, state)
    assert set(found.dropped) == {
        "backbone.body.bn1.num_batches_tracked",
        "backbone.body.fc.weight",
    }
    _, _, trained = official_state("prtr-hrnet")
    lacking = {n: v for n, v in trained.items() if not n.endswith("num_batches_tracked")}
    found = from_official(lacking, "prtr", heads=2)
    assert set(found.added) == trained.keys() - lacking.keys()
    assert all(int(found.state[name]) == 0 for name in found.added)


def test_the_last_of_the_tied_heads_counts():
    network, _, state = official_state("prtr-deformable")
    spoilt = {
        name: value * 0 + 3 if name.startswith(("class_embed.0", "kpt_embed.0")) else value
        for name, value in state.items()
    }
    assert not torch.equal(spoilt["class_embed.0.weight"], state["class_embed.0.weight"])
    assert_same(from_official(spoilt, heads=2).state, state)
    loaded = build_keypoint_network(tiny_record("prtr-deformable"))
    loaded.load_state_dict(spoilt)
    assert torch.equal(loaded.class_embed[0].weight, network.class_embed[0].weight)


def test_constants_are_computed_whatever_the_file_says():
    _, _, state = official_state("prtr-sequential")
    spoilt = state | {"pe": state["pe"] + 1}
    del spoilt["mask"]
    found = from_official(spoilt, heads=2)
    assert_same(found.state, state)
    assert found.added == ("mask",)


def test_misfits_are_named():
    _, _, state = official_state("prtr")
    lacking = {n: v for n, v in state.items() if n != "kpt_embed.layers.1.bias"}
    with pytest.raises(InputError, match=r"1 missing: kpt_embed\.layers\.1\.bias"):
        from_official(lacking, heads=2)
    with pytest.raises(InputError, match=r"1 unknown: mystery"):
        from_official(state | {"mystery": torch.ones(1)}, heads=2)
    wrong = state | {"query_embed.weight": torch.ones(20, 15)}
    with pytest.raises(InputError, match=r"query_embed.weight: expected \(20, 16\), found"):
        from_official(wrong, heads=2)
    with pytest.raises(InputError, match="Use --family prtr"):
        from_official(state, "prtr-deformable")


def test_every_family_says_its_task():
    assert {f.task for n, f in FAMILIES.items() if n.startswith("prtr")} == {"pose2d"}


def test_the_verb_converts_both_ways(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, state = official_state("prtr")
    as_training_file(state, tmp_path / "best.pth")
    assert main(["convert", "best.pth", "--heads", "2", "--size", "96x64"]) == 0
    shown = capsys.readouterr().out
    assert "input: 96 x 64 pixels" in shown
    assert "channels BGR" in shown
    assert "kinemesh predict photo.jpg --task pose2d --model best.safetensors\n" in shown
    assert main(["convert", "best.safetensors", "--official"]) == 0
    assert_same(read_tensors("best_state_dict.bin"), state)
    assert main(["convert", "best.pth", "--size", "big", "--overwrite"]) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
    assert main(["convert", "best.pth", "--assets", ".", "--overwrite"]) == 2
    assert "no mesh" in capsys.readouterr().err


# Weights to begin with -------------------------------------------------------------------------


def imagenet_file(spec, path):
    """An ImageNet checkpoint as published, with its classifier; returns the backbone's tensors."""
    arguments = {k: v for k, v in spec.items() if k != "name"}
    backbone = HRNet(**arguments) if spec["name"] == "hrnet" else ResNet(**arguments)
    state = seeded_state(backbone)
    last = "classifier" if spec["name"] == "hrnet" else "fc"
    torch.save(state | {f"{last}.weight": torch.ones(1000, 3), f"{last}.bias": torch.ones(1)}, path)
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_imagenet_fills_the_backbone_alone(kind, tmp_path):
    network, record = tiny_network(kind)
    state = imagenet_file(record["backbone"], tmp_path / "imagenet.pth")
    before = {n: v.clone() for n, v in network.state_dict().items()}
    done = load_initial_keypoints(network, tmp_path / "imagenet.pth")
    assert done.kind == "imagenet"
    body = body_of(network.backbone).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in body.items())
    assert {n.removeprefix("backbone.0.body.") for n in done.taken} == body.keys()
    assert all(torch.equal(network.state_dict()[n], before[n]) for n in done.fresh)
    assert "tensors from imagenet.pth (imagenet)" in str(done)


def detr_file(path):
    """DETR's layout: the sequential network's detector with 92 classes, below ``model``."""
    _, _, state = official_state("prtr-sequential")
    own = ("backbone.", "transformer.", "bbox_embed.", "query_embed.", "input_proj.")
    detr = {n: v for n, v in state.items() if n.startswith(own)}
    classes = torch.arange(92.0)
    detr["class_embed.weight"] = classes[:, None].expand(92, 16).clone()
    detr["class_embed.bias"] = classes.clone()
    torch.save({"model": detr}, path)
    return detr


def test_detr_fills_the_detector(tmp_path):
    detr = detr_file(tmp_path / "detr-r50-e632da11.pth")
    network, _ = tiny_network("prtr-sequential")
    done = load_initial_keypoints(network, tmp_path / "detr-r50-e632da11.pth")
    assert done.kind == "detr"
    state = network.state_dict()
    same = [name for name in detr if not name.startswith("class_embed")]
    assert all(torch.equal(state[name], detr[name]) for name in same)
    assert state["class_embed.bias"].tolist() == [1.0, 91.0]  # person, no object
    assert set(done.taken) == detr.keys()
    parts = {name.split(".")[0] for name in done.fresh}
    assert parts == {"transformer_kpt", "row_embed", "col_embed", *CONSTANTS}


def test_detr_fills_backbone_and_transformer_of_the_two_stage_network(tmp_path):
    detr_file(tmp_path / "detr.pth")
    network, _ = tiny_network("prtr", queries=6)
    done = load_initial_keypoints(network, tmp_path / "detr.pth")
    assert {n.split(".")[0] for n in done.fresh} == {"class_embed", "kpt_embed"}
    assert {n.split(".")[0] for n in done.taken} == {
        *("backbone", "transformer", "input_proj", "query_embed")
    }
    with pytest.raises(InputError, match=r"query_embed.weight': expected \(7, 16\), found \(6, 16"):
        load_initial_keypoints(tiny_network("prtr", queries=7)[0], tmp_path / "detr.pth")


def test_detr_is_no_model_of_ours(tmp_path):
    detr_file(tmp_path / "detr.pth")
    with pytest.raises(InputError, match="weights to begin with"):
        convert_checkpoint(tmp_path / "detr.pth")


def test_whole_networks_fill_everything(tmp_path):
    for kind in KINDS:
        _, record, state = official_state(kind)
        official, ours = tmp_path / f"{kind}.pth", tmp_path / f"{kind}.safetensors"
        as_training_file(state, official)
        network, _ = tiny_network(kind)
        for path in (official, ours):
            save_model(ours, network, None, record, half=False)
            fresh, _ = tiny_network(kind)
            done = load_initial_keypoints(fresh, path)
            assert done.fresh == ()
            if path == official:
                assert_same(fresh.state_dict(), state)
            else:
                assert_same(fresh.state_dict(), network.state_dict())


def test_files_of_other_networks_are_refused(tmp_path):
    network, record = tiny_network("prtr")
    save_model(tmp_path / "own.safetensors", network, None, record)
    with pytest.raises(InputError, match="for another network"):
        load_initial_keypoints(tiny_network("prtr-deformable")[0], tmp_path / "own.safetensors")
    imagenet_file(TINY_RESNET, tmp_path / "resnet.pth")
    with pytest.raises(InputError, match=r"resnet\.pth: expected"):
        load_initial_keypoints(tiny_network("prtr-hrnet")[0], tmp_path / "resnet.pth")
    imagenet_file(TINY_HRNET, tmp_path / "hrnet.pth")
    with pytest.raises(InputError, match=r"hrnet\.pth: expected"):
        load_initial_keypoints(network, tmp_path / "hrnet.pth")
