"""Retargeted motion, the pose library, and the samplers of body and hand poses."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from kinemesh.bodies import load_rig
from kinemesh.data.synthetic import hand_poses
from kinemesh.data.synthetic.body_poses import (
    PoseLibrary,
    load_pose_library,
    mirror_rotvecs,
    read_pose_library,
    sample_body_pose,
    sample_body_poses,
)
from kinemesh.data.synthetic.hand_poses import (
    FINGERS,
    HAND_BONES,
    HAND_MODES,
    HandFrame,
    hand_positions,
    hand_rotations,
    joint_limits,
    sample_hand_angles,
    sample_hand_pose,
)
from kinemesh.data.synthetic.motions import forward_kinematics, read_amc, read_asf
from kinemesh.data.synthetic.retarget import (
    FROM_CMU,
    RestBones,
    bone_positions,
    build_pose_library,
    farthest_points,
    mapped_bones,
    remove_heading,
    retarget,
)
from kinemesh.errors import InputError
from kinemesh.geometry.rotations import axis_angle_to_matrix
from tests.tolerances import TOL

LIMBS = {
    "femur": ("upperleg01", "lowerleg01"),
    "tibia": ("lowerleg01", "foot"),
    "humerus": ("upperarm01", "lowerarm01"),
    "radius": ("lowerarm01", "wrist"),
    "hand": ("wrist", "finger3-1"),
}


@pytest.fixture(scope="module")
def body():
    return load_rig("anny-body")


@pytest.fixture(scope="module")
def hand():
    return load_rig("anny-hand")


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def assert_rotations(matrices):
    identity = torch.eye(3).expand_as(matrices)
    torch.testing.assert_close(matrices @ matrices.mT, identity, **TOL[torch.float32])
    assert (torch.linalg.det(matrices) > 0).all()


@pytest.fixture(scope="module")
def climb(shared):
    folder = shared / "data/cmu_mocap/asfamc/01"
    return read_amc(folder / "01_02.amc", read_asf(folder / "01.asf"))


class TestRetarget:
    def test_limbs_point_as_captured(self, body, climb):
        rest = RestBones.of(body)
        captured = forward_kinematics(climb)
        heads = bone_positions(retarget(climb, body), rest)
        names = climb.skeleton.names
        for side in "LR":
            for bone, (start, end) in LIMBS.items():
                index = names.index(side.lower() + bone)
                wanted = captured.tails_m[:, index] - captured.heads_m[:, index]
                found = (
                    heads[:, rest.index(f"{end}.{side}")] - heads[:, rest.index(f"{start}.{side}")]
                )
                cosine = (unit(wanted @ FROM_CMU.T) * unit(found)).sum(-1).clip(-1, 1)
                # the middle of a thigh is not on its line: half of the twist moves the knee a bit
                assert np.degrees(np.arccos(cosine)).max() < 2, (bone, side)

    def test_own_kinematics_equal_the_rig(self, body, climb):
        rotations = retarget(climb, body)[:4]
        shape = torch.zeros(4, len(body.shape_basis))
        posed = body.pose(torch.from_numpy(rotations).float(), shape)
        heads = torch.from_numpy(bone_positions(rotations, RestBones.of(body))).float()
        torch.testing.assert_close(posed.bones, heads, **TOL[torch.float32])

    def test_unmapped_bones_stay(self, body, climb):
        rotations = retarget(climb, body)
        still = [body.bones.index(name) for name in body.bones if name not in mapped_bones(body)]
        identity = np.broadcast_to(np.eye(3), rotations[:, still].shape)
        np.testing.assert_allclose(rotations[:, still], identity, atol=1e-9)

    def test_heading_is_what_turns_about_the_vertical(self):
        tilt = axis_angle_to_matrix(torch.tensor([[0.4, 0.0, -0.3]])).numpy().astype(float)
        turn = axis_angle_to_matrix(torch.tensor([[0.0, 2.5, 0.0]])).numpy().astype(float)
        np.testing.assert_allclose(remove_heading(turn @ tilt), tilt, atol=1e-6)
        np.testing.assert_allclose(remove_heading(tilt), tilt, atol=1e-6)

    def test_farthest_points_equal_the_obvious_loop(self):
        points = np.random.default_rng(0).normal(size=(60, 4))
        chosen = [0]
        while len(chosen) < 12:
            nearest = [min(np.linalg.norm(p - points[c]) for c in chosen) for p in points]
            chosen.append(int(np.argmax(nearest)))
        assert farthest_points(points, 12).tolist() == chosen


class TestLibrary:
    def test_the_shipped_library(self, body):
        library = load_pose_library()
        assert 1500 <= len(library) <= 2500
        assert set(library.bones) == set(mapped_bones(body))
        assert "EIA-0196217" in library.thanks
        assert "mocap.cs.cmu.edu" in library.thanks
        assert np.isfinite(library.rotvecs).all()
        assert np.linalg.norm(library.rotvecs, axis=-1).max() <= np.pi + 1e-2
        assert load_pose_library() is library

    def test_heads_are_mostly_above_the_pelvis(self, body):
        library = load_pose_library()
        rest = RestBones.of(body)
        rotations = np.tile(np.eye(3), (len(library), len(body.bones), 1, 1))
        columns = [rest.index(name) for name in library.bones]
        rotations[:, columns] = axis_angle_to_matrix(torch.from_numpy(library.rotvecs)).numpy()
        heads = bone_positions(rotations, rest)
        above = heads[:, rest.index("root"), 1] - heads[:, rest.index("head"), 1]
        assert (above > 0.3).mean() > 0.8
        assert (above < 0.3).any()  # and some crouch or lie

    def test_built_again_from_one_subject(self, body, shared, tmp_path):
        folder, output = shared / "data/cmu_mocap/asfamc/64", tmp_path / "poses.safetensors"
        assert build_pose_library(folder, output, body, count=20) == 111
        library = read_pose_library(output)
        assert library.rotvecs.shape == (20, len(mapped_bones(body)), 3)
        first = output.read_bytes()
        build_pose_library(folder, output, body, count=20)
        assert output.read_bytes() == first
        with pytest.raises(InputError, match="at least 500 frames, found 111"):
            build_pose_library(folder, output, body, count=500)

    def test_folder_without_motion_and_file_without_poses(self, body, tmp_path):
        with pytest.raises(InputError, match=r"\*\.amc"):
            build_pose_library(tmp_path, tmp_path / "out.safetensors", body)
        (tmp_path / "poses.safetensors").write_text(json.dumps({}))
        with pytest.raises(InputError, match="build_pose_library"):
            read_pose_library(tmp_path / "poses.safetensors")


class TestBodyPoses:
    def test_rotations_repeat_with_the_seed(self, body):
        rngs = [np.random.default_rng(seed) for seed in range(20)]
        poses = sample_body_poses(rngs, body)
        assert poses.shape == (20, len(body.bones), 3, 3)
        assert poses.dtype == torch.float32
        assert_rotations(poses)
        again = sample_body_pose(np.random.default_rng(7), body)
        torch.testing.assert_close(again, poses[7], rtol=0, atol=0)
        assert (poses[0] - poses[1]).abs().max() > 0.1

    def test_mirror_reflects_the_posed_bones(self, body):
        library = load_pose_library()
        rest = RestBones.of(body)
        rest = dataclasses.replace(rest, positions=_symmetric(rest))
        vectors = library.rotvecs[100]
        rotations = np.tile(np.eye(3), (2, len(body.bones), 1, 1))
        columns = [rest.index(name) for name in library.bones]
        both = np.stack([vectors, mirror_rotvecs(vectors, library)])
        rotations[:, columns] = axis_angle_to_matrix(torch.from_numpy(both)).numpy()
        plain, mirrored = bone_positions(rotations, rest)[:, columns]
        np.testing.assert_allclose(mirrored, plain[library.mirror] * [-1, 1, 1], atol=1e-5)

    def test_fingers_are_relaxed_on_both_hands(self, body):
        rest = RestBones.of(body)
        pose = sample_body_pose(np.random.default_rng(3), body).double().numpy()
        for side in "LR":
            for finger in (2, 3, 4, 5):
                turn = pose[rest.index(f"finger{finger}-2.{side}")]
                angle = np.degrees(np.arccos((np.trace(turn) - 1) / 2))
                assert angle < 75

    def test_a_hand_is_no_body(self, hand):
        with pytest.raises(InputError, match="anny-body"):
            sample_body_pose(np.random.default_rng(0), hand)

    def test_a_library_of_one_pose(self, body):
        source = load_pose_library()
        still = PoseLibrary(source.bones, np.zeros_like(source.rotvecs[:1]), "none")
        pose = sample_body_pose(np.random.default_rng(0), body, still)
        knee = pose[body.bones.index("lowerleg01.L")]
        assert torch.rad2deg((knee - torch.eye(3)).norm()) < 20  # only the noise


def _symmetric(rest):
    other = {"L": "R", "R": "L"}
    names = [
        f"{name[:-1]}{other[name[-1]]}" if name[-2:] in (".L", ".R") else name
        for name in rest.names
    ]
    swapped = rest.positions[[rest.index(name) for name in names]]
    return (rest.positions + swapped * [-1, 1, 1]) / 2


class TestHandPoses:
    @pytest.mark.parametrize("mode", HAND_MODES)
    def test_angles_respect_the_limits(self, mode):
        _, angles = sample_hand_angles(np.random.default_rng(1), 500, mode)
        for row, name in enumerate(HAND_BONES):
            limit = dataclasses.astuple(joint_limits()[name])
            for column, (low, high) in enumerate(limit):
                assert low <= angles[:, row, column].min(), name
                assert angles[:, row, column].max() <= high, name

    def test_posed_flexion_respects_the_limits(self, hand):
        """Measured on the bones: the angle between phalanges in the finger's plane of bending."""
        frame = HandFrame.of(hand)
        _, angles = sample_hand_angles(np.random.default_rng(2), 400, "random")
        heads, _ = hand_positions(hand_rotations(angles, frame).double().numpy(), frame)
        for finger in FINGERS:
            rows = [HAND_BONES.index(f"finger{finger}-{joint}") for joint in (1, 2, 3)]
            first = unit(heads[:, rows[1]] - heads[:, rows[0]])
            second = unit(heads[:, rows[2]] - heads[:, rows[1]])
            bend = np.degrees(np.arccos((first * second).sum(-1).clip(-1, 1)))
            low, high = joint_limits()[f"finger{finger}-2"].flexion
            assert bend.max() < high + 3  # rest bones lie up to 3 degrees out of that plane
            np.testing.assert_allclose(bend, np.abs(angles[:, rows[1], 0]), atol=6)
            assert low < 0 < high

    def test_fingers_curl_toward_the_palm_and_last_joints_follow(self, hand):
        frame = HandFrame.of(hand)
        straight = np.zeros((len(HAND_BONES), 3))
        fist = straight.copy()
        for finger in FINGERS:
            for joint, angle in ((1, 80), (2, 90), (3, 55)):
                fist[HAND_BONES.index(f"finger{finger}-{joint}"), 0] = angle
        turns = hand_rotations(np.stack([straight, fist]), frame).double().numpy()
        heads, tips = hand_positions(turns, frame)
        wrist = HAND_BONES.index("wrist")
        index, pinky = (heads[0, HAND_BONES.index(f"finger{n}-1")] for n in (2, 5))
        palmar = unit(np.cross(index - heads[0, wrist], pinky - heads[0, wrist]))
        for finger in FINGERS:
            knuckle = heads[1, HAND_BONES.index(f"finger{finger}-1")]
            assert (tips[1, finger - 1] - knuckle) @ palmar > 0.01
            reach = np.linalg.norm(tips[:, finger - 1] - heads[:, wrist], axis=-1)
            assert reach[1] < reach[0] - 0.04
        _, angles = sample_hand_angles(np.random.default_rng(0), 2000, "random")
        pip, dip = (angles[:, HAND_BONES.index(f"finger3-{joint}"), 0] for joint in (2, 3))
        assert np.polyfit(pip, dip, 1)[0] == pytest.approx(0.62, abs=0.03)

    def test_the_zero_hand_is_flat_and_the_rest_angles_give_the_rest_pose(self, hand):
        frame = HandFrame.of(hand)
        turns = hand_rotations(frame.rest, frame)
        torch.testing.assert_close(turns, torch.eye(3).expand_as(turns), **TOL[torch.float32])
        flat = hand_rotations(np.zeros_like(frame.rest)[None], frame).double().numpy()
        heads, _ = hand_positions(flat, frame)
        first = [HAND_BONES.index(f"finger{finger}-1") for finger in FINGERS]
        second = [HAND_BONES.index(f"finger{finger}-2") for finger in FINGERS]
        directions = unit(heads[0, second] - heads[0, first])
        middle = directions[1]
        assert np.degrees(np.arccos(directions @ middle)).max() < 12  # the palm's arch remains

    def test_pinch_brings_the_thumb_to_a_finger(self, hand):
        frame = HandFrame.of(hand)
        gaps = []
        for seed in range(30):
            pose = sample_hand_pose(np.random.default_rng(seed), hand, "pinch")
            _, tips = hand_positions(pose[list(frame.bones)].double().numpy()[None], frame)
            gaps.append(np.linalg.norm(tips[0, 0] - tips[0, 1:], axis=-1).min())
        assert np.median(gaps) < 0.022  # centres of tips 15 mm thick

    def test_overlap_of_spheres_equals_the_obvious_loop(self, hand):
        frame = HandFrame.of(hand)
        _, angles = sample_hand_angles(np.random.default_rng(5), 4, "fist")
        spheres = hand_poses._spheres(
            *hand_positions(hand_rotations(angles, frame).double().numpy(), frame)
        )
        found = hand_poses._overlap(spheres, frame)
        for pose, overlap in zip(spheres, found, strict=True):
            depths = [
                frame.allowed_m[i, j] - np.linalg.norm(pose[i] - pose[j])
                for i in range(len(pose))
                for j in range(i)
            ]
            assert overlap == pytest.approx(max(0, *depths), abs=1e-9)

    def test_kept_poses_hardly_interpenetrate(self, hand):
        frame = HandFrame.of(hand)
        depth = []
        for seed in range(60):
            pose = sample_hand_pose(np.random.default_rng(seed), hand)
            turns = pose[list(frame.bones)].double().numpy()[None]
            spheres = hand_poses._spheres(*hand_positions(turns, frame))
            depth.append(hand_poses._overlap(spheres, frame)[0])
        assert max(depth) < 0.004
        assert np.mean(np.array(depth) <= 0.002) > 0.9

    def test_rotations_repeat_with_the_seed(self, hand):
        pose = sample_hand_pose(np.random.default_rng(11), hand)
        assert pose.shape == (len(hand.bones), 3, 3)
        assert pose.dtype == torch.float32
        assert_rotations(pose)
        again = sample_hand_pose(np.random.default_rng(11), hand)
        torch.testing.assert_close(again, pose, rtol=0, atol=0)

    def test_body_and_hand_rig_give_the_same_hand(self, hand, body):
        for_hand = sample_hand_pose(np.random.default_rng(4), hand, "digits")
        for_body = sample_hand_pose(np.random.default_rng(4), body, "digits")
        where = [body.bones.index(name) for name in hand.bones]
        torch.testing.assert_close(for_body[where], for_hand, rtol=0, atol=1e-3)  # rounded rests

    def test_unknown_mode_is_refused(self, hand):
        with pytest.raises(InputError, match="expected one of open, relaxed"):
            sample_hand_pose(np.random.default_rng(0), hand, "wave")
