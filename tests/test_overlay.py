"""Drawings on photos: size, colour, occlusion, edges, and what must stay untouched."""

import numpy as np
import pytest
import torch
import trimesh

from kinemesh.errors import InputError
from kinemesh.rendering import overlay
from kinemesh.rendering.overlay import (
    FINGER_COLORS,
    SIDE_COLORS,
    draw_mesh,
    draw_side_view,
    draw_skeleton,
)
from kinemesh.skeletons import COCO17, HAND21, Skeleton

SPHERE = trimesh.creation.icosphere(subdivisions=4)
FOCAL, PRINCIPAL = 100.0, (32.0, 30.0)
RED, BLUE = (0.9, 0.1, 0.1), (0.1, 0.1, 0.9)


def photo(height=60, width=64):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ball(x=0.0, y=0.0, z=5.0, radius=1.0):
    return SPHERE.vertices * radius + np.array([x, y, z])


def draw(image, *places, **options):
    faces = [SPHERE.faces] * len(places)
    return draw_mesh(image, list(places), faces, FOCAL, PRINCIPAL, **options)


def test_only_the_pixels_of_the_mesh_change():
    image = photo()
    before = image.copy()
    drawn = draw(image, ball())
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (image == before).all()
    y, x = np.mgrid[:60, :64] + 0.5
    distance = np.hypot(x - 32, y - 30)
    radius = FOCAL / np.sqrt(5**2 - 1)
    assert (drawn == image)[distance > radius + 1.5].all()
    assert (drawn != image).any(-1)[distance < radius - 1.5].all()


def test_alpha_mixes_mesh_and_photo():
    image = photo()
    assert (draw(image, ball(), alpha=0.0) == image).all()
    opaque = draw(image, ball(), alpha=1.0).astype(float)
    half = draw(image, ball(), alpha=0.5).astype(float)
    centre = (slice(20, 40), slice(22, 42))
    assert np.abs(half - (opaque + image) / 2)[centre].max() <= 1
    assert (opaque[centre] == draw(255 - image, ball(), alpha=1.0)[centre]).all()


@pytest.mark.parametrize("largest", [1 << 20, 0])
def test_edges_are_smooth_and_cover_the_right_area(monkeypatch, largest):
    monkeypatch.setattr(overlay, "_LARGEST_SUPERSAMPLED", largest)
    black = np.zeros((60, 64, 3), np.uint8)
    ones = np.full_like(black, 255)
    # The difference between drawing on white and on black is what shines through.
    clear = (draw(ones, ball(), alpha=1.0).astype(float) - draw(black, ball(), alpha=1.0)) / 255
    coverage = 1 - clear.mean(-1)
    assert ((coverage > 0.2) & (coverage < 0.8)).sum() > 30
    assert coverage.sum() == pytest.approx(np.pi * FOCAL**2 / 24, rel=0.02)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_person_hides_the_other(order):
    places = [ball(z=5), ball(x=0.3, z=3, radius=0.3)]
    colors = [RED, BLUE]
    drawn = draw(photo(), *(places[k] for k in order), colors=[colors[k] for k in order], alpha=1.0)
    near, far = drawn[30, 42].astype(int), drawn[30, 20].astype(int)
    assert near[2] > near[0] + 60
    assert far[0] > far[2] + 60


def test_bands_leave_no_seams(monkeypatch):
    image = photo()
    for largest in (1 << 20, 0):
        monkeypatch.setattr(overlay, "_LARGEST_SUPERSAMPLED", largest)
        monkeypatch.setattr(overlay, "_SAMPLES", 1 << 20)
        whole = draw(image, ball(), ball(x=0.5, z=4))
        monkeypatch.setattr(overlay, "_SAMPLES", 1)
        bands = draw(image, ball(), ball(x=0.5, z=4))
        # Shifting the principal point of a band rounds differently in the last bit.
        assert np.abs(whole.astype(int) - bands).max() <= 1


def test_large_pictures_look_like_small_ones(monkeypatch):
    small = draw(photo(), ball()).astype(float)
    monkeypatch.setattr(overlay, "_LARGEST_SUPERSAMPLED", 0)
    assert np.abs(draw(photo(), ball()) - small).mean() < 1.5


@pytest.mark.parametrize(
    "place",
    [ball(z=-5), ball(x=40), ball(x=1.2, y=1.2), ball(z=0.5), ball() * np.nan, ball(z=1e6)],
)
def test_people_off_the_picture_are_no_trouble(place):
    assert draw(photo(), place, ball(x=0.5)).shape == (60, 64, 3)


def test_no_people_no_change():
    image = photo()
    assert (draw_mesh(image, [], [], FOCAL, PRINCIPAL) == image).all()
    assert len(np.unique(draw_side_view([], [], FOCAL, 20, 30).reshape(-1, 3), axis=0)) == 1


def test_tensors_and_arrays_draw_the_same():
    drawn = draw_mesh(
        photo(),
        [torch.tensor(ball()).float()],
        [torch.tensor(SPHERE.faces)],
        FOCAL,
        torch.tensor(PRINCIPAL),
    )
    assert (drawn == draw(photo(), ball())).all()


def test_a_triangle_larger_than_the_picture_fills_it():
    corners = np.array([[-9, -9, 2.0], [-9, 20, 2], [20, -9, 2]])
    image = np.zeros((300, 400, 3), np.uint8)
    drawn = draw_mesh(image, [corners], [np.array([[0, 1, 2]])], 500.0, (200, 150), alpha=1.0)
    assert (drawn > 0).any(-1).all()


def test_the_side_view_turns_by_a_quarter():
    # A nose on the viewer's side: seen from the right of the picture it points to the left.
    nose = ball(z=4.4, radius=0.1)
    view = draw_side_view([ball(radius=0.5), nose], [SPHERE.faces] * 2, 60.0, 60, 64, [RED, BLUE])
    assert view.shape == (60, 64, 3)
    redder = view[..., 0].astype(int) - view[..., 2]
    blue, red = ((sign * redder > 60).nonzero()[1].mean() for sign in (-1, 1))
    assert blue < red - 3


@pytest.mark.parametrize("spread", [0.5, 8.0])
def test_the_side_view_fits_and_is_centred(spread):
    people = [ball(x=-spread), ball(x=spread, z=6)]
    view = draw_side_view(people, [SPHERE.faces] * 2, 300.0, 90, 120)
    changed = np.argwhere((view != view[0, 0]).any(-1))
    low, high = changed.min(0), changed.max(0)
    assert (low > 0).all()
    assert (high < np.array([89, 119])).all()
    assert np.abs((low + high + 1) / 2 - np.array([45, 60])).max() < 2


def test_bad_images_and_lists_are_refused():
    with pytest.raises(InputError, match="image"):
        draw(photo().astype(float), ball())
    with pytest.raises(InputError, match="image"):
        draw(photo()[..., 0], ball())
    with pytest.raises(InputError, match="vertices, faces, colors"):
        draw_mesh(photo(), [ball()], [], FOCAL, PRINCIPAL)


TRIO = Skeleton("trio", ("pelvis", "left_knee", "right_knee"), (-1, 0, 0))


def to_byte(color):
    return [round(255 * c) for c in color]


def test_bones_have_the_color_of_their_side():
    joints = np.array([[50, 20], [80, 80], [20, 80.0]]) + 0.5
    image = np.full((100, 100, 3), 40, np.uint8)
    drawn = draw_skeleton(image, joints, TRIO, thickness=3)
    assert (image == 40).all()
    assert drawn[50, 65].tolist() == to_byte(SIDE_COLORS["left"])
    assert drawn[50, 35].tolist() == to_byte(SIDE_COLORS["right"])
    assert drawn[20, 50].tolist() == to_byte(SIDE_COLORS[""])
    assert drawn[5, 5].tolist() == [40, 40, 40]


def test_bones_between_the_sides_are_neutral():
    joints = np.full((17, 2), np.nan)
    joints[COCO17.index("left_hip")] = (80.5, 50.5)
    joints[COCO17.index("right_hip")] = (20.5, 50.5)
    drawn = draw_skeleton(np.zeros((100, 100, 3), np.uint8), joints, COCO17, thickness=3)
    assert drawn[50, 50].tolist() == to_byte(SIDE_COLORS[""])


def test_each_finger_has_its_color():
    angle = np.linspace(0, np.pi, 5)
    joints = np.zeros((21, 2)) + 100.5
    for finger in range(5):
        for knuckle in range(4):
            reach = 25 + 20 * knuckle
            joints[1 + 4 * finger + knuckle] += np.round(
                reach * np.array([np.cos(angle[finger]), -np.sin(angle[finger])])
            )
    drawn = draw_skeleton(np.zeros((200, 200, 3), np.uint8), joints, HAND21, thickness=5)
    for finger, color in FINGER_COLORS.items():
        x, y = joints[HAND21.index(f"{finger}_4")].astype(int)
        assert drawn[y, x].tolist() == to_byte(color)


def test_doubtful_and_missing_joints_are_left_out():
    joints = np.array([[50, 20], [80, 80], [20, 80.0]])
    image = np.zeros((100, 100, 3), np.uint8)
    drawn = draw_skeleton(image, joints, TRIO, confidence=np.array([1.0, 0.1, 1.0]))
    assert (drawn[60:, 55:] == 0).all()
    assert (drawn[60:, :45] > 0).any()
    joints[1] = (np.nan, 3)
    assert (draw_skeleton(image, joints, TRIO) == drawn).all()
    joints[1] = (1e12, -1e12)
    assert (draw_skeleton(image, joints, TRIO) == drawn).all()


def test_lines_grow_with_the_picture():
    joints = np.array([[50, 20], [80, 80], [20, 80.0]])

    def filled(scale):
        image = np.zeros((200 * scale, 200 * scale, 3), np.uint8)
        return (draw_skeleton(image, joints * scale, TRIO) > 0).any(-1).mean()

    assert filled(8) == pytest.approx(filled(4), rel=0.3)


def test_a_wrong_number_of_joints_is_refused():
    with pytest.raises(InputError, match=r"expected \(17, 2\)"):
        draw_skeleton(photo(), np.zeros((3, 2)), COCO17)
