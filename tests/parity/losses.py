"""METRO's and Mesh Graphormer's losses against the official terms.

No network runs here: predictions and targets are drawn by name. The targets stand for what labels
and body models give before the root is subtracted.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.topology import CoarseLevel, Kind, Topology
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.mesh_losses import MeshTargets, MeshTransformerLoss
from kinemesh.models.mesh_transformer import MeshOutput
from kinemesh.skeletons import H36M14, H36M17, HAND21, METRO24, Skeleton, joint_map
from tests import parity
from tests.parity import Comparison, Tolerance
from tests.seeded_weights import normal

TOLERANCE = Tolerance(0.0, 1e-6)  # of the term itself: the same sums, in another order
LABELLED_3D = (1.0, 0.0, 1.0, 1.0)
LABELLED_MESH = {"body": (1.0, 1.0, 0.0, 1.0), "hand": LABELLED_3D}


def compare(golden_folder: Path, salt: str = "") -> list[Comparison]:
    """Every ``losses_*.npz`` in a folder."""
    kinds: tuple[Kind, ...] = ("body", "hand")
    return [
        _compare_kind(kind, golden_folder, salt)
        for kind in kinds
        if (golden_folder / f"losses_{kind}.npz").is_file()
    ]


def _compare_kind(kind: Kind, folder: Path, salt: str) -> Comparison:
    with np.load(folder / f"losses_{kind}.npz") as file:
        golden = dict(file)
    batch = len(golden["joints2d"])
    loss = mesh_loss(kind, folder, salt)
    output = predictions(loss, kind, batch, salt)
    ours: dict[str, object] = dict(loss(output, targets(loss, kind, batch, salt)))
    ours["joints2d"] = WeakPerspective.from_vector(output.camera).project(output.joints)
    return parity.compare(f"losses_{kind}", ours, golden, TOLERANCE)


def mesh_loss(kind: Kind, golden_folder: Path, salt: str = "") -> MeshTransformerLoss:
    """The published loss on the meshes of the goldens: real selections, body's real regressor."""
    with np.load(golden_folder / "topology.npz") as arrays:
        if kind == "body":
            return MeshTransformerLoss.body(_body_topology(arrays))
        return MeshTransformerLoss.hand(_hand_topology(arrays, salt))


def predictions(loss: MeshTransformerLoss, kind: Kind, batch: int, salt: str = "") -> MeshOutput:
    """Drawn predictions of the loss goldens."""
    joints = loss.regressor_TV.shape[0]
    vertices = {
        "body": {"_sub2": 431, "_sub": 1723, "": 6890},
        "hand": {"_sub": 195, "": 778},
    }[kind]
    return MeshOutput(
        _draw("pred_cam", (batch, 3), 0.5, salt),
        _draw("pred_joints", (batch, joints, 3), 0.3, salt),
        tuple(
            _draw(f"pred_vertices{name}", (batch, count, 3), 0.3, salt)
            for name, count in vertices.items()
        ),
    )


def targets(loss: MeshTransformerLoss, kind: Kind, batch: int, salt: str = "") -> MeshTargets:
    """Drawn targets, of the loss goldens and of the training cases of the networks."""
    scale, source, tokens = (0.3, METRO24, H36M14) if kind == "body" else (0.1, HAND21, HAND21)
    order = list(joint_map(source, tokens))
    joints_2d = _confident(_draw("gt_joints_2d", (batch, len(source), 3), salt=salt), 0.5)
    if kind == "body":
        joints_3d = _confident(_draw("gt_joints_3d", (batch, 24, 4), salt=salt), scale)
        vertices = _draw("gt_vertices", (batch, 6890, 3), scale, salt)
        root = loss.root(vertices)
    else:
        places = _draw("gt_joints_3d", (batch, 21, 3), scale, salt)
        joints_3d = torch.cat([places, torch.ones_like(places[..., :1])], dim=-1)
        vertices = _draw("gt_vertices", (batch, 778, 3), scale, salt)
        root = places[:, :1]
    return MeshTargets(
        joints_2d[:, order],
        joints_3d[:, order],
        torch.tensor(LABELLED_3D[:batch]),
        vertices - root,
        torch.tensor(LABELLED_MESH[kind][:batch]),
    )


def _draw(name: str, shape: tuple[int, ...], scale: float = 1.0, salt: str = "") -> Tensor:
    return torch.from_numpy(normal(name, shape, salt) * np.float32(scale))


def _confident(drawn: Tensor, scale: float) -> Tensor:
    """Scaled coordinates, and a confidence of 1 where the last column is above -0.5."""
    return torch.cat([drawn[..., :-1] * scale, (drawn[..., -1:] > -0.5).float()], dim=-1)


def _body_topology(arrays: Mapping[str, np.ndarray]) -> Topology:
    prefix = "body/J_regressor_h36m_correct/"
    value = arrays[prefix + "val64"].view(np.float64).astype(np.float32)
    regressor = np.zeros((17, 6890), np.float32)
    regressor[arrays[prefix + "row"], arrays[prefix + "col"]] = value
    fine, coarse = arrays["body/down0"], arrays["body/down1"]
    tokens = tuple(int(joint) for joint in joint_map(H36M17, H36M14))
    return _topology("body", regressor, (fine, fine[coarse]), H36M17, tokens)


def _hand_topology(arrays: Mapping[str, np.ndarray], salt: str) -> Topology:
    drawn = np.abs(normal("mano_joint_regressor", (21, 778), salt)).astype(np.float64) ** 8
    regressor = (drawn / drawn.sum(axis=1, keepdims=True)).astype(np.float32)
    return _topology("hand", regressor, (arrays["hand/down0"],), HAND21, None)


def _topology(
    kind: Kind,
    regressor: np.ndarray,
    levels: tuple[np.ndarray, ...],
    skeleton: Skeleton,
    tokens: tuple[int, ...] | None,
) -> Topology:
    """Only what a loss asks for; there are no faces, edges or up-sampling weights."""
    count = regressor.shape[1]
    none = torch.zeros(0, 2, dtype=torch.int64)
    return Topology(
        name=f"golden-{kind}",
        kind=kind,
        template=torch.zeros(count, 3),
        faces=none,
        levels=tuple(
            CoarseLevel(torch.from_numpy(index).long(), none, none, none, none.float())
            for index in levels
        ),
        regressor_index=torch.arange(count).expand(len(regressor), count),
        regressor_weight=torch.from_numpy(regressor),
        skeleton=skeleton,
        token_joints=tokens,
    )
