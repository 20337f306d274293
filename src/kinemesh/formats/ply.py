"""Meshes as binary PLY, with the axes of the GLB file: for point cloud and mesh tools."""

from collections.abc import Sequence

import numpy as np
import trimesh
from trimesh.exchange.ply import export_ply

from kinemesh.errors import InputError
from kinemesh.formats.glb import check_meshes, y_up_mesh
from kinemesh.inference.person import Person
from kinemesh.rendering.overlay import TINTS


def encode_ply(people: Sequence[Person]) -> bytes:
    """All people as one PLY: float32 metres, y up, the camera at the origin.

    PLY knows no objects. So each vertex carries the number of its person (``person``, int16) beside
    its outward normal and the colour that the overlay gives the person; faces never join two.

    Args:
        people: At least one person.

    Raises:
        InputError: There is nobody, or somebody has no mesh; readers refuse an empty PLY.
    """
    if not people:
        raise InputError("A PLY file needs at least one person, found none.")
    check_meshes(people, "PLY")
    parts = [y_up_mesh(person) for person in people]
    counts = [len(vertices) for vertices, _ in parts]
    starts = np.cumsum([0, *counts[:-1]])
    colours = np.array([TINTS[index % len(TINTS)] for index in range(len(people))])
    mesh = trimesh.Trimesh(
        vertices=np.concatenate([vertices for vertices, _ in parts]),
        faces=np.concatenate([p.faces + start for p, start in zip(people, starts, strict=True)]),
        vertex_normals=np.concatenate([normals for _, normals in parts]),
        vertex_colors=np.repeat(np.round(colours * 255).astype(np.uint8), counts, axis=0),
        vertex_attributes={"person": np.repeat(np.arange(len(people), dtype=np.int16), counts)},
        process=False,
    )
    return bytes(export_ply(mesh, vertex_normal=True, include_attributes=True))
