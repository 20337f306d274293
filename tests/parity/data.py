"""Crops, augmentation and the TSV reader against the official code's numbers.

What our samples store in another form is mapped back: signed joint coordinates from crop pixels,
the normalised image from the plain one, the scale from the side of the crop.
"""

import base64
import json
import re
from pathlib import Path

import numpy as np
import torch

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_augmentation import Augmentation, place_joints_2d, turn_points, turn_pose
from kinemesh.data.mesh_crop import (
    PIXELS_OF_SCALE,
    CropParameters,
    crop_affine,
    crop_corners,
    crop_picture,
    demo_crop,
)
from kinemesh.data.mesh_dataset import MeshOptions, decode_picture
from kinemesh.data.mesh_labels import POSE_NUMBERS, SKELETONS
from kinemesh.data.mesh_tsv import MeshTsvDataset
from kinemesh.data.tsv_file import TsvFile
from kinemesh.models.imagenet import normalise_imagenet
from tests import parity
from tests.conftest import SHARED
from tests.parity import EXACT, Comparison, Tolerance
from tests.seeded_weights import normal

Golden = dict[str, np.ndarray]

KINDS: tuple[Kind, ...] = ("body", "hand")
TOLERANCES = {
    "image_stats": Tolerance(1e-5),  # means of 150,528 numbers, summed in another order
    "pose": Tolerance(1e-7),  # a float32's last bit, after a matrix and its logarithm in float64
    "scale": Tolerance(0.0, 2e-7),  # the side of the box in pixels was rounded to float32
}


def compare(golden_folder: Path, salt: str = "") -> list[Comparison]:
    """``preprocess.npz`` and ``tsv_dataset.npz`` of a folder, as far as they are there."""
    found = []
    if (golden_folder / "preprocess.npz").is_file():
        with np.load(golden_folder / "preprocess.npz") as file:
            golden = dict(file)
        pictures = _Pictures(golden_folder, salt)
        rest = dict(golden)  # each part takes out what it compares
        found += _compare_crops(rest, golden_folder, pictures)
        found += _compare_draws(rest)
        found += _compare_labels(rest, salt)
        found += _compare_demo(rest, pictures)
        if rest:
            found.append(parity.compare("preprocess/rest", {}, rest))
    if (golden_folder / "tsv_dataset.npz").is_file():
        with np.load(golden_folder / "tsv_dataset.npz") as file:
            found += _compare_samples(dict(file), golden_folder / "tsv")
    return found


class _Pictures:
    """The pictures that the goldens name."""

    def __init__(self, golden_folder: Path, salt: str) -> None:
        self.salt = salt
        self.rows = {}
        for path in sorted((golden_folder / "tsv").glob("*.img.tsv")):
            file = TsvFile(path)
            self.rows |= {file.row(row)[0]: (file, row) for row in range(len(file))}

    def __getitem__(self, name: str) -> np.ndarray:
        if name == "seeded":
            noise = normal("img_u8", (301, 403, 3), self.salt)
            return np.clip(np.rint(128 + 50 * noise), 0, 255).astype(np.uint8)
        if (row := self.rows.get(Path(name).name)) is not None:
            return decode_picture(base64.b64decode(row[0].row(row[1])[-1]), name)
        (path,) = (SHARED / "data" / "official_samples").rglob(Path(name).name)
        return decode_picture(path.read_bytes(), name)


def _compare_crops(golden: Golden, folder: Path, pictures: _Pictures) -> list[Comparison]:
    cases = json.loads((folder / "preprocess_cases.json").read_text("utf-8"))
    found = []
    for number, case in enumerate(cases):
        picture, center = pictures[case["image"]], np.array(case["center"], dtype=np.float64)
        crop = CropParameters(bool(case["flip"]), tuple(case["pn"]), case["rot"])
        unit = crop_picture(picture, center, case["scale"], crop)
        image = _normalised(unit)
        ours = {
            "src_mean": picture.reshape(-1, 3).mean(0, dtype=np.float64),
            "ul_br": np.concatenate(crop_corners(center, case["scale"])),
            "transform": crop_affine(center, case["scale"], case["rot"]).astype(np.float32),
            "unit_s4": unit[:, ::4, ::4],
            "norm_row100": image[:, 100],
            "norm_stats": np.stack([image.mean((1, 2)), image.std((1, 2), ddof=1)]),
        }
        special = {"src_mean": Tolerance(1e-5), "norm_stats": TOLERANCES["image_stats"]}
        found.append(
            _compare(f"preprocess/crop {number}", ours, _taken(golden, f"{number}/"), special)
        )
    return found


def _compare_draws(golden: Golden) -> list[Comparison]:
    found = []
    for name in [name for name in golden if name.startswith("augm_")]:
        theirs = golden.pop(name)
        _, kind, seed = name.split("_")
        rng = np.random.RandomState(int(seed.removeprefix("seed")))
        augmentation = Augmentation.body() if kind == "body" else Augmentation.hand()
        crops = [augmentation.draw(rng) for _ in theirs]
        rows = [(crop.flip, *crop.noise, crop.rotation_deg, crop.scale) for crop in crops]
        found.append(_compare(f"preprocess/{name}", {name: np.float32(rows)}, {name: theirs}))
    return found


def _compare_labels(golden: Golden, salt: str) -> list[Comparison]:
    found = []
    groups = [key.removesuffix("/params") for key in golden if key.endswith("/params")]
    for group in groups:
        kind: Kind = "body" if group.startswith("body") else "hand"
        skeleton, numbers = SKELETONS[kind], POSE_NUMBERS[kind]
        # stored in float32, but the official code ran on the decimal numbers
        x, y, scale, rotation, flip = (
            float(str(value)) for value in golden[f"{group}/params"].astype(np.float32)
        )
        crop = CropParameters(flip=bool(flip), rotation_deg=rotation)
        joints_2d = np.abs(normal(f"{kind}_j2d", (len(skeleton), 3), salt).astype(np.float64)) * 80
        joints_2d[:, 2] = 1
        joints_3d = normal(f"{kind}_j3d", (len(skeleton), 4), salt).astype(np.float64)
        pose = normal(f"{kind}_pose", (numbers,), salt).astype(np.float64) * 0.5
        placed = place_joints_2d(joints_2d, skeleton, np.array([x, y]), scale, crop)
        ours = {
            "j2d": _signed(placed),
            "j3d": turn_points(joints_3d, skeleton, crop).astype(np.float32),
            "pose": turn_pose(pose, crop).astype(np.float32),
        }
        theirs, skipped = _taken(golden, f"{group}/"), {"params": "an input"}
        found.append(
            parity.compare(f"preprocess/{group}", ours, theirs, EXACT, TOLERANCES, skipped)
        )
    return found


def _compare_demo(golden: Golden, pictures: _Pictures) -> list[Comparison]:
    found = []
    groups = [key.removesuffix("/s4") for key in golden if re.match("demo/.*/s4$", key)]
    for group in groups:
        crop, _, _ = demo_crop(pictures[group.removeprefix("demo/")])
        image = _normalised(crop.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
        ours = {"s4": image[:, ::4, ::4]}
        if f"{group}/shape" in golden:
            ours["shape"] = np.array(image.shape)
        found.append(_compare(f"preprocess/{group}", ours, _taken(golden, f"{group}/")))
    return found


def _compare_samples(golden: Golden, folder: Path) -> list[Comparison]:
    found = []
    for group in sorted({key.split("/")[0] for key in golden}):
        dataset = _dataset(group, folder)
        theirs = _taken(golden, f"{group}/")
        ours: dict[str, object] = {}
        for place in sorted({key.rpartition("/")[0] for key in theirs} - {""}):
            index, _, seed = place.partition("/seed")
            fields = _sample_fields(dataset, int(index), int(seed or 0))
            ours |= {f"{place}/{name}": value for name, value in fields.items()}
        if group == "composite":
            ours |= {"len": len(dataset), "image_keys": np.array(dataset.image_keys())}
        special = {
            key: tolerance
            for key in theirs
            for name, tolerance in (
                ("img_stats", TOLERANCES["image_stats"]),
                ("pose", TOLERANCES["pose"]),
                ("scale", TOLERANCES["scale"]),
            )
            if key.endswith(f"/{name}")
        }
        found.append(parity.compare(f"tsv_dataset/{group}", ours, theirs, EXACT, special))
    return found


def _dataset(group: str, folder: Path) -> MeshTsvDataset:
    name = group.partition("_")[0]
    setting = re.search(r"rot(-?[\d.]+)_sc([\d.]+)", group)
    view = CropParameters()
    if setting is not None:
        view = CropParameters(rotation_deg=float(setting[1]), scale=float(setting[2]))
    return MeshTsvDataset(
        folder / f"{name}.yaml", MeshOptions(train=group.endswith("_train"), view=view)
    )


def _sample_fields(dataset: MeshTsvDataset, index: int, seed: int) -> dict[str, object]:
    """One sample under the official names and in the official form."""
    sample = dataset.sample(index, np.random.RandomState(seed))
    unit, mask = sample["image"].numpy(), sample["keep_mask"].numpy()
    image = _normalised(unit)
    joints = {"body": 14, "hand": 21}[dataset.kind]
    fields = {
        "key": np.array(dataset.read(index).key),
        "img_s4": image[:, ::4, ::4],
        "img_stats": np.array([image.mean(), image.std(ddof=1)]),
        "ori_s16": unit[:, ::16, ::16],
        "pose": sample["pose"],
        "betas": sample["betas"],
        "joints_3d": sample["joints_3d"],
        "joints_2d": _signed(sample["joints_2d"].numpy().astype(np.float64)),
        "has_3d_joints": sample["has_3d"],
        "has_2d_joints": sample["has_2d"],
        "has_smpl": sample["has_mesh"],
        "mjm_mask": mask[:joints],
        "mvm_mask": mask[joints:],
        "scale": sample["side_px"] / PIXELS_OF_SCALE,
        "center": sample["center_px"],
    }
    if dataset.kind == "body":
        fields["gender"] = np.array(dataset.label(index).gender)
    return fields


def _signed(joints_px: np.ndarray) -> np.ndarray:
    """(J, 3) float64 crop pixels and confidence to the official [-1, 1], float32."""
    signed = joints_px.copy()
    signed[:, :2] = 2 * signed[:, :2] / 224 - 1
    return signed.astype(np.float32)


def _normalised(unit: np.ndarray) -> np.ndarray:
    return normalise_imagenet(torch.from_numpy(unit)[None])[0].numpy()


def _taken(golden: Golden, prefix: str) -> Golden:
    """Take all keys that begin with a prefix out of ``golden``; they come back without it."""
    keys = [key for key in golden if key.startswith(prefix)]
    return {key.removeprefix(prefix): golden.pop(key) for key in keys}


def _compare(
    name: str,
    ours: dict[str, object],
    golden: Golden,
    special: dict[str, Tolerance] | None = None,
) -> Comparison:
    return parity.compare(name, ours, golden, EXACT, TOLERANCES | (special or {}))
