"""Tiny data sets of made-up people and hands, for tests of training.

Eight pictures of noise, each of its own colour, with labels of the made-up body models: a network
can learn them by heart, and that is all they are for.
"""

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kinemesh.bodies.official_assets import load_body_model, metro24_regressor
from kinemesh.data.mesh_labels import MeshRecord
from kinemesh.data.mesh_tsv import write_mesh_tsv
from tests.body_fixtures import write_mano_assets, write_smpl_assets

SAMPLES = 8
BODY_VERTICES = 60


@cache
def picture(index: int) -> bytes:
    """A JPEG (224, 224) of coarse noise."""
    rng = np.random.default_rng(index)
    coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((224, 224), Image.Resampling.BILINEAR).save(file, "JPEG")
    return file.getvalue()


def write_body_data(folder: Path) -> tuple[Path, Path]:
    """Assets of a body of 60 vertices, and the .yaml of a TSV set that is labelled with it."""
    assets = folder / "assets"
    write_smpl_assets(assets, BODY_VERTICES)
    model, regressor = load_body_model(assets, "smpl"), metro24_regressor(assets)
    generator = torch.Generator().manual_seed(0)
    pose = 0.2 * torch.randn(SAMPLES, 72, generator=generator)
    pose[:, 0] += 3.1  # y points down in pictures
    betas = torch.randn(SAMPLES, 10, generator=generator)
    joints = torch.einsum(
        "jv,bvd->bjd", torch.from_numpy(regressor).float(), model(pose, betas).vertices
    )
    joints = joints - joints[:, 14:15]
    places = 112 + 80 * joints[..., :2]
    ones = torch.ones(SAMPLES, 24, 1)
    records = (
        MeshRecord(
            f"{index}.jpg",
            picture(index),
            {
                "center": [112.0, 112.0],
                "scale": 1.12,
                "2d_joints": torch.cat([places, ones], dim=-1)[index].numpy(),
                "has_2d_joints": 1,
                "3d_joints": torch.cat([joints, ones], dim=-1)[index].numpy(),
                "has_3d_joints": int(index != 1),
                "pose": pose[index].numpy(),
                "betas": betas[index].numpy(),
                "has_smpl": int(index != 2),
            },
        )
        for index in range(SAMPLES)
    )
    return assets, write_mesh_tsv(folder / "tsv", "people", records)


def write_hand_data(folder: Path) -> tuple[Path, Path]:
    """Assets of a hand, and a folder with FreiHAND's layout that is labelled with it."""
    assets = folder / "assets"
    write_mano_assets(assets)
    model = load_body_model(assets, "mano")
    generator = torch.Generator().manual_seed(0)
    pose = 0.3 * torch.randn(SAMPLES, 48, generator=generator)
    pose[:, :3] *= 3  # hands that differ, so that no mean hand suits them all
    betas = torch.randn(SAMPLES, 10, generator=generator)
    joints = model(pose, betas).joints + torch.tensor([-0.08, 0.0, 0.6])
    camera = torch.tensor([[450.0, 0, 112], [0, 450, 112], [0, 0, 1]])
    data = folder / "freihand"
    (data / "training" / "rgb").mkdir(parents=True)
    for index in range(SAMPLES):
        (data / "training" / "rgb" / f"{index:08d}.jpg").write_bytes(picture(index))
    mano = torch.cat([pose, betas, torch.zeros(SAMPLES, 3)], dim=1)[:, None]
    for name, values in {
        "K": camera.expand(SAMPLES, 3, 3),
        "xyz": joints,
        "mano": mano,
    }.items():
        (data / f"training_{name}.json").write_text(json.dumps(values.tolist()))
    return assets, data
