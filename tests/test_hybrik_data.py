"""Readers of HybrIK's JSON forms, their filters, the mix, and what variation does to labels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.data.hybrik_augmentation import FULLY_LABELLED, LABELLED_2D, HybrikVariation
from kinemesh.data.hybrik_crop import MEAN, STD, crop_affine, move_points, square_of
from kinemesh.data.hybrik_dataset import HybrikMix, open_hybrik
from kinemesh.data.hybrik_json import FILES, read_hybrik
from kinemesh.data.hybrik_labels import SOURCES, targets_of, varied
from kinemesh.data.hybrik_records import collate_hybrik
from kinemesh.data.hybrik_targets import DEPTH_UNIT_M, UNKNOWN_CAMERA, camera_target
from kinemesh.data.synthetic.hybrik import SyntheticHybrik, load_anny_hybrik
from kinemesh.errors import InputError
from tests.hybrik_files import HEIGHT, SAMPLES, WIDTH, body, write_data

KNOWN = {"h36m": 24, "3dpw": 24, "3dhp": 12, "coco": 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("hybrik"))


@pytest.mark.parametrize("name", KNOWN)
def test_each_form_is_read(name, data):
    dataset = open_hybrik(f"{name}-hybrik:{data / name}", split="train")
    assert len(dataset) == SAMPLES
    sample = dataset[3]
    assert sample["image"].shape == (3, 256, 256)
    labelled = (sample["uvd_weight"][:, 0] > 0) | (sample["uvd"].abs().sum(1) > 0)
    assert int(labelled.sum()) <= KNOWN[name]
    assert bool(sample["xyz_weight"].any()) == (name != "coco")
    assert bool(sample["smpl_weight"]) == (name in {"h36m", "3dpw"})
    assert bool(sample["twist_weight"].any()) == (name == "h36m")
    if name == "coco":
        assert sample["uvd_weight"][:, 2].sum() == 0
        assert sample["camera_scale"] == 1


def test_units_of_h36m_and_3dpw_agree(data):
    """Millimetres and metres of the same people give the same targets but for the box."""
    first, second = (
        open_hybrik(f"{name}-hybrik:{data / name}", split="train").table.label(2)
        for name in ("h36m", "3dpw")
    )
    for field in ("places", "points", "joints_17", "theta", "betas", "corners"):
        np.testing.assert_allclose(getattr(first, field), getattr(second, field), atol=2e-4)
    assert first.source.box_factor == 1.0
    assert second.source.box_factor == 1.25
    assert first.activity == 2


def test_targets_project_and_pose_back(data):
    """The camera target explains the places; quaternions and shape give the joints."""
    sample = open_hybrik(f"h36m-hybrik:{data / 'h36m'}", split="train")[1]
    distance = 1000 / (256 * sample["camera_scale"])
    depth = sample["uvd"][:24, 2:] * DEPTH_UNIT_M + distance
    x = sample["uvd"][:24, :2] * 0.256 * depth - sample["camera_shift"]
    seen = sample["uvd_weight"][:24, 0] > 0
    # the picture's own camera is not the one with a focal length of 1000 for 256 px
    assert (x - sample["xyz"][:, :2] * DEPTH_UNIT_M)[seen].abs().mean() < 0.08
    mesh = body(data / "assets").posed_by_quaternions(sample["theta"][None], sample["betas"][None])
    torch.testing.assert_close(mesh.joints[0], sample["xyz"] * DEPTH_UNIT_M, rtol=0, atol=1e-4)
    torch.testing.assert_close(mesh.regressed[0], sample["joints_17"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("flip", [False, True])
def test_labels_turn_and_flip_with_the_body(flip, data):
    """Posing by varied rotations gives the varied joints: labels stay of one body."""
    smpl = body(data / "assets")
    label = read_hybrik("h36m", data / "h36m").label(5)
    # only the mean shape of the made-up body is nearly its own mirror image
    plain = smpl.posed_by_axis_angles(
        torch.from_numpy(label.theta)[None].float(), torch.zeros(1, 10)
    )
    label = replace(label, points=plain.joints[0].double().numpy(), betas=np.zeros(10))
    variation = HybrikVariation(rotation_deg=25.0, flip=flip)
    moved = varied(label, variation, WIDTH)
    fields = targets_of(moved, np.eye(2, 3))
    mesh = smpl.posed_by_quaternions(fields["theta"][None], fields["betas"][None])
    error = (mesh.joints[0] - fields["xyz"] * DEPTH_UNIT_M).norm(dim=-1).mean()
    assert error < (0.03 if flip else 1e-4)
    still = (mesh.joints[0] - targets_of(label, np.eye(2, 3))["xyz"] * 2.2).norm(dim=-1).mean()
    assert still > 0.15


def test_two_flips_are_none(data):
    for name in SOURCES:
        label = read_hybrik(name, data / name).label(0)
        twice = varied(
            varied(label, HybrikVariation(flip=True), WIDTH), HybrikVariation(flip=True), WIDTH
        )
        for field in ("corners", "places", "visible", "twist", "twist_weight"):
            np.testing.assert_allclose(getattr(twice, field), getattr(label, field), atol=1e-9)
        if label.theta is not None:
            np.testing.assert_allclose(twice.theta, label.theta)
        if label.points is not None:
            np.testing.assert_allclose(twice.points, label.points, atol=1e-9)


def test_the_crop_shows_what_the_places_say(data, tmp_path):
    """A white dot at a joint is at its target's place, turned, zoomed and mirrored."""
    import cv2

    from kinemesh.data.hybrik_crop import warp

    label = read_hybrik("h36m", data / "h36m").label(0)
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    x, y = (label.corners[:2] + label.corners[2:]) / 2 + [6, -9]
    cv2.circle(picture, (round(x), round(y)), 2, (255, 255, 255), -1)
    places = label.places.copy()
    places[16, :2] = round(x), round(y)
    label = replace(label, places=places)
    moved = varied(label, HybrikVariation(rotation_deg=-40.0, flip=True), WIDTH)
    center, side = square_of(moved.corners, 1.0)
    affine = crop_affine(center, 0.8 * side, -40.0)
    crop = warp(picture[:, ::-1], affine)[..., 0].astype(float)
    rows, columns = np.nonzero(crop > 120)
    target = move_points(moved.places, affine)[17, :2]  # left became right
    np.testing.assert_allclose([columns.mean(), rows.mean()], target, atol=1.5)


def test_variation_follows_seed_and_step_alone(data):
    spec = f"3dpw-hybrik:{data / '3dpw'}"
    one, other = (open_hybrik(spec, split="train", train=True, seed=3) for _ in range(2))
    other[0]
    torch.testing.assert_close(one[4], other[4], rtol=0, atol=0)
    one.set_step(7)
    assert (one[4]["image"] != other[4]["image"]).any()
    plain = open_hybrik(spec, split="train")[4]
    assert (plain["image"] != other[4]["image"]).any()


def test_draws_have_the_published_spread():
    rng = np.random.RandomState(0)
    draws = [FULLY_LABELLED.draw(rng) for _ in range(4000)]
    scales = np.array([draw.scale for draw in draws])
    turns = np.array([draw.rotation_deg for draw in draws])
    assert (scales.min(), scales.max()) == (0.7, 1.3)
    assert 0.28 < np.mean((scales == 0.7) | (scales == 1.3)) < 0.36  # beyond one deviation
    assert np.abs(turns).max() == 60
    assert 0.37 < np.mean(turns == 0) < 0.43
    assert 0.22 < np.mean([draw.flip for draw in draws]) < 0.28
    colors = np.array([draw.color for draw in draws])
    assert 0.8 <= colors.min() < colors.max() <= 1.2
    corners = np.array([20.0, 10.0, 220.0, 310.0])
    found = [LABELLED_2D.draw_occluder(rng, corners, 240, 320) for _ in range(500)]
    shares = np.array([w * h for _, _, w, h in found]) / (200 * 300)
    assert 0.5 < shares.max() < 0.7
    assert all(x >= 0 and y >= 0 and x + w < 240 and y + h < 320 for x, y, w, h in found)


def test_the_mix_draws_by_share_and_wraps_round(data):
    parts = [
        open_hybrik(f"{name}-hybrik:{data / name}", split="train") for name in ("h36m", "coco")
    ]
    parts[1].table = replace(parts[1].table, pictures=parts[1].table.pictures[:3])
    mix = HybrikMix(parts, [0.3, 0.7], seed=1)
    assert len(mix) == 2 * SAMPLES
    drawn = []
    for step in range(200):
        mix.set_step(step)
        drawn += [(*mix.choose(index)[:2], index) for index in range(len(mix))]
    assert 0.66 < np.mean([part for part, _, _ in drawn]) < 0.74
    for part, row, index in drawn:
        if part == 0 or index < 15:
            assert row == index % (SAMPLES if part == 0 else 3)
    # 16 is no multiple of 3: the last position is drawn at random
    assert {row for part, row, index in drawn if part == 1 and index == 15} == {0, 1, 2}


# Filters and damage --------------------------------------------------------------------------


def edited(data, name, tmp_path, change):
    content = json.loads((data / name / FILES[name, "train"]).read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    return path


def test_published_filters(data, tmp_path):
    def drop_recording(content):
        content["images"][2]["file_name"] = "s_09_act_05_subact_02_ca_01_000001.jpg"

    def tiny_box(content):
        content["annotations"][1]["bbox"] = [3.0, 3.0, 4.9, 40.0]

    def crowd(content):
        content["annotations"][0]["iscrowd"] = 1
        content["annotations"][1]["keypoints"] = [0.0] * 51

    def unknown_twist(content):
        content["annotations"][0]["angle_twist"]["angle"][4] = -999.0

    assert len(read_hybrik("h36m", edited(data, "h36m", tmp_path, drop_recording))) == SAMPLES - 1
    assert len(read_hybrik("3dpw", edited(data, "3dpw", tmp_path, tiny_box))) == SAMPLES - 1
    assert len(read_hybrik("coco", edited(data, "coco", tmp_path, crowd))) == SAMPLES - 2
    label = read_hybrik("h36m", edited(data, "h36m", tmp_path, unknown_twist)).label(0)
    assert label.twist_weight.sum() == 2 * 22
    assert label.twist_weight[4].sum() == 0


@pytest.mark.parametrize("name", KNOWN)
def test_people_outside_of_the_picture_are_left_out_and_counted(name, data, tmp_path):
    def outside(content):
        content["annotations"][2]["bbox"] = [WIDTH + 30.0, HEIGHT + 9.0, 20.0, 40.0]
        content["annotations"][3]["bbox"] = [5.0, 5.0, 40.0, 5.5]  # flat, and in the picture

    table = read_hybrik(name, edited(data, name, tmp_path, outside))
    assert (len(table), table.outside) == (SAMPLES - 1, 1)
    for row in range(len(table)):
        square_of(table.label(row).corners)
    assert read_hybrik(name, data / name).outside == 0


def test_files_of_human36m_may_lack_the_protocol(data, tmp_path):
    content = (data / "h36m" / FILES["h36m", "train"]).read_text()
    path = tmp_path / "annotations" / "Sample_20_test_Human36M_smpl.json"
    path.parent.mkdir()
    path.write_text(content)
    assert len(read_hybrik("h36m", tmp_path, "test")) == SAMPLES
    path.unlink()
    with pytest.raises(InputError, match=r"Sample_20_test_Human36M_smpl_protocol_2\.json"):
        read_hybrik("h36m", tmp_path, "test")


def test_recordings_of_3dhps_test_set_are_known(data, tmp_path):
    def rename(content):
        content["images"][1]["file_name"] = "TS6/imageSequence/img_000007.jpg"
        content["images"][2]["file_name"] = "mpi_inf_3dhp_test_set/TS2/img_000007.jpg"
        content["annotations"][1]["activity_id"] = 4

    table = read_hybrik("3dhp", edited(data, "3dhp", tmp_path, rename))
    labels = [table.label(row) for row in range(3)]
    assert [label.sequence for label in labels] == [-1, 6, 2]
    assert [label.activity for label in labels] == [-1, 4, -1]


def test_damage_is_named(data, tmp_path):
    def without_theta(content):
        del content["annotations"][3]["thetas"]

    def short_joints(content):
        content["annotations"][1]["smpl_joints"] = [[0.0, 0.0, 1.0]] * 7

    def lost_image(content):
        content["annotations"][1]["image_id"] = 999
        content["images"].pop()

    for change, message in (
        (without_theta, "annotation 3: expected 'thetas'"),
        (short_joints, r"annotation 1: expected finite numbers of shape \(24, 3\) or \(29, 3\)"),
        (lost_image, "annotation 1: expected an image with the id 999"),
    ):
        with pytest.raises(InputError, match=message):
            read_hybrik("h36m", edited(data, "h36m", tmp_path, change))
    with pytest.raises(InputError, match="Is this the data set that it is read as"):
        read_hybrik("3dpw", data / "h36m" / FILES["h36m", "train"])
    path = tmp_path / "list.json"
    path.write_text("[1]")
    with pytest.raises(InputError, match="lists images and annotations"):
        read_hybrik("coco", path)
    with pytest.raises(InputError, match="There is no data set 'h36m-hybrik:'"):
        open_hybrik("h36m-hybrik:")
    table = read_hybrik("h36m", data / "h36m")
    lost = replace(table, pictures=(tmp_path / "no.jpg",) * len(table))
    dataset = open_hybrik(f"h36m-hybrik:{data / 'h36m'}", split="train")
    dataset.table = lost
    with pytest.raises(InputError, match=r"no\.jpg: expected the picture of a label"):
        dataset[0]


def test_a_camera_needs_two_joints():
    uvd = np.array([[0.1, 0.1, 0.0], [0.2, -0.1, 0.1], [0.0, 0.3, 0.0]])
    weight = np.ones((3, 3))
    weight[1:] = 0
    assert camera_target(uvd, uvd, weight) == UNKNOWN_CAMERA
    same = np.repeat(uvd[:1], 3, axis=0)
    assert camera_target(same, same, np.ones((3, 3))) == UNKNOWN_CAMERA


def test_check_draws_and_counts(data, tmp_path, capsys):
    out = tmp_path / "check.png"
    spec = f"3dhp-hybrik:{data / '3dhp'}"
    assert main(["data", "check", spec, "--train", "--count", "3", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "3D 3/3, rotations and shape 0/3" in printed
    assert out.stat().st_size > 10_000


# Rendered people -----------------------------------------------------------------------------


def test_rendered_people_are_labelled_consistently():
    samples = SyntheticHybrik(0, 64, length=4).__getitems__([0, 3])
    again = SyntheticHybrik(0, 64, length=4)[3]
    torch.testing.assert_close(samples[1], again, rtol=0, atol=0)
    anny = load_anny_hybrik()
    for sample in samples:
        mesh = anny.posed_by_quaternions(sample["theta"][None], sample["betas"][None])
        assert (mesh.vertices[0] - sample["vertices"]).norm(dim=-1).mean() < 0.02
        assert (mesh.joints[0] - sample["joints_17"]).norm(dim=-1).mean() < 0.015
    batch = collate_hybrik(samples)
    assert batch["uvd"].shape == (2, 29, 3)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    picture = samples[0]["image"] * std + mean
    assert picture.min() > -1e-5
    assert picture.max() < 1 + 1e-5


def test_collate_refuses_what_differs():
    with pytest.raises(InputError, match="at least one sample"):
        collate_hybrik([])
