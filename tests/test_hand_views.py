"""Ego-Exo4D's hands: which files belong together, and crops for networks of rendered hands."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.data.ego_exo4d import HandPoseOptions, open_ego_exo4d
from kinemesh.data.ego_exo4d_labels import to_portrait
from kinemesh.data.hand_views import FACING_MARGIN, cut_hand_facing, facing_axes
from kinemesh.data.keypoint_crop import map_points
from kinemesh.errors import InputError
from kinemesh.evaluation import hand_pose_by_name
from kinemesh.evaluation.ego_exo4d import score_submission, write_submission
from kinemesh.evaluation.hand_pose_by_name import HandEvaluation, evaluate_hand_pose
from kinemesh.inference.crop_rule import CropRule
from tests.ego_exo4d_release import SIDES

FOCAL_PX, MIDDLE_PX, WRIST = 150.0, 255.5, np.array([0.25, 0.1, 0.3])


def joints_of(number, side):
    """(21, 3) metres in the camera's frame, far from its axis."""
    rng = np.random.default_rng([number, side == "left"])
    shift = WRIST * [1 if side == "right" else -1, 1, 1]
    return np.concatenate([shift[None], shift + rng.normal(0, 0.03, (20, 3))])


def pixels_of(joints):
    return joints[:, :2] / joints[:, 2:] * FOCAL_PX + MIDDLE_PX


def write_folder(folder, portrait=False, kind="manual", level=100, frames=3):
    """A prepared folder with a val split; pictures are of one grey level."""
    view = "_portrait_view" if portrait else ""
    entries = {}
    for number in range(frames):
        entry = {"metadata": {"take_uid": "u", "take_name": "t", "frame_number": number}}
        for side in SIDES:
            joints = joints_of(number, side)
            places = to_portrait(pixels_of(joints)) if portrait else pixels_of(joints)
            entry[f"{side}_hand_3d"] = joints.tolist()
            entry[f"{side}_hand_2d"] = places.tolist()
            entry[f"{side}_hand_bbox"] = [*(places.min(0) - 20), *(places.max(0) + 20)]
            entry[f"{side}_hand_valid_3d"] = [True] * 21
        entries[str(number)] = entry
    path = folder / f"annotation{view}" / kind / "ego_pose_gt_anno_val_public.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"u": entries}))
    pictures = folder / f"image{view}" / "undistorted" / "val" / "t"
    pictures.mkdir(parents=True, exist_ok=True)
    for number in range(frames):
        picture = np.full((512, 512, 3), level, np.uint8)
        cv2.imwrite(str(pictures / f"{number:06d}.jpg"), picture)
    return path


# Files that belong together --------------------------------------------------------------------


def test_upright_labels_get_upright_pictures(tmp_path):
    sideways = write_folder(tmp_path, level=40)
    upright = write_folder(tmp_path, portrait=True, level=200)
    for path, is_upright, folder in ((sideways, False, "image"), (upright, True, "image_portrait")):
        hands = open_ego_exo4d(f"ego-exo4d:{path}", "val")
        assert hands.options.portrait == is_upright
        assert hands.pictures.relative_to(tmp_path).parts[0].startswith(folder)
        inside = hands[0]["image"][:, 112, 112].mean()
        assert (inside > 0) == is_upright
    assert open_ego_exo4d(f"ego-exo4d:{tmp_path}", "val", portrait=True).annotation == upright
    with pytest.raises(InputError, match="--portrait"):
        open_ego_exo4d(f"ego-exo4d:{sideways}", "val", portrait=True)
    own = tmp_path / "own"
    shutil.copytree(tmp_path / "image" / "undistorted", own)
    assert open_ego_exo4d(f"ego-exo4d:{upright}", "val", images=own).pictures == own / "val"


def test_submissions_are_scored_against_the_labels_that_were_named(tmp_path):
    write_folder(tmp_path)
    automatic = write_folder(tmp_path, kind="auto")
    content = json.loads(automatic.read_text())
    for entry in content["u"].values():
        for side in SIDES:
            moved = np.array(entry[f"{side}_hand_3d"])
            moved[1:, 0] += 0.021
            entry[f"{side}_hand_3d"] = moved.tolist()
    automatic.write_text(json.dumps(content))
    labels = open_ego_exo4d(f"ego-exo4d:{tmp_path}", "val").labels
    submission = tmp_path / "pred.json"
    write_submission(submission, labels, labels.keys, labels.joints_m - labels.joints_m[:, :1])
    options = HandEvaluation(split="val", offset=True)
    values = [
        evaluate_hand_pose(submission, f"{name}:{tmp_path}", options).reports[0].value
        for name in ("ego-exo4d", "ego-exo4d-auto")
    ]
    assert values == pytest.approx([0, 20], abs=1e-3)


def test_boxes_without_extent_are_left_out_or_refused(tmp_path):
    path = write_folder(tmp_path)
    content = json.loads(path.read_text())
    content["u"]["1"]["left_hand_bbox"] = [511, 90, 511, 90]
    path.write_text(json.dumps(content))
    hands = open_ego_exo4d(f"ego-exo4d:{tmp_path}", "val")
    assert (len(hands), hands.empty_boxes, hands.missing_pictures) == (5, 1, 0)
    assert len([hands[index] for index in range(5)]) == 5
    test = path.with_name("ego_pose_gt_anno_test_public.json")
    test.write_text(json.dumps(content))
    with pytest.raises(InputError, match="frame 1, left hand, bbox"):
        open_ego_exo4d(f"ego-exo4d:{tmp_path}", "test")


# Networks of rendered hands --------------------------------------------------------------------


@pytest.mark.parametrize("portrait", [False, True])
def test_the_camera_that_looks_at_a_hand_has_it_on_its_axis(portrait):
    point = np.array([0.3, -0.1, 0.25])
    place = pixels_of(point[None])
    place = to_portrait(place)[0] if portrait else place[0]
    axes = facing_axes(np.concatenate([place - 30, place + 30]), portrait=portrait)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(axes) == pytest.approx(1)
    np.testing.assert_allclose(point @ axes, [0, 0, np.linalg.norm(point)], atol=1e-9)


def test_upright_pictures_show_upright_axes():
    """What lies to the right of the camera's sideways picture is below in the upright one."""
    place = np.full(2, MIDDLE_PX)
    axes = facing_axes(np.concatenate([place - 30, place + 30]), portrait=True)
    right = np.array([MIDDLE_PX + 15, MIDDLE_PX])
    moved = to_portrait(right[None])[0] - to_portrait(place[None])[0]
    np.testing.assert_allclose((np.array([1.0, 0, 0]) @ axes)[:2], moved / 15, atol=1e-9)


def test_crops_are_those_of_prediction():
    assert CropRule().margin == FACING_MARGIN
    assert CropRule().border == "replicate"
    picture = np.full((512, 512, 3), 77, np.uint8)
    picture[240:260, 480:500] = 255
    cut = cut_hand_facing(picture, np.array([440.0, 200.0, 540.0, 300.0]), 110)
    np.testing.assert_allclose(map_points(cut.affine, [[490.0, 250.0]]), [[54.5, 54.5]], atol=1e-4)
    assert (cut.picture[55, 55] == 255).all()
    assert cut.picture.min() == 77  # nothing is black beyond the border
    assert float(cut.side_px) == pytest.approx(110)


class KnowsRendered(torch.nn.Module):
    """As if it were right about every hand, in the axes of a camera that looks at it."""

    architecture = "potter-hand"

    def forward(self, batch):
        rows = []
        for number, code in zip(batch["frame"].tolist(), batch["side"].tolist(), strict=True):
            joints = joints_of(number, SIDES[code])
            places = pixels_of(joints)
            center = (places.min(0) + places.max(0)) / 2
            ray = np.array([*((center - MIDDLE_PX) / FOCAL_PX), 1.0])
            ray /= np.linalg.norm(ray)
            turn = cv2.Rodrigues(_least_turn(ray))[0]
            rows.append((joints - joints[0]) @ turn)  # each joint times the inverse
        return torch.from_numpy(np.stack(rows)).float()


def _least_turn(ray):
    """Rotation vector that takes +z to a ray."""
    axis = np.cross([0.0, 0, 1], ray)
    return axis / np.linalg.norm(axis) * np.arccos(ray[2])


@pytest.fixture
def rendered(monkeypatch):
    """Every model is one that was trained on rendered hands of both sides."""

    def load(_model):
        return KnowsRendered(), {"sides": "both", "crops": "synthetic", "resolution": 32}

    monkeypatch.setattr(hand_pose_by_name, "load_hand_pose_model", load)


def test_networks_of_rendered_hands_are_scored_in_their_own_axes(tmp_path, rendered):
    write_folder(tmp_path)
    result = evaluate_hand_pose("m.safetensors", f"ego-exo4d:{tmp_path}", HandEvaluation("val"))
    assert [report.value for report in result.reports] == pytest.approx([0, 0], abs=0.02)
    assert "rendered hands" in str(result)
    published = open_ego_exo4d(f"ego-exo4d:{tmp_path}", "val")
    facing = open_ego_exo4d(f"ego-exo4d:{tmp_path}", "val", crops="synthetic")
    gap = (published[0]["joints_m"] - facing[0]["joints_m"]).norm(dim=-1).mean()
    assert gap > 0.02  # without the turn the score would be tens of millimetres
    with pytest.raises(InputError, match="crops"):
        HandPoseOptions(crops="nonsense")


@pytest.mark.parametrize("portrait", [False, True])
def test_their_submissions_have_the_axes_of_the_benchmark(tmp_path, monkeypatch, portrait):
    path = write_folder(tmp_path, portrait)

    class Knows(torch.nn.Module):
        architecture = "potter-hand"

        def forward(self, batch):
            return batch["joints_m"]

    record = {"sides": "both", "crops": "synthetic", "resolution": 32}
    monkeypatch.setattr(hand_pose_by_name, "load_hand_pose_model", lambda _: (Knows(), record))
    submission = tmp_path / "pred.json"
    options = HandEvaluation("val", results=submission)
    evaluate_hand_pose("m.safetensors", f"ego-exo4d:{path}", options)
    scored = score_submission(submission, path, offset=True)
    assert [report.value for report in scored.reports] == pytest.approx([0, 0], abs=1e-3)


def test_a_report_of_a_submission_has_its_samples(tmp_path, rendered, capsys):
    pytest.importorskip("matplotlib")
    write_folder(tmp_path)
    command = [
        "eval",
        "m.safetensors",
        f"ego-exo4d:{tmp_path}",
        "--split",
        "val",
        "--device",
        "cpu",
    ]
    page = ["--report", str(tmp_path / "page")]
    results = str(tmp_path / "pred.json")
    assert main([*command, "--results", results, *page]) == 0
    text = (tmp_path / "page" / "index.html").read_text()
    assert "compared no labelled joint" not in text
    assert "right" in text
    again = ["eval", results, f"ego-exo4d:{tmp_path}", "--report", str(tmp_path / "other")]
    capsys.readouterr()
    assert main(again) == 2
    assert "--report means nothing for a finished submission" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
