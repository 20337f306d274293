"""PRTR's registered networks: published sizes, names, records, weight files."""

import json
from pathlib import Path

import pytest
import torch

from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.models.prtr_variants import (
    KEYPOINT_VARIANTS,
    build_keypoint_network,
    build_keypoint_variant,
    describe_keypoint_variant,
    get_keypoint_variant,
)
from kinemesh.models.registry import (
    load_keypoint_model,
    load_model,
    parameter_count,
    save_model,
    task_of,
)
from kinemesh.skeletons import get_skeleton
from kinemesh.training.prtr_published import PRTR_RUNS
from tests.tiny_prtr import TINY_OVERRIDES, tiny_network, tiny_record

KINDS = tuple(TINY_OVERRIDES)
CASES = {
    "ts_res50_coco_384x288": "prtr-coco-res50-384x288",
    "ts_hrnet32_coco_384x288": "prtr-coco-w32-384x288",
    "ts_deform_res50_coco_384x288": "prtr-coco-deform-res50-384x288",
    "ts_res50_mpii_256x256": "prtr-mpii-res50-256x256",
    "seq_res50": "prtr-sequential",
}


@pytest.mark.parametrize("name", KEYPOINT_VARIANTS)
def test_parameters_are_those_of_the_network(name):
    variant = KEYPOINT_VARIANTS[name]
    network = build_keypoint_network(describe_keypoint_variant(name), blank=True)
    assert parameter_count(network) == variant.parameters
    assert {value.device.type for value in network.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("case", CASES)
def test_names_shapes_and_counts_are_the_official_ones(case, shared):
    entry = json.loads((shared / "parity" / "prtr" / "manifest.json").read_text())[case]
    variant = KEYPOINT_VARIANTS[CASES[case]]
    network = build_keypoint_network(describe_keypoint_variant(variant), blank=True)
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert shapes == entry["state_dict"] | entry.get("constant_buffers", {})
    assert variant.parameters == entry["num_parameters"]


@pytest.mark.parametrize("name", PRTR_RUNS)
def test_the_18_published_runs_have_their_networks(name):
    variant = KEYPOINT_VARIANTS[name]
    data, backbone, size = name.removeprefix("prtr-").replace("deform-", "").split("-")
    assert variant.size == tuple(map(int, reversed(size.split("x"))))
    assert variant.order == ("rgb" if backbone == "w32" else "bgr")
    assert variant.joints is get_skeleton("coco17" if data == "coco" else "mpii16")
    assert variant.config.joints == len(variant.joints)
    depth = {"name": "resnet", "depth": int(backbone[3:])} if backbone != "w32" else None
    assert variant.backbone == (depth or {"name": "hrnet", "width": 32})
    assert variant.architecture == ("prtr-deformable" if "deform" in name else "prtr")


def test_every_other_variant_is_the_sequential_one():
    assert set(KEYPOINT_VARIANTS) - set(PRTR_RUNS) == {"prtr-sequential"}
    assert len(PRTR_RUNS) == 18


def test_published_scores_are_in_the_cards():
    card = KEYPOINT_VARIANTS["prtr-coco-res50-384x288"].card()
    assert "AP 68.2" in card["published"].splitlines()[0]
    assert "AP 67.4" in card["published"].splitlines()[1]
    assert "384 x 288 pixels (height x width), channels in the order BGR" in card["size"]
    mpii = KEYPOINT_VARIANTS["prtr-mpii-w32-384x384"].card()
    assert "Mean 89.526, PCKh@0.11 35.41 " in mpii["published"]
    assert "RGB" in mpii["size"]
    assert "gmac" not in mpii
    assert KEYPOINT_VARIANTS["prtr-sequential"].card()["published"].startswith("none")


def test_the_models_verb_lists_them(capsys):
    assert main(["models"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in KEYPOINT_VARIANTS)


def test_the_table_in_the_documentation_is_this_one():
    text = (Path(__file__).parents[1] / "docs" / "prtr.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `prtr-")]
    assert rows == [table_row(variant) for variant in KEYPOINT_VARIANTS.values()]


def table_row(variant) -> str:
    score = variant.published[0].split(": ")[1] if variant.published else "none"
    names = dict(part.rsplit(" ", 1) for part in score.split(" (pub")[0].split(", ") if " " in part)
    shown = f"AP {names['AP']}" if "AP" in names else f"Mean {names['Mean']}" if names else "-"
    height_width = (
        "whole image" if variant.finds_people else f"{variant.size[1]} x {variant.size[0]}"
    )
    return (
        f"| `{variant.name}` | {height_width} | {variant.order.upper()} | "
        f"{variant.parameters:,} | {variant.gmac or '-'} | {shown} |"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("half", [False, True])
def test_weight_files_give_the_same_network(kind, half, tmp_path):
    network, record = tiny_network(kind)
    path = tmp_path / "weights.safetensors"
    save_model(path, network, None, record, half=half)
    found, metadata = load_keypoint_model(path)
    assert not found.training
    assert task_of(path) == "pose2d"
    assert {key: metadata[key] for key in record} == json.loads(json.dumps(record))
    expected = network.state_dict()
    for name, value in found.state_dict().items():
        stored = expected[name].half().float() if half and value.ndim > 1 else expected[name]
        if value.is_floating_point():
            assert torch.equal(value, stored), name
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        if not half:
            assert torch.equal(found(image).logits, network(image).logits)


def test_heads_of_the_deformable_network_stay_one_module(tmp_path):
    network, record = tiny_network("prtr-deformable")
    save_model(tmp_path / "weights.safetensors", network, None, record, half=False)
    found, _ = load_keypoint_model(tmp_path / "weights.safetensors")
    assert found.class_embed[0] is found.class_embed[1]
    assert parameter_count(found) == parameter_count(network)


@pytest.mark.parametrize("kind", ["prtr", "prtr-hrnet", "prtr-deformable"])
def test_small_two_stage_networks_learn_from_all_their_outputs(kind):
    network, _ = tiny_network(kind)
    output = network.train()(torch.randn(2, 3, 96, 64))
    assert isinstance(output, KeypointSetOutput)
    assert output.logits.shape == (2, 20, 18)
    assert output.coords.shape == (2, 20, 2)
    assert len(output.auxiliary) == 1
    layers = [output, *output.auxiliary]
    sum((o.logits.square().mean() + o.coords.square().mean()) for o in layers).backward()
    learning = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
    assert [n for n, p in learning if p.grad is None] == []
    assert all(p.grad.isfinite().all() for _, p in learning)


def test_other_joint_sets_and_sizes():
    record = describe_keypoint_variant("prtr-coco-res50-384x288", skeleton="mpii16", size=(64, 64))
    assert record["config"]["joints"] == 16
    assert record["resolution"] == [64, 64]
    assert record["variant"] is None
    assert describe_keypoint_variant("prtr-sequential")["variant"] == "prtr-sequential"
    network = build_keypoint_variant("prtr-coco-res50-384x288", **TINY_OVERRIDES["prtr"])
    assert network.training


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(InputError, match="prtr-mpii-w32-384x384"):
        get_keypoint_variant("prtr")
    with pytest.raises(InputError, match="no field 'depth'"):
        tiny_record("prtr", depth=3)
    with pytest.raises(InputError, match=r"joints \(coco17, "):
        tiny_record("prtr", joints=17, skeleton="mpii16")
    with pytest.raises(InputError, match="multiples"):
        tiny_record("prtr", size=(60, 96))
    with pytest.raises(InputError, match="'bgr' or 'rgb'"):
        tiny_record("prtr", order="gbr")
    with pytest.raises(InputError, match="prtr-deformable runs on resnet"):
        build_keypoint_network(tiny_record("prtr-deformable", backbone={"name": "hrnet"}))
    with pytest.raises(InputError, match="unexpected keyword argument 'deep'"):
        build_keypoint_network(tiny_record("prtr", backbone={"name": "resnet", "deep": 3}))
    network, record = tiny_network("prtr")
    path = tmp_path / "weights.safetensors"
    save_model(path, network, None, record)
    with pytest.raises(InputError, match="a network of 2D keypoints"):
        load_model(path)
    with pytest.raises(InputError, match="expected a network of 2D keypoints"):
        load_keypoint_model("body")
    save_model(path, network, None, record | {"config": {"joints": 17}})
    with pytest.raises(InputError, match="another version"):
        load_keypoint_model(path)
