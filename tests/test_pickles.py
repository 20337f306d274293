"""The restricted unpickler: old files are read, and nothing that they name is run."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from kinemesh.bodies.pickles import SparseMatrix, Unreadable, load_npz, load_pickle
from kinemesh.errors import InputError
from tests.body_fixtures import chumpy_pickle, python2_pickle, smpl_arrays, write_smpl_assets


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file.pkl"
    path.write_bytes(content)
    return path


def values() -> dict:
    return {
        "rows": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "bytes": np.arange(3, dtype=np.uint8),
        "truth": np.array([True, False]),
        "text": np.array(["a", "bc"]),
        "empty": np.zeros((0, 3), np.float32),
        "none": np.array(3.5),
        "objects": np.array([1, "x", None], dtype=object),
        "scalar": np.float32(2.5),
        "nested": [(np.arange(2), {"deep": np.arange(3)})],
    }


def assert_same(found: object, expected: object) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict)
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert isinstance(found, list | tuple)
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        np.testing.assert_array_equal(found, expected)
        assert np.asarray(found).dtype == np.asarray(expected).dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    path = written(tmp_path, pickle.dumps(values(), protocol=protocol))
    assert_same(load_pickle(path), values())


def test_arrays_of_python_2(tmp_path: Path) -> None:
    held = {key: value for key, value in values().items() if key != "text"}
    assert_same(load_pickle(written(tmp_path, python2_pickle(held))), held)


@pytest.mark.parametrize(
    ("protocol", "old_path"), [(0, True), (2, True), (0, False), (2, False), (5, False)]
)
@pytest.mark.parametrize("form", ["csc", "csr", "coo"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
def test_sparse_matrices(
    tmp_path: Path, protocol: int, old_path: bool, form: str, kind: str
) -> None:
    dense = np.array([[0, 2.0, 0], [0, 0, 0], [1, 0, 3]])
    content = pickle.dumps(getattr(sparse, f"{form}_{kind}")(dense), protocol=protocol)
    if old_path:  # as SciPy named its modules before 1.8
        new, old = f"scipy.sparse._{form}".encode(), f"scipy.sparse.{form}".encode()
        assert new in content
        content = content.replace(new, old)
    found = load_pickle(written(tmp_path, content))
    assert isinstance(found, SparseMatrix)
    assert found.shape == (3, 3)
    np.testing.assert_array_equal(found.toarray(), dense)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("_shape", (2**47, 3), "has the shape"),
        ("_shape", (-3, 3), "has the shape"),
        ("indptr", np.array([0, 2**40, 2**40, 3]), "has 3 entries and others in its index"),
        ("indptr", np.array([0, 4, 2, 3]), "has 3 entries and others in its index"),
        ("data", np.array([1, "a", None], dtype=object), "values of type object"),
    ],
)
def test_damaged_sparse_matrices(tmp_path: Path, field: str, value: object, message: str) -> None:
    matrix = sparse.csc_matrix(np.array([[0, 2.0, 0], [0, 0, 0], [1, 0, 3]]))
    setattr(matrix, field, value) if field == "_shape" else matrix.__dict__.update({field: value})
    with pytest.raises(InputError, match=rf"file\.pkl: expected a complete pickle.*{message}"):
        load_pickle(written(tmp_path, pickle.dumps(matrix)))


def test_headers_of_any_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "file.npz", A=np.zeros((3, 3)))
    content = (tmp_path / "file.npz").read_bytes()
    huge = tmp_path / "huge.npz"
    with zipfile.ZipFile(tmp_path / "file.npz") as held, zipfile.ZipFile(huge, "w") as damaged:
        header = held.read("A.npy").replace(b"(3, 3), }" + b" " * 12, b"(99999999999, 3), }  ")
        damaged.writestr("A.npy", header)
    assert b"99999999999" in huge.read_bytes() != content
    with pytest.raises(InputError, match=r"huge\.npz: expected an \.npz file"):
        load_npz(huge)


def test_entries_at_the_same_place_add_up() -> None:
    one, two = np.array([0, 0]), np.array([1, 1])
    matrix = SparseMatrix((1, 2), one, two, np.array([2.0, 3.0]))
    np.testing.assert_array_equal(matrix.toarray(), [[0, 5.0]])


def test_chumpy_objects_become_arrays(tmp_path: Path) -> None:
    assert "chumpy" not in sys.modules
    arrays = smpl_arrays(60)
    found = load_pickle(written(tmp_path, chumpy_pickle(arrays)))
    for key, expected in arrays.items():
        value = found[key]
        dense = value.toarray() if isinstance(value, SparseMatrix) else value
        np.testing.assert_array_equal(dense, expected, err_msg=key)
        assert dense.dtype == expected.dtype
    assert found["bs_type"] == "lrotmin"


def test_chumpy_expressions_are_named_not_evaluated(tmp_path: Path) -> None:
    content = b"cchumpy.ch\nMatVecMult\n)\x81}b."
    assert load_pickle(written(tmp_path, b"\x80\x02" + content)) == Unreadable(
        "chumpy.ch.MatVecMult"
    )


def test_neither_scipy_nor_chumpy_is_needed(tmp_path: Path) -> None:
    path = write_smpl_assets(tmp_path, 60)
    code = (
        "import sys; sys.modules.update(scipy=None, chumpy=None)\n"
        "from kinemesh.bodies import smpl_topology\n"
        f"assert len(smpl_topology({str(path.parent)!r}).coarse) == 4"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class Malicious:
    """Makes a file when it is unpickled in the usual way."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "os.system": lambda mark: Malicious(os.system, f"touch {mark}"),
    "eval": lambda mark: Malicious(eval, f"open({str(mark)!r}, 'w')"),
    "getattr": lambda mark: Malicious(getattr, object, "__subclasses__"),
    "os.open": lambda mark: Malicious(os.open, str(mark), os.O_CREAT),
    "numpy.load": lambda mark: Malicious(np.load, str(mark)),
    "partial": lambda mark: Malicious(__import__("functools").partial, os.system),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_run(tmp_path: Path, attack: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    held = {"v_template": np.zeros(3), "f": ATTACKS[attack](mark)}
    path = written(tmp_path, pickle.dumps(held, protocol=protocol))
    with pytest.raises(InputError, match=r"file\.pkl: the pickle asks for '[\w.]+'"):
        load_pickle(path)
    assert not mark.exists()


def test_attacks_do_harm_when_unpickled_in_the_usual_way(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(ATTACKS["os.system"](mark)))
    assert mark.exists(), "the test above would pass with a harmless pickle, too"


def test_object_arrays_in_npz_are_as_safe(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    array = np.array([np.zeros(2), ATTACKS["os.system"](mark)], dtype=object)
    np.savez(tmp_path / "file.npz", A=array, B=np.arange(3))
    with pytest.raises(InputError, match=r"file\.npz: the pickle asks for 'posix\.system'"):
        load_npz(tmp_path / "file.npz")
    assert not mark.exists()
    found = load_npz(tmp_path / "file.npz", ("B", "C"))
    assert list(found) == ["B"]
    np.testing.assert_array_equal(found["B"], np.arange(3))


def test_extension_codes_are_not_a_way_round(tmp_path: Path) -> None:
    import copyreg

    copyreg.add_extension("os", "system", 240)
    try:
        path = written(tmp_path, b"\x80\x02\x82\xf0U\x04trueq\x00\x85R.")
        with pytest.raises(InputError, match=r"asks for 'os\.system'"):
            load_pickle(path)
    finally:
        copyreg.remove_extension("os", "system", 240)


def test_stand_ins_cannot_be_changed(tmp_path: Path) -> None:
    """A state for the class itself would else outlive the file."""
    swap = b"\x80\x02cnumpy\nndarray\nN}X\x07\x00\x00\x00__len__K\x01s\x86b."
    with pytest.raises(InputError, match="cannot be set"):
        load_pickle(written(tmp_path, swap))
    path = written(tmp_path, pickle.dumps(np.arange(3)))
    np.testing.assert_array_equal(load_pickle(path), np.arange(3))


def array_pickle(code: str, shape: tuple, content: object) -> bytes:
    """An array with a made-up state, in Python 2's form."""

    class State:
        def __init__(self, reduced):
            self.reduced = reduced

        def __reduce__(self):
            return self.reduced

    dtype = State((np.dtype, (code, False, True)))
    reconstruct = np.zeros(1).__reduce__()[0]
    array = State((reconstruct, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content)))
    return pickle.dumps(array, protocol=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (array_pickle("f8", (2,), b"\0" * 16), None),
        (array_pickle("f8", (3,), b"\0" * 16), "expected 24 bytes, found 16"),
        (array_pickle("f8", (2**40,), b""), "found 0"),
        (array_pickle("f8", (-1,), b""), "shape of an array"),
        (array_pickle("O", (1,), b"\0" * 8), "expected 1 objects"),
        (array_pickle("V8", (1,), b"\0" * 8), "type '=V8'"),
        (array_pickle("f8,O", (1,), b"\0" * 16), "type '=f8,O'"),
    ],
)
def test_arrays_are_checked(tmp_path: Path, content: bytes, message: str | None) -> None:
    path = written(tmp_path, content)
    if message is None:
        np.testing.assert_array_equal(load_pickle(path), np.zeros(2))
        return
    with pytest.raises(InputError, match=message):
        load_pickle(path)


@pytest.mark.parametrize("entry", [5, -1])
def test_sparse_indices_are_checked(tmp_path: Path, entry: int) -> None:
    matrix = sparse.csc_matrix(np.eye(3))
    matrix.indices[1] = entry
    with pytest.raises(InputError, match="sparse matrix"):
        load_pickle(written(tmp_path, pickle.dumps(matrix)))


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = pickle.dumps(values(), protocol=2)
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InputError, match="expected a complete pickle"):
            load_pickle(written(tmp_path, whole[:size]))
    with pytest.raises(InputError, match="check the path"):
        load_pickle(tmp_path / "absent.pkl")


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.npz"
    path.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"file\.npz: expected an \.npz file"):
        load_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("A.npy", b"not an array")
    with pytest.raises(InputError, match=r"expected an \.npz file"):
        load_npz(path)
    with zipfile.ZipFile(path, "w") as archive:
        file = io.BytesIO()
        header = {"descr": "|O", "fortran_order": False, "shape": (3,)}
        np.lib.format.write_array_header_1_0(file, header)
        archive.writestr("A.npy", file.getvalue() + pickle.dumps(np.zeros(2)))
    with pytest.raises(InputError, match=r"expected objects of shape \(3,\)"):
        load_npz(path)
