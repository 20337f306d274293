"""Small labelled sets of real photos, as a user keeps them beside the library: one box a sample.

The official files of the sets are read as they are; a set whose files are not there is left out.
Places are pixels of the photo (x right, y down), joints in 3D are metres in the frame of the camera
that took it. Which label is which joint is said by name, with the names of `METRO24` and `HAND21`;
labels that mark no joint of these, such as a belly, are not read.

``docs/real-photos.md`` says where each set comes from, and how it scores.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from kinemesh.bodies.pickles import load_npz
from kinemesh.bodies.topology import Kind
from kinemesh.data.detection_boxes import read_box, read_json
from kinemesh.data.mpii import read_rows
from kinemesh.errors import InputError
from kinemesh.evaluation.coco_ap import CocoLabels, read_labels
from kinemesh.skeletons import COCO17, HAND21, LSP14, MPII16

Array = NDArray[np.float64]
Side = Literal["left", "right"]

FLESH = 1.2
"""Width and height of a box over those of the rectangle around its joints, where the files have no
box of the person. Joints lie inside the flesh, those of a hand less so than those of a body."""
MM_PER_M = 1000.0
RENDERED = ("rhd",)
"""Sets whose pictures are no photos; they are scored, but not counted in the line of all sets."""
_NOT_READ = ""
_FINGERS = ("thumb", "index", "middle", "ring", "pinky")

TIP_TO_PALM = tuple(f"{finger}_{k}" for finger in _FINGERS for k in (4, 3, 2, 1))
"""Fingers of InterHand2.6M and RHD, which count each from its tip."""
H36M_LABELS = (
    *("pelvis", "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *(_NOT_READ, "neck", _NOT_READ, "head"),
    *("left_shoulder", "left_elbow", "left_wrist"),
    *("right_shoulder", "right_elbow", "right_wrist"),
)
"""Human3.6M's 17 places; those that METRO evaluates, and the pelvis, have a name."""
MPI_INF_3DHP_LABELS = (
    *("head_top", "neck", "right_shoulder", "right_elbow", "right_wrist"),
    *("left_shoulder", "left_elbow", "left_wrist", "right_hip", "right_knee", "right_ankle"),
    *("left_hip", "left_knee", "left_ankle", "pelvis", _NOT_READ, _NOT_READ),
)
AI_CHALLENGER_LABELS = (
    *("right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist"),
    *("right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle"),
    *("head_top", "neck"),
)
CROWD_POSE_LABELS = (
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
    *("head_top", "neck"),
)
JHMDB_LABELS = (
    *("neck", _NOT_READ, _NOT_READ, "right_shoulder", "left_shoulder", "right_hip", "left_hip"),
    *("right_elbow", "left_elbow", "right_knee", "left_knee", "right_wrist", "left_wrist"),
    *("right_ankle", "left_ankle"),
)
POSE_TRACK_LABELS = ("nose", _NOT_READ, "head_top", *COCO17.joints[3:])
HUMAN_ART_LABELS = COCO17.joints


@dataclass(frozen=True, eq=False)
class LabelledBox:
    """One person or hand of a photo.

    Attributes:
        photo: The image file.
        box_px: x, y, width and height of the person or hand, pixels.
        points_px: (J, 2) pixels, in the order of the set's joints.
        labelled: (J,) bool, joints that have a label.
        points_m: (J, 3) metres, camera frame; None where the files have none.
        side: Which hand it is; None for a body, and where the files do not say.
        image_id: Of the photo in COCO's annotation file; None elsewhere.
    """

    photo: Path
    box_px: tuple[float, float, float, float]
    points_px: Array
    labelled: NDArray[np.bool_]
    points_m: Array | None = None
    side: Side | None = None
    image_id: int | None = None

    @property
    def side_px(self) -> float:
        """Longer side of the box."""
        return max(self.box_px[2:])


@dataclass(frozen=True, eq=False)
class LabelledSet:
    """Samples of one data set.

    Attributes:
        name: Of the set.
        kind: What its boxes hold.
        joints: Names of the joints of every sample.
        samples: In the order of the files.
        boxes: Where the boxes come from.
        coco: COCO's annotations, for its score; None for other sets.
    """

    name: str
    kind: Kind
    joints: tuple[str, ...]
    samples: tuple[LabelledBox, ...]
    boxes: str
    coco: CocoLabels | None = None

    @property
    def has_3d(self) -> bool:
        """Whether the joints have a place in 3D."""
        return all(sample.points_m is not None for sample in self.samples)


def read_real_sets(folder: str | Path, names: Sequence[str] = ()) -> list[LabelledSet]:
    """Read the labelled sets of a folder.

    Args:
        folder: Holds folders named as in ``docs/real-photos.md``, such as ``mmpose_tests``.
        names: Only these; all that are there if empty.

    Raises:
        InputError: There is no set, or not one of those asked for, or a file is damaged.
    """
    folder = Path(folder)
    if unknown := set(names) - set(_READERS):
        raise InputError(
            f"There is no set named {', '.join(sorted(unknown))}. Known: {', '.join(_READERS)}."
        )
    found = {
        name: folder / place
        for name, (place, _) in _READERS.items()
        if (not names or name in names) and (folder / place).is_file()
    }
    if lacking := [name for name in names if name not in found]:
        raise InputError(
            f"'{folder}': expected {_READERS[lacking[0]][0]} for the set {lacking[0]}, found none. "
            "Give the folder that holds the sets, see docs/real-photos.md."
        )
    if not found:
        raise InputError(
            f"'{folder}': expected the labelled photos that docs/real-photos.md lists, such as "
            f"{next(iter(_READERS.values()))[0]}; found none of them. Give their folder."
        )
    sets = [_read(name, path) for name, path in found.items()]
    if not (sets := [one for one in sets if one.samples]):
        raise InputError(f"'{folder}': found labels, but no photo of theirs. Put the photos there.")
    return sets


def _read(name: str, path: Path) -> LabelledSet:
    try:
        return _READERS[name][1](name, path)
    except InputError:
        raise
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"'{path}': expected the labels of {name} in their official form, found something else "
            f"({type(error).__name__}: {error}). Is the file complete?"
        ) from error


def box_of_joints(
    points_px: Array, labelled: NDArray[np.bool_], grow: float = FLESH
) -> tuple[float, ...]:
    """Rectangle x, y, w, h around the labelled joints (J, 2), made ``grow`` times as large."""
    low, high = points_px[labelled].min(axis=0), points_px[labelled].max(axis=0)
    middle, extent = (low + high) / 2, np.maximum((high - low) * grow, 1.0)
    return (*(middle - extent / 2).tolist(), *extent.tolist())


def _set(
    name: str,
    kind: Kind,
    labels: Sequence[str],
    samples: Iterable[LabelledBox | None],
    boxes: str,
    coco: CocoLabels | None = None,
) -> LabelledSet:
    """A set of the samples that are there, with the labels that mark a joint."""
    read = [k for k, label in enumerate(labels) if label]
    kept = [
        replace(
            sample,
            points_px=sample.points_px[read],
            labelled=sample.labelled[read],
            points_m=None if sample.points_m is None else sample.points_m[read],
        )
        for sample in samples
        if sample is not None and sample.labelled[read].any()
    ]
    return LabelledSet(name, kind, tuple(labels[k] for k in read), tuple(kept), boxes, coco)


def _sample(
    photo: Path,
    numbers: Any,
    box: Any = None,
    points_m: Array | None = None,
    side: Side | None = None,
    image_id: int | None = None,
) -> LabelledBox | None:
    """From x, y, v of each joint; None where no joint is labelled or the photo is not there."""
    points = np.asarray(numbers, dtype=np.float64).reshape(-1, 3)
    labelled = points[:, 2] > 0
    if not labelled.any() or not photo.is_file():
        return None
    if box is None:
        box = box_of_joints(points[:, :2], labelled)
    left, top, width, height = (float(value) for value in box)
    place = left, top, width, height
    return LabelledBox(photo, place, points[:, :2], labelled, points_m, side, image_id)


def _read_coco(
    path: Path, images: str, sample: Callable[[Path, Mapping[str, Any]], LabelledBox | None]
) -> list[LabelledBox | None]:
    """Samples of an annotation file in COCO's form, without crowds."""
    content = read_json(path)
    photos = {row["id"]: path.parent / images / row["file_name"] for row in content["images"]}
    rows = [row for row in content["annotations"] if not row.get("iscrowd")]
    return [sample(photos[row["image_id"]], row) for row in rows]


def _people(labels: Sequence[str], images: str = ".", hide: str = "") -> "_Reader":
    """A reader of people with labelled boxes, in COCO's form."""

    def read(name: str, path: Path) -> LabelledSet:
        def sample(photo: Path, row: Mapping[str, Any]) -> LabelledBox | None:
            where = f"'{path}', annotation {row.get('id')}"
            photo = Path(str(photo).replace(hide, "")) if hide else photo
            return _sample(photo, row["keypoints"], read_box(row, where))

        return _set(name, "body", labels, _read_coco(path, images, sample), "of the files")

    return read


def _coco(images: str) -> "_Reader":
    """A reader of COCO itself, whose score wants the ids of the images."""

    def read(name: str, path: Path) -> LabelledSet:
        def sample(photo: Path, row: Mapping[str, Any]) -> LabelledBox | None:
            box = read_box(row, f"'{path}', annotation {row.get('id')}")
            return _sample(photo, row["keypoints"], box, image_id=row["image_id"])

        samples = _read_coco(path, images, sample)
        labels = read_labels(path)
        there = [
            image["id"]
            for image in labels.images
            if (path.parent / images / image["file_name"]).is_file()
        ]
        coco = labels.of_images(there)
        return _set(name, "body", COCO17.joints, samples, "of the files", coco)

    return read


def _hands(side: Callable[[Path], Side | None]) -> "_Reader":
    """A reader of hands in COCO's form, with 21 joints from the palm to the tips."""

    def read(name: str, path: Path) -> LabelledSet:
        def sample(photo: Path, row: Mapping[str, Any]) -> LabelledBox | None:
            return _sample(photo, row["keypoints"], side=side(photo))

        return _set(name, "hand", HAND21.joints, _read_coco(path, ".", sample), _AROUND)

    return read


def _whole_body_hands(name: str, path: Path) -> LabelledSet:
    samples: list[LabelledBox | None] = []
    sides: tuple[Side, Side] = ("left", "right")
    for side in sides:

        def sample(photo: Path, row: Mapping[str, Any], side: Side = side) -> LabelledBox | None:
            return _sample(photo, row[f"{side}hand_kpts"], side=side)

        samples += _read_coco(path, ".", sample)
    return _set(name, "hand", HAND21.joints, samples, _AROUND)


def _rhd(name: str, path: Path) -> LabelledSet:
    def sample(photo: Path, row: Mapping[str, Any]) -> LabelledBox | None:
        points_m = np.array(row["joint_cam"], dtype=np.float64) / MM_PER_M
        return _sample(photo, row["keypoints"], None, points_m, row["hand_type"])

    labels = ("wrist", *TIP_TO_PALM)
    return _set(name, "hand", labels, _read_coco(path, ".", sample), _AROUND)


def _interhand(name: str, path: Path) -> LabelledSet:
    """Both hands of each photo, its joints projected with the camera of the files."""
    stem = str(path).removesuffix("_data.json")
    cameras, joints = (read_json(f"{stem}_{part}.json") for part in ("camera", "joint_3d"))
    content = read_json(path)
    samples = []
    for image in content["images"]:
        capture = str(image["capture"])
        rig = cameras[capture]
        scene = joints[capture][str(image["frame_idx"])]
        moved = np.array(scene["world_coord"]) - np.array(rig["campos"][image["camera"]])
        points = moved @ np.array(rig["camrot"][image["camera"]]).T
        focal, principal = (rig[key][image["camera"]] for key in ("focal", "princpt"))
        places = points[:, :2] / points[:, 2:] * np.array(focal) + np.array(principal)
        rows = np.column_stack([places, np.ravel(scene["joint_valid"])])
        sides: tuple[tuple[Side, slice], ...] = (("right", slice(21)), ("left", slice(21, 42)))
        for side, part in sides:
            if scene["hand_type"] in (side, "interacting"):
                photo = path.parent / image["file_name"]
                samples.append(_sample(photo, rows[part], None, points[part] / MM_PER_M, side))
    return _set(name, "hand", (*TIP_TO_PALM, "wrist"), samples, _AROUND)


def _npz_3d(labels: Sequence[str]) -> "_Reader":
    """A reader of people with joints in pixels (``part``) and in the camera frame (``S``)."""

    def read(name: str, path: Path) -> LabelledSet:
        rows = load_npz(path, ("imgname", "part", "S"))
        samples = [
            _sample(path.parent / str(image), part, None, points[:, :3].astype(np.float64))
            for image, part, points in zip(rows["imgname"], rows["part"], rows["S"], strict=True)
        ]
        return _set(name, "body", labels, samples, _AROUND)

    return read


def _mpii(name: str, path: Path) -> LabelledSet:
    samples = []
    for person in read_rows(path):
        numbers = np.column_stack([person.joints - 1, person.visible])  # the file counts from 1
        samples.append(_sample(path.parent / person.image, numbers))
    return _set(name, "body", MPII16.joints, samples, _AROUND)


def _lspet(name: str, path: Path) -> LabelledSet:
    """As many photos as rows, in the order of their names; x, y and label of 14 joints."""
    joints = loadmat(str(path))["joints"]
    photos = sorted((path.parent / "images").glob("im*.jpg"))
    if joints.shape[-1] != len(photos):
        raise InputError(
            f"'{path}': expected one row for each of the {len(photos)} photos in 'images', found "
            f"{joints.shape[-1]}. Take the joints.mat that belongs to them."
        )
    samples = [_sample(photo, joints[:, :, row]) for row, photo in enumerate(photos)]
    return _set(name, "body", LSP14.joints, samples, _AROUND)


def _panoptic_side(photo: Path) -> Side:
    return "left" if photo.stem.endswith("_l") else "right"


_Reader = Callable[[str, Path], LabelledSet]
_AROUND = f"{FLESH} x joints"
_POSE_TRACK = "mmpose_tests/posetrack18/annotations/test_posetrack18_val.json"
_READERS: Mapping[str, tuple[str, _Reader]] = {
    "interhand2.6m": (
        "mmpose_tests/interhand2.6m/test_interhand2.6m_data.json",
        _interhand,
    ),
    "rhd": ("mmpose_tests/rhd/test_rhd.json", _rhd),
    "freihand": ("mmpose_tests/freihand/test_freihand.json", _hands(lambda _: "right")),
    "onehand10k": ("mmpose_tests/onehand10k/test_onehand10k.json", _hands(lambda _: None)),
    "panoptic": ("mmpose_tests/panoptic/test_panoptic.json", _hands(_panoptic_side)),
    "coco-wholebody-hands": ("mmpose_tests/coco/test_coco_wholebody.json", _whole_body_hands),
    "h36m": ("mmpose_tests/h36m/test_h36m_body3d.npz", _npz_3d(H36M_LABELS)),
    "3dhp-train": (
        "mmpose_tests/mpi_inf_3dhp/test_3dhp_train.npz",
        _npz_3d(MPI_INF_3DHP_LABELS),
    ),
    "3dhp-test": ("mmpose_tests/mpi_inf_3dhp/test_3dhp_test.npz", _npz_3d(MPI_INF_3DHP_LABELS)),
    "coco-train": (
        "coco_train2017_subset/annotations/person_keypoints_train2017.json",
        _coco("../train2017"),
    ),
    "coco-val": ("mmpose_tests/coco/test_coco.json", _coco(".")),
    "ochuman": ("mmpose_tests/ochuman/test_ochuman.json", _people(COCO17.joints)),
    "crowdpose": ("mmpose_tests/crowdpose/test_crowdpose.json", _people(CROWD_POSE_LABELS)),
    "aic": ("mmpose_tests/aic/test_aic.json", _people(AI_CHALLENGER_LABELS)),
    "posetrack18": (_POSE_TRACK, _people(POSE_TRACK_LABELS, "..")),
    "jhmdb": ("mmpose_tests/jhmdb/test_jhmdb_sub1.json", _people(JHMDB_LABELS)),
    "human-art": (
        "mmpose_tests/humanart/test_humanart.json",
        _people(HUMAN_ART_LABELS, hide="HumanArt/images/"),
    ),
    "mhp": ("mmpose_tests/mhp/test_mhp.json", _people(MPII16.joints)),
    "mpii": ("mmpose_tests/mpii/test_mpii.json", _mpii),
    "lspet": ("lspet_fixture/joints.mat", _lspet),
}
