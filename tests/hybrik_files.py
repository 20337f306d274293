"""Made-up people in the JSON forms of HybrIK's data sets, a made-up SMPL, and pictures of noise.

As a program it runs POTTER's body recipes: ``python -m tests.hybrik_files DATA OUTPUT``.
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.hybrik import SMPL_TREE, fit_twists
from kinemesh.bodies.hybrik_bodies import SmplHybrik, load_smpl_hybrik
from kinemesh.models.potter_mesh import PotterMeshConfig
from kinemesh.training import train
from kinemesh.training.potter_mesh_task import PotterBodyRecipe
from kinemesh.training.recipes import RECIPES
from tests.body_fixtures import h36m_regressor, smpl_arrays, write_model

SAMPLES = 8
WIDTH, HEIGHT = 120, 100
FOCAL, CENTER = 150.0, (60.0, 50.0)
TINY = PotterMeshConfig(
    side=64,
    layers=(1, 1, 1, 1),
    widths=(32, 32, 32, 64),
    mlp_ratios=(1, 1, 1, 1),
    stream_layers=(1, 1, 1),
    stream_mlp_ratios=(1, 1, 1),
    dropout=0.0,
    drop_path=0.0,
    head_dropout=0.0,
    head_width=32,
    hidden=32,
)
PUBLISHED = ("potter-hmr", "potter-hmr-short", "potter-hmr-log")
NAMES = (*PUBLISHED, "potter-body")


def write_assets(folder: Path) -> Path:
    """A made-up SMPL of the true size, and its regressor."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = smpl_arrays(6890)
    write_model(folder / "SMPL_NEUTRAL.safetensors", arrays)
    np.save(folder / "J_regressor_h36m_correct.npy", h36m_regressor(6890))
    return folder


@cache
def body(folder: Path) -> SmplHybrik:
    """The body of `write_assets`."""
    return load_smpl_hybrik(folder)


def people(assets: Path) -> dict[str, Tensor]:
    """Poses, shapes, joints in the camera's frame (metres) and twists of eight people."""
    smpl = body(assets)
    generator = torch.Generator().manual_seed(0)
    theta = 0.3 * torch.randn(SAMPLES, 24, 3, generator=generator)
    theta[:, 0] = torch.tensor([3.0, 0.0, 0.0]) + 0.3 * torch.randn(SAMPLES, 3, generator=generator)
    betas = torch.randn(SAMPLES, 10, generator=generator)
    mesh = smpl.posed_by_axis_angles(theta, betas)
    away = torch.tensor([0.0, 0.0, 4.0])
    local = mesh.rotations
    world = {0: local[:, 0]}
    for joint in range(1, 24):
        world[joint] = world[SMPL_TREE.parents[joint]] @ local[:, joint]
    turned = torch.stack([world[joint] for joint in range(24)], dim=1)
    rest = smpl.rest_joints(betas)
    joints = [mesh.joints[:, joint] for joint in range(24)]
    for end in range(24, 29):
        parent = SMPL_TREE.parents[end]
        offset = (turned[:, parent] @ (rest[:, end] - rest[:, parent])[..., None])[..., 0]
        joints.append(joints[parent] + offset)
    skeleton = torch.stack(joints, dim=1)
    return {
        "theta": theta,
        "betas": betas,
        "joints": skeleton[:, :24] + away,
        "joints_17": mesh.regressed + away,
        "twist": fit_twists(turned, skeleton, rest, SMPL_TREE),
    }


def write_data(folder: Path) -> Path:
    """Folders ``h36m``, ``3dpw``, ``3dhp`` and ``coco`` with eight people each; and ``assets``."""
    found = people(write_assets(folder / "assets"))
    known = {name: value.tolist() for name, value in found.items()}
    rng = np.random.default_rng(0)
    camera = {"f": [FOCAL, FOCAL], "c": list(CENTER)}
    h36m, pw3d, hp3d, coco = [], [], [], []
    for index in range(SAMPLES):
        joints = found["joints"][index].numpy()
        pixels = joints[:, :2] / joints[:, 2:] * FOCAL + CENTER
        low, high = pixels.min(0) - 5, pixels.max(0) + 5
        box = [*low.tolist(), *(high - low).tolist()]
        twist = found["twist"][index]
        h36m.append(
            {
                "bbox": box,
                "smpl_joints": (joints * 1000).tolist(),
                "h36m_joints": (found["joints_17"][index].numpy() * 1000).tolist(),
                "thetas": known["theta"][index],
                "betas": known["betas"][index],
                "angle_twist": {
                    "angle": torch.atan2(twist[:, 1], twist[:, 0]).tolist(),
                    "cos": twist[:, 0].tolist(),
                    "sin": twist[:, 1].tolist(),
                },
            }
        )
        pw3d.append(
            {
                "bbox": box,
                "smpl_joint_cam": joints.tolist(),
                "h36m_joints": known["joints_17"][index],
                "smpl_param": {"pose": known["theta"][index], "shape": known["betas"][index]},
            }
        )
        points = rng.normal([0, 0, 4000], [300, 300, 200], (28, 3))
        hp3d.append({"bbox": box, "keypoints_cam": points.tolist()})
        seen = np.concatenate([rng.uniform(20, 80, (17, 2)), np.full((17, 1), 2.0)], axis=1)
        coco.append({"bbox": box, "keypoints": seen.ravel().tolist(), "category_id": 1})
    _write(folder / "h36m", "h36m", h36m, "images", cam_param=camera)
    old = {"focal": camera["f"], "princpt": camera["c"]}
    _write(folder / "3dpw", "3dpw", pw3d, "imageFiles/a_walk", cam_param=old, sequence="a_walk")
    matrix = [[FOCAL, 0, CENTER[0]], [0, FOCAL, CENTER[1]], [0, 0, 1]]
    intrinsic = {"intrinsic_param": matrix}
    _write(folder / "3dhp", "3dhp", hp3d, "mpi_inf_3dhp_train_set", cam_param=intrinsic)
    _write(folder / "coco", "coco", coco, "train2017")
    return folder


_FILES = {
    "h36m": "annotations/Sample_trainmin_train_Human36M_smpl_leaf_twist_protocol_2.json",
    "3dpw": "json/3DPW_train_new.json",
    "3dhp": "annotation_mpi_inf_3dhp_train_v2.json",
    "coco": "annotations/person_keypoints_train2017.json",
}


def _write(
    root: Path, name: str, annotations: list[dict[str, Any]], images: str, **beside: Any
) -> None:
    (root / images).mkdir(parents=True)
    rows = []
    for index in range(len(annotations)):
        file_name = f"s_01_act_02_subact_01_ca_01_{index:06d}.jpg"
        coarse = np.random.default_rng(index).integers(0, 256, (5, 6, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(root / images / file_name), picture)
        row = {"id": index, "file_name": file_name, "width": WIDTH, "height": HEIGHT}
        rows.append(row | beside)
    content = {
        "images": rows,
        "annotations": [{"image_id": i, "id": i} | row for i, row in enumerate(annotations)],
    }
    path = root / _FILES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def tiny(name: str, folder: Path, output: Path, **changes: Any) -> PotterBodyRecipe:
    """Recipe ``name`` with every number published but those of size, data and intervals."""
    recipe = RECIPES[name]()
    assert isinstance(recipe, PotterBodyRecipe)
    recipe.network = TINY
    if not recipe.is_synthetic:
        recipe.h36m, recipe.coco = folder / "h36m", folder / "coco"
        recipe.hp3d, recipe.pw3d = folder / "3dhp", folder / "3dpw"
        recipe.assets = folder / "assets"
    recipe.validation_data = ""
    recipe.samples = recipe.batch_size = SAMPLES
    recipe.workers, recipe.threads, recipe.device = 0, 1, "cpu"
    recipe.log_every = 1
    recipe.validate_every = recipe.checkpoint_every = 1000
    recipe.output = output
    for field, value in changes.items():
        assert hasattr(recipe, field)
        setattr(recipe, field, value)
    return recipe


if __name__ == "__main__":
    # a run ends its group of processes, but a second one with the same address does not come about
    torch.distributed.destroy_process_group = lambda *_: None
    for wanted in ("potter-hmr", "potter-body"):
        out = Path(sys.argv[2]) / wanted
        train(tiny(wanted, Path(sys.argv[1]), out, steps=2, batch_size=SAMPLES // 2))
