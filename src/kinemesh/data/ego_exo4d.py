"""Hands of Ego-Exo4D in the crops that POTTER is trained and scored on.

A prepared folder (``kinemesh data prepare ego-exo4d``) holds

===========================================================  =====================================
``annotation/<manual|auto>/ego_pose_gt_anno_<split>_*.json``  labels of train, val and test
``image/undistorted/<split>/<take>/<frame:06d>.jpg``          pictures of 512 x 512 pixels
===========================================================  =====================================

and the same under ``annotation_portrait_view`` and ``image_portrait_view`` for upright pictures.
Every hand is a sample: frame by frame, right before left. As in the benchmark's own baseline
(Grauman et al. 2024), left hands are not mirrored, the side is no input, and nothing is varied at
random, in training either.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from kinemesh.data.ego_exo4d_annotations import HandKey, HandLabels, read_annotations
from kinemesh.data.ego_exo4d_labels import Annotations
from kinemesh.data.hand_crop import SIZE, has_extent
from kinemesh.data.hand_pose_records import LEFT, RIGHT, HandPoseSample
from kinemesh.data.hand_views import HandCut, cut_hand, cut_hand_facing, facing_axes
from kinemesh.data.keypoint_crop import Picture, map_points, normalise_picture
from kinemesh.data.keypoint_dataset import read_picture
from kinemesh.errors import InputError
from kinemesh.models.hand_pose_networks import Crops

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

EGO_EXO4D, EGO_EXO4D_AUTO = "ego-exo4d:", "ego-exo4d-auto:"
KNOWN_HAND_POSES = (
    f"{EGO_EXO4D}FOLDER or {EGO_EXO4D}FILE.json",
    f"{EGO_EXO4D_AUTO}FOLDER (automatic labels)",
)
"""What `open_ego_exo4d` takes, for help and messages."""
_ANNOTATION_FOLDERS = {False: "annotation", True: "annotation_portrait_view"}
_SIDE_CODES: Mapping[str, int] = {"right": RIGHT, "left": LEFT}


@dataclass(frozen=True)
class HandPoseOptions:
    """Where labels and pictures are, and how samples are made.

    Attributes:
        annotations: "manual" or "auto". The test split has manual ones alone.
        portrait: Upright pictures and their labels. An annotation file in
            ``annotation_portrait_view`` is upright anyway.
        size: Side of the crop in pixels.
        images: Folder with ``<split>/<take>/<frame:06d>.jpg``; None: that of the prepared folder.
        crops: "ego-exo4d" as published; "synthetic" for networks that were trained on rendered
            hands: their crops, and joints in the axes of a camera that looks at the hand
            (`kinemesh.data.hand_views`).
    """

    annotations: Annotations = "manual"
    portrait: bool = False
    size: int = SIZE
    images: str | Path | None = None
    crops: Crops = "ego-exo4d"

    def __post_init__(self) -> None:
        if self.annotations not in get_args(Annotations) or self.size < 1:
            raise InputError(
                "annotations, size: expected 'manual' or 'auto' and a positive size, found "
                f"{self.annotations!r} and {self.size}."
            )
        if self.crops not in get_args(Crops):
            expected = " or ".join(map(repr, get_args(Crops)))
            raise InputError(f"crops: expected {expected}, found {self.crops!r}.")


class EgoExo4DHands(Dataset[HandPoseSample]):
    """One split of the benchmark.

    In training and validation, hands whose picture is missing are left out, as the official
    baseline does; `missing_pictures` counts them. So are boxes without an extent, `empty_boxes`. In
    the test split every hand with a box is a sample, and one whose picture is missing cannot be
    read. Its private labels are used where they are there; without them no joint is visible.

    Args:
        place: The prepared folder, or an annotation file; ``images`` are then needed, unless the
            file lies in a prepared folder.
        split: "train", "val" or "test".
        options: How samples are made.

    Raises:
        InputError: A file is missing or damaged, a box of the test split has no extent, or not one
            picture is there.
    """

    def __init__(
        self, place: str | Path, split: Split = "val", options: HandPoseOptions | None = None
    ) -> None:
        if split not in SPLITS:
            raise InputError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}.")
        self.split = split
        self.annotation = find_annotation(place, split, options)
        self.options = _as_filed(options or HandPoseOptions(), self.annotation)
        self.labels = read_annotations(self.annotation)
        self.pictures = _pictures_folder(Path(place), self.annotation, self.options) / split
        self.takes = tuple(dict.fromkeys(uid for uid, _ in self.labels.frames))
        self._take_index = {uid: index for index, uid in enumerate(self.takes)}
        boxed, self.empty_boxes = _boxed(self.labels, split)
        shown = _with_picture(boxed, self.labels, self.pictures)
        self.rows = boxed if split == "test" else shown
        self.missing_pictures = len(boxed) - len(shown)
        if not len(self.rows):
            raise InputError(
                f"'{self.annotation}' has {len(boxed)} hands, but none has a picture in "
                f"'{self.pictures}'. Make them with: kinemesh data prepare ego-exo4d --help"
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> tuple[HandKey, ...]:
        """Which hand each sample is."""
        return tuple(self.labels.keys[row] for row in self.rows)

    def key(self, index: int) -> HandKey:
        """Which hand sample ``index`` is."""
        return self.labels.keys[int(self.rows[index])]

    def __getitem__(self, index: int) -> HandPoseSample:
        """Sample ``index``.

        Raises:
            InputError: Its picture is missing or damaged.
        """
        row = int(self.rows[index])
        key = self.labels.keys[row]
        where = f"'{self.annotation}', {key}"
        picture = read_picture(_picture_path(self.pictures, key), "rgb", where)
        cut = self._cut(row, picture)
        joints = self.labels.joints_m[row]
        joints_m, visible = _filled((joints - joints[0]) @ cut.axes, self.labels.valid[row])
        places = map_points(cut.affine, self.labels.joints_px[row])
        joints_px, seen = _filled(places, np.ones(len(places), dtype=bool))
        return HandPoseSample(
            image=torch.from_numpy(normalise_picture(cut.picture)),
            joints_m=torch.from_numpy(joints_m),
            visible=torch.from_numpy(visible),
            joints_2d_px=torch.from_numpy(joints_px),
            visible_2d=torch.from_numpy(seen),
            side=torch.tensor(_SIDE_CODES[key.side]),
            center_px=torch.from_numpy(cut.center_px),
            side_px=torch.tensor(cut.side_px),
            take=torch.tensor(self._take_index[key.take_uid]),
            frame=torch.tensor(key.frame),
        )

    def in_camera(self, rows: list[int], joints_m: NDArray[np.float64]) -> NDArray[np.float64]:
        """Joints (B, 21, 3) of samples in the axes of the benchmark's camera."""
        if self.options.crops == "ego-exo4d":
            return joints_m
        boxes = self.labels.boxes_px[self.rows[rows]]
        axes = np.stack([facing_axes(box, portrait=self.options.portrait) for box in boxes])
        return joints_m @ axes.swapaxes(1, 2)

    def _cut(self, row: int, picture: Picture) -> HandCut:
        box, size = self.labels.boxes_px[row], self.options.size
        if self.options.crops == "ego-exo4d":
            return cut_hand(picture, box, size)
        return cut_hand_facing(picture, box, size, portrait=self.options.portrait)


def names_ego_exo4d(spec: str) -> bool:
    """Whether a name belongs to a data set for `open_ego_exo4d`."""
    return spec.startswith((EGO_EXO4D, EGO_EXO4D_AUTO))


def open_ego_exo4d(
    spec: str,
    split: Split | None = None,
    *,
    size: int = SIZE,
    portrait: bool = False,
    images: str | Path | None = None,
    crops: Crops = "ego-exo4d",
) -> EgoExo4DHands:
    """Open the hands of Ego-Exo4D by name.

    Args:
        spec: ``ego-exo4d:`` or ``ego-exo4d-auto:`` and the prepared folder or an annotation file.
        split: Which part; None takes that in the name of a file, else val, test or train,
            whichever is there first.
        size: Side of the crop in pixels.
        portrait: Upright pictures and their labels.
        images: Folder of the pictures; None: that of the prepared folder.
        crops: See `HandPoseOptions`.

    Raises:
        InputError: There is no such data set, or it is damaged.
    """
    place, kind = place_and_kind(spec)
    options = HandPoseOptions(kind, portrait, size, images, crops)
    return EgoExo4DHands(place, split or _first_split(place, options), options)


def place_and_kind(spec: str) -> tuple[str, Annotations]:
    """Folder or file, and kind of annotations, of the name of a data set.

    Raises:
        InputError: There is no such data set.
    """
    if not names_ego_exo4d(spec):
        raise InputError(
            f"There is no data set of hand poses '{spec}'. Known: {', '.join(KNOWN_HAND_POSES)}."
        )
    name, _, place = spec.partition(":")
    return place, "auto" if f"{name}:" == EGO_EXO4D_AUTO else "manual"


def find_annotation(
    place: str | Path, split: Split, options: HandPoseOptions | None = None
) -> Path:
    """The annotation file of a split: ``place`` itself, or in a prepared folder.

    Raises:
        InputError: It is not there.
    """
    options, place = options or HandPoseOptions(), Path(place)
    if place.suffix == ".json":
        return place
    # the private file of the test split has the boxes of the public one, and labels
    names = [f"ego_pose_gt_anno_{split}_{access}.json" for access in ("private", "public")]
    # the test split is marked by people alone
    kind: Annotations = "manual" if split == "test" else options.annotations
    folders = (annotation_folder(place, kind, options.portrait), place)
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise InputError(
        f"'{place}': expected '{folders[0].relative_to(place) / names[1]}', found no such file. "
        "Make it with: kinemesh data prepare ego-exo4d --help"
    )


def annotation_folder(folder: Path, annotations: Annotations, portrait: bool = False) -> Path:
    """Where a prepared folder keeps its annotation files."""
    return folder / _ANNOTATION_FOLDERS[portrait] / annotations


def pictures_folder(folder: Path, portrait: bool = False, step: str = "undistorted") -> Path:
    """Where a prepared folder keeps ``<split>/<take>/<frame:06d>.jpg``."""
    return folder / ("image_portrait_view" if portrait else "image") / step


def _pictures_folder(place: Path, annotation: Path, options: HandPoseOptions) -> Path:
    if options.images is not None:
        return Path(options.images)
    parents = annotation.absolute().parents
    if len(parents) > 2 and parents[1].name in _ANNOTATION_FOLDERS.values():
        place = parents[2]  # FOLDER/annotation/manual/FILE.json
    if place.is_file():
        place = annotation.absolute().parent
    return pictures_folder(place, options.portrait)


def _as_filed(options: HandPoseOptions, annotation: Path) -> HandPoseOptions:
    """Upright for a file of upright labels; its pictures have the same names as the others.

    Raises:
        InputError: Upright pictures are wanted of labels that lie on their side.
    """
    folder = annotation.absolute().parent.parent.name
    if folder == _ANNOTATION_FOLDERS[True]:
        return replace(options, portrait=True)
    if options.portrait and folder == _ANNOTATION_FOLDERS[False]:
        raise InputError(
            f"'{annotation}': expected upright labels, found those of pictures that lie on their "
            f"side. Name the file in '{_ANNOTATION_FOLDERS[True]}', or leave --portrait out."
        )
    return options


def _boxed(labels: HandLabels, split: Split) -> tuple[NDArray[np.int64], int]:
    """Rows whose box has an extent, and how many boxes have none.

    Joints at the border of the picture can leave a box that was cut down to a line or a point.

    Raises:
        InputError: One of the test split has none; its submission could not be whole.
    """
    rows = np.flatnonzero(np.isfinite(labels.boxes_px).all(axis=-1))
    usable = np.array([has_extent(labels.boxes_px[row]) for row in rows], dtype=bool)
    empty = rows[~usable]
    if split == "test" and len(empty):
        first = int(empty[0])
        raise InputError(
            f"'{labels.source}', {labels.keys[first]}, bbox: expected x1 < x2 and y1 < y2, found "
            f"{labels.boxes_px[first].tolist()}. Download the file again."
        )
    return rows[usable], len(empty)


def _first_split(place: str | Path, options: HandPoseOptions) -> Split:
    name = Path(place).name if Path(place).suffix == ".json" else ""
    for split in SPLITS:
        if f"_{split}_" in name:
            return split
    for split in ("val", "test", "train"):
        try:
            find_annotation(place, split, options)
        except InputError:
            continue
        return split
    return "val"  # whose absence is then told


def _picture_path(folder: Path, key: HandKey) -> Path:
    return folder / key.take_name / f"{key.frame:06d}.jpg"


def _with_picture(rows: NDArray[np.int64], labels: HandLabels, folder: Path) -> NDArray[np.int64]:
    """Rows whose picture is there; a folder is listed once, not asked for each of its files."""
    there: dict[str, set[str]] = {}
    kept = []
    for row in rows.tolist():
        path = _picture_path(folder, labels.keys[row])
        take = labels.keys[row].take_name
        if take not in there:
            there[take] = _file_names(path.parent)
        if path.name in there[take]:
            kept.append(row)
    return np.array(kept, dtype=np.int64)


def _file_names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def _filled(
    points: NDArray, valid: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Points with zeros in place of those that do not count or are NaN, and which count."""
    valid = valid & np.isfinite(points).all(axis=-1)
    return np.where(valid[:, None], points, 0).astype(np.float32), valid
