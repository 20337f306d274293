"""Scores of hand joints, and the submission file of the Ego-Exo4D benchmark."""

import json

import numpy as np
import pytest
import torch

from kinemesh.data.ego_exo4d import HandPoseOptions, find_annotation, open_ego_exo4d
from kinemesh.data.ego_exo4d_annotations import read_annotations
from kinemesh.data.hand_crop import hand_affine, place_hand
from kinemesh.data.hand_pose_records import LEFT, RIGHT, collate_hand_poses
from kinemesh.data.keypoint_crop import map_points
from kinemesh.errors import InputError
from kinemesh.evaluation.ego_exo4d import (
    check_submission,
    read_submission,
    score_submission,
    write_submission,
)
from kinemesh.evaluation.hand_pose import (
    HandRun,
    evaluate_hands,
    measure_hands,
    predict_hands,
)
from kinemesh.metrics import mpjpe_mm, pa_mpjpe_mm
from tests.ego_exo4d_release import SIDES, hand

FRAMES = (5, 9, 12)


def annotation(labelled: bool = True):
    """A file of three frames; the second has a right hand alone."""
    frames = {}
    for frame in FRAMES:
        entry = {"metadata": {"take_uid": "u", "take_name": "t", "frame_number": frame}}
        for side in SIDES:
            there = side == "right" or frame != 9
            joints = hand(side, frame).tolist()
            if frame == 12:
                joints[4] = [float("nan")] * 3
            box = {"right": [300.0, 200.0, 380.0, 290.0], "left": [100.0, 200.0, 180.0, 300.0]}
            entry[f"{side}_hand_bbox"] = box[side] if there else []
            if labelled:
                entry[f"{side}_hand_3d"] = joints if there else []
                entry[f"{side}_hand_2d"] = np.zeros((21, 2)).tolist() if there else []
                entry[f"{side}_hand_valid_3d"] = [j != 7 for j in range(21)] if there else []
        frames[str(frame)] = entry
    return {"u": frames}


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "ego_pose_gt_anno_val_public.json"
    path.write_text(json.dumps(annotation()))
    return read_annotations(path)


def test_annotations_with_nan_and_empty_lists_are_read(labels):
    assert [str(key) for key in labels.keys][2] == "take u, frame 9, right hand"
    assert len(labels) == 5
    assert labels.frames == (("u", 5), ("u", 9), ("u", 12))
    assert labels.valid.sum(axis=1).tolist() == [20, 20, 20, 19, 19]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["u"]["5"].update(right_hand_bbox=[1, 2, 3]), "bbox: expected 4 numbers"),
        (lambda c: c["u"]["5"].update(right_hand_3d=[[1, 2]]), "3d: expected 21 x 3"),
        (lambda c: c["u"]["5"]["left_hand_3d"].__setitem__(0, [float("nan")] * 3), "a wrist"),
        (lambda c: c["u"].update(x={}), "frame numbers"),
        (lambda c: c["u"].update({"7": []}), "an object with hands"),
        (lambda c: c.clear(), "at least one frame"),
        (lambda c: c.update(u=[]), "take_uid"),
    ],
)
def test_damaged_annotations_are_named(tmp_path, change, said):
    content = annotation()
    change(content)
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        read_annotations(path)


def test_the_published_test_file_is_read(shared):
    path = shared / "data" / "egoexo4d" / "ego_pose_gt_anno_test_public_excerpt.json"
    labels = read_annotations(path)
    assert (len(labels.frames), len(labels)) == (379, 472)
    assert not labels.has_joints.any()
    dataset = open_ego_exo4d(f"ego-exo4d:{path}")
    assert (dataset.split, len(dataset), len(dataset.takes)) == ("test", 472, 6)
    with pytest.raises(InputError, match="cannot read"):
        dataset[0]
    assert dataset.missing_pictures == 472


def test_the_sample_of_the_test_file_is_read(shared):
    labels = read_annotations(shared / "parity" / "potter" / "sample_ego_pose_anno.json")
    assert len({key.take_uid for key in labels.keys}) == 5
    assert np.isfinite(labels.boxes_px).all()


def test_the_crop_puts_the_box_in_the_middle():
    placement = place_hand(np.array([100.0, 50.0, 180.0, 150.0]))
    assert placement.side_px == pytest.approx(125)
    corners = map_points(hand_affine(placement), np.array([[140.0, 100.0], [77.5, 37.5]]))
    np.testing.assert_allclose(corners, [[112, 112], [0, 0]], atol=1e-4)
    for box in ([0.0, 0, 0, 0], [5.0, 5, 1, 9], [np.nan] * 4, [1.0, 2]):
        with pytest.raises(InputError, match="box"):
            place_hand(np.array(box))


def test_a_hand_is_measured_by_its_visible_joints():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 4, 21, 3, generator=generator) * 0.06
    visible = torch.rand(4, 21, generator=generator) > 0.3
    visible[3] = False
    hidden = target.where(visible[..., None], float("nan"))
    found = measure_hands(prediction, hidden, visible)
    for row in range(3):
        seen = visible[row]
        own, true = prediction[row : row + 1, seen], target[row : row + 1, seen]
        assert float(found["MPJPE"][row]) == pytest.approx(float(mpjpe_mm(own, true)), rel=1e-5)
        aligned = float(pa_mpjpe_mm(own, true))
        assert float(found["PA-MPJPE"][row]) == pytest.approx(aligned, rel=1e-4)
    assert found["MPJPE"][3].isnan()


class Knows(torch.nn.Module):
    """Says the joints that a batch is labelled with, moved by some mm along x."""

    architecture = "potter-hand"

    def __init__(self, error_m: float) -> None:
        super().__init__()
        self.error_m = error_m

    def forward(self, batch):
        shift = torch.zeros(3)
        shift[0] = self.error_m
        moved = batch["joints_m"] + shift
        moved[:, 0] = 0
        return moved


def samples(labels):
    """Records of hands without pictures."""
    made = []
    for key, joints, valid in zip(labels.keys, labels.joints_m, labels.valid, strict=True):
        about = np.where(valid[:, None], joints - joints[0], 0).astype(np.float32)
        made.append(
            {
                "image": torch.zeros(3, 8, 8),
                "joints_m": torch.from_numpy(about),
                "visible": torch.from_numpy(valid),
                "joints_2d_px": torch.arange(42.0).reshape(21, 2),
                "visible_2d": torch.ones(21, dtype=torch.bool),
                "side": torch.tensor(RIGHT if key.side == "right" else LEFT),
                "center_px": torch.zeros(2),
                "side_px": torch.tensor(1.0),
                "take": torch.tensor(0),
                "frame": torch.tensor(key.frame),
            }
        )
    return made


def test_scores_are_means_over_hands_and_say_their_protocol(labels):
    rows, seen = samples(labels), []
    result = evaluate_hands(
        Knows(0.01), rows, HandRun(batch_size=2), samples=seen.append, names=("m", "d")
    )
    # the wrist, which counts, is right
    expected = np.mean([10 * (n - 1) / n for n in (20, 20, 20, 19, 19)])
    assert result.reports[0].value == pytest.approx(expected, rel=1e-5)
    assert result.reports[0].sample_count == 5
    assert "then over hands" in str(result)
    assert "root: wrist" in str(result)
    assert sum(len(part.keys) for part in seen) == 5
    assert seen[0].picture(0).shape == (8, 8, 3)


def test_nothing_is_scored_without_labels(labels):
    rows = samples(labels)
    for row in rows:
        row["visible"] = torch.zeros(21, dtype=torch.bool)
    with pytest.raises(InputError, match="--results"):
        evaluate_hands(Knows(0.0), rows, HandRun())


class Looks(torch.nn.Module):
    """Answers with what it is shown: 2D joints, and the first column of the picture."""

    def forward(self, batch):
        column = batch["image"][:, :1, :1, 0].expand(-1, 21, 1)
        return torch.cat([batch["joints_2d_px"], column], dim=-1)


def test_left_hands_are_mirrored_there_and_back(labels):
    batch = collate_hand_poses(samples(labels))
    batch["image"][..., 0] = 1
    plain = predict_hands(Looks(), batch)
    sided = predict_hands(Looks(), batch, "right")
    left = batch["side"] == LEFT
    assert torch.equal(plain[~left], sided[~left])
    assert torch.equal(sided[left][..., 0], plain[left][..., 0] - 7)  # -(8 - 1 - x)
    assert (sided[left][..., 2] == 0).all()
    assert torch.equal(sided[left][..., 1], plain[left][..., 1])


def about_wrist(labels, error_m=0.0):
    joints = np.nan_to_num(labels.joints_m - labels.joints_m[:, :1])
    joints[:, 1:, 1] += error_m
    return joints


def test_a_submission_comes_back_and_is_scored(labels, tmp_path):
    path = tmp_path / "pred.json"
    check = write_submission(path, labels, labels.keys, about_wrist(labels, 0.002))
    assert (check.frames, check.hands) == (3, 5)
    assert check_submission(path, labels) == check
    content = json.loads(path.read_text())
    assert content["u"]["9"]["left_hand_3d"] == []
    assert list(content["u"]["9"]) == ["left_hand_3d", "right_hand_3d"]
    hands = read_submission(path)
    np.testing.assert_allclose(hands["u", 5, "left"], about_wrist(labels, 0.002)[1], atol=1e-7)
    result = score_submission(path, labels, offset=True)
    expected = np.mean([2 * (n - 1) / n for n in (20, 20, 20, 19, 19)])
    assert result.reports[0].value == pytest.approx(expected, abs=1e-3)
    without = score_submission(path, labels)
    assert without.reports[0].value > 300
    assert without.reports[1].value == pytest.approx(result.reports[1].value, abs=1e-3)
    assert "--offset" in str(without)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["u"].pop("9"), "1 missing, first take u, frame 9"),
        (lambda c: c["u"].update({"10": c["u"]["9"]}), "1 unknown"),
        (lambda c: c["u"]["5"].update(left_hand_3d=[]), "frame 5, left hand.*found no hand"),
        (lambda c: c["u"]["5"].update(left_hand_3d=[[0, 0, 0]]), "21 x 3"),
        (lambda c: c["u"]["5"].pop("left_hand_3d"), "left_hand_3d and right_hand_3d"),
        (lambda c: c["u"]["5"]["left_hand_3d"].__setitem__(3, [0, 0, float("nan")]), "finite"),
        (lambda c: c["u"]["5"]["left_hand_3d"].__setitem__(3, [0, 80, 0]), "metres"),
    ],
)
def test_a_wrong_submission_is_refused(labels, tmp_path, change, said):
    path = tmp_path / "pred.json"
    write_submission(path, labels, labels.keys, about_wrist(labels))
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        check_submission(path, labels)
    with pytest.raises(InputError, match=said):
        score_submission(path, labels)


def test_a_submission_that_is_not_whole_does_not_appear(labels, tmp_path):
    path = tmp_path / "pred.json"
    with pytest.raises(InputError, match="found no hand"):
        write_submission(path, labels, labels.keys[:-1], about_wrist(labels)[:-1])
    with pytest.raises(InputError, match="metres"):
        write_submission(path, labels, labels.keys, 1000 * about_wrist(labels))
    assert not path.exists()


def test_labels_that_are_not_published_are_not_scored(tmp_path, labels):
    public = tmp_path / "public.json"
    public.write_text(json.dumps(annotation(labelled=False)))
    path = tmp_path / "pred.json"
    write_submission(path, labels, labels.keys, about_wrist(labels))
    with pytest.raises(InputError, match="not published"):
        score_submission(path, public)
    assert "nothing to score" in str(check_submission(path, read_annotations(public)))


def test_missing_files_and_pictures_are_told(tmp_path):
    with pytest.raises(InputError, match="kinemesh data prepare"):
        find_annotation(tmp_path, "val")
    with pytest.raises(InputError, match="manual"):
        HandPoseOptions(annotations="other")
    path = tmp_path / "ego_pose_gt_anno_val_public.json"
    path.write_text(json.dumps(annotation()))
    with pytest.raises(InputError, match="5 hands, but none has a picture"):
        open_ego_exo4d(f"ego-exo4d:{path}")
