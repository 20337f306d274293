"""COCO's keypoints from its files: people in crops and whole images."""

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.data.detection_boxes import read_detections
from kinemesh.data.detection_scenes import CocoScenes, SceneOptions, collate_scenes
from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.data.keypoint_records import collate_keypoints
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17

SMALL = KeypointOptions(size=(36, 48))
SIZES = {3: (80, 60), 1: (50, 90)}


def keypoints(seed, unlabelled=()):
    rng = np.random.RandomState(seed)
    rows = np.concatenate([rng.randint(5, 45, (17, 2)), rng.randint(1, 3, (17, 1))], axis=1)
    rows[list(unlabelled)] = 0
    return rows.ravel().tolist()


def annotation(number, image, box, **more):
    row = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "bbox": box}
    return row | {"area": 500.0, "keypoints": keypoints(number, (4,))} | more


def content():
    images = [
        {"id": image, "file_name": f"{image:012d}.png", "width": width, "height": height}
        for image, (width, height) in SIZES.items()
    ]
    rows = [
        annotation(11, 1, [5.0, 6.0, 30.0, 50.0]),
        annotation(12, 3, [-5.0, 10.0, 60.0, 40.0]),
        annotation(13, 3, [1.0, 1.0, 9.0, 9.0], iscrowd=1),
        annotation(14, 3, [1.0, 1.0, 9.0, 9.0], area=0),
        annotation(15, 3, [20.0, 5.0, 30.0, 30.0], keypoints=[0] * 51),
        annotation(16, 3, [90.0, 5.0, 30.0, 30.0]),
    ]
    return {"images": images, "annotations": rows, "categories": []}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    for name in ("annotations", "val2017"):
        (folder / name).mkdir()
    rng = np.random.RandomState(0)
    for image, (width, height) in SIZES.items():
        picture = rng.randint(0, 256, (height, width, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "val2017" / f"{image:012d}.png"), picture)
    (folder / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(content()))
    return folder


@pytest.fixture
def changed(folder, tmp_path):
    """Function that writes the annotations after a change to them."""

    def write(change):
        changed = copy.deepcopy(content())
        change(changed)
        path = tmp_path / "person_keypoints_val2017.json"
        path.write_text(json.dumps(changed))
        return path

    return write


def test_people_in_the_order_of_images(folder):
    dataset = CocoKeypoints(folder, options=SMALL)
    assert [record.annotation_id for record in dataset.records] == [12, 11]
    first = dataset.records[0]
    assert first.placement.center.tolist() == [29.5, 29.5]  # cut: x 0 to 59, y 10 to 49
    expected = np.array([59, 59 / 0.75]) * 1.25
    np.testing.assert_allclose(first.placement.scale * 200, expected, rtol=1e-6)
    assert first.visible.tolist() == [1, 1, 1, 1, 0] + [1] * 12  # hidden counts as labelled
    sample = dataset[0]
    assert sample["image"].shape == (3, 48, 36)
    assert int(sample["image_id"]) == 3
    assert sample["target"][4].tolist() == [0, 0]
    assert float(sample["score"]) == 1


def test_colour_order(folder):
    options = {order: KeypointOptions(size=(36, 48), order=order) for order in ("bgr", "rgb")}
    bgr, rgb = (CocoKeypoints(folder, options=options[o])[0]["image"] for o in ("bgr", "rgb"))
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    plain = [image * std[:, None, None] + mean[:, None, None] for image in (bgr, rgb)]
    torch.testing.assert_close(plain[0].flip(0), plain[1])


def test_variation_depends_on_seed_step_and_index(folder):
    def dataset(**options):
        return CocoKeypoints(folder, options=KeypointOptions(True, size=(36, 48), **options))

    one, other = dataset(), dataset()
    other[1]  # the order of calls plays no part
    assert torch.equal(one[0]["image"], other[0]["image"])
    one.set_step(1)
    assert not torch.equal(one[0]["scale"], other[0]["scale"])
    assert not torch.equal(dataset(seed=1)[0]["scale"], other[0]["scale"])
    batches = DataLoader(dataset(), 2, collate_fn=collate_keypoints, num_workers=1)
    assert torch.equal(next(iter(batches))["image"][0], other[0]["image"])
    assert torch.equal(other[-1]["image"], other[1]["image"])
    with pytest.raises(IndexError):
        other[2]


def detections(tmp_path, rows):
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(rows))
    return path


def detection(image, box, score=0.5, category=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_detected_boxes(folder, tmp_path):
    rows = [
        detection(1, [-20.0, 5.0, 60.0, 20.0], 0.9),
        detection(3, [0, 0, 5, 5], category=3),
        detection(77, [0, 0, 5, 5]),  # an image of another part of the split
        detection(3, [1, 2, 30, 40], 0.001),
    ]
    path = detections(tmp_path, rows)
    dataset = CocoKeypoints(folder, boxes=path, options=SMALL)
    assert [record.image_id for record in dataset.records] == [1, 3]
    sample = dataset[0]
    assert sample["center"].tolist() == [10, 15]  # as it is, not cut
    assert float(sample["score"]) == pytest.approx(0.9)
    assert sample["weight"].min() == 1
    assert int(dataset[1]["annotation_id"]) == 3
    assert len(CocoKeypoints(folder, boxes=path, least_score=0.1)) == 1
    images_only = tmp_path / "image_info.json"
    images_only.write_text(json.dumps({"images": content()["images"]}))
    assert len(CocoKeypoints(images_only, folder / "val2017", boxes=path)) == 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "expected a list of detections"),
        ([7], "row 0: expected an object"),
        ([{"image_id": 1}], "row 0: there is no 'category_id'"),
        ([detection(1, [1, 2, 3])], "row 0: expected 'bbox' of 4 finite numbers, found 3"),
        ([detection(1, [1, 2, 3, "a"])], "row 0: 'bbox' holds something else"),
        ([detection("1", [1, 2, 3, 4])], "expected numbers as image_id"),
        ([detection(1, [1, 2, 3, 4], category=2)], r"category_id 1 \(person\), found 2 alone"),
    ],
)
def test_damaged_detections(tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        read_detections(detections(tmp_path, rows))


def test_foreign_detections(folder, tmp_path):
    with pytest.raises(InputError, match="none of its 1 people is in an image"):
        CocoKeypoints(folder, boxes=detections(tmp_path, [detection(77, [1, 2, 3, 4])]))
    with pytest.raises(InputError, match="Cannot read"):
        read_detections(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("images"), "expected an object with 'images'"),
        (lambda c: c["images"][1].pop("height"), "image 1: expected 'height' of type int"),
        (lambda c: c["annotations"][1].update(image_id=8), "annotation 1: expected the image_id"),
        (lambda c: c["annotations"][1].pop("bbox"), "annotation 1: there is no 'bbox'"),
        (lambda c: c["annotations"][1].pop("area"), "annotation 1: expected a number as 'area'"),
        (lambda c: c["annotations"][1]["keypoints"].pop(), "annotation 1: expected 'keypoints' of"),
        (lambda c: c["images"].append(c["images"][0]), "id of its own for each image, found 3 2 t"),
        (
            lambda c: [row.update(category_id=7) for row in c["annotations"]],
            r"category_id 1 \(person\), found 7 alone",
        ),
    ],
)
def test_damaged_annotations(changed, folder, change, message):
    with pytest.raises(InputError, match=message):
        CocoKeypoints(changed(change), folder / "val2017")


@pytest.mark.parametrize("sides", [(0.0, 0.0), (-3.0, -5.0), (0.5, 1.0)])
def test_labelled_boxes_without_extent_are_left_out_with_a_word(changed, folder, sides):
    path = changed(lambda c: c["annotations"][1].update(bbox=[5.0, 10.0, *sides]))
    with pytest.warns(UserWarning, match="1 box of no width and height left out, .*annotation 1"):
        dataset = CocoKeypoints(path, folder / "val2017", options=SMALL)
    assert [record.annotation_id for record in dataset.records] == [11]


def test_a_box_that_is_a_line_has_a_crop(changed, folder):
    """The crop's aspect ratio gives it the other side."""
    path = changed(lambda c: c["annotations"][1].update(bbox=[5.0, 10.0, 0.0, 20.0]))
    dataset = CocoKeypoints(path, folder / "val2017", options=SMALL)
    assert dataset[0]["image"].shape == (3, 48, 36)


def test_detected_boxes_without_extent_are_left_out_with_a_word(folder, tmp_path):
    rows = [detection(3, [1, 2, 30, 40]), detection(1, [5, 5, 0, 0]), detection(3, [5, 5, 0, -1])]
    with pytest.warns(UserWarning, match="2 boxes of no width and height left out, .*row 1"):
        dataset = CocoKeypoints(folder, boxes=detections(tmp_path, rows), options=SMALL)
    assert [record.annotation_id for record in dataset.records] == [0]


def test_no_detection_at_all_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"expected boxes of people, found none\. Name"):
        CocoKeypoints(folder, boxes=detections(tmp_path, []))
    path = detections(tmp_path, [detection(1, [1, 2, 3, 4], 0.1)])
    with pytest.raises(InputError, match=r"found none with a score of at least 0\.5"):
        CocoKeypoints(folder, boxes=path, least_score=0.5)


@pytest.mark.parametrize("detected", [False, True])
def test_a_picture_of_another_size_than_labelled_is_refused(changed, folder, tmp_path, detected):
    """As after resizing; its people would be cut to the wrong image."""
    path = changed(lambda c: c["images"][0].update(width=40, height=30))
    more = {"boxes": detections(tmp_path, [detection(3, [1, 2, 30, 20])])} if detected else {}
    dataset = CocoKeypoints(path, folder / "val2017", options=SMALL, **more)
    with pytest.raises(InputError, match=r"an image of 40 x 30 px, .* found 80 x 60 in"):
        dataset[0]


def test_missing_pictures(changed, folder, tmp_path):
    with pytest.raises(InputError, match="Name the folder of the pictures"):
        CocoKeypoints(changed(lambda c: None))
    dataset = CocoKeypoints(changed(lambda c: None), tmp_path)
    with pytest.raises(InputError, match=r"annotation 1: cannot read .*000000000003.png"):
        dataset[0]


def test_folders_and_splits(folder, tmp_path):
    assert len(CocoKeypoints(folder, split="train")) == 2  # the only file there is
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        name = f"person_keypoints_{split}.json"
        text = (folder / "annotations" / "person_keypoints_val2017.json").read_text()
        (tmp_path / "annotations" / name).write_text(text)
    for split in ("val", "val2017"):
        dataset = CocoKeypoints(tmp_path, folder / "val2017", split=split)
        assert dataset.file.path.stem == "person_keypoints_val2017"
    with pytest.raises(InputError, match=r"train2017.json, .*val2017.json. Name the file"):
        CocoKeypoints(tmp_path)
    with pytest.raises(InputError, match=r"image_info_test\*.json of split 'test', found none"):
        CocoKeypoints(tmp_path, split="test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"found none\. Name the file"):
        CocoKeypoints(tmp_path / "empty")


def test_scenes(folder):
    dataset = CocoScenes(folder, options=SceneOptions(shortest=30, longest=1000))
    sample = dataset[0]
    assert sample["image"].shape == (3, 30, 40)
    assert sample["original_size"].tolist() == [80, 60]
    corners = [[0, 10, 55, 50], [1, 1, 10, 10], [20, 5, 50, 35]]  # no crowd, nothing outside
    for box, (left, top, right, bottom) in zip(sample["boxes"], corners, strict=True):
        expected = [(left + right) / 160, (top + bottom) / 120]
        expected += [(right - left) / 80, (bottom - top) / 60]
        np.testing.assert_allclose(box, expected, rtol=1e-6)
    labelled = np.reshape(keypoints(12, (4,)), (17, 3)).astype(float)
    labelled[:, :2] += np.where(labelled[:, 2:] > 0, 0.5, 0)  # from pixels' centres to corners
    np.testing.assert_allclose(sample["keypoints"][0], labelled / [80, 60, 1], rtol=1e-6)
    assert sample["keypoints"][2].abs().sum() == 0
    assert sample["hand_boxes"].shape == (0, 4)
    assert sample["hand_keypoints"].shape == (0, 21, 3)
    longest = CocoScenes(folder, options=SceneOptions(shortest=100, longest=40))
    assert longest[0]["image"].shape == (3, 30, 40)


def test_mirrored_scenes(folder):
    options = {"shortest": 60, "varied": (1.0, 1.0)}
    plain = CocoScenes(folder, options=SceneOptions(**options))[0]
    varied = CocoScenes(folder, options=SceneOptions(True, **options))
    samples = {}
    for step in range(12):
        varied.set_step(step)
        sample = varied[0]
        samples[bool((sample["boxes"] - plain["boxes"]).abs().max() > 1e-6)] = sample
    assert torch.equal(samples[False]["image"], plain["image"])
    mirrored = samples[True]
    assert torch.equal(mirrored["image"], plain["image"].flip(2))
    torch.testing.assert_close(mirrored["boxes"][:, 0], 1 - plain["boxes"][:, 0])
    expected = plain["keypoints"][:, list(COCO17.flip_permutation)].clone()
    expected[..., 0] = torch.where(expected[..., 2] > 0, 1 - expected[..., 0], expected[..., 0])
    torch.testing.assert_close(mirrored["keypoints"], expected)
    # the same as mirroring a file's numbers, x to W - 1 - x
    seen = expected[..., 2] > 0
    in_file = plain["keypoints"][:, list(COCO17.flip_permutation), 0] * 80 - 0.5
    torch.testing.assert_close((mirrored["keypoints"][..., 0] * 80 - 0.5)[seen], 79 - in_file[seen])


def test_scene_batches(folder):
    dataset = CocoScenes(folder, options=SceneOptions(shortest=40))
    batch = collate_scenes([dataset[0], dataset[1]])
    assert batch["images"].shape == (2, 3, 72, 53)
    assert batch["sizes"].tolist() == [[40, 53], [72, 40]]
    assert not batch["padding_mask"][0, :40].any()
    assert batch["padding_mask"][0, 40:].all()
    assert batch["padding_mask"][1, :, 40:].all()
    assert batch["people"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["hands"].tolist() == [[False], [False]]
    assert batch["keypoints"].shape == (2, 3, 17, 3)
    assert batch["boxes"][1, 1:].abs().sum() == 0
    with pytest.raises(InputError, match="at least one"):
        collate_scenes([])


def test_images_without_people(changed, folder):
    path = changed(lambda c: c.update(annotations=[]))
    empty = CocoScenes(path, folder / "val2017", options=SceneOptions(shortest=20))
    assert empty[0]["boxes"].shape == (0, 4)
    assert len(empty) == 2
    assert len(CocoScenes(path, folder / "val2017", empty=False)) == 0
    path = changed(lambda c: c["images"][0].update(width=81))
    wrong = CocoScenes(path, folder / "val2017")
    with pytest.raises(InputError, match="image 3: expected 81 x 60 px, found 80 x 60"):
        wrong[0]


def test_real_files(shared):
    subset = CocoKeypoints(shared / "data" / "coco_train2017_subset")
    assert len(subset) == 86
    coco = shared / "data" / "mmpose_tests" / "coco"
    assert len(CocoKeypoints(coco / "test_coco.json", options=SMALL)) == 12
    boxes = coco / "test_coco_det_AP_H_56.json"
    detected = CocoKeypoints(coco / "test_coco.json", boxes=boxes, options=SMALL)
    assert len(detected) == 118
    assert detected[0]["image"].shape == (3, 48, 36)
    assert len(CocoScenes(shared / "data" / "coco_train2017_subset")) == 28
