"""Metrics, validation loop, test-time augmentation and FreiHAND scores of METRO's goldens."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinemesh.evaluation.freihand import score_points
from kinemesh.evaluation.table import SampleTable
from kinemesh.evaluation.tta import TTA_SETTINGS, TtaFusion
from kinemesh.metrics import best_aligned, point_distances
from kinemesh.protocols import (
    HUMAN36M_P2,
    Known,
    Points,
    Protocol,
    Score,
    overall_official,
)
from kinemesh.skeletons import H36M14, H36M17, METRO24, joint_map, root_position
from tests import parity
from tests.parity import Comparison, Tolerance
from tests.seeded_weights import normal

FLOAT32_METRES = Tolerance(1e-6)
"""The goldens are float32 metres; both sides round."""
BATCHES = ((1, 2, 3, 4), (5, 6, 7))
"""Samples of the official validation loop."""


def compare(golden_folder: Path, salt: str = "") -> list[Comparison]:
    """``metrics.npz``, ``tta_fusion.npz`` and ``freihand_scores.npz``, as far as they are there."""
    parts = {"metrics": _metrics, "tta_fusion": _tta_fusion, "freihand_scores": _freihand_scores}
    found = []
    for name, part in parts.items():
        if (golden_folder / f"{name}.npz").is_file():
            with np.load(golden_folder / f"{name}.npz") as file:
                golden = dict(file)
            ours, tolerance = part(golden, golden_folder, salt)
            found.append(parity.compare(name, ours, golden, tolerance))
    return found


def draw(name: str, shape: tuple[int, ...], salt: str, factor: float = 1.0) -> Tensor:
    """Seeded normal numbers times a float32 factor."""
    return torch.from_numpy(normal(name, shape, salt) * np.float32(factor))


def _metrics(
    golden: dict[str, np.ndarray], folder: Path, salt: str
) -> tuple[dict[str, object], Tolerance]:
    shape = golden["pa_aligned"].shape
    batch = shape[0]
    joints = draw("m_pred", shape, salt, 0.3)
    noise = draw("m_gt", (*shape[:2], 4), salt, 0.3)[..., :3]
    target = joints + np.float32(0.3) * noise
    vertices = draw("m_predv", (batch, 6890, 3), salt, 0.3)
    mesh = vertices + draw("m_gtv", (batch, 6890, 3), salt, 0.03)
    has = torch.tensor([1, 1, 0, 1, 0][:batch]) > 0
    # the official functions compare vertices where they lie
    zero = torch.zeros(batch, 1, 3)
    columns = HUMAN36M_P2.measure(Points(joints, vertices, zero), Points(target, mesh, zero))
    whole_mesh = Protocol("", "", H36M14, (Score("PA", "vertices", alignment="similarity"),))
    pa_mesh = whole_mesh.measure(Points(joints, vertices), Points(target, mesh))["PA"]
    mirrored = target * torch.tensor([-1.0, 1.0, 1.0])
    aligned, _ = best_aligned(joints, target)
    aligned_mirrored, _ = best_aligned(joints, mirrored)
    ours = {
        "mpjpe": columns["MPJPE"][has] / 1000,
        "mpve": columns["MPVPE"][has] / 1000,
        "pampjpe": columns["PA-MPJPE"] / 1000,
        "pa_aligned": aligned,
        "pampjpe_mirrored_gt": point_distances(aligned_mirrored, mirrored).mean(dim=1),
        "pa_aligned_mirrored": aligned_mirrored,
        "pampve": pa_mesh / 1000,
        "validate_mpve_mpjpe_pampjpe_count": _validation(folder, salt),
    }
    return ours, FLOAT32_METRES


def _validation(folder: Path, salt: str) -> Tensor:
    """The official loop over two batches, in metres, and how many samples have 3D joints."""
    table = SampleTable()
    regressor = _human36m_regressor(folder)
    for ids in BATCHES:
        mesh = torch.stack([draw(f"val_gtv_{i}", (6890, 3), salt, 0.3) for i in ids])
        noise = torch.stack([draw(f"val_noise_{i}", (6890, 3), salt, 0.05) for i in ids])
        labels = torch.stack([draw(f"val_gtj_{i}", (24, 4), salt, 0.3) for i in ids])[..., :3]
        labels = labels - root_position(labels, METRO24)
        prediction = mesh + noise + np.float32(0.2)
        own, true = (_body_points(points, regressor) for points in (prediction, mesh))
        target = true._replace(joints=HUMAN36M_P2.joints_of(labels, METRO24))
        known = Known(
            torch.tensor([float(i % 3 != 0) for i in ids]),
            torch.tensor([float(i % 4 != 0) for i in ids]),
        )
        columns = HUMAN36M_P2.measure(own, target)
        table.add(torch.tensor(ids), {**columns, **known._asdict()})
    _, columns = table.collect()
    known = Known(columns["has_3d"], columns["has_mesh"])
    means = [
        overall_official(score, columns[score.metric], known, batch_size=len(BATCHES[0]))[0] / 1000
        for score in HUMAN36M_P2.scores
    ]
    return torch.tensor([*means, known.has_mesh.sum().item()], dtype=torch.float64)


def _human36m_regressor(folder: Path) -> Tensor:
    """The real regressor (17, 6890), from the golden's sparse form."""
    prefix = "body/J_regressor_h36m_correct/"
    with np.load(folder / "topology.npz") as arrays:
        rows, columns, bits = (arrays[prefix + part] for part in ("row", "col", "val64"))
    regressor = np.zeros((len(H36M17), 6890), np.float32)
    regressor[rows, columns] = bits.view(np.float64)
    return torch.from_numpy(regressor)


def _body_points(vertices: Tensor, regressor: Tensor) -> Points:
    joints = regressor @ vertices
    chosen = [index for index in joint_map(H36M17, H36M14) if index is not None]
    return Points(joints[:, chosen], vertices, joints[:, :1])


def _tta_fusion(
    golden: dict[str, np.ndarray], _folder: Path, salt: str
) -> tuple[dict[str, object], Tolerance]:
    ours: dict[str, object] = {"settings": np.array([setting.name for setting in TTA_SETTINGS])}
    for kind in ("joints", "verts"):
        shape = golden[kind].shape
        base = draw(f"tta_base_{kind}", shape, salt, 0.1)
        predictions = {
            setting.name: base + draw(f"tta_{kind}_{setting.name}", shape, salt, 0.01)
            for setting in TTA_SETTINGS
        }
        fusion = TtaFusion(predictions["sc10_rot0"])
        for points in predictions.values():
            fusion.add(points)
        ours[kind] = fusion.result()
    return ours, FLOAT32_METRES


def _freihand_scores(
    golden: dict[str, np.ndarray], _folder: Path, salt: str
) -> tuple[dict[str, object], Tolerance]:
    joints, true_joints = _benchmark("xyz", 21, salt)
    vertices, true_vertices = _benchmark("verts", 778, salt)
    _, reports = score_points(joints, vertices, true_joints, true_vertices)
    value = {report.metric: report.value for report in reports}
    ours = {
        "kp_mean_cm_auc": [value["MPJPE"] / 10, value["AUC of joints"]],
        "kp_aligned": [value["PA-MPJPE"] / 10, value["PA-AUC of joints"]],
        "mesh": [value["MPVPE"] / 10, value["AUC of vertices"]],
        "mesh_aligned": [value["PA-MPVPE"] / 10, value["PA-AUC of vertices"]],
        "f": [value["F@5"], value["F@15"]],
        "f_aligned": [value["PA-F@5"], value["PA-F@15"]],
    }
    return ours, Tolerance(1e-5)


def _benchmark(name: str, count: int, salt: str) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and label (4, count, 3), float64 metres."""
    label = normal(f"fh_{name}", (4, count, 3), salt).astype(np.float64) * 0.04
    noise = normal(f"fh_{name}_noise", (4, count, 3), salt).astype(np.float64) * 0.006
    cosine, sine = math.cos(0.7), math.sin(0.7)
    turn = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    return (label + noise) @ turn.T * 1.1 + 0.3, label
