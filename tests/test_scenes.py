"""Rendered scenes of several people and hands, their labels, and 2D data sets by name."""

import json

import numpy as np
import pytest
import torch

from kinemesh.cli import main
from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.data.detection_scenes import CocoScenes, collate_scenes
from kinemesh.data.keypoint_dataset import KeypointOptions
from kinemesh.data.keypoint_sources import open_keypoints, open_scenes
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.data.sources import open_dataset
from kinemesh.data.synthetic.scene_crops import (
    SyntheticKeypoints,
    person_record,
    write_coco_scenes,
)
from kinemesh.data.synthetic.scenes import NOBODY, SyntheticScenes, _Camera, _keypoints, _label
from kinemesh.data.synthetic.scenes import _Layer as Layer
from kinemesh.data.synthetic.scenes import _Stack as Stack
from kinemesh.data.synthetic.scenes import _stack_seen as stack_seen
from kinemesh.errors import InputError

SIZE = (96, 80)
COUNT = 4


@pytest.fixture(scope="module")
def scenes():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield SyntheticScenes(3, SIZE, people=(1, 3), hands=(0, 2))
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rendered(scenes):
    return [scenes.render(index) for index in range(COUNT)]


def test_scenes_depend_on_seed_split_and_index_alone(scenes, rendered):
    again = SyntheticScenes(3, SIZE, people=(1, 3), hands=(0, 2))
    for index in (2, 1):
        for name, value in vars(again.render(index)).items():
            np.testing.assert_array_equal(value, getattr(rendered[index], name))
    others = [
        SyntheticScenes(4, SIZE, people=(1, 3), hands=(0, 2)),
        SyntheticScenes(3, SIZE, split="val", people=(1, 3), hands=(0, 2)),
        SyntheticScenes(3, SIZE, split="test", people=(1, 3), hands=(0, 2)),
    ]
    pictures = [rendered[0].picture, *(other.render(0).picture for other in others)]
    assert len({picture.tobytes() for picture in pictures}) == 4
    shorter = SyntheticScenes(3, SIZE, length=5, people=(1, 3), hands=(0, 2))
    assert np.array_equal(shorter.render(-4).picture, rendered[1].picture)
    with pytest.raises(IndexError):
        shorter.render(5)


def test_labels_lie_in_the_picture(rendered):
    assert sum(len(scene.hand_boxes) for scene in rendered) > 0
    for scene in rendered:
        assert scene.picture.shape == (SIZE[1], SIZE[0], 3)
        assert len(scene.boxes) >= 1
        for boxes in (scene.boxes, scene.hand_boxes):
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= SIZE).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert (scene.areas <= sides.prod(axis=1) + 1e-3).all()
        for keypoints in (scene.keypoints, scene.hand_keypoints):
            flags = keypoints[..., 2]
            assert set(np.unique(flags)) <= {0, 1, 2}
            assert not keypoints[flags == 0].any()
            assert (keypoints[..., :2] < SIZE).all()
        for box, keypoints in zip(scene.boxes, scene.keypoints, strict=True):
            seen = keypoints[keypoints[:, 2] == 2, :2]
            # a visible joint lies in the box of what is visible, to a pixel
            assert (seen >= box[:2] - 1.5).all()
            assert (seen <= box[2:] + 1.5).all()
    flags = np.concatenate([scene.keypoints[..., 2].ravel() for scene in rendered])
    assert {1, 2} <= set(np.unique(flags))


def test_samples_are_relative(scenes, rendered):
    sample = scenes[0]
    assert sample["image"].shape == (3, SIZE[1], SIZE[0])
    first, last = rendered[0].boxes[:, :2], rendered[0].boxes[:, 2:]
    expected = np.concatenate([(first + last) / 2, last - first], axis=1) / (SIZE * 2)
    np.testing.assert_allclose(sample["boxes"], expected, rtol=1e-5)
    back = sample["keypoints"].numpy() * [*SIZE, 1]
    np.testing.assert_allclose(back, rendered[0].keypoints, atol=1e-4)
    bgr = SyntheticScenes(3, SIZE, order="bgr", people=(1, 3), hands=(0, 2))[0]["image"]
    std, mean = torch.tensor([0.229, 0.224, 0.225]), torch.tensor([0.485, 0.456, 0.406])
    plain = [image * std[:, None, None] + mean[:, None, None] for image in (sample["image"], bgr)]
    torch.testing.assert_close(plain[0].flip(0), plain[1])
    batch = collate_scenes([scenes[0], scenes[1]])
    assert batch["people"].sum(1).tolist() == [len(scene.boxes) for scene in rendered[:2]]
    assert batch["hands"].sum(1).tolist() == [len(scene.hand_boxes) for scene in rendered[:2]]


CAMERA = _Camera((100, 80), 100.0, 0.0, 0.0)


def plate(depth, window, joints):
    """A flat square at a depth, with 17 joints of which some are given as pixels and depths."""
    left, top, right, bottom = window
    shape = (bottom - top, right - left)
    points = np.zeros((17, 3), dtype=np.float32)
    for row, (x, y, z) in enumerate(joints):
        points[row] = [(x - 50) / 100 * z, (y - 40) / 100 * z, z]
    points[len(joints) :] = [0, 0, 100]  # behind everything, in the middle
    colour = np.full((*shape, 3), depth, dtype=np.float32)
    inside = np.ones(shape, dtype=bool)
    return Layer(
        "body", points, window, colour, np.full(shape, depth, dtype=np.float32), inside, 10.0
    )


def test_the_nearest_is_in_front_whatever_the_order():
    near, far = plate(1.0, (30, 30, 60, 60), []), plate(2.0, (0, 0, 45, 45), [])
    for layers in ([near, far], [far, near]):
        stack = Stack.of(layers, CAMERA.rendered_size)
        assert stack.owner[40, 40] == layers.index(near)
        assert stack.depth[40, 40] == 1
        assert stack.colour[10, 10, 0] == 2
        assert stack.owner[100, 100] == NOBODY
        assert np.isinf(stack.depth[100, 100])
        assert stack.seen(layers.index(far)).sum() == 45**2 - 15**2


def test_flags_say_what_is_seen():
    # pixels of the enlarged picture are 1.5 times as many
    joints = [(10, 10, 2.05), (10, 12, 2.5), (25, 25, 2.0), (120, 10, 2.0), (10, 10, -1.0)]
    far = plate(2.0, (0, 0, 45, 45), joints)
    near = plate(1.0, (30, 30, 60, 60), [(31, 31, 1.0)])
    stack = Stack.of([far, near], CAMERA.rendered_size)
    found = _keypoints(stack, 0, CAMERA)
    assert found[:5, 2].tolist() == [2, 1, 1, 0, 0]  # seen, own body, other's, outside, behind
    np.testing.assert_allclose(found[0, :2], [10, 10], atol=1e-4)
    assert found[3].tolist() == [0, 0, 0]
    assert _keypoints(stack, 1, CAMERA)[0, 2] == 2
    scene = _label(np.zeros((80, 100, 3), dtype=np.uint8), stack, CAMERA)
    np.testing.assert_allclose(scene.boxes, [[0, 0, 30, 30], [20, 20, 40, 40]])
    np.testing.assert_allclose(scene.areas, [(45**2 - 15**2) / 2.25, 400])


def test_the_hidden_are_taken_away():
    behind = plate(2.0, (20, 20, 40, 40), [])
    front = plate(1.0, (18, 20, 60, 60), [])
    assert list(stack_seen([front, behind], CAMERA.rendered_size).layers) == [front]
    # the first one stays, and who covers it leaves
    assert list(stack_seen([behind, front], CAMERA.rendered_size).layers) == [behind]
    apart = plate(1.0, (50, 50, 70, 70), [])
    assert len(stack_seen([behind, apart], CAMERA.rendered_size).layers) == 2


def test_only_hands_or_only_people():
    hands = SyntheticScenes(0, SIZE, people=(0, 0), hands=(1, 1)).render(0)
    assert hands.boxes.shape == (0, 4)
    assert hands.keypoints.shape == (0, 17, 3)
    assert hands.hand_keypoints.shape == (1, 21, 3)
    people = SyntheticScenes(0, SIZE, people=(1, 1), hands=(0, 0)).render(0)
    assert people.keypoints.shape == (1, 17, 3)
    assert people.hand_boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "seed, length, size"),
        ({"size": (32, 320)}, "sides of at least 64 px"),
        ({"people": (2, 1)}, "people: expected"),
        ({"hands": (0, 0), "people": (0, 0)}, "expected somebody"),
        ({"split": "all"}, "split: expected 'train' or 'val' or 'test'"),
        ({"order": "RGB"}, "order: expected 'bgr' or 'rgb'"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        SyntheticScenes(**({"seed": 0} | arguments))


def test_files_hold_the_same(scenes, rendered, tmp_path):
    path = write_coco_scenes(tmp_path / "set", scenes, range(2))
    content = json.loads(path.read_text())
    assert len(content["annotations"]) == sum(len(scene.boxes) for scene in rendered[:2])
    read = CocoScenes(path.parent.parent)
    for index in range(2):
        for name in ("boxes", "areas"):
            torch.testing.assert_close(read[index][name], scenes[index][name])
        ours, theirs = scenes[index]["keypoints"].numpy(), read[index]["keypoints"].numpy()
        assert np.array_equal(ours[..., 2], theirs[..., 2])
        # files count from the first pixel's centre, samples of both sources from the corner
        assert np.abs((ours - theirs)[..., :2] * SIZE).max() < 0.01
        rows = [row for row in content["annotations"] if row["image_id"] == index + 1]
        file = np.reshape([row["keypoints"] for row in rows], (-1, 17, 3))
        from_the_corner = (file[..., :2] + 0.5) * (file[..., 2:] > 0)
        assert np.abs(from_the_corner - theirs[..., :2] * SIZE).max() < 0.01
    options = KeypointOptions(size=(48, 64))
    crops = CocoKeypoints(path, options=options)
    assert len(crops) == len(content["annotations"])
    record = person_record(rendered[0], 0, 1, options.aspect)
    np.testing.assert_allclose(crops.records[0].joints, record.joints, atol=1e-3)
    np.testing.assert_array_equal(crops.records[0].visible, record.visible)


def test_crops(rendered):
    def crops(**options):
        options = KeypointOptions(seed=3, size=(48, 64), **options)
        return SyntheticKeypoints(options, "train", SIZE, people=(1, 2))

    sample = crops()[0]
    assert sample["image"].shape == (3, 64, 48)
    assert torch.equal(sample["image"], crops()[0]["image"])
    assert not torch.equal(sample["image"], crops(train=True)[0]["image"])
    inside = ((sample["target"] > -0.1) & (sample["target"] < 1.1)).all(dim=1)
    assert inside[sample["weight"][:, 0] > 0].float().mean() > 0.5
    with pytest.raises(InputError, match="at least one"):
        SyntheticKeypoints(people=(0, 2))


def test_names(shared, tmp_path):
    coco = shared / "data" / "coco_train2017_subset"
    mpii = shared / "data" / "mmpose_tests" / "mpii" / "test_mpii.json"
    assert isinstance(open_keypoints(f"coco:{coco}"), CocoKeypoints)
    assert open_keypoints(f"mpii:{mpii}", split="train", seed=4).options.seed == 4
    assert isinstance(open_keypoints(f"mpii:{mpii}"), MpiiKeypoints)
    assert isinstance(open_scenes(f"coco-scenes:{coco}"), CocoScenes)


def test_synthetic_names():
    assert isinstance(open_keypoints("synthetic-keypoints", split="val"), SyntheticKeypoints)
    opened = open_scenes("synthetic-scenes", split="val", seed=2)
    assert (opened.split, opened.seed, opened.order) == ("val", 2, "rgb")
    for opener, spec, message in (
        (open_keypoints, "synthetic-scenes", "no data set of 2D keypoints"),
        (open_scenes, "mpii:x", "no data set of 2D keypoints"),
        (open_dataset, "coco:x", "holds 2D keypoints alone"),
    ):
        with pytest.raises(InputError, match=message):
            opener(spec)
    with pytest.raises(InputError, match="boxes: detected boxes are for coco:"):
        open_keypoints("mpii:x", boxes="detections.json")


@pytest.mark.parametrize(
    ("kind", "printed"),
    [("coco:", "joints"), ("coco-scenes:", "people, 0 hands"), ("synthetic-scenes", "hands")],
)
def test_check_verb(scenes, tmp_path, capsys, kind, printed):
    spec = kind
    if kind.startswith("coco"):
        write_coco_scenes(tmp_path / "set", scenes, range(1))
        spec = f"{kind}{tmp_path / 'set'}"
    picture = tmp_path / "look.png"
    assert main(["data", "check", spec, "--count", "1", "--out", str(picture)]) == 0
    assert printed in capsys.readouterr().out
    assert picture.stat().st_size > 1000
