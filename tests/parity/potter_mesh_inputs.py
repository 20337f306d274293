"""The synthetic body, pictures, labels and predictions behind POTTER's mesh goldens, from names."""

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.hybrik_bodies import LEAF_VERTICES, SmplHybrik
from kinemesh.bodies.model_files import ModelArrays
from tests.seeded_weights import normal

VERTICES, JOINTS = 6890, 24
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
H36M_FROM_BODY = (0, 1, 4, 7, 2, 5, 8, 6, 12, 15, 15, 16, 18, 20, 17, 19, 21)
HEAD = 10


def draw(name: str, shape: tuple[int, ...], salt: str = "") -> np.ndarray:
    """Float64 copy of the numbers that belong to a name."""
    return normal(name, shape, salt).astype(np.float64)


def body_arrays(rest_29: np.ndarray) -> tuple[ModelArrays, np.ndarray]:
    """A body in SMPL's shapes, and its regressor of 17 joints.

    Args:
        rest_29: (29, 3) its joints and ends of bones, as the golden file holds them.
    """
    owner = np.arange(VERTICES) % JOINTS
    template = rest_29[owner] + 0.04 * draw("synthetic.v_template", (VERTICES, 3))
    template[list(LEAF_VERTICES)] = rest_29[JOINTS:]
    regressor = np.zeros((JOINTS, VERTICES))
    regressor[owner, np.arange(VERTICES)] = 1.0
    regressor /= regressor.sum(1, keepdims=True)
    compared = regressor[list(H36M_FROM_BODY)]
    compared[HEAD] = 0
    compared[HEAD, LEAF_VERTICES[0]] = 1.0
    weights = np.zeros((VERTICES, JOINTS))
    parent = np.array([max(p, 0) for p in PARENTS])[owner]
    np.add.at(weights, (np.arange(VERTICES), owner), 0.8)
    np.add.at(weights, (np.arange(VERTICES), parent), 0.2)

    def rounded(values: np.ndarray) -> np.ndarray:
        return values.astype(np.float32).astype(np.float64)

    arrays = ModelArrays(
        template=rounded(template),
        faces=np.zeros((1, 3), dtype=np.int64),
        shape_basis=rounded(0.01 * draw("synthetic.shapedirs", (VERTICES, 3, 10))),
        pose_basis=rounded(0.002 * draw("synthetic.posedirs", (VERTICES, 3, 207))),
        skin_weights=rounded(weights),
        joint_regressor=rounded(regressor),
        parents=PARENTS,
    )
    return arrays, rounded(compared)


@cache
def golden_body(rest: bytes) -> SmplHybrik:
    """The body of a golden file, made once; ``rest`` are the bytes of its (29, 3) float64 array."""
    return SmplHybrik(*body_arrays(np.frombuffer(rest).reshape(-1, 3)))


def picture(name: str, height: int, width: int) -> np.ndarray:
    """A uint8 RGB picture: blocks of 16 pixels with fine noise."""
    coarse = normal(name, (height // 16, width // 16, 3))
    blocks = np.repeat(np.repeat(coarse, 16, 0), 16, 1) * 40 + 127
    noisy = blocks + 8 * normal(name + ".n", (height, width, 3))
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def loss_inputs(salt: str = "", people: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Prediction and target, as the official loss takes them."""

    def drawn(name: str, *shape: int) -> Tensor:
        return torch.from_numpy(normal("loss." + name, (people, *shape), salt))

    def flags(name: str, *shape: int) -> Tensor:
        return (drawn(name, *shape) > 0).float()

    xyz_weight = flags("txw", 72)
    xyz_weight[1] = 0
    known = torch.ones(people, 1)
    known[1] = 0
    prediction = {
        "shape": drawn("shape", 10),
        "quaternions": drawn("theta", 96),
        "twist": drawn("phi", 23, 2),
        "uvd": 0.2 * drawn("uvd", 87),
        "xyz": 0.2 * drawn("xyz", 87),
        "camera_shift": drawn("ct", 2),
        "camera_scale": drawn("cs", 1),
    }
    target = {
        "smpl_weight": known,
        "betas": drawn("tb", 10),
        "theta": drawn("tt", 96),
        "theta_weight": flags("ttw", 96),
        "twist": drawn("tp", 23, 2),
        "twist_weight": flags("tpw", 23, 2),
        "uvd": 0.2 * drawn("tu", 87),
        "uvd_weight": flags("tuw", 87),
        "xyz": 0.2 * drawn("tx", 72),
        "xyz_weight": xyz_weight,
        "camera_shift": drawn("tct", 2),
        "camera_scale": drawn("tcs", 1),
    }
    return _in_joints(prediction), _in_joints(target)


def _in_joints(flat: dict[str, Tensor]) -> dict[str, Tensor]:
    """Numbers in one row as (B, joints, 3) or, of quaternions, (B, joints, 4)."""
    sizes = {"uvd": 3, "xyz": 3, "uvd_weight": 3, "xyz_weight": 3}
    sizes |= {"theta": 4, "theta_weight": 4, "quaternions": 4}
    return {k: v.unflatten(1, (-1, sizes[k])) if k in sizes else v for k, v in flat.items()}


def metric_inputs(unit: float, salt: str = "", people: int = 6) -> dict[str, Tensor]:
    """Joints in metres of people whose labels are drawn in a unit of which a metre has ``unit``."""
    columns: dict[str, list[Any]] = {"gt17": [], "gt24": [], "pred17": [], "pred24": []}
    for person in range(people):
        for count, name, short in ((17, "gt17", "17"), (29, "gt24", "29")):
            target = unit * 0.4 * draw(f"m.g{short}.{person}", (count, 3), salt)
            own = 24 if count == 29 else 17
            noise = 0.05 * draw(f"m.p{own}.{person}", (own, 3), salt)
            predicted = ((target[:own] / unit + noise) / 2.2).astype(np.float32)
            columns[name].append(target[:own] / unit)
            columns[f"pred{own}"].append(predicted * 2.2)
    return {k: torch.from_numpy(np.stack(v)).float() for k, v in columns.items()}
