"""POTTER's hands: crops, loss, metrics, benchmark scores and data preparation against goldens.

Pictures follow from names, as the rule beside the goldens says; a photograph is taken from
``shared/data`` and held against the check sum in the golden file, and is left out, with a reason,
where it is not there or decodes to other pixels. Undistorted pictures are cut down to whole
numbers; where the exact value is a whole number, rounding decides and a level is allowed.
"""

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from kinemesh.data.aria_calibration import calibration_of_video, colour_camera
from kinemesh.data.ego_exo4d_annotations import read_annotations
from kinemesh.data.ego_exo4d_labels import (
    EgoCamera,
    LabelRules,
    label_frame,
    padded_box,
    to_portrait,
    varied_box,
)
from kinemesh.data.hand_crop import crop_hand, hand_affine, place_hand
from kinemesh.data.keypoint_crop import normalise_picture
from kinemesh.evaluation.ego_exo4d import score_submission
from kinemesh.evaluation.hand_pose import measure_hands
from kinemesh.geometry.fisheye import Fisheye624, Undistortion
from kinemesh.hand_losses import pose3d_loss
from kinemesh.models.joint_statistics import JointStatistics
from tests import parity
from tests.conftest import SHARED
from tests.parity import EXACT, Comparison, Tolerance
from tests.parity.potter_networks import salt_of
from tests.seeded_weights import normal

Golden = dict[str, np.ndarray]

CROP, LOSS, EVALUATION, UNDISTORT = (
    "hand_crop",
    "hand_loss_metrics",
    "hand_evaluation",
    "dataprep/undistort",
)
MM = Tolerance(1e-3)
PIXELS = Tolerance(1e-4)
UNIT_MM = 60.0  # what the metric goldens multiply normalised joints with
METRE_IN_MM = 1000.0


def compare(golden_folder: Path, manifest: Path | None = None) -> list[Comparison]:
    """Every file of a folder that speaks of hands, if it is there.

    Args:
        golden_folder: Where the golden files are.
        manifest: Says the salts; None takes ``manifest.json`` beside the folder.
    """
    parts: tuple[tuple[str, str, Callable[[Path, str], list[Comparison]]], ...] = (
        (CROP, f"{CROP}.npz", _compare_crops),
        (LOSS, f"{LOSS}.npz", _compare_loss),
        (EVALUATION, f"{EVALUATION}.json", _compare_evaluation),
        (UNDISTORT, f"{UNDISTORT}.npz", _compare_undistortion),
        ("dataprep/labels", "dataprep/gt_anno.json", _compare_labels),
    )
    manifest = manifest or golden_folder.parent / "manifest.json"
    found = []
    for name, file, part in parts:
        if (golden_folder / file).is_file():
            found += part(golden_folder, salt_of(manifest, name, "hand"))
    return found


def _load(path: Path) -> Golden:
    with np.load(path) as file:
        return dict(file)


def seeded_picture(name: str, height: int, width: int, salt: str = "") -> np.ndarray:
    """Blocks of 16 pixels and fine noise (H, W, 3) uint8 RGB, drawn from a name."""
    blocks = normal(name, (height // 16, width // 16, 3), salt).repeat(16, 0).repeat(16, 1)
    noise = normal(f"{name}.n", (height, width, 3), salt)
    return np.clip(np.rint(blocks * 40 + 127 + 8 * noise), 0, 255).astype(np.uint8)


def _compare_crops(folder: Path, salt: str) -> list[Comparison]:
    golden = _load(folder / f"{CROP}.npz")
    cases = json.loads((folder / f"{CROP}.json").read_text("utf-8"))
    statistics = JointStatistics.EGOEXO4D
    ours: dict[str, object] = {
        "joint_mean": np.array(statistics.mean_mm),
        "joint_std": np.array(statistics.std_mm),
    }
    skipped: dict[str, str] = {}
    for key, case in cases.items():
        if not key.isdecimal():
            continue
        ours |= _placed(key, case["bbox"], golden)
        picture = _picture(case, salt)
        if picture is None:
            skipped[f"{key}/input_*"] = f"the picture {case['image']} is not here, pixel by pixel"
        else:
            ours |= _pixels(key, case["bbox"], picture)
    for key in [key for key in golden if key.endswith("/joints_3d_m")]:
        golden.pop(key)  # the input of the targets
    special = dict.fromkeys(golden, PIXELS)
    return [
        parity.compare(CROP, ours, golden, EXACT, special, skipped),
        _compare_template(cases),
    ]


def _placed(key: str, box: list[float], golden: Golden) -> dict[str, object]:
    placement = place_hand(np.array(box))
    joints_m = golden[f"{key}/joints_3d_m"]
    visible = golden[f"{key}/vis_flag"].astype(bool)
    about_wrist = torch.from_numpy((joints_m - joints_m[0]) * METRE_IN_MM).float()
    target = JointStatistics.EGOEXO4D.normalise(about_wrist).numpy()
    theirs = golden[f"nan_ok/{key}/pose_3d_gt"]
    golden[f"nan_ok/{key}/pose_3d_gt"] = np.nan_to_num(theirs)
    assert np.array_equal(np.isnan(theirs).any(axis=-1), ~visible)
    return {
        f"{key}/center": placement.center_px,
        f"{key}/scale": np.repeat(placement.scale, 2),
        f"{key}/affine": hand_affine(placement),
        f"nan_ok/{key}/pose_3d_gt": np.where(visible[:, None], target, 0),
        f"{key}/vis_flag": np.isfinite(joints_m).all(axis=-1) & visible,
    }


def _pixels(key: str, box: list[float], picture: np.ndarray) -> dict[str, object]:
    crop = crop_hand(picture, hand_affine(place_hand(np.array(box))))
    image = normalise_picture(crop)
    return {
        f"{key}/input_slice": image[:, ::16, ::16],
        f"{key}/input_row112": image[:, 112],
        f"{key}/input_mean_std": np.array([image.mean(), image.std()]),
    }


def _picture(case: Mapping[str, Any], salt: str) -> np.ndarray | None:
    height, width, _ = case["shape"]
    if case["image"].startswith("seeded"):
        pictures: Iterator[np.ndarray] = iter([seeded_picture(case["image"], height, width, salt)])
    else:
        pictures = _photographs(case["image"])
    for picture in pictures:
        if zlib.crc32(np.ascontiguousarray(picture).tobytes()) == case["crc32_of_rgb_uint8"]:
            return np.ascontiguousarray(picture)
    return None


def _photographs(name: str) -> Iterator[np.ndarray]:
    data = SHARED / "data"
    files = [data / "parity_images" / "000000000785.jpg"]
    if name.startswith("hand"):
        files = sorted((data / "official_samples").rglob("*hand*/*.jpg"))
    for path in files:
        picture = cv2.imread(str(path))
        if picture is not None:
            yield picture[:, :, ::-1]


def _compare_template(cases: Mapping[str, Any]) -> Comparison:
    """Order of the test samples, and the frames of the submission, from a file made of both."""
    content: dict[str, Any] = {}
    for item in cases["test_items"]:
        frames = content.setdefault(item["take_uid"], {})
        entry = frames.setdefault(str(item["frame_number"]), {"metadata": item})
        entry[f"{item['hand_order']}_hand_bbox"] = [0.0, 0.0, 1.0, 1.0]
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "test.json"
        path.write_text(json.dumps(content), "utf-8")
        labels = read_annotations(path)
    ours = [f"{k.take_uid} {k.take_name} {k.frame} {k.side}" for k in labels.keys]
    theirs = [
        f"{i['take_uid']} {i['take_name']} {i['frame_number']} {i['hand_order']}"
        for i in cases["test_items"]
    ]
    frames = [f"{u} {f}" for u, take in cases["pred_template"].items() for f in take]
    return parity.compare(
        f"{CROP}/test_items",
        {"items": np.array(ours), "frames": np.array([f"{u} {f}" for u, f in labels.frames])},
        {"items": np.array(theirs), "frames": np.array(frames)},
        EXACT,
    )


def _compare_loss(folder: Path, salt: str) -> list[Comparison]:
    golden = _load(folder / f"{LOSS}.npz")
    hands = len(golden["per_hand_valid"])
    prediction, target = (
        torch.from_numpy(normal(f"hand.{name}", (hands, 21, 3), salt)).float()
        for name in ("pred", "gt")
    )
    visible = torch.from_numpy(normal("hand.vis", (hands, 21), salt)) > -0.5
    metres = UNIT_MM / METRE_IN_MM
    whole, single = (
        measure_hands(prediction * metres, target * metres, seen)
        for seen in (torch.ones_like(visible), visible)
    )
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0])
    turned = measure_hands(target * metres, mirrored * metres, torch.ones_like(visible))
    ours = {
        "pose3dloss": pose3d_loss(prediction, target, visible),
        "mpjpe_all": whole["MPJPE"].mean(),
        "p_mpjpe_all": whole["PA-MPJPE"].mean(),
        "per_hand_valid": torch.stack([single["MPJPE"], single["PA-MPJPE"]], dim=1),
        "p_mpjpe_mirrored": turned["PA-MPJPE"].mean(),
    }
    return [parity.compare(LOSS, ours, golden, MM, {"pose3dloss": Tolerance(1e-5)})]


def _compare_evaluation(folder: Path, salt: str) -> list[Comparison]:
    content = json.loads((folder / f"{EVALUATION}.json").read_text("utf-8"))
    ours, theirs = {}, {}
    with tempfile.TemporaryDirectory() as place:
        truth, submission = Path(place) / "gt.json", Path(place) / "pred.json"
        truth.write_text(json.dumps(content["gt"]), "utf-8")
        submission.write_text(json.dumps(content["pred"]), "utf-8")
        for name, result in content["result"].items():
            scored = score_submission(submission, truth, offset=name == "offset")
            values = {report.metric: report.value for report in scored.reports}
            ours |= {f"{name}/mpjpe": values["MPJPE"], f"{name}/p_mpjpe": values["PA-MPJPE"]}
            theirs |= {f"{name}/{key}": np.array(result[key]) for key in ("mpjpe", "p_mpjpe")}
    return [parity.compare(EVALUATION, ours, theirs, MM)]


def _compare_undistortion(folder: Path, salt: str) -> list[Comparison]:
    golden = _load(folder / f"{UNDISTORT}.npz")
    camera = Fisheye624(golden.pop("params"))
    rays, joints = golden.pop("fisheye624_rays"), golden.pop("kpts")
    undistortion = Undistortion(camera)
    cells = normal("dp.image", (44, 44, 3), salt).repeat(32, 0).repeat(32, 1)
    picture = np.clip(np.rint(127 + 45 * cells), 0, 255).astype(np.uint8)
    seen = joints[~np.isnan(joints).any(axis=-1)]
    portrait = to_portrait(joints)
    assert np.array_equal(np.isnan(portrait), np.isnan(golden["portrait"]))
    golden["portrait"] = np.nan_to_num(golden["portrait"])
    ours = {
        "undistorted_slice": undistortion.apply(picture)[::8, ::8],
        "mask_slice": undistortion.valid[::4, ::4],
        "mask_count": undistortion.valid.sum(),
        "fisheye624_pixels": camera.project(rays),
        "pad_bbox": padded_box(seen, 20.0),
        "rand_bbox_seed3": varied_box(seen, np.random.RandomState(3)),
        "portrait": np.nan_to_num(portrait),
    }
    close = ("fisheye", "pad_bbox", "rand_bbox", "portrait")
    special = {"undistorted_slice": Tolerance(1.0)} | dict.fromkeys(close, PIXELS)
    return [parity.compare(UNDISTORT, ours, golden, EXACT, special)]


def _compare_labels(folder: Path, salt: str) -> list[Comparison]:
    raw = json.loads((folder / "dataprep" / "raw_take.json").read_text("utf-8"))
    wanted = json.loads((folder / "dataprep" / "gt_anno.json").read_text("utf-8"))
    text = json.dumps(raw["aria_calibration_full_resolution"])
    camera = colour_camera(calibration_of_video(text, "golden"), "golden")
    found = []
    for name, takes in wanted.items():
        rules = LabelRules("auto" if "auto" in name else "manual", "portrait" in name)
        seed = int(name.partition("seed")[2]) if "seed" in name else None
        (frames,) = takes.values()
        ours = _labelled(raw, camera, rules, seed)
        found.append(
            parity.compare(
                f"dataprep/{name}", _flat(ours), _flat(frames), PIXELS, {"frames": EXACT}
            )
        )
    return found


def _labelled(
    raw: Mapping[str, Any], camera: Fisheye624, rules: LabelRules, seed: int | None
) -> dict[str, Any]:
    (name,) = (key for key in raw["camera_pose"] if key != "metadata")
    pose = raw["camera_pose"][name]
    posed = EgoCamera(
        name,
        np.array(pose["camera_intrinsics"]),
        {frame: np.array(matrix) for frame, matrix in pose["camera_extrinsics"].items()},
        Undistortion(camera).valid,
    )
    draw = None if seed is None else np.random.RandomState(seed)
    entries = {
        frame: label_frame(frame, rows[0], posed, rules, draw)
        for frame, rows in raw["annotation"].items()
    }
    return {frame: entry for frame, entry in entries.items() if entry is not None}


def _flat(frames: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by frame and field; where NaN is, too, and zero in its place."""
    arrays = {"frames": np.array(list(frames))}
    for frame, entry in frames.items():
        for name, value in entry.items():
            if name == "metadata":
                continue
            values = np.array(value, dtype=np.float64)
            arrays[f"{frame}/{name}"] = np.nan_to_num(values)
            arrays[f"{frame}/{name}/missing"] = np.isnan(values)
    return arrays
