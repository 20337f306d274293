"""Labelled images, their variation and their mixtures."""

import math
import tarfile

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from PIL import Image

from kinemesh.data.classification_augmentation import (
    ClassificationAugmentation,
    erase,
    jitter_color,
    plain_view,
    random_part,
    to_input,
    varied_view,
)
from kinemesh.data.image_folders import (
    ClassFolders,
    ClassShards,
    LabelledImages,
    Part,
    collate_classes,
    open_images,
)
from kinemesh.data.mixing import NO_MIXING, Mixing, mix, random_box, smoothed_targets
from kinemesh.data.rand_augment import OPERATIONS, RandAugment
from kinemesh.errors import InputError
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from tests.labelled_images import CLASSES, SIDE, write_folders, write_tar


def noise(width, height, seed=0):
    """A smooth picture of many colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def pixels_of(image_3HW):
    plain = image_3HW.permute(1, 2, 0).numpy() * IMAGENET_STD + IMAGENET_MEAN
    return plain * 255


# Views -----------------------------------------------------------------------------------------


def test_the_plain_view_is_the_middle_of_248():
    image = noise(248, 248)
    view = plain_view(image, 224)
    np.testing.assert_allclose(pixels_of(view), np.asarray(image)[12:236, 12:236], atol=1e-3)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (90, 61), (2000, 1999)])
def test_the_plain_view_keeps_aspect_and_middle(size):
    """On a ramp, a pixel tells where it comes from."""
    width, height = size
    ramp = np.linspace(0, 255, width)[None].repeat(height, axis=0)
    image = Image.fromarray(np.stack([ramp] * 3, axis=-1).astype(np.uint8))
    seen = pixels_of(plain_view(image, 224))[..., 0]
    assert seen.shape == (224, 224)
    assert seen.mean() == pytest.approx(127.5, abs=1.5)
    part = 224 / 248 * min(size) / width  # of the picture's width
    assert seen.max() - seen.min() == pytest.approx(255 * part, abs=4)


def test_random_parts_have_uniform_areas_and_log_aspects():
    rng = RandomState(0)
    boxes = np.array([random_part((400, 300), (0.1, 0.5), (0.5, 2.0), rng) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 400
    assert boxes[:, 3].max() <= 300
    area = width * height / (400 * 300)
    assert 0.095 < area.min() < 0.12
    assert 0.48 < area.max() < 0.51
    aspect = np.log(width / height)
    assert abs(aspect).max() < math.log(2.1)
    # small areas always fit, so that their aspects are as drawn
    small = aspect[area < 0.3]
    assert small.mean() == pytest.approx(0, abs=0.05)
    assert small.std() == pytest.approx(2 * math.log(2) / math.sqrt(12), rel=0.05)
    assert area[abs(aspect) < 0.1].mean() == pytest.approx(0.3, abs=0.03)


def test_where_no_part_fits_it_is_the_largest_in_the_middle():
    box = random_part((1000, 10), (0.9, 1.0), (3 / 4, 4 / 3), RandomState(0))
    assert box == (493, 0, 506, 10)


def test_varied_views_depend_on_their_generator_alone():
    augmentation = ClassificationAugmentation()
    image = noise(90, 60)
    first, again, other = (
        varied_view(image, 32, augmentation, RandomState(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (3, 32, 32)


def test_color_jitter_takes_the_place_of_rand_augment():
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "mirror": 0.0, "erase": 0.0}
    image = noise(40, 40).resize((32, 32))  # of the view's size: interpolation changes nothing
    plain = to_input(image)
    never = RandAugment(probability=0.0)
    only_policy = ClassificationAugmentation(policy=never, color_jitter=0.4, **still)
    assert torch.equal(varied_view(image, 32, only_policy, RandomState(0)), plain)
    jitter = ClassificationAugmentation(rand_augment=False, color_jitter=0.4, **still)
    assert not torch.equal(varied_view(image, 32, jitter, RandomState(0)), plain)
    none = ClassificationAugmentation(rand_augment=False, color_jitter=0.0, **still)
    assert torch.equal(varied_view(image, 32, none, RandomState(0)), plain)


def test_views_are_interpolated_in_both_ways():
    still = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "mirror": 0.0, "erase": 0.0}
    only = ClassificationAugmentation(rand_augment=False, color_jitter=0.0, **still)
    image, kinds = noise(40, 40), ("BILINEAR", "BICUBIC")
    expected = [to_input(image.resize((32, 32), Image.Resampling[kind])) for kind in kinds]
    drawn = [varied_view(image, 32, only, RandomState(seed)) for seed in range(40)]
    counts = [sum(torch.equal(view, one) for view in drawn) for one in expected]
    assert sum(counts) == 40
    assert min(counts) > 8


def test_color_jitter_of_grey_changes_brightness_alone():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    levels = [np.unique(jitter_color(grey, 0.4, RandomState(k)))[0] for k in range(200)]
    assert min(levels) >= 59
    assert max(levels) <= 140
    assert np.std(levels) == pytest.approx(80 / math.sqrt(12), rel=0.15)


def test_erasing_fills_one_rectangle_with_noise():
    areas = []
    for seed in range(200):
        image = torch.full((3, 64, 64), 9.0)
        erase(image, RandomState(seed))
        changed = (image != 9).all(dim=0)
        rows, columns = (changed.any(dim=axis).sum().item() for axis in (1, 0))
        assert changed.sum().item() == rows * columns  # a full rectangle
        areas.append(rows * columns / 64**2)
        values = image[:, changed]
        assert abs(values.mean().item()) < 6 / math.sqrt(values.numel())
    assert min(areas) > 0.015
    assert max(areas) < 0.35
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.02)


# RandAugment -----------------------------------------------------------------------------------

NO_MAGNITUDE = {"auto contrast", "equalize", "invert"}
STILL_AT_ZERO = set(OPERATIONS) - NO_MAGNITUDE - {"posterize"}
MOVING = {"rotate", "shear x", "shear y", "translate x", "translate y"}


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_keep_size_and_grow_with_their_magnitude(name):
    rough = np.random.default_rng(3).integers(0, 200, (40, 60, 3)).astype(np.uint8)
    image = noise(60, 40, seed=3) if name in MOVING else Image.fromarray(rough)
    before = np.asarray(image).astype(float)
    changes = []
    for part in (0.0, 0.3, 0.6, 0.9):
        both = [OPERATIONS[name](image, part, RandomState(seed)) for seed in range(8)]
        assert {each.size for each in both} == {image.size}
        changes.append(np.mean([np.abs(np.asarray(each) - before).mean() for each in both]))
    if name in STILL_AT_ZERO:
        assert changes[0] < 0.5
    if name in NO_MAGNITUDE:
        assert len(set(changes)) == 1
    elif name in MOVING:  # once everything has moved away, further on is no larger change
        assert changes[0] < changes[1] < 1.2 * changes[2]
    else:
        assert changes == sorted(changes)
        assert len(set(changes)) == 4
    assert changes[-1] > 1


def test_shifts_and_turns_go_both_ways_by_the_stated_amount():
    image = Image.new("RGB", (100, 100), (255, 255, 255))
    sides = set()
    for seed in range(20):
        moved = np.asarray(OPERATIONS["translate x"](image, 0.9, RandomState(seed)))[50]
        uncovered = (moved != 255).any(axis=-1)
        assert uncovered.sum() == pytest.approx(0.45 * 0.9 * 100, abs=1.5)
        sides.add(bool(uncovered[0]))
    assert sides == {True, False}
    line = np.zeros((101, 101, 3), dtype=np.uint8)
    line[49:52] = 255
    turned = np.asarray(OPERATIONS["rotate"](Image.fromarray(line), 0.9, RandomState(0)))
    y, x = np.nonzero(turned.min(axis=-1) > 200)
    slope = np.polyfit(x, y, 1)[0]
    assert abs(math.degrees(math.atan(slope))) == pytest.approx(27, abs=0.5)


def test_levels_of_solarisation_and_posterisation():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0).T[None])
    rng = RandomState(0)
    solarized = np.asarray(OPERATIONS["solarize"](ramp, 0.9, rng))[0, :, 0]
    assert solarized[:26].tolist() == list(range(26))
    assert solarized[26:].tolist() == [255 - value for value in range(26, 256)]
    added = np.asarray(OPERATIONS["solarize add"](ramp, 0.9, rng))[0, :, 0]
    assert added[:128].tolist() == [value + 99 for value in range(128)]
    assert added[128:].tolist() == list(range(128, 256))
    assert len(np.unique(np.asarray(OPERATIONS["posterize"](ramp, 0.6, rng)))) == 2**2
    assert len(np.unique(np.asarray(OPERATIONS["posterize"](ramp, 1.0, rng)))) == 2


def test_two_operations_are_drawn_and_each_is_tossed_for(monkeypatch):
    calls = []
    for name in OPERATIONS:
        monkeypatch.setitem(
            OPERATIONS, name, lambda image, part, rng, n=name: calls.append((n, part)) or image
        )
    image, rng = noise(8, 8), RandomState(0)
    for _ in range(3000):
        RandAugment()(image, rng)
    assert len(calls) == pytest.approx(3000, rel=0.06)
    names, counts = np.unique([name for name, _ in calls], return_counts=True)
    assert len(names) == len(OPERATIONS)
    assert counts.min() > 140  # 200 on average
    parts = np.array([part for _, part in calls])
    assert parts.max() <= 1
    assert parts.mean() == pytest.approx(0.9, abs=0.005)
    assert parts.std() == pytest.approx(0.05, rel=0.1)


# Mixing ----------------------------------------------------------------------------------------


def batch_of_colors(count=6, side=20):
    """Image b is b everywhere."""
    return torch.arange(float(count))[:, None, None, None].expand(count, 3, side, side)


def test_smoothed_targets():
    found = smoothed_targets(torch.tensor([2, 0]), 4, 0.1)
    expected = torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]])
    torch.testing.assert_close(found, expected)


def test_without_mixing_everything_stays():
    images, labels = batch_of_colors(), torch.arange(6)
    for mixing in (NO_MIXING, Mixing(probability=0.0, smoothing=0.0)):
        found, target = mix(images, labels, 6, mixing, RandomState(0))
        assert torch.equal(found, images)
        assert torch.equal(target, torch.eye(6))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_and_targets_hold_the_same_share(kind):
    images, labels = batch_of_colors(), torch.arange(6)
    mixing = Mixing(**{"mixup": 0.0, "cutmix": 0.0, kind: 1.0}, smoothing=0.0)
    shares = []
    for seed in range(300):
        found, target = mix(images, labels, 6, mixing, RandomState(seed))
        share = target[0, 0].item()
        shares.append(share)
        assert target.sum(dim=1).tolist() == pytest.approx([1.0] * 6)
        for row in range(6):
            assert target[row, 5 - row].item() == pytest.approx(1 - share, abs=1e-6)
            # the mean of the image is the share of its own color
            expected = share * row + (1 - share) * (5 - row)
            assert found[row].mean().item() == pytest.approx(expected, abs=1e-4)
        if kind == "cutmix":
            assert set(found[0].unique().tolist()) <= {0.0, 5.0}
    assert torch.equal(images, batch_of_colors())
    if kind == "mixup":
        assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
        assert np.std(shares) == pytest.approx(1 / math.sqrt(12), abs=0.03)  # beta(1, 1)


def test_the_switch_takes_each_half_of_the_time():
    images, labels = batch_of_colors(2), torch.arange(2)
    cut = 0
    for seed in range(400):
        found, _ = mix(images, labels, 2, Mixing(), RandomState(seed))
        cut += set(found.unique().tolist()) <= {0.0, 1.0}
    assert cut == pytest.approx(200, abs=40)


def test_boxes_stay_inside_and_have_their_area():
    rng = RandomState(0)
    for _ in range(200):
        top, bottom, left, right = random_box((30, 40), 0.25, rng)
        assert 0 <= top < bottom <= 30
        assert 0 <= left < right <= 40
        assert (bottom - top) * (right - left) <= 0.25 * 30 * 40


# Stored images ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folders(tmp_path_factory.mktemp("images") / "data", count=5)


def test_classes_are_numbered_by_their_sorted_names(folder):
    source = open_images(f"imagenet:{folder}", "train")
    assert source.classes == CLASSES
    assert source.labels == [number for number in range(4) for _ in range(5)]
    assert source.key(5) == "down/0.png"
    sample = LabelledImages(source, SIDE)[5]
    assert sample["image"].shape == (3, SIDE, SIDE)
    assert (sample["label"].item(), sample["row"].item()) == (1, 5)


def test_train_and_val_are_taken_where_they_are(tmp_path):
    write_folders(tmp_path / "train", count=3)
    write_folders(tmp_path / "val", count=1)
    counts = [len(open_images(str(tmp_path), split).labels) for split in ("train", "val")]
    assert counts == [12, 4]
    with pytest.raises(InputError, match="Leave --hold-out-every out"):
        open_images(str(tmp_path), "val", Part(3, held_out=True))


def test_held_out_images_and_the_rest_are_everything(folder):
    parts = [open_images(str(folder), "val", Part(3, held_out=side)) for side in (True, False)]
    keys = [{part.key(row) for row in range(len(part.labels))} for part in parts]
    assert keys[0] == {f"{name}/2.png" for name in CLASSES}
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 20
    assert parts[0].read(0) == (folder / "across" / "2.png").read_bytes()
    with pytest.raises(InputError, match="no class has 6 images"):
        open_images(str(folder), "val", Part(6, held_out=True))


def test_shards_hold_what_folders_hold(folder, tmp_path):
    source = ClassFolders(folder)
    rows = [
        (label, path.relative_to(folder))
        for label, path in zip(source.labels, source.files, strict=True)
    ]
    write_tar(tmp_path / "train" / "a-000000.tar", folder, rows[:7])
    write_tar(tmp_path / "train" / "a-000001.tar", folder, rows[7:])
    shards = open_images(f"imagenet:{tmp_path}", "train")
    assert isinstance(shards, ClassShards)
    assert shards.classes is None
    assert shards.labels == source.labels
    assert [shards.read(row) for row in range(20)] == [source.read(row) for row in range(20)]
    augmentation = ClassificationAugmentation()
    both = [LabelledImages(each, SIDE, augmentation, seed=3) for each in (source, shards)]
    for images in both:
        images.set_step(4)
    for row in (0, 9, 19):
        assert torch.equal(both[0][row]["image"], both[1][row]["image"])


def test_a_step_has_its_own_variation(folder):
    images = LabelledImages(open_images(str(folder), "train"), SIDE, ClassificationAugmentation())
    seen = []
    for step in (1, 2, 1):
        images.set_step(step)
        seen.append(images[3]["image"])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    batch = collate_classes([images[row] for row in (3, 4)])
    assert batch["image"].shape == (2, 3, SIDE, SIDE)


def test_what_is_damaged_is_named(folder, tmp_path):
    with pytest.raises(InputError, match="expected a folder"):
        open_images(f"imagenet:{tmp_path / 'absent'}", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder for each class"):
        open_images(str(tmp_path / "empty"), "train")
    broken = write_folders(tmp_path / "broken", count=1)
    (broken / "down" / "0.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"down/0\.png"):
        LabelledImages(open_images(str(broken), "train"), SIDE)[1]
    (broken / "down" / "0.png").unlink()
    (broken / "rising" / "0.png").rename(broken / "down" / "0.png")
    images = LabelledImages(open_images(str(broken), "train"), SIDE)
    (broken / "down" / "0.png").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        images[1]


def test_damaged_shards_are_named(folder, tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, folder, [("seven", "down/0.png")])
    with pytest.raises(InputError, match=r"a\.tar.*expected the number of a class"):
        open_images(str(tmp_path), "train")
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "down" / "0.png", "x.png")
    with pytest.raises(InputError, match=r"image './x' has no \.cls"):
        open_images(str(tmp_path), "train")
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "down" / "0.png", "x.png")
    with pytest.raises(InputError, match="uncompressed tar"):
        open_images(str(tmp_path), "train")
    write_tar(path, folder, [(1, "down/0.png")])
    source = open_images(str(tmp_path), "train")
    path.write_bytes(path.read_bytes()[:1100])
    with pytest.raises(InputError, match="cut short"):
        source.read(0)
