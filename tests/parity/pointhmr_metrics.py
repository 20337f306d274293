"""PointHMR's metrics and validation loop; the protocol is METRO's of Human3.6M."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinemesh.evaluation.table import SampleTable
from kinemesh.metrics import best_aligned, mean_over_points, point_distances
from kinemesh.protocols import HUMAN36M_P2, Known, overall_official
from kinemesh.skeletons import METRO24, root_position
from tests import parity
from tests.parity import Comparison, Tolerance
from tests.parity.pointhmr_mesh import body_topology, draw, salt_of
from tests.seeded_weights import normal

FLOAT32_METRES = Tolerance(2e-6)  # the goldens are float32 metres; both sides round
KNOWN = {0: ((1.0, 1.0, 0.0), (1.0, 0.0, 1.0))}
"""has_3d and has_mesh of a batch, where not all are known."""
NAMES = {"MPVPE": "mPVE", "MPJPE": "mPJPE", "PA-MPJPE": "PAmPJPE"}


def compare(golden_folder: Path) -> list[Comparison]:
    """``metrics.npz`` of a folder, if it is there."""
    path = golden_folder / "metrics.npz"
    if not path.is_file():
        return []
    with np.load(path) as file:
        golden = dict(file)
    sizes = [len(golden[f"pampjpe.{b}"]) for b in range(sum("pampjpe." in key for key in golden))]
    salt = salt_of(golden_folder, "metrics")
    ours = _validation(sizes, salt) | _alignment(golden["pa_aligned"].shape, salt)
    return [parity.compare("metrics", ours, golden, FLOAT32_METRES)]


def _validation(sizes: list[int], salt: str) -> dict[str, object]:
    """The official loop over batches, in metres."""
    table, arrays, first = SampleTable(), dict[str, object](), 0
    for number, size in enumerate(sizes):
        columns, known = _batch(number, size, salt)
        short = {"MPVPE": "mpve", "MPJPE": "mpjpe", "PA-MPJPE": "pampjpe"}
        flags = {"MPVPE": known.has_mesh, "MPJPE": known.has_3d}
        for name, values in columns.items():
            kept = values[flags[name] > 0] if name in flags else values
            arrays[f"{short[name]}.{number}"] = kept / 1000
        table.add(torch.arange(first, first + size), {**columns, **known._asdict()})
        first += size
    _, columns = table.collect()
    known = Known(columns["has_3d"], columns["has_mesh"])
    for score in HUMAN36M_P2.scores:
        mean, _ = overall_official(score, columns[score.metric], known, batch_size=sizes[0])
        arrays[NAMES[score.metric]] = np.float64(mean / 1000)
    arrays["count"] = np.float64(known.has_mesh.sum().item())
    return arrays


def _batch(number: int, size: int, salt: str) -> tuple[dict[str, Tensor], Known]:
    topology = body_topology()
    vertices = len(topology.template)
    drawn = normal("smpl_template", (1, vertices, 3), salt) * np.float32(0.3)
    mesh = torch.from_numpy(drawn).expand(size, -1, -1)
    own = mesh + draw(f"eval.pred_vertices.{number}", (size, vertices, 3), salt, 0.05)
    labels = draw(f"eval.joints_3d.{number}", (size, len(METRO24), 3), salt, 0.3)
    labels = labels - root_position(labels, METRO24)
    target = HUMAN36M_P2.points_of_mesh(mesh, topology)
    target = target._replace(joints=HUMAN36M_P2.joints_of(labels, METRO24))
    columns = HUMAN36M_P2.measure(HUMAN36M_P2.points_of_mesh(own, topology), target)
    ones = (1.0,) * size
    has_3d, has_mesh = KNOWN.get(number, (ones, ones))
    return columns, Known(torch.tensor(has_3d[:size]), torch.tensor(has_mesh[:size]))


def _alignment(shape: tuple[int, ...], salt: str) -> dict[str, object]:
    """Similarities, among them of a turned and enlarged set and of a mirrored one."""
    own = draw("eval.pa.S1", shape, salt)
    other = draw("eval.pa.S2", shape, salt)
    quarter_turn = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    other[1] = 2.5 * own[1] @ quarter_turn.T + 0.7
    other[2] = own[2] * torch.tensor([-1.0, 1.0, 1.0])
    aligned, _ = best_aligned(own, other, reflection=False)
    errors = mean_over_points(point_distances(aligned, other))
    return {"pa_aligned": aligned, "pa_error": errors, "pa_error_mean": errors.mean()}
