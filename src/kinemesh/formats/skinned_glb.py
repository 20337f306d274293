"""People as glTF 2.0 with bones, skin and animation: they can be posed further in any 3D tool."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import PosableBody
from kinemesh.errors import InputError
from kinemesh.formats.gltf_buffer import ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER, GltfBuffer
from kinemesh.formats.motion import Motion, read_motion
from kinemesh.rendering import srgb_to_linear, vertex_normals
from kinemesh.rendering.overlay import TINTS, Color

Track = Sequence[BodyParameters | None]
"""One person at all times of a file; None where the person is not there."""
ANIMATION = "motion"
_SET = 4  # bones in one JOINTS_n and WEIGHTS_n
_SMALL_INDEX = 65535  # of vertices; the highest value is kept for restarts


def encode_skinned_glb(
    body: PosableBody | Sequence[PosableBody],
    people: Sequence[Track],
    times_s: Sequence[float],
    names: Sequence[str] | None = None,
) -> bytes:
    """People with a mesh, a skeleton and a skin each, and one animation that moves all of them.

    Metres, y up, the camera of the photo at the origin, looking along -z. The mesh is in the rest
    pose of the person's shape; bones have the axes of the file there. Viewers play one animation
    at a time, so everybody moves in the same. Rotations are interpolated on the sphere. Someone
    who is not there at a time is scaled to nothing until he or she is back. With one time there is
    no animation: the bones stand as they were found.

    A vertex may follow more than four bones: its strongest four are in ``JOINTS_0``, the next in
    ``JOINTS_1``, as glTF has it. Corrections of the surface that depend on the pose (SMPL, MANO)
    are no part of a skin: they are morph targets, as many as their motion needs.

    Args:
        body: The body of all people, or one for each.
        people: One track for each person, with as many entries as there are times.
        times_s: T times in seconds, from 0 on, growing; of a photo ``[0.0]``.
        names: A name for each person's node; ``person_0`` and so on if left out.

    Raises:
        InputError: There is nobody, a track has another length or changes its shape, or the times
            do not grow.
    """
    bodies = [body] * len(people) if isinstance(body, PosableBody) else list(body)
    labels = [f"person_{i}" for i in range(len(people))] if names is None else list(names)
    _check(bodies, people, labels, times_s)
    motions = [read_motion(one, track) for one, track in zip(bodies, people, strict=True)]
    buffer = GltfBuffer()
    document: dict[str, Any] = {
        "scene": 0,
        "scenes": [{"nodes": []}],
        "nodes": [],
        "meshes": [],
        "materials": [],
        "skins": [],
    }
    firsts = []
    for index, (label, motion) in enumerate(zip(labels, motions, strict=True)):
        _add_mesh(document, buffer, motion, label, TINTS[index % len(TINTS)])
        firsts.append(_add_bones(document, buffer, motion, label))
    if len(times_s) > 1:
        document["animations"] = [_animation(buffer, motions, firsts, times_s)]
    return buffer.encode(document)


def _check(
    bodies: Sequence[PosableBody],
    people: Sequence[Track],
    labels: Sequence[str],
    times_s: Sequence[float],
) -> None:
    if not people:
        raise InputError("people: a GLB file needs at least one person, found none.")
    if len(bodies) != len(people) or len(labels) != len(people):
        raise InputError(
            f"body, names: expected one for each of {len(people)} people, found {len(bodies)} "
            f"bodies and {len(labels)} names."
        )
    times = np.asarray(times_s, float)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or times[0] < 0:
        raise InputError(f"times_s: expected seconds from 0 on, found {list(times_s)[:5]}.")
    if (np.diff(times.astype(np.float32)) <= 0).any():
        raise InputError("times_s: expected times that grow from frame to frame.")
    lengths = sorted({len(track) for track in people} | {len(times)})
    if len(lengths) > 1:
        raise InputError(
            f"people: expected {len(times)} entries for each person, one for each time, found "
            f"tracks of {lengths}; put None where a person is not there."
        )


def _add_mesh(
    document: dict[str, Any], buffer: GltfBuffer, motion: Motion, label: str, tint: Color
) -> None:
    """A mesh with its material, and the node that shows it with the next skin."""
    vertices = torch.from_numpy(motion.rest_vertices)
    normals = vertex_normals(vertices[None], torch.from_numpy(motion.faces))[0].numpy()
    attributes = {
        "POSITION": buffer.add(motion.rest_vertices.astype(np.float32), ARRAY_BUFFER, bounds=True),
        "NORMAL": buffer.add(normals.astype(np.float32), ARRAY_BUFFER),
    }
    for number, (bones, weights) in enumerate(_influences(motion.body.skin_weights.numpy())):
        attributes[f"JOINTS_{number}"] = buffer.add(bones, ARRAY_BUFFER)
        attributes[f"WEIGHTS_{number}"] = buffer.add(weights, ARRAY_BUFFER)
    index_type = np.uint16 if len(vertices) <= _SMALL_INDEX else np.uint32
    primitive: dict[str, Any] = {
        "attributes": attributes,
        "indices": buffer.add(motion.faces.ravel().astype(index_type), ELEMENT_ARRAY_BUFFER),
        "material": len(document["materials"]),
    }
    mesh: dict[str, Any] = {"name": label, "primitives": [primitive]}
    if len(motion.displacements):
        primitive["targets"] = [
            {"POSITION": buffer.add(displacement.astype(np.float32), ARRAY_BUFFER, bounds=True)}
            for displacement in motion.displacements
        ]
        mesh["weights"] = motion.weights[0].tolist()
    linear = srgb_to_linear(torch.tensor(tint)).tolist()  # what glTF's colour factors are
    surface = {"baseColorFactor": [*linear, 1.0], "metallicFactor": 0.0, "roughnessFactor": 0.7}
    document["materials"].append({"pbrMetallicRoughness": surface, "doubleSided": True})
    document["scenes"][0]["nodes"].append(len(document["nodes"]))
    document["nodes"].append(
        {"name": label, "mesh": len(document["meshes"]), "skin": len(document["skins"])}
    )
    document["meshes"].append(mesh)


def _influences(weights_VN: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Bones (V, 4) and weights (V, 4), the strongest first, in as many sets as a vertex needs."""
    most = int((weights_VN > 0).sum(1).max())
    count = min(-(-most // _SET) * _SET, weights_VN.shape[1])
    bones = np.argsort(-weights_VN, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(weights_VN, bones, axis=1)
    bones = np.where(weights > 0, bones, 0)  # glTF wants bone 0 where there is no weight
    padding = ((0, 0), (0, -count % _SET))
    bones, weights = np.pad(bones, padding), np.pad(weights, padding)
    weights = weights / weights.sum(1, keepdims=True)
    index_type = np.uint8 if weights_VN.shape[1] <= 256 else np.uint16
    return [
        (bones[:, k : k + _SET].astype(index_type), weights[:, k : k + _SET].astype(np.float32))
        for k in range(0, bones.shape[1], _SET)
    ]


def _add_bones(document: dict[str, Any], buffer: GltfBuffer, motion: Motion, label: str) -> int:
    """The bones' nodes as they stand at the first time, and the skin; returns the first node."""
    first = len(document["nodes"])
    heads, parents = motion.rest_heads, motion.body.parents
    turns = _quaternions(motion.rotations[0])
    for bone, (name, parent) in enumerate(zip(motion.body.bones, parents, strict=True)):
        place = motion.places[0] if parent < 0 else heads[bone] - heads[parent]
        node: dict[str, Any] = {
            "name": name,
            "translation": place.tolist(),
            "rotation": turns[bone].tolist(),
        }
        children = [first + child for child, above in enumerate(parents) if above == bone]
        if children:
            node["children"] = children
        document["nodes"].append(node)
    if not motion.present[0]:
        document["nodes"][first]["scale"] = [0.0, 0.0, 0.0]
    # A node above the bones, for Blender makes one armature of all bones that have none.
    document["scenes"][0]["nodes"].append(len(document["nodes"]))
    document["nodes"].append({"name": f"{label}_bones", "children": [first]})
    inverse_bind = np.tile(np.eye(4, dtype=np.float32), (len(heads), 1, 1))
    inverse_bind[:, 3, :3] = -heads  # columns of glTF's matrices are rows here
    document["skins"].append(
        {
            "name": label,
            "joints": list(range(first, first + len(heads))),
            "skeleton": first,
            "inverseBindMatrices": buffer.add(inverse_bind),
        }
    )
    return first


def _animation(
    buffer: GltfBuffer,
    motions: Sequence[Motion],
    firsts: Sequence[int],
    times_s: Sequence[float],
) -> dict[str, Any]:
    """Channels for the place of the first bone, for bones that turn and for who comes and goes.

    The node before the first bone of a person is the one that shows the mesh.
    """
    times = buffer.add(np.asarray(times_s, np.float32), bounds=True)
    channels: list[dict[str, Any]] = []
    samplers: list[dict[str, Any]] = []

    def add(node: int, path: str, values: np.ndarray, interpolation: str = "LINEAR") -> None:
        channels.append({"sampler": len(samplers), "target": {"node": node, "path": path}})
        output = buffer.add(values.astype(np.float32))
        samplers.append({"input": times, "output": output, "interpolation": interpolation})

    for motion, first in zip(motions, firsts, strict=True):
        add(first, "translation", motion.places)
        turns = _quaternions(motion.rotations)
        for bone in range(turns.shape[1]):
            if (turns[:, bone] != turns[0, bone]).any():
                add(first + bone, "rotation", turns[:, bone])
        if len(motion.displacements):
            add(first - 1, "weights", motion.weights.ravel())
        if not motion.present.all():
            scale = np.repeat(motion.present.astype(float)[:, None], 3, axis=1)
            add(first, "scale", scale, "STEP")
    return {"name": ANIMATION, "channels": channels, "samplers": samplers}


def _quaternions(rotations: np.ndarray) -> np.ndarray:
    """(..., 4) x, y, z, w; along the first axis of a series each is near the one before."""
    turns = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat(canonical=True)
    turns = turns.reshape(*rotations.shape[:-2], 4)
    if rotations.ndim > 3:
        # A rotation has two quaternions; between those of other sign a viewer turns the long way.
        back = (turns[1:] * turns[:-1]).sum(-1) < 0
        turns[1:] *= np.where(np.cumsum(back, axis=0) % 2, -1.0, 1.0)[..., None]
    return np.asarray(turns)
