"""POTTER's hands against the official numbers; see `tests.parity.potter_hands`."""

import json

import numpy as np
import pytest
import torch

from kinemesh.evaluation.hand_pose import measure_hands
from kinemesh.hand_losses import pose3d_loss
from tests.parity import potter_hands, potter_networks
from tests.parity.potter_networks import salt_of
from tests.seeded_weights import normal

CASES = {
    "hand_crop",
    "hand_crop/test_items",
    "hand_loss_metrics",
    "hand_evaluation",
    "dataprep/undistort",
    "dataprep/train_manual",
    "dataprep/train_auto",
    "dataprep/train_manual_portrait",
    "dataprep/test_manual_seed0",
}


@pytest.fixture(scope="module")
def comparisons(shared):
    found = potter_hands.compare(shared / "parity" / "potter" / "golden")
    return {comparison.name: comparison for comparison in found}


@pytest.mark.parametrize("case", sorted(CASES))
def test_hands_agree_with_the_official_numbers(comparisons, case):
    assert comparisons.keys() == CASES
    comparisons[case].assert_passed()


@pytest.mark.parametrize(("hands", "salt"), [(3, "other"), (6, "")])
def test_goldens_of_other_salts_and_sizes_run_unchanged(tmp_path, hands, salt):
    golden, manifest = tmp_path / "golden", tmp_path / "elsewhere.json"
    golden.mkdir()
    manifest.write_text(json.dumps({"hand_loss_metrics": {"salt": salt}}))
    own, true = (
        torch.from_numpy(normal(f"hand.{name}", (hands, 21, 3), salt)).float()
        for name in ("pred", "gt")
    )
    seen = torch.from_numpy(normal("hand.vis", (hands, 21), salt)) > -0.5
    every = torch.ones_like(seen)
    whole, single = (measure_hands(own * 0.06, true * 0.06, which) for which in (every, seen))
    mirror = true * 0.06 * torch.tensor([-1.0, 1.0, 1.0])
    arrays = {
        "pose3dloss": pose3d_loss(own, true, seen),
        "mpjpe_all": whole["MPJPE"].mean(),
        "p_mpjpe_all": whole["PA-MPJPE"].mean(),
        "per_hand_valid": torch.stack([single["MPJPE"], single["PA-MPJPE"]], dim=1),
        "p_mpjpe_mirrored": measure_hands(true * 0.06, mirror, every)["PA-MPJPE"].mean(),
    }
    np.savez(golden / "hand_loss_metrics.npz", **{k: v.numpy() for k, v in arrays.items()})
    (found,) = potter_hands.compare(golden, manifest)
    found.assert_passed()
    manifest.write_text(json.dumps({"hand_loss_metrics": {"salt": "wrong"}}))
    (found,) = potter_hands.compare(golden, manifest)
    assert not found.passed


def test_the_salt_is_that_of_the_hand_networks_if_they_agree(tmp_path):
    manifest = tmp_path / "manifest.json"
    shared = {"config": {"NAME": "PoolAttnHR_Pose_3D"}, "inputs": {}, "state_dict": {}}
    manifest.write_text(json.dumps({"a": {**shared, "salt": "s"}, "b": {**shared, "salt": "s"}}))
    assert salt_of(manifest, "hand_crop", "hand") == "s"
    manifest.write_text(json.dumps({"a": {**shared, "salt": "s"}, "b": {**shared, "salt": "t"}}))
    with pytest.raises(ValueError, match="the salts"):
        salt_of(manifest, "hand_crop", "hand")
    assert salt_of(tmp_path / "absent.json", "hand_crop", "hand") == ""


def test_the_salt_of_taken_weights_is_read(tmp_path):
    remark = {"hand_from_cls": 'the checkpoint seeded with salt "x7" loaded into the backbone'}
    assert potter_networks.transfer_salt({"_meta": remark}) == "x7"
    with pytest.raises(ValueError, match="salt"):
        potter_networks.transfer_salt({})
