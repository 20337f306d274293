"""Labelled sets of real photos: which label is which joint, and what their scores mean."""

import importlib
import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat

from kinemesh.errors import InputError
from kinemesh.evaluation import real_photos
from kinemesh.evaluation.real_photos import LabelledBox, LabelledSet, box_of_joints, read_real_sets
from kinemesh.evaluation.real_scores import (
    PlacedJoints,
    common_joints,
    draw_into_box,
    pooled,
    score_real,
)
from kinemesh.evaluation.real_views import view_of
from kinemesh.skeletons import COCO17, HAND21, METRO24

JOINTS = ("shoulder", "hip", "knee", "ankle")
LIMBS = {
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
}


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def numbered(count, labelled=1):
    """x = joint, y = 2 joint."""
    return [value for k in range(count) for value in (k, 2 * k, labelled)]


def coco_file(path, people, file_name="a.png"):
    picture(path.parent / file_name)
    rows = [{"image_id": 7, "id": k + 1, "category_id": 1} | one for k, one in enumerate(people)]
    write(path, {"images": [{"id": 7, "file_name": file_name}], "annotations": rows})


def only(folder, name):
    [found] = read_real_sets(folder, [name])
    return found


def point(labels, name, sample=0):
    return labels.samples[sample].points_px[labels.joints.index(name)].tolist()


class TestLabels:
    @pytest.mark.parametrize(
        ("layout", "count"),
        [
            ("H36M_LABELS", 17),
            ("MPI_INF_3DHP_LABELS", 17),
            ("AI_CHALLENGER_LABELS", 14),
            ("CROWD_POSE_LABELS", 14),
            ("JHMDB_LABELS", 15),
            ("POSE_TRACK_LABELS", 17),
        ],
    )
    def test_every_layout_names_known_joints_and_all_limbs(self, layout, count):
        labels = getattr(real_photos, layout)
        names = [name for name in labels if name]
        assert len(labels) == count
        assert len(set(names)) == len(names)
        assert set(names) >= LIMBS
        assert set(names) <= set(METRO24.joints)

    def test_fingers_that_count_from_the_tip(self):
        assert set(real_photos.TIP_TO_PALM) | {"wrist"} == set(HAND21.joints)
        assert real_photos.TIP_TO_PALM[:5] == (
            "thumb_4",
            "thumb_3",
            "thumb_2",
            "thumb_1",
            "index_4",
        )

    def test_box_grows_about_its_middle(self):
        points = np.array([[0.0, 0.0], [10.0, 20.0], [99.0, 99.0]])
        box = box_of_joints(points, np.array([True, True, False]), 1.5)
        assert box == pytest.approx((-2.5, -5.0, 15.0, 30.0))


class TestReaders:
    def test_hands_of_rhd(self, tmp_path):
        path = tmp_path / "mmpose_tests/rhd/test_rhd.json"
        camera = [[0.0, 0.0, 400.0 + k] for k in range(21)]
        coco_file(path, [{"keypoints": numbered(21), "joint_cam": camera, "hand_type": "left"}])
        labels = only(tmp_path, "rhd")
        assert (labels.kind, labels.has_3d, labels.samples[0].side) == ("hand", True, "left")
        assert point(labels, "wrist") == [0, 0]
        assert point(labels, "thumb_4") == [1, 2]
        assert point(labels, "pinky_1") == [20, 40]
        assert labels.samples[0].points_m[4].tolist() == [0, 0, 0.404]

    def test_interhand_projects_the_hand_that_is_there(self, tmp_path):
        folder = tmp_path / "mmpose_tests/interhand2.6m"
        image = {"file_name": "a.png", "capture": 3, "camera": "c", "frame_idx": 5}
        picture(folder / "a.png")
        write(folder / "test_interhand2.6m_data.json", {"images": [image]})
        pose = {"campos": [0, 0, -1000], "camrot": np.eye(3).tolist()}
        lens = {"focal": [500, 400], "princpt": [100, 50]}
        cameras = {"3": {key: {"c": value} for key, value in (pose | lens).items()}}
        write(folder / "test_interhand2.6m_camera.json", cameras)
        world = [[float(k), 10.0, 0.0] for k in range(42)]
        scene = {"world_coord": world, "joint_valid": [[1]] * 42, "hand_type": "left"}
        write(folder / "test_interhand2.6m_joint_3d.json", {"3": {"5": scene}})
        labels = only(tmp_path, "interhand2.6m")
        assert [one.side for one in labels.samples] == ["left"]
        assert point(labels, "thumb_4") == pytest.approx([100 + 21 * 0.5, 54])
        assert point(labels, "wrist") == pytest.approx([100 + 41 * 0.5, 54])
        assert labels.samples[0].points_m[-1] == pytest.approx([0.041, 0.01, 1.0])

    def test_people_of_coco_without_crowds_and_unlabelled_ones(self, tmp_path):
        path = tmp_path / "mmpose_tests/aic/test_aic.json"
        box = {"bbox": [1, 2, 3, 4]}
        people = [
            box | {"keypoints": numbered(14)},
            box | {"keypoints": numbered(14), "iscrowd": 1},
            box | {"keypoints": numbered(14, 0)},
        ]
        coco_file(path, people)
        labels = only(tmp_path, "aic")
        assert [one.box_px for one in labels.samples] == [(1, 2, 3, 4)]
        assert point(labels, "neck") == [13, 26]

    def test_left_and_right_hands_of_whole_bodies(self, tmp_path):
        path = tmp_path / "mmpose_tests/coco/test_coco_wholebody.json"
        hands = {"lefthand_kpts": numbered(21, 0), "righthand_kpts": numbered(21)}
        coco_file(path, [hands])
        labels = only(tmp_path, "coco-wholebody-hands")
        assert [one.side for one in labels.samples] == ["right"]

    def test_people_with_depth(self, tmp_path):
        folder = tmp_path / "mmpose_tests/h36m"
        picture(folder / "a.png")
        part = np.reshape(numbered(17), (1, 17, 3)).astype(float)
        space = np.concatenate([part, np.ones((1, 17, 1))], axis=2)
        np.savez(folder / "test_h36m_body3d.npz", imgname=np.array(["a.png"]), part=part, S=space)
        labels = only(tmp_path, "h36m")
        assert "spine" not in labels.joints
        assert point(labels, "right_knee") == [2, 4]
        assert labels.samples[0].points_m[labels.joints.index("head")].tolist() == [10, 20, 1]

    def test_lspet(self, tmp_path):
        folder = tmp_path / "lspet_fixture"
        picture(folder / "images/im00001.jpg")
        joints = np.reshape(numbered(14), (14, 3, 1)).astype(float)
        savemat(folder / "joints.mat", {"joints": joints})
        assert point(only(tmp_path, "lspet"), "head_top") == [13, 26]
        picture(folder / "images/im00002.jpg")
        with pytest.raises(InputError, match="2 photos"):
            read_real_sets(tmp_path)

    def test_damage_is_said(self, tmp_path):
        path = tmp_path / "mmpose_tests/rhd/test_rhd.json"
        coco_file(
            path, [{"keypoints": numbered(20), "joint_cam": [[0, 0, 1]], "hand_type": "left"}]
        )
        with pytest.raises(InputError, match="labels of rhd"):
            read_real_sets(tmp_path)

    def test_labels_without_photos(self, tmp_path):
        path = tmp_path / "mmpose_tests/freihand/test_freihand.json"
        coco_file(path, [{"keypoints": numbered(21)}])
        (path.parent / "a.png").unlink()
        with pytest.raises(InputError, match="no photo"):
            read_real_sets(tmp_path)

    def test_what_is_not_there_is_said(self, tmp_path):
        with pytest.raises(InputError, match="found none of them"):
            read_real_sets(tmp_path)
        with pytest.raises(InputError, match="no set named nonsense"):
            read_real_sets(tmp_path, ["nonsense"])
        with pytest.raises(InputError, match="test_rhd"):
            read_real_sets(tmp_path, ["rhd"])


@pytest.fixture
def bodies(tmp_path):
    """Two people of COCO's joints with depth, boxes of 128 px, one joint unlabelled."""
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(2):
        points_m = rng.normal(size=(17, 3)) * 0.4 + [0, 0, 4.0]
        labelled = np.ones(17, dtype=bool)
        labelled[3] = False
        places = points_m[:, :2] * 100
        samples.append(LabelledBox(tmp_path, (0, 0, 128, 64), places, labelled, points_m))
    return LabelledSet("made-up", "body", COCO17.joints, tuple(samples), "made up")


def perfect(labels):
    ones = np.ones(len(labels.joints))
    return [
        PlacedJoints(labels.joints, np.copy(one.points_px), copied(one.points_m), ones, 1.0)
        for one in labels.samples
    ]


def copied(points):
    return None if points is None else np.copy(points)


class TestScores:
    def test_the_labels_themselves_are_perfect(self, bodies):
        score = score_real(bodies, perfect(bodies), "same")
        assert (score.samples, score.joints) == (2, 32)
        assert score.error_px == score.mpjpe_mm == 0
        assert score.pa_mpjpe_mm == pytest.approx(0, abs=1e-3)
        assert score.pck_2d == score.auc_2d == score.pck_3d == score.auc_3d == 1
        assert math.isnan(score.coco_ap)
        assert score.to_dict()["coco_ap"] is None

    def test_pixels_are_those_of_a_box_of_256(self, bodies):
        moved = [
            replace(one, points_px=one.points_px + np.array([10, 0])) for one in perfect(bodies)
        ]
        score = score_real(bodies, moved, "moved")
        assert score.error_px == pytest.approx(20, abs=1e-4)
        assert score.pck_2d == 1
        assert score.auc_2d == pytest.approx(1 / 3, abs=0.02)

    def test_unlabelled_joints_do_not_count(self, bodies):
        answers = perfect(bodies)
        for one in answers:
            one.points_px[3] = 1e6
            one.points_m[3] = 1e6
        assert score_real(bodies, answers, "wild").error_px == 0

    def test_a_similarity_is_forgiven_by_pa_alone_and_a_mirror_by_none(self, bodies):
        def changed(change):
            answers = [replace(one, points_m=change(one.points_m)) for one in perfect(bodies)]
            return score_real(bodies, answers, "changed")

        turned = changed(lambda points: 2 * points @ np.diag([-1.0, -1.0, 1.0]) + 5)
        assert turned.pa_mpjpe_mm == pytest.approx(0, abs=1e-2)
        assert turned.mpjpe_mm > 100
        assert changed(lambda points: points * [-1, 1, 1]).pa_mpjpe_mm > 50

    def test_only_common_joints_in_the_order_of_the_labels(self, bodies):
        answers = [
            replace(one, joints=one.joints[::-1], points_px=one.points_px[::-1], points_m=None)
            for one in perfect(bodies)
        ]
        score = score_real(bodies, answers, "reversed", {"left_knee", "nose", "neck"})
        assert score.joint_names == ("nose", "left_knee")
        assert score.error_px == 0
        assert math.isnan(score.pa_mpjpe_mm)
        with pytest.raises(InputError, match="no joint in common"):
            common_joints(COCO17.joints, HAND21.joints)
        with pytest.raises(InputError, match="expected 2"):
            score_real(bodies, answers[:1], "short")

    def test_pooling_weighs_samples_and_skips_what_is_missing(self, bodies):
        flat = score_real(bodies, perfect(bodies), "m")
        more = replace(flat, samples=6, error_px=4.0, pa_mpjpe_mm=math.nan)
        both = pooled([flat, more], "all")
        assert (both.samples, both.joints) == (8, 64)
        assert both.error_px == 3.0
        assert both.pa_mpjpe_mm == flat.pa_mpjpe_mm

    def test_coco_scores_the_labels_themselves_as_1(self, tmp_path):
        path = tmp_path / "mmpose_tests/coco/test_coco.json"
        person = {"keypoints": numbered(17, 2), "bbox": [0, 0, 40, 40], "area": 1600.0}
        coco_file(path, [person | {"num_keypoints": 17, "iscrowd": 0}])
        labels = only(tmp_path, "coco-val")
        pytest.importorskip("faster_coco_eval")
        answers = perfect(labels)
        assert score_real(labels, answers, "same").coco_ap == pytest.approx(1)
        far = [replace(one, points_px=one.points_px + 500) for one in answers]
        assert score_real(labels, far, "far").coco_ap == 0

    def test_a_constant_shape_fills_the_box(self, tmp_path):
        joints = torch.tensor([[0.0, -1.0, 0.0], [0.5, 1.0, 0.0]])
        labelled = np.ones(2, dtype=bool)
        sample = LabelledBox(tmp_path, (10, 20, 30, 60), np.zeros((2, 2)), labelled, side="left")
        answer = draw_into_box(sample, ("a", "b"), joints, joints)
        assert answer.points_px == pytest.approx(np.array([[32.5, 20], [17.5, 80]]))
        right = draw_into_box(replace(sample, side="right"), ("a", "b"), joints, joints)
        assert right.points_px == pytest.approx(np.array([[17.5, 20], [32.5, 80]]))


class TestViews:
    """A standing figure, facing the camera, and what turns it into something else."""

    def view(self, change=lambda points: points, missing=()):
        names = [f"{side}_{joint}" for joint in JOINTS for side in ("left", "right")]
        places = [(x, y) for y in (0, 40, 70, 100) for x in (10, -10)]
        points = dict(zip(names, np.array(places, dtype=float), strict=True))
        points = change(points)
        labelled = np.array([name not in missing for name in names])
        sample = LabelledBox(None, (0, 0, 50, 120), np.array(list(points.values())), labelled)
        return view_of(sample, tuple(names))

    def turned(self, degrees):
        angle = math.radians(degrees)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return self.view(lambda points: {name: turn @ place for name, place in points.items()})

    def test_standing(self):
        assert self.view() == "front"
        flip = np.array([-1.0, 1.0])
        assert self.view(lambda points: {k: v * flip for k, v in points.items()}) == "back"
        thin = np.array([0.1, 1.0])
        assert self.view(lambda points: {k: v * thin for k, v in points.items()}) == "side"

    @pytest.mark.parametrize(
        ("degrees", "view"),
        [(20, "front"), (-45, "leaning"), (90, "lying"), (180, "lying")],
    )
    def test_turned_in_the_image(self, degrees, view):
        assert self.turned(degrees) == view

    def test_sitting_and_truncated(self):
        def seated(points):
            lap = np.array([40.0, 5.0])
            return points | {f"{s}_knee": points[f"{s}_hip"] + lap for s in ("left", "right")}

        assert self.view(seated) == "sitting"
        assert self.view(missing=("left_ankle",)) == "truncated"


@pytest.fixture
def benchmark_folder(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "benchmarks"))


class TestModels:
    def test_each_has_a_name_of_its_own(self, benchmark_folder, monkeypatch):
        script = importlib.import_module("real_fixtures")
        monkeypatch.setattr(script.kinemesh, "load", lambda place, _: place)
        texts = ["body=body", "body=a/w.safetensors", "body=b/w.safetensors", "hand=x.safetensors"]
        models = script.load_all(texts)
        names = ["shipped body", "a/w.safetensors", "b/w.safetensors", "x"]
        assert [one.name for one in models] == names
        assert [one.kind for one in models] == ["body", "body", "body", "hand"]
        with pytest.raises(InputError, match="comes 2 times"):
            script.load_all(["hand=x", "hand=x"])
        with pytest.raises(InputError, match="found 'foot=x'"):
            script.load_all(["foot=x"])


class TestPeer:
    @pytest.fixture
    def peer(self, benchmark_folder):
        return importlib.import_module("peer_mediapipe")

    def test_names_of_the_landmarks(self, peer):
        assert len(peer.POSE_JOINTS) == 33
        assert set(COCO17.joints) == set(peer.POSE_JOINTS) - {""}
        assert peer.POSE_JOINTS[11:17:2] == ("left_shoulder", "left_elbow", "left_wrist")
        assert peer.POSE_JOINTS[28] == "right_ankle"

    def test_squares_go_to_the_input_and_back(self, peer):
        square = peer.Square(np.array([40.0, 30.0]), 20.0, 0.3)
        points = np.array([[40.0, 30.0], [44.0, 27.0]])
        matrix = square.matrix(224)
        inside = points @ matrix[:, :2].T + matrix[:, 2]
        assert inside[0] == pytest.approx([112, 112])
        assert square.to_photo(inside, 224) == pytest.approx(points)
        offset = inside[1] - inside[0]
        back = square.turned_back(np.array([[*offset, 5.0]]))[0]
        assert back == pytest.approx([4 * 11.2, -3 * 11.2, 5.0])

    def test_the_second_square_puts_fingers_up(self, peer):
        points = np.zeros((21, 2))
        points[:, 0] = np.linspace(0, 20, 21)  # fingers to the right
        found = peer.Landmarks(points, np.zeros((21, 3)), np.ones(21), 1.0)
        square = peer.next_hand(found)
        matrix = square.matrix(224)
        inside = points @ matrix[:, :2].T + matrix[:, 2]
        assert inside[9, 0] == pytest.approx(inside[0, 0])
        assert inside[9, 1] < inside[0, 1]
        assert inside[9, 1] < 0.75 * 224

    def test_the_second_square_of_a_body_stands_upright(self, peer):
        points = np.zeros((39, 2))
        points[33], points[34] = (50, 50), (90, 50)
        square = peer.next_body(peer.Landmarks(points, np.zeros((39, 3)), np.ones(39), 1.0))
        top = square.matrix(256) @ [90, 50, 1]
        assert top == pytest.approx([128, 128 - 128 / 1.25])


def test_fixtures_of_this_machine(shared):
    sets = {one.name: one for one in read_real_sets(shared / "data")}
    assert len(sets["coco-train"].samples) == 86
    assert len(sets["lspet"].samples) == 24
    for labels in sets.values():
        score = score_real(labels, perfect(labels), "labels", coco=False)
        assert score.error_px == 0
        assert labels.has_3d is not math.isnan(score.pa_mpjpe_mm)
        for sample in labels.samples:
            assert sample.side_px > 5
    hands = sets["interhand2.6m"]
    lengths = [
        np.linalg.norm(one.points_m[hands.joints.index("wrist")] - one.points_m[joint])
        for one in hands.samples
        for joint in [hands.joints.index("middle_1")]
    ]
    assert 0.07 < min(lengths) <= max(lengths) < 0.12
