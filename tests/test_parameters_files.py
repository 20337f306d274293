import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemesh.bodies.parameters import BodyParameters, place
from kinemesh.bodies.posable import posable_body
from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.formats.people_json import encode_people, read_people_json, write_people_json
from kinemesh.formats.people_npz import read_people_npz, write_people_npz
from kinemesh.geometry.rotations import axis_angle_to_matrix
from tests.fake_predictor import fake_people

SIZE = (300, 200)


@pytest.fixture(scope="module")
def hand():
    return posable_body("anny-hand")


def fitted_people(hand):
    """The right and the left hand of `fake_people`, with parameters."""
    generator = torch.Generator().manual_seed(0)
    vectors = 0.5 * torch.randn(2, len(hand.bones), 3, generator=generator)
    rotations = axis_angle_to_matrix(vectors).numpy()
    shapes = torch.randn(2, 32, generator=generator).numpy()
    return [
        replace(
            person,
            parameters=BodyParameters(
                "anny-hand",
                rotations[row],
                shapes[row],
                np.array([0.1, -0.2, 1.5 + row], np.float32),
                1.25 + row,
                person.side,
            ),
        )
        for row, person in enumerate(fake_people("hand"))
    ]


def test_json_holds_what_is_needed_to_pose(hand, tmp_path):
    people = fitted_people(hand)
    write_people_json(tmp_path / "hands.json", people, SIZE)
    found = read_people_json(tmp_path / "hands.json")
    expected = place(hand, [one.parameters for one in people])
    posed = place(hand, [one.parameters for one in found])
    assert (posed.vertices - expected.vertices).norm(dim=-1).max() < 5e-5
    assert [one.parameters.residual_mm for one in found] == [1.25, 2.25]
    assert [one.parameters.side for one in found] == ["right", "left"]
    content = json.loads((tmp_path / "hands.json").read_text())
    assert content["version"] == 1
    assert content["bodies"]["anny-hand"]["bones"] == list(hand.bones)
    assert len(content["people"][0]["parameters"]["rotations_rad"]) == len(hand.bones)


def test_npz_holds_parameters_bit_for_bit(hand, tmp_path):
    people = fitted_people(hand)
    write_people_npz(tmp_path / "hands.npz", people, SIZE)
    for one, found in zip(people, read_people_npz(tmp_path / "hands.npz"), strict=True):
        for name, value in vars(one.parameters).items():
            np.testing.assert_array_equal(getattr(found.parameters, name), value)
    with np.load(tmp_path / "hands.npz") as file:
        assert file["parameters_rotations"].shape == (2, 22, 3, 3)
        assert tuple(file["parameters_bones"]) == hand.bones


def test_someone_without_parameters_has_none_when_read(hand, tmp_path):
    first, second = fitted_people(hand)
    people = [replace(first, parameters=None), second]
    write_people_npz(tmp_path / "hands.npz", people, SIZE)
    write_people_json(tmp_path / "hands.json", people, SIZE)
    for found in (
        read_people_npz(tmp_path / "hands.npz"),
        read_people_json(tmp_path / "hands.json"),
    ):
        assert found[0].parameters is None
        assert found[1].parameters.body == "anny-hand"


def test_files_without_parameters_are_as_before(tmp_path):
    people = fake_people("hand")
    content = json.loads(encode_people(people, SIZE))
    assert "bodies" not in content
    assert all("parameters" not in entry for entry in content["people"])
    write_people_npz(tmp_path / "hands.npz", people, SIZE)
    with np.load(tmp_path / "hands.npz") as file:
        assert not [name for name in file.files if name.startswith("parameters")]
    assert read_people_npz(tmp_path / "hands.npz")[0].parameters is None


def test_parameters_of_two_bodies_are_not_one_npz(hand, tmp_path):
    first, second = fitted_people(hand)
    other = replace(second.parameters, body="mano", rotations=first.parameters.rotations[:16])
    with pytest.raises(InputError, match="parameters of one body"):
        write_people_npz(tmp_path / "a.npz", [first, replace(second, parameters=other)], SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("spoil", [{"rotations_rad": [[1, 2]]}, {"shape": "long"}, {"side": None}])
def test_damaged_parameters_are_refused(spoil, hand, tmp_path):
    content = json.loads(encode_people(fitted_people(hand), SIZE))
    record = content["people"][0]["parameters"]
    for key, value in spoil.items():
        if value is None:
            del record[key]
        else:
            record[key] = value
    (tmp_path / "hands.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="a field is missing or wrong"):
        read_people_json(tmp_path / "hands.json")


@pytest.mark.slow
@pytest.mark.parametrize(("task", "photo"), [("hand", "hand.jpg"), ("body", "astronaut.png")])
def test_predict_fits_the_shipped_bodies(task, photo, tmp_path, pytestconfig):
    path = pytestconfig.rootpath / "examples" / photo
    options = ["--task", task, "--parameters", "--save", "json,npz", "--out", str(tmp_path)]
    options += ["--detector", "none"]
    assert main(["predict", str(path), *options]) == 0
    (person,) = read_people_json(tmp_path / f"{path.stem}.json")
    body = posable_body(f"anny-{task}")
    apart = place(body, [person.parameters]).vertices[0].numpy() - person.vertices
    residual_mm = 1000 * np.linalg.norm(apart, axis=1).mean()
    assert residual_mm == pytest.approx(person.parameters.residual_mm, abs=0.05)
    assert residual_mm < {"hand": 2, "body": 12}[task]
