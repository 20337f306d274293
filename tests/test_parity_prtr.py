"""PRTR against the outputs of the official code under weights drawn from names."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests import parity_report
from tests.parity.cases import PARITY
from tests.parity.networks import Case
from tests.parity.prtr_networks import (
    MODULES,
    PrtrNetworks,
    build_network,
    manifest_shapes,
    official_shapes,
    read_manifest,
)
from tests.parity.prtr_weights import post_scaled

FOLDER = PARITY / "prtr"


def cases(*, whole_networks: bool = False) -> list[Any]:
    """The cases in the order in which most draws are shared; people by the hundred are slow."""
    if not FOLDER.is_dir():
        reason = "needs the folder '../shared' with the reference data"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    found = read_manifest(FOLDER / "manifest.json", FOLDER / "golden")
    return [
        pytest.param(
            case,
            id=case.name,
            marks=[pytest.mark.slow] if _is_slow(case) and not whole_networks else [],
        )
        for case in PrtrNetworks().order(found)
        if not (whole_networks and case.name == MODULES)
    ]


def _is_slow(case: Case) -> bool:
    return case.config["model"] == "prtr_sequential"


@pytest.fixture(scope="module")
def networks() -> PrtrNetworks:
    return PrtrNetworks()


@pytest.mark.parametrize("case", cases())
def test_network_equals_the_official_one(networks, case):
    networks.compare(case).assert_passed()


def test_people_of_a_padded_batch_equal_the_official_ones(networks, shared):
    """The slow case with keypoints of the recorded persons only, a tenth of the work."""
    folder = shared / "parity" / "prtr"
    found = read_manifest(folder / "manifest.json", folder / "golden")
    case = next(case for case in found if case.name == "seq_res50_padded")
    networks.compare(case, recorded_persons_only=True).assert_passed()


@pytest.mark.parametrize("case", cases(whole_networks=True))
def test_names_and_shapes_are_the_official_ones(case):
    assert official_shapes(build_network(case.config)) == manifest_shapes(case)


# The command on manifests that nobody delivered ----------------------------------------------

SCALES = [
    {"suffix": "query_embed.weight", "factor": 8.0},
    {"suffix": "in_proj_weight", "rows": "first 2/3 (query and key)", "factor": 2.0},
    {"name": "input_proj.weight", "factor": 0.5},
]
COMMON = {"backbone": "resnet50", "nheads": 4, "enc_layers": 1, "dec_layers": 3, "dropout": 0.0}
COMMON |= {"dim_feedforward": 24, "pre_norm": True}
TWO_STAGE = COMMON | {
    "model": "pose_transformer",
    "num_joints": 3,
    "num_queries": 7,
    "hidden_dim": 32,
    "aux_loss": True,
    "pos_embed_method": "learned",
}
SEQUENTIAL = COMMON | {
    "model": "prtr_sequential",
    "level": [0, 2],
    "x_res": 3,
    "y_res": 4,
    "num_kpts": 5,
    "person_queries": 6,
    "kpt_queries": 7,
    "det_d_model": 32,
    "kpt_d_model": 16,
}
CONSTANTS = {"x_interpolate", "y_interpolate", "mask", "pe"}
INVENTED = [
    (TWO_STAGE, {"images": [3, 3, 64, 96]}),
    (SEQUENTIAL, {"images.0": [3, 64, 96], "images.1": [3, 96, 32], "images.2": [3, 32, 32]}),
]


def report(folder, capsys) -> tuple[int, str]:
    manifest = str(folder / "manifest.json")
    status = parity_report.main(["--system", "prtr", "--manifest", manifest])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(("config", "inputs"), INVENTED, ids=["two-stage", "sequential"])
def test_another_manifest_runs_and_a_wrong_number_fails(config, inputs, tmp_path, capsys):
    """The golden file is our own: this is about reading the manifest, not about values."""
    shapes = official_shapes(build_network(config))
    constants = {n: shapes.pop(n) for n in tuple(shapes) if n in CONSTANTS}
    entry = {"config": config, "inputs": inputs, "salt": "other", "state_dict": shapes}
    entry |= {"post_scale": SCALES, "constant_buffers": constants}
    (tmp_path / "manifest.json").write_text(json.dumps({"invented": entry}))
    path = tmp_path / "golden" / "invented.npz"
    path.parent.mkdir()
    (case,) = read_manifest(tmp_path / "manifest.json", path.parent)
    shown = {"person_index": np.array([0, 4])}
    golden = {key: np.asarray(v) for key, v in PrtrNetworks().values(case, shown).items()}
    np.savez(path, **golden)
    status, printed = report(tmp_path, capsys)
    assert status == 0, printed
    assert "pass  invented" in printed

    wrong = {key: golden[key].copy() for key in ("pred_logits", "tap/input_proj/head")}
    wrong["pred_logits"].flat[-1] += 3e-4
    wrong["tap/input_proj/head"].flat[-1] += 1e-2
    np.savez(path, **golden | wrong, **{"tap/unheard.of/shape": np.zeros(3)})
    status, printed = report(tmp_path, capsys)
    assert status == 1
    for key in wrong:
        assert f"{key}: differs by" in printed
    assert "tap/unheard.of/shape: a golden array without a value of ours" in printed


def test_a_changed_weight_rule_changes_the_tensors():
    value = torch.arange(12.0).reshape(6, 2)
    assert torch.equal(post_scaled("a.query_embed.weight", value, SCALES), 8 * value)
    packed = post_scaled("a.self_attn.in_proj_weight", value, SCALES)
    assert torch.equal(packed, torch.cat([2 * value[:4], value[4:]]))
    assert torch.equal(post_scaled("a.input_proj.weight", value, SCALES), value)
    with pytest.raises(ValueError, match="cannot understand"):
        post_scaled("a", value, [{"suffix": "a", "factor": 2.0, "rows": "the last"}])


def test_unknown_networks_are_refused():
    with pytest.raises(ValueError, match="there is no 'other'"):
        build_network(TWO_STAGE | {"model": "other"})
    with pytest.raises(ValueError, match="dilation"):
        build_network(TWO_STAGE | {"dilation": True})
