import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pygltflib
import pytest
import torch
import trimesh
from PIL import Image

import kinemesh
from kinemesh.bodies.assets import load_topology
from kinemesh.errors import InputError
from kinemesh.formats.glb import encode_glb, to_y_up, y_up_mesh
from kinemesh.formats.obj import encode_obj
from kinemesh.formats.people_json import encode_people, read_people_json, write_people_json
from kinemesh.formats.people_npz import read_people_npz, write_people_npz
from kinemesh.formats.picture import draw_overlay
from kinemesh.inference.person import Person
from kinemesh.rendering import linear_to_srgb
from kinemesh.rendering.overlay import TINTS
from kinemesh.skeletons import get_skeleton
from tests.fake_predictor import fake_people, spot_photo

SIZE = (300, 200)
ARRAYS = ("vertices", "faces", "joints", "joints_px", "joint_confidence")


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return fake_people()


def anny_body() -> Person:
    """The template of the body mesh, three metres before the camera."""
    topology = load_topology("anny-body")
    vertices = topology.template.numpy() + np.array([0.2, 0.1, 3.0], np.float32)
    return replace(fake_people("body")[0], vertices=vertices, faces=topology.faces.numpy())


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


def read_mesh(file: pygltflib.GLTF2, index: int) -> list[np.ndarray]:
    """Positions, normals and faces of a mesh, from the bytes that its accessors point at."""
    primitive = file.meshes[index].primitives[0]
    attributes = primitive.attributes
    return [
        read_accessor(file, accessor).reshape(-1, 3)
        for accessor in (attributes.POSITION, attributes.NORMAL, primitive.indices)
    ]


def read_accessor(file: pygltflib.GLTF2, index: int) -> np.ndarray:
    accessor = file.accessors[index]
    view = file.bufferViews[accessor.bufferView]
    kind = {pygltflib.FLOAT: np.float32, pygltflib.UNSIGNED_INT: np.uint32}[accessor.componentType]
    columns = {"SCALAR": 1, "VEC3": 3}[accessor.type]
    start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
    assert view.byteStride in (None, 4 * columns)
    return np.frombuffer(file.binary_blob(), kind, accessor.count * columns, start).copy()


def stands_where_it_is(node: pygltflib.Node) -> bool:
    """Whether a node leaves its mesh where the vertices say."""
    moved = node.translation or node.rotation or node.scale
    return not moved and (
        node.matrix is None or np.allclose(np.reshape(node.matrix, (4, 4)), np.eye(4))
    )


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

    def test_size_is_what_the_documentation_says(self) -> None:
        body = anny_body()
        one, two = (len(encode_people([body] * count, SIZE)) for count in (1, 2))
        assert one == pytest.approx(1.0e6, rel=0.05)
        assert two - one == pytest.approx(0.4e6, rel=0.05)
        assert len(encode_people([body], SIZE, mesh=False)) == pytest.approx(3e3, rel=0.2)

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
            vertices, normals = y_up_mesh(person)
            outward = vertices - vertices.mean(0)
            np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
            assert ((normals * outward).sum(1) > 0).mean() > 0.98

    def test_normals_equal_the_slow_sum(self, people: list[Person]) -> None:
        person = people[0]
        slow = np.zeros_like(person.vertices, dtype=float)
        for face in person.faces:
            a, b, c = person.vertices[face].astype(float)
            slow[face] += np.cross(b - a, c - a)
        slow /= np.linalg.norm(slow, axis=1, keepdims=True)
        np.testing.assert_allclose(y_up_mesh(person)[1], to_y_up(slow), atol=1e-5)

    def test_another_reader_finds_the_same_meshes(self, people: list[Person]) -> None:
        file = pygltflib.GLTF2.load_from_bytes(encode_glb(people))
        found = {node.name: node for node in file.nodes if node.mesh is not None}
        assert set(found) == {"hand_0_right", "hand_1_left"}
        for node, person in zip(found.values(), people, strict=True):
            positions, normals, faces = read_mesh(file, node.mesh)
            assert stands_where_it_is(node)
            np.testing.assert_allclose(positions, person.vertices * [1, -1, -1], atol=1e-6)
            np.testing.assert_array_equal(faces, person.faces)
            np.testing.assert_allclose(normals, y_up_mesh(person)[1], atol=1e-6)

    def test_a_body_stands_upright_before_the_camera(self) -> None:
        topology = load_topology("anny-body")
        file = pygltflib.GLTF2.load_from_bytes(encode_glb([anny_body()]))
        assert all(stands_where_it_is(node) for node in file.nodes)
        positions, normals, _ = read_mesh(file, 0)
        joints = topology.joints(torch.from_numpy(positions)[None])[0]
        places = dict(zip(topology.skeleton.joints, joints.tolist(), strict=True))
        assert places["nose"][1] > places["left_hip"][1] + 0.4
        assert places["left_hip"][1] > places["left_ankle"][1] + 0.4
        assert positions[:, 2].max() < 0  # glTF's camera looks along -z
        nose = places["nose"][2]
        assert nose > places["left_ear"][2]  # and sees the face
        top = positions[:, 1].argmax()
        assert normals[top, 1] > 0.9

    def test_a_person_has_the_colour_of_the_overlay(self, people: list[Person]) -> None:
        file = pygltflib.GLTF2.load_from_bytes(encode_glb(people * 5))
        assert len(file.meshes) == 10
        for mesh, tint in zip(file.meshes, [*TINTS, *TINTS], strict=False):
            material = file.materials[mesh.primitives[0].material]
            linear = torch.tensor(material.pbrMetallicRoughness.baseColorFactor[:3])
            shown = linear_to_srgb(linear).numpy()
            np.testing.assert_allclose(shown, tint, atol=1 / 255)

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

    @pytest.mark.parametrize(
        ("size", "zoom"),
        [((300, 200), 512 / 300), ((700, 500), 1.0), ((3000, 2500), 1.0), ((40, 9), 512 / 40)],
    )
    def test_overlay_has_the_size_of_the_photo(self, size: tuple[int, int], zoom: float) -> None:
        drawn = draw_overlay(np.zeros((size[1], size[0], 3), np.uint8), [])
        assert drawn.shape[:2] == (int(size[1] * zoom), int(size[0] * zoom))

    def test_huge_photos_are_reduced(self) -> None:
        drawn = draw_overlay(np.zeros((4500, 9000, 3), np.uint8), [])
        assert 24.9e6 < drawn.shape[0] * drawn.shape[1] <= 25e6
        assert drawn.shape[1] / drawn.shape[0] == pytest.approx(2, rel=1e-3)

    def test_neither_the_photo_nor_a_foreign_json_is_replaced(
        self, tmp_path: Path, people: list[Person]
    ) -> None:
        path = tmp_path / "a_overlay.png"
        Image.fromarray(spot_photo(300, 200, 80, 100)).save(path)
        before = path.read_bytes()
        with pytest.raises(InputError, match="overwrite the photo"):
            kinemesh.save(people, path, tmp_path, stem="a", formats=["overlay"])
        (tmp_path / "b.json").write_text("{}")
        with pytest.raises(InputError, match="did not write"):
            kinemesh.save(people, path, tmp_path, stem="b", formats=["json"])
        assert path.read_bytes() == before
        assert (tmp_path / "b.json").read_text() == "{}"

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

    def test_a_folder_in_the_way(self, tmp_path: Path, people: list[Person]) -> None:
        (tmp_path / "p.json").mkdir()
        photo = spot_photo(300, 200, 80, 100)
        with pytest.raises(InputError, match=r"p\.json', found a folder"):
            kinemesh.save(people, photo, tmp_path, stem="p", formats=["glb", "json", "npz"])
        assert [path.name for path in tmp_path.iterdir()] == ["p.json"]

    def test_a_move_that_fails_takes_new_files_away(
        self, tmp_path: Path, people: list[Person], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original, moved = Path.replace, []

        def replace_until_refused(path: Path, target: Path) -> Path:
            if target.suffix == ".obj":
                raise OSError(13, "Permission denied", str(target))
            moved.append(target.name)
            return original(path, target)

        (tmp_path / "p.npz").write_text("old")
        (tmp_path / "p.obj").write_text("old")
        monkeypatch.setattr(Path, "replace", replace_until_refused)
        photo = spot_photo(300, 200, 80, 100)
        with pytest.raises(OSError, match="Permission denied"):
            kinemesh.save(people, photo, tmp_path, stem="p", formats=["glb", "obj", "json", "npz"])
        assert moved == ["p.npz", "p.json"]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["p.npz", "p.obj"]
        assert len(read_people_npz(tmp_path / "p.npz")) == 2  # replaced before, and whole
        assert (tmp_path / "p.obj").read_text() == "old"

    def test_refusals(self, tmp_path: Path, people: list[Person]) -> None:
        photo = spot_photo(300, 200, 80, 100)
        with pytest.raises(InputError, match="Unknown format 'fbx'"):
            kinemesh.save(people, photo, tmp_path, formats=["fbx"])
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="found the file"):
            kinemesh.save(people, photo, tmp_path / "file", formats=["json"])
