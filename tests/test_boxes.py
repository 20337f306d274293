import json
from pathlib import Path

import numpy as np
import pytest

from kinemesh.errors import InputError
from kinemesh.inference.boxes import (
    Box,
    BoxTable,
    as_boxes,
    check_inside,
    is_boxes_file,
    load_boxes,
    parse_boxes,
    read_boxes,
)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_text() -> None:
    assert parse_boxes("1,2,3,4; -5.5,6,7e1,8;") == [Box(1, 2, 3, 4), Box(-5.5, 6, 70, 8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1,2,3", "four numbers"),
        ("1,2,3,x", r"Box 1 .*found '1,2,3,x'"),
        ("1,2,3,4;nan,2,3,4", r"Box 2 .*finite"),
        ("1,2,inf,4", "finite"),
        ("1,2,-3,4", "above 0"),
        ("1,2,3,0", "above 0"),
        ("boxes.jsn", r"must end in \.json"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_boxes(text)


def test_json_list_is_for_every_image(tmp_path: Path) -> None:
    entries = [[1, 2, 3, 4], {"bbox": [5, 6, 7, 8], "score": 0.5, "side": "left"}]
    table = read_boxes(str(write(tmp_path / "b.json", entries)))
    assert table.for_image("x.jpg") == (Box(1, 2, 3, 4), Box(5, 6, 7, 8, 0.5, "left"))


def test_json_by_name(tmp_path: Path) -> None:
    content = {"a.jpg": [[1, 2, 3, 4]], "in/a.jpg": [[9, 9, 9, 9]], "none.jpg": []}
    table = load_boxes(write(tmp_path / "b.json", content))
    assert table.for_image(Path("elsewhere/a.jpg")) == (Box(1, 2, 3, 4),)
    assert table.for_image(Path("in/a.jpg")) == (Box(9, 9, 9, 9),)
    assert table.for_image("none.jpg") == ()
    with pytest.raises(InputError, match=r"no entry for the image 'z\.jpg'"):
        table.for_image("z.jpg")


def test_single_box_in_json(tmp_path: Path) -> None:
    table = load_boxes(write(tmp_path / "b.json", [1, 2, 3, 4]))
    assert table.for_image("x") == (Box(1, 2, 3, 4),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "holds a int"),
        ({"a.jpg": 3}, "list of boxes"),
        ([[1, 2, 3]], "four numbers"),
        ([["1", "2", "3", None]], "four numbers"),
        ([{"box": [1, 2, 3, 4]}], "'bbox' is missing"),
        ([{"bbox": [1, 2, 3, 4], "side": "up"}], "side must be"),
        ([{"bbox": [1, 2, 3, 4], "score": "high"}], "score must be"),
        ([[float("nan"), 2, 3, 4]], "finite"),
        ([[1, 2, 3, -4]], r"box 1.*above 0"),
        ([{"image_id": 7, "bbox": [1, 2, 3, 4]}], "looks like a file of COCO"),
        ({"images": [], "annotations": [], "categories": []}, "looks like a file of COCO"),
        ([{"bbox": [1, 2, 3, 4], "colour": "red"}], r"box 1: unknown key 'colour'"),
        ([["1", "2", "3", "4"]], "four numbers"),
        ([True, True, True, True], "four numbers"),
        ([[1, 2, 3, True]], "four numbers"),
        ([[1, 2, 3, 10**400]], "four numbers"),
        ([{"bbox": "1234"}], "four numbers"),
        ([{"bbox": [1, 2, 3, 4], "score": True}], "score must be"),
    ],
)
def test_bad_json_content(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_boxes(write(tmp_path / "b.json", content))


def test_bad_json_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read"):
        load_boxes(tmp_path / "gone.json")
    (tmp_path / "b.json").write_text("[1, 2")
    with pytest.raises(InputError, match="Expected JSON"):
        load_boxes(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[" * 200_000)
    with pytest.raises(InputError, match="nested too deeply"):
        load_boxes(tmp_path / "b.json")


def test_python_forms() -> None:
    expected = [Box(1, 2, 3, 4)]
    assert as_boxes(np.array([[1.0, 2, 3, 4]])) == expected
    assert as_boxes([(1, 2, 3, 4)]) == expected
    assert as_boxes("1,2,3,4") == expected
    assert as_boxes(expected) == expected
    assert BoxTable(expected).for_image("any") == tuple(expected)
    with pytest.raises(InputError, match=r"boxes\[0\].*four numbers"):
        as_boxes([1, 2, 3, 4])


def test_only_a_name_in_json_is_a_file() -> None:
    assert is_boxes_file("boxes.json")
    assert is_boxes_file(" in/BOXES.JSON ")
    assert not is_boxes_file(";".join(["1,2,3,4"] * 1000))


def test_inside() -> None:
    check_inside(Box(-50, -50, 60, 60), (100, 80))
    check_inside(Box(99, 79, 500, 500), (100, 80))
    for box in (Box(100, 0, 10, 10), Box(0, 80, 10, 10), Box(-10, 0, 10, 10), Box(0, -9, 5, 9)):
        with pytest.raises(InputError, match="outside the image, which is 100x80"):
            check_inside(box, (100, 80))
    with pytest.raises(InputError, match="finite"):
        check_inside(Box(float("nan"), 0, 1, 1), (100, 80))
