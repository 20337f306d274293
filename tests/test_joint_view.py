"""Views of 3D joints."""

import numpy as np
import pytest

from kinemesh.errors import InputError
from kinemesh.rendering.joint_view import draw_comparison, draw_joints, draw_views, extent_m
from kinemesh.rendering.overlay import FINGER_COLORS
from kinemesh.skeletons import HAND21


def hand():
    """Fingers along x, y and z from the wrist: thumb right, index down, middle away."""
    joints = np.zeros((21, 3))
    for axis in range(3):
        joints[1 + 4 * axis : 5 + 4 * axis, axis] = np.arange(1, 5) * 0.02
    return joints


def where(picture, finger):
    """Middle of the pixels that have a finger's colour, x and y."""
    color = np.round(np.array(FINGER_COLORS[finger]) * 255)
    rows, columns = np.nonzero(np.abs(picture.astype(float) - color).max(-1) < 3)
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize(
    ("view", "thumb", "index", "middle"),
    [
        ("camera", (1, 0), (0, 1), None),
        ("right", None, (0, 1), (1, 0)),
        ("above", (1, 0), None, (0, -1)),
    ],
)
def test_axes_of_the_views(view, thumb, index, middle):
    picture = draw_joints(hand(), HAND21, view, 200)
    # the box of the joints is in the middle, and its longest side takes 84 %
    wrist = 100 + 0.84 * 100 * np.array([-1, 1 if view == "above" else -1])
    for finger, direction in (("thumb", thumb), ("index", index), ("middle", middle)):
        if direction is None:
            continue
        along, across = np.array(direction), np.array(direction)[::-1]
        found = where(picture, finger) - wrist
        assert 80 < found @ along < 125  # half of 168 px, and more where bones cover each other
        assert abs(found @ across) < 5


def test_a_larger_extent_draws_smaller():
    def width(extent):
        picture = draw_joints(hand(), HAND21, "camera", 200, extent)
        columns = np.nonzero((picture != picture[0, 0]).any(-1).any(0))[0]
        return columns[-1] - columns[0]

    assert width(0.16) == pytest.approx(width(0.08) / 2, abs=6)
    assert extent_m(hand()) == pytest.approx(0.08)


def test_joints_that_are_not_finite_are_left_out():
    joints = hand()
    joints[1:5] = np.nan
    picture = draw_joints(joints, HAND21)
    color = np.round(np.array(FINGER_COLORS["thumb"]) * 255)
    assert not (picture == color).all(-1).any()
    blank = draw_joints(np.full((21, 3), np.nan), HAND21)
    assert len(np.unique(blank.reshape(-1, 3), axis=0)) == 1


def test_views_say_where_from_and_how_large():
    """The hand's longest extent is 8 cm and 84 px: the bar of 2 cm is 21 px long."""
    plain = draw_joints(hand(), HAND21, "camera", 100)
    changed = np.argwhere((draw_views(hand(), HAND21, 100)[:, :100] != plain).any(axis=2))
    assert (changed[:, 0] < 20).any()  # the title
    bar = changed[changed[:, 0] == 92]
    assert np.ptp(bar[:, 1]) == pytest.approx(21, abs=2)


def test_rows_of_views():
    assert draw_views(hand(), HAND21, 100).shape == (100, 304, 3)
    pair = np.stack([hand(), -hand()])
    visible = np.ones((2, 21), dtype=bool)
    sheet = draw_comparison(pair, pair, visible, HAND21)
    assert sheet.shape == (4 * 160 + 3 * 2, 2 * 160 + 2, 3)
    assert np.array_equal(sheet[:160], sheet[162:322])  # labelled above, predicted below
    visible[:, 4] = False
    assert not np.array_equal(draw_comparison(pair, pair, visible, HAND21)[:160], sheet[:160])


def test_refusals():
    with pytest.raises(InputError, match="view: expected one of camera, right, above"):
        draw_joints(hand(), HAND21, "below")
    with pytest.raises(InputError, match=r"joints_m: expected \(21, 3\)"):
        draw_joints(hand()[:20], HAND21)
