"""Readers of the JSON files that HybrIK made of Human3.6M, 3DPW and MPI-INF-3DHP, and of COCO.

Each file has a list ``images`` and a list ``annotations``. What is read of them, by data set:

- all: of an image ``file_name``, ``width``, ``height`` and ``id``; of an annotation ``image_id``
  and ``bbox`` (left, top, width, height);
- with a camera: ``cam_param`` of the image or the annotation with ``f`` and ``c`` (or ``focal`` and
  ``princpt``, or a 3x3 ``intrinsic_param``), pixels;
- Human3.6M, millimetres: ``smpl_joints`` (24 or 29) and ``h36m_joints`` (17) in the camera's frame,
  ``thetas`` (24 x 3), ``betas`` (10), and ``angle_twist`` with ``angle``, ``cos`` and ``sin``;
- 3DPW, metres: ``smpl_joint_cam`` and ``smpl_joint_img`` (24), ``h36m_joints`` (17), ``smpl_param``
  with ``pose`` and ``shape``, and ``sequence`` of the image;
- 3DHP, millimetres: ``keypoints_cam`` (28; of the test set also 17), and ``activity_id``;
- COCO: ``keypoints`` (17 x 3) as released.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kinemesh.data.detection_boxes import read_json
from kinemesh.data.hybrik_crop import corners_of_box
from kinemesh.data.hybrik_labels import (
    JOINTS,
    SHAPES,
    SOURCES,
    TURNING,
    HybrikLabel,
    HybrikName,
)
from kinemesh.errors import InputError

Float = NDArray[np.float64]
Split = Literal["train", "test"]

FILES: Mapping[tuple[HybrikName, Split], str] = {
    ("h36m", "train"): "annotations/Sample_trainmin_train_Human36M_smpl_leaf_twist_protocol_2.json",
    ("h36m", "test"): "annotations/Sample_20_test_Human36M_smpl_protocol_2.json",
    ("3dpw", "train"): "json/3DPW_train_new.json",
    ("3dpw", "test"): "json/3DPW_test_new.json",
    ("3dhp", "train"): "annotation_mpi_inf_3dhp_train_v2.json",
    ("3dhp", "test"): "annotation_mpi_inf_3dhp_test.json",
    ("coco", "train"): "annotations/person_keypoints_train2017.json",
    ("coco", "test"): "annotations/person_keypoints_val2017.json",
}
"""Where the published files lie in the folder of each data set."""
_PROTOCOL = "_protocol_2"
"""Which the names of Human3.6M's files may lack."""
DROPPED = ("s_09_act_05_subact_02_ca", "s_09_act_10_subact_02_ca", "s_09_act_13_subact_01_ca")
"""Recordings of Human3.6M whose labels are wrong."""
LEAST_BOX_PX = 5.0
LEAST_ANGLE = -10.0
"""Of a twist; a smaller one says that it is unknown."""
HP3D_17 = (7, 5, 14, 15, 16, 9, 10, 11, 23, 24, 25, 18, 19, 20, 4, 3, 6)
"""MPI-INF-3DHP's 17 test joints among its 28: head top first, then neck, arms, legs, trunk."""
_ACTION = re.compile(r"act_(\d+)")
_RECORDING = re.compile(r"\bTS(\d+)")
"""3DHP's test recordings are folders TS1, TS2, ..."""


@dataclass(frozen=True, eq=False)
class HybrikTable:
    """All people of one file; M of them, float32 to be small.

    Attributes:
        source: Name of the data set.
        pictures: M paths.
        columns: Arrays of M rows by the name of the field of `HybrikLabel`; one that the data set
            never labels is missing.
        activities: (M,) int64, -1 where unknown.
        sequences: (M,) int64 number of the recording of 3DHP's test set, -1 where unknown.
        outside: How many people were left out since nothing of their box is in the picture.
    """

    source: HybrikName
    pictures: tuple[Path, ...]
    columns: Mapping[str, NDArray[np.float32]]
    activities: NDArray[np.int64]
    sequences: NDArray[np.int64]
    outside: int = 0

    def __len__(self) -> int:
        return len(self.pictures)

    def label(self, index: int) -> HybrikLabel:
        """One person."""
        row = {name: values[index].astype(np.float64) for name, values in self.columns.items()}
        optional: dict[str, Any] = {
            name: row.get(name) for name in ("points", "joints_17", "theta", "betas")
        }
        return HybrikLabel(
            source=SOURCES[self.source],
            picture=self.pictures[index],
            corners=row["corners"],
            places=row["places"],
            visible=row["visible"],
            twist=row.get("twist", np.zeros((TURNING - 1, 2))),
            twist_weight=row.get("twist_weight", np.zeros((TURNING - 1, 2))),
            activity=int(self.activities[index]),
            sequence=int(self.sequences[index]),
            **optional,
        )


def read_hybrik(
    source: HybrikName, place: str | Path, split: Split = "train", images: str | Path | None = None
) -> HybrikTable:
    """Read all people of a file.

    Args:
        source: Name of the data set.
        place: Its folder, or the file itself.
        split: Which file of a folder.
        images: Folder of the pictures; None looks where the data set's own archive puts them.

    Raises:
        InputError: The file is missing, damaged, or of another form.
    """
    place = Path(place)
    path = place / FILES[source, split] if place.is_dir() else place
    shorter = path.with_name(path.name.replace(_PROTOCOL, ""))
    if place.is_dir() and not path.is_file() and shorter.is_file():
        path = shorter
    content = read_json(path)
    folder = Path(images) if images is not None else _image_folder(source, path, split)
    found = [_READERS[source](entry) for entry in _entries(content, path, source)]
    rows = [row for row in found if row.has_box()]
    if not rows:
        raise InputError(f"{path}: found no person that can be used. Is this the right file?")
    names = sorted({name for row in rows for name in row.arrays})
    missing = [name for name in names if any(name not in row.arrays for row in rows)]
    if missing:
        raise InputError(
            f"{path}: expected {', '.join(missing)} of every person or of none, found them of "
            "some. The file is damaged."
        )
    return HybrikTable(
        source,
        tuple(folder / row.name for row in rows),
        {name: np.stack([row.arrays[name] for row in rows]) for name in names},
        np.array([row.activity for row in rows], dtype=np.int64),
        np.array([row.sequence for row in rows], dtype=np.int64),
        len(found) - len(rows),
    )


def _image_folder(source: HybrikName, path: Path, split: Split) -> Path:
    if source == "3dhp":
        return path.parent / f"mpi_inf_3dhp_{split}_set"
    if source == "coco":
        found = re.search(r"(train|val)\d*", path.stem)
        return path.parent.parent / (found.group() if found else f"{split}2017")
    return path.parent.parent / {"h36m": "images", "3dpw": "imageFiles"}[source]


@dataclass(frozen=True)
class _Row:
    """One person as stored: name of the picture, arrays by field, activity, recording."""

    name: str
    arrays: dict[str, NDArray[np.float32]]
    activity: int = -1
    sequence: int = -1

    def has_box(self) -> bool:
        """Whether the box, cut to the picture, has an extent that a crop can follow."""
        corners = self.arrays["corners"]
        return bool((corners[2:] > corners[:2]).any())


class _Entry:
    """An annotation with its image, whose values are checked as they are taken."""

    def __init__(self, image: Mapping[str, Any], annotation: Mapping[str, Any], where: str) -> None:
        self.image, self.annotation, self.where = image, annotation, where

    def has(self, name: str) -> bool:
        return name in self.annotation or name in self.image

    def value(self, *names: str) -> Any:
        """The value under the first of some names, of the annotation or of its image."""
        for name in names:
            for held in (self.annotation, self.image):
                if name in held:
                    return held[name]
        raise self.error(f"expected '{names[0]}', found {', '.join([*self.annotation][:12])}")

    def array(self, value: Any, *shapes: tuple[int, ...], name: str) -> Float:
        """Finite numbers, in the first of some shapes that has as many."""
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise self.error(f"expected numbers as '{name}', found {str(value)[:40]!r}") from error
        for shape in shapes:
            if array.size == np.prod(shape):
                if not np.isfinite(array).all():
                    break
                return array.reshape(shape)
        raise self.error(
            f"expected finite numbers of shape {' or '.join(map(str, shapes))} as '{name}', found "
            f"shape {array.shape}"
        )

    def camera(self) -> tuple[Float, Float]:
        """Focal lengths (2,) and principal point (2,) in pixels."""
        held = self.value("cam_param")
        if "intrinsic_param" in held:
            matrix = self.array(held["intrinsic_param"], (3, 3), name="intrinsic_param")
            return matrix[[0, 1], [0, 1]], matrix[:2, 2]
        focal, point = held.get("f", held.get("focal")), held.get("c", held.get("princpt"))
        return self.array(focal, (2,), name="f"), self.array(point, (2,), name="c")

    def corners(self) -> Float:
        """The box inside of the picture."""
        box = self.array(self.value("bbox"), (4,), name="bbox")
        return corners_of_box(box, int(self.value("width")), int(self.value("height")))

    def error(self, problem: str) -> InputError:
        return InputError(f"{self.where}: {problem}. Is this the data set that it is read as?")


def _entries(content: Any, path: Path, source: HybrikName) -> Iterator[_Entry]:
    """Usable annotations; those without an image's number belong to the image in their place."""
    lists = [content.get(key) if isinstance(content, dict) else None for key in _LISTS]
    if not all(isinstance(held, list) for held in lists):
        raise InputError(
            f"{path}: expected a dictionary with the lists images and annotations, found "
            f"{type(content).__name__}. Is this the right file?"
        )
    images, annotations = lists
    assert images is not None
    assert annotations is not None
    by_id = {image["id"]: image for image in images if "id" in image}
    for number, annotation in enumerate(annotations):
        where = f"{path}, annotation {number}"
        image = by_id.get(annotation.get("image_id"))
        if image is None and len(images) == len(annotations):
            image = images[number]
        if image is None:
            raise InputError(
                f"{where}: expected an image with the id {annotation.get('image_id')}, found none. "
                "The file is damaged."
            )
        entry = _Entry(image, annotation, where)
        if _is_usable(entry, source):
            yield entry


_LISTS = ("images", "annotations")


def _is_usable(entry: _Entry, source: HybrikName) -> bool:
    """The published filters."""
    if source == "h36m":
        return not any(name in str(entry.value("file_name")) for name in DROPPED)
    if source == "3dpw":
        return bool(np.min(entry.array(entry.value("bbox"), (4,), name="bbox")[2:]) >= LEAST_BOX_PX)
    if source == "coco":
        annotation = entry.annotation
        person = annotation.get("category_id", 1) == 1 and not annotation.get("iscrowd", 0)
        return person and any(v > 0 for v in annotation.get("keypoints", ())[2::3])
    return True


def _projected(points_m: Float, focal: Float, center: Float, root: int) -> Float:
    """Pixels and depth about the root (N, 3) of points (N, 3) in the camera's frame, metres."""
    depth = points_m[:, 2:]
    pixels = points_m[:, :2] / np.where(depth == 0, 1.0, depth) * focal + center
    return np.concatenate([pixels, depth - depth[root]], axis=1)


def _with_ends(places_24: Float) -> tuple[Float, Float]:
    """24 joints as 29 of which the ends of bones are unlabelled."""
    places, visible = np.zeros((JOINTS, 3)), np.zeros((JOINTS, 3))
    places[: len(places_24)], visible[: len(places_24)] = places_24, 1
    return places, visible


def _h36m(entry: _Entry) -> _Row:
    joints = entry.array(entry.value("smpl_joints"), (TURNING, 3), (JOINTS, 3), name="smpl_joints")
    places, visible = _with_ends(_projected(joints / 1000, *entry.camera(), root=0))
    arrays = {
        "corners": entry.corners(),
        "places": places,
        "visible": visible,
        "points": joints[:TURNING] / 1000,
        "joints_17": entry.array(entry.value("h36m_joints"), (17, 3), name="h36m_joints") / 1000,
        "theta": entry.array(entry.value("thetas"), (TURNING, 3), name="thetas"),
        "betas": entry.array(entry.value("betas"), (SHAPES,), name="betas"),
    }
    if entry.has("angle_twist"):
        held = entry.value("angle_twist")
        columns = [
            entry.array(held.get(key), (TURNING - 1,), name=key) for key in ("angle", "cos", "sin")
        ]
        arrays["twist"] = np.stack(columns[1:], axis=1)
        arrays["twist_weight"] = np.repeat((columns[0] > LEAST_ANGLE)[:, None], 2, axis=1)
    name = str(entry.value("file_name"))
    found = _ACTION.search(name)
    return _Row(name, _small(arrays), int(found.group(1)) if found else -1)


def _3dpw(entry: _Entry) -> _Row:
    joints = entry.array(entry.value("smpl_joint_cam"), (TURNING, 3), name="smpl_joint_cam")
    places = _projected(joints, *entry.camera(), root=0)
    if entry.has("smpl_joint_img"):
        held = entry.value("smpl_joint_img")
        image = entry.array(held, (TURNING, 3), (TURNING, 2), name="smpl_joint_img")
        places[:, :2] = image[:, :2]
    places, visible = _with_ends(places)
    smpl = entry.value("smpl_param")
    arrays = {
        "corners": entry.corners(),
        "places": places,
        "visible": visible,
        "points": joints,
        "joints_17": entry.array(entry.value("h36m_joints"), (17, 3), name="h36m_joints"),
        "theta": entry.array(smpl.get("pose"), (TURNING, 3), name="pose"),
        "betas": entry.array(smpl.get("shape"), (SHAPES,), name="shape"),
    }
    folder = str(entry.value("sequence")) if entry.has("sequence") else ""
    return _Row(str(Path(folder) / str(entry.value("file_name"))), _small(arrays))


def _3dhp(entry: _Entry) -> _Row:
    source = SOURCES["3dhp"]
    held = entry.value("keypoints_cam")
    joints = entry.array(held, (source.joints, 3), (17, 3), name="keypoints_cam") / 1000
    arrays = {"corners": entry.corners()}
    if len(joints) == source.joints:
        arrays["places"] = _projected(joints, *entry.camera(), root=source.root)
        arrays["visible"] = np.ones((source.joints, 3))
        arrays["points"] = joints
        arrays["joints_17"] = joints[list(HP3D_17)]
    else:
        # the test set: its 17 joints are compared and not learned
        arrays["places"] = arrays["visible"] = np.zeros((source.joints, 3))
        arrays["joints_17"] = joints
    activity = int(entry.value("activity_id")) if entry.has("activity_id") else -1
    name = str(entry.value("file_name"))
    recording = _RECORDING.search(name)
    return _Row(name, _small(arrays), activity, int(recording.group(1)) if recording else -1)


def _coco(entry: _Entry) -> _Row:
    keypoints = entry.array(entry.value("keypoints"), (17, 3), name="keypoints")
    visible = np.zeros((17, 3))
    visible[:, :2] = keypoints[:, 2:] > 0
    places = np.concatenate([keypoints[:, :2], np.zeros((17, 1))], axis=1)
    arrays = {"corners": entry.corners(), "places": places, "visible": visible}
    return _Row(str(entry.value("file_name")), _small(arrays))


def _small(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    return {name: values.astype(np.float32) for name, values in arrays.items()}


_READERS = {"h36m": _h36m, "3dpw": _3dpw, "3dhp": _3dhp, "coco": _coco}
