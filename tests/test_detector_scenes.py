"""Synthetic photos for the detector: their cut-outs, their labels, and that they repeat."""

import numpy as np
import pytest
import torch

from kinemesh.data.synthetic.cut_outs import (
    LEFT,
    NOTHING,
    RIGHT,
    SUBJECT,
    CutOut,
    CutOutBank,
    face_parts,
    render_cut_out,
)
from kinemesh.data.synthetic.detection_scenes import DetectionScenes, collate_detection
from kinemesh.data.synthetic.scene import load_stage
from kinemesh.errors import InputError
from kinemesh.models.detector import LEFT_HAND, PERSON, RIGHT_HAND


class Painted:
    """A bank of flat figures: a body of 40 x 100 px with both hands, a hand with a forearm."""

    seed, split = 0, "train"

    def get(self, kind, number):
        del number
        picture = np.zeros((100, 40, 4), dtype=np.uint8)
        picture[..., :3] = 128
        picture[..., 3] = SUBJECT
        if kind == "hand":
            picture[:60, :, 3] = RIGHT
            return CutOut("hand", picture, 300.0, np.zeros(4, bool), np.array([20, 100.0]))
        picture[40:52, :10, 3] = RIGHT
        picture[40:52, -10:, 3] = LEFT
        return CutOut("body", picture, 58.0, np.zeros(4, bool), np.array([20, 50.0]))


@pytest.fixture(scope="module")
def painted():
    scenes = DetectionScenes(Painted(), 128, length=60)
    return scenes, [scenes.render(index) for index in range(60)]


def test_scenes_repeat_and_differ(painted):
    scenes, rendered = painted
    again = scenes.render(7)
    assert np.array_equal(again.photo, rendered[7].photo)
    assert np.array_equal(again.boxes, rendered[7].boxes)
    assert len({scene.photo.tobytes() for scene in rendered}) == 60


def test_scenes_are_of_all_kinds(painted):
    _, rendered = painted
    found = {label for scene in rendered for label in scene.labels[~scene.ignored].tolist()}
    assert found == {PERSON, LEFT_HAND, RIGHT_HAND}
    assert any(len(scene.labels) == 0 for scene in rendered)
    assert any((scene.labels == PERSON).sum() >= 3 for scene in rendered)
    assert len({scene.photo.shape for scene in rendered}) > 30


def test_boxes_lie_in_their_photos(painted):
    for scene in painted[1]:
        height, width = scene.photo.shape[:2]
        assert max(height, width) == 128
        assert (scene.boxes[:, :2] >= 0).all()
        assert (scene.boxes[:, 2:] <= [width, height]).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()


def test_tiny_boxes_are_ignored(painted):
    for scene in painted[1]:
        extent = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1, initial=0)
        assert scene.ignored[extent < 9].all()


class OnePart(Painted):
    """Bodies without hands in a bank: no hand may be labelled."""

    def get(self, kind, number):
        found = super().get("body", number)
        picture = found.picture.copy()
        picture[..., 3] = SUBJECT
        return CutOut(kind, picture, found.scale, found.cut, found.tail)


def test_hands_come_from_the_rendered_truth():
    scenes = DetectionScenes(OnePart(), 96, length=20)
    for index in range(20):
        assert set(scenes.render(index).labels.tolist()) <= {PERSON}


def test_a_hand_alone_is_nobody(painted):
    alone = [scene for scene in painted[1] if len(scene.labels) == 2 and scene.labels[1] > 0]
    alone = [scene for scene in alone if scene.ignored.tolist() == [True, False]]
    assert len(alone) >= 5  # the forearm is an ignored person, the hand is to be found
    for scene in alone:
        forearm, hand = scene.boxes
        assert (forearm[:2] <= hand[:2]).all()
        assert (forearm[2:] >= hand[2:]).all()


def test_the_mirror_exchanges_hands():
    body = Painted().get("body", 0)
    mirrored = body.mirrored()
    assert (mirrored.picture[45, 0, 3], mirrored.picture[45, -1, 3]) == (RIGHT, LEFT)
    marked = body.picture.copy()
    marked[45, 0, 0] = 7
    back = CutOut("body", marked, 1.0, np.array([1, 0, 0, 1], bool), body.tail).mirrored()
    assert back.picture[45, -1, 0] == 7
    assert back.cut.tolist() == [False, False, True, True]
    np.testing.assert_array_equal(back.mirrored().picture, marked)


def test_collate_fills_up(painted):
    scenes, rendered = painted
    order = sorted(range(60), key=lambda index: len(rendered[index].labels))
    batch = collate_detection([scenes[order[0]], scenes[order[-1]]])
    count = len(rendered[order[-1]].labels)
    assert batch["image"].shape == (2, 3, 128, 128)
    assert batch["image"].dtype == torch.uint8
    assert batch["boxes"].shape == (2, count, 4)
    assert (batch["labels"][0] == -1).all()
    assert batch["labels"][1].tolist() == rendered[order[-1]].labels.tolist()


@pytest.mark.parametrize("kind", ["body", "hand"])
def test_cut_outs_are_written_and_read_back(kind, tmp_path):
    bank = CutOutBank(tmp_path / "new", 3, "val")
    first = bank.get(kind, 1)
    assert len(list((tmp_path / "new").iterdir())) == 1
    second = bank.get(kind, 1)
    np.testing.assert_array_equal(first.picture, second.picture)
    assert (first.scale, first.cut.tolist()) == (second.scale, second.cut.tolist())
    np.testing.assert_array_equal(first.tail, second.tail)
    parts = first.picture[..., 3]
    assert parts.any(axis=1).all()  # no empty border is left
    assert set(np.unique(parts)) <= {NOTHING, SUBJECT, LEFT, RIGHT}
    if kind == "hand":
        assert (parts == RIGHT).any()


def test_damaged_files_are_rendered_again(tmp_path):
    bank = CutOutBank(tmp_path, 3, "val")
    first = bank.get("hand", 2)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(bank.get("hand", 2).picture, first.picture)


def test_the_left_hand_of_the_rig_is_on_its_left():
    rig = load_stage("body").rig
    parts = face_parts("body")
    x = rig.template[rig.faces].mean(dim=1)[:, 0].numpy()
    left, right = x[parts == LEFT], x[parts == RIGHT]
    shoulder = rig.bone_template[:, 0].numpy()
    side = np.sign(shoulder[rig.bone_index("upperarm01.L")])
    assert (left * side > 0).all()
    assert (right * side < 0).all()
    assert 300 < len(left) == len(right)


def test_cut_outs_of_one_generator_are_equal():
    one, other = (render_cut_out("hand", np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one.picture, other.picture)


def test_refuses_what_cannot_be():
    with pytest.raises(InputError, match="split"):
        CutOutBank("nowhere", 0, "training")
    with pytest.raises(InputError, match="side"):
        DetectionScenes(Painted(), 32)
    with pytest.raises(IndexError):
        DetectionScenes(Painted(), 64, length=3).render(3)


def test_says_where_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--cut-outs"):
        CutOutBank(tmp_path / "file" / "bank", 0).get("hand", 0)
