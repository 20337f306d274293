"""Scores and pictures of a mesh network in training, read as `kinemesh.evaluation` reads them.

Legend: B batch, J joints, S side of the crop.
"""

from collections.abc import Iterable, Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.evaluation import LabelSide, NetworkSide
from kinemesh.geometry.cameras import WeakPerspective
from kinemesh.protocols import Known, Protocol, overall
from kinemesh.rendering.overlay import draw_skeleton

Batch = Mapping[str, Tensor]


@torch.inference_mode()
def measure(
    network: NetworkSide,
    labels: LabelSide,
    held_out: Iterable[Batch],
    protocol: Protocol,
    device: torch.device,
) -> dict[str, float]:
    """Score held-out samples by a protocol.

    Args:
        network: What is scored, on ``device``.
        labels: What it is scored against, on ``device``.
        held_out: Batches of records.
        protocol: What is measured; scores of vertices are left out without a mesh.
        device: Where to compute.

    Returns:
        Means over the samples that count, by a short key such as ``pa_mpjpe_mm``.
    """
    columns: dict[str, list[Tensor]] = {}
    flags: list[Known] = []
    for batch in held_out:
        moved = {name: value.to(device) for name, value in batch.items()}
        target, known = labels(moved, protocol)
        points = network(moved["image"], protocol)
        for name, values in protocol.measure(points, target).items():
            columns.setdefault(name, []).append(values)
        flags.append(known)
    known = Known(*(torch.cat(column) for column in zip(*flags, strict=True)))
    return {
        f"{score.metric} {score.unit}".strip().lower().replace("-", "_").replace(" ", "_"): overall(
            score, torch.cat(columns[score.metric]), known
        )[0]
        for score in protocol.scores
        if score.metric in columns
    }


@torch.inference_mode()
def joint_sheet(
    network: NetworkSide,
    batch: Batch,
    device: torch.device,
    count: int = 12,
    side_px: int = 192,
) -> NDArray[np.uint8]:
    """A row of crops with the predicted joints, projected with the predicted camera.

    Returns:
        RGB (side_px, count * side_px, 3).
    """
    image_B3SS = batch["image"][:count]
    output = network.run(image_B3SS.to(device))
    camera = WeakPerspective.from_vector(output.camera.float())
    places_px = camera.project_px(network.joints(output), side_px).cpu().numpy()
    crops = []
    for crop, joints_px in zip(image_B3SS, places_px, strict=True):
        pixels = (crop.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        enlarged = cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_LINEAR)
        picture = np.asarray(enlarged, dtype=np.uint8)
        crops.append(draw_skeleton(picture, joints_px, network.skeleton))
    return np.concatenate(crops, axis=1)
