"""Hand joints in photos: crops, sides, the place in the photo, files."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import kinemesh
from kinemesh.cli import main
from kinemesh.data.hand_crop import crop_hand, hand_affine, place_hand
from kinemesh.data.synthetic.hand_pose_samples import SyntheticHandPoses
from kinemesh.errors import InputError
from kinemesh.formats.people_json import read_people_json
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.inference.hand_joints import BOX_FILL, HandJointPredictor, fill_box
from kinemesh.inference.person import PhotoCamera
from kinemesh.inference.placement import NEAR_M
from kinemesh.models.hand_pose_networks import HandPoseNetwork, build_hand_pose_network
from kinemesh.models.hand_pose_networks import hand_pose_record as record_of
from kinemesh.models.joint_lifter import JointLifterConfig
from kinemesh.models.joint_statistics import JointStatistics
from kinemesh.models.potter_hand import PotterHandConfig
from kinemesh.models.registry import save_model

SMALL = PotterHandConfig(
    layers=(1, 1, 1, 1),
    widths=(32, 32, 32, 32),
    mlp_ratios=(1, 1, 1, 1),
    stream_layers=(1, 1, 1),
    stream_mlp_ratios=(1, 1, 1),
    side=32,
    head_width=32,
    lifting_width=32,
)
BOX = (40.0, 30.0, 60.0, 80.0)


@pytest.fixture(scope="module")
def photo():
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(coarse, (160, 120), interpolation=cv2.INTER_CUBIC))


def a_hand():
    return SyntheticHandPoses(length=10, split="test").joints_m([4])[0].double().numpy()


class Told(nn.Module):
    """Answers every crop with the same joints, and keeps the crops."""

    architecture = "potter-hand"

    def __init__(self, joints_m):
        super().__init__()
        self.joints_m = torch.as_tensor(joints_m, dtype=torch.float32)
        self.seen = []

    def forward(self, batch):
        self.seen.append(batch["image"].clone())
        return self.joints_m.expand(len(batch["image"]), -1, -1)


def told(sides="right", crops="synthetic", joints_m=None):
    network = Told(a_hand() if joints_m is None else joints_m)
    metadata = {"resolution": 32, "sides": sides, "crops": crops}
    return HandJointPredictor(network, metadata, "cpu"), network


def seen_pixels(network):
    """Pixels of the last crops, as uint8."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    pixels = (network.seen[-1] * std + mean) * 255
    return pixels.round().byte().permute(0, 2, 3, 1).numpy()


MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


# Place -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("box", [BOX, (0, 0, 20, 11), (300, 200, 150, 300), (500, 10, 90, 90)])
@pytest.mark.parametrize("focal", [500.0, 1500.0])
def test_the_projected_joints_fill_the_box(box, focal):
    camera, joints = PhotoCamera(focal, (320, 240), (640, 480)), a_hand()
    seen = camera.project(joints + fill_box(joints, box, camera))
    low, high = seen.min(0), seen.max(0)
    assert (high - low).max() == pytest.approx(BOX_FILL * max(box[2:]), rel=1e-4)
    middle = [box[0] + box[2] / 2, box[1] + box[3] / 2]
    np.testing.assert_allclose((low + high) / 2, middle, atol=1e-3)


def test_no_joint_comes_behind_the_camera():
    camera = PhotoCamera(100.0, (320, 240), (640, 480))
    placed = a_hand() + fill_box(a_hand(), (0, 0, 640, 480), camera)
    assert placed[:, 2].min() >= NEAR_M - 1e-9
    assert np.isfinite(placed).all()


# Crops and sides -------------------------------------------------------------------------------


def test_joints_of_a_person(photo):
    predictor, _ = told(crops="ego-exo4d", sides="both")
    (person,) = predictor.predict(photo, [BOX])
    # the published labels have the axes of the photo's camera: nothing is turned
    np.testing.assert_allclose(person.joints - person.joints[0], a_hand(), atol=1e-6)
    np.testing.assert_allclose(person.camera.project(person.joints), person.joints_px, atol=1e-3)
    assert not person.has_mesh
    assert person.has_depth
    assert (person.side, person.skeleton, person.box_px) == ("right", "hand21", BOX)


def test_rendered_hands_are_turned_to_the_ray_of_their_box(photo):
    predictor, _ = told()
    (person,) = predictor.predict(photo, [BOX], focal_px=200)
    own = torch.tensor(person.joints - person.joints[0])[None].double()
    label = torch.tensor(a_hand())[None]
    assert (own - label).abs().max() > 1e-3
    fit = procrustes_align(label, own, scale=False)
    torch.testing.assert_close(fit.apply(label), own, atol=1e-5, rtol=0)
    # a box in the middle needs no turn
    (middle,) = predictor.predict(photo, [[50, 30, 60, 60]])
    np.testing.assert_allclose(middle.joints - middle.joints[0], a_hand(), atol=1e-6)


def test_published_crops_are_those_of_the_data(photo):
    predictor, network = told(crops="ego-exo4d", sides="both")
    predictor.predict(photo, [BOX])
    x, y, width, height = BOX
    # boxes of photos count from the corner of the first pixel, those of the data from its centre
    corners = np.array([x, y, x + width, y + height]) - 0.5
    expected = crop_hand(photo, hand_affine(place_hand(corners), 32), 32)
    np.testing.assert_array_equal(seen_pixels(network)[0], expected)


def test_left_hands_are_mirrored_where_right_ones_were_learned(photo):
    predictor, network = told(crops="ego-exo4d")
    boxes = [{"bbox": BOX, "side": side} for side in ("right", "left")]
    right, left = predictor.predict(photo, boxes)
    crops = seen_pixels(network)
    np.testing.assert_array_equal(crops[1], crops[0][:, ::-1])
    own, other = (person.joints - person.joints[0] for person in (right, left))
    np.testing.assert_allclose(other, own * [-1, 1, 1], atol=1e-6)
    assert (right.side, left.side) == ("right", "left")


def test_a_network_of_both_sides_sees_the_photo_as_it_is(photo):
    predictor, network = told(crops="ego-exo4d", sides="both")
    right, left = (predictor.predict(photo, [BOX], side)[0] for side in ("right", "left"))
    assert torch.equal(*network.seen)
    np.testing.assert_array_equal(right.joints, left.joints)
    assert (right.side, left.side) == ("right", "left")


def test_the_whole_photo_is_one_crop(photo):
    predictor, network = told(crops="ego-exo4d", sides="both")
    (person,) = predictor.predict(photo)
    assert person.box_px == (0.0, 0.0, 160.0, 120.0)
    # the longer side fills the crop: its last columns are no border
    assert seen_pixels(network)[0][16, [0, -1]].any()


def test_refusals(photo):
    predictor, _ = told()
    with pytest.raises(InputError, match="cannot tell left hands from right"):
        predictor.predict(photo, side="auto")
    with pytest.raises(InputError, match="side must be"):
        predictor.predict(photo, side="up")
    with pytest.raises(InputError, match="outside"):
        predictor.predict(photo, [[900, 900, 10, 10]])
    broken, _ = told(joints_m=np.full((21, 3), np.nan))
    with pytest.raises(kinemesh.errors.KinemeshError, match="not finite"):
        broken.predict(photo)
    statistics = JointStatistics.EGOEXO4D
    config = JointLifterConfig(width=8, layers=1, heads=1, feed_forward=8)
    record = record_of(config, statistics, sides="right", crops="synthetic")
    lifter = HandPoseNetwork(build_hand_pose_network(record), statistics)
    with pytest.raises(InputError, match="sees no pictures"):
        HandJointPredictor(lifter, record)


# Files -----------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    record = record_of(SMALL, JointStatistics.EGOEXO4D, sides="both", crops="ego-exo4d")
    path = tmp_path / "potter.safetensors"
    save_model(path, build_hand_pose_network(record), None, record, half=False)
    return path


def test_predict_writes_skeleton_views_and_numbers(weights, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", photo[:, :, ::-1])
    words = ["predict", "photo.png", "--task", "hand", "--model", str(weights)]
    assert main([*words, "--boxes", "40,30,60,80;90,20,50,50", "--side", "left"]) == 0
    assert "no glb, obj" in capsys.readouterr().err
    names = ["photo.json", "photo.npz", "photo_overlay.png", "photo_views.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    first, second = json.loads(Path("out/photo.json").read_text())["people"]
    assert (first["side"], first["skeleton"], len(second["joints"])) == ("left", "hand21", 21)
    assert len(first["joints"][3]["camera"]) == 3
    people = kinemesh.load(weights, "cpu").predict(photo, "40,30,60,80;90,20,50,50", "left")
    for read, file in ((read_people_json, "photo.json"), (read_people_npz, "photo.npz")):
        for own, back in zip(people, read(Path("out") / file), strict=True):
            np.testing.assert_allclose(back.joints, own.joints, atol=1e-5)
    overlay, views = (cv2.imread(f"out/photo_{name}.png") for name in ("overlay", "views"))
    assert overlay.shape == (384, 512, 3)
    assert views.shape[0] == 2 * 256
    # a folder that holds results beside its photo has one photo
    Path("photo_views.png").write_bytes(Path("out/photo_views.png").read_bytes())
    words = ["predict", ".", "--model", str(weights), "--detector", "none"]
    assert main([*words, "--out", "again", "--save", "json"]) == 0
    assert [path.name for path in Path("again").iterdir()] == ["photo.json"]


def test_options_that_mean_nothing_are_refused(weights, photo, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.png", photo)
    words = ["predict", "photo.png", "--model", str(weights)]
    for wrong, said in (
        (["--side", "auto"], "cannot tell left hands"),
        (["--save", "obj"], "'obj' holds a mesh"),
        (["--flip-test"], "2D keypoints"),
        (["--task", "body"], "recovers a hand"),
    ):
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not Path("out").exists()
