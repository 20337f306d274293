"""Shards hold what the data set held, byte by byte."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.mesh_dataset import MeshOptions
from kinemesh.data.mesh_tsv import MeshTsvDataset, write_mesh_tsv
from kinemesh.data.records import SAMPLE_FIELDS
from kinemesh.data.webdataset import MeshShards, write_shards
from kinemesh.errors import InputError
from tests.mesh_records import mesh_records, write_freihand

COUNT, SHARD = 7, 3
TRAIN = MeshOptions(train=True, seed=2, resolution=48)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_mesh_tsv(tmp_path_factory.mktemp("tsv"), "b", mesh_records("body", COUNT))


@pytest.fixture(scope="module")
def folder(path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    assert write_shards(MeshTsvDataset(path), folder, source="b.yaml", shard_size=SHARD) == 3
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def assert_same(first, second):
    for name in SAMPLE_FIELDS:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("options", [TRAIN, MeshOptions(resolution=48)])
def test_samples_are_those_of_the_tsv(path, folder, options):
    dataset, shards = MeshTsvDataset(path, options), MeshShards(folder, options)
    assert len(shards) == COUNT
    for step in (0, 4):
        dataset.set_step(step)
        shards.set_step(step)
        samples = list(shards)
        assert len(samples) == COUNT
        for index, sample in enumerate(samples):
            assert_same(sample, dataset[index])


def test_rows_are_kept_whole(path, folder):
    dataset = MeshTsvDataset(path)
    rows = list(MeshShards(folder).records())
    assert [index for index, _ in rows] == list(range(COUNT))
    for index, record in rows:
        stored = dataset.read(index)
        assert (record.key, record.jpeg) == (stored.key, stored.jpeg)
        assert record.annotation == stored.annotation


def test_shards_are_plain_tar_files(folder):
    names = sorted(path.name for path in folder.glob("*.tar"))
    assert names == ["shard-000000.tar", "shard-000001.tar", "shard-000002.tar"]
    with tarfile.open(folder / names[2]) as archive:
        assert archive.getnames() == ["000000006.jpg", "000000006.json"]


def test_freihand_converts_with_its_vertices(tmp_path):
    write_freihand(tmp_path / "f", 2, 1)
    dataset = FreiHandDataset(tmp_path / "f", cache=tmp_path / "cache")
    write_shards(dataset, tmp_path / "s", source="f")
    samples = list(MeshShards(tmp_path / "s"))
    assert len(samples) == 2
    for index, sample in enumerate(samples):
        assert_same(sample, dataset[index])
        assert len(sample["vertices"]) == 778


def test_workers_share_the_shards(path, folder, tmp_path):
    dataset = MeshTsvDataset(path, TRAIN)
    expected = sorted(float(dataset[i]["side_px"]) for i in range(COUNT))
    write_shards(dataset, tmp_path, source="b.yaml")  # one shard: the second worker has none
    for shards in (folder, tmp_path):
        loader = DataLoader(MeshShards(shards, TRAIN), batch_size=None, num_workers=2)
        assert sorted(float(sample["side_px"]) for sample in loader) == expected


def test_shuffled_order_belongs_to_the_step(folder):
    def order(step):
        shards = MeshShards(folder, TRAIN, shuffle=5)
        shards.set_step(step)
        return [index for index, _ in shards.records()]

    assert sorted(order(0)) == list(range(COUNT))
    assert order(0) == order(0)
    assert order(0) != order(1)


def test_interrupted_conversion_goes_on(path, folder, tmp_path):
    class Stops:
        def __init__(self, last):
            self.dataset, self.last, self.read_rows = MeshTsvDataset(path), last, []
            self.kind = self.dataset.kind

        def __len__(self):
            return COUNT

        def read(self, index):
            if index == self.last:
                raise KeyboardInterrupt
            self.read_rows.append(index)
            return self.dataset.read(index)

    with pytest.raises(KeyboardInterrupt):
        write_shards(Stops(4), tmp_path, source="b.yaml", shard_size=SHARD)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard-000000.tar", "shards.json"]
    with pytest.raises(InputError, match="was not finished"):
        MeshShards(tmp_path)
    again = Stops(None)
    write_shards(again, tmp_path, source="b.yaml", shard_size=SHARD)
    assert again.read_rows == [3, 4, 5, 6]
    for name in ("shard-000000.tar", "shard-000002.tar", "shards.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_folders_of_others_are_refused(path, copied, tmp_path):
    dataset = MeshTsvDataset(path)
    with pytest.raises(InputError, match=r"another conversion: source is 'b\.yaml' there"):
        write_shards(dataset, copied, source="other.yaml", shard_size=SHARD)
    with pytest.raises(InputError, match="another conversion: shard_size is 3 there and 1000 now"):
        write_shards(dataset, copied, source="b.yaml")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "letter.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        write_shards(dataset, tmp_path / "x", source="b.yaml")
    with pytest.raises(InputError, match="shard_size: expected a positive"):
        write_shards(dataset, tmp_path / "y", source="b.yaml", shard_size=0)
    with pytest.raises(InputError, match=r"letter.txt' is a file, expected a folder"):
        write_shards(dataset, tmp_path / "x" / "letter.txt", source="b.yaml")


def test_damage_is_named(copied, tmp_path):
    (copied / "shard-000001.tar").unlink()
    with pytest.raises(
        InputError, match=r"1 of 3 shards are missing or cut short, first 'shard-000001.tar'"
    ):
        MeshShards(copied)
    (copied / "shards.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(InputError, match="expected the format"):
        MeshShards(copied)
    (copied / "shards.json").write_text("{")
    with pytest.raises(InputError, match="expected JSON"):
        MeshShards(copied)
    with pytest.raises(InputError, match="There is no file"):
        MeshShards(tmp_path)
    with pytest.raises(InputError, match="There is no file"):
        MeshShards(copied / "shards.json")  # no folder


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("kind", None),
        ("kind", "foot"),
        ("kind", ["body"]),
        ("samples", None),
        ("samples", "seven"),
        ("samples", -1),
        ("shards", None),
        ("shards", [1, 2, 3]),
        ("shards", ["../a.tar", "b.tar", "c.tar"]),
        ("bytes", None),
        ("bytes", [1, 2]),
        ("bytes", "abc"),
    ],
)
def test_damaged_lists_of_shards_are_named(copied, entry, value):
    manifest = json.loads((copied / "shards.json").read_text())
    manifest = {k: v for k, v in manifest.items() if k != entry}
    (copied / "shards.json").write_text(
        json.dumps(manifest if value is None else manifest | {entry: value})
    )
    with pytest.raises(InputError, match=rf"shards.json': '{entry}': expected .* found"):
        MeshShards(copied)


def resize_in_manifest(folder, name):
    """Let the manifest believe in a file that a test has changed."""
    manifest = json.loads((folder / "shards.json").read_text())
    manifest["bytes"][manifest["shards"].index(name)] = (folder / name).stat().st_size
    (folder / "shards.json").write_text(json.dumps(manifest))


def test_sample_without_a_label_is_named(copied):
    with tarfile.open(copied / "shard-000001.tar", "w") as archive:
        picture = copied / "000000003.jpg"
        picture.write_bytes(b"x")
        archive.add(picture, picture.name)
    resize_in_manifest(copied, "shard-000001.tar")
    with pytest.raises(InputError, match=r"shard-000001.tar', sample 000000003: expected a pict"):
        list(MeshShards(copied))


@pytest.mark.parametrize(
    "label",
    ['["a"]', '{"key": "a", "annotation": 5}', '{"key": 5, "annotation": {}}', "[" * 100_000],
)
def test_foreign_label_is_named(copied, label):
    with tarfile.open(copied / "shard-000001.tar", "w") as archive:
        for suffix, content in (("jpg", b"x"), ("json", label.encode())):
            part = copied / f"000000003.{suffix}"
            part.write_bytes(content)
            archive.add(part, part.name)
    resize_in_manifest(copied, "shard-000001.tar")
    with pytest.raises(InputError, match=r"shard-000001.tar', sample 000000003: expected a pict"):
        list(MeshShards(copied))


def test_picture_that_is_there_twice_is_named(copied):
    with tarfile.open(copied / "shard-000001.tar", "w") as archive:
        picture = copied / "000000003.jpg"
        picture.write_bytes(b"x")
        archive.add(picture, picture.name)
        archive.add(picture, picture.name)
    resize_in_manifest(copied, "shard-000001.tar")
    with pytest.raises(InputError, match=r"A shard is damaged: .*duplicate"):
        list(MeshShards(copied))


def test_cut_shard_is_named(copied):
    path = copied / "shard-000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(InputError, match=r"1 of 3 .* cut short, first 'shard-000001.tar'"):
        MeshShards(copied)
    resize_in_manifest(copied, path.name)
    with pytest.raises(InputError, match=r"A shard is damaged: .*shard-000001.tar"):
        list(MeshShards(copied))


def test_global_random_state_is_left_alone(folder):
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    list(MeshShards(folder, TRAIN, shuffle=4))
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002
