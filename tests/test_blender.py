"""Blender opens what is exported: its bones and vertices stand where they were found.

``pip install bpy`` brings Blender as a module. It may live in an environment of its own, whose
Python is then named by the variable BLENDER_PYTHON.
"""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from kinemesh.bodies.parameters import place
from kinemesh.bodies.posable import posable_body
from kinemesh.formats.bvh import encode_bvh
from kinemesh.formats.skinned_glb import encode_skinned_glb
from tests.moving_people import moving_person

PYTHON = os.environ.get("BLENDER_PYTHON", sys.executable)
RATE = 10
FRAMES = (0, 3, 7)

pytestmark = pytest.mark.slow


@cache
def has_blender() -> bool:
    return (
        subprocess.run([PYTHON, "-c", "import bpy"], capture_output=True, check=False).returncode
        == 0
    )


def in_blender(source: Path, frames: tuple[int, ...]) -> dict[str, np.ndarray]:
    if not has_blender():
        pytest.skip(f"{PYTHON} has no module bpy; see the head of this file")
    script, target = Path(__file__).with_name("blender_places.py"), source.with_suffix(".npz")
    words = [PYTHON, script, source, target, RATE, *frames]
    subprocess.run([str(word) for word in words], check=True, capture_output=True, timeout=300)
    with np.load(target) as file:
        return dict(file)


def z_up(points: np.ndarray) -> np.ndarray:
    """Camera axes to Blender's: x right, y away from the viewer, z up."""
    return points[..., [0, 2, 1]] * [1, 1, -1]


def test_skinned_people_move_as_given(tmp_path: Path) -> None:
    body = posable_body("anny-body")
    people = [moving_person(body, 8, seed) for seed in (0, 1)]
    path = tmp_path / "people.glb"
    path.write_bytes(encode_skinned_glb(body, people, np.arange(8) / RATE))
    found = in_blender(path, FRAMES)
    for number, track in enumerate(people):
        for frame in FRAMES:
            posed = place(body, [track[frame]])
            vertices = found[f"vertices person_{number} {frame}"]
            np.testing.assert_allclose(vertices, z_up(posed.vertices[0].numpy()), atol=1e-4)
            bones = found[f"bones person_{number}_bones {frame}"]
            names = found[f"names person_{number}_bones"].tolist()
            heads = dict(zip(names, bones, strict=True))
            expected = z_up(posed.bones[0].numpy())
            np.testing.assert_allclose([heads[n] for n in body.bones], expected, atol=1e-4)


def test_a_bvh_moves_as_given(tmp_path: Path) -> None:
    body = posable_body("anny-body")
    track = moving_person(body, 8)
    path = tmp_path / "walk.bvh"
    path.write_bytes(encode_bvh(body, track, 1 / RATE))
    found = in_blender(path, tuple(frame + 1 for frame in FRAMES))  # Blender begins at frame 1
    names = found["names walk"].tolist()
    for frame in FRAMES:
        heads = dict(zip(names, found[f"bones walk {frame + 1}"], strict=True))
        expected = z_up(place(body, [track[frame]]).bones[0].numpy())
        np.testing.assert_allclose([heads[n] for n in body.bones], expected, atol=1e-4)
