"""The crop, the box rules and the variation of 2D keypoint data."""

import cv2
import numpy as np
import pytest
import torch

from kinemesh.data.keypoint_augmentation import (
    PLAIN,
    KeypointAugmentation,
    KeypointVariation,
    half_body,
    vary_person,
)
from kinemesh.data.keypoint_crop import (
    Placement,
    clean_box,
    crop_affine,
    crop_affine_inverse,
    decode_picture,
    denormalise_picture,
    map_points,
    normalise_picture,
    place_box,
    warp_picture,
)
from kinemesh.data.keypoint_dataset import KeypointOptions, KeypointRecord, make_keypoint_sample
from kinemesh.data.keypoint_records import collate_keypoints
from kinemesh.errors import InputError
from kinemesh.skeletons import COCO17, HAND21, MPII16
from tests.parity import prtr_data

SIZE = (72, 96)


def test_official_numbers(shared):
    results = prtr_data.compare(shared / "parity" / "prtr" / "golden")
    assert len(results) == 8
    for result in results:
        result.assert_passed()


def test_absent_goldens_are_no_failure(tmp_path):
    assert prtr_data.compare(tmp_path) == []


def cases(count, seed=0):
    rng = np.random.RandomState(seed)
    for _ in range(count):
        width, height = rng.randint(64, 384, 2).tolist()
        yield rng.uniform(0, 600, 2), rng.uniform(1, 4, 2), (width, height), rng.uniform(-90, 90)


def three_points(center, scale, size, rotation_deg):
    """The published construction, on float32 points: centre, above it, and at a right angle."""
    angle, side = np.pi * rotation_deg / 180, scale[0] * 200
    up = np.array([np.sin(angle), -np.cos(angle)]) * side / 2
    source = [center, center + up]
    target = [np.array(size) / 2, np.array(size) / 2 + [0, -size[0] / 2]]
    for points in (source, target):
        across = points[0] - points[1]
        points.append(points[1] + np.array([-across[1], across[0]]))
    return cv2.getAffineTransform(np.float32(source), np.float32(target))


def test_affine_is_that_of_three_points():
    for center, scale, size, rotation in cases(30):
        points = center + np.random.RandomState(1).uniform(-0.5, 0.5, (20, 2)) * scale[0] * 200
        ours = map_points(crop_affine(center, scale, size, rotation), points)
        theirs = map_points(three_points(center, scale, size, rotation), points)
        # their points are rounded to float32
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_affine_and_its_inverse():
    for center, scale, size, rotation in cases(30, seed=2):
        affine = crop_affine(center, scale, size, rotation)
        back = crop_affine_inverse(center, scale, size, rotation)
        np.testing.assert_allclose(map_points(affine, center), np.array(size) / 2, atol=1e-9)
        points = np.array([[0.0, 0.0], [13.0, 600.0]])
        np.testing.assert_allclose(map_points(back, map_points(affine, points)), points, atol=1e-8)
        taller = crop_affine(center, scale * [1, 3], size, rotation)
        assert np.array_equal(affine, taller)  # only the width counts


def test_affine_turns_counter_clockwise():
    affine = crop_affine(np.zeros(2), np.ones(2), (200, 200), 90.0)
    np.testing.assert_allclose(map_points(affine, np.array([50.0, 0])), [100, 50], atol=1e-9)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_empty_boxes_are_refused(scale):
    with pytest.raises(InputError, match="positive width"):
        crop_affine(np.zeros(2), np.full(2, scale), SIZE)


def exact_warp(picture, affine, size):
    """Bilinear interpolation in float64, black outside."""
    full = cv2.invertAffineTransform(affine)
    rows, columns = np.mgrid[: size[1], : size[0]]
    points = map_points(full, np.stack([columns, rows], axis=-1).astype(np.float64))
    padded = np.pad(picture.astype(np.float64), ((300, 300), (300, 300), (0, 0)))
    first = np.floor(points).astype(int)
    part = points - first
    warped = np.zeros((size[1], size[0], 3))
    for right, down in ((0, 0), (1, 0), (0, 1), (1, 1)):
        share = np.where([right, down], part, 1 - part).prod(axis=-1, keepdims=True)
        pixels = padded[first[..., 1] + down + 300, first[..., 0] + right + 300]
        warped += share * pixels
    return warped


def test_warp_is_bilinear():
    rng = np.random.RandomState(0)
    cells = rng.randint(0, 256, (12, 16, 3)).astype(np.uint8)
    picture = cv2.resize(cells, (160, 120), interpolation=cv2.INTER_CUBIC)
    for rotation in (0.0, 33.0):
        affine = crop_affine(np.array([81.3, 55.2]), np.array([0.6, 0.8]), SIZE, rotation)
        warped = warp_picture(picture, affine, SIZE)
        assert warped.shape == (SIZE[1], SIZE[0], 3)
        difference = np.abs(warped - exact_warp(picture, affine, SIZE))
        # OpenCV before 5.0 rounds places to 32nds of a pixel
        assert difference.max() <= 6
        assert difference.mean() < 0.6


def test_boxes_are_cut_to_the_image():
    assert clean_box(np.array([-12.5, 20, 150, 90]), 320, 240).tolist() == [0, 20, 149, 89]
    assert clean_box(np.array([200, 60, 180, 300]), 320, 240).tolist() == [200, 60, 119, 179]
    assert clean_box(np.array([330, 10, 5, 5]), 320, 240) is None
    assert clean_box(np.array([10, 10, 0, 5]), 320, 240).tolist() == [10, 10, 0, 4]


def test_boxes_are_enlarged_to_the_aspect():
    tall = place_box(np.array([10, 20, 40, 100]), 0.75)
    assert tall.center.tolist() == [30, 70]
    np.testing.assert_allclose(tall.scale * 200, [93.75, 125])
    wide = place_box(np.array([0, 0, 90, 30]), 0.75, padding=1)
    np.testing.assert_allclose(wide.scale * 200, [90, 120])
    assert wide.scale.dtype == np.float32


def test_a_centre_at_minus_one_is_not_padded():
    """As published, where it stands for a person without a place."""
    half_outside = np.array([-3.0, 10, 4, 100])
    bare, padded = (place_box(half_outside + np.array([dx, 0, 0, 0]), 0.75) for dx in (0, 1))
    assert bare.center.tolist() == [-1, 60]
    np.testing.assert_allclose(bare.scale * 200, [75, 100])
    np.testing.assert_allclose(padded.scale * 200, [93.75, 125])
    half = place_box(half_outside, 0.75, 1.5, offset=np.array([-1.0, 60.0]))
    np.testing.assert_allclose(half.scale * 200, [112.5, 150])  # half a body always is


def test_statistics_go_to_channels_whatever_the_order():
    rgb = np.zeros((2, 3, 3), dtype=np.uint8) + np.uint8([255, 128, 0])
    bgr = np.ascontiguousarray(rgb[..., ::-1])
    image = normalise_picture(bgr)
    assert image.shape == (3, 2, 3)
    assert image[0, 0, 0] == pytest.approx(-0.485 / 0.229)
    assert image[2, 0, 0] == pytest.approx((1 - 0.406) / 0.225)
    assert np.array_equal(denormalise_picture(image, "bgr"), rgb)
    assert np.array_equal(denormalise_picture(normalise_picture(rgb), "rgb"), rgb)


def test_decoding():
    picture = np.zeros((4, 6, 3), dtype=np.uint8)
    picture[..., 0] = 200
    png = cv2.imencode(".png", picture)[1].tobytes()
    assert decode_picture(png, "x")[0, 0].tolist() == [200, 0, 0]
    assert decode_picture(png, "x", "rgb")[0, 0].tolist() == [0, 0, 200]
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    turned = jpeg[:2] + exif(orientation=6) + jpeg[2:]
    assert decode_picture(turned, "x").shape == (4, 6, 3)
    for damaged, message in ((jpeg[:-20], "ends early"), (b"", "0 bytes"), (b"text", "4 bytes")):
        with pytest.raises(InputError, match=f"row 7: expected a complete picture.*{message}"):
            decode_picture(damaged, "row 7")
    with pytest.raises(InputError, match="'bgr' or 'rgb'"):
        decode_picture(png, "x", "RGB")


def exif(orientation):
    entry = b"\x12\x01\x03\x00\x01\x00\x00\x00" + bytes([orientation, 0, 0, 0])
    body = b"Exif\0\0II*\0\x08\0\0\0\x01\x00" + entry + b"\0\0\0\0"
    return b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body


def test_draws_have_the_published_distribution():
    rng = np.random.RandomState(0)
    drawn = [KeypointAugmentation.coco().draw(rng, 17) for _ in range(4000)]
    scales = np.array([variation.scale for variation in drawn])
    turns = np.array([variation.rotation_deg for variation in drawn])
    assert scales.std() == pytest.approx(0.214, abs=0.01)
    assert ((scales == 0.7) | (scales == 1.3)).mean() == pytest.approx(0.317, abs=0.03)
    assert (turns == 0).mean() == pytest.approx(0.4, abs=0.03)
    assert np.abs(turns).max() == 80
    assert np.mean([variation.flip for variation in drawn]) == pytest.approx(0.5, abs=0.03)
    assert all(variation.half_body is None for variation in drawn)
    mpii = [KeypointAugmentation.mpii().draw(rng, 16) for _ in range(500)]
    assert max(abs(variation.rotation_deg) for variation in mpii) <= 60
    assert {variation.scale for variation in mpii} >= {0.75, 1.25}


def test_half_bodies_are_drawn_from_nine_joints_on():
    halved = KeypointAugmentation(half_body_share=1.0)
    rng = np.random.RandomState(0)
    assert halved.draw(rng, 8).half_body is None
    draws = [halved.draw(rng, 9).half_body for _ in range(1000)]
    assert np.mean([draw < 0.5 for draw in draws]) == pytest.approx(0.69, abs=0.05)


def person(seed=0, joints=17):
    rng = np.random.RandomState(seed)
    return rng.uniform(20, 180, (joints, 2)).astype(np.float32), np.ones(joints, dtype=np.float32)


def test_half_body():
    joints, visible = person()
    upper = half_body(joints, visible, COCO17, -1.0, 0.75)
    np.testing.assert_allclose(upper.center, joints[:11].mean(0), rtol=1e-6)
    lower = half_body(joints, visible, COCO17, 0.5, 0.75)
    np.testing.assert_allclose(lower.center, joints[11:].mean(0), rtol=1e-6)
    box = np.ptp(joints[11:], axis=0)
    expected = max(box[0], box[1] * 0.75) / 200 * 1.5
    np.testing.assert_allclose(lower.scale, [expected, expected / 0.75], rtol=1e-6)
    visible[11:] = [1, 1, 0, 0, 0, 0]  # too few below: the upper half all the same
    np.testing.assert_allclose(half_body(joints, visible, COCO17, 0.9, 0.75).center, upper.center)
    visible[:11] = 0
    assert half_body(joints, visible, COCO17, -1.0, 0.75) is None  # none above, two below
    mpii, seen = person(joints=16)
    np.testing.assert_allclose(half_body(mpii, seen, MPII16, -1, 1).center, mpii[7:].mean(0), 1e-6)
    with pytest.raises(InputError, match="'hand21' is not known"):
        half_body(*person(joints=21), HAND21, 0.0, 1.0)


def test_flip_swaps_sides_and_hides_the_invisible():
    joints, visible = person()
    visible[5] = 0  # left shoulder
    place = Placement(np.float32([100, 90]), np.float32([1, 1.2]))
    varied = vary_person(place, joints, visible, COCO17, KeypointVariation(flip=True), 200, 0.75)
    assert varied.placement.center.tolist() == [99, 90]
    np.testing.assert_allclose(varied.joints[9], [199 - joints[10, 0], joints[10, 1]])
    assert varied.visible[6] == 0
    assert varied.joints[6].tolist() == [0, 0]
    twice = vary_person(*varied, COCO17, KeypointVariation(flip=True), 200, 0.75)
    np.testing.assert_allclose(twice.joints[visible > 0], joints[visible > 0], rtol=1e-6)


def sample(variation=PLAIN, *, size=SIZE, visible=None, scale=0.5):
    joints, seen = person()
    picture = np.random.RandomState(0).randint(0, 255, (200, 200, 3)).astype(np.uint8)
    place = Placement(np.float32([100, 100]), np.float32([scale, scale * 96 / 72]))
    seen = seen if visible is None else visible
    record = KeypointRecord("", place, joints, seen, 0.5, 7, 9, "row 3")
    return make_keypoint_sample(record, picture, COCO17, KeypointOptions(size=size), variation)


def test_samples_fit_together():
    visible = np.ones(17, dtype=np.float32)
    visible[2] = 0
    varied = sample(KeypointVariation(None, 1.2, 30.0, True), visible=visible)
    assert varied["image"].shape == (3, 96, 72)
    assert varied["weight"][1] == 0  # the left eye has become the right one
    joints, _ = person()
    affine = crop_affine(varied["center"].numpy(), varied["scale"].numpy(), SIZE, 30.0)
    nose = map_points(affine, [199 - joints[0, 0], joints[0, 1]]) / SIZE
    np.testing.assert_allclose(varied["target"][0], nose, atol=1e-5)
    assert float(varied["area"]) == pytest.approx((1.2 * 100) ** 2 * 96 / 72, rel=1e-5)
    keys = ("score", "image_id", "annotation_id")
    assert [float(varied[key]) for key in keys] == [0.5, 7, 9]
    # a joint without a label keeps its place in the image
    plain = sample(visible=visible)
    np.testing.assert_allclose(plain["target"][2], joints[2] / SIZE, rtol=1e-6)


def test_batches():
    batch = collate_keypoints([sample(), sample()])
    assert batch["image"].shape == (2, 3, 96, 72)
    assert batch["image_id"].dtype == torch.int64
    with pytest.raises(InputError, match="at least one sample"):
        collate_keypoints([])
    with pytest.raises(InputError, match="'image' has different shapes"):
        collate_keypoints([sample(), sample(size=(96, 96))])


def test_bad_options_and_boxes_are_refused():
    with pytest.raises(InputError, match="row 3: center, scale"):
        sample(scale=0.0)
    with pytest.raises(InputError, match="size, order"):
        KeypointOptions(order="RGB")
    with pytest.raises(InputError, match="size, order"):
        KeypointOptions(size=(0, 3))
