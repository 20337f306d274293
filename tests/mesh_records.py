"""Small stored data sets for tests: consistent labels, pictures of a few coloured squares."""

import json

import cv2
import numpy as np

from kinemesh.bodies.topology import Kind
from kinemesh.data.mesh_labels import POSE_NUMBERS, SKELETONS, MeshRecord
from kinemesh.data.synthetic import SyntheticDataset


def encoded(picture: np.ndarray, suffix: str = ".jpg") -> bytes:
    """An (H, W, 3) uint8 RGB picture as the bytes of a file."""
    _, content = cv2.imencode(suffix, picture[:, :, ::-1])
    return content.tobytes()


def mesh_record(kind: Kind, index: int = 0, *, size: tuple[int, int] = (90, 120)) -> MeshRecord:
    """A record with all labels, drawn from its index; ``size`` is height and width."""
    rng = np.random.default_rng([index, len(kind)])
    height, width = size
    picture = cv2.resize(
        rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=1
    )
    joints = len(SKELETONS[kind])
    joints_2d = np.column_stack([rng.uniform(0, width, joints), rng.uniform(0, height, joints)])
    confidence = (rng.random((joints, 1)) < 0.8).astype(float)
    annotation = {
        "center": rng.uniform(30, 60, 2),
        "scale": rng.uniform(0.2, 0.5),
        "2d_joints": np.concatenate([joints_2d, confidence], axis=1),
        "has_2d_joints": 1,
        "3d_joints": np.concatenate([rng.normal(0, 0.3, (joints, 3)), confidence], axis=1),
        "has_3d_joints": 1,
        "pose": rng.normal(0, 0.4, POSE_NUMBERS[kind]),
        "betas": rng.normal(0, 1, 10),
        "has_smpl": 1,
    }
    return MeshRecord(f"{kind}_{index}.jpg", encoded(picture), annotation)


def mesh_records(kind: Kind, count: int) -> list[MeshRecord]:
    """Several records, for `kinemesh.data.mesh_tsv.write_mesh_tsv`."""
    return [mesh_record(kind, index) for index in range(count)]


def write_yaml(path, *lines, **entries):
    """The YAML of a TSV set: some lines as they are, then entries."""
    path.write_text("\n".join([*lines, *(f"{name}: {value}" for name, value in entries.items())]))


def write_freihand(folder, captures=3, versions=2, *, evaluation_labels=False, vertices=True):
    """FreiHAND's layout with rendered hands; returns the samples whose labels were written.

    The picture is 224 px wide and its camera looks through the middle, as in the real one. A hand
    of this library has more vertices than MANO's, so the first 778 are written.
    """
    samples = SyntheticDataset("hand", seed=0, resolution=224).__getitems__(list(range(captures)))
    tables = {"K": [], "xyz": [], "mano": [], "verts": [], "scale": []}
    for index, sample in enumerate(samples):
        picture = (sample["image"].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        root, focal = sample["root_m"].double().numpy(), float(sample["focal_px"])
        tables["K"].append([[focal, 0, 112], [0, focal, 112], [0, 0, 1]])
        tables["xyz"].append((sample["joints_3d"][:, :3].double().numpy() + root).tolist())
        tables["verts"].append((sample["vertices"][:778].double().numpy() + root).tolist())
        tables["mano"].append([np.random.default_rng(index).normal(0, 0.3, 61).tolist()])
        tables["scale"].append(0.03)
        for split, count in (("training", versions), ("evaluation", 1)):
            (folder / split / "rgb").mkdir(parents=True, exist_ok=True)
            for version in range(count):
                shade = 0.25 * version  # the same hand in another light
                content = encoded((picture * (1 - shade)).astype(np.uint8))
                name = f"{index + captures * version:08d}.jpg"
                (folder / split / "rgb" / name).write_bytes(content)
    wanted = {"training": set(tables), "evaluation": {"K", "scale"}}
    if evaluation_labels:
        wanted["evaluation"] |= {"xyz", "verts"}
    for split, names in wanted.items():
        for name in names - (set() if vertices else {"verts"}):
            (folder / f"{split}_{name}.json").write_text(json.dumps(tables[name]))
    return samples
