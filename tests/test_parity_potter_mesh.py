"""POTTER's body against the outputs of the official code."""

import json
import shutil

import numpy as np
import pytest

from tests.parity import potter_mesh
from tests.parity.potter_mesh import (
    EVALUATION,
    KINEMATICS,
    PRE_POST,
    compare,
    compare_body,
    compare_kinematics,
    compare_metrics,
    compare_pre_post,
    golden_of,
)
from tests.parity.potter_networks import kind_of, read_manifest


@pytest.fixture(scope="module")
def golden(shared):
    return shared / "parity" / "potter" / "golden"


def test_inverse_kinematics_and_skinning_equal_the_official_ones(golden):
    compare_kinematics(golden / f"{KINEMATICS}.npz").assert_passed()


def test_crops_labels_losses_and_metrics_equal_the_official_ones(golden):
    results = compare_pre_post(golden)
    for result in results:
        result.assert_passed()
    assert {result.name.split("/")[1] for result in results} == {
        key.split("/")[0] for key in golden_of(golden / f"{PRE_POST}.npz")
    }
    compare_metrics(golden / f"{EVALUATION}.json").assert_passed()


@pytest.mark.slow
def test_the_whole_network_equals_the_official_one(golden):
    cases = read_manifest(golden.parent / "manifest.json", golden)
    cases = [case for case in cases if kind_of(case.config) == "mesh"]
    cases = [case for case in cases if "pred_theta_mats" in case.golden()]
    assert cases
    for case in cases:
        compare_body(case, golden_of(golden / f"{KINEMATICS}.npz")).assert_passed()


def test_the_manifest_says_networks_and_salts(golden, tmp_path, monkeypatch):
    entries = json.loads((golden.parent / "manifest.json").read_text())
    name = "hmr_256_sharp"  # the one whose golden file holds outputs of the body
    manifest, folder = tmp_path / "elsewhere.json", tmp_path / "golden"
    manifest.write_text(json.dumps({name: entries[name]}))
    folder.mkdir()
    shutil.copy(golden / f"{name}.npz", folder)
    # outputs of the body that nothing can be compared with
    lost = compare(folder, manifest)
    assert [result.name for result in lost] == [f"{name}/body"]
    assert "hybrik_ik.npz: there is no such file" in lost[0].failures[0]
    assert compare(folder) == []
    done = []
    monkeypatch.setattr(potter_mesh, "compare_body", lambda case, _: done.append(case.salt))
    shutil.copy(golden / f"{KINEMATICS}.npz", folder)
    other = {**entries[name], "salt": "x"}
    manifest.write_text(json.dumps({name: other, KINEMATICS: {"salt": ""}}))
    assert compare(folder, manifest)[0].passed
    assert done == ["x"]
    # of the networks where it has no entry, and then the draws are others
    manifest.write_text(json.dumps({name: other}))
    assert "betas: differs by" in " ".join(compare(folder, manifest)[0].failures)
    manifest.write_text(json.dumps({name: other, "second": entries[name]}))
    with pytest.raises(ValueError, match=r"have the salts \['', 'x'\], so that of 'hybrik_ik'"):
        compare(folder, manifest)


def test_another_folder_runs_and_a_wrong_number_fails(golden, tmp_path):
    folder = tmp_path / "golden"
    folder.mkdir()
    for name in (f"{KINEMATICS}.npz", f"{EVALUATION}.json"):
        shutil.copy(golden / name, folder / name)
    assert all(result.passed for result in compare(folder))
    arrays = golden_of(golden / f"{KINEMATICS}.npz")
    arrays["train/rot_mats"] = arrays["train/rot_mats"] + np.float32(2e-3)
    np.savez(folder / f"{KINEMATICS}.npz", **arrays)
    content = json.loads((golden / f"{EVALUATION}.json").read_text())
    content["metrics"]["pw3d"]["returned_17"] += 0.02
    (folder / f"{EVALUATION}.json").chmod(0o644)
    (folder / f"{EVALUATION}.json").write_text(json.dumps(content))
    failures = {result.name: result.failures for result in compare(folder)}
    assert "train/rot_mats: differs by" in failures[KINEMATICS][0]
    assert "pw3d/returned_17: differs by" in failures[EVALUATION][0]
