import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh

import kinemesh
from kinemesh.errors import InputError
from kinemesh.formats.glb import encode_glb, to_y_up, vertex_normals
from kinemesh.formats.obj import encode_obj
from kinemesh.formats.people_json import read_people_json, write_people_json
from kinemesh.formats.people_npz import read_people_npz, write_people_npz
from kinemesh.inference.person import Person
from kinemesh.skeletons import get_skeleton
from tests.fake_predictor import fake_people, spot_photo

SIZE = (300, 200)
ARRAYS = ("vertices", "faces", "joints", "joints_px", "joint_confidence")


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return fake_people()


def assert_same(found: list[Person], expected: list[Person], atol: dict[str, float]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for name in ARRAYS:
            x, y = getattr(a, name), getattr(b, name)
            assert x.dtype == y.dtype
            np.testing.assert_allclose(x, y, atol=atol.get(name, 0), rtol=0)
        assert (a.skeleton, a.side, a.camera) == (b.skeleton, b.side, b.camera)
        assert a.box_px == pytest.approx(b.box_px)
        assert a.score == pytest.approx(b.score, abs=1e-4)


class TestJson:
    def test_round_trip(self, tmp_path: Path, people: list[Person]) -> None:
        write_people_json(tmp_path / "a.json", people, SIZE, "photo.jpg")
        metres, pixels = 0.6e-5, 0.6e-2
        limits = {"vertices": metres, "joints": metres, "joints_px": pixels}
        assert_same(
            read_people_json(tmp_path / "a.json"), people, limits | {"joint_confidence": 0.6e-4}
        )

    def test_says_what_it_holds(self, tmp_path: Path, people: list[Person]) -> None:
        write_people_json(tmp_path / "a.json", people, SIZE, "photo.jpg")
        content = json.loads((tmp_path / "a.json").read_text())
        assert (content["format"], content["version"]) == ("kinemesh.people", 1)
        assert content["image"] == {"file": "photo.jpg", "width": 300, "height": 200}
        names = [joint["name"] for joint in content["people"][0]["joints"]]
        assert names == list(get_skeleton("hand21").joints)
        assert content["skeletons"]["hand21"]["parents"][0] == -1
        assert "z forward" in content["frames"]["camera"]
        assert len(content["meshes"]) == 2  # the right hand's faces and the left hand's

    def test_without_mesh_and_without_people(self, tmp_path: Path, people: list[Person]) -> None:
        write_people_json(tmp_path / "a.json", people, SIZE, mesh=False)
        (first, _) = read_people_json(tmp_path / "a.json")
        assert first.vertices.shape == first.faces.shape == (0, 3)
        write_people_json(tmp_path / "a.json", [], SIZE)
        assert read_people_json(tmp_path / "a.json") == []

    def test_a_joint_takes_one_line(self, tmp_path: Path, people: list[Person]) -> None:
        write_people_json(tmp_path / "a.json", people[:1], SIZE, mesh=False)
        lines = (tmp_path / "a.json").read_text().splitlines()
        assert sum('"name": "wrist"' in line and '"confidence"' in line for line in lines) == 1
        assert len(lines) < 80

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("{", "Expected JSON"),
            ("[]", "Expected a file of format 'kinemesh.people'"),
            ('{"format": "kinemesh.people", "version": 9}', "version 9"),
            ('{"format": "kinemesh.people", "version": 1}', "missing or wrong"),
        ],
    )
    def test_refusals(self, tmp_path: Path, content: str, message: str) -> None:
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_people_json(tmp_path / "a.json")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="Cannot read"):
            read_people_json(tmp_path / "gone.json")


class TestNpz:
    def test_round_trip_is_exact(self, tmp_path: Path, people: list[Person]) -> None:
        write_people_npz(tmp_path / "a.npz", people, SIZE)
        assert_same(read_people_npz(tmp_path / "a.npz"), people, {})

    def test_nobody(self, tmp_path: Path) -> None:
        write_people_npz(tmp_path / "a.npz", [], SIZE)
        assert read_people_npz(tmp_path / "a.npz") == []

    def test_refusals(self, tmp_path: Path, people: list[Person]) -> None:
        with pytest.raises(InputError, match="one topology"):
            write_people_npz(tmp_path / "a.npz", [people[0], fake_people("body")[0]], SIZE)
        assert not list(tmp_path.iterdir())
        (tmp_path / "b.npz").write_text("no zip")
        with pytest.raises(InputError, match=r"Expected an \.npz"):
            read_people_npz(tmp_path / "b.npz")
        with pytest.raises(InputError, match="Cannot read"):
            read_people_npz(tmp_path / "gone.npz")
        np.savez(tmp_path / "c.npz", vertices=np.zeros(3))
        with pytest.raises(InputError, match="Expected a file of format"):
            read_people_npz(tmp_path / "c.npz")


class TestGlb:
    def test_opens_upright_with_named_people(self, people: list[Person]) -> None:
        scene = trimesh.load(
            trimesh.util.wrap_as_stream(encode_glb(people)), file_type="glb", process=False
        )
        assert set(scene.geometry) == {"hand_0_right", "hand_1_left"}
        assert {"hand_0_right", "hand_1_left"} <= set(scene.graph.nodes_geometry)
        for mesh, person in zip(scene.geometry.values(), people, strict=True):
            expected = person.vertices * [1, -1, -1]
            np.testing.assert_allclose(mesh.vertices, expected, atol=1e-6)
            np.testing.assert_array_equal(mesh.faces, person.faces)
            assert mesh.vertices[:, 2].max() < 0  # before a glTF camera at the origin

    def test_normals_colours_and_extras_are_in_the_file(self, people: list[Person]) -> None:
        content = encode_glb(people)
        length = struct.unpack("<I", content[12:16])[0]
        header = json.loads(content[20 : 20 + length])
        for mesh in header["meshes"]:
            assert "NORMAL" in mesh["primitives"][0]["attributes"]
        colours = [m["pbrMetallicRoughness"]["baseColorFactor"] for m in header["materials"]]
        assert len(colours) == 2
        assert colours[0] != colours[1]
        assert header["meshes"][1]["extras"]["side"] == "left"

    def test_normals_point_outward_for_both_hands(self, people: list[Person]) -> None:
        for person in people:
            vertices = to_y_up(person.vertices)
            outward = vertices - vertices.mean(0)
            normals = vertex_normals(vertices, person.faces)
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
            assert ((normals * outward).sum(1) > 0).mean() > 0.98

    def test_normals_equal_the_slow_sum(self, people: list[Person]) -> None:
        person = people[0]
        slow = np.zeros_like(person.vertices, dtype=float)
        for face in person.faces:
            a, b, c = person.vertices[face].astype(float)
            slow[face] += np.cross(b - a, c - a)
        slow /= np.linalg.norm(slow, axis=1, keepdims=True)
        np.testing.assert_allclose(vertex_normals(person.vertices, person.faces), slow, atol=1e-5)

    def test_nobody(self) -> None:
        with pytest.raises(InputError, match="at least one person"):
            encode_glb([])


def test_obj_holds_all_people(people: list[Person]) -> None:
    lines = encode_obj(people).decode().splitlines()
    assert [line for line in lines if line.startswith("o ")] == ["o hand_0_right", "o hand_1_left"]
    vertices = np.array([line.split()[1:] for line in lines if line.startswith("v ")], float)
    expected = np.concatenate([to_y_up(person.vertices) for person in people])
    np.testing.assert_allclose(vertices, expected, atol=0.6e-5)
    corners = [line.split()[1:] for line in lines if line.startswith("f ")]
    faces = np.array([[int(corner.split("//")[0]) - 1 for corner in face] for face in corners])
    shifted = [people[0].faces, people[1].faces + len(people[0].vertices)]
    np.testing.assert_array_equal(faces, np.concatenate(shifted))


class TestSave:
    def test_writes_all_files(self, tmp_path: Path, people: list[Person]) -> None:
        photo = spot_photo(300, 200, 80, 100)
        written = kinemesh.save(people, photo, tmp_path / "new" / "out", stem="a")
        names = ["a_overlay.png", "a.glb", "a.obj", "a.json", "a.npz"]
        assert [path.name for path in written] == names
        assert sorted(names) == sorted(path.name for path in (tmp_path / "new" / "out").iterdir())

    def test_overlay_shows_the_mesh(self, tmp_path: Path, people: list[Person]) -> None:
        photo = spot_photo(300, 200, 80, 100)
        (path,) = kinemesh.save(people, photo, tmp_path, formats=["overlay"], overlay_suffix=".jpg")
        drawn = kinemesh.load_image(path).pixels
        assert path.name == "people_overlay.jpg"
        assert drawn.shape[1] == 512
        enlarged = np.repeat(np.repeat(photo, 2, 0), 2, 1)[: drawn.shape[0], :512]
        changed = np.abs(drawn.astype(int)[: len(enlarged)] - enlarged).max(2) > 40
        assert changed.mean() > 0.01

    def test_nobody_gives_no_mesh_files(self, tmp_path: Path) -> None:
        photo = spot_photo(30, 20, 10, 10)
        written = kinemesh.save([], photo, tmp_path, formats=["glb", "obj", "json", "npz"])
        assert [path.suffix for path in written] == [".json", ".npz"]

    def test_all_or_nothing(
        self, tmp_path: Path, people: list[Person], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = Path.write_bytes

        def write_until_full(path: Path, content: bytes) -> int:
            if path.suffix == ".json":
                original(path, content[:100])
                raise OSError(28, "No space left on device")
            return original(path, content)

        photo = spot_photo(300, 200, 80, 100)
        (tmp_path / "people.glb").write_text("old")
        monkeypatch.setattr(Path, "write_bytes", write_until_full)
        with pytest.raises(OSError, match="No space"):
            kinemesh.save(people, photo, tmp_path, formats=["glb", "obj", "json"])
        assert [path.name for path in tmp_path.iterdir()] == ["people.glb"]
        assert (tmp_path / "people.glb").read_text() == "old"

    def test_refusals(self, tmp_path: Path, people: list[Person]) -> None:
        photo = spot_photo(300, 200, 80, 100)
        with pytest.raises(InputError, match="Unknown format 'fbx'"):
            kinemesh.save(people, photo, tmp_path, formats=["fbx"])
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="found the file"):
            kinemesh.save(people, photo, tmp_path / "file", formats=["json"])
