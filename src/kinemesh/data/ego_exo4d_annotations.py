"""The annotation files of the Ego-Exo4D hand pose benchmark, ``ego_pose_gt_anno_*.json``.

``{take_uid: {frame: {...}}}`` with, for each side, ``<side>_hand_bbox`` (x1, y1, x2, y2 in the
512 px picture), ``_hand_3d`` (21 x 3 metres, camera frame), ``_hand_2d`` (21 x 2 pixels) and
``_hand_valid_3d`` (21 booleans), all empty lists where the hand is not there, and ``metadata``.
Missing joints are bare ``NaN``. The public file of the test split has boxes and metadata alone.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kinemesh.data.ego_exo4d_labels import JOINTS, SIDES
from kinemesh.errors import InputError

Float = NDArray[np.float64]


class HandKey(NamedTuple):
    """Which hand of the data set.

    Attributes:
        take_uid: Key of the take.
        take_name: Its folder; empty where the file has no metadata.
        frame: Number of the frame.
        side: "right" or "left".
    """

    take_uid: str
    take_name: str
    frame: int
    side: str

    def __str__(self) -> str:
        return f"take {self.take_uid}, frame {self.frame}, {self.side} hand"


@dataclass(frozen=True, eq=False)
class HandLabels:
    """The N hands of a file, frame by frame, right before left.

    Attributes:
        source: The file, for messages.
        frames: (take_uid, frame) of all frames in the order of the file, also those without a hand.
        keys: Which hands.
        boxes_px: (N, 4) x1, y1, x2, y2; NaN where a hand has no box.
        joints_m: (N, 21, 3) metres, camera frame; NaN where a joint is missing.
        valid: (N, 21) bool: the joints that count.
        joints_px: (N, 21, 2) in the picture; NaN where a joint is not seen.
        has_joints: (N,) bool: hands with 3D labels.
    """

    source: str
    frames: tuple[tuple[str, int], ...]
    keys: tuple[HandKey, ...]
    boxes_px: Float
    joints_m: Float
    valid: NDArray[np.bool_]
    joints_px: Float
    has_joints: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)


def read_annotations(path: str | Path) -> HandLabels:
    """Read an annotation file, of any split.

    Raises:
        InputError: It is missing, damaged, or something else.
    """
    content = read_takes(path)
    where = f"'{path}'"
    frames: list[tuple[str, int]] = []
    keys: list[HandKey] = []
    rows: list[_Row] = []
    for uid, number, entry in _entries(content, where):
        frames.append((uid, number))
        name = str((entry.get("metadata") or {}).get("take_name", ""))
        for side in SIDES:
            key = HandKey(uid, name, number, side)
            row = _read_hand(entry, side, f"{where}, {key}")
            if row is not None:
                keys.append(key)
                rows.append(row)
    if not frames:
        raise InputError(f"{where}: expected at least one frame, found none. Download it again.")
    return HandLabels(
        str(path),
        tuple(frames),
        tuple(keys),
        _stacked([row.box for row in rows], (4,)),
        _stacked([row.joints for row in rows], (JOINTS, 3)),
        _stacked([row.valid for row in rows], (JOINTS,)) > 0,
        _stacked([row.pixels for row in rows], (JOINTS, 2)),
        np.array([row.labelled for row in rows], dtype=bool),
    )


def read_takes(path: str | Path) -> dict[str, dict[str, Any]]:
    """``{take_uid: {frame: ...}}`` of a JSON file; bare NaN is a number.

    Raises:
        InputError: It is missing, damaged, or something else.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise InputError(
            f"Cannot read '{path}': {error.strerror}. Name a JSON file of Ego-Exo4D hands, or make "
            "one with: kinemesh data prepare ego-exo4d --help"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"'{path}': expected JSON, found a damaged file ({error}). Copy it again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(x, dict) for x in content.values()):
        raise InputError(
            f"'{path}': expected {{take_uid: {{frame: ...}}}}, found {_described(content)}. Name "
            "an ego_pose_gt_anno_*.json or a submission."
        )
    return content


def frame_number(text: str, where: str) -> int:
    """The number that a key of a take stands for.

    Raises:
        InputError: It is none.
    """
    if not text.isdecimal():
        raise InputError(f"{where}: expected frame numbers as keys, found {text!r}.")
    return int(text)


def _described(content: Any) -> str:
    if isinstance(content, dict):
        kinds = sorted({type(value).__name__ for value in content.values()})
        return f"an object of {len(content)} {', '.join(kinds)}"
    return f"a {type(content).__name__}"


def _entries(
    content: Mapping[str, Mapping[str, Any]], where: str
) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    for uid, take in content.items():
        for frame, entry in take.items():
            if not isinstance(entry, dict):
                raise InputError(
                    f"{where}, take {uid}, frame {frame}: expected an object with hands, found "
                    f"{str(entry)[:40]}."
                )
            yield uid, frame_number(frame, f"{where}, take {uid}"), entry


class _Row(NamedTuple):
    box: Float
    joints: Float
    valid: NDArray[np.bool_]
    pixels: Float
    labelled: bool


def _read_hand(entry: Mapping[str, Any], side: str, where: str) -> _Row | None:
    """One hand of a frame; None where there is none."""
    box, joints, pixels, valid = (
        entry.get(f"{side}_hand_{name}") or [] for name in ("bbox", "3d", "2d", "valid_3d")
    )
    if not box and not joints:
        return None
    points = _numbers(joints, (JOINTS, 3), f"{where}, 3d")
    flags = _numbers(valid, (JOINTS,), f"{where}, valid_3d", missing=1.0 if joints else 0.0)
    if joints and not np.isfinite(points[0]).all():
        raise InputError(
            f"{where}: expected a wrist in 3d, which all joints are taken from, found "
            f"{points[0].tolist()}. Prepare the annotations again."
        )
    places = _numbers(box, (4,), f"{where}, bbox")
    if box and not np.isfinite(places).all():
        raise InputError(f"{where}, bbox: expected finite numbers, found {box}.")
    counts = (flags > 0) & np.isfinite(points).all(axis=-1)
    return _Row(places, points, counts, _numbers(pixels, (JOINTS, 2), f"{where}, 2d"), bool(joints))


def _numbers(value: Any, shape: tuple[int, ...], where: str, missing: float = np.nan) -> Float:
    if not value:
        return np.full(shape, missing)
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if numbers.shape != shape:
        wanted = " x ".join(map(str, shape))
        raise InputError(
            f"{where}: expected {wanted} numbers or an empty list, found {str(value)[:60]}."
        )
    return numbers


def _stacked(rows: list[Any], shape: tuple[int, ...]) -> Float:
    return np.stack(rows).astype(np.float64) if rows else np.zeros((0, *shape))
