"""PointHMR's crops, labels, demo and drawing against the official numbers.

The crops are METRO's, so the functions are those of METRO's readers. What our samples keep in
another form is mapped back, as in `tests.parity.data`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kinemesh.data.mesh_augmentation import Augmentation, place_joints_2d, turn_points, turn_pose
from kinemesh.data.mesh_crop import CropParameters, crop_picture, demo_crop
from kinemesh.data.mesh_dataset import decode_picture
from kinemesh.geometry.cameras import PerspectiveCamera, WeakPerspective, weak_to_perspective
from kinemesh.inference.crop_rule import WEAK_PERSPECTIVE_SIDES
from kinemesh.models.imagenet import normalise_imagenet
from kinemesh.skeletons import METRO24
from tests import parity
from tests.conftest import SHARED
from tests.parity import EXACT, Comparison, Tolerance
from tests.parity.pointhmr_mesh import draw, salt_of
from tests.seeded_weights import normal

PIXELS = Tolerance(2e-6)  # one float32 rounding of a normalised pixel
MEANS = Tolerance(1e-5)  # of 50,176 numbers, summed in another order
LABELS = Tolerance(1e-7)  # the last bit of a float32
CAMERA = Tolerance(0.0, 1e-6)
PATCH = slice(96, 128)
EVERY = 16
SIDE = 224
PELVIS = METRO24.index("pelvis")
FIXED = {  # drawn by hand in the goldens, not by the generator
    "syn_flip_rot": CropParameters(True, (0.7, 1.2, 1.35), 25.3, 0.87),
    "syn_rot_pad": CropParameters(False, (1.0, 1.0, 1.0), -47.0, 1.2),
}


def compare(golden_folder: Path) -> list[Comparison]:
    """``preprocess``, ``demo_preprocess`` and ``postprocess`` of a folder, as far as there."""
    manifest = golden_folder.parent / "manifest.json"
    entries = json.loads(manifest.read_text("utf-8")) if manifest.is_file() else {}
    found = []
    for name, part in (("preprocess", _crops), ("demo_preprocess", _demo)):
        if (golden_folder / f"{name}.npz").is_file() and name in entries:
            salt = salt_of(golden_folder, name)
            found += part(_load(golden_folder / f"{name}.npz"), entries[name], salt)
    if (golden_folder / "postprocess.npz").is_file():
        salt = salt_of(golden_folder, "postprocess")
        found.append(_camera(_load(golden_folder / "postprocess.npz"), salt))
    return found


def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return dict(file)


def _picture(name: str, salt: str, height: int = 300, width: int = 400) -> np.ndarray:
    if name.startswith(("synthetic", "syn_")):
        noise = normal("input:pp.image", (height, width, 3), salt)
        pixels: np.ndarray = np.clip(np.rint(128 + 50 * noise), 0, 255).astype(np.uint8)
        return pixels
    path = SHARED / "data" / "official_samples" / "pointhmr" / name
    return decode_picture(path.read_bytes(), name)


# Crops ---------------------------------------------------------------------------------------


def _crops(golden: dict[str, np.ndarray], entry: Mapping[str, Any], salt: str) -> list[Comparison]:
    return [
        _crop(
            name,
            case,
            {k.partition(".")[2]: v for k, v in golden.items() if _case(k) == name},
            salt,
        )
        for name, case in entry["cases"].items()
    ]


def _case(key: str) -> str:
    return key.partition(".")[0]


def _crop(
    name: str, case: Mapping[str, Any], golden: dict[str, np.ndarray], salt: str
) -> Comparison:
    picture, center = _picture(case["image"], salt), np.array(case["center"], dtype=np.float64)
    crop = CropParameters()
    if case["is_train"]:
        crop = FIXED.get(name) or Augmentation.body().draw(
            np.random.RandomState(case["np_random_seed"])
        )
    scale = case["scale"]
    unit = crop_picture(picture, center, scale, crop)
    image = normalise_imagenet(torch.from_numpy(unit)[None])[0].numpy()
    ours = _labels(center, scale, crop, salt) | {
        "norm_stride16": image[:, ::EVERY, ::EVERY],
        "norm_patch": image[:, PATCH, PATCH],
        "rgb01_mean_std": np.array([unit.mean(dtype=np.float64), unit.std(dtype=np.float64)]),
        "norm_channel_mean": image.mean((1, 2), dtype=np.float64),
        "scale": scale * crop.scale,
        "flip_rot_scale_pn_f64": np.array(
            [crop.flip, crop.rotation_deg, crop.scale, *crop.noise], dtype=np.float64
        ),
    }
    special = {
        "norm_": PIXELS,
        "rgb01_mean_std": MEANS,
        "norm_channel_mean": MEANS,
        "flip_rot_scale_pn_f64": EXACT,
    }
    return parity.compare(f"preprocess/{name}", ours, golden, LABELS, special)


def _labels(center: np.ndarray, scale: float, crop: CropParameters, salt: str) -> dict[str, object]:
    """Joints and pose as the network's loss sees them."""
    ones = np.ones((len(METRO24), 1))
    # annotations are float64 numbers made of float32 draws
    places = 60 * _seeded("pp.j2d", (24, 2), salt) + np.array([200.0, 150.0])
    joints = 0.3 * _seeded("pp.j3d", (24, 3), salt)
    pose = 0.3 * _seeded("pp.pose", (72,), salt)
    placed = place_joints_2d(np.concatenate([places, ones], 1), METRO24, center, scale, crop)
    placed[:, :2] = 2 * placed[:, :2] / SIDE - 1
    about_pelvis = np.concatenate([joints - joints[PELVIS], ones], axis=1)
    return {
        "joints_2d": placed.astype(np.float32),
        "joints_3d": turn_points(about_pelvis, METRO24, crop).astype(np.float32),
        "pose": turn_pose(pose, crop).astype(np.float32),
    }


def _seeded(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    return normal("input:" + name, shape, salt).astype(np.float64)


# Demo ----------------------------------------------------------------------------------------


def _demo(golden: dict[str, np.ndarray], entry: Mapping[str, Any], salt: str) -> list[Comparison]:
    found = []
    for name, (width, height) in entry["image_wh"].items():
        file = name.replace("_", "/", 1) + ".jpg"
        picture = _picture(name if name.startswith("syn_") else file, salt, height, width)
        crop, _, _ = demo_crop(picture)
        unit = torch.from_numpy(crop.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        image = normalise_imagenet(unit[None])[0].numpy()
        ours = {
            "stride16": image[:, ::EVERY, ::EVERY],
            "patch": image[:, PATCH, PATCH],
            "channel_mean": image.mean((1, 2), dtype=np.float64),
        }
        theirs = {k.partition(".")[2]: v for k, v in golden.items() if _case(k) == name}
        special = {"channel_mean": MEANS}
        found.append(parity.compare(f"demo_preprocess/{name}", ours, theirs, PIXELS, special))
    return found


def _camera(golden: dict[str, np.ndarray], salt: str) -> Comparison:
    """Where the overlay puts the mesh, and projected points."""
    batch, count = golden["proj"].shape[:2]
    vector = draw("post.camera", (batch, 3), salt, 0.1) + torch.tensor([0.9, 0.0, 0.0])
    points = draw("post.points", (batch, count, 3), salt)
    camera = WeakPerspective.from_vector(vector)
    focal_px = WEAK_PERSPECTIVE_SIDES * SIDE
    whole = PerspectiveCamera.with_square_pixels((SIDE, SIDE), focal_px)
    middle_px = torch.full((batch, 2), SIDE / 2)
    sides_px = torch.full((batch,), float(SIDE))
    ours = {
        "camera": vector,
        "render_translation": weak_to_perspective(camera, middle_px, sides_px, whole),
        "render_focal": focal_px,
        "proj": camera.project(points),
        "proj_pixels": camera.project_px(points, SIDE),
    }
    return parity.compare("postprocess", ours, golden, Tolerance(1e-6, 1e-6))
