"""Subjects rendered once and shown in many ways: the pictures vary, the labels stay exact."""

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
import torch

from kinemesh.data.synthetic import layers as layer_module
from kinemesh.data.synthetic import restaging
from kinemesh.data.synthetic.layers import SIDE, LayerBank, render_layers
from kinemesh.data.synthetic.restaging import RestagedDataset, Restaging
from kinemesh.data.synthetic.scene import load_stage
from kinemesh.errors import InputError

SIZE = 48
PLAIN = Restaging(turned=0.0, cut=0.0, others=0.0, border=0.0)
COUNT = 2


@pytest.fixture(scope="module", params=["hand", "body"])
def bank(request, tmp_path_factory) -> LayerBank:
    bank = LayerBank(request.param, tmp_path_factory.mktemp("layers"), seed=3)
    bank.get(range(COUNT))
    return bank


@pytest.fixture(scope="module")
def hands(tmp_path_factory) -> LayerBank:
    bank = LayerBank("hand", tmp_path_factory.mktemp("hands"), seed=4)
    bank.get(range(COUNT))
    return bank


def pictures(bank, shares=PLAIN, step=0, indices=(0, 1)):
    dataset = RestagedDataset(bank, COUNT, SIZE, shares)
    dataset.set_step(step)
    return dataset.__getitems__(list(indices))


def distances(points):
    """Between some of the points."""
    some = points[::7, :3].double().numpy()
    return np.linalg.norm(some[:, None] - some, axis=-1)


def projected(layer):
    placed = layer.joints + layer.root
    return placed[:, :2] / placed[:, 2:] * layer.focal_px + SIDE / 2


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_a_picture_follows_from_index_and_step(bank):
    every = Restaging(turned=0.5, cut=0.5, others=0.5, border=0.5)
    once = pictures(bank, every, step=7)
    alone = pictures(bank, every, step=7, indices=(1,))
    assert same(once[1], alone[0])
    assert not torch.equal(once[0]["image"], once[1]["image"])


def test_another_step_shows_the_same_subject_in_another_way(bank):
    first, second = (pictures(bank, step=step, indices=(0,))[0] for step in (0, 1))
    assert not torch.equal(first["image"], second["image"])
    assert not torch.equal(first["joints_2d"], second["joints_2d"])
    for name in ("joints_3d", "vertices"):
        np.testing.assert_allclose(distances(first[name]), distances(second[name]), atol=1e-5)
    a, b = (sample["joints_3d"][:, :3].double().numpy() for sample in (first, second))
    left, _, right = np.linalg.svd(a.T @ b)
    assert np.linalg.det(left @ right) > 0  # turned, not mirrored
    np.testing.assert_allclose(a @ left @ right, b, atol=1e-5)


def test_labels_of_a_layer_that_is_shown_as_it_is(bank):
    layer = bank.get([0])[0]
    matrix = restaging._similarity(0.0, SIZE / SIDE, np.zeros(2), SIZE)
    sample = restaging._label(layer, matrix, np.zeros((SIZE, SIZE, 3), np.float32), None)
    np.testing.assert_allclose(
        sample["joints_2d"][:, :2].numpy(), projected(layer) * SIZE / SIDE, atol=1e-3
    )
    np.testing.assert_allclose(sample["joints_3d"][:, :3].numpy(), layer.joints, atol=1e-6)
    np.testing.assert_allclose(sample["vertices"].numpy(), layer.vertices, atol=1e-6)


@pytest.mark.parametrize("angle", [90.0, -37.0])
def test_labels_turn_with_the_picture(hands, angle):
    layer = hands.get([0])[0]
    matrix = restaging._similarity(angle, SIZE / SIDE, np.zeros(2), SIZE)
    sample = restaging._label(layer, matrix, np.zeros((SIZE, SIZE, 3), np.float32), None)
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cos, -sin], [sin, cos]])
    expected = (projected(layer) - SIDE / 2) @ turn.T * SIZE / SIDE + SIZE / 2
    np.testing.assert_allclose(sample["joints_2d"][:, :2].numpy(), expected, atol=1e-3)
    about = np.eye(3)
    about[:2, :2] = turn
    np.testing.assert_allclose(
        sample["joints_3d"][:, :3].numpy(), layer.joints @ about.T, atol=1e-5
    )


def test_axes_are_those_of_a_camera_that_looks_at_the_crop(hands):
    """A point on the ray through the middle of the crop lies straight ahead."""
    layer = hands.get([0])[0]
    matrix = restaging._similarity(25.0, SIZE / SIDE / 0.7, np.array([9.0, -6.0]), SIZE)
    middle = np.linalg.solve(matrix[:, :2], np.full(2, SIZE / 2) - matrix[:, 2]) - SIDE / 2
    axes = restaging._axes(matrix, layer.focal_px, SIZE)
    ahead = axes @ np.array([*middle, layer.focal_px])
    assert np.abs(ahead[:2]).max() < 1e-3 * ahead[2]
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-6)
    # two pixels apart in the crop, as far apart before the new camera
    scale = np.hypot(*matrix[:, 0])
    points = layer.joints + layer.root
    places = (projected(layer) @ matrix[:, :2].T + matrix[:, 2] - SIZE / 2) / scale
    turned = points @ axes.T
    # a look aside bends straight lines a little, so the check is a weak one
    found = turned[:, :2] / turned[:, 2:] * layer.focal_px
    assert np.abs(found - places).max() < 0.06 * SIDE


def test_the_subject_is_drawn_where_its_labels_are(hands):
    layer = hands.get([0])[0]
    for angle, shift in ((0.0, (0.0, 0.0)), (70.0, (5.0, -4.0))):
        matrix = restaging._similarity(angle, SIZE / SIDE, np.array(shift), SIZE)
        shown = restaging._warp(layer.rgba, matrix, SIZE)[..., 3] > 0.5
        near = np.isfinite(restaging._warp_depth(layer.depth_m, matrix, SIZE))
        assert (shown == near).mean() > 0.97
        sample = restaging._label(layer, matrix, np.zeros((SIZE, SIZE, 3), np.float32), None)
        inside = sample["joints_2d"][sample["joints_2d"][:, 2] > 0].numpy()
        rows, columns = inside[:, :2].clip(0, SIZE - 1).astype(int).T[::-1]
        grown = cv2.dilate(shown.astype(np.uint8), np.ones((3, 3)))
        assert grown[rows, columns].mean() > 0.9


def test_a_layer_that_was_stored_is_the_one_that_was_rendered(bank):
    stage = load_stage(bank.kind)
    scene = stage.sample(bank.generator(0), SIDE)
    fresh, stored = render_layers(stage, [scene])[0], bank.get([0])[0]
    np.testing.assert_array_equal(stored.joints, fresh.joints)
    np.testing.assert_array_equal(stored.cut, fresh.cut)
    np.testing.assert_allclose(stored.root, fresh.root, atol=1e-6)
    assert stored.focal_px == fresh.focal_px
    assert np.abs(stored.vertices - fresh.vertices).max() <= 5e-4
    assert np.abs(stored.rgba[..., 3] - fresh.rgba[..., 3]).max() <= 0.51 / 255
    covered = fresh.rgba[..., 3] > 0
    assert np.abs(stored.depth_m[covered] - fresh.depth_m[covered]).max() <= 1e-4
    assert np.isinf(stored.depth_m[~covered]).all()
    white = stored.rgba[..., :3].max()
    levels = [(layer.rgba[..., :3] / white).clip(0, 1) ** (1 / 2.2) for layer in (stored, fresh)]
    assert np.abs(levels[0] - levels[1]).max() <= 0.51 / 255 + 1e-6


def test_the_first_pass_sees_what_later_ones_see(tmp_path):
    bank = LayerBank("hand", tmp_path, seed=5)
    first, later = bank.get([2])[0], bank.get([2])[0]
    for item in fields(first):
        np.testing.assert_array_equal(getattr(first, item.name), getattr(later, item.name))


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"no layer"],
    ids=["empty", "cut off", "something else"],
)
def test_a_damaged_file_is_rendered_again(hands, damage):
    before, path = hands.get([1])[0], hands._path(1)
    path.write_bytes(damage(path.read_bytes()))
    after = hands.get([1])[0]
    np.testing.assert_array_equal(after.rgba, before.rgba)
    assert layer_module._read(path) is not None


def test_only_what_is_missing_is_rendered(hands, monkeypatch):
    monkeypatch.setattr(LayerBank, "_render", lambda *_: pytest.fail("rendered again"))
    assert len(hands.get([1, 0, 1])) == 3


def test_no_end_of_a_layer_is_shown(hands):
    """Whatever is drawn, the sides that cut the subject stay outside of the crop."""
    rng = np.random.default_rng(0)
    every = Restaging(turned=1.0, cut=1.0)
    for cut in ((1, 0, 0, 0), (0, 1, 1, 0), (0, 0, 0, 1)):
        layer = replace(hands.get([0])[0], cut=np.array(cut, dtype=bool))
        corners = np.array([[0, SIDE], [0, 0], [SIDE, 0], [SIDE, SIDE], [0, SIDE]], dtype=float)
        for _ in range(40):
            matrix = restaging._place(rng, layer, every, SIZE)
            places = corners @ matrix[:, :2].T + matrix[:, 2]
            for side in np.flatnonzero(cut):
                along = np.linspace(places[side], places[side + 1], 200)
                inner = (along > restaging._PIXEL) & (along < SIZE - restaging._PIXEL)
                assert not inner.all(axis=1).any()


def test_a_turned_or_cut_subject_looks_so(hands):
    rng, whole = np.random.default_rng(0), replace(hands.get([0])[0], cut=np.zeros(4, dtype=bool))

    def spread(shares):
        places = [restaging._place(rng, whole, shares, SIZE) for _ in range(60)]
        angles = np.abs([np.degrees(np.arctan2(m[1, 0], m[0, 0])) for m in places])
        scales = np.array([np.hypot(*m[:, 0]) for m in places]) * SIDE / SIZE
        return angles.max(), scales.max()

    angle, scale = spread(PLAIN)
    assert angle < 45
    assert 1 < scale < 1.06
    assert spread(replace(PLAIN, turned=1.0))[0] > 120
    assert spread(replace(PLAIN, cut=1.0))[1] > 1.3


def test_shares_of_zero_switch_everything_off(hands, monkeypatch):
    seen = {}

    def composed(rng, rgba, depth, kind, *, behind, before, border):
        seen.update(others=len(behind) + len(before), border=border is not None)
        return np.zeros((SIZE, SIZE, 3), np.float32)

    monkeypatch.setattr(restaging, "compose", composed)
    for share in ("others", "border"):
        for value in (0.0, 1.0):
            pictures(hands, replace(PLAIN, **{share: value}), indices=(0,))
            assert seen == {"others": 0, "border": False} | {share: int(value)}


def test_beyond_the_border_pixels_repeat_and_joints_do_not_count(hands):
    only_border = replace(PLAIN, border=1.0)
    for step in range(30):
        sample = pictures(hands, only_border, step, (0,))[0]
        image, plain = sample["image"], pictures(hands, PLAIN, step, (0,))[0]
        below = SIZE - 1
        while below > 0 and torch.equal(image[:, below], image[:, below - 1]):
            below -= 1
        if below < SIZE - 4:
            break
    else:
        pytest.fail("no photo ended below")
    torch.testing.assert_close(sample["joints_2d"][:, :2], plain["joints_2d"][:, :2])
    counted = sample["joints_2d"][:, 2] > 0
    beyond = sample["joints_2d"][:, 1] > below + 1
    assert not counted[beyond].any()
    assert torch.equal(sample["joints_3d"], plain["joints_3d"])


def test_others_change_the_picture_and_no_label(hands):
    alone, beside = (pictures(hands, replace(PLAIN, others=share), step=2) for share in (0.0, 1.0))
    labels = [name for name in alone[0] if name != "image"]
    for first, second in zip(alone, beside, strict=True):
        assert all(torch.equal(first[name], second[name]) for name in labels)
    assert any(
        not torch.equal(first["image"], second["image"])
        for first, second in zip(alone, beside, strict=True)
    )


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"restaging\.cut"):
        Restaging(cut=1.2)
    with pytest.raises(InputError, match="split, seed"):
        LayerBank("hand", tmp_path, seed=-1)
    with pytest.raises(InputError, match="layers"):
        RestagedDataset(LayerBank("hand", tmp_path, 0), 0, SIZE, PLAIN)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="--layer-folder"):
        LayerBank("hand", tmp_path / "file", seed=0).get([0])
