"""Meshes as binary glTF 2.0, which opens upright and lit in every viewer."""

from collections.abc import Sequence

import numpy as np
import torch
import trimesh
from trimesh.visual import TextureVisuals
from trimesh.visual.material import PBRMaterial

from kinemesh.errors import InputError
from kinemesh.inference.person import Person
from kinemesh.rendering import srgb_to_linear, vertex_normals
from kinemesh.rendering.overlay import TINTS, Color


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


def y_up_mesh(person: Person) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) of a person in glTF's axes, metres, and their outward unit normals (V, 3)."""
    vertices = to_y_up(person.vertices)
    # float64, since the small triangles of a person far away cancel in float32
    positions, faces = torch.from_numpy(vertices).double(), torch.from_numpy(person.faces)
    return vertices, vertex_normals(positions[None], faces)[0].float().numpy()


def check_meshes(people: Sequence[Person], file_type: str) -> None:
    """Refuse people without a mesh where a file would hold nothing else.

    Raises:
        InputError: Somebody has no mesh.
    """
    for index, person in enumerate(people):
        if not person.has_mesh:
            raise InputError(
                f"A {file_type} file holds meshes, but {person_name(index, person)} comes from a "
                "network without one. Save it as 'overlay', 'json' or 'npz'."
            )


def encode_glb(people: Sequence[Person]) -> bytes:
    """All people as one glTF scene, metres, y up, the camera of the photo at the origin.

    Each person is a node and a mesh of the same name, with vertex normals, the colour that the
    overlay gives it, and side and score as extras.

    Args:
        people: At least one person.

    Raises:
        InputError: There is nobody, or somebody has no mesh; glTF has no empty scene and no empty
            mesh.
    """
    if not people:
        raise InputError("A GLB file needs at least one person, found none.")
    check_meshes(people, "GLB")
    scene = trimesh.Scene()
    for index, person in enumerate(people):
        name = person_name(index, person)
        scene.add_geometry(_mesh(person, TINTS[index % len(TINTS)]), name, name)
    return bytes(scene.export(file_type="glb", include_normals=True))  # type: ignore[no-untyped-call]


def _mesh(person: Person, tint: Color) -> trimesh.Trimesh:
    vertices, normals = y_up_mesh(person)
    linear = srgb_to_linear(torch.tensor(tint)).tolist()  # what glTF's colour factors are
    material = PBRMaterial(  # type: ignore[no-untyped-call]
        baseColorFactor=[*linear, 1.0], metallicFactor=0.0, roughnessFactor=0.7, doubleSided=True
    )
    return trimesh.Trimesh(
        vertices=vertices,
        faces=person.faces,
        vertex_normals=normals,
        visual=TextureVisuals(material=material),  # type: ignore[no-untyped-call]
        metadata={"side": person.side, "score": round(float(person.score), 4)},
        process=False,
    )
