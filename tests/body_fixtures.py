"""Made-up bodies and hands in the file formats of SMPL, MANO and the official sampling files.

Nothing here derives from a registration-gated model: the shapes are flattened balls whose joints,
blend shapes and weights come from formulas and seeds. Only the file names, keys, types and the
conventions are the official ones, so that whoever reads these files reads a user's files, too.
"""

import contextlib
import io
import itertools
import pickle
import sys
import types
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from scipy import sparse
from scipy.spatial import ConvexHull, KDTree

Arrays = dict[str, np.ndarray]

SMPL_VERTICES, MANO_VERTICES = 6890, 778
SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
SMPL_FILES = {"pkl": "basicModel_{}_lbs_10_207_0_v1.0.0.pkl", "npz": "SMPL_{}.npz"}
MANO_TIPS = (745, 317, 444, 556, 673)  # thumb, index, middle, ring, little finger
ROOT_PARENT = 2**32 - 1  # -1 as the official files hold it
REGRESSOR_SUM = 0.9997  # the rows of the published regressors do not sum to one either

BODY_HALF_AXES = np.array([0.85, 0.92, 0.16])
BODY_CENTER = np.array([0.0, -0.3, 0.02])
# x to the person's left, y up, z forward; the left half of the limbs
_LIMBS = {
    "hip": (0.07, -0.32),
    "knee": (0.10, -0.70),
    "ankle": (0.11, -1.08),
    "foot": (0.12, -1.14),
}
_ARMS = {
    "collar": (0.07, 0.19),
    "shoulder": (0.18, 0.22),
    "elbow": (0.43, 0.21),
    "wrist": (0.68, 0.21),
    "hand": (0.76, 0.20),
}
_SPINE = {
    "pelvis": (0.0, -0.22),
    "spine_1": (0.0, -0.11),
    "spine_2": (0.0, 0.02),
    "spine_3": (0.0, 0.08),
    "neck": (0.0, 0.29),
    "head": (0.0, 0.38),
}
_SMPL_JOINTS = (
    *("pelvis", "+hip", "-hip", "spine_1", "+knee", "-knee", "spine_2", "+ankle", "-ankle"),
    *("spine_3", "+foot", "-foot", "neck", "+collar", "-collar", "head", "+shoulder"),
    *("-shoulder", "+elbow", "-elbow", "+wrist", "-wrist", "+hand", "-hand"),
)
_H36M_JOINTS = (
    *("pelvis", "-hip", "-knee", "-ankle", "+hip", "+knee", "+ankle", "spine_2", "neck", "head"),
    *("head", "+shoulder", "+elbow", "+wrist", "-shoulder", "-elbow", "-wrist"),
)
_EXTRA_JOINTS = (  # nose, eyes and ears first
    *("head",) * 5,
    *("-hip", "+hip", "neck", "head", "pelvis", "spine_3", "spine_2", "neck", "head"),
)


def write_smpl_assets(
    folder: Path, vertices: int = SMPL_VERTICES, form: str = "pkl", gender: str = "neutral"
) -> Path:
    """Everything a SMPL-shaped network needs, under the official names; the model file's path.

    Levels have a quarter of the vertices of the level before, rounded up: 6890, 1723 and 431, or
    60, 15 and 4. ``form`` is ``"pkl"``, ``"npz"`` or ``"safetensors"``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    short = {"neutral": "neutral", "male": "m", "female": "f"}[gender]
    name = "SMPL_{}." + form if form != "pkl" else SMPL_FILES["pkl"]
    path = folder / name.format(short if form == "pkl" else gender.upper())
    write_model(path, smpl_arrays(vertices, seed=1 + ("neutral", "male", "female").index(gender)))
    levels = _levels(_smpl_directions(vertices), 3)
    write_sampling(folder / "mesh_downsampling.npz", levels)
    np.save(folder / "J_regressor_h36m_correct.npy", h36m_regressor(vertices))
    np.save(folder / "J_regressor_extra.npy", _regressor(_body_places(_EXTRA_JOINTS), vertices))
    _write_adjacency(folder, "smpl_431", levels[2])
    np.save(folder / "smpl_431_faces.npy", _hull(levels[2]))
    return path


def write_mano_assets(folder: Path, form: str = "pkl") -> Path:
    """Everything a MANO-shaped network needs, under the official names; the model file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"MANO_RIGHT.{form}"
    write_model(path, mano_arrays())
    levels = _levels(_mano_directions(), 5)
    write_sampling(folder / "mano_downsampling.npz", levels)
    _write_adjacency(folder, "mano_195", levels[1])
    return path


def write_model(path: Path, arrays: Arrays) -> None:
    """One model file in the form that its suffix names."""
    if path.suffix == ".safetensors":
        save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, path)
    elif path.suffix == ".npz":
        np.savez(path, **arrays, bs_type=np.array("lrotmin"))
    else:
        path.write_bytes(chumpy_pickle(arrays))


def smpl_arrays(vertices: int = SMPL_VERTICES, seed: int = 1, betas: int = 10) -> Arrays:
    """A standing body of 24 joints: y up, facing +z, left at +x, metres."""
    template = _smpl_directions(vertices) * BODY_HALF_AXES + BODY_CENTER
    return _model(template, _hull(_smpl_directions(vertices)), SMPL_PARENTS, betas, seed) | {
        "J_regressor": _regressor(_body_places(_SMPL_JOINTS), vertices),
    }


def mano_arrays(seed: int = 7, betas: int = 10) -> Arrays:
    """A right hand of 16 joints that stretches along +x from the wrist, metres."""
    directions, joints = _mano_directions(), _hand_places()
    template = _hand_surface(directions)
    rng = np.random.default_rng(seed + 100)
    return _model(template, _hull(directions), MANO_PARENTS, betas, seed) | {
        "J_regressor": _nearest_weights(joints, template),
        "hands_mean": 0.2 * rng.standard_normal(45),
        "hands_components": np.linalg.qr(rng.standard_normal((45, 45)))[0],
    }


def h36m_regressor(vertices: int = SMPL_VERTICES) -> np.ndarray:
    """(17, V) regressor of the Human3.6M joints; its rows sum to a little less than one."""
    return REGRESSOR_SUM * _regressor(_body_places(_H36M_JOINTS), vertices)


def _model(
    template: np.ndarray, faces: np.ndarray, parents: tuple[int, ...], betas: int, seed: int
) -> Arrays:
    """Smooth blend shapes and skinning weights for a template; keys and types as in the files."""
    rng = np.random.default_rng(seed)
    size, joints = np.ptp(template, axis=0).max(), len(parents)
    scaled = template / size
    waves = np.sin(scaled @ rng.normal(0, 4, (3, 16)) + rng.uniform(0, 6, 16))
    shape = rng.normal(0, 0.01 * size, (16, 3 * betas))
    pose = rng.normal(0, 0.003 * size, (16, 27 * (joints - 1)))
    centers = np.asarray(_body_places(_SMPL_JOINTS) if joints == 24 else _hand_places())
    squared = np.square(scaled[:, None] - centers / size).sum(-1)
    weights = np.exp(-squared / 0.005)
    kept = weights * (weights >= np.sort(weights, axis=1)[:, -4:-3])
    return {
        "v_template": template,
        "f": faces.astype(np.uint32),
        "shapedirs": (waves @ shape).reshape(len(template), 3, betas),
        "posedirs": (waves @ pose).reshape(len(template), 3, 9 * (joints - 1)),
        "weights": kept / kept.sum(1, keepdims=True),
        "kintree_table": np.array([(ROOT_PARENT, *parents[1:]), range(joints)], dtype=np.uint32),
    }


@cache
def _sphere(count: int) -> np.ndarray:
    """(count, 3) unit vectors, spread evenly along a spiral (Fibonacci lattice)."""
    height = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (3 - np.sqrt(5)) * np.arange(count)
    ring = np.sqrt(1 - height**2)
    return np.stack([ring * np.cos(angle), height, ring * np.sin(angle)], axis=1)


@cache
def _smpl_directions(vertices: int) -> np.ndarray:
    return _sphere(vertices)[np.random.default_rng(0).permutation(vertices)]


@cache
def _mano_directions() -> np.ndarray:
    """Shuffled, then the vertices of the finger tips moved to the ends of the fingers."""
    directions = _sphere(MANO_VERTICES)[np.random.default_rng(1).permutation(MANO_VERTICES)]
    ends = _finger_ends()[[4, 0, 1, 1, 3, 2]]  # 444 and 445 both lie on the middle finger
    for vertex, end in zip((745, 317, 444, 445, 556, 673), ends, strict=True):
        distance = np.linalg.norm(_hand_surface(directions) - end, axis=1)
        if vertex == 445:
            distance[444] = np.inf
        nearest = int(distance.argmin())
        directions[[vertex, nearest]] = directions[[nearest, vertex]]
    return directions


def _hand_surface(directions: np.ndarray) -> np.ndarray:
    return directions * [0.095, 0.018, 0.05] + [0.085, 0.0, 0.0]


def _finger_ends() -> np.ndarray:
    """(5, 3) tips of index, middle, little, ring finger and thumb: the order of MANO's joints."""
    across = np.array([0.026, 0.008, -0.030, -0.012, 0.040])
    along = np.array([0.165, 0.178, 0.145, 0.168, 0.110])
    return np.stack([along, np.zeros(5), across], axis=1)


def _hand_places() -> np.ndarray:
    """(16, 3) wrist, then three joints from palm to tip for each finger."""
    steps = np.array([0.5, 0.7, 0.85])
    fingers = _finger_ends()[:, None] * steps[:, None]
    return np.concatenate([np.zeros((1, 3)), fingers.reshape(15, 3)])


def _body_places(names: tuple[str, ...]) -> np.ndarray:
    places = _SPINE | {
        sign + name: (x if sign == "+" else -x, y)
        for sign in "+-"
        for name, (x, y) in (_LIMBS | _ARMS).items()
    }
    return np.array([(*places[name], 0.0) for name in names])


def _regressor(places: np.ndarray, vertices: int) -> np.ndarray:
    return _nearest_weights(places, _smpl_directions(vertices) * BODY_HALF_AXES + BODY_CENTER)


def _nearest_weights(places: np.ndarray, template: np.ndarray, neighbours: int = 8) -> np.ndarray:
    """(J, V): each place as a mean of its nearest vertices."""
    distance, index = KDTree(template).query(places, neighbours)
    weights = np.zeros((len(places), len(template)))
    np.put_along_axis(weights, index, 1 / (distance + 0.01), axis=1)
    return weights / weights.sum(1, keepdims=True)


def _hull(directions: np.ndarray) -> np.ndarray:
    """(F, 3) triangles of points on the unit sphere, counter-clockwise seen from outside."""
    hull = ConvexHull(directions)
    faces = hull.simplices.astype(np.int64)
    corners = directions[faces]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    inward = (normal * corners[:, 0]).sum(1) < 0
    faces[inward] = faces[inward][:, ::-1]
    return faces


def _levels(directions: np.ndarray, count: int) -> list[np.ndarray]:
    """Points of each level: a quarter of the level before."""
    levels = [directions]
    while len(levels) < count:
        levels.append(levels[-1][_kept(levels[-1])])
    return levels


def _kept(directions: np.ndarray) -> np.ndarray:
    """A quarter of the vertices, each the farthest from those before it."""
    kept = [len(directions) // 2]
    distance = np.full(len(directions), np.inf)
    while len(kept) < -(-len(directions) // 4):
        distance = np.minimum(distance, np.square(directions - directions[kept[-1]]).sum(1))
        kept.append(int(distance.argmax()))
    return np.array(kept)


def _adjacency(directions: np.ndarray, value: float = 2.0) -> sparse.csc_matrix:
    faces, count = _hull(directions), len(directions)
    first, second = faces[:, [0, 1, 2, 1, 2, 0]].T.ravel(), faces[:, [1, 2, 0, 0, 1, 2]].T.ravel()
    matrix = sparse.csc_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    matrix.data[:] = value  # the official matrices hold twos
    return matrix


def write_sampling(path: Path, points: list[np.ndarray]) -> None:
    """Object arrays: A, U, D of pickled sparse matrices, F of faces; one entry a level or step."""
    down, up = [], []
    for fine, coarse in itertools.pairwise(points):
        kept = KDTree(fine).query(coarse)[1]
        one_hot = (np.ones(len(kept)), (np.arange(len(kept)), kept))
        down.append(sparse.csc_matrix(one_hot, shape=(len(kept), len(fine))))
        distance, index = KDTree(coarse).query(fine, 3)
        weight = 1 / (distance + 1e-6)
        weight /= weight.sum(1, keepdims=True)
        rows = np.repeat(np.arange(len(fine)), 3)
        up.append(
            sparse.csc_matrix(
                (weight.ravel(), (rows, index.ravel())), shape=(len(fine), len(coarse))
            )
        )
    held = {
        "A": [_adjacency(level) for level in points],
        "U": up,
        "D": down,
        "F": [_hull(level).astype(np.uint32) for level in points],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for key, values in held.items():
            archive.writestr(f"{key}.npy", _object_array(values))


def _object_array(values: list) -> bytes:
    """The bytes of a .npy file that holds objects, pickled as by Python 2."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": (len(values),)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + python2_pickle(array)


def _write_adjacency(folder: Path, name: str, directions: np.ndarray) -> None:
    """Row-normalised neighbourhood with self loops in three files, in PyTorch's old format."""
    count = len(directions)
    dense = (_adjacency(directions).toarray() > 0) + np.eye(count)
    indices = np.stack(np.nonzero(dense))
    values = (dense / dense.sum(1, keepdims=True))[tuple(indices)].astype(np.float32)
    parts = {
        "indices": torch.from_numpy(indices),
        "values": torch.from_numpy(values),
        "size": torch.Size([count, count]),
    }
    for part, value in parts.items():
        path = folder / f"{name}_adjmat_{part}.pt"
        torch.save(value, path, _use_new_zipfile_serialization=False)


class _Python2Pickler(pickle._Pickler):
    """Writes what Python 2 wrote: byte strings for text, and the module names of old packages."""

    dispatch = pickle._Pickler.dispatch.copy()
    renamed = types.MappingProxyType(
        {
            "numpy._core.multiarray": "numpy.core.multiarray",
            "scipy.sparse._csc": "scipy.sparse.csc",
            "copyreg": "copy_reg",
            "builtins": "__builtin__",
        }
    )

    def save_text(self, obj):
        content = obj.encode("latin1") if isinstance(obj, str) else obj
        if len(content) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(content)]) + content)
        else:
            self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(obj)

    def save_global(self, obj, name=None):
        module = self.renamed.get(obj.__module__, obj.__module__)
        self.write(pickle.GLOBAL + f"{module}\n{name or obj.__qualname__}\n".encode())
        self.memoize(obj)

    dispatch[str] = dispatch[bytes] = save_text
    dispatch[type] = dispatch[types.FunctionType] = save_global


def python2_pickle(value: object) -> bytes:
    """Protocol 2, as Python 2 wrote it."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


@contextlib.contextmanager
def _chumpy() -> Iterator[tuple[type, type]]:
    """Classes named ``chumpy.ch.Ch`` and ``chumpy.reordering.Select`` that a pickle can name."""
    names = {"chumpy.ch": "Ch", "chumpy.reordering": "Select"}
    made = {name: type(name, (), {"__module__": module}) for module, name in names.items()}
    modules = {module: types.ModuleType(module) for module in ("chumpy", *names)}
    for module, name in names.items():
        setattr(modules[module], name, made[name])
    assert not set(modules) & set(sys.modules), "chumpy is not meant to be installed"
    sys.modules.update(modules)
    try:
        yield made["Ch"], made["Select"]
    finally:
        for module in modules:
            del sys.modules[module]


def chumpy_pickle(arrays: Arrays) -> bytes:
    """A model file in the old form: template and shapes as chumpy objects, a sparse regressor."""
    with _chumpy() as (differentiable, selection):

        def wrapped(value):
            held = differentiable()
            held.__dict__ |= {"x": value, "_dirty_vars": set(), "_cache": {"drs": {}}, "_itr": None}
            return held

        shapes = selection()
        held = arrays["shapedirs"]
        # A file may hold a selection of a larger array; this one drops a row in front.
        padded = np.concatenate([np.zeros(5), held.ravel()])
        shapes.__dict__ |= {
            "a": wrapped(padded),
            "idxs": np.arange(5, len(padded)),
            "preferred_shape": held.shape,
        }
        content = arrays | {
            "v_template": wrapped(arrays["v_template"]),
            "shapedirs": shapes,
            "J_regressor": sparse.csc_matrix(arrays["J_regressor"]),
            "bs_style": "lbs",
            "bs_type": "lrotmin",
        }
        return python2_pickle(content)
