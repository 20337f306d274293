"""Meshes as Wavefront OBJ text, with the axes of the GLB file."""

import io
from collections.abc import Sequence

import numpy as np

from kinemesh.formats.glb import check_meshes, person_name, y_up_mesh
from kinemesh.inference.person import Person


def encode_obj(people: Sequence[Person]) -> bytes:
    """All people as one OBJ: metres, y up, the camera at the origin, an object for each person.

    Raises:
        InputError: Somebody has no mesh.
    """
    check_meshes(people, "OBJ")
    stream = io.StringIO()
    stream.write("# kinemesh people: metres, y up, camera of the photo at the origin\n")
    first = 1  # OBJ counts vertices from 1, through all objects
    for index, person in enumerate(people):
        vertices, normals = y_up_mesh(person)
        faces = np.repeat(person.faces + first, 2, axis=1)
        stream.write(f"o {person_name(index, person)}\n")
        stream.write(_lines("v %.5f %.5f %.5f\n", vertices))
        stream.write(_lines("vn %.4f %.4f %.4f\n", normals))
        stream.write(_lines("f %d//%d %d//%d %d//%d\n", faces))
        first += len(vertices)
    return stream.getvalue().encode()


def _lines(pattern: str, rows: np.ndarray) -> str:
    return "".join(pattern % tuple(row) for row in rows.tolist())
