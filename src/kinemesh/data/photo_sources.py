"""Photos with 2D labels by name, as the option ``--photos`` takes them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kinemesh.bodies.topology import Kind
from kinemesh.data.coco_keypoints import CocoFile, labelled_people, read_keypoints
from kinemesh.data.detection_boxes import read_numbers
from kinemesh.data.freihand import FreiHandDataset
from kinemesh.data.keypoint_crop import PIXEL_CENTER
from kinemesh.data.keypoint_sources import COCO
from kinemesh.data.photo_samples import PhotoLabel
from kinemesh.data.sources import FREIHAND
from kinemesh.errors import InputError
from kinemesh.skeletons import HAND21

COCO_WHOLE_BODY = "coco-wholebody:"
FLESH = 1.2
"""Width and height of a hand's box over those of the rectangle around its joints."""
LEAST_SIDE_PX = 32.0
"""People and hands whose box is smaller are left out: a crop would be a blur."""
_LEAST_JOINTS = 4  # of a hand, so that the rectangle around them is that of the hand


def open_photos(specs: Sequence[str], kind: Kind) -> list[PhotoLabel]:
    """Labels of one or more sets, in their order.

    Args:
        specs: Bodies: ``coco:FOLDER`` or ``coco:FILE.json`` with COCO's person keypoints. Hands:
            ``freihand:FOLDER``; ``coco-wholebody:FOLDER`` or ``coco-wholebody:FILE.json``.
        kind: What the network recovers.

    Raises:
        InputError: A name is unknown or its joints are not those of the network; a file or picture
            is missing; there is no labelled photo.
    """
    for spec in specs:
        check_spec(spec, kind)
    labels: list[PhotoLabel] = []
    for spec in specs:
        name, _, place = spec.partition(":")
        found = list(_READERS[f"{name}:"][1](Path(place)))
        if not found:
            raise InputError(
                f"--photos: '{spec}' holds no labelled {kind} of at least {LEAST_SIDE_PX:.0f} px. "
                "Name another set."
            )
        _check_pictures(spec, found)
        labels += found
    return labels


def check_spec(spec: str, kind: Kind) -> None:
    """Refuse what cannot be opened, before anything is read.

    Raises:
        InputError: The name is unknown, has the joints of something else, or its place is not
            there.
    """
    name, _, place = spec.partition(":")
    fitting = [f"{key}FOLDER" for key, (of, _) in _READERS.items() if of == kind]
    known = _READERS.get(f"{name}:")
    if known is None or known[0] != kind or not place:
        what = "is no set of photos with 2D labels" if known is None else f"labels a {known[0]}"
        if known is not None and not place:
            what = "names no folder"
        joints = "COCO's 17 joints" if kind == "body" else "21 joints of a hand"
        raise InputError(
            f"--photos: '{spec}' {what}. A {kind} learns from {joints}: {' or '.join(fitting)}."
        )
    if not Path(place).exists():
        raise InputError(f"--photos: there is no '{place}'. Check the path of '{spec}'.")


def _check_pictures(spec: str, labels: Sequence[PhotoLabel]) -> None:
    """A picture that is not there would end a run after hours."""
    pictures = dict.fromkeys(label.picture for label in labels)
    missing = [picture for picture in pictures if not picture.is_file()]
    if missing:
        raise InputError(
            f"--photos: '{spec}': {len(missing)} of {len(pictures)} labelled pictures are not "
            f"there, first '{missing[0]}'. Copy them there, or drop their rows from the labels."
        )


def _coco_people(place: Path) -> Iterator[PhotoLabel]:
    """Labelled people of the training split; crowds and people without keypoints are left out."""
    file = CocoFile(place, split="train")
    for image in file.images:
        for number, row, box in labelled_people(file, image):
            where = file.where(number)
            rows = read_keypoints(row, where)
            if rows[:, 2].max() > 0 and box[2:].max() >= LEAST_SIDE_PX:
                size = image.width, image.height
                yield PhotoLabel(image.path, box, _labelled(rows), False, where, size)


def _whole_body_hands(place: Path) -> Iterator[PhotoLabel]:
    """Labelled hands of COCO-WholeBody, left ones to be mirrored."""
    path = _whole_body_file(place)
    file = CocoFile(path, _whole_body_pictures(path))
    for image in file.images:
        for number, row in image.annotations:
            if row.get("iscrowd", 0):
                continue
            where, size = file.where(number), (image.width, image.height)
            for side in ("left", "right"):
                if not row.get(f"{side}hand_valid", True):
                    continue
                rows = read_numbers(row, f"{side}hand_kpts", (3 * len(HAND21),), where)
                joints = _labelled(rows.reshape(-1, 3))
                box = _box_of_joints(joints)
                if box is not None:
                    yield PhotoLabel(image.path, box, joints, side == "left", where, size)


def _whole_body_file(place: Path) -> Path:
    if not place.is_dir():
        return place
    found = sorted(place.glob("annotations/coco_wholebody_train*.json"))
    if len(found) != 1:
        raise InputError(
            f"--photos: '{place}': expected one annotations/coco_wholebody_train*.json, found "
            f"{len(found)}. Name the file."
        )
    return found[0]


def _whole_body_pictures(path: Path) -> Path | None:
    """COCO's folder of the split; None to look beside the labels."""
    split = "val2017" if "_val" in path.stem else "train2017"
    folder = path.parent.parent / split
    return folder if folder.is_dir() else None


def _free_hands(place: Path) -> Iterator[PhotoLabel]:
    """Hands of FreiHAND's training split, all right ones, on each of their backgrounds."""
    dataset = FreiHandDataset(place, vertices=False)
    assert dataset.joints is not None  # those of the training split are required
    assert dataset.cameras is not None
    count = len(dataset.joints)
    labels: list[tuple[NDArray[np.float32], NDArray[np.float64] | None]] = []
    for row, (points, camera) in enumerate(zip(dataset.joints, dataset.cameras, strict=True)):
        if not (points[:, 2] > 0).all():
            raise InputError(
                f"'{place}', training_xyz.json, entry {row}: expected joints before the camera. "
                "Copy the file again."
            )
        places = points @ camera.T
        known = np.ones((len(points), 1))
        joints = np.concatenate([places[:, :2] / places[:, 2:], known], axis=1).astype(np.float32)
        labels.append((joints, _box_of_joints(joints)))
    for index in range(len(dataset)):
        joints, box = labels[index % count]
        if box is not None:
            picture = dataset.pictures / f"{index:08d}.jpg"
            yield PhotoLabel(picture, box, joints, where=f"'{picture}'")


def _labelled(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    """COCO's (J, 3) counted from the corner of the first pixel, with 1 for all labelled joints."""
    labelled = rows[:, 2:] > 0
    return np.concatenate([rows[:, :2] + PIXEL_CENTER, labelled], axis=1).astype(np.float32)


def _box_of_joints(joints: NDArray[np.float32]) -> NDArray[np.float64] | None:
    """The rectangle around the labelled joints with the flesh; None of too few or a small one."""
    places = joints[joints[:, 2] > 0, :2].astype(np.float64)
    if len(places) < _LEAST_JOINTS:
        return None
    low, high = places.min(axis=0), places.max(axis=0)
    extent = FLESH * (high - low)
    if extent.max() < LEAST_SIDE_PX:
        return None
    return np.concatenate([(low + high - extent) / 2, extent])


_READERS: Mapping[str, tuple[Kind, Callable[[Path], Iterator[PhotoLabel]]]] = {
    COCO: ("body", _coco_people),
    FREIHAND: ("hand", _free_hands),
    COCO_WHOLE_BODY: ("hand", _whole_body_hands),
}
"""By the beginning of the name: what is labelled, and what reads it."""
