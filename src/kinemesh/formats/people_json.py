"""People as JSON: ``kinemesh.people`` version 1, described in docs/json-schema.md."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinemesh.errors import InputError
from kinemesh.files import write_bytes
from kinemesh.formats.parameters_json import body_record, parameters_record, read_parameters
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.skeletons import get_skeleton

FORMAT = "kinemesh.people"
VERSION = 1
METRE_DIGITS = 5  # 0.01 mm
PIXEL_DIGITS = 2
_SPREADS = {"joint_spread_m": METRE_DIGITS, "keypoint_spread_px": PIXEL_DIGITS}
UNITS = {"camera": "m", "px": "px", "box_px": "px", "focal_px": "px", "principal_px": "px"}
FRAMES = {
    "camera": "x right, y down, z forward, origin at the camera; one frame for all people",
    "image": "x right, y down, origin at the upper left corner of the upright image; "
    "the centre of the first pixel is (0.5, 0.5)",
}


def encode_people(
    people: Sequence[Person],
    image_size: tuple[int, int],
    image_name: str | None = None,
    *,
    mesh: bool = True,
) -> bytes:
    """People as the bytes of a JSON file.

    Args:
        people: People of one photo.
        image_size: Width and height of the photo in pixels.
        image_name: File name of the photo; bytes of it that are no text become U+FFFD.
        mesh: Whether vertices and faces are included (1 MB for the first body,
            0.4 MB for each further one, which shares its faces).
    """
    meshes: list[list[list[int]]] = []
    content = {
        "format": FORMAT,
        "version": VERSION,
        "units": UNITS,
        "frames": FRAMES,
        "image": {"file": _as_text(image_name), "width": image_size[0], "height": image_size[1]},
        "camera": _camera(people[0].camera) if people else None,
        "skeletons": {name: _skeleton(name) for name in sorted({p.skeleton for p in people})},
        "people": [_person(index, person, meshes, mesh) for index, person in enumerate(people)],
        "meshes": meshes,
    }
    bodies = sorted({p.parameters.body for p in people if p.parameters is not None})
    if bodies:
        content["bodies"] = {name: body_record(name) for name in bodies}
    return (_layout(content) + "\n").encode()


def write_people_json(
    path: str | Path,
    people: Sequence[Person],
    image_size: tuple[int, int],
    image_name: str | None = None,
    *,
    mesh: bool = True,
) -> None:
    """Write `encode_people` to a file, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    write_bytes(path, encode_people(people, image_size, image_name, mesh=mesh))


def read_people_json(path: str | Path) -> list[Person]:
    """Read people back; those written without a mesh have zero vertices and faces.

    Raises:
        InputError: The file cannot be read or is not this format and version.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"Expected JSON in '{path}': {error}.") from error
    check_format(content.get("format") if isinstance(content, dict) else None, path)
    if content.get("version") != VERSION:
        raise InputError(
            f"'{path}' is {FORMAT} version {content.get('version')}; this release reads version "
            f"{VERSION}. Install the release that wrote it, or predict again."
        )
    try:
        return [_read_person(entry, content) for entry in content["people"]]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}' says it is {FORMAT} version {VERSION}, but a field is missing or wrong: "
            f"{error!r}. The schema is in docs/json-schema.md."
        ) from error


def _as_text(name: str | None) -> str | None:
    """Replace the surrogates by which Python carries undecodable bytes; UTF-8 has none."""
    return None if name is None else re.sub("[\ud800-\udfff]", "\ufffd", name)


def check_format(found: object, path: Path) -> None:
    """Refuse a file that does not carry the name of this format.

    Raises:
        InputError: It does not.
    """
    if found != FORMAT:
        raise InputError(
            f"Expected a file of format '{FORMAT}', found {found!r} in '{path}'. "
            "Such files are written by: kinemesh predict PHOTO --out DIR"
        )


def _person(
    index: int, person: Person, meshes: list[list[list[int]]], mesh: bool
) -> dict[str, Any]:
    names = get_skeleton(person.skeleton).joints
    joints = [
        {"name": name, "px": px, "camera": camera, "confidence": confidence}
        for name, px, camera, confidence in zip(
            names,
            _rounded(person.joints_px, PIXEL_DIGITS),
            _rounded(person.joints, METRE_DIGITS) if person.has_depth else [None] * len(names),
            _rounded(person.joint_confidence, 4),
            strict=True,
        )
    ]
    entry: dict[str, Any] = {
        "id": index,
        "side": person.side,
        "score": round(float(person.score), 4),
        "box_px": [round(float(value), PIXEL_DIGITS) for value in person.box_px],
        "skeleton": person.skeleton,
        "joints": joints,
    }
    if mesh and person.has_mesh:
        faces = person.faces.tolist()
        if faces not in meshes:
            meshes.append(faces)
        entry["mesh"] = meshes.index(faces)
        entry["vertices"] = _rounded(person.vertices, METRE_DIGITS)
    if person.owner is not None:
        entry["owner"] = person.owner
    if person.parameters is not None:
        entry["parameters"] = parameters_record(person.parameters)
    for name, digits in _SPREADS.items():
        spread = getattr(person, name)
        if spread is not None:
            entry[name] = _rounded(spread, digits)
    return entry


def _read_person(entry: dict[str, Any], content: dict[str, Any]) -> Person:
    camera, image = content["camera"], content["image"]
    joints = entry["joints"]
    places = [joint["camera"] for joint in joints if joint["camera"] is not None]
    faces = content["meshes"][entry["mesh"]] if "mesh" in entry else []
    return Person(
        vertices=np.array(entry.get("vertices", []), np.float32).reshape(-1, 3),
        faces=np.array(faces, np.int64).reshape(-1, 3),
        joints=np.array(places, np.float32).reshape(-1, 3),
        joints_px=np.array([joint["px"] for joint in joints], np.float32),
        joint_confidence=np.array([joint["confidence"] for joint in joints], np.float32),
        skeleton=entry["skeleton"],
        box_px=tuple(entry["box_px"]),
        side=entry["side"],
        score=float(entry["score"]),
        camera=PhotoCamera(
            camera["focal_px"], tuple(camera["principal_px"]), (image["width"], image["height"])
        ),
        owner=entry.get("owner"),
        parameters=read_parameters(entry["parameters"]) if "parameters" in entry else None,
        joint_spread_m=_read_spread(entry, "joint_spread_m"),
        keypoint_spread_px=_read_spread(entry, "keypoint_spread_px"),
    )


def _read_spread(entry: dict[str, Any], name: str) -> np.ndarray | None:
    return np.array(entry[name], np.float32) if name in entry else None


def _camera(camera: PhotoCamera) -> dict[str, Any]:
    return {"focal_px": camera.focal_px, "principal_px": list(camera.principal_px)}


def _skeleton(name: str) -> dict[str, Any]:
    skeleton = get_skeleton(name)
    return {"joints": list(skeleton.joints), "parents": list(skeleton.parents)}


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    rounded: list[Any] = np.round(values.astype(float), digits).tolist()
    return rounded


def _layout(value: object, indent: str = "") -> str:
    """JSON with one line for each list of numbers, so that both people and programs can read it."""
    inner = indent + "  "
    if isinstance(value, dict) and value and not _is_flat(value):
        lines = [f"{inner}{json.dumps(key)}: {_layout(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = [inner + _layout(item, inner) for item in value]
        return "[\n" + ",\n".join(items) + f"\n{indent}]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _is_flat(value: dict[str, Any]) -> bool:
    """Whether a joint or another small object fits on a line."""
    return len(value) <= 4 and all(
        not isinstance(item, dict) and not (isinstance(item, list) and len(item) > 4)
        for item in value.values()
    )
