import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from kinemesh.errors import InputError
from kinemesh.formats.joints_csv import COLUMNS, encode_joints_csv
from kinemesh.skeletons import get_skeleton
from tests.fake_predictor import fake_people


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_a_row_for_each_joint() -> None:
    people = fake_people()
    rows = read(encode_joints_csv(people, frame=3, time_s=0.1))
    assert list(rows[0]) == list(COLUMNS)
    assert len(rows) == 42
    names = get_skeleton("hand21").joints
    for number, person in enumerate(people):
        own = [row for row in rows if row["person"] == str(number)]
        assert [row["joint"] for row in own] == list(names)
        assert {row["side"] for row in own} == {person.side}
        metres = [[float(row[axis]) for axis in ("x_m", "y_m", "z_m")] for row in own]
        pixels = [[float(row[axis]) for axis in ("x_px", "y_px")] for row in own]
        np.testing.assert_allclose(metres, person.joints, atol=0.6e-5)
        np.testing.assert_allclose(pixels, person.joints_px, atol=0.6e-2)
    assert {(row["frame"], row["time_s"]) for row in rows} == {("3", "0.1000")}


def test_frames_of_a_video_are_appended() -> None:
    people = fake_people("body")
    content = encode_joints_csv(people[:1], 0, 0.0, [7])
    content += encode_joints_csv(people, 1, 0.04, [7, 9], header=False)
    rows = read(content)
    assert [row["person"] for row in rows] == ["7"] * 34 + ["9"] * 17
    assert {row["side"] for row in rows} == {""}


def test_joints_without_depth_have_empty_places() -> None:
    flat = replace(fake_people()[0], joints=np.zeros((0, 3), np.float32))
    rows = read(encode_joints_csv([flat]))
    assert len(rows) == 21
    assert {row["z_m"] for row in rows} == {""}
    assert all(float(row["x_px"]) > 0 for row in rows)


def test_nobody_gives_the_names_of_the_columns() -> None:
    assert encode_joints_csv([]).decode() == ",".join(COLUMNS) + "\n"


def test_refusals() -> None:
    with pytest.raises(InputError, match="ids: expected one for each of 2"):
        encode_joints_csv(fake_people(), ids=[1])
    with pytest.raises(InputError, match="time_s"):
        encode_joints_csv([], time_s=float("nan"))
