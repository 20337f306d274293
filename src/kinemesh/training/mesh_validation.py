"""Scores and pictures of a mesh network in training.

Legend: B batch, T joints that are tokens, V vertices, S side of the crop.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.protocols import Known, Points, Protocol, overall
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import Skeleton
from kinemesh.training.mesh_objective import JointObjective, MeshObjective

Batch = Mapping[str, Tensor]


class Prediction(NamedTuple):
    """Joints as they are scored, in the order of the tokens.

    Attributes:
        joints_BT3: Metres; regressed from the mesh where there is one, as METRO is scored.
        places_BT2: The same projected, signed crop coordinates.
        vertices_BV3: Metres, in the frame of the joints; None without a mesh.
    """

    joints_BT3: Tensor
    places_BT2: Tensor
    vertices_BV3: Tensor | None


@torch.inference_mode()
def predict(model: nn.Module, objective: JointObjective, image_B3SS: Tensor) -> Prediction:
    """Run a network on sRGB crops in [0, 1]."""
    output = model(objective.normalised(image_B3SS))
    joints_BT3, vertices_BV3 = output.joints, None
    if isinstance(objective, MeshObjective):
        vertices_BV3 = output.vertices[-1]
        joints_BT3 = objective.loss.joints(vertices_BV3)
    places_BT2 = WeakPerspective.from_vector(output.camera).project(joints_BT3)
    return Prediction(joints_BT3, places_BT2, vertices_BV3)


@torch.inference_mode()
def measure(
    model: nn.Module,
    held_out: Iterable[Batch],
    objective: JointObjective,
    topology: Topology,
    protocol: Protocol,
    device: torch.device,
) -> dict[str, float]:
    """Score held-out samples by a protocol.

    Args:
        model: Network on ``device``.
        held_out: Batches of records.
        objective: What makes targets of a batch, on ``device``.
        topology: Mesh of the network.
        protocol: What is measured; scores of vertices are left out without a mesh.
        device: Where to compute.

    Returns:
        Means over the samples that count, by a short key such as ``pa_mpjpe_mm``.
    """
    columns: dict[str, list[Tensor]] = {}
    flags: list[tuple[Tensor, Tensor]] = []
    for batch in held_out:
        moved = {name: value.to(device) for name, value in batch.items()}
        found = predict(model, objective, moved["image"])
        target = _target(moved, objective, topology, protocol)
        own = Points(protocol.joints_of(found.joints_BT3, topology.token_skeleton))
        if found.vertices_BV3 is not None and isinstance(objective, MeshObjective):
            root_B13 = objective.loss.root(found.vertices_BV3)
            own = own._replace(vertices=found.vertices_BV3, mesh_root=root_B13)
        for name, values in protocol.measure(own, target).items():
            columns.setdefault(name, []).append(values)
        flags.append((moved["has_3d"], moved["has_mesh"]))
    known = Known(*(torch.cat(column) for column in zip(*flags, strict=True)))
    return {
        f"{score.metric} {score.unit}".strip().lower().replace("-", "_").replace(" ", "_"): overall(
            score, torch.cat(columns[score.metric]), known
        )[0]
        for score in protocol.scores
        if score.metric in columns
    }


def _target(
    batch: Batch, objective: JointObjective, topology: Topology, protocol: Protocol
) -> Points:
    skeleton = topology.token_skeleton
    if not isinstance(objective, MeshObjective):
        joints_BT4 = objective.joint_targets(batch).joints_3d_BT4
        return Points(protocol.joints_of(joints_BT4[..., :3], skeleton))
    targets = objective.targets(batch)
    joints_BT3 = protocol.joints_of(targets.joints_3d_BT4[..., :3], skeleton)
    vertices_BV3 = targets.vertices_BV3
    return Points(joints_BT3, vertices_BV3, objective.loss.root(vertices_BV3))


def joint_sheet(
    model: nn.Module,
    batch: Batch,
    objective: JointObjective,
    skeleton: Skeleton,
    count: int = 12,
    side_px: int = 192,
) -> NDArray[np.uint8]:
    """A row of crops with the predicted joints, projected with the predicted camera.

    Returns:
        RGB (side_px, count * side_px, 3).
    """
    image = batch["image"][:count]
    found = predict(model, objective, image.to(objective.order_T.device))
    places_px = ((found.places_BT2 + 1) / 2 * side_px).cpu().numpy()
    crops = []
    for crop, joints_px in zip(image, places_px, strict=True):
        pixels = (crop.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        enlarged = cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_LINEAR)
        crops.append(draw_skeleton(np.asarray(enlarged, dtype=np.uint8), joints_px, skeleton))
    return np.concatenate(crops, axis=1)
