import contextlib
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.data.keypoint_records import collate_keypoints
from kinemesh.errors import InputError, MissingExtraError
from kinemesh.evaluation.coco_ap import (
    METRICS,
    coco_scores,
    evaluate_coco,
    labels_from,
    read_labels,
    read_results,
    result_rows,
    write_results,
)
from kinemesh.evaluation.keypoint_readout import (
    KeypointPerson,
    people_of,
    person_columns,
    predict_keypoints,
)
from kinemesh.keypoint_protocols import COCO_KEYPOINTS, get_keypoint_protocol
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.skeletons import COCO17


def labelled_people(seed=0, images=4, people=3, side=120.0):
    """The content of an annotation file, without pictures."""
    rng = np.random.default_rng(seed)
    annotations = []
    for number in range(images * people):
        corner = 300 * rng.random(2)
        size = side * (0.5 + rng.random(2))
        seen = rng.integers(0, 3, 17)
        points = np.column_stack([corner + size * rng.random((17, 2)), seen])
        points[seen == 0] = 0
        annotations.append(
            {
                "id": number + 1,
                "image_id": 100 + number // people,
                "category_id": 1,
                "iscrowd": 0,
                "keypoints": points.ravel().tolist(),
                "num_keypoints": int((seen > 0).sum()),
                "bbox": [*corner.tolist(), *size.tolist()],
                "area": float(size.prod() * 0.5),
            }
        )
    return {
        "images": [{"id": 100 + n, "width": 640, "height": 480} for n in range(images)],
        "annotations": annotations,
    }


def people_at(labels, noise_px=0.0, seed=0, everybody=True):
    """Predictions near the labels; missed and invented people too, unless ``everybody``."""
    rng = np.random.default_rng(seed)
    people = []
    for one in labels.annotations:
        points = np.reshape(one["keypoints"], (17, 3))
        x, y, w, h = one["bbox"]
        anywhere = [x, y] + [w, h] * rng.random((17, 2))  # joints without labels
        pose = np.where(points[:, 2:] > 0, points[:, :2], anywhere)
        pose = np.float32(pose + noise_px * rng.standard_normal((17, 2)))
        scores = np.float32(rng.random(17)) if noise_px else np.ones(17, np.float32)
        center, scale = np.float32([x + w / 2, y + h / 2]), np.float32([w, h]) / 160
        hidden = one["iscrowd"] or not one["num_keypoints"]
        if hidden or not (everybody or rng.random() < 0.7):
            continue
        people.append(KeypointPerson(one["image_id"], pose, scores, center, scale))
        if not everybody and rng.random() < 0.4:
            away = np.float32(pose + 90 * rng.standard_normal(2))
            people.append(KeypointPerson(one["image_id"], away, scores, center, scale, 0.6))
    return people


def official_scores(rows, labels, path):
    """The ten numbers of pycocotools, from files."""
    coco = pytest.importorskip("pycocotools.coco")
    evaluation = pytest.importorskip("pycocotools.cocoeval")
    content = {"images": labels.images, "annotations": labels.annotations, "info": {}}
    content["categories"] = [{"id": 1, "name": "person"}]
    (path / "labels.json").write_text(json.dumps(content))
    write_results(path / "results.json", rows)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(path / "labels.json"))
        tool = evaluation.COCOeval(truth, truth.loadRes(str(path / "results.json")), "keypoints")
        tool.params.useSegm = None
        tool.evaluate()
        tool.accumulate()
        tool.summarize()
    return tool.stats


def assert_official(rows, labels, path):
    pytest.importorskip("faster_coco_eval")
    ours = np.array(list(coco_scores(rows, labels).values()))
    official = official_scores(rows, labels, path)
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1.0), official, rtol=0, atol=1e-12)
    return ours


@pytest.mark.parametrize(("seed", "noise_px"), [(0, 2.0), (1, 6.0), (2, 12.0)])
def test_numbers_are_those_of_the_official_tool(tmp_path, seed, noise_px):
    labels = labels_from(labelled_people(seed, images=6), "labels")
    people = people_at(labels, noise_px, seed, everybody=False)
    values = assert_official(result_rows(people), labels, tmp_path)
    assert 0 < values[0] < 1


def test_real_labels(shared, tmp_path):
    folder = shared / "data" / "coco_train2017_subset" / "annotations"
    labels = read_labels(folder / "person_keypoints_train2017.json")
    assert (len(labels.images), labels.labelled_people) == (28, 86)
    perfect = result_rows(people_at(labels))
    values = assert_official(perfect, labels, tmp_path)
    np.testing.assert_allclose(values, 1.0)
    noisy = assert_official(result_rows(people_at(labels, 5.0, 1, False)), labels, tmp_path)
    assert 0 < noisy[0] < 0.9


def knowing_network(batch):
    """Says where the labels are; joints without labels are put anywhere."""
    joints = batch["target"].shape[1]
    logits = torch.full((len(batch["target"]), joints + 3, joints + 1), -5.0)
    logits[:, :joints].diagonal(dim1=1, dim2=2).fill_(5.0)
    anywhere = torch.rand(batch["target"].shape, generator=torch.Generator().manual_seed(0))
    coords = torch.where(batch["weight"] > 0, batch["target"], anywhere)
    coords = torch.cat([coords, torch.zeros(len(coords), 3, 2)], dim=1)
    return lambda _image: KeypointSetOutput(logits, coords)


def test_from_files_to_the_score(shared):
    """Labels go through box, crop, target, read-out and back to the image."""
    pytest.importorskip("faster_coco_eval")
    path = shared / "data" / "mmpose_tests" / "coco" / "test_coco.json"
    dataset = CocoKeypoints(path, options=KeypointOptions(size=(96, 128)))
    batch = collate_keypoints([dataset[index] for index in range(len(dataset))])
    places = batch["center"], batch["scale"]
    network = knowing_network(batch)
    found = predict_keypoints(network, batch["image"], *places, COCO17, flip_test=False)
    columns = person_columns(batch["image_id"], found, *places, batch["score"])
    protocol = replace(COCO_KEYPOINTS, flip_test=False)
    result = evaluate_coco(people_of(columns), path, protocol)
    assert result.counts["labelled people"] == len(dataset)
    assert result.counts["after suppression"] == len(dataset)
    assert [value for value in result.values.values() if value < 0.999] == []
    assert "flip test: no" in str(result)


def test_crowds_and_people_without_keypoints_are_no_misses(tmp_path):
    content = labelled_people()
    content["annotations"][0]["iscrowd"] = 1
    content["annotations"][4] |= {"keypoints": [0] * 51, "num_keypoints": 0}
    del content["annotations"][5]["num_keypoints"]  # counted then
    labels = labels_from(content, "labels")
    assert labels.labelled_people == 10
    values = assert_official(result_rows(people_at(labels)), labels, tmp_path)
    assert values[0] == pytest.approx(1.0)


def test_size_without_people_is_no_number():
    pytest.importorskip("faster_coco_eval")
    labels = labels_from(labelled_people(side=400.0), "labels")  # all large
    result = evaluate_coco(people_at(labels), labels)
    assert np.isnan(result.values["AP(M)"])
    assert result.values["AP(L)"] == pytest.approx(1.0)
    assert result.to_dict()["values"]["AP(M)"] is None
    assert "AP(M)  - (nothing to score)" in str(result)


def test_result_prints_its_protocol(tmp_path):
    pytest.importorskip("faster_coco_eval")
    (tmp_path / "labels.json").write_text(json.dumps(labelled_people()))
    people = people_at(read_labels(tmp_path / "labels.json"))
    twice = [*people, people[3]]
    protocol = get_keypoint_protocol("coco-keypoints")
    assert protocol == COCO_KEYPOINTS
    result = evaluate_coco(
        twice,
        tmp_path / "labels.json",
        protocol,
        model="tiny",
        results=tmp_path / "results.json",
    )
    text = str(result)
    for part in (
        "tiny on ",
        "boxes: ground truth",
        "flip test: yes",
        "OKS > 0.9",
        "joints: coco17 (17)",
        "joint scores > 0.2",
        "4 images, 12 labelled people, 13 predicted people, 12 after suppression",
        "AP  1.0000",
    ):
        assert part in text
    assert tuple(result.values) == METRICS
    assert json.loads(json.dumps(result.to_dict()))["protocol"]["boxes"] == "ground truth"
    assert result.notes == ()
    rows = read_results(tmp_path / "results.json")
    assert rows == result_rows(twice)
    assert sorted(rows[0]) == ["category_id", "center", "image_id", "keypoints", "scale", "score"]
    assert len(rows[0]["keypoints"]) == 51
    assert coco_scores(rows, read_labels(tmp_path / "labels.json")) == dict(result.values)


def test_some_images_only():
    pytest.importorskip("faster_coco_eval")
    labels = labels_from(labelled_people(), "labels")
    people = [person for person in people_at(labels) if person.image_id < 102]
    missed = evaluate_coco(people, labels)
    assert missed.values["AR"] == pytest.approx(0.5)
    result = evaluate_coco(people, labels, image_ids=[100, 101])
    assert result.values["AR"] == pytest.approx(1.0)
    assert result.notes == ("only 2 of 4 images",)
    assert result.counts["labelled people"] == 6


def test_scoring_changes_nothing_that_it_is_given():
    pytest.importorskip("faster_coco_eval")
    labels = labels_from(labelled_people(), "labels")
    rows = result_rows(people_at(labels))
    before = json.dumps([rows, labels.annotations, labels.images])
    coco_scores(rows, labels)
    assert json.dumps([rows, labels.annotations, labels.images]) == before


def test_refuses_predictions_that_do_not_fit():
    labels = labels_from(labelled_people(), "labels")
    people = people_at(labels)
    with pytest.raises(InputError, match="no predicted person"):
        evaluate_coco([], labels)
    with pytest.raises(InputError, match="'labels' has no image 103"):
        evaluate_coco(people, labels, image_ids=[100, 101, 102, 103, 104][:3])
    with pytest.raises(InputError, match="has no image 7"):
        labels.of_images([7])


def _without(content, key):
    return {name: value for name, value in content.items() if name != key}


def test_refuses_wrong_annotation_files(tmp_path):
    good = labelled_people()
    one = good["annotations"][0]
    hand = [{"id": 1, "name": "hand", "keypoints": ["wrist", "thumb"]}]
    bad = {
        "as in a test split": _without(good, "annotations"),
        "found a list of 3": [1, 2, 3],
        "found an object with annotations": _without(good, "images"),
        "at least one image": {**good, "images": []},
        "17 keypoints for category 1, found 2: wrist, thumb": {**good, "categories": hand},
        "no keypoints, area": {
            **good,
            "annotations": [_without(_without(one, "area"), "keypoints")],
        },
        "annotation 1: expected 'keypoints' of 51": {
            **good,
            "annotations": [{**one, "keypoints": [1, 2, 3]}],
        },
        "annotation 1: 'bbox' holds something else": {
            **good,
            "annotations": [{**one, "bbox": "wide"}],
        },
        "its image 5 is not among": {**good, "annotations": [{**one, "image_id": 5}]},
        "id from 1 up": {**good, "annotations": [{**one, "id": 0}]},
        "found repeats": {**good, "annotations": [one, one]},
        "of its own for each image": {**good, "images": [*good["images"], good["images"][0]]},
        "whole number as id": {**good, "images": [{"file_name": "a.jpg"}]},
    }
    for message, content in bad.items():
        with pytest.raises(InputError, match=message):
            labels_from(content, "bad.json")
    with pytest.raises(InputError, match="Cannot read"):
        read_labels(tmp_path / "absent.json")
    (tmp_path / "half.json").write_text('{"images": [')
    with pytest.raises(InputError, match="expected JSON"):
        read_labels(tmp_path / "half.json")


def test_refuses_wrong_result_files(tmp_path):
    path = tmp_path / "results.json"
    row = {"image_id": 1, "keypoints": [0.0] * 51, "score": 1.0}
    bad = {
        "list of results is empty": [],
        "expected a list of results, found an object": {"results": []},
        "result 1: expected image_id": [row, {"image_id": 1}],
        "result 0: expected 'keypoints' of 51": [{**row, "keypoints": [0.0] * 17}],
        "result 0: 'score' holds": [{**row, "score": "high"}],
    }
    for message, content in bad.items():
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_results(path)


def test_says_which_extra_is_missing(monkeypatch):
    labels = labels_from(labelled_people(), "labels")
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(MissingExtraError, match=r"kinemesh\[eval\]"):
        evaluate_coco(people_at(labels), labels)


def test_unknown_protocol():
    with pytest.raises(InputError, match="coco-keypoints, mpii-pckh"):
        get_keypoint_protocol("coco")
