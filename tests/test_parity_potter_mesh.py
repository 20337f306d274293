"""POTTER's body against the outputs of the official code."""

import json
import shutil

import numpy as np
import pytest

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
