"""From a download to pictures and labels, and on to training, scores and a submission."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.data.aria_calibration import calibration_of_video, colour_camera, read_calibration
from kinemesh.data.ego_exo4d import open_ego_exo4d
from kinemesh.data.ego_exo4d_annotations import read_annotations
from kinemesh.data.ego_exo4d_images import read_frames
from kinemesh.data.ego_exo4d_labels import LabelRules
from kinemesh.data.ego_exo4d_prepare import PrepareOptions, prepare_ego_exo4d
from kinemesh.data.ego_exo4d_release import Release, ego_camera
from kinemesh.data.hand_pose_records import collate_hand_poses
from kinemesh.errors import InputError
from tests import ego_exo4d_release as fake

HANDS_OF_TAKE = 2 * len(fake.FRAMES)


@pytest.fixture(scope="module")
def download(tmp_path_factory) -> Path:
    """The download with its videos, and calibrations beside it."""
    pytest.importorskip("av", reason="videos need the extra 'video'")
    return fake.write_release(tmp_path_factory.mktemp("ego"))


@pytest.fixture(scope="module")
def labels_only(tmp_path_factory) -> Path:
    return fake.write_release(tmp_path_factory.mktemp("labels"), videos=False)


@pytest.fixture(scope="module")
def prepared(download) -> Path:
    """What the command makes of it."""
    out = download.parent / "prepared"
    words = ["data", "prepare", "ego-exo4d", str(download), "--out", str(out), "--splits", "train"]
    words += ["val", "test", "--calibrations", str(download.parent / "calibrations")]
    assert main(words) == 0
    return out


def options(root: Path, **changes) -> PrepareOptions:
    values = {"calibrations": root.parent / "calibrations", "images": False} | changes
    return PrepareOptions(**values)


def test_labels_are_those_of_the_hands(prepared):
    labels = read_annotations(
        prepared / "annotation" / "manual" / "ego_pose_gt_anno_train_public.json"
    )
    assert len(labels) == 2 * HANDS_OF_TAKE
    assert [uid for uid, _ in labels.frames] == ["uid-a"] * 3 + ["uid-b"] * 3
    for key, joints, valid, places in zip(
        labels.keys, labels.joints_m, labels.valid, labels.joints_px, strict=True
    ):
        true = fake.hand(key.side, key.frame, {"uid-a": 0, "uid-b": 1}[key.take_uid])
        hidden = key.side == "right" and key.frame == fake.FRAMES[1]
        assert valid.sum() == 21 - hidden
        np.testing.assert_allclose(joints[valid], true[valid], atol=1e-6)
        np.testing.assert_allclose(places, fake.pixels(true), atol=1e-3)


@pytest.mark.parametrize("portrait", [False, True])
def test_pictures_show_each_joint_where_its_label_is(download, prepared, portrait, tmp_path):
    folder = prepared
    if portrait:
        rules = LabelRules(portrait=True)
        wanted = options(download, images=True, splits=("val",), rules=rules, keep_distorted=True)
        prepare_ego_exo4d(download, tmp_path, wanted)
        folder = tmp_path
    dataset = open_ego_exo4d(f"ego-exo4d:{folder}", "val", size=160, portrait=portrait)
    assert len(dataset) == HANDS_OF_TAKE
    for index in range(len(dataset)):
        sample = dataset[index]
        grey = sample["image"].mean(dim=0)
        x, y = sample["joints_2d_px"].round().long().T
        seen = sample["visible_2d"]
        assert seen.sum() >= 20
        dots, ground = grey[y[seen], x[seen]], grey.median()
        assert float(dots.min()) > float(ground) + 1.0
        # the other hand's joints are no bright spots of this one
        assert float(grey[(x + 12)[seen] % 160, y[seen]].median()) < float(dots.min())


def test_samples_follow_the_record(prepared):
    dataset = open_ego_exo4d(f"ego-exo4d:{prepared}", "train")
    batch = collate_hand_poses([dataset[i] for i in range(len(dataset))])
    assert batch["image"].shape == (12, 3, 224, 224)
    assert batch["joints_m"].isfinite().all()
    assert batch["joints_2d_px"].isfinite().all()
    assert batch["side"].tolist() == [0, 1] * 6
    assert batch["take"].tolist() == [0] * 6 + [1] * 6
    assert batch["frame"].tolist() == [0, 0, 2, 2, 3, 3] * 2
    assert (batch["joints_m"][:, 0] == 0).all()
    true = fake.hand("left", 2, 0)
    np.testing.assert_allclose(batch["joints_m"][3], true - true[0], atol=1e-6)
    assert batch["joints_2d_px"].ge(0).all()
    assert batch["joints_2d_px"].lt(224).all()


def test_the_public_test_file_hides_labels(prepared):
    folder = prepared / "annotation" / "manual"
    public = read_annotations(folder / "ego_pose_gt_anno_test_public.json")
    private = read_annotations(folder / "ego_pose_gt_anno_test_private.json")
    assert not public.has_joints.any()
    assert private.has_joints.all()
    np.testing.assert_array_equal(public.boxes_px, private.boxes_px)
    dataset = open_ego_exo4d(f"ego-exo4d:{folder / 'ego_pose_gt_anno_test_public.json'}")
    assert dataset.split == "test"
    assert not dataset[0]["visible"].any()
    assert dataset[0]["image"].std() > 0.1


def test_a_second_run_makes_what_is_missing_alone(download, prepared):
    pictures = sorted((prepared / "image").rglob("*.jpg"))
    assert len(pictures) == len(fake.TAKES) * len(fake.FRAMES)
    before = {path: path.read_bytes() for path in pictures}
    annotation = prepared / "annotation" / "manual" / "ego_pose_gt_anno_test_public.json"
    text = annotation.read_bytes()
    pictures[0].unlink()
    wanted = options(download, images=True, splits=("train", "val", "test"))
    reports = prepare_ego_exo4d(download, prepared, wanted)
    assert sum(report.pictures for report in reports) == 1
    assert {path: path.read_bytes() for path in before} == before
    assert annotation.read_bytes() == text
    assert not list(prepared.rglob(".*partial*"))


def test_boxes_of_the_test_split_follow_from_the_seed(labels_only, tmp_path):
    boxes = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        prepare_ego_exo4d(labels_only, out, options(labels_only, splits=("test",), seed=seed))
        file = out / "annotation" / "manual" / "ego_pose_gt_anno_test_public.json"
        boxes.append(read_annotations(file).boxes_px)
    np.testing.assert_array_equal(boxes[0], boxes[1])
    assert np.abs(boxes[0] - boxes[2]).max() > 1


def test_automatic_labels_need_no_number_of_views(labels_only, tmp_path):
    rules = LabelRules("auto")
    prepare_ego_exo4d(labels_only, tmp_path, options(labels_only, rules=rules))
    labels = read_annotations(tmp_path / "annotation" / "auto" / "ego_pose_gt_anno_val_public.json")
    assert labels.valid.all()


def test_a_test_split_of_a_user_has_pictures_after_the_published_file(download, prepared, tmp_path):
    published = "annotation/manual/ego_pose_gt_anno_test_public.json"
    (tmp_path / published).parent.mkdir(parents=True)
    (tmp_path / published).write_bytes((prepared / published).read_bytes())
    bare = tmp_path / "download"
    bare.mkdir()
    for name in ("takes.json", "takes"):
        (bare / name).symlink_to(download / name)
    (bare / "annotations").mkdir()
    splits = (download / "annotations" / "splits.json").read_bytes()
    (bare / "annotations" / "splits.json").write_bytes(splits)
    calibrations = download.parent / "calibrations"
    wanted = PrepareOptions(("test",), calibrations=calibrations)
    (report,) = prepare_ego_exo4d(bare, tmp_path, wanted)
    assert (report.hands, report.pictures) == (HANDS_OF_TAKE, len(fake.FRAMES))
    with pytest.raises(InputError, match="ego_pose_gt_anno_test_public"):
        prepare_ego_exo4d(bare, tmp_path / "other", wanted)


def test_takes_without_calibration_are_left_out_and_named(labels_only, tmp_path):
    calibrations = tmp_path / "calibrations"
    calibrations.mkdir()
    (calibrations / "site_cooking_1.json").write_text(json.dumps(fake.calibration()))
    wanted = options(labels_only, calibrations=calibrations, splits=("train",))
    (report,) = prepare_ego_exo4d(labels_only, tmp_path / "out", wanted)
    assert (report.takes, report.frames) == (1, 3)
    assert report.skipped == ["take site_cooking_2: no calibration"]
    with pytest.raises(InputError, match="none of 1 takes"):
        prepare_ego_exo4d(
            labels_only,
            tmp_path / "none",
            options(labels_only, calibrations=calibrations, splits=("val",)),
        )
    assert not list((tmp_path / "none").rglob("*.json"))


def test_a_damaged_video_is_named_and_the_others_are_made(download, tmp_path):
    root = tmp_path / "release"
    root.mkdir()
    for name in ("takes.json", "annotations"):
        (root / name).symlink_to(download / name)
    for take in fake.TAKES[:2]:
        folder = root / "takes" / take.name / "frame_aligned_videos"
        folder.mkdir(parents=True)
        video = download / "takes" / take.name / "frame_aligned_videos" / "aria01_214-1.mp4"
        content = video.read_bytes() if take.uid == "uid-a" else b"no video"
        (folder / video.name).write_bytes(content)
    wanted = PrepareOptions(("train",), calibrations=download.parent / "calibrations", workers=1)
    (report,) = prepare_ego_exo4d(root, tmp_path / "out", wanted)
    assert report.pictures == len(fake.FRAMES)
    assert len(report.problems) == 1
    assert "site_cooking_2" in report.problems[0]


def test_a_video_that_ends_early_is_refused(download):
    video = next(download.rglob("*.mp4"))
    with pytest.raises(InputError, match="frame 9"):
        list(read_frames(video, [0, 9]))
    assert [number for number, _ in read_frames(video, {2, 1})] == [1, 2]


def test_a_picture_of_another_size_is_refused(download, tmp_path, monkeypatch):
    small = np.zeros((704, 704, 3), np.uint8)
    monkeypatch.setattr("kinemesh.data.ego_exo4d_images.read_frames", lambda *_: iter([(0, small)]))
    wanted = options(download, images=True, splits=("val",))
    (report,) = prepare_ego_exo4d(download, tmp_path, wanted)
    assert "expected a picture of 1408 x 1408" in report.problems[0]
    assert not list(tmp_path.rglob("*.jpg"))


def test_calibration_is_halved_once(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(fake.calibration()))
    once = read_calibration(path)
    path.write_text(json.dumps(once))
    assert read_calibration(path) == once
    np.testing.assert_allclose(colour_camera(once, "a").parameters, fake.VIDEO)
    assert once["CameraCalibrations"][0] == fake.calibration()["CameraCalibrations"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("[]", "CameraCalibrations"),
        (json.dumps({"CameraCalibrations": [{"Label": "camera-rgb"}]}), "FisheyeRadTanThinPrism"),
        (json.dumps(fake.calibration([float("nan")] * 15)), "finite"),
    ],
)
def test_a_wrong_calibration_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        colour_camera(calibration_of_video(text, "'x.json'"), "'x.json'")


@pytest.mark.parametrize(
    ("names", "videos", "expected"),
    [
        (["aria01"], [], "aria01"),
        (["aria01", "aria02"], ["aria02"], "aria02"),
        (["helmet", "aria02"], ["helmet", "aria02"], "aria02"),
        (["aria01", "aria02"], ["aria01", "aria02"], None),
        ([], [], None),
    ],
)
def test_the_own_camera_of_a_take(names, videos, expected):
    cameras = [{"cam_id": name, "is_ego": "true"} for name in names]
    take = {"take_uid": "u", "capture": {"cameras": cameras}, "frame_aligned_videos": videos}
    if expected is None:
        with pytest.raises(InputError, match="one camera of the person"):
            ego_camera(take)
    else:
        assert ego_camera(take) == expected


def test_a_folder_without_a_download_is_refused(tmp_path, capsys):
    assert main(["data", "prepare", "ego-exo4d", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "takes.json" in capsys.readouterr().err
    with pytest.raises(InputError, match="splits"):
        PrepareOptions(("train", "train"))
    (tmp_path / "takes.json").write_text("[]")
    with pytest.raises(InputError, match=r"splits\.json"):
        Release(tmp_path).uids("train", "manual")


def test_videos_are_asked_for_before_labels_are_made(labels_only, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ImportError, match=r"kinemesh\[video\]"):
        prepare_ego_exo4d(labels_only, tmp_path / "o", options(labels_only, images=True))
    assert not (tmp_path / "o").exists()


def test_check_draws_hands(prepared, tmp_path, capsys):
    out = tmp_path / "sheet.png"
    words = ["data", "check", f"ego-exo4d:{prepared}", "--train", "--count", "5", "--out", str(out)]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "samples    12, of which 5" in text
    assert "3 right, 2 left" in text
    assert cv2.imread(str(out)).shape == (2 * 224, 3 * 4 * 224, 3)


def test_train_score_and_submit(prepared, tmp_path, capsys):
    """One command after the other, as a user types them, with a tiny network."""
    run = tmp_path / "run"
    words = ["train", "potter-egoexo4d", "--data", f"ego-exo4d:{prepared}", "--steps", "2"]
    words += ["--batch-size", "4", "--workers", "0", "--output", str(run), "--network.side", "64"]
    words += ["--validate-every", "2", "--checkpoint-every", "2"]
    assert main(words) == 0
    weights = str(next((run / "best").glob("*.safetensors")))
    assert main(["eval", weights, f"ego-exo4d:{prepared}", "--out", str(tmp_path / "s.json")]) == 0
    scores = json.loads((tmp_path / "s.json").read_text())["scores"]
    assert [score["metric"] for score in scores] == ["MPJPE", "PA-MPJPE"]
    assert all(score["sample_count"] == HANDS_OF_TAKE for score in scores)
    submission = str(tmp_path / "pred.json")
    assert main(["eval", weights, f"ego-exo4d:{prepared}", "--results", submission]) == 0
    assert (
        main(["eval", weights, f"ego-exo4d:{prepared}", "--results", submission, "--count", "1"])
        == 2
    )
    none = ["--images", str(tmp_path), "--results", str(tmp_path / "other.json")]
    assert main(["eval", weights, f"ego-exo4d:{prepared}", *none]) == 2
    assert "of which 6 have no picture" in capsys.readouterr().err
    assert main(["eval", submission, f"ego-exo4d:{prepared}", "--offset"]) == 0
    official = capsys.readouterr().out
    main(["eval", weights, f"ego-exo4d:{prepared}", "--split", "test"])
    ours = capsys.readouterr().out
    first, second = (text.split("MPJPE ")[1].split(" mm")[0] for text in (official, ours))
    assert float(first) == pytest.approx(float(second), abs=0.011)
    public = prepared / "annotation" / "manual" / "ego_pose_gt_anno_test_public.json"
    assert main(["eval", submission, f"ego-exo4d:{public}"]) == 0
    assert "whole, 6 hands in 3 frames" in capsys.readouterr().out
    assert torch.isfinite(torch.tensor(float(first)))
