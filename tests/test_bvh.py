"""A BVH file, read by a small reader of the format, has the bones of the posed body."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from kinemesh.bodies.parameters import place
from kinemesh.bodies.posable import PosableBody, posable_body
from kinemesh.errors import InputError
from kinemesh.formats.bvh import encode_bvh
from tests.moving_people import moving_person, small_body


@dataclass
class Joint:
    name: str
    parent: int
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))
    channels: list[str] = field(default_factory=list)


class BvhFile:
    """Joints in the file's order, their offsets, and where they are in each frame."""

    def __init__(self, content: bytes) -> None:
        self.words = content.decode("ascii").split()
        self.joints: list[Joint] = []
        self.ends: dict[int, np.ndarray] = {}
        assert self.words.pop(0) == "HIERARCHY"
        assert self.words.pop(0) == "ROOT"
        self._joint(-1)
        assert [self.words.pop(0) for _ in range(2)] == ["MOTION", "Frames:"]
        count = int(self.words.pop(0))
        assert [self.words.pop(0) for _ in range(2)] == ["Frame", "Time:"]
        self.frame_time = float(self.words.pop(0))
        self.motion = np.array(self.words, float).reshape(count, -1)

    def _joint(self, parent: int) -> None:
        joint = Joint(self.words.pop(0), parent)
        number = len(self.joints)
        self.joints.append(joint)
        assert self.words.pop(0) == "{"
        while (word := self.words.pop(0)) != "}":
            if word == "OFFSET":
                joint.offset = self._numbers(3)
            elif word == "CHANNELS":
                joint.channels = [self.words.pop(0) for _ in range(int(self.words.pop(0)))]
            elif word == "JOINT":
                self._joint(number)
            else:
                assert (word, self.words.pop(0)) == ("End", "Site")
                assert [self.words.pop(0) for _ in range(2)] == ["{", "OFFSET"]
                self.ends[number] = self._numbers(3)
                assert self.words.pop(0) == "}"

    def _numbers(self, count: int) -> np.ndarray:
        return np.array([float(self.words.pop(0)) for _ in range(count)])

    def heads(self, frame: int) -> dict[str, np.ndarray]:
        values = iter(self.motion[frame])
        turns: list[np.ndarray] = []
        heads: list[np.ndarray] = []
        for joint in self.joints:
            place, turn = joint.offset.copy(), np.eye(3)
            for channel in joint.channels:
                axis = "XYZ".index(channel[0])
                if channel.endswith("position"):
                    place[axis] += next(values)
                else:
                    vector = np.eye(3)[axis] * np.radians(next(values))
                    turn = turn @ Rotation.from_rotvec(vector).as_matrix()
            if joint.parent >= 0:
                place = heads[joint.parent] + turns[joint.parent] @ place
                turn = turns[joint.parent] @ turn
            heads.append(place)
            turns.append(turn)
        assert next(values, None) is None
        return dict(zip([joint.name for joint in self.joints], heads, strict=True))


@pytest.fixture(scope="module")
def body() -> PosableBody:
    return posable_body("anny-body")


@pytest.fixture(scope="module")
def hand() -> PosableBody:
    return posable_body("anny-hand")


def assert_bones(file: BvhFile, body: PosableBody, names: tuple[str, ...], frames: list) -> None:
    for number, frame in enumerate(frames):
        found = file.heads(number)
        expected = place(body, [frame]).bones[0].numpy() * [1, -1, -1]
        np.testing.assert_allclose([found[name] for name in names], expected, atol=1e-4)


def test_bones_of_a_body_are_where_they_were(body: PosableBody) -> None:
    frames = moving_person(body, 4)
    file = BvhFile(encode_bvh(body, frames, 1 / 30))
    assert file.frame_time == pytest.approx(1 / 30)
    assert_bones(file, body, body.bones, frames)
    root = file.joints[0]
    assert root.offset.tolist() == [0, 0, 0]
    assert root.channels[:3] == ["Xposition", "Yposition", "Zposition"]
    assert all(len(joint.channels) == 3 for joint in file.joints[1:])


def test_a_left_hand_is_the_mirror_image_of_a_right_one(hand: PosableBody) -> None:
    frames = moving_person(hand, 3, side="left")
    file = BvhFile(encode_bvh(hand, frames, 0.1))
    left = hand.mirrored().bones
    assert "wrist.L" in left
    assert_bones(file, hand, left, frames)


def test_the_rest_pose_stands_upright_and_faces_plus_z(body: PosableBody) -> None:
    file = BvhFile(encode_bvh(body, moving_person(body, 1), 1.0))
    file.motion[:] = 0
    heads = file.heads(0)
    assert heads["head"][1] > 0.3 > -0.6 > heads["foot.R"][1]
    assert heads["toe1-1.L"][2] > heads["foot.L"][2] + 0.03
    assert heads["wrist.L"][0] > 0.2
    (head_end,) = (end for joint, end in file.ends.items() if file.joints[joint].name == "toe1-2.L")
    assert head_end[2] > 0.005  # out of the toe, to the front


def test_bones_that_are_not_in_depth_first_order() -> None:
    body = small_body()
    frames = moving_person(body, 2)
    file = BvhFile(encode_bvh(body, frames, 0.5))
    names = ["root", "thigh.L", "shin.L", "foot.L", "thigh.R", "shin.R"]
    assert [joint.name for joint in file.joints] == names
    assert_bones(file, body, body.bones, frames)
    np.testing.assert_allclose(file.ends[5], [0, -0.1, -0.02], atol=1e-6)


def test_centimetres(hand: PosableBody) -> None:
    frames = moving_person(hand, 2, side="right")
    metres, centimetres = (
        BvhFile(encode_bvh(hand, frames, 1.0, units_per_metre=scale)) for scale in (1, 100)
    )
    for name, head in metres.heads(1).items():
        np.testing.assert_allclose(centimetres.heads(1)[name], 100 * head, atol=1e-2)


def test_angles_do_not_jump(hand: PosableBody) -> None:
    frames = moving_person(hand, 60, side="right", bend_rad=0.0)
    for step, frame in enumerate(frames):
        frame.rotations[0] = Rotation.from_rotvec([0, 0.2 * step, 0]).as_matrix()
    file = BvhFile(encode_bvh(hand, frames, 1 / 30))
    assert np.abs(np.diff(file.motion[:, 3:], axis=0)).max() < 20
    assert np.ptp(file.motion[:, 3:], axis=0).max() > 600


def test_a_gap_holds_the_last_pose(hand: PosableBody) -> None:
    frames = moving_person(hand, 4, side="right")
    motion = BvhFile(encode_bvh(hand, [None, frames[1], None, frames[3]], 1.0)).motion
    whole = BvhFile(encode_bvh(hand, frames, 1.0)).motion
    np.testing.assert_allclose(motion, whole[[1, 1, 1, 3]], atol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
    def test_numbers(self, hand: PosableBody, value: float) -> None:
        frames = moving_person(hand, 1, side="right")
        with pytest.raises(InputError, match="frame_time_s"):
            encode_bvh(hand, frames, value)
        with pytest.raises(InputError, match="units_per_metre"):
            encode_bvh(hand, frames, 1.0, units_per_metre=value)

    def test_nobody_and_two_shapes(self, hand: PosableBody) -> None:
        with pytest.raises(InputError, match="found none"):
            encode_bvh(hand, [], 1.0)
        frames = moving_person(hand, 2, side="right")
        frames[1] = moving_person(hand, 2, 3, "right")[1]
        with pytest.raises(InputError, match="one shape"):
            encode_bvh(hand, frames, 1.0)
