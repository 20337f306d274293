"""TSV data sets: what is written is read, whatever is damaged is named."""

import base64
import json
import multiprocessing
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from kinemesh.data import collate
from kinemesh.data.mesh_augmentation import Augmentation
from kinemesh.data.mesh_crop import CropParameters
from kinemesh.data.mesh_dataset import MeshOptions
from kinemesh.data.mesh_labels import MeshRecord
from kinemesh.data.mesh_tsv import MeshTsvDataset, write_mesh_tsv
from kinemesh.data.records import SAMPLE_FIELDS
from kinemesh.data.tsv_file import TsvFile, write_tsv
from kinemesh.errors import InputError
from tests.mesh_records import encoded, mesh_record, mesh_records, write_yaml

COUNT = 6
TRAIN = MeshOptions(train=True, seed=5, resolution=64)


@pytest.fixture(scope="module", params=["body", "hand"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def path(tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp(kind) / "set"
    return write_mesh_tsv(folder, kind, mesh_records(kind, COUNT))


@pytest.fixture
def copied(tmp_path):
    """A body set that a test may damage."""
    return write_mesh_tsv(tmp_path / "set", "x", mesh_records("body", COUNT))


def assert_same(first, second):
    for name in SAMPLE_FIELDS:
        assert torch.equal(first[name], second[name]), name


def test_rows_come_back_as_they_were_written(path, kind):
    dataset = MeshTsvDataset(path)
    assert len(dataset) == COUNT
    assert dataset.kind == kind
    for index, record in enumerate(mesh_records(kind, COUNT)):
        found = dataset.read(index)
        assert (found.key, found.jpeg) == (record.key, record.jpeg)
        for name, value in record.annotation.items():
            assert np.array_equal(found.annotation[name], value), name
    assert dataset.image_keys() == [record.key for record in mesh_records(kind, COUNT)]


def test_fields_have_documented_shapes(path, kind):
    joints, pose, tokens = {"body": (24, 72, 445), "hand": (21, 48, 216)}[kind]
    shapes = {
        "image": (3, 64, 64),
        "joints_2d": (joints, 3),
        "joints_3d": (joints, 4),
        "vertices": (0, 3),
        "pose": (pose,),
        "betas": (10,),
        "keep_mask": (tokens, 1),
        "root_m": (3,),
        "center_px": (2,),
    }
    for options in (TRAIN, MeshOptions(resolution=64)):
        for sample in (MeshTsvDataset(path, options)[i] for i in range(COUNT)):
            assert set(sample) == set(SAMPLE_FIELDS)
            for name in SAMPLE_FIELDS:
                assert sample[name].shape == shapes.get(name, ()), name
                assert sample[name].dtype == torch.float32
                assert sample[name].isfinite().all(), name
            assert 0 <= sample["image"].min() <= sample["image"].max() <= 1
            root = {"body": 14, "hand": 0}[kind]
            assert not sample["joints_3d"][root, :3].any()


def test_evaluation_is_plain(path, kind):
    sample = MeshTsvDataset(path)[1]
    record = mesh_records(kind, 2)[1].annotation
    np.testing.assert_allclose(sample["center_px"], record["center"], rtol=1e-6)
    assert sample["side_px"] == pytest.approx(200 * record["scale"], rel=1e-6)
    np.testing.assert_allclose(sample["pose"], record["pose"], atol=1e-6)
    assert sample["keep_mask"].all()


def test_a_sample_depends_on_seed_step_and_index_alone(path):
    first, second = MeshTsvDataset(path, TRAIN), MeshTsvDataset(path, TRAIN)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    ahead = [second[i] for i in (4, 0, 2)]
    assert_same(first[2], ahead[2])
    second.set_step(7)
    assert not torch.equal(second[2]["image"], first[2]["image"])
    first.set_step(7)
    assert_same(first[2], second[2])
    other = MeshTsvDataset(path, MeshOptions(train=True, seed=6, resolution=64))
    assert not torch.equal(other[2]["image"], ahead[2]["image"])
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first[3]
    assert np.array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_give_the_same_samples(path, method):
    dataset = MeshTsvDataset(path, TRAIN)
    expected = [dataset[i] for i in range(COUNT)]  # files are open before the fork
    if method == "spawn":  # what a spawned worker does: use a pickled copy, in another process
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found = pool.map(_unpickled_sample, [(pickle.dumps(dataset), i) for i in range(COUNT)])
    else:
        loader = DataLoader(dataset, batch_size=None, num_workers=2)
        found = list(loader)
    for mine, theirs in zip(expected, found, strict=True):
        assert_same(mine, theirs)
    assert collate(found)["image"].shape == (COUNT, 3, 64, 64)


def _unpickled_sample(work):
    content, index = work
    # NumPy: tensors would be shared through file handles of a process that ends
    return {k: torch.from_numpy(v.numpy()) for k, v in pickle.loads(content)[index].items()}


def test_index_out_of_range_and_from_the_end(path):
    dataset = MeshTsvDataset(path)
    assert_same(dataset[-1], dataset[COUNT - 1])
    with pytest.raises(IndexError):
        dataset[COUNT]


def test_view_turns_and_zooms(path, kind):
    plain = MeshTsvDataset(path, TRAIN)
    view = plain.with_view(CropParameters(rotation_deg=30.0, scale=0.8))
    sample, flat = view[0], plain.with_view(CropParameters())[0]
    assert sample["side_px"] == pytest.approx(float(flat["side_px"]) * 0.8)
    assert not torch.equal(sample["pose"][:3], flat["pose"][:3])
    assert torch.equal(sample["pose"][3:], flat["pose"][3:])
    assert plain.options.train


def test_hands_are_never_mirrored(path, kind):
    if kind == "body":
        assert MeshTsvDataset(path, MeshOptions(augmentation=Augmentation(flip=False)))[0]
        return
    with pytest.raises(InputError, match="hands cannot be mirrored"):
        MeshTsvDataset(path, MeshOptions(augmentation=Augmentation(flip=True)))


def test_labelled_vertices_and_camera(tmp_path):
    """Vertices turn with the joints; a camera counts only if it looks through the crop's middle."""
    record = mesh_record("body")
    points = np.asarray(record.annotation["3d_joints"])[:, :3]
    extra = {
        "vertices": points[:5],
        "camera": [[300.0, 0, 60], [0, 300, 45], [0, 0, 1]],
        "center": [60, 45],
        "scale": 0.3,
    }
    annotations = [dict(record.annotation) | extra]
    annotations.append(annotations[0] | {"center": [62, 45]})
    records = [MeshRecord("a", record.jpeg, annotation) for annotation in annotations]
    options = MeshOptions(resolution=64, view=CropParameters(rotation_deg=50.0))
    dataset = MeshTsvDataset(write_mesh_tsv(tmp_path, "v", records), options)
    centred, beside = dataset[0], dataset[1]
    torch.testing.assert_close(centred["vertices"], centred["joints_3d"][:5, :3])
    assert centred["focal_px"] == pytest.approx(300 * 64 / 60)
    assert centred["root_m"].any()
    assert beside["focal_px"] == 0
    assert not beside["root_m"].any()
    with pytest.raises(InputError, match="labelled vertices cannot be mirrored"):
        dataset.with_view(CropParameters(flip=True))[0]


def test_masks_can_be_left_out(path):
    options = MeshOptions(train=True, resolution=32, mask_tokens=(0, 0))
    assert MeshTsvDataset(path, options)[0]["keep_mask"].shape == (0, 1)


def test_label_variants(tmp_path):
    """Leading axes are dropped, missing labels are zeros with a flag of 0."""
    full = mesh_record("body").annotation
    nested = {
        name: np.asarray(value)[None] if np.ndim(value) == 2 else value
        for name, value in full.items()
    }
    bare = {
        "center": [50, 40],
        "scale": 0.3,
        "2d_joints": full["2d_joints"],
        "has_2d_joints": 1,
        "has_3d_joints": 0,
        "has_smpl": 0,
    }
    filler = full | {"has_3d_joints": 0, "has_smpl": 0, "gender": "f"}
    jpeg = mesh_record("body").jpeg
    labels = (full, nested, bare, filler)
    records = [MeshRecord(str(i), jpeg, label) for i, label in enumerate(labels)]
    dataset = MeshTsvDataset(write_mesh_tsv(tmp_path, "v", records))
    assert_same(dataset[0], dataset[1])
    assert not dataset[2]["pose"].any()
    assert not dataset[2]["joints_3d"].any()
    for index, expected in enumerate((1, 1, 0, 0)):
        assert dataset[index]["has_2d"] == 1
        assert dataset[index]["has_3d"] == dataset[index]["has_mesh"] == expected
    assert [dataset.label(i).gender for i in (0, 3)] == ["none", "f"]


def test_line_list_chooses_and_repeats(copied):
    (copied.parent / "x.linelist.tsv").write_text("4\n1\n4\n")
    dataset = MeshTsvDataset(copied)
    assert dataset.image_keys() == ["body_4.jpg", "body_1.jpg", "body_4.jpg"]
    assert_same(dataset[0], dataset[2])


def test_all_rows_without_a_line_list(copied):
    lines = copied.read_text().splitlines()
    copied.write_text("\n".join(line for line in lines if not line.startswith(("linelist", "hw"))))
    dataset = MeshTsvDataset(copied)
    assert len(dataset) == COUNT
    assert dataset.image_keys()[2] == "body_2.jpg"


@pytest.mark.parametrize("listed", [None, ".txt", ".tsv"])
def test_composite(copied, listed):
    """Two sources, named in the YAML or in text files that it names, whatever their suffix."""
    folder = copied.parent
    write_mesh_tsv(folder / "more", "y", [mesh_record("body", 9)])
    entries = ["composite: true", "linelist: both.linelist.tsv"]
    for part in ("img", "label", "hw"):
        files = [f"x.{part}.tsv", f"more/y.{part}.tsv"]
        if listed:
            (folder / f"{part}{listed}").write_text("\n".join(files) + "\n")
            entries.append(f"{part}: {part}{listed}")
        else:
            entries.append(f"{part}: [{', '.join(files)}]")
    (folder / "both.yaml").write_text("\n".join(entries))
    (folder / "both.linelist.tsv").write_text("1\t0\n0\t3\n")
    dataset = MeshTsvDataset(folder / "both.yaml")
    assert dataset.image_keys() == ["y.hw.tsv_body_9.jpg", "x.hw.tsv_body_3.jpg"]
    assert_same(dataset[0], MeshTsvDataset(folder / "more" / "y.yaml")[0])
    (folder / "both.linelist.tsv").write_text("1\t0\n2\t0\n")
    with pytest.raises(InputError, match=r"both.linelist.tsv', line 1: names row 0 of source 2"):
        MeshTsvDataset(folder / "both.yaml")


def test_composite_of_one_source_prefixes_its_keys_too(copied):
    names = {part: f"[x.{part}.tsv]" for part in ("img", "label", "hw")}
    write_yaml(copied, "composite: true", "linelist: one.linelist.tsv", **names)
    (copied.parent / "one.linelist.tsv").write_text("0\t2\n")
    dataset = MeshTsvDataset(copied)
    assert dataset.image_keys() == ["x.hw.tsv_body_2.jpg"]
    assert dataset.read(0).key == "body_2.jpg"  # that of a sample is bare


def test_the_key_is_that_of_the_sizes(copied):
    """The official code reads no other key; others that differ are told once."""
    folder = copied.parent
    lines = (folder / "x.label.tsv").read_text().splitlines()
    write_tsv(folder / "x.label.tsv", [("other", line.split("\t")[1]) for line in lines])
    with pytest.warns(UserWarning, match=r"x.label.tsv', row 0 .*'other'.* 'body_0.jpg'") as told:
        keys = [record.key for record in map(MeshTsvDataset(copied).read, (1, 2))]
    assert keys == ["body_1.jpg", "body_2.jpg"]
    assert len(told) == 1
    write_yaml(copied, img="x.img.tsv", label="x.label.tsv")
    with pytest.warns(UserWarning, match=r"x.img.tsv', row 0 .*key 'body_0.jpg'.* 'other'"):
        assert MeshTsvDataset(copied).read(0).key == "other"  # without sizes, that of the label


def test_a_box_beside_the_picture_is_told(tmp_path):
    """Its plain crop is black, whatever the training makes of it."""
    record = mesh_record("body")
    paths = [
        write_mesh_tsv(
            tmp_path,
            f"x{number}",
            [MeshRecord("a", record.jpeg, dict(record.annotation) | {"center": c, "scale": 0.3})],
        )
        for number, c in enumerate(([1e9, 40], [-31, 40], [-29, 40]))
    ]
    for path in paths[:2]:
        for options in (MeshOptions(resolution=32), TRAIN):
            with pytest.warns(UserWarning, match=r"label.tsv', row 0 .*the box of 60 px.*120 x 90"):
                image = MeshTsvDataset(path, options)[0]["image"]
            assert options.train or not image.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MeshTsvDataset(paths[2], MeshOptions(resolution=32))[0]["image"].any()


def test_missing_offsets_are_searched(copied):
    expected = MeshTsvDataset(copied)[3]
    index = copied.parent / "x.img.lineidx"
    content = index.read_bytes()
    index.unlink()
    with pytest.warns(UserWarning, match=r"x.img.lineidx' is missing: the offsets of 6 rows"):
        assert_same(MeshTsvDataset(copied)[3], expected)
    assert not index.exists()
    with pytest.warns(UserWarning, match="kept in"):
        MeshTsvDataset(copied, write_index=True)
    assert index.read_bytes() == content


def test_search_crosses_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("kinemesh.data.tsv_file._CHUNK_BYTES", 7)
    rows = [[f"key{i}", "x" * i] for i in range(20)]
    write_tsv(tmp_path / "a.tsv", rows)
    offsets = TsvFile(tmp_path / "a.tsv").offsets
    (tmp_path / "a.lineidx").unlink()
    with pytest.warns(UserWarning, match="is missing"):
        file = TsvFile(tmp_path / "a.tsv")
    assert np.array_equal(file.offsets, offsets)
    assert [file.row(i) for i in range(20)] == rows


def test_nothing_is_loaded_whole(copied):
    dataset = MeshTsvDataset(copied)
    dataset[0]
    assert len(pickle.dumps(dataset)) < 3000
    assert (copied.parent / "x.img.tsv").stat().st_size > 6000


def test_written_files_have_the_official_layout(path, kind):
    """Read with nothing but the description of the format: seek, split, take the last column."""
    folder, name = path.parent, path.stem
    entries = dict(line.split(": ") for line in path.read_text().splitlines())
    assert entries == {p: f"{name}.{p}.tsv" for p in ("img", "label", "hw", "linelist")}

    def row(part, number):
        offsets = (folder / entries[part]).with_suffix(".lineidx").read_text().splitlines()
        assert len(offsets) == COUNT
        with (folder / entries[part]).open() as file:
            file.seek(int(offsets[number]))
            return [field.strip() for field in file.readline().split("\t")]

    numbers = [int(line) for line in (folder / entries["linelist"]).read_text().splitlines()]
    assert numbers == list(range(COUNT))
    joints, pose = {"body": (24, 72), "hand": (21, 48)}[kind]
    shapes = {"center": (2,), "scale": (), "2d_joints": (joints, 3), "3d_joints": (joints, 4)}
    shapes |= {"pose": (pose,), "betas": (10,)}
    shapes |= dict.fromkeys(("has_2d_joints", "has_3d_joints", "has_smpl"), ())
    for number, record in zip(numbers, mesh_records(kind, COUNT), strict=True):
        assert {row(part, number)[0] for part in ("img", "label", "hw")} == {record.key}
        assert base64.b64decode(row("img", number)[-1]) == record.jpeg
        assert json.loads(row("hw", number)[-1]) == [{"height": 90, "width": 120}]
        (label,) = json.loads(row("label", number)[-1])
        assert {name: np.shape(value) for name, value in label.items()} == shapes
        assert all(np.array_equal(label[name], record.annotation[name]) for name in shapes)


def test_writer_refuses_what_cannot_be_read(tmp_path):
    record = mesh_record("body")
    with pytest.raises(InputError, match="without tabs"):
        write_mesh_tsv(tmp_path, "x", [MeshRecord("a\tb", record.jpeg, record.annotation)])
    with pytest.raises(InputError, match="expected an encoded picture"):
        write_mesh_tsv(tmp_path, "x", [MeshRecord("a", b"hello", record.annotation)])
    here = MeshRecord("a", b"hello", record.annotation, "the label", "the picture")
    with pytest.raises(InputError, match=r"^the picture: expected an encoded picture"):
        write_mesh_tsv(tmp_path, "x", [here])
    with pytest.raises(InputError, match="at least one record"):
        write_mesh_tsv(tmp_path, "x", [])
    assert not (tmp_path / "x.yaml").exists()


def test_orientation_mark_and_png(tmp_path):
    """PNG bytes are read as well: the reader asks OpenCV, not the name."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    label = dict(mesh_record("hand").annotation) | {"center": [25, 20], "scale": 0.1}
    record = MeshRecord("a.png", encoded(picture, ".png"), label)
    dataset = MeshTsvDataset(write_mesh_tsv(tmp_path, "p", [record]), MeshOptions(resolution=20))
    expected = torch.from_numpy(picture[10:30, 15:35]).permute(2, 0, 1).float() / 255
    assert torch.equal(dataset[0]["image"], expected)


def test_set_moves_with_its_folder(copied, tmp_path):
    expected = MeshTsvDataset(copied)[2]
    shutil.move(copied.parent, tmp_path / "elsewhere")
    assert_same(MeshTsvDataset(tmp_path / "elsewhere" / "x.yaml")[2], expected)
    assert json.loads(
        (tmp_path / "elsewhere" / "x.hw.tsv").read_text().split("\t")[1].split("\n")[0]
    )
