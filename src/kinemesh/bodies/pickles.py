"""Old pickles of arrays, read without running anything that they name.

Model files of SMPL and MANO and the sampling matrices of Mesh Graphormer are pickles of NumPy
arrays, SciPy sparse matrices and chumpy objects, mostly written by Python 2. A pickle is a program:
it names functions and calls them. Here each name it may use stands for a class of this module that
only keeps what it is given, and any other name is refused, so neither NumPy, SciPy nor chumpy runs
on data from the file, and SciPy and chumpy need not be installed.
"""

import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError

_DTYPE_CODE = re.compile(r"[biuf][1248]|[SU]\d+|O8?")
MOST_ROWS = 2**20
"""Rows or columns of a sparse matrix; the largest published mesh has 6890 vertices."""


@dataclass(frozen=True)
class SparseMatrix:
    """A sparse matrix as plain numbers; entries at the same place add up.

    Attributes:
        shape: (rows, columns).
        row: (N,) int64 row of each entry.
        column: (N,) int64 column of each entry.
        value: (N,) values.
    """

    shape: tuple[int, int]
    row: NDArray[np.int64]
    column: NDArray[np.int64]
    value: NDArray[Any]

    def toarray(self) -> NDArray[Any]:
        """The dense matrix."""
        dense = np.zeros(self.shape, self.value.dtype)
        np.add.at(dense, (self.row, self.column), self.value)
        return dense


@dataclass(frozen=True)
class Unreadable:
    """A chumpy expression that holds no array of its own, by the name of its class."""

    origin: str


def load_pickle(path: str | Path) -> Any:
    """Read a pickle of arrays, running nothing.

    Returns:
        What the file holds, with NumPy arrays as arrays, SciPy matrices as `SparseMatrix`, chumpy
        arrays and selections as arrays, and other chumpy objects as `Unreadable`.

    Raises:
        InputError: The file names anything but those types, or it is damaged.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _unpickle(file, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); check the path") from error


def load_npz(path: str | Path, names: tuple[str, ...] | None = None) -> dict[str, NDArray[Any]]:
    """Read arrays of an .npz file; object arrays inside are read as by `load_pickle`.

    Args:
        path: The file.
        names: Only these arrays, as far as the file has them; None for all. The others are not
            touched, whatever they hold.

    Raises:
        InputError: The file is damaged, or an object array names a type that is not allowed.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            held = [name.removesuffix(".npy") for name in archive.namelist()]
            wanted = [name for name in held if names is None or name in names]
            return {name: _read_npy(archive.read(f"{name}.npy"), path) for name in wanted}
    except InputError:
        raise
    except Exception as error:  # a damaged archive may end in an error of any type
        raise InputError(
            f"{path}: expected an .npz file, found: {error or type(error).__name__}; is the file "
            "complete?"
        ) from error


def _read_npy(content: bytes, path: Path) -> NDArray[Any]:
    file = BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    if not dtype.hasobject:
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)
    array = np.asarray(_unpickle(file, path))
    if array.dtype != object or array.shape != shape:
        raise InputError(f"{path}: expected objects of shape {shape}, found {array.shape}")
    return array


def _unpickle(file: IO[bytes], path: Path) -> Any:
    try:
        return _plain(_RestrictedUnpickler(file, path).load(), {})
    except InputError:
        raise
    except Exception as error:  # a damaged pickle may end in any error of any type
        raise InputError(
            f"{path}: expected a complete pickle, found: {error or type(error).__name__}; "
            "download the file again"
        ) from error


class _RestrictedUnpickler(pickle.Unpickler):
    """Knows the names of `_ALLOWED` and of chumpy's classes; strings of Python 2 are Latin-1."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name."""
        if module == "chumpy" or module.startswith("chumpy."):
            return _Sealed(name, (_Chumpy,), {"origin": f"{module}.{name}"})
        if (module, name) not in _ALLOWED:
            raise InputError(
                f"{self.path}: the pickle asks for '{module}.{name}', which is not one of the "
                "array types allowed here, and was not run. Use the official file, or convert "
                "yours to .npz or .safetensors where you trust it"
            )
        return _ALLOWED[module, name]


class _Sealed(type):
    """Type of classes whose attributes a pickle cannot set."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise AttributeError(f"'{cls.__name__}.{name}' cannot be set")


class _Object(metaclass=_Sealed):
    """Stands for ``object``, the base that copyreg names."""

    __slots__ = ()


class _NdArray(metaclass=_Sealed):
    """Stands for ``numpy.ndarray``, which pickles name only as the type to be made."""

    __slots__ = ()


class _Dtype(metaclass=_Sealed):
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: str | bytes, align: bool = False, copy: bool = False) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subarray, names = state[:4]
        if subarray is not None or names is not None:
            raise ValueError("expected arrays of numbers, found structured ones")
        self.order = order.decode("latin1") if isinstance(order, bytes) else order

    def resolved(self) -> np.dtype[Any]:
        if not _DTYPE_CODE.fullmatch(self.code) or self.order not in tuple("<>=|"):
            raise ValueError(f"expected arrays of numbers, found type '{self.order}{self.code}'")
        return np.dtype(self.order + self.code)


class _Array(metaclass=_Sealed):
    """An array of which shape, type and content come from the file."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype[Any] = np.dtype(np.float64)
        self.column_major = False
        self.content: Any = b""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        shape, dtype, self.column_major, content = state[-4:]  # a version number may come before
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(f"expected the shape of an array, found {shape}")
        self.shape, self.dtype = tuple(shape), dtype.resolved()
        self.content = content.encode("latin1") if isinstance(content, str) else content

    def array(self, plain: Callable[[Any], Any]) -> NDArray[Any]:
        """The array; ``plain`` maps the entries of an array of objects."""
        count = prod(self.shape)
        if self.dtype == object:
            if not isinstance(self.content, list) or len(self.content) != count:
                raise ValueError(f"expected {count} objects for an array of shape {self.shape}")
            flat = np.empty(count, object)
            for index, entry in enumerate(self.content):
                flat[index] = plain(entry)
        else:
            if len(self.content) != count * self.dtype.itemsize:
                expected = count * self.dtype.itemsize
                raise ValueError(f"expected {expected} bytes, found {len(self.content)}")
            flat = np.frombuffer(self.content, self.dtype).astype(self.dtype.newbyteorder("="))
        return flat.reshape(self.shape, order="F" if self.column_major else "C")


class _Reconstruct(metaclass=_Sealed):
    """Stands for the function that makes an empty array, whose state follows."""

    def __new__(cls, kind: type, shape: Any, code: Any) -> Any:
        if kind is not _NdArray:
            raise ValueError("expected numpy.ndarray as the type of an array")
        return _Array()


class _FromBuffer(metaclass=_Sealed):
    """Stands for the function that makes an array of bytes, in protocol 5."""

    def __new__(cls, content: Any, dtype: _Dtype, shape: Any, order: str) -> Any:
        array = _Array()
        array.__setstate__((shape, dtype, order == "F", bytes(content)))
        return array


class _Scalar(metaclass=_Sealed):
    """Stands for the function that makes a NumPy scalar."""

    def __new__(cls, dtype: _Dtype, content: Any) -> Any:
        array = _Array()
        array.__setstate__(((), dtype, False, content))
        return array


class _Encode(metaclass=_Sealed):
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes for Python 2."""

    def __new__(cls, text: str, encoding: str) -> Any:
        if encoding not in {"latin1", "latin-1"}:
            raise ValueError(f"expected the encoding latin1, found {encoding!r}")
        return text.encode("latin1")


class _EmptyBytes(metaclass=_Sealed):
    """Stands for ``bytes``, which old protocols call for no bytes."""

    def __new__(cls) -> Any:
        return b""


class _Reconstructor(metaclass=_Sealed):
    """Stands for ``copyreg._reconstructor``, by which old protocols make objects."""

    def __new__(cls, kind: type, base: type, state: Any) -> Any:
        if not (isinstance(kind, _Sealed) and issubclass(kind, _Chumpy | _Sparse)):
            raise ValueError(f"expected a chumpy object or a sparse matrix, found {kind}")
        return kind()


class _Chumpy(metaclass=_Sealed):
    """Stands for any class of chumpy."""

    origin = "chumpy"

    def __init__(self, *args: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def plain(self, plain: Callable[[Any], Any]) -> "NDArray[Any] | Unreadable":
        """The array of a ``Ch``, or what a ``Select`` picks from one."""
        if "x" in self.state:
            return np.asarray(plain(self.state["x"]))
        if {"a", "idxs"} <= set(self.state):
            source, index = plain(self.state["a"]), np.asarray(plain(self.state["idxs"]))
            if isinstance(source, np.ndarray):
                picked: NDArray[Any] = source.ravel()[index]
                shape = self.state.get("preferred_shape", picked.shape)
                return picked.reshape([int(size) for size in plain(shape)])
        return Unreadable(self.origin)


class _Sparse(metaclass=_Sealed):
    """Stands for a sparse matrix of SciPy, compressed by columns unless a subclass says more."""

    by_rows = False

    def __init__(self, *args: Any) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state

    def plain(self, plain: Callable[[Any], Any]) -> SparseMatrix:
        """The matrix, checked."""
        rows, columns = (int(size) for size in self.state["_shape"])
        if not (0 < rows <= MOST_ROWS and 0 < columns <= MOST_ROWS):
            raise ValueError(f"a sparse matrix has the shape {(rows, columns)}")
        row, column = self._places(plain)
        value = np.asarray(plain(self.state["data"]))
        if value.dtype.kind not in "biuf":
            raise ValueError(f"a sparse matrix holds values of type {value.dtype}")
        for name, index, size in (("row", row, rows), ("column", column, columns)):
            if index.shape != value.shape or (index.size and not 0 <= index.min() <= index.max()):
                raise ValueError(
                    f"a sparse matrix has {index.size} {name}s for {value.size} values"
                )
            if index.size and index.max() >= size:
                raise ValueError(f"a sparse matrix has {size} {name}s and an entry in another")
        return SparseMatrix((rows, columns), row, column, value)

    def _places(self, plain: Callable[[Any], Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        start, inner = (
            np.asarray(plain(self.state[key])).astype(np.int64) for key in ("indptr", "indices")
        )
        counts = start[1:] - start[:-1]
        if start.ndim != 1 or not len(counts) or counts.min() < 0 or counts.sum() != inner.size:
            raise ValueError(f"a sparse matrix has {inner.size} entries and others in its index")
        outer = np.repeat(np.arange(len(counts)), counts)
        return (outer, inner) if self.by_rows else (inner, outer)


class _SparseByRows(_Sparse):
    """Stands for a matrix compressed by rows."""

    by_rows = True


class _SparseList(_Sparse):
    """Stands for a matrix that lists row, column and value of each entry."""

    def _places(self, plain: Callable[[Any], Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        row, column = self.state.get("coords") or (self.state["row"], self.state["col"])
        return np.asarray(plain(row)).astype(np.int64), np.asarray(plain(column)).astype(np.int64)


def _plain(value: Any, done: dict[int, Any]) -> Any:
    """A value with all stand-ins replaced; ``done`` keeps what was replaced, by identity."""
    if id(value) in done:
        return done[id(value)]

    def plain(entry: Any) -> Any:
        return _plain(entry, done)

    result = value
    if isinstance(value, _Array):
        result = value.array(plain)
    elif isinstance(value, _Chumpy | _Sparse):
        result = value.plain(plain)
    elif isinstance(value, dict):
        result = {key: plain(entry) for key, entry in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(plain(entry) for entry in value)
    done[id(value)] = result
    return result


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_BUILTINS = ("__builtin__", "builtins")
_COPYREG = ("copy_reg", "copyreg")
_FORMATS = {"csc": _Sparse, "csr": _SparseByRows, "coo": _SparseList}

_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NdArray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encode,
    ("collections", "OrderedDict"): dict,
    **{(module, "_reconstruct"): _Reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): _Scalar for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _FromBuffer for module in _NUMERIC},
    **{(module, "_reconstructor"): _Reconstructor for module in _COPYREG},
    **{(module, "object"): _Object for module in _BUILTINS},
    **{(module, "set"): set for module in _BUILTINS},
    **{(module, "bytes"): _EmptyBytes for module in _BUILTINS},
    **{
        (f"scipy.sparse.{prefix}{form}", f"{form}_{suffix}"): kind
        for form, kind in _FORMATS.items()
        for prefix in ("", "_")
        for suffix in ("matrix", "array")
    },
}
"""(module, name) in a pickle -> what stands for it."""
