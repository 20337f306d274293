"""The published crop and augmentation: goldens, slow twins, and what they do to labels."""

import cv2
import numpy as np
import pytest

from kinemesh.data.mesh_augmentation import (
    Augmentation,
    place_joints_2d,
    turn_points,
    turn_pose,
)
from kinemesh.data.mesh_crop import (
    CropParameters,
    crop_affine,
    crop_corners,
    crop_picture,
    demo_crop,
)
from kinemesh.errors import InputError
from kinemesh.skeletons import HAND21, METRO24
from tests.parity.data import compare


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)


def test_official_numbers(shared):
    results = compare(shared / "parity" / "metro" / "golden")
    assert len(results) == 28
    for result in results:
        result.assert_passed()


def published_crop(picture, center, scale, crop, resolution):
    """The slow twin: a padded float64 canvas, turned whole, cut, and resized."""
    first, last = crop_corners(center, scale * crop.scale, resolution)
    pad = int(np.linalg.norm(last - first) / 2 - (last - first)[1] / 2)
    if crop.rotation_deg == 0:
        pad = 0
    first, last = first - pad, last + pad
    width, height = last - first
    canvas = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            x, y = column + first[0], row + first[1]
            if 0 <= x < picture.shape[1] and 0 <= y < picture.shape[0]:
                canvas[row, column] = picture[y, x]
    middle = ((width - 1) * 0.5, (height - 1) * 0.5)
    if crop.rotation_deg != 0:
        turn = cv2.getRotationMatrix2D(middle, crop.rotation_deg, 1)
        canvas = cv2.warpAffine(canvas, turn, (int(width), int(height)))
    canvas = canvas[pad : height - pad, pad : width - pad]
    small = cv2.resize(canvas, (resolution, resolution))
    if crop.flip:
        small = small[:, ::-1]
    small = np.minimum(255.0, np.maximum(0.0, small * np.array(crop.noise)))
    return small.astype(np.float32).transpose(2, 0, 1) / np.float32(255)


@pytest.mark.parametrize("seed", range(12))
def test_crop_equals_its_slow_twin_to_the_bit(picture, seed):
    rng = np.random.default_rng(seed)
    center, scale = rng.uniform(-20, 140, 2), rng.uniform(0.1, 0.6)
    crop = CropParameters(
        bool(seed % 2),
        tuple(rng.uniform(0.6, 1.4, 3)),
        0.0 if seed % 3 == 0 else rng.uniform(-180, 180),
        rng.uniform(0.7, 1.3),
    )
    found = crop_picture(picture, center, scale, crop, resolution=56)
    np.testing.assert_array_equal(found, published_crop(picture, center, scale, crop, 56))
    assert found.dtype == np.float32
    assert found.flags.c_contiguous


def test_plain_crop_of_the_same_size_is_the_picture(picture):
    crop = crop_picture(picture, np.array([60.0, 45.0]), 0.4, resolution=80)
    inside = picture[5:85, 20:100].transpose(2, 0, 1)
    np.testing.assert_array_equal(crop, inside.astype(np.float32) / np.float32(255))


def test_corners_are_truncated_towards_zero():
    first, last = crop_corners(np.array([9.5, 30.5]), 0.2)  # from (-10.5, 10.5) to (29.5, 50.5)
    assert first.tolist() == [-10, 10]
    assert last.tolist() == [29, 50]


def test_outside_of_the_picture_is_black(picture):
    for rotation in (0.0, 20.0):
        crop = CropParameters(rotation_deg=rotation)
        assert not crop_picture(picture, np.array([900.0, 0.0]), 0.3, crop).any()


@pytest.mark.parametrize("scale", [0.001, 80.0])
def test_absurd_boxes_are_refused(picture, scale):
    with pytest.raises(InputError, match="scale: expected a box between"):
        crop_picture(picture, np.array([50.5, 50.5]), scale)


@pytest.mark.parametrize("rotation", [0.0, 35.0, -120.0])
@pytest.mark.parametrize("flip", [False, True])
def test_joints_follow_the_picture(rotation, flip):
    """A bright spot at a joint is found where the joint is placed."""
    crop = CropParameters(flip, rotation_deg=rotation, scale=1.1)
    center, scale = np.array([100.0, 80.0]), 0.6
    for spot in ((95, 70), (120, 100), (70, 95)):
        picture = np.zeros((200, 200, 3), dtype=np.uint8)
        cv2.circle(picture, spot, 3, (255, 255, 255), -1)
        joints = np.ones((21, 3)) * [*spot, 1]
        placed = place_joints_2d(joints, HAND21, center, scale, crop)
        image = crop_picture(picture, center, scale, crop)[0]
        rows, columns = np.nonzero(image > 0.5)
        assert abs(columns.mean() - placed[0, 0]) < 3  # whole pixels, and truncated corners
        assert abs(rows.mean() - placed[0, 1]) < 3
        assert np.array_equal(placed[:, 2], joints[:, 2])


def test_placed_joints_are_whole_pixels_and_swap_sides():
    rng = np.random.default_rng(3)
    joints = np.column_stack([rng.uniform(0, 100, (24, 2)), rng.random(24)])
    plain = place_joints_2d(joints, METRO24, np.array([50.0, 50.0]), 0.5, CropParameters())
    flipped = place_joints_2d(joints, METRO24, np.array([50.0, 50.0]), 0.5, CropParameters(True))
    assert np.array_equal(plain[:, :2], np.round(plain[:, :2]))
    left, right = METRO24.index("left_knee"), METRO24.index("right_knee")
    assert flipped[left, 0] == 224 - plain[right, 0]
    assert np.array_equal(flipped[left, 1:], plain[right, 1:])


def test_points_turn_as_joints_do():
    """3D points project (orthographically) onto the places of the turned picture."""
    rng = np.random.default_rng(4)
    points = rng.normal(size=(24, 4))
    crop = CropParameters(flip=True, rotation_deg=33.0)
    turned = turn_points(points, METRO24, crop)
    matrix = crop_affine(np.zeros(2), 1.0, 33.0)[:2, :2] * 200 / 224
    expected = (points[:, :2] @ matrix.T)[list(METRO24.flip_permutation)] * [-1, 1]
    np.testing.assert_allclose(turned[:, :2], expected, atol=1e-12)
    np.testing.assert_array_equal(turned[:, 2:], points[list(METRO24.flip_permutation), 2:])
    np.testing.assert_array_equal(turn_points(points, None, CropParameters()), points)


def test_pose_turns_its_root_alone_and_mirrors_twice_to_itself():
    pose = np.random.default_rng(5).normal(0, 0.5, 72)
    turned = turn_pose(pose, CropParameters(rotation_deg=40.0))
    np.testing.assert_array_equal(turned[3:], pose[3:])
    before, after = (cv2.Rodrigues(p[:3])[0] for p in (pose, turned))
    x = np.array([0.3, -0.2, 0.5])
    expected = turn_points((before @ x)[None], None, CropParameters(rotation_deg=40.0))[0]
    np.testing.assert_allclose(after @ x, expected, atol=1e-12)
    mirror = CropParameters(flip=True)
    np.testing.assert_allclose(turn_pose(turn_pose(pose, mirror), mirror), pose, atol=1e-12)
    assert not np.allclose(turn_pose(pose, mirror), pose)


@pytest.mark.parametrize("kind", ["body", "hand"])
def test_draws_are_those_of_the_global_generator(kind):
    """The order of calls of the published code, written down with NumPy's global functions."""
    augmentation = Augmentation.for_kind(kind)
    rng = np.random.RandomState(8)
    np.random.seed(8)  # noqa: NPY002 - the point of the test
    for _ in range(50):
        crop = augmentation.draw(rng)
        mask = augmentation.draw_keep_mask(rng, 14, 431)
        flip = np.random.uniform() <= 0.5 if kind == "body" else False  # noqa: NPY002
        noise = np.random.uniform(0.6, 1.4, 3)  # noqa: NPY002
        degrees = 30 if kind == "body" else 90
        rotation = np.clip(np.random.randn() * degrees, -2 * degrees, 2 * degrees)  # noqa: NPY002
        scale = np.clip(np.random.randn() * 0.25 + 1, 0.75, 1.25)  # noqa: NPY002
        if np.random.uniform() <= 0.6:  # noqa: NPY002
            rotation = 0
        assert crop == CropParameters(bool(flip), tuple(noise), float(rotation), float(scale))
        expected = np.ones((445, 1))
        for first, count in ((0, 14), (14, 431)):
            share = np.random.random_sample() * (0.3 if kind == "body" else 0.0)  # noqa: NPY002
            chosen = np.random.choice(  # noqa: NPY002
                np.arange(count), replace=False, size=int(share * count)
            )
            expected[first + chosen] = 0
        np.testing.assert_array_equal(mask, expected)


def test_masks_stay_within_their_share():
    rng = np.random.RandomState(0)
    masks = np.stack([Augmentation.body().draw_keep_mask(rng, 14, 431) for _ in range(300)])
    hidden_joints, hidden_vertices = (
        (1 - part).sum((1, 2)) for part in (masks[:, :14], masks[:, 14:])
    )
    assert hidden_joints.max() == 4
    assert 110 < hidden_vertices.max() <= 129
    assert Augmentation.hand().draw_keep_mask(rng, 21, 195).all()
    assert Augmentation.body().draw_keep_mask(rng, 21, 0).shape == (21, 1)


def test_demo_crop_takes_the_middle():
    wide = np.zeros((100, 300, 3), dtype=np.uint8)
    wide[:, 100:200] = 255
    crop, center, side = demo_crop(wide, 50)
    assert crop.shape == (50, 50, 3)
    assert crop[:, 1:-1].min() == 255
    assert center.tolist() == [150, 50]
    assert side == 100
    same = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    np.testing.assert_array_equal(demo_crop(same, 50)[0], same)
