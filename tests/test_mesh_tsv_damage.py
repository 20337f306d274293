"""Damaged TSV data sets: every message names the file, the row and the byte."""

import re
import sys
import warnings

import numpy as np
import pytest

from kinemesh.cli import main
from kinemesh.data.mesh_labels import MeshRecord
from kinemesh.data.mesh_tsv import MeshTsvDataset, write_mesh_tsv
from kinemesh.data.tsv_file import write_tsv
from kinemesh.errors import InputError
from tests.mesh_records import mesh_record, mesh_records, write_yaml

COUNT = 6


@pytest.fixture
def copied(tmp_path):
    """A body set that a test may damage."""
    return write_mesh_tsv(tmp_path / "set", "x", mesh_records("body", COUNT))


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def shift(content, row, by):
    numbers = [int(word) for word in content.split()]
    numbers[row] += by
    return "".join(f"{number}\n" for number in numbers).encode()


def replace_row(folder, part, row, line):
    """Put another line in place of one row, with right offsets."""
    lines = (folder / f"x.{part}.tsv").read_text().splitlines()
    lines[row] = line
    write_tsv(folder / f"x.{part}.tsv", [line.split("\t") for line in lines])


DAMAGE = {
    "offset within a row": (
        lambda f: [
            rewrite(f / "x.label.lineidx", lambda c: shift(c, 2, 5)),
            (f / "x.linelist.tsv").write_text("2\n"),
        ],
        r"x.label.tsv', row 2 \(byte \d+\): 'x.label.lineidx' does not fit .* in the middle of",
    ),
    "next offset after the end of the row": (
        lambda f: rewrite(f / "x.label.lineidx", lambda c: shift(c, 2, 5)),
        r"x.label.tsv', row 1 \(byte \d+\).* the next row begins at \d+, not at byte \d+",
    ),
    "next offset before the end of the row": (
        lambda f: rewrite(f / "x.label.lineidx", lambda c: shift(c, 2, -5)),
        r"x.label.tsv', row 1 .* the next row begins at a later byte, not at byte \d+",
    ),
    "offset of the next row": (
        lambda f: (f / "x.label.lineidx").write_text(
            "\n".join(np.delete((f / "x.label.lineidx").read_text().split(), 2))
        ),
        r"as many rows in the image, label and hw files, found 6 in .*, 5 in",
    ),
    "two rows in one": (
        lambda f: (
            [
                (f / f"x.{part}.lineidx").write_text(
                    "\n".join(np.delete((f / f"x.{part}.lineidx").read_text().split(), 3))
                )
                for part in ("img", "label", "hw")
            ]
            + [(f / "x.linelist.tsv").write_text("2\n")]
        ),
        r"x.label.tsv', row 2 .*the next row begins at \d+, not at",
    ),
    "offset beyond the file": (
        lambda f: rewrite(f / "x.label.lineidx", lambda c: shift(c, 5, 10**6)),
        r"x.label.tsv', row 5 \(byte \d+\).*has only \d+ bytes, so 1 of 6 rows are missing",
    ),
    "offsets that go back": (
        lambda f: rewrite(f / "x.label.lineidx", lambda c: shift(c, 3, -(10**6))),
        r"x.label.tsv', row 2 .*next row is said to begin at byte -\d+",
    ),
    "file cut between rows": (
        lambda f: rewrite(f / "x.img.tsv", lambda c: c[: len(c) // 2]),
        r"x.img.tsv', row \d \(byte \d+\).*rows are missing",
    ),
    "file cut in its last row": (
        lambda f: rewrite(f / "x.label.tsv", lambda c: c[:-40]),
        r"x.label.tsv', row 5 \(byte \d+\): expected JSON",
    ),
    "picture cut in the last row": (
        lambda f: rewrite(f / "x.img.tsv", lambda c: c[: len(c) - 1 - 4 * 30]),
        r"x.img.tsv', row 5 .*expected a complete JPEG, found one that ends early",
    ),
    "offsets that are no numbers": (
        lambda f: (f / "x.img.lineidx").write_text("0\n12\nx\n"),
        r"x.img.lineidx', line 2: expected one whole number, found 'x'",
    ),
    "empty file": (
        lambda f: [(f / "x.img.tsv").write_text(""), (f / "x.img.lineidx").write_text("")],
        r"x.img.tsv': expected at least one row",
    ),
    "missing file": (
        lambda f: (f / "x.img.tsv").unlink(),
        r"There is no file .*x.img.tsv",
    ),
    "no base64": (
        lambda f: replace_row(f, "img", 2, "body_2.jpg\t@@@@"),
        r"x.img.tsv', row 2 \(byte \d+\): expected base64",
    ),
    "no picture": (
        lambda f: replace_row(f, "img", 2, "body_2.jpg\taGVsbG8="),
        r"x.img.tsv', row 2 .*: expected a complete JPEG, found 5 bytes",
    ),
    "one column": (
        lambda f: replace_row(f, "img", 2, "body_2.jpg"),
        r"x.img.tsv', row 2 .*expected a key and a value",
    ),
    "no JSON": (
        lambda f: replace_row(f, "label", 2, "body_2.jpg\t[{"),
        r"x.label.tsv', row 2 \(byte \d+\): expected JSON",
    ),
    "no annotation": (
        lambda f: replace_row(f, "label", 2, "body_2.jpg\t[]"),
        r"x.label.tsv', row 2 .*a JSON list with one annotation",
    ),
    "row beyond the end": (
        lambda f: (f / "x.linelist.tsv").write_text("0\n6\n"),
        r"x.linelist.tsv', line 1: names row 6",
    ),
    "no rows": (
        lambda f: (f / "x.linelist.tsv").write_text(""),
        r"x.linelist.tsv': expected at least one row",
    ),
    "two columns": (
        lambda f: (f / "x.linelist.tsv").write_text("0\t1\n"),
        r"x.linelist.tsv', line 0: expected one whole number, found '0\\t1'",
    ),
    "no YAML": (
        lambda f: (f / "x.yaml").write_text("a: [b"),
        r"x.yaml': expected YAML",
    ),
    "other YAML": (
        lambda f: (f / "x.yaml").write_text("image: x"),
        r"x.yaml': expected the entries img, label, hw and linelist, found .*image",
    ),
    "row that is no UTF-8": (
        lambda f: rewrite(f / "x.label.tsv", lambda c: c.replace(b"body_2.jpg", b"body_2.jp\xff")),
        r"x.label.tsv', row 2 \(byte \d+\): expected UTF-8",
    ),
    "deeper JSON than Python reads": (
        lambda f: replace_row(f, "label", 2, "body_2.jpg\t" + "[" * 100_000),
        r"x.label.tsv', row 2 \(byte \d+\): expected JSON",
    ),
    "longer number than Python reads": (
        lambda f: replace_row(f, "label", 2, "body_2.jpg\t[" + "1" * 5000 + "]"),
        r"x.label.tsv', row 2 \(byte \d+\): expected JSON",
    ),
    "ragged joints": (
        lambda f: replace_row(f, "label", 0, 'body_0.jpg\t[{"2d_joints": [[1, 2, 3], [1]]}]'),
        r"x.label.tsv', row 0 .*'2d_joints' of the label: expected numbers",
    ),
    "empty entry": (
        lambda f: write_yaml(f / "x.yaml", img="x.img.tsv", label=""),
        r"x.yaml': 'label' is empty",
    ),
    "empty list": (
        lambda f: write_yaml(f / "x.yaml", "composite: true", img="[]", label="[x.label.tsv]"),
        r"x.yaml': 'img' is empty",
    ),
    "number for a line list": (
        lambda f: write_yaml(f / "x.yaml", img="x.img.tsv", label="x.label.tsv", linelist=5),
        r"x.yaml': 'linelist': expected the name of a file, found 5",
    ),
    "list for a line list": (
        lambda f: write_yaml(f / "x.yaml", img="x.img.tsv", label="x.label.tsv", linelist="[a, b]"),
        r"x.yaml': 'linelist': expected the name of a file, found \['a', 'b'\]",
    ),
    "list file that is no UTF-8": (
        lambda f: [
            write_yaml(f / "x.yaml", "composite: true", img="x.txt", label="[x.label.tsv]"),
            (f / "x.txt").write_bytes(b"x.img.tsv\n\xff\n"),
        ],
        r"x.txt': expected a text file that lists names of .tsv files",
    ),
    "TSV for a list file": (
        lambda f: write_yaml(
            f / "x.yaml",
            "composite: true",
            img="x.img.tsv",
            label="x.label.tsv",
            linelist="x.linelist.tsv",
        ),
        r"x.img.tsv': expected a text file that lists names of .tsv files.*\[x.img.tsv\]",
    ),
    "long TSV for a list file": (
        lambda f: [
            write_yaml(f / "x.yaml", "composite: true", img="[x.img.tsv]", label="x.label.tsv"),
            rewrite(f / "x.label.tsv", lambda c: b"x" * (1 << 20) + c),
        ],
        r"x.label.tsv': expected a text file that lists names of .tsv files.*\[x.label.tsv\]",
    ),
    "unequal lists": (
        lambda f: (f / "x.yaml").write_text(
            "composite: true\nimg: [x.img.tsv]\nlabel: [x.label.tsv, x.label.tsv]"
        ),
        r"x.yaml': expected as many files in each",
    ),
}


def read_all(path):
    dataset = MeshTsvDataset(path)
    return [dataset[index] for index in range(len(dataset))]


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(copied, what):
    damage, message = DAMAGE[what]
    damage(copied.parent)
    with pytest.raises(InputError, match=message):
        read_all(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"center": [1, 2, 3]}, r"'center' of the label: expected shape \(2,\), found \(3,\)"),
        ({"scale": 0}, "'scale' of the label: expected a positive number, found 0"),
        ({"scale": None}, "'scale' of the label: expected a value, found none"),
        ({"scale": 500.0}, r"x.label.tsv', row 0 .*scale: expected a box between"),
        ({"pose": [0.0] * 48}, r"'pose' of the label: expected shape \(72,\), found \(48,\)"),
        ({"betas": ["a"] * 10}, "'betas' of the label: expected numbers"),
        ({"betas": [[1.0], [1.0, 2.0]]}, "'betas' of the label: expected numbers"),
        ({"betas": [10**400] * 10}, "'betas' of the label: expected numbers"),
        ({"3d_joints": None}, "'3d_joints' of the label: expected a value"),
    ],
)
def test_bad_labels_are_named(tmp_path, change, message):
    record = mesh_record("body")
    bad = MeshRecord(record.key, record.jpeg, dict(record.annotation) | change)
    dataset = MeshTsvDataset(write_mesh_tsv(tmp_path, "x", [bad]), kind="body")
    with pytest.raises(InputError, match=message):
        dataset[0]


def test_a_set_flag_needs_its_array(tmp_path):
    record = mesh_record("body")
    annotation = {k: v for k, v in record.annotation.items() if k != "pose"}
    path = write_mesh_tsv(tmp_path, "x", [MeshRecord("a", record.jpeg, annotation)])
    with pytest.raises(InputError, match="'pose' of the label: expected an array, since has_smpl"):
        MeshTsvDataset(path)[0]
    bare = MeshRecord("a", record.jpeg, {"center": [1, 2], "scale": 1})
    with pytest.raises(InputError, match="24 joints or 72 angles of a body"):
        MeshTsvDataset(write_mesh_tsv(tmp_path, "x", [bare]))


def test_not_a_number_is_refused(tmp_path):
    record = mesh_record("body")
    joints = np.full((24, 3), np.nan)
    annotation = dict(record.annotation) | {"2d_joints": joints}
    path = write_mesh_tsv(tmp_path, "x", [MeshRecord("a", record.jpeg, annotation)])
    with pytest.raises(InputError, match="'2d_joints' of the label: expected finite numbers"):
        MeshTsvDataset(path)[0]


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("img", "body_0.jpg\tno base64!"),
        ("label", "body_0.jpg\t[{"),
        ("label", "body_0.jpg\t[{}]"),
        ("label", "body_0.jpg"),
    ],
)
def test_a_damaged_first_row_is_one_problem_of_many(copied, part, line, tmp_path, capsys):
    replace_row(copied.parent, part, 0, line)
    out = tmp_path / "check.png"
    assert main(["data", "check", str(copied), "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert "problems   1 of 6" in shown.out
    assert "row 0" in shown.err
    assert out.is_file()


def test_a_set_without_a_readable_row_names_the_first(copied):
    for row in range(COUNT):
        replace_row(copied.parent, "label", row, f"body_{row}.jpg\t[")
    with pytest.raises(InputError, match="row 0"):
        MeshTsvDataset(copied)


def show_plainly(message, category, filename, lineno, file=None, line=None):
    """As Python does outside of pytest, which collects warnings."""
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def test_missing_offsets_are_told_without_source_code(copied, tmp_path, capsys, monkeypatch):
    (copied.parent / "x.img.lineidx").unlink()
    monkeypatch.setattr(warnings, "showwarning", show_plainly)
    assert main(["data", "check", str(copied), "--out", str(tmp_path / "a.png")]) == 0
    err = capsys.readouterr().err
    assert re.fullmatch(r"kinemesh: warning: '\S+x\.img\.lineidx' is missing: .*\n", err)
