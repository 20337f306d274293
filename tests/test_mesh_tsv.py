"""TSV data sets: what is written is read, whatever is damaged is named."""

import json
import multiprocessing
import pickle
import shutil

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
from tests.mesh_records import encoded, mesh_record, mesh_records

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


@pytest.mark.parametrize("listed", [False, True])
def test_composite(copied, listed):
    """Two sources, named in the YAML or in text files that it names."""
    folder = copied.parent
    write_mesh_tsv(folder / "more", "y", [mesh_record("body", 9)])
    entries = ["composite: true", "linelist: both.linelist.tsv"]
    for part in ("img", "label", "hw"):
        files = [f"x.{part}.tsv", f"more/y.{part}.tsv"]
        if listed:
            (folder / f"{part}.txt").write_text("\n".join(files) + "\n")
            entries.append(f"{part}: {part}.txt")
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
        r"x.label.tsv', row 5 .*expected a complete JPEG, found one that ends early",
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
        r"x.label.tsv', row 2 .*: expected a complete JPEG, found 5 bytes",
    ),
    "one column": (
        lambda f: replace_row(f, "img", 2, "body_2.jpg"),
        r"x.img.tsv', row 2 .*expected a key and a value",
    ),
    "another key": (
        lambda f: replace_row(f, "label", 2, "other\t[{}]"),
        r"x.img.tsv', row 2 .*expected the image 'other'",
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


def test_writer_refuses_what_cannot_be_read(tmp_path):
    record = mesh_record("body")
    with pytest.raises(InputError, match="without tabs"):
        write_mesh_tsv(tmp_path, "x", [MeshRecord("a\tb", record.jpeg, record.annotation)])
    with pytest.raises(InputError, match="expected an encoded picture"):
        write_mesh_tsv(tmp_path, "x", [MeshRecord("a", b"hello", record.annotation)])
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
