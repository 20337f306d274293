"""Data sets by name, the check of their labels, and the verbs that use both."""

import cv2
import numpy as np
import pytest

from kinemesh.cli import main
from kinemesh.data.check import check_dataset
from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.mesh_dataset import MeshOptions
from kinemesh.data.mesh_labels import MeshRecord
from kinemesh.data.mesh_tsv import MeshTsvDataset, write_mesh_tsv
from kinemesh.data.sheet import tile_samples
from kinemesh.data.sources import open_dataset, open_stored
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.data.webdataset import MeshShards
from kinemesh.errors import InputError
from tests.mesh_records import mesh_records, write_freihand

COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A body TSV, a damaged copy of it, FreiHAND and shards."""
    folder = tmp_path_factory.mktemp("sets")
    records = mesh_records("body", COUNT)
    write_mesh_tsv(folder, "body", records)
    first, *rest = records
    records = [first, MeshRecord("x", first.jpeg[:-200], first.annotation), *rest]
    records[2] = MeshRecord("y", rest[0].jpeg, dict(rest[0].annotation) | {"has_3d_joints": 0})
    write_mesh_tsv(folder, "damaged", records)
    write_freihand(folder / "freihand", 3, 1)
    assert main(["data", "convert", str(folder / "body.yaml"), str(folder / "shards")]) == 0
    return folder


@pytest.fixture
def in_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def test_names_and_paths(in_folder):
    assert isinstance(open_dataset("synthetic-hand"), SyntheticDataset)
    assert open_dataset("synthetic-body", split="val", seed=3).split == "val"
    assert open_dataset("synthetic-body", resolution=64)[0]["image"].shape[-1] == 64
    tsv = open_dataset(str(in_folder / "body.yaml"), split="train", seed=3, resolution=64)
    assert isinstance(tsv, MeshTsvDataset)
    assert tsv.options == MeshOptions(train=True, seed=3, resolution=64)
    for split, labelled in (("freihand", 1), ("freihand-evaluation", 0)):
        dataset = open_dataset(f"{split}:{in_folder / 'freihand'}")
        assert isinstance(dataset, FreiHandDataset)
        assert dataset[0]["has_3d"] == labelled
    assert isinstance(open_dataset(str(in_folder / "shards")), MeshShards)
    options = MeshOptions(mask_tokens=(21, 0))
    assert open_dataset(str(in_folder / "body.yaml"), options=options).options == options


def test_foreign_names_are_refused(in_folder):
    for spec, message in (
        ("synthetic-hnd", "no data set 'synthetic-hnd'. Did you mean 'synthetic-hand'"),
        (str(in_folder / "none.yaml"), "There is no file .*none.yaml"),
        (str(in_folder / "freihand"), "holds FreiHAND. Write: freihand:/"),
        (str(in_folder), "folder without shards.json. Its .yaml files: body.yaml, damaged.yaml"),
    ):
        with pytest.raises(InputError, match=message):
            open_dataset(spec)
    for spec, message in (
        ("synthetic-hand", "'synthetic-hand' is rendered when it is read, it has no stored rows"),
        (str(in_folder / "shards"), "shards' already holds shards, .* Name the data set that"),
        ("synthetic-hnd", "no data set 'synthetic-hnd'. Data sets: PATH.yaml .*FOLDER$"),
        (
            str(in_folder),
            "is a folder without shards.json. Its .yaml files: body.yaml, damaged.yaml. Name",
        ),
    ):
        with pytest.raises(InputError, match=message) as error:
            open_stored(spec)
        assert "Did you mean" not in str(error.value)


def test_check_goes_on_after_damage(in_folder):
    dataset = open_dataset(str(in_folder / "damaged.yaml"))
    report = check_dataset(dataset, 100)
    assert (report.length, len(report.samples)) == (COUNT + 1, COUNT)
    ((index, problem),) = report.problems
    assert index == 1
    assert "damaged.img.tsv', row 1" in problem
    text = report.text("d")
    assert "2D 5/5 (24 joints), 3D 4/5, mesh 5/5 (pose of 72 numbers)" in text
    assert "problems   1 of 6" in text


def test_check_counts_what_a_reader_warns_of(in_folder, tmp_path, capsys):
    first, second, *_ = mesh_records("body", 2)
    beside = MeshRecord("b", second.jpeg, dict(second.annotation) | {"center": [1e9, 0]})
    path = write_mesh_tsv(tmp_path / "w", "beside", [first, beside])
    report = check_dataset(open_dataset(str(path)), 2)
    ((index, warning),) = report.warnings
    assert index == 1
    assert "beside.label.tsv', row 1" in warning
    assert "warnings   1 of 2, first of sample 1: '" in report.text("d")
    assert main(["data", "check", str(path)]) == 0
    assert "warnings   1 of 2, first of sample 1: '" in capsys.readouterr().out
    assert main(["data", "convert", str(path), str(tmp_path / "s")]) == 0
    shards = check_dataset(open_dataset(str(tmp_path / "s")), 2)
    assert [index for index, _ in shards.warnings] == [1]
    assert "warnings" not in check_dataset(open_dataset(str(in_folder / "body.yaml")), 2).text("d")


def test_check_spreads_over_the_set():
    class Asked(list):
        def __getitem__(self, index):
            seen.append(index)
            return super().__getitem__(index)

    seen = []
    sample = SyntheticDataset("hand", seed=0, resolution=16)[0]
    report = check_dataset(Asked([sample] * 100), 5)
    assert seen == [0, 24, 49, 74, 99]
    assert len(report.samples) == 5


def test_pictures_show_the_labels(in_folder):
    body = open_dataset(str(in_folder / "body.yaml"))
    hand = open_dataset(f"freihand:{in_folder / 'freihand'}")
    unlabelled = open_dataset(f"freihand-evaluation:{in_folder / 'freihand'}")
    for dataset, drawn in ((body, True), (hand, True), (unlabelled, False)):
        sheet = tile_samples([dataset[0], dataset[1], dataset[2]], 2, side_view=True)
        assert sheet.shape == (2 * 224, 2 * 3 * 224, 3)
        plain, labels, side = np.split(sheet[:224, : 3 * 224], 3, axis=1)
        assert bool((plain != labels).any()) == drawn
        assert (len(np.unique(side)) > 1) == drawn
        assert not sheet[224:, 3 * 224 :].any()
    dots = tile_samples([{**hand[0], "has_2d": unlabelled[0]["has_2d"]}], 1)
    assert (dots[:, :224] != dots[:, 224:]).any()  # the mesh alone


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", ["body.yaml", "shards", "freihand:", "synthetic-hand"])
def test_check_verb(in_folder, tmp_path, capsys, name, train):
    spec = {
        "freihand:": f"freihand:{in_folder / 'freihand'}",
        "synthetic-hand": "synthetic-hand",
    }.get(name, str(in_folder / name))
    words = ["data", "check", spec, "--count", "2", "--out", str(tmp_path / "look.png")]
    assert main(words + ["--train"] * train) == 0
    printed = capsys.readouterr().out
    assert "of which 2 were looked at" in printed
    assert "3D 2/2" in printed
    size = 128 if name == "synthetic-hand" else 224
    assert cv2.imread(str(tmp_path / "look.png")).shape == (size, 6 * size, 3)


def test_check_verb_fails_on_damage(in_folder, tmp_path, capsys):
    words = ["data", "check", str(in_folder / "damaged.yaml"), "--out", str(tmp_path / "a.png")]
    assert main(words) == 2
    streams = capsys.readouterr()
    assert "problems   1 of 6" in streams.out
    assert "sample 1: " in streams.err
    assert (tmp_path / "a.png").is_file()
    assert main(["data", "check", "synthetic-hand", "--count", "0"]) == 2
    assert main(["data", "check", "synthetic-hand", "--out", "a.gif"]) == 2


def test_convert_verb(in_folder, tmp_path, capsys):
    words = ["data", "convert", str(in_folder / "body.yaml"), str(tmp_path / "out")]
    assert main([*words, "--shard-size", "2"]) == 0
    assert "5 samples in 3 shards" in capsys.readouterr().out
    assert len(list(MeshShards(tmp_path / "out"))) == COUNT
    for name in ("synthetic-hand", str(in_folder / "shards"), "synthetic-keypoints"):
        assert main(["data", "convert", name, str(tmp_path / "o")]) == 2
        assert not (tmp_path / "o").exists()
