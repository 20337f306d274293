"""POTTER's networks against the outputs of the official code under weights drawn from names."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from tests import parity_report
from tests.parity.cases import PARITY
from tests.parity.networks import Case
from tests.parity.potter_networks import (
    UNITS,
    PotterNetworks,
    build_network,
    drawn_state,
    kind_of,
    read_manifest,
)

FOLDER = PARITY / "potter"
QUICK = {UNITS, "hand_pose_224"}
"""The hand network has all parts of the others but the heads, which tiny networks cover."""


def cases(*, whole_networks: bool = False) -> list[Any]:
    """The cases of the manifest."""
    if not FOLDER.is_dir():
        reason = "needs the folder '../shared' with the reference data"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason))]
    found = read_manifest(FOLDER / "manifest.json", FOLDER / "golden")
    return [
        pytest.param(
            case,
            id=case.name,
            marks=[] if whole_networks or case.name in QUICK else [pytest.mark.slow],
        )
        for case in found
        if not (whole_networks and case.name == UNITS)
    ]


@pytest.mark.parametrize("case", cases())
def test_network_equals_the_official_one(case):
    PotterNetworks().compare(case).assert_passed()


@pytest.mark.parametrize("case", cases(whole_networks=True))
def test_names_and_shapes_are_the_official_ones(case):
    body_model = {name for name in case.shapes if name.startswith("smpl.")}
    ours = {name: tuple(value.shape) for name, value in build_network(case).state_dict().items()}
    assert ours == {name: case.shapes[name] for name in case.shapes if name not in body_model}
    assert bool(body_model) == (kind_of(case.config) == "mesh")


# The command on manifests that nobody delivered ----------------------------------------------

EXTRA = {
    "HEATMAP_SIZE": [16, 16],
    "DEPTH_DIM": 16,
    "LAYERS": [1, 1, 2, 1],
    "EMBED_DIMS": [64, 32, 96, 64],
    "MLP_RATIOS": [1, 2, 1, 1],
    "DROP_RATE": 0.1,
    "DROP_PATH_RATE": 0.1,
    "SIGMA": 2,
}
HAND = {
    "NAME": "PoolAttnHRCam_Pose_3D",
    "IMAGE_SIZE": [64, 64],
    "NUM_JOINTS": 4,
    "EXTRA": EXTRA,
}
MESH = {
    "TYPE": "PoolAttnHRCam",
    "IMAGE_SIZE": [64, 64],
    "HEATMAP_SIZE": [16, 16],
    "NUM_JOINTS": 29,
    "FOCAL_LENGTH": 1000,
    "EXTRA": {key: value for key, value in EXTRA.items() if key != "HEATMAP_SIZE"},
    "POST": {"NORM_TYPE": "softmax"},
    "BBOX_3D_SHAPE": [2000, 2000, 2000],
}


def written(folder, config, batch) -> tuple[Case, dict[str, np.ndarray]]:
    """A manifest of one network with another salt, and a golden file that is our own."""
    shapes = {n: v.shape for n, v in build_network(_case(config, {}, folder)).state_dict().items()}
    entry: dict[str, Any] = {
        "config": config,
        "inputs": {"images": [batch, 3, 64, 64]},
        "outputs": {},
        "salt": "other",
        "state_dict": {name: list(shape) for name, shape in shapes.items()},
    }
    if "TYPE" in config:
        entry["state_dict"]["smpl.faces_tensor"] = [5, 3]
        entry |= {"not_seeded": ["init_cam", "smpl.*"], "rescaled": {"norm2.weight": 2.0}}
        entry["constants"] = {"init_cam": [0.9, 0, 0]}
    (folder / "manifest.json").write_text(json.dumps({"_rule": "", "invented": entry}))
    (folder / "golden").mkdir(exist_ok=True)
    (case,) = read_manifest(folder / "manifest.json", folder / "golden")
    wanted = {"tap/norm1/head": np.zeros(1), "tap/pose_layer.2:input/mean": np.zeros(1)}
    wanted["train_mode/pred_xyz_jts_29"] = np.zeros(1)
    golden = {k: np.asarray(v) for k, v in PotterNetworks().values(case, wanted).items()}
    return case, golden


def _case(config, shapes, folder) -> Case:
    return Case("invented", config, {}, shapes, (), folder)


def report(folder, capsys) -> tuple[int, str]:
    manifest = str(folder / "manifest.json")
    status = parity_report.main(["--system", "potter", "--manifest", manifest])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


@pytest.mark.parametrize(("config", "batch"), [(HAND, 3), (MESH, 1)], ids=["hand", "mesh"])
def test_another_manifest_runs_and_a_wrong_number_fails(config, batch, tmp_path, capsys):
    """The golden file is our own: this is about reading the manifest, not about values."""
    _, golden = written(tmp_path, config, batch)
    path = tmp_path / "golden" / "invented.npz"
    np.savez(path, **golden)
    status, printed = report(tmp_path, capsys)
    assert status == 0, printed
    assert "pass  invented" in printed
    output = "pred_uvd_jts" if "TYPE" in config else "joints"
    for key, change in ((output, 3e-4), (output, np.nan), ("tap/norm1/head", 1e-2)):
        wrong = golden[key].copy()
        wrong.flat[-1] += change
        np.savez(path, **golden | {key: wrong})
        status, printed = report(tmp_path, capsys)
        assert status == 1
        assert f"{key}: differs by" in printed
    np.savez(path, **golden, **{"tap/unheard.of/shape": np.zeros(3)})
    status, printed = report(tmp_path, capsys)
    assert status == 1
    assert "tap/unheard.of/shape: a golden array without a value of ours" in printed


def test_rules_of_the_weights_are_followed(tmp_path):
    case, _ = written(tmp_path, MESH, 1)
    state = drawn_state(case)
    assert torch.equal(state["init_cam"], torch.tensor([0.9, 0, 0]))
    assert "smpl.faces_tensor" not in state
    plain = Case("x", dict(case.config) | {"rescaled": {}}, {}, case.shapes, (), tmp_path)
    torch.testing.assert_close(state["norm2.weight"], 2 * drawn_state(plain)["norm2.weight"])
    lost = Case("x", dict(case.config) | {"rescaled": {"no.such": 2.0}}, {}, {}, (), tmp_path)
    with pytest.raises(ValueError, match=r"no\.such"):
        drawn_state(lost)


def test_unknown_networks_and_entries_are_refused(tmp_path):
    for config in (
        HAND | {"NAME": "other"},
        HAND | {"IMAGE_SIZE": [64, 96]},
        HAND | {"SOMETHING": 1},
        MESH | {"POST": {"NORM_TYPE": "sigmoid"}},
    ):
        with pytest.raises(ValueError, match="config"):
            build_network(_case(config, {}, tmp_path))
    entry = {"config": HAND, "inputs": {}, "state_dict": {}, "post_scale": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({"x": entry}))
    with pytest.raises(ValueError, match="post_scale"):
        read_manifest(tmp_path / "manifest.json", tmp_path)
