"""Meshes as binary glTF 2.0, which opens upright and lit in every viewer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from kinemesh.errors import InputError
from kinemesh.files import write_bytes
from kinemesh.inference.person import Person

COLORS = (
    (0.65, 0.74, 0.86),
    (0.90, 0.72, 0.55),
    (0.64, 0.80, 0.62),
    (0.85, 0.64, 0.70),
    (0.74, 0.68, 0.86),
    (0.87, 0.82, 0.55),
)
"""Linear RGB of the people, in turn."""


def to_y_up(points: np.ndarray) -> np.ndarray:
    """Turn camera axes (x right, y down, z forward) to glTF's (y up, looking along -z).

    A half turn about x; its own inverse.

    Args:
        points: (..., 3) points or directions.
    """
    return np.asarray(points * np.array([1.0, -1.0, -1.0], dtype=points.dtype))


def person_name(index: int, person: Person) -> str:
    """Name of a person's node: ``person_0``, or ``hand_0_left``."""
    return f"person_{index}" if person.side is None else f"hand_{index}_{person.side}"


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (V, 3) of a mesh, outward for counter-clockwise faces."""
    a, b, c = (vertices[faces[:, corner]].astype(float) for corner in range(3))
    face_normals = np.cross(b - a, c - a)
    normals = np.zeros((len(vertices), 3))
    for corner in range(3):
        for axis in range(3):
            normals[:, axis] += np.bincount(
                faces[:, corner], face_normals[:, axis], minlength=len(vertices)
            )
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    return np.asarray(normals / np.maximum(lengths, 1e-20), dtype=np.float32)


def encode_glb(people: Sequence[Person]) -> bytes:
    """All people as one glTF scene, metres, y up, the camera of the photo at the origin.

    Each person is a node and a mesh of the same name, with vertex normals, one colour, and side
    and score as extras.

    Args:
        people: At least one person.

    Raises:
        InputError: There is nobody; glTF has no empty scene.
    """
    if not people:
        raise InputError("A GLB file needs at least one person, found none.")
    scene = trimesh.Scene()
    for index, person in enumerate(people):
        name = person_name(index, person)
        scene.add_geometry(_mesh(person, COLORS[index % len(COLORS)]), name, name)
    return bytes(scene.export(file_type="glb", include_normals=True))  # type: ignore[no-untyped-call]


def write_glb(path: str | Path, people: Sequence[Person]) -> None:
    """Write `encode_glb` to a file, atomically.

    Raises:
        InputError: There is nobody.
        OSError: The file cannot be written.
    """
    write_bytes(path, encode_glb(people))


def _mesh(person: Person, color: tuple[float, float, float]) -> trimesh.Trimesh:
    vertices = to_y_up(person.vertices)
    material = PBRMaterial(  # type: ignore[no-untyped-call]
        baseColorFactor=[*color, 1.0], metallicFactor=0.0, roughnessFactor=0.7, doubleSided=True
    )
    return trimesh.Trimesh(
        vertices=vertices,
        faces=person.faces,
        vertex_normals=vertex_normals(vertices, person.faces),
        visual=TextureVisuals(material=material),  # type: ignore[no-untyped-call]
        metadata={"side": person.side, "score": round(float(person.score), 4)},
        process=False,
    )
