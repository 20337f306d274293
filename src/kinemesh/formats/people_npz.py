"""People as NumPy arrays in one .npz file; the keys are listed in docs/predict.md."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import bone_names
from kinemesh.errors import InputError
from kinemesh.files import write_bytes
from kinemesh.formats.people_json import FORMAT, VERSION, check_format
from kinemesh.inference.person import Person, PhotoCamera


def encode_people_npz(
    people: Sequence[Person], image_size: tuple[int, int], *, compress: bool = True
) -> bytes:
    """People as the bytes of an .npz file.

    N people stand along the first axis of every array; ``faces`` holds the distinct face tables and
    ``faces_index`` which of them each person uses. Arrays of ``parameters`` and of expected errors
    are there if anybody has them; those of a person without are NaN.

    Args:
        people: People of one photo, all with the same skeleton and number of vertices.
        image_size: Width and height of the photo in pixels.
        compress: Whether the arrays are compressed, which takes ten times as long.

    Raises:
        InputError: Bodies and hands are mixed.
    """
    if len({(person.skeleton, person.vertices.shape, person.faces.shape) for person in people}) > 1:
        raise InputError(
            "One .npz holds people of one topology, found several (bodies and hands). "
            "Save each kind in its own file."
        )
    tables, indices = _face_tables(people)
    arrays: dict[str, Any] = {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "image_size": np.array(image_size),
        "focal_px": np.array(people[0].camera.focal_px if people else np.nan),
        "principal_px": np.array(people[0].camera.principal_px if people else (np.nan, np.nan)),
        "skeleton": np.array(people[0].skeleton if people else ""),
        "vertices": _stack([p.vertices for p in people], (0, 3), np.float32),
        "joints": _stack([p.joints for p in people], (0, 3), np.float32),
        "joints_px": _stack([p.joints_px for p in people], (0, 2), np.float32),
        "joint_confidence": _stack([p.joint_confidence for p in people], (0,), np.float32),
        "boxes_px": _stack([np.array(p.box_px) for p in people], (4,), np.float64),
        "scores": np.array([p.score for p in people], np.float64),
        "sides": np.array([p.side or "" for p in people], dtype="U5"),
        "faces": _stack(tables, (0, 3), np.int32),
        "faces_index": np.array(indices, np.int64),
    } | {**_parameter_arrays(people), **_spread_arrays(people)}
    if any(person.owner is not None for person in people):
        owners = [-1 if person.owner is None else person.owner for person in people]
        arrays["owners"] = np.array(owners, np.int64)
    stream = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(stream, **arrays)
    return stream.getvalue()


def write_people_npz(
    path: str | Path, people: Sequence[Person], image_size: tuple[int, int]
) -> None:
    """Write `encode_people_npz` to a file, atomically.

    Raises:
        InputError: Bodies and hands are mixed.
        OSError: The file cannot be written.
    """
    write_bytes(path, encode_people_npz(people, image_size))


def read_people_npz(path: str | Path) -> list[Person]:
    """Read people back, bit for bit.

    Raises:
        InputError: The file cannot be read or is not this format and version.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, AttributeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"Expected an .npz file, found something else in '{path}'.") from error
    check_format(str(arrays.get("format")), path)
    if int(arrays["version"]) != VERSION:
        raise InputError(f"'{path}' has version {arrays['version']}, this release reads {VERSION}.")
    return [_read_person(arrays, index) for index in range(len(arrays["vertices"]))]


def _read_person(arrays: dict[str, np.ndarray], index: int) -> Person:
    width, height = arrays["image_size"].tolist()
    x, y, box_width, box_height = arrays["boxes_px"][index].tolist()
    principal_x, principal_y = arrays["principal_px"].tolist()
    side = str(arrays["sides"][index])
    owner = int(arrays["owners"][index]) if "owners" in arrays else -1
    return Person(
        vertices=arrays["vertices"][index],
        faces=arrays["faces"][arrays["faces_index"][index]].astype(np.int64),
        joints=arrays["joints"][index],
        joints_px=arrays["joints_px"][index],
        joint_confidence=arrays["joint_confidence"][index],
        skeleton=str(arrays["skeleton"]),
        box_px=(x, y, box_width, box_height),
        side="left" if side == "left" else "right" if side == "right" else None,
        score=float(arrays["scores"][index]),
        camera=PhotoCamera(float(arrays["focal_px"]), (principal_x, principal_y), (width, height)),
        owner=owner if owner >= 0 else None,
        parameters=_read_parameters(arrays, index),
        joint_spread_m=_read_spread(arrays, "joint_spread_m", index),
        keypoint_spread_px=_read_spread(arrays, "keypoint_spread_px", index),
    )


def _spread_arrays(people: Sequence[Person]) -> dict[str, np.ndarray]:
    arrays = {}
    for name in ("joint_spread_m", "keypoint_spread_px"):
        rows = [getattr(person, name) for person in people]
        if any(row is not None for row in rows):
            nothing = np.full(len(people[0].joint_confidence), np.nan, np.float32)
            arrays[name] = np.stack([nothing if row is None else row for row in rows])
    return arrays


def _read_spread(arrays: dict[str, np.ndarray], name: str, index: int) -> np.ndarray | None:
    if name not in arrays or np.isnan(arrays[name][index]).all():
        return None
    return np.asarray(arrays[name][index])


def _parameter_arrays(people: Sequence[Person]) -> dict[str, np.ndarray]:
    fitted = [person.parameters for person in people if person.parameters is not None]
    if not fitted:
        return {}
    if len({(one.body, one.rotations.shape, one.shape.shape) for one in fitted}) > 1:
        raise InputError(
            "One .npz holds parameters of one body, found several. Save each kind in its own file."
        )
    none = replace(
        fitted[0],
        rotations=np.full_like(fitted[0].rotations, np.nan),
        shape=np.full_like(fitted[0].shape, np.nan),
        translation_m=np.full(3, np.nan, np.float32),
        residual_mm=np.nan,
    )
    rows = [person.parameters or none for person in people]
    return {
        "parameters_body": np.array(none.body),
        "parameters_bones": np.array(bone_names(none.body)),
        "parameters_rotations": np.stack([row.rotations for row in rows]).astype(np.float32),
        "parameters_shape": np.stack([row.shape for row in rows]).astype(np.float32),
        "parameters_translation_m": np.stack([row.translation_m for row in rows]),
        "parameters_residual_mm": np.array([row.residual_mm for row in rows], np.float64),
    }


def _read_parameters(arrays: dict[str, np.ndarray], index: int) -> BodyParameters | None:
    if "parameters_body" not in arrays or np.isnan(arrays["parameters_residual_mm"][index]):
        return None
    side = str(arrays["sides"][index])
    return BodyParameters(
        body=str(arrays["parameters_body"]),
        rotations=arrays["parameters_rotations"][index],
        shape=arrays["parameters_shape"][index],
        translation_m=arrays["parameters_translation_m"][index],
        residual_mm=float(arrays["parameters_residual_mm"][index]),
        side="left" if side == "left" else "right" if side == "right" else None,
    )


def _face_tables(people: Sequence[Person]) -> tuple[list[np.ndarray], list[int]]:
    tables: list[np.ndarray] = []
    indices = []
    for person in people:
        known = [i for i, table in enumerate(tables) if np.array_equal(table, person.faces)]
        if not known:
            tables.append(person.faces)
        indices.append(known[0] if known else len(tables) - 1)
    return tables, indices


def _stack(arrays: list[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.stack(arrays).astype(dtype) if arrays else np.zeros((0, *empty), dtype)
