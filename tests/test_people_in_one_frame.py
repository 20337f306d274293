import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kinemesh
from kinemesh.cli import main
from kinemesh.errors import InputError
from kinemesh.formats.people_json import read_people_json
from kinemesh.formats.people_npz import read_people_npz
from kinemesh.inference import detectors
from kinemesh.inference.boxes import Box
from kinemesh.inference.focal import AUTO, read_focal
from kinemesh.inference.images import LoadedImage, image_from_array
from kinemesh.inference.people import (
    LOOK_SIDE,
    PALM_AHEAD,
    SIZE_LIMITS,
    PeoplePredictor,
    assign_owners,
    look_box,
    move_to_wrist,
    second_look,
    wrist_and_elbow,
)
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.skeletons import get_skeleton
from tests.fake_predictor import fake_people, fake_predictor, spot_photo
from tests.test_mesh_networks import pose_predictor

CAMERA = PhotoCamera(500.0, (160.0, 120.0), (320, 240))
COCO = get_skeleton("coco17")
PHOTO = spot_photo(400, 300, 150, 160)


def body_with(joints: dict[str, tuple[float, float, float]], sure: float = 1.0) -> Person:
    """Somebody whose named joints are at camera-frame places; the others stand 3 m ahead."""
    places = np.tile(np.array([0.0, 0.0, 3.0]), (len(COCO), 1))
    for name, place in joints.items():
        places[COCO.index(name)] = place
    return Person(
        vertices=places.astype(np.float32),
        faces=np.zeros((0, 3), np.int64),
        joints=places.astype(np.float32),
        joints_px=CAMERA.project(places).astype(np.float32),
        joint_confidence=np.full(len(COCO), sure, np.float32),
        skeleton="coco17",
        box_px=(0, 0, 320, 240),
        side=None,
        score=sure,
        camera=CAMERA,
    )


ARM = {"left_elbow": (0.1, 0.0, 3.0), "left_wrist": (0.35, 0.0, 3.0)}


class TestLookBox:
    def test_beyond_the_wrist_on_the_line_of_the_forearm(self) -> None:
        box = look_box(body_with(ARM), "left")
        assert box is not None
        side = LOOK_SIDE * 0.25 * 500 / 3
        middle = 500 / 3 * (0.35 + PALM_AHEAD * 0.25) + 160
        np.testing.assert_allclose(
            box.xywh, (middle - side / 2, 120 - side / 2, side, side), atol=1e-3
        )
        assert box.side == "left"

    def test_a_forearm_that_points_at_the_camera_keeps_its_length(self) -> None:
        body = body_with({"left_elbow": (0.1, 0.0, 3.0), "left_wrist": (0.1, 0.0, 2.75)})
        box = look_box(body, "left")
        assert box is not None
        depth = 2.75 - PALM_AHEAD * 0.25
        assert box.width == pytest.approx(LOOK_SIDE * 0.25 * 500 / depth)

    def test_the_picture_says_where_the_wrist_is(self) -> None:
        body = body_with(ARM)
        shifted = replace(body, joints_px=body.joints_px + np.array([10, -20], np.float32))
        before, after = look_box(body, "left"), look_box(shifted, "left")
        assert before is not None
        assert after is not None
        assert (after.x - before.x, after.y - before.y) == pytest.approx((10, -20), abs=1e-3)

    def test_unsure_or_outside(self) -> None:
        assert look_box(body_with(ARM, sure=0.29), "left") is None
        assert look_box(body_with(ARM, sure=0.29), "left", 0.2) is not None
        away = {"left_elbow": (1.0, 0.0, 3.0), "left_wrist": (1.25, 0.0, 3.0)}
        assert look_box(body_with(away), "left") is None


def test_second_look_stays_near_the_first() -> None:
    hand = fake_people()[0]
    first = Box(80, 60, 50, 50, side="right")
    middle = hand.joints_px.mean(0)
    tight = replace(hand, joints_px=(hand.joints_px - middle) * 0.5 + [100, 90])
    extent = float(np.ptp(tight.joints_px, axis=0).max())
    box = second_look(tight, first)
    assert box.width == pytest.approx(np.clip(1.2 * extent, 30, 50))
    assert box.side == "right"
    strayed = second_look(replace(hand, joints_px=hand.joints_px * 0 + [9000, -500]), first)
    assert (strayed.x + strayed.width / 2, strayed.y + strayed.width / 2) == (130, 60)
    assert strayed.width == 30


class TestMoveToWrist:
    @pytest.mark.parametrize("depth", [0.9, 1.1])
    def test_it_covers_as_many_pixels(self, depth: float) -> None:
        hand = fake_people()[0]
        wrist = hand.joints[0] * np.array([1.0, 1.0, depth]) + np.array([0.03, -0.02, 0.0])
        moved = move_to_wrist(hand, wrist)
        np.testing.assert_allclose(moved.joints[0], wrist, atol=1e-6)
        offset = moved.vertices - wrist
        np.testing.assert_allclose(offset, (hand.vertices - hand.joints[0]) * depth, atol=1e-5)
        np.testing.assert_array_equal(moved.joints_px, hand.joints_px)

    def test_it_stays_a_hand(self) -> None:
        hand = fake_people()[0]
        for factor, limit in ((0.1, SIZE_LIMITS[0]), (9.0, SIZE_LIMITS[1])):
            moved = move_to_wrist(hand, hand.joints[0] * factor)
            ratio = np.ptp(moved.vertices, axis=0) / np.ptp(hand.vertices, axis=0)
            np.testing.assert_allclose(ratio, limit, rtol=1e-4)


class TestOwners:
    def test_each_wrist_is_given_once_to_the_nearest_box(self) -> None:
        near = body_with(ARM)
        far = body_with({name: (x - 0.6, y, z) for name, (x, y, z) in ARM.items()})
        x, y = near.joints_px[COCO.index("left_wrist")]
        boxes = [
            Box(x - 100 - 20, y - 20, 40, 40, side="left"),  # at the wrist of the second body
            Box(x - 15, y - 20, 40, 40, side="left"),
            Box(x - 18, y - 20, 40, 40, side="left"),  # no wrist is left for this one
            Box(x - 20, y - 20, 40, 40, side="right"),  # the right wrists are elsewhere
        ]
        assert assign_owners(boxes, [near, far]) == [1, None, 0, None]

    def test_nobody(self) -> None:
        assert assign_owners([Box(0, 0, 9, 9, side="left")], []) == [None]
        assert assign_owners([], [body_with(ARM)]) == []


class TestPeoplePredictor:
    @pytest.fixture
    def predictor(self) -> PeoplePredictor:
        return PeoplePredictor(fake_predictor("body"), fake_predictor("hand"))

    def test_hands_stand_at_the_wrists_of_their_person(self, predictor: PeoplePredictor) -> None:
        boxes = [[60, 60, 200, 200], [100, 90, 150, 150]]
        people = predictor.predict(PHOTO, boxes, focal="50deg")
        assert [person.kind for person in people] == ["body"] * 2 + ["hand"] * 4
        assert [(p.owner, p.side) for p in people[2:]] == [
            (owner, side) for owner in (0, 1) for side in ("left", "right")
        ]
        for hand in people[2:]:
            body = people[hand.owner or 0]
            wrist = COCO.index(f"{hand.side}_wrist")
            np.testing.assert_allclose(hand.joints[0], body.joints[wrist], atol=1e-5)
            assert hand.camera == body.camera
        assert people[0].camera.focal_px == pytest.approx(200 / math.tan(math.radians(25)))
        alone = predictor.body.predict(PHOTO, boxes, focal="50deg")
        np.testing.assert_array_equal(people[0].vertices, alone[0].vertices)

    def test_left_hands_are_mirrored(self, predictor: PeoplePredictor) -> None:
        _, left, right = predictor.predict(PHOTO)
        np.testing.assert_array_equal(left.faces, right.faces[:, [0, 2, 1]])

    def test_unsure_wrists_and_hands_are_left_out(self) -> None:
        body, hand = fake_predictor("body"), fake_predictor("hand")
        assert len(PeoplePredictor(body, hand, min_hand_score=1.0).predict(PHOTO)) == 1
        right_half = spot_photo(400, 300, 260, 160)  # where the fake network is sure of nothing
        assert len(PeoplePredictor(body, hand).predict(right_half)) == 1
        assert len(PeoplePredictor(body, hand, 0.0, 0.0).predict(right_half)) == 3

    def test_a_box_says_where_a_hand_is(self, predictor: PeoplePredictor) -> None:
        (body, *_) = predictor.predict(PHOTO)
        x, y = body.joints_px[COCO.index("left_wrist")].tolist()
        boxes: list[Any] = [
            {"bbox": [x - 30, y - 20, 60, 60], "side": "left", "score": 0.6},
            [0, 0, 400, 300],
            {"bbox": [5, 5, 20, 20], "side": "right"},
        ]
        people = predictor.predict(PHOTO, boxes)
        assert [(p.side, p.owner) for p in people] == [
            (None, None),
            ("left", 0),
            ("right", None),
            ("right", 0),
        ]
        assert people[1].box_px == (x - 30, y - 20, 60, 60)
        assert people[1].score == 0.6
        (stray,) = predictor.hand.predict(PHOTO, boxes[2:], focal_px=body.camera.focal_px)
        np.testing.assert_array_equal(people[2].vertices, stray.vertices)

    def test_hands_alone_and_nobody(self, predictor: PeoplePredictor) -> None:
        boxes = [{"bbox": [100, 100, 90, 90], "side": "left"}]
        (hand,) = predictor.predict(PHOTO, boxes, focal=700)
        assert (hand.side, hand.owner, hand.camera.focal_px) == ("left", None, 700.0)
        assert predictor.predict(PHOTO, []) == []

    def test_networks_that_do_not_fit(self) -> None:
        body, hand = fake_predictor("body"), fake_predictor("hand")
        with pytest.raises(InputError, match="body: expected a network"):
            PeoplePredictor(hand, hand)
        with pytest.raises(InputError, match=r"hand: .* without a mesh"):
            PeoplePredictor(body, pose_predictor())
        with pytest.raises(InputError, match="min_wrist_score"):
            PeoplePredictor(body, hand, 1.2)
        with pytest.raises(InputError, match="no left_wrist"):
            wrist_and_elbow(fake_people()[0], "left")


def test_photos_share_batches_and_give_the_same() -> None:
    predictor = fake_predictor("body")
    photos = [image_from_array(PHOTO), image_from_array(spot_photo(200, 200, 90, 80))]
    boxes = [[Box(60, 60, 200, 200), Box(100, 90, 150, 150)], None]
    together = predictor.predict_many(photos, boxes, focal_px=500.0)
    assert len(predictor.network.batches) == 1  # type: ignore[union-attr, arg-type]
    for photo, wanted, people in zip(photos, boxes, together, strict=True):
        alone = predictor.predict(photo, wanted, focal_px=500.0)
        assert len(alone) == len(people)
        for one, other in zip(alone, people, strict=True):
            np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-6)


class TestFocal:
    @pytest.mark.parametrize("text", ["1200", "1200px", " 1.2e3 PX ", 1200])
    def test_pixels(self, text: str) -> None:
        assert read_focal(text).in_pixels((640, 480)) == 1200

    @pytest.mark.parametrize("text", ["90deg", "90 DEG", "90°"])
    def test_degrees_are_across_the_longer_side(self, text: str) -> None:
        assert read_focal(text).in_pixels((640, 480)) == pytest.approx(320)
        assert read_focal(text).in_pixels((480, 640)) == pytest.approx(320)

    def test_auto(self) -> None:
        assert read_focal("Auto") == AUTO
        assert AUTO.in_pixels((640, 480)) is None

    @pytest.mark.parametrize("text", ["", "50mm", "0", "-3", "180deg", "nan", "inf", "wide", "1 2"])
    def test_refused(self, text: str) -> None:
        with pytest.raises(InputError, match="expected auto, a number of pixels"):
            read_focal(text)

    def test_said_twice(self) -> None:
        with pytest.raises(InputError, match="Give one of them"):
            fake_predictor("body").predict(PHOTO, focal="60deg", focal_px=500.0)


class FakeDetector:
    def detect(self, photo: LoadedImage) -> list[Box]:
        return [Box(60, 60, 200, 200, 0.9), Box(62, 60, 200, 200, 0.6)]


class TestCommand:
    @pytest.fixture
    def photo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        import cv2

        path = tmp_path / "p.png"
        cv2.imwrite(str(path), PHOTO[:, :, ::-1])

        def load(name: str, *_: object) -> object:
            return fake_predictor("body" if "body" in str(name) else "hand")

        monkeypatch.setattr(kinemesh, "load", load)
        return path

    def run(self, photo: Path, *words: str) -> int:
        return main(["predict", str(photo), "--out", str(photo.parent / "out"), *words])

    def test_bodies_and_hands_in_their_files(self, photo: Path) -> None:
        words = ("--task", "hand,body", "--focal", "60deg", "--save", "json,npz,overlay,glb")
        assert self.run(photo, *words) == 0
        out = photo.parent / "out"
        people = read_people_json(out / "p.json")
        assert [(p.side, p.owner) for p in people] == [(None, None), ("left", 0), ("right", 0)]
        assert people[0].camera.focal_px == pytest.approx(200 / math.tan(math.radians(30)))
        assert [p.side for p in read_people_npz(out / "p.npz")] == [None]
        hands = read_people_npz(out / "p_hands.npz")
        assert [(p.side, p.owner) for p in hands] == [("left", 0), ("right", 0)]

    def test_a_photo_without_hands_says_so(
        self, photo: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("--task", "body,hand", "--min-wrist-score", "1", "--save", "json")
        assert self.run(photo, *words) == 0
        assert "p.png: no hand found: no wrist is sure enough" in capsys.readouterr().err

    def test_who_is_detected_twice_comes_once(
        self, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = []

        def load_detector(name: str, device: str, limit: float) -> FakeDetector:
            asked.append((name, limit))
            return FakeDetector()

        monkeypatch.setattr(detectors, "load_detector", load_detector)
        words = ("--task", "body", "--detector", "rtdetr", "--min-box-score", "0.3")
        assert self.run(photo, *words, "--save", "json") == 0
        (person,) = json.loads((photo.parent / "out" / "p.json").read_text())["people"]
        assert (person["score"], asked) == (0.9, [("rtdetr", 0.3)])

    def test_boxes_of_low_score_are_left_out(self, photo: Path) -> None:
        boxes = [{"bbox": [60, 60, 200, 200], "score": s} for s in (0.2, 0.8)] + [[0, 0, 99, 99]]
        path = photo.with_name("boxes.json")
        path.write_text(json.dumps(boxes))
        words = ("--task", "body", "--boxes", str(path), "--min-box-score", "0.5")
        assert self.run(photo, *words, "--save", "json") == 0
        people = json.loads((photo.parent / "out" / "p.json").read_text())["people"]
        assert [person["box_px"][2] for person in people] == [200, 99]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("--detector", "rtdetr", "--boxes", "1,2,3,4"), "both say where people are"),
            (("--min-box-score", "0.5"), "Add --detector or --boxes"),
            (("--min-box-score", "5", "--boxes", "1,2,3,4"), "from 0 to 1, found 5"),
            (("--task", "hand", "--detector", "rtdetr"), "--detector finds people"),
            (("--task", "hand", "--hand-model", "hand"), "Add --task body,hand"),
            (("--min-wrist-score", "0.5"), "Add --task body,hand"),
            (("--task", "body,hand", "--side", "left"), "their left hand"),
            (("--task", "body,hand", "--explain"), "--explain explains one network"),
            (("--task", "body,hand", "--flip-test"), "--flip-test"),
            (("--task", "body,hand", "--model", "hand"), "body: expected a network"),
            (("--task", "body", "--detector", "yolo"), "found 'yolo'"),
            (("--focal", "60deg", "--focal-px", "500"), "Give one of them"),
            (("--focal", "50mm"), "expected auto"),
        ],
    )
    def test_options_that_make_no_sense(
        self,
        photo: Path,
        capsys: pytest.CaptureFixture[str],
        words: tuple[str, ...],
        message: str,
    ) -> None:
        assert self.run(photo, *words) == 2
        assert message in capsys.readouterr().err
        assert not (photo.parent / "out").exists()
