"""MPII from HRNet's JSON files and from the official MATLAB file."""

import json

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.data.mpii import MpiiKeypoints, read_official, read_rows
from kinemesh.errors import InputError
from kinemesh.skeletons import MPII16

SMALL = KeypointOptions(size=(48, 48))


def rows():
    """Three people in two pictures; the second lacks a joint."""
    rng = np.random.RandomState(0)
    people = []
    for image, center, scale in (
        ("a.png", (60.0, 50.0), 0.4),
        ("a.png", (30.0, 40.0), 0.5),
        ("b.png", (70.0, 45.0), 0.3),
    ):
        joints = (np.array(center) + rng.uniform(-20, 20, (16, 2))).round(3)
        people.append(
            {
                "image": image,
                "center": list(center),
                "scale": scale,
                "joints": joints.tolist(),
                "joints_vis": [1] * 16,
            }
        )
    people[1]["joints"][9], people[1]["joints_vis"][9] = [-1.0, -1.0], 0
    return people


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mpii")
    for name in ("annot", "images"):
        (folder / name).mkdir()
    rng = np.random.RandomState(0)
    for name in ("a.png", "b.png"):
        picture = rng.randint(0, 256, (100, 120, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / name), picture)
    (folder / "annot" / "train.json").write_text(json.dumps(rows()))
    test = [{key: row[key] for key in ("image", "center", "scale")} for row in rows()]
    (folder / "annot" / "test.json").write_text(json.dumps(test))
    return folder


def structs(items):
    """A MATLAB array of structures."""
    names = sorted({name for item in items for name in item})
    array = np.empty((1, len(items)), dtype=[(name, object) for name in names])
    for k, item in enumerate(items):
        for name in names:
            array[name][0, k] = item.get(name, np.zeros((0, 0)))
    return array


def official_person(row):
    points = []
    for joint, ((x, y), seen) in enumerate(zip(row["joints"], row["joints_vis"], strict=True)):
        if seen:
            # the file leaves the flag of some joints empty, and calls others hidden
            flag = np.zeros((0, 0)) if joint in (8, 9) else joint % 2
            points.append({"x": x, "y": y, "id": joint, "is_visible": flag})
    x, y = row["center"]
    place = structs([{"x": x, "y": y}])
    points = structs([{"point": structs(points)}])
    return {"scale": row["scale"], "objpos": place, "annopoints": points, "x1": 1}


@pytest.fixture
def official(folder):
    """The same people in the structure of ``mpii_human_pose_v1_u12_1.mat``."""
    first, second, third = map(official_person, rows())
    head_only = {"x1": 3, "scale": np.zeros((0, 0))}
    images = [
        {"image": structs([{"name": "a.png"}]), "annorect": structs([first, head_only, second])},
        {"image": structs([{"name": "none.png"}])},
        {"image": structs([{"name": "b.png"}]), "annorect": structs([third])},
        {
            "image": structs([{"name": "b.png"}]),
            "annorect": structs([{name: third[name] for name in ("scale", "objpos")}]),
        },
    ]
    release = {"annolist": structs(images), "img_train": np.array([[1, 1, 1, 0]])}
    path = folder / "mpii_human_pose_v1_u12_1.mat"
    savemat(path, {"RELEASE": release})
    yield path
    path.unlink()


def test_people_of_the_json(folder):
    dataset = MpiiKeypoints(folder, options=SMALL)
    assert len(dataset) == 3
    assert dataset.skeleton == MPII16
    first = dataset.records[0]
    np.testing.assert_allclose(first.placement.center, [59, 55])  # 15 * 0.4 lower, from zero
    np.testing.assert_allclose(first.placement.scale, [0.5, 0.5])
    sample = dataset[1]
    assert sample["image"].shape == (3, 48, 48)
    assert sample["target"].shape == (16, 2)
    assert sample["weight"][9] == 0
    np.testing.assert_allclose(sample["target"][9], [-2 / 48] * 2)
    assert [int(dataset[k]["image_id"]) for k in range(3)] == [0, 0, 1]
    assert [int(dataset[k]["annotation_id"]) for k in range(3)] == [0, 1, 2]
    assert dataset.augmentation.rotation_deg == 30


def test_people_without_a_place_keep_their_scale(folder, tmp_path):
    row = rows()[0] | {"center": [-1.0, -1.0]}
    path = tmp_path / "valid.json"
    path.write_text(json.dumps([row]))
    place = MpiiKeypoints(path, folder / "images").records[0].placement
    np.testing.assert_allclose(np.concatenate(place), [-2, -2, 0.4, 0.4])


def test_test_files_have_no_joints(folder):
    dataset = MpiiKeypoints(folder, split="test", options=SMALL)
    assert len(dataset) == 3
    assert dataset[0]["weight"].sum() == 0


def test_official_file(folder, official):
    ours, json_rows = read_official(official), read_rows(folder / "annot" / "train.json")
    assert len(ours) == len(json_rows) == 3
    for person, expected in zip(ours, json_rows, strict=True):
        assert (person.image, person.row) == (expected.image, expected.row)
        assert person.scale == expected.scale
        for name in ("center", "joints", "visible"):
            np.testing.assert_array_equal(getattr(person, name), getattr(expected, name))
    (tested,) = read_official(official, "test")
    assert tested.image == "b.png"
    assert tested.visible.sum() == 0
    dataset = MpiiKeypoints(official, options=SMALL)
    np.testing.assert_array_equal(
        dataset[2]["image"], MpiiKeypoints(folder, options=SMALL)[2]["image"]
    )
    with pytest.raises(InputError, match="knows 'train' and 'test', found 'valid'"):
        read_official(official, "valid")


def test_variation(folder):
    options = KeypointOptions(True, size=(48, 48))
    dataset, other = MpiiKeypoints(folder, options=options), MpiiKeypoints(folder, options=options)
    other[2]
    np.testing.assert_array_equal(dataset[0]["image"], other[0]["image"])
    dataset.set_step(3)
    assert float(dataset[0]["scale"][0]) != float(other[0]["scale"][0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "expected a list of people, found dict"),
        ("[1]", "row 0: expected an object with 'image'"),
        (json.dumps([{"image": "a.png", "scale": 1.0}]), "row 0: there is no 'center'"),
        (json.dumps([rows()[0] | {"joints": [[1, 2]]}]), "row 0: expected 'joints' of 16 x 2"),
        (json.dumps([rows()[0] | {"scale": [1.0]}]), "row 0: expected 'scale' of single"),
        ("[", "expected JSON"),
    ],
)
def test_damaged_rows(tmp_path, content, message):
    path = tmp_path / "train.json"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_rows(path)


def test_missing_and_foreign_files(folder, tmp_path):
    with pytest.raises(InputError, match=r"expected annot/valid\.json"):
        MpiiKeypoints(folder, split="valid")
    path = tmp_path / "train.json"
    path.write_text(json.dumps(rows()))
    with pytest.raises(InputError, match="Name the folder of the pictures"):
        MpiiKeypoints(path)
    with pytest.raises(InputError, match=r"row 0: cannot read .*a.png"):
        MpiiKeypoints(path, tmp_path)[0]
    savemat(tmp_path / "other.mat", {"x": 1})
    with pytest.raises(InputError, match="expected MPII's 'RELEASE', found x"):
        read_official(tmp_path / "other.mat")
    (tmp_path / "text.mat").write_text("no MATLAB at all, but long enough to hold a header " * 9)
    with pytest.raises(InputError, match="expected MATLAB's version 5"):
        read_official(tmp_path / "text.mat")
    with pytest.raises(InputError, match="Cannot read"):
        read_official(tmp_path / "none.mat")


def test_real_rows(shared):
    dataset = MpiiKeypoints(shared / "data" / "mmpose_tests" / "mpii" / "test_mpii.json")
    assert len(dataset) == 5
    sample = dataset[0]
    inside = (sample["target"] > 0).all(dim=1) & (sample["target"] < 1).all(dim=1)
    assert inside[sample["weight"][:, 0] > 0].all()
