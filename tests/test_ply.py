import io

import numpy as np
import pytest
import trimesh

from kinemesh.errors import InputError
from kinemesh.formats.glb import to_y_up
from kinemesh.formats.ply import encode_ply
from kinemesh.rendering.overlay import TINTS
from tests.fake_predictor import fake_people

VERTEX = np.dtype(
    [(name, "<f4") for name in ("x", "y", "z", "nx", "ny", "nz")]
    + [(name, "u1") for name in ("red", "green", "blue", "alpha")]
    + [("person", "<i2")]
)


def read_vertices(content: bytes) -> np.ndarray:
    """By the header's own words, in the order in which it lists the properties."""
    header, body = content.split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[:2] == ["ply", "format binary_little_endian 1.0"]
    count = next(int(line.split()[2]) for line in lines if line.startswith("element vertex"))
    names = [
        line.split()[2] for line in lines if line.startswith("property") and "list" not in line
    ]
    assert names == list(VERTEX.names)
    return np.frombuffer(body, VERTEX, count)


def test_vertices_normals_colours_and_persons() -> None:
    people = fake_people()
    found = read_vertices(encode_ply(people))
    places = np.stack([found[name] for name in "xyz"], 1)
    expected = np.concatenate([to_y_up(person.vertices) for person in people])
    np.testing.assert_array_equal(places, expected)
    assert np.unique(found["person"], return_counts=True)[1].tolist() == [162, 162]
    for number, person in enumerate(people):
        own = found[found["person"] == number]
        normals = np.stack([own[name] for name in ("nx", "ny", "nz")], 1)
        outward = to_y_up(person.vertices - person.vertices.mean(0))
        assert ((normals * outward).sum(1) > 0).mean() > 0.98
        colour = [own[name][0] / 255 for name in ("red", "green", "blue")]
        assert colour == pytest.approx(TINTS[number], abs=1 / 255)


def test_another_reader_finds_two_whole_meshes() -> None:
    people = fake_people()
    mesh = trimesh.load(io.BytesIO(encode_ply(people)), file_type="ply", process=False)
    assert len(mesh.faces) == sum(len(person.faces) for person in people)
    parts = mesh.split()
    assert len(parts) == 2
    assert all(part.is_watertight and part.volume > 0 for part in parts)
    assert mesh.vertices[:, 2].max() < 0  # before the camera, which looks along -z


def test_refusals() -> None:
    with pytest.raises(InputError, match="at least one person"):
        encode_ply([])
