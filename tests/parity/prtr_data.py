"""PRTR's crops, boxes, augmentation and readers against the official code's numbers.

The golden files hold what the official code drew (`aug/*`, `half/*`), so that its numbers and ours
are compared under the same draws. Warped pixels depend on the release of OpenCV: the goldens come
from 5.0, which interpolates exactly; releases before round coordinates to 32nds of a pixel, which
changes up to 10 % of the values by up to 4 levels, 0.02 to 0.1 on average over a picture. What
follows from pixels is allowed the same difference.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from kinemesh.data.coco_keypoints import CocoKeypoints
from kinemesh.data.keypoint_augmentation import KeypointVariation, half_body
from kinemesh.data.keypoint_crop import (
    Picture,
    crop_affine,
    crop_affine_inverse,
    map_points,
    normalise_picture,
)
from kinemesh.data.keypoint_dataset import (
    KeypointDataset,
    KeypointOptions,
    KeypointRecord,
)
from kinemesh.data.mpii import MpiiKeypoints
from kinemesh.models.imagenet import IMAGENET_MEAN, IMAGENET_STD
from kinemesh.skeletons import Skeleton
from tests import parity
from tests.conftest import SHARED
from tests.parity import EXACT, Comparison, Tolerance
from tests.seeded_weights import normal

Golden = dict[str, np.ndarray]

FILE = "np_preprocess"
MPII_SIZE = (256, 256)
LEVELS = 4.0
MEAN_LEVELS = 0.2
_LEAST_STD = 0.224  # of the three channels: turns levels into normalised units
TOLERANCES = {
    "pixels": Tolerance(1e-4),
    "scale": Tolerance(1e-6),
    "target": Tolerance(1e-6),
    "affine": Tolerance(1e-4),
    "levels": Tolerance(LEVELS),
    "mean_levels": Tolerance(MEAN_LEVELS),
    "tensor": Tolerance(LEVELS / 255 / _LEAST_STD),
    "tensor_mean_std": Tolerance(MEAN_LEVELS / 255 / _LEAST_STD),
}
_KINDS = (
    ("u8_mean", "mean_levels"),
    ("u8", "levels"),
    ("tensor_mean_std", "tensor_mean_std"),
    ("tensor", "tensor"),
    ("trans", "affine"),
    ("center", "pixels"),
    ("joints", "pixels"),
    ("pts", "pixels"),
    ("scale", "scale"),
    ("target_weight", None),
    ("target", "target"),
)


def compare(golden_folder: Path, salt: str = "") -> list[Comparison]:
    """``np_preprocess.npz`` of a folder, if it is there."""
    if not (golden_folder / f"{FILE}.npz").is_file():
        return []
    with np.load(golden_folder / f"{FILE}.npz") as file:
        golden = dict(file)
    cases = json.loads((golden_folder / f"{FILE}.json").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        files = _Files(Path(folder), cases, salt)
        found = [
            *_compare_plain(files, golden),
            _compare_detections(files, golden),
            _compare_augmentation(files, golden),
            _compare_halves(files, golden),
            _compare_affine(golden),
            _compare_mpii(files, golden),
        ]
    if golden:
        found.append(parity.compare(f"{FILE}/rest", {}, golden))
    return found


class _Files:
    """The annotations and pictures of the goldens as the readers want them on disk."""

    def __init__(self, folder: Path, cases: Mapping[str, Any], salt: str) -> None:
        self.coco = folder / "annotations.json"
        self.coco.write_text(json.dumps(cases["annotations"]), "utf-8")
        self.detections = folder / "detections.json"
        self.detections.write_text(json.dumps(cases["detections"]), "utf-8")
        self.mpii = folder / "mpii.json"
        self.mpii.write_text(json.dumps(cases["mpii_annotations"]), "utf-8")
        self.images = folder / "images"
        self.images.mkdir()
        for row in cases["annotations"]["images"]:
            photo = SHARED / "data" / "parity_images" / row["file_name"]
            if photo.is_file():
                (self.images / row["file_name"]).symlink_to(photo)
            else:
                self._write_noise(row["file_name"], salt)
        self._write_noise("m.png", salt)

    def _write_noise(self, name: str, salt: str) -> None:
        noise = normal("input:synthetic_image", (30, 40, 3), salt)
        cells = np.clip(np.round(128 + 50 * noise), 0, 255).astype(np.uint8)
        picture = cells.repeat(8, axis=0).repeat(8, axis=1)
        # a PNG whatever the name says: readers go by the content, and nothing is lost
        (self.images / name).write_bytes(cv2.imencode(".png", picture)[1].tobytes())

    def labelled(self, **options: Any) -> CocoKeypoints:
        return CocoKeypoints(self.coco, self.images, options=KeypointOptions(**options))


def _compare_plain(files: _Files, golden: Golden) -> list[Comparison]:
    plain = files.labelled()
    ours: dict[str, object] = {"len": np.array(len(plain))}
    for index, record in enumerate(plain.records):
        sample = plain[index]
        affine = crop_affine(*record.placement, plain.options.size)
        ours |= {
            f"{index}/center": sample["center"],
            f"{index}/scale": sample["scale"],
            f"{index}/trans64": affine,
            f"{index}/target": sample["target"],
            f"{index}/target_weight": sample["weight"],
        }
    found, pictures = [], {}
    for name, order in (("res50_bgr", "bgr"), ("hrnet_rgb", "rgb")):
        dataset = files.labelled(order=order)
        pictures = {
            f"{index}/{key}": value
            for index in range(len(dataset))
            for key, value in _pixels(dataset[index]["image"].numpy()).items()
        }
        found.append(_compare(f"{FILE}/{name}", pictures, _taken(golden, f"val/{name}/")))
    return [_compare(f"{FILE}/val", ours, _taken(golden, "val/")), *found]


def _compare_detections(files: _Files, golden: Golden) -> Comparison:
    dataset = CocoKeypoints(files.coco, files.images, boxes=files.detections)
    ours: dict[str, object] = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        fields = {name: sample[name] for name in ("center", "scale", "score", "target")}
        fields |= _pixels(sample["image"].numpy())
        ours |= {f"{index}/{name}": value for name, value in fields.items()}
    return _compare(f"{FILE}/det", ours, _taken(golden, "det/"))


def _compare_augmentation(files: _Files, golden: Golden) -> Comparison:
    theirs = _taken(golden, "aug/")
    dataset = files.labelled(train=True)
    ours: dict[str, object] = {}
    names = ("record", "seed", "flipped", "scale_multiplier", "rotation_deg")  # what was drawn
    for case in range(int(theirs.pop("count"))):
        record, _, flip, scale, rotation = (theirs.pop(f"{case}/{name}") for name in names)
        variation = KeypointVariation(None, float(scale), float(rotation), bool(flip))
        ours |= _varied(dataset, int(record), variation, case)
        joints = np.asarray(ours[f"{case}/target"]) * np.array(dataset.options.size)
        ours[f"{case}/joints"] = np.pad(joints, ((0, 0), (0, 1)))  # a third axis, not used
    return _compare(f"{FILE}/aug", ours, theirs)


def _varied(
    dataset: KeypointDataset, index: int, variation: KeypointVariation, case: int
) -> dict[str, object]:
    sample = dataset.sample(index, variation)
    picture = _unnormalised(sample["image"].numpy())
    return {
        f"{case}/center": sample["center"],
        f"{case}/scale": sample["scale"],
        f"{case}/target": sample["target"].numpy(),
        f"{case}/target_weight": sample["weight"],
        f"{case}/u8_stride12": picture[::12, ::12],
    }


def _compare_halves(files: _Files, golden: Golden) -> Comparison:
    theirs = _taken(golden, "half/")
    dataset = files.labelled()
    ours: dict[str, object] = {}
    for key in [key for key in theirs if key.endswith("/randn")]:
        case, draw = key.removesuffix("/randn"), float(theirs.pop(key))
        placement = _half(dataset.records[int(case.split("/")[0])], dataset.skeleton, draw)
        ours |= {f"{case}/center": placement[0], f"{case}/scale": placement[1]}
    return _compare(f"{FILE}/half", ours, theirs)


def _half(record: KeypointRecord, skeleton: Skeleton, draw: float) -> tuple[NDArray, NDArray]:
    half = None
    if draw != -1:
        half = half_body(record.joints, record.visible, skeleton, draw, 288 / 384)
    return record.placement if half is None else half


def _compare_affine(golden: Golden) -> Comparison:
    theirs = _taken(golden, "affine/")
    forward, back, points = [], [], []
    on_crop = theirs.pop("pts")
    for row in theirs.pop("params_cx_cy_sx_sy_rot_w_h").tolist():
        x, y, *scale, rotation, width, height = row
        case = (np.array([x, y]), np.array(scale), (int(width), int(height)))
        forward.append(crop_affine(*case, rotation))
        back.append(crop_affine_inverse(*case, rotation))
        points.append(map_points(crop_affine_inverse(*case), on_crop))
    ours = {"trans": np.stack(forward), "trans_inv": np.stack(back), "pts_to_image": points}
    return _compare(f"{FILE}/affine", ours, theirs)


def _compare_mpii(files: _Files, golden: Golden) -> Comparison:
    plain, varied = _taken(golden, "mpii/"), _taken(golden, "mpii_aug/")
    dataset = MpiiKeypoints(files.mpii, files.images, options=KeypointOptions(size=MPII_SIZE))
    ours: dict[str, object] = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        fields = {name: sample[name] for name in ("center", "scale", "target")}
        fields |= {"target_weight": sample["weight"], **_pixels(sample["image"].numpy())}
        ours |= {f"{index}/{name}": value for name, value in fields.items()}
        # the drawn factor is not stored, but follows from the scale
        factor = float(varied[f"{index}/scale"][0] / sample["scale"][0])
        rotation = float(varied.pop(f"{index}/rotation_deg"))
        variation = KeypointVariation(None, factor, rotation, bool(varied.pop(f"{index}/flipped")))
        for key, value in _varied(dataset, index, variation, index).items():
            ours[f"aug/{key}"] = value
    theirs = plain | {f"aug/{key}": value for key, value in varied.items()}
    return _compare(f"{FILE}/mpii", ours, theirs)


def _pixels(image: NDArray[np.float32]) -> dict[str, object]:
    """The parts of a normalised image (3, H, W) that the goldens keep."""
    picture = _unnormalised(image)
    return {
        "u8_stride6": picture[::6, ::6],
        "u8_patch32": picture[100:132, 100:132],
        "tensor_mean_std": np.stack([image.mean((1, 2)), image.std((1, 2))]),
        "tensor_c_10_0_64": image[:, 10, :64],
    }


def _unnormalised(image: NDArray[np.float32]) -> Picture:
    unit = image.transpose(1, 2, 0) * np.float32(IMAGENET_STD) + np.float32(IMAGENET_MEAN)
    picture = np.round(unit * 255).astype(np.uint8)
    assert np.array_equal(normalise_picture(picture), image)  # nothing was lost on the way back
    return picture


def _compare(name: str, ours: Mapping[str, object], golden: Golden) -> Comparison:
    """Hold values to the tolerance of their kind, and pictures to the mean difference as well."""
    ours, golden = dict(ours), dict(golden)
    pictures: dict[str, list[NDArray]] = {}
    for key in golden.keys() & ours.keys():
        place, _, last = key.rpartition("/")
        if last.startswith("u8_"):
            difference = np.asarray(ours[key]).astype(float) - golden[key].astype(float)
            pictures.setdefault(place, []).append(np.abs(difference).ravel())
    for place, differences in pictures.items():
        ours[f"{place}/u8_mean_difference"] = np.concatenate(differences).mean()
        golden[f"{place}/u8_mean_difference"] = np.array(0.0)
    special = {key: _tolerance(key.rpartition("/")[2]) for key in golden}
    return parity.compare(name, ours, golden, EXACT, special)


def _tolerance(name: str) -> Tolerance:
    kind = next((kind for prefix, kind in _KINDS if name.startswith(prefix)), None)
    return EXACT if kind is None else TOLERANCES[kind]


def _taken(golden: Golden, prefix: str) -> Golden:
    """Take all keys that begin with a prefix out of ``golden``; they come back without it."""
    keys = [key for key in golden if key.startswith(prefix)]
    return {key.removeprefix(prefix): golden.pop(key) for key in keys}
