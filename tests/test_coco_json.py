import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from kinemesh.errors import InputError
from kinemesh.evaluation.coco_ap import read_results
from kinemesh.formats.coco_json import coco_image_id, coco_rows, encode_coco
from kinemesh.skeletons import COCO17, get_skeleton
from tests.fake_predictor import fake_people


def test_the_official_reader_takes_the_rows(tmp_path: Path) -> None:
    people = fake_people("body")
    (tmp_path / "rows.json").write_bytes(encode_coco(people, "000000000139.jpg"))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 139}],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}],
    }
    truth.createIndex()
    found = truth.loadRes(str(tmp_path / "rows.json"))
    rows = found.loadAnns(found.getAnnIds(imgIds=[139]))
    assert len(rows) == 2
    for row, person in zip(rows, people, strict=True):
        numbers = np.reshape(row["keypoints"], (17, 3))
        np.testing.assert_allclose(numbers[:, :2], person.joints_px - 0.5, atol=1e-3)
        np.testing.assert_allclose(numbers[:, 2], person.joint_confidence, atol=1e-4)
        assert row["score"] == pytest.approx(person.score, abs=1e-4)
    assert len(read_results(tmp_path / "rows.json")) == 2  # and our own reader


def test_missing_joints_are_three_zeros() -> None:
    count = len(get_skeleton("h36m17"))
    person = replace(
        fake_people("body")[0],
        skeleton="h36m17",
        joints_px=np.full((count, 2), 40.5, np.float32),
        joint_confidence=np.ones(count, np.float32),
    )
    (row,) = coco_rows([person], 1)
    places = dict(zip(COCO17.joints, np.reshape(row["keypoints"], (17, 3)).tolist(), strict=True))
    assert places["left_wrist"] == [40, 40, 1]
    assert places["left_eye"] == [0, 0, 0]


def test_hands_have_lists_of_their_own() -> None:
    people = fake_people("hand")
    right, left = coco_rows(people, 5, "a.jpg")
    assert right["file_name"] == "a.jpg"
    assert "lefthand_kpts" not in right
    assert set(right["keypoints"]) == {0.0}
    numbers = np.reshape(left["lefthand_kpts"], (21, 3))
    np.testing.assert_allclose(numbers[:, :2], people[1].joints_px - 0.5, atol=1e-3)


def test_hands_of_a_person_are_in_that_person_s_row() -> None:
    bodies = fake_people("body")
    hands = [replace(hand, owner=1) for hand in fake_people("hand")]
    first, second = coco_rows([*bodies, *hands], 5)
    assert "lefthand_kpts" not in first
    assert len(second["lefthand_kpts"]) == len(second["righthand_kpts"]) == 63
    assert second["score"] == pytest.approx(bodies[1].score, abs=1e-4)


def test_numbers_of_images() -> None:
    assert coco_image_id("000000000139.jpg") == 139
    assert coco_image_id("walk.jpg") == zlib.crc32(b"walk.jpg")
    assert coco_image_id("walk.jpg") != coco_image_id("walk.png")
    assert coco_image_id(None) == 0
    (row,) = json.loads(encode_coco(fake_people()[:1], "walk.jpg", image_id=7))
    assert row["image_id"] == 7


def test_a_name_that_is_no_text() -> None:
    (row,) = json.loads(encode_coco(fake_people()[:1], "a\udcff.jpg"))
    assert row["file_name"] == "a?.jpg"


def test_nobody() -> None:
    assert json.loads(encode_coco([], "a.jpg")) == []


def test_joints_that_coco_does_not_know() -> None:
    person = replace(fake_people("hand")[0], side=None)
    with pytest.raises(InputError, match=r"'hand21' joints.*'csv'"):
        encode_coco([person])
