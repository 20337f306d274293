import json

import numpy as np
import pytest
from scipy.io import savemat

from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.data.keypoint_records import collate_keypoints
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.errors import InputError
from kinemesh.evaluation.keypoint_readout import KeypointPerson, to_image
from kinemesh.evaluation.pckh import MpiiLabels, evaluate_mpii, pckh_scores, read_labels
from kinemesh.skeletons import MPII16

NAMES = ["rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor", "neck", "head"]
NAMES += ["rwri", "relb", "rsho", "lsho", "lelb", "lwri"]
PAIRS = {"Shoulder": (12, 13), "Elbow": (11, 14), "Wrist": (10, 15)}
PAIRS |= {"Hip": (2, 3), "Knee": (1, 4), "Ankle": (0, 5)}


def drawn(seed=0, count=12):
    """Positions (N,16,2) from 1, visible (N,16), head boxes (N,4) as x1, y1, x2, y2."""
    rng = np.random.default_rng(seed)
    positions = 1 + 400 * rng.random((count, 16, 2))
    corner = 300 * rng.random((count, 2))
    boxes = np.concatenate([corner, corner + 40 + 40 * rng.random((count, 2))], axis=1)
    return positions, rng.random((count, 16)) < 0.8, boxes


def noisy(positions, px=15.0, seed=1):
    return positions - 1 + px * np.random.default_rng(seed).standard_normal(positions.shape)


def slow_scores(predictions, positions, visible, boxes):
    """One joint at a time, as the rules are told."""

    def share(joint, threshold):
        hits, count = 0, 0
        for n in range(len(positions)):
            if visible[n, joint]:
                x1, y1, x2, y2 = boxes[n]
                head = 0.6 * np.hypot(x2 - x1, y2 - y1)
                error = np.hypot(*(predictions[n, joint] + 1 - positions[n, joint]))
                hits, count = hits + (error / head <= threshold), count + 1
        return 100 * hits / count, count

    values = {"Head": share(9, 0.5)[0]}
    for name, sides in PAIRS.items():
        values[name] = (share(sides[0], 0.5)[0] + share(sides[1], 0.5)[0]) / 2
    for name, threshold in (("Mean", 0.5), ("PCKh@0.11", 0.11), ("PCKh@0.1", 0.1)):
        shares = [share(joint, threshold) for joint in range(16) if joint not in {6, 7}]
        values[name] = sum(s * c for s, c in shares) / sum(c for _, c in shares)
    return values


def write_mat(path, positions, visible, boxes, order=tuple(range(16))):
    names = np.empty((1, 16), dtype=object)
    names[0] = [NAMES[joint] for joint in order]
    content = {
        "dataset_joints": names,
        "jnt_missing": (~visible[:, order]).T.astype(np.uint8),
        "pos_gt_src": positions[:, order].transpose(1, 2, 0),
        "headboxes_src": boxes.reshape(-1, 2, 2).transpose(1, 2, 0),
    }
    savemat(path, content)
    return content


def write_json(path, positions, visible, boxes=None):
    people = [
        {"joints": p.tolist(), "joints_vis": v.astype(int).tolist(), "image": "a.jpg"}
        for p, v in zip(positions, visible, strict=True)
    ]
    if boxes is not None:
        people = [one | {"head_box": box.tolist()} for one, box in zip(people, boxes, strict=True)]
    path.write_text(json.dumps(people))
    return people


def as_people(predictions):
    return [
        KeypointPerson(n, pose, np.ones(16), np.zeros(2), np.ones(2))
        for n, pose in enumerate(predictions)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_equals_one_joint_at_a_time(seed):
    positions, visible, boxes = drawn(seed)
    predictions = noisy(positions)
    values = pckh_scores(predictions, MpiiLabels.from_boxes("drawn", positions, visible, boxes))
    assert values == pytest.approx(slow_scores(predictions, positions, visible, boxes), abs=1e-9)
    assert list(values)[-3:] == ["Mean", "PCKh@0.11", "PCKh@0.1"]
    assert values["PCKh@0.1"] < values["Mean"] < 100


def test_predictions_count_from_zero_and_labels_from_one():
    positions, visible, boxes = drawn()
    labels = MpiiLabels.from_boxes("drawn", positions, visible, boxes)
    assert set(pckh_scores(positions - 1, labels).values()) == {100.0}
    # one pixel is 0.105 of a head of 9.5 px
    small = MpiiLabels("drawn", positions, visible, np.full(len(positions), 9.5))
    off = pckh_scores(positions - np.array([2.0, 1.0]), small)
    assert (off["PCKh@0.11"], off["PCKh@0.1"], off["Mean"]) == (100.0, 0.0, 100.0)


def test_the_threshold_itself_is_within():
    positions, visible, _ = drawn()
    labels = MpiiLabels("whole", np.round(positions), visible, np.full(len(positions), 8.0))
    assert pckh_scores(np.round(positions) - [1, 5], labels)["Mean"] == 100.0
    assert pckh_scores(np.round(positions) - [1, 5.01], labels)["Mean"] == 0.0


def test_joints_that_nobody_shows_have_no_number():
    positions, visible, boxes = drawn()
    visible[:, 9] = False
    visible[:, 5] = False
    labels = MpiiLabels.from_boxes("drawn", positions, visible, boxes)
    values = pckh_scores(noisy(positions), labels)
    assert np.isnan(values["Head"])
    right = slow_scores(
        noisy(positions)[:, [0] * 16], positions[:, [0] * 16], visible[:, [0] * 16], boxes
    )
    assert values["Ankle"] == pytest.approx(right["Head"])  # the right one alone
    assert not np.isnan(values["Mean"])
    nothing = MpiiLabels.from_boxes("drawn", positions, visible & False, boxes)
    assert np.isnan(list(pckh_scores(noisy(positions), nothing).values())).all()


def test_reads_the_official_file_in_any_order_of_joints(tmp_path):
    parts = drawn()
    order = tuple(np.random.default_rng(5).permutation(16))
    write_mat(tmp_path / "gt_valid.mat", *parts, order=order)
    labels = read_labels(tmp_path / "gt_valid.mat")
    expected = MpiiLabels.from_boxes("drawn", *parts)
    np.testing.assert_allclose(labels.positions_px, expected.positions_px)
    np.testing.assert_array_equal(labels.visible, expected.visible)
    np.testing.assert_allclose(labels.head_px, expected.head_px)
    values = slow_scores(noisy(parts[0]), *parts)
    assert pckh_scores(noisy(parts[0]), labels) == pytest.approx(values, abs=1e-9)


def test_reads_lists_with_head_boxes(tmp_path):
    parts = drawn()
    write_json(tmp_path / "valid.json", *parts)
    labels = read_labels(tmp_path / "valid.json")
    np.testing.assert_allclose(labels.head_px, MpiiLabels.from_boxes("drawn", *parts).head_px)


def test_real_list_without_head_boxes(shared):
    path = shared / "data" / "mmpose_tests" / "mpii" / "test_mpii.json"
    with pytest.raises(
        InputError,
        match=r"person 0: expected an object with 'head_box'.*gt_valid.mat.*--labels, .*segment",
    ):
        read_labels(path)
    labels = read_labels(path, "segment")
    result = evaluate_mpii(as_people(labels.positions_px - 1), labels)
    assert set(result.values.values()) == {100.0}
    assert result.counts["people"] == 5
    assert "NOT the published rule" in str(result)


def test_from_files_to_the_score(shared):
    path = shared / "data" / "mmpose_tests" / "mpii" / "test_mpii.json"
    dataset = MpiiKeypoints(path, options=KeypointOptions(size=(64, 64)))
    batch = collate_keypoints([dataset[index] for index in range(len(dataset))])
    coords = to_image(batch["target"], batch["center"], batch["scale"], (64, 64))
    result = evaluate_mpii(as_people(coords.numpy()), read_labels(path, "segment"))
    assert set(result.values.values()) == {100.0}


def test_segments_need_both_ends(tmp_path):
    positions, visible, _ = drawn()
    visible[:] = True
    visible[3, MPII16.index("upper_neck")] = False
    write_json(tmp_path / "valid.json", positions, visible)
    labels = read_labels(tmp_path / "valid.json", "segment")
    assert labels.visible.sum(axis=1).tolist() == [16, 16, 16, 0, *[16] * 8]


def test_result_prints_its_protocol(tmp_path):
    parts = drawn()
    write_mat(tmp_path / "gt_valid.mat", *parts)
    people = as_people(noisy(parts[0]))
    result = evaluate_mpii(people, tmp_path / "gt_valid.mat", model="tiny")
    text = str(result)
    for part in (
        "tiny on ",
        "boxes: ground truth",
        "flip test: yes",
        "joints: mpii16 (16)",
        "suppression: none",
        "0.6 times the diagonal",
        "12 people",
        "Mean@0.1",
    ):
        assert part in text
    assert result.values == pytest.approx(slow_scores(noisy(parts[0]), *parts), abs=1e-9)
    assert json.loads(json.dumps(result.to_dict()))["protocol"]["unit"] == "%"
    five = evaluate_mpii(people[:5], read_labels(tmp_path / "gt_valid.mat").first(5))
    assert five.counts["people"] == 5


def test_refuses_predictions_that_do_not_fit():
    positions, visible, boxes = drawn()
    labels = MpiiLabels.from_boxes("drawn", positions, visible, boxes)
    people = as_people(positions)
    with pytest.raises(InputError, match="no predicted person"):
        evaluate_mpii([], labels)
    with pytest.raises(InputError, match=r"expected 12 of 16 joints.*found 11 of \[16\]"):
        evaluate_mpii(people[1:], labels)
    coco = KeypointPerson(0, np.zeros((17, 2)), np.zeros(17), np.zeros(2), np.ones(2))
    with pytest.raises(InputError, match=r"found 12 of \[16, 17\] joints"):
        evaluate_mpii([coco, *people[1:]], labels)
    with pytest.raises(InputError, match="expected finite numbers of shape"):
        pckh_scores(np.full_like(positions, np.nan), labels)
    with pytest.raises(InputError, match="person 4: expected a head of positive size"):
        MpiiLabels.from_boxes(
            "drawn", positions, visible, np.where(np.eye(12)[4][:, None], 0, boxes)
        )
    with pytest.raises(InputError, match="visible: expected shape"):
        MpiiLabels.from_boxes("drawn", positions, visible[:, :15], boxes)


def test_refuses_wrong_files(tmp_path):
    parts = drawn()
    path = tmp_path / "gt_valid.mat"
    with pytest.raises(InputError, match="There is no file"):
        read_labels(path)
    path.write_bytes(b"not a file of MATLAB")
    with pytest.raises(InputError, match="expected a MATLAB file"):
        read_labels(path)
    content = write_mat(path, *parts)
    savemat(path, {key: value for key, value in content.items() if key != "headboxes_src"})
    with pytest.raises(InputError, match="found no headboxes_src"):
        read_labels(path)
    savemat(path, content | {"jnt_missing": content["jnt_missing"][:, 1:]})
    with pytest.raises(InputError, match=r"jnt_missing \(16, N\)"):
        read_labels(path)
    names = content["dataset_joints"].copy()
    names[0, 0] = "toe"
    savemat(path, content | {"dataset_joints": names})
    with pytest.raises(InputError, match="found no rank"):
        read_labels(path)


def test_refuses_wrong_lists(tmp_path):
    path = tmp_path / "valid.json"
    people = write_json(path, *drawn(count=2))
    bad = {
        "expected a list of people": {"people": people},
        "person 1: expected an object": [people[0], 3],
        "person 1: expected an object with 'joints'": [people[0], {"image": "b.jpg"}],
        "person 1: expected 'joints' of 16 x 2 finite numbers": [
            people[0],
            people[1] | {"joints": [[1, 2]]},
        ],
    }
    for message, content in bad.items():
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_labels(path)
    path.write_text("[")
    with pytest.raises(InputError, match="expected JSON"):
        read_labels(path)
