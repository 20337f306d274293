"""FreiHAND in its native layout, on rendered hands."""

import json
import pickle

import numpy as np
import pytest
import torch

from kinemesh.data import freihand
from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.mesh_crop import CropParameters
from kinemesh.data.mesh_dataset import MeshOptions
from kinemesh.data.records import SAMPLE_FIELDS
from kinemesh.errors import InputError
from tests.mesh_records import write_freihand

CAPTURES, VERSIONS = 3, 2


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("freihand")
    return folder, write_freihand(folder, CAPTURES, VERSIONS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def dataset(written, cache):
    return FreiHandDataset(written[0], cache=cache)


@pytest.fixture
def folder(tmp_path):
    """A set that a test may damage."""
    write_freihand(tmp_path / "f", CAPTURES, VERSIONS)
    return tmp_path / "f"


def assert_placed(joints, places):
    """2D joints are truncated towards zero, plus one: up to 1 px right or below, 2 if negative."""
    offset = joints[:, :2] - places
    assert offset.min() > -1e-3
    assert (offset <= torch.where(places < 0, 2.0, 1.0) + 1e-3).all()


def test_labels_are_those_of_the_hands(dataset, written):
    assert len(dataset) == CAPTURES * VERSIONS
    for index in range(len(dataset)):
        sample, truth = dataset[index], written[1][index % CAPTURES]
        torch.testing.assert_close(
            sample["joints_3d"][:, :3], truth["joints_3d"][:, :3], rtol=0, atol=1e-6
        )
        assert sample["joints_3d"][:, 3].all()
        torch.testing.assert_close(sample["vertices"], truth["vertices"][:778], rtol=0, atol=1e-6)
        torch.testing.assert_close(sample["root_m"], truth["root_m"], rtol=0, atol=1e-6)
        zoom = 224 / 180  # the crop is the middle 180 of 224 pixels
        torch.testing.assert_close(sample["focal_px"], truth["focal_px"] * zoom)
        places = (truth["joints_2d"][:, :2] - 112) * zoom + 112
        assert_placed(sample["joints_2d"], places)
        assert sample["has_2d"] == sample["has_3d"] == sample["has_mesh"] == 1
        rng = np.random.default_rng(index % CAPTURES)
        pose, betas = np.split(rng.normal(0, 0.3, 61)[:58], [48])
        np.testing.assert_allclose(sample["pose"], pose, atol=1e-6)
        np.testing.assert_allclose(sample["betas"], betas, atol=1e-6)


def test_picture_is_the_middle_and_every_version_is_its_own(dataset, written):
    import cv2

    truth = (written[1][0]["image"][:, 22:202, 22:202] * 255).permute(1, 2, 0).numpy()
    expected = cv2.resize(truth, (224, 224)) / 255
    bright, dark = (dataset[i]["image"].permute(1, 2, 0).numpy() for i in (0, CAPTURES))
    assert np.abs(bright - expected).mean() < 0.02  # JPEG
    assert np.abs(dark - 0.75 * expected).mean() < 0.02


@pytest.mark.parametrize("train", [False, True])
def test_camera_projects_joints_of_turned_crops(written, cache, train):
    options = MeshOptions(train=train, view=CropParameters(rotation_deg=70.0, scale=0.8))
    dataset = FreiHandDataset(written[0], options=options, cache=cache)
    for index in range(len(dataset)):
        sample = dataset[index]
        points = sample["joints_3d"][:, :3] + sample["root_m"]
        pixels = sample["focal_px"] * points[:, :2] / points[:, 2:] + 112
        assert_placed(sample["joints_2d"], pixels)


def test_evaluation_keeps_its_order_without_labels(written, cache):
    dataset = FreiHandDataset(written[0], "evaluation", cache=cache)
    assert len(dataset) == CAPTURES
    assert [dataset.read(i).key for i in range(3)] == [f"{i:08d}.jpg" for i in range(3)]
    sample = dataset[1]
    assert sample["has_2d"] == sample["has_3d"] == sample["has_mesh"] == 0
    assert sample["vertices"].shape == (0, 3)
    assert set(sample) == set(SAMPLE_FIELDS)


def test_evaluation_with_its_later_labels(tmp_path):
    truth = write_freihand(tmp_path, 2, 1, evaluation_labels=True)
    dataset = FreiHandDataset(tmp_path, "evaluation", cache=tmp_path / "cache")
    sample = dataset[1]
    torch.testing.assert_close(sample["vertices"], truth[1]["vertices"][:778], rtol=0, atol=1e-6)
    assert sample["has_3d"] == sample["has_mesh"] == 1
    assert not sample["pose"].any()


def test_vertices_are_optional(tmp_path):
    write_freihand(tmp_path, 2, 1, vertices=False)
    sample = FreiHandDataset(tmp_path, cache=tmp_path / "cache")[0]
    assert sample["vertices"].shape == (0, 3)
    assert sample["has_mesh"] == 1


def test_other_folder_name(folder):
    (folder / "training" / "rgb").rename(folder / "training_rgb")
    assert len(FreiHandDataset(folder, cache=folder / "cache")) == CAPTURES * VERSIONS


def test_tables_are_parsed_once(written, tmp_path, monkeypatch):
    first = FreiHandDataset(written[0], cache=tmp_path)[0]
    monkeypatch.setattr(freihand, "_parse_table", lambda *_: pytest.fail("parsed again"))
    second = FreiHandDataset(written[0], cache=tmp_path)
    assert torch.equal(first["vertices"], second[0]["vertices"])
    pickled = pickle.dumps(second)
    assert len(pickled) < 3000
    assert torch.equal(pickle.loads(pickled)[0]["vertices"], first["vertices"])


def test_a_changed_file_is_parsed_anew(folder):
    before = FreiHandDataset(folder, cache=folder / "cache")[0]["betas"]
    table = json.loads((folder / "training_mano.json").read_text())
    table[0][0][48] += 1.0
    (folder / "training_mano.json").write_text(json.dumps(table))
    after = FreiHandDataset(folder, cache=folder / "cache")[0]["betas"]
    assert (after - before)[0] == pytest.approx(1.0, abs=1e-5)


def test_an_unwritable_cache_is_done_without(written, tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert FreiHandDataset(written[0], cache=tmp_path / "file")[0]["has_3d"] == 1


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_elements_do_not_depend_on_where_chunks_end(tmp_path, monkeypatch, chunk):
    values = [0.0253, [1.5, -2e-7, [3]], [], 12, [[0.5]]]
    path = tmp_path / "x.json"
    monkeypatch.setattr(freihand, "_CHUNK", chunk)
    for text in (json.dumps(values), json.dumps(values, indent=1) + "\n"):
        path.write_text(text)
        assert list(freihand._elements(path)) == values
    path.write_text("[]")
    assert list(freihand._elements(path)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "training_K.json").unlink(), "There is no file .*training_K.json"),
        (lambda f: (f / "training_mano.json").unlink(), "There is no file .*training_mano.json"),
        (
            lambda f: (f / "training_xyz.json").write_text("[[[0, 0, 0]]]"),
            r"training_xyz.json', entry 0: expected \(21, 3\) finite numbers",
        ),
        (
            lambda f: (f / "training_K.json").write_text(
                json.dumps(json.loads((f / "training_K.json").read_text())[:2])
            ),
            "training_xyz.json': expected 2 entries as in training_K.json, found 3",
        ),
        (
            lambda f: (f / "training_xyz.json").write_text(
                (f / "training_xyz.json").read_text()[:-300]
            ),
            "training_xyz.json': expected a JSON list of numbers, found a damaged or cut entry",
        ),
        (
            lambda f: (f / "training_xyz.json").write_text(
                (f / "training_xyz.json").read_text().replace("[", "{", 2).replace("{", "[", 1)
            ),
            "training_xyz.json': expected a JSON list of numbers, found a damaged or cut entry",
        ),
        (lambda f: (f / "training_K.json").write_text("{}"), "expected a JSON list, found '{}'"),
        (lambda f: (f / "training_K.json").write_text("[]"), "at least one entry"),
        (
            lambda f: (f / "training_K.json").write_bytes(b"\xff\xfe"),
            "training_K.json': expected UTF-8 text",
        ),
        (
            lambda f: (f / "training_K.json").write_bytes(b"[[[1, 0, 0], \xff"),
            "training_K.json': expected UTF-8 text",
        ),
        (
            lambda f: (f / "training_K.json").write_text("[" * 100_000),
            "training_K.json': expected a JSON list of numbers, found a damaged or cut entry",
        ),
        (
            lambda f: (f / "training_K.json").write_text("[" + "1" * 5000 + "]"),
            "training_K.json': expected a JSON list of numbers, found a damaged or cut entry",
        ),
        (
            lambda f: (f / "training_K.json").write_text("[" + "1" * 400 + "]"),
            r"training_K.json', entry 0: expected \(3, 3\) finite numbers",
        ),
        (
            lambda f: (f / "training_xyz.json").write_text(json.dumps([[[0] * 3] * 21] * 3)),
            "training_.*json', entry 0: '2d_joints' of the label: expected finite numbers",
        ),
        (
            lambda f: (f / "training" / "rgb" / "00000000.jpg").unlink(),
            "Cannot read .*00000000.jpg",
        ),
        (
            lambda f: (f / "training" / "rgb" / "00000000.jpg").write_bytes(b""),
            "00000000.jpg': expected a complete JPEG, found 0 bytes",
        ),
        (
            lambda f: (f / "training").rename(f / "other"),
            "expected FreiHAND's 'training/rgb', found no such folder",
        ),
    ],
)
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        FreiHandDataset(folder, cache=folder / "cache")[0]


def test_unknown_split(folder):
    with pytest.raises(InputError, match="'training' or 'evaluation', found 'test'"):
        FreiHandDataset(folder, "test")
