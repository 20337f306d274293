"""MPII Human Pose (Andriluka et al. 2014) from its official file and from HRNet's.

=============================================  ==============================================
``mpii_human_pose_v1_u12_1.mat``               the official labels, train and test
``annot/{train,valid,trainval,test}.json``     the split in rows that HRNet and PRTR train on
``images/*.jpg``                               the pictures
=============================================  ==============================================

Files count pixels from 1; records count from 0. A person is a place and a scale in units of 200 px;
the crop is put 15 scales lower and made 1.25 times as wide, as published.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import mat_struct

from kinemesh.data.detection_boxes import read_json, read_numbers
from kinemesh.data.keypoint_augmentation import KeypointAugmentation
from kinemesh.data.keypoint_crop import PADDING, Placement
from kinemesh.data.keypoint_dataset import KeypointDataset, KeypointOptions, KeypointRecord
from kinemesh.errors import InputError
from kinemesh.skeletons import MPII16

Split = Literal["train", "test"]

_JOINTS = len(MPII16)
_MISSING = -1.0
_LOWER_PX = 15.0  # for a scale of 1


class MpiiKeypoints(KeypointDataset):
    """People of MPII in crops, in the order of the file.

    Args:
        annotations: HRNet's ``.json`` or the official ``.mat``; or the folder of the data set, in
            which ``annot/SPLIT.json`` or ``SPLIT.json`` is looked for.
        images: Folder of the pictures; None looks beside the annotations.
        options: How samples are made; PRTR's size is square, such as (256, 256).
        split: Name of the JSON file of a folder ("train", "valid", "trainval", "test"), or the part
            of the ``.mat`` ("train" or "test").

    Raises:
        InputError: A file is missing or damaged; the message names it and the row.
    """

    def __init__(
        self,
        annotations: str | Path,
        images: str | Path | None = None,
        *,
        options: KeypointOptions | None = None,
        split: str = "train",
    ) -> None:
        path = find_annotations(Path(annotations), split)
        people = read_official(path, split) if path.suffix == ".mat" else read_rows(path)
        folder = Path(images) if images is not None else _find_images(path, people)
        self.path = path
        numbers = {name: k for k, name in enumerate(dict.fromkeys(p.image for p in people))}
        records = tuple(_record(person, folder, numbers[person.image]) for person in people)
        options = options or KeypointOptions(size=(256, 256))
        super().__init__(records, MPII16, options, KeypointAugmentation.mpii())


@dataclass(frozen=True)
class MpiiPerson:
    """One row of the labels, as stored: pixels count from 1.

    Attributes:
        image: File name of the picture.
        center: (2,) rough place of the person, pixels.
        scale: Height of the person / 200 px.
        joints: (16, 2) pixels, (-1, -1) where missing.
        visible: (16,) 1 where labelled.
        row: In the file.
        where: File and row, for messages.
        head_box: (4,) x1, y1, x2, y2 in pixels; None where the file has none.
    """

    image: str
    center: NDArray[np.float64]
    scale: float
    joints: NDArray[np.float64]
    visible: NDArray[np.float64]
    row: int
    where: str
    head_box: NDArray[np.float64] | None = None


def _record(person: MpiiPerson, folder: Path, image_number: int) -> KeypointRecord:
    center, scale = person.center.copy(), person.scale
    if center[0] != _MISSING:
        center[1] += _LOWER_PX * scale
        scale *= PADDING
    return KeypointRecord(
        folder / person.image,
        Placement((center - 1).astype(np.float32), np.full(2, scale, dtype=np.float32)),
        (person.joints - 1).astype(np.float32),
        person.visible.astype(np.float32),
        1.0,
        image_number,
        person.row,
        person.where,
    )


def find_annotations(path: Path, split: str) -> Path:
    """The annotation file of a path that is one, or of the folder of the data set.

    Raises:
        InputError: The folder holds none of this split.
    """
    if not path.is_dir():
        return path
    for file in (path / "annot" / f"{split}.json", path / f"{split}.json"):
        if file.is_file():
            return file
    for file in sorted(path.glob("mpii_human_pose_v1*.mat")):
        return file
    listed = ", ".join(str(file) for file in sorted(path.glob("*.json"))) or "no .json file"
    raise InputError(
        f"'{path}': expected annot/{split}.json or mpii_human_pose_v1_u12_1.mat, found {listed}. "
        "Name the file."
    )


def read_rows(path: Path) -> list[MpiiPerson]:
    """The people of HRNet's JSON: objects with image, center, scale, joints and joints_vis.

    A test file has no joints; its people get 16 missing ones.

    Raises:
        InputError: The file is missing or damaged; the message names the row.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise InputError(f"'{path}': expected a list of people, found {type(rows).__name__}.")
    return [_read_row(row, number, f"'{path}', row {number}") for number, row in enumerate(rows)]


def _read_row(row: Any, number: int, where: str) -> MpiiPerson:
    if not isinstance(row, Mapping) or not isinstance(row.get("image"), str):
        raise InputError(f"{where}: expected an object with 'image', found {str(row)[:80]}.")
    joints, visible = np.full((_JOINTS, 2), _MISSING), np.zeros(_JOINTS)
    if "joints" in row:
        joints = read_numbers(row, "joints", (_JOINTS, 2), where)
        visible = read_numbers(row, "joints_vis", (_JOINTS,), where)
    center = read_numbers(row, "center", (2,), where)
    scale = float(read_numbers(row, "scale", (), where))
    return MpiiPerson(row["image"], center, scale, joints, visible, number, where)


def read_official(path: Path, split: str = "train") -> list[MpiiPerson]:
    """The people of ``mpii_human_pose_v1_u12_1.mat`` with a place and a scale.

    A joint counts as visible where it is labelled, even if the file calls it hidden; the people of
    the test images have none. Numbers of rows count the people in the file's order.

    Args:
        path: The file.
        split: "train" or "test", which the file marks at each image.

    Raises:
        InputError: The file is missing or another one.
    """
    if split not in ("train", "test"):
        raise InputError(
            f"split: '{path}' knows 'train' and 'test', found {split!r}. Which of its people are "
            "the validation stands in HRNet's annot/valid.json; take that file, or the split train."
        )
    content = _load_mat(path)
    if "RELEASE" not in content:
        raise InputError(f"'{path}': expected MPII's 'RELEASE', found {', '.join(content)}.")
    release = content["RELEASE"]
    wanted = 1 if split == "train" else 0
    people: list[MpiiPerson] = []
    pairs = zip(_many(release.annolist), np.atleast_1d(release.img_train), strict=True)
    for image, in_train in pairs:
        if int(in_train) == wanted:
            people += _official_people(image, str(path), len(people))
    return people


def _official_people(image: Any, path: str, first: int) -> Iterator[MpiiPerson]:
    row = first
    for person in _many(image.annorect):
        parts = (getattr(person, name, None) for name in ("objpos", "scale", "annopoints"))
        place, scale, points = cast(tuple[Any, Any, Any], tuple(parts))
        # faces outside of the labelled group have a head box alone
        if not hasattr(place, "x") or not isinstance(scale, int | float):
            continue
        joints, visible = np.full((_JOINTS, 2), _MISSING), np.zeros(_JOINTS)
        for point in _many(getattr(points, "point", ())):
            joints[int(point.id)], visible[int(point.id)] = (point.x, point.y), 1
        center = np.array([place.x, place.y], dtype=np.float64)
        where = f"'{path}', person {row}"
        name = str(image.image.name)
        head = _head_box(person)
        yield MpiiPerson(name, center, float(scale), joints, visible, row, where, head)
        row += 1


def _head_box(person: Any) -> NDArray[np.float64] | None:
    corners = [getattr(person, name, None) for name in ("x1", "y1", "x2", "y2")]
    if not all(isinstance(value, int | float) for value in corners):
        return None
    return np.array(corners, dtype=np.float64)


def _many(value: Any) -> Sequence[Any]:
    """The structures of a MATLAB array, which are one, several or none."""
    return [item for item in np.atleast_1d(value) if isinstance(item, mat_struct)]


def _load_mat(path: Path) -> dict[str, Any]:
    try:
        content = loadmat(path, struct_as_record=False, squeeze_me=True)
    except OSError as error:
        raise InputError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, NotImplementedError, TypeError) as error:
        raise InputError(f"'{path}': expected MATLAB's version 5, found: {error}") from error
    return {name: value for name, value in content.items() if not name.startswith("__")}


def _find_images(path: Path, people: Sequence[MpiiPerson]) -> Path:
    folders = [path.parent / "images", path.parent.parent / "images", path.parent]
    if not people:
        return folders[0]
    for folder in folders:
        if (folder / people[0].image).is_file():
            return folder
    raise InputError(
        f"'{path}': its picture {people[0].image} is in none of {', '.join(map(str, folders))}. "
        "Name the folder of the pictures."
    )
