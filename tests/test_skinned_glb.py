"""A skinned GLB, read by pygltflib and skinned here as the standard says, is the posed body."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pygltflib
import pytest
from scipy.spatial.transform import Rotation

from kinemesh.bodies.official_assets import load_body_model
from kinemesh.bodies.parameters import BodyParameters, place
from kinemesh.bodies.posable import PosableBody, posable_body
from kinemesh.errors import InputError
from kinemesh.formats.skinned_glb import encode_skinned_glb
from tests.body_fixtures import write_mano_assets, write_smpl_assets
from tests.moving_people import moving_person

Track = Sequence[BodyParameters | None]
TIMES = (0.0, 0.04, 0.1)
KEY_FRAME_M = 1e-4
_TYPES = {5121: np.uint8, 5123: np.uint16, 5125: np.uint32, 5126: np.float32}
_COLUMNS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}


class SkinnedFile:
    """A slow reader of glTF: nodes, skins and animation by the equations of the standard."""

    def __init__(self, content: bytes) -> None:
        self.file = pygltflib.GLTF2.load_from_bytes(content)
        self.known: dict[tuple[int, float], np.ndarray] = {}
        self.parents = {
            child: number
            for number, node in enumerate(self.file.nodes)
            for child in node.children or []
        }
        self.outputs = {
            (channel.target.node, channel.target.path): animation.samplers[channel.sampler]
            for animation in self.file.animations
            for channel in animation.channels
        }
        self.meshes = [k for k, node in enumerate(self.file.nodes) if node.mesh is not None]

    def read(self, index: int) -> np.ndarray:
        accessor = self.file.accessors[index]
        view = self.file.bufferViews[accessor.bufferView]
        columns = _COLUMNS[accessor.type]
        start = (view.byteOffset or 0) + (accessor.byteOffset or 0)
        kind = _TYPES[accessor.componentType]
        values = np.frombuffer(self.file.binary_blob(), kind, accessor.count * columns, start)
        return values.reshape(-1, columns) if columns > 1 else values

    def names(self, person: int) -> list[str]:
        skin = self.file.skins[self.file.nodes[self.meshes[person]].skin]
        return [self.file.nodes[joint].name for joint in skin.joints]

    def heads(self, person: int, time: float) -> np.ndarray:
        skin = self.file.skins[self.file.nodes[self.meshes[person]].skin]
        return np.array([self.matrix(joint, time)[:3, 3] for joint in skin.joints])

    def vertices(self, person: int, time: float, sets: int = 9) -> np.ndarray:
        """Skinned by the sum over all sets of joints; by ``sets`` of them as in some viewers."""
        node = self.file.nodes[self.meshes[person]]
        skin = self.file.skins[node.skin]
        attributes = self.file.meshes[node.mesh].primitives[0].attributes
        inverse = self.read(skin.inverseBindMatrices).reshape(-1, 4, 4).swapaxes(1, 2)
        joints = np.array([self.matrix(joint, time) for joint in skin.joints]) @ inverse
        blended, total = 0.0, 0.0
        for number in range(sets):
            index = getattr(attributes, f"JOINTS_{number}", None)
            if index is None:
                break
            weights = self.read(getattr(attributes, f"WEIGHTS_{number}"))
            blended = blended + np.einsum("vk,vkij->vij", weights, joints[self.read(index)])
            total = total + weights.sum(1)[:, None, None]
        flat = self.read(attributes.POSITION).astype(float)
        mesh = self.file.meshes[node.mesh]
        targets = mesh.primitives[0].targets or []
        weights = self.value(self.meshes[person], "weights", time, mesh.weights or [])
        for weight, target in zip(np.atleast_1d(weights), targets, strict=True):
            flat += weight * self.read(target["POSITION"])
        places = np.pad(flat, ((0, 0), (0, 1)), constant_values=1.0)
        return np.einsum("vij,vj->vi", blended / total, places)[:, :3]

    def matrix(self, number: int, time: float) -> np.ndarray:
        if (number, time) not in self.known:
            self.known[number, time] = self._matrix(number, time)
        return self.known[number, time]

    def _matrix(self, number: int, time: float) -> np.ndarray:
        node = self.file.nodes[number]
        local = np.eye(4)
        scale = self.value(number, "scale", time, node.scale or [1, 1, 1])
        turn = self.value(number, "rotation", time, node.rotation or [0, 0, 0, 1])
        local[:3, :3] = Rotation.from_quat(turn).as_matrix() * scale
        local[:3, 3] = self.value(number, "translation", time, node.translation or [0, 0, 0])
        if number in self.parents:
            return self.matrix(self.parents[number], time) @ local
        return local

    def value(self, node: int, path: str, time: float, default: Sequence[float]) -> np.ndarray:
        """At a key frame."""
        if (node, path) in self.outputs:
            sampler = self.outputs[node, path]
            (key,) = np.flatnonzero(np.isclose(self.read(sampler.input), time))
            values = self.read(sampler.output)
            return values.reshape(len(self.read(sampler.input)), -1)[key]
        return np.asarray(default, float)


@pytest.fixture(scope="module")
def body() -> PosableBody:
    return posable_body("anny-body")


@pytest.fixture(scope="module")
def hand() -> PosableBody:
    return posable_body("anny-hand")


def y_up(points: np.ndarray) -> np.ndarray:
    return points * [1, -1, -1]


def furthest(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected, axis=-1).max())


def assert_moves_as(content: bytes, body: PosableBody, people: Sequence[Track]) -> None:
    """At each key frame each vertex and each bone is where `place` puts it."""
    file = SkinnedFile(content)
    assert len(file.meshes) == len(people)
    for person, track in enumerate(people):
        for time, frame in zip(TIMES, track, strict=True):
            posed = place(body, [frame])
            expected = y_up(posed.vertices[0].numpy())
            assert furthest(file.vertices(person, time), expected) < KEY_FRAME_M
            assert furthest(file.heads(person, time), y_up(posed.bones[0].numpy())) < KEY_FRAME_M


def test_a_body_moves_as_given(body: PosableBody) -> None:
    track = moving_person(body, len(TIMES))
    content = encode_skinned_glb(body, [track], TIMES)
    assert_moves_as(content, body, [track])
    file = SkinnedFile(content)
    assert file.names(0) == list(body.bones)
    assert file.file.nodes[file.meshes[0]].name == "person_0"


def test_hands_of_both_sides_move_in_one_animation(hand: PosableBody) -> None:
    people = [moving_person(hand, len(TIMES), seed, side) for seed, side in enumerate(SIDES)]
    content = encode_skinned_glb(hand, people, TIMES, names=["hand_0_right", "hand_1_left"])
    assert_moves_as(content, hand, people)
    file = SkinnedFile(content)
    assert len(file.file.animations) == 1  # what viewers play
    assert "wrist.R" in file.names(0)
    assert "wrist.L" in file.names(1)


SIDES = ("right", "left")


def test_normals_point_outward_on_both_sides(hand: PosableBody) -> None:
    people = [moving_person(hand, 1, seed, side) for seed, side in enumerate(SIDES)]
    file = SkinnedFile(encode_skinned_glb(hand, people, [0.0]))
    for mesh in file.file.meshes:
        attributes = mesh.primitives[0].attributes
        corners = file.read(attributes.POSITION)[file.read(mesh.primitives[0].indices)]
        a, b, c = corners.reshape(-1, 3, 3).swapaxes(0, 1).astype(float)
        # The divergence theorem: a surface whose faces turn outward encloses a positive volume.
        assert (np.cross(a, b) * c).sum() > 0
        normals = file.read(attributes.NORMAL)[file.read(mesh.primitives[0].indices)]
        flat = np.cross(b - a, c - a)
        assert ((normals.reshape(-1, 3, 3).mean(1) * flat).sum(1) > 0).mean() > 0.97


def test_a_still_person_stands_without_animation(body: PosableBody) -> None:
    track = moving_person(body, 1)
    file = SkinnedFile(encode_skinned_glb(body, [track], [0.0]))
    assert file.file.animations == []
    posed = place(body, track)
    assert furthest(file.vertices(0, 0.0), y_up(posed.vertices[0].numpy())) < KEY_FRAME_M


def test_upright_and_facing_the_viewer(body: PosableBody) -> None:
    frames = moving_person(body, 1, bend_rad=0.0)
    frames[0].rotations[0] = np.eye(3)
    file = SkinnedFile(encode_skinned_glb(body, [frames], [0.0]))
    heads = dict(zip(file.names(0), file.heads(0, 0.0), strict=True))
    assert heads["head"][1] > heads["root"][1] + 0.3 > heads["foot.L"][1] + 0.9
    assert heads["toe1-1.L"][2] > heads["foot.L"][2] + 0.03  # the toes point to the viewer, +z
    assert heads["wrist.L"][0] > heads["wrist.R"][0] + 0.3
    assert all(-4 < place[2] < -2 for place in heads.values())


def test_someone_comes_and_goes(hand: PosableBody) -> None:
    track: list[BodyParameters | None] = list(moving_person(hand, 3, side="right"))
    track[0] = None
    others = moving_person(hand, 3, 1, "right")
    file = SkinnedFile(encode_skinned_glb(hand, [track, others], TIMES))
    assert np.ptp(file.vertices(0, TIMES[0]), axis=0).max() < 1e-6  # nothing to see
    for time, frame in zip(TIMES[1:], track[1:], strict=True):
        expected = y_up(place(hand, [frame]).vertices[0].numpy())
        assert furthest(file.vertices(0, time), expected) < KEY_FRAME_M


def test_quaternions_take_the_short_way(hand: PosableBody) -> None:
    frames = moving_person(hand, 40, side="right", bend_rad=0.0)
    for step, frame in enumerate(frames):
        frame.rotations[3] = Rotation.from_rotvec([0, 0.3 * step, 0.01]).as_matrix()
    file = SkinnedFile(encode_skinned_glb(hand, [frames], np.arange(40) / 30))
    (animation,) = file.file.animations
    for channel in animation.channels:
        if channel.target.path == "rotation":
            turns = file.read(animation.samplers[channel.sampler].output)
            assert (turns[1:] * turns[:-1]).sum(1).min() > 0


@pytest.mark.parametrize("family", ["smpl", "mano"])
def test_bodies_of_the_user(tmp_path: Path, family: str) -> None:
    write = write_smpl_assets if family == "smpl" else write_mano_assets
    write(tmp_path)
    body = PosableBody.of_skinning(load_body_model(tmp_path, family), family)
    side = "left" if family == "mano" else None
    still = SkinnedFile(encode_skinned_glb(body, [moving_person(body, 1, side=side)], [0.0]))
    assert not still.file.meshes[0].primitives[0].targets  # the mesh itself is corrected
    posed = place(body, moving_person(body, 1, side=side))
    assert furthest(still.vertices(0, 0.0), y_up(posed.vertices[0].numpy())) < KEY_FRAME_M
    frames = moving_person(body, len(TIMES), side=side)
    content = encode_skinned_glb(body, [frames], TIMES)
    assert_moves_as(content, body, [frames])
    targets = SkinnedFile(content).file.meshes[0].primitives[0].targets
    assert len(targets) == len(TIMES) - 1  # what these poses differ in


class TestRefusals:
    def test_nobody(self, hand: PosableBody) -> None:
        with pytest.raises(InputError, match="at least one person"):
            encode_skinned_glb(hand, [], [0.0])
        with pytest.raises(InputError, match="found none at any time"):
            encode_skinned_glb(hand, [[None]], [0.0])

    @pytest.mark.parametrize("times", [[0.0, 0.0], [-1.0, 0.0], [0.0, float("nan")], []])
    def test_times(self, hand: PosableBody, times: list[float]) -> None:
        with pytest.raises(InputError, match="times_s"):
            encode_skinned_glb(hand, [moving_person(hand, 2, side="right")], times)

    def test_lengths(self, hand: PosableBody) -> None:
        with pytest.raises(InputError, match="one for each time"):
            encode_skinned_glb(hand, [moving_person(hand, 2, side="right")], [0.0])
        with pytest.raises(InputError, match="names"):
            encode_skinned_glb(hand, [moving_person(hand, 1)], [0.0], names=["a", "b"])

    def test_a_shape_that_changes(self, hand: PosableBody) -> None:
        frames = moving_person(hand, 2, side="right")
        frames[1] = moving_person(hand, 2, 5, "right")[1]
        with pytest.raises(InputError, match="one shape"):
            encode_skinned_glb(hand, [frames], [0.0, 1.0])

    def test_another_body(self, hand: PosableBody, body: PosableBody) -> None:
        with pytest.raises(InputError, match="body 'anny-hand', found anny-body"):
            encode_skinned_glb(hand, [moving_person(body, 1)], [0.0])
