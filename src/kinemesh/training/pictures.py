"""Pictures of predictions on labelled crops, drawn at each validation."""

from collections.abc import Mapping

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kinemesh.bodies.topology import Topology
from kinemesh.rendering.overlay import draw_mesh, draw_skeleton

Image = NDArray[np.uint8]


@torch.inference_mode()
def prediction_sheet(
    network: nn.Module,
    batch: Mapping[str, Tensor],
    topology: Topology,
    device: torch.device,
    count: int = 12,
    side_px: int = 192,
) -> Image:
    """Columns of crops: predicted skeleton above, predicted mesh below.

    Meshes are placed with the labelled root and focal length, so what is seen is the error of the
    pose and not of the camera.

    Args:
        network: Gives a `kinemesh.models.guided_graphormer.GuidedOutput`.
        batch: Collated samples.
        topology: Faces and skeleton.
        device: Where ``network`` is.
        count: How many samples to draw.
        side_px: Side of one crop in the sheet.

    Returns:
        RGB (2 * side_px, count * side_px, 3).
    """
    batch = {name: value[:count] for name, value in batch.items()}
    output = network(batch["image"].to(device))
    zoom = side_px / batch["image"].shape[-1]
    columns = []
    for i, crop in enumerate(batch["image"]):
        pixels = (crop.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        pixels = cv2.resize(pixels, (side_px, side_px), interpolation=cv2.INTER_LINEAR)
        joints_px = output.joints_2d[i].cpu().numpy() * zoom
        vertices = output.vertices[i].cpu().numpy() + batch["root_m"][i].numpy()
        mesh = draw_mesh(
            np.asarray(pixels, dtype=np.uint8),
            [vertices],
            [topology.faces.numpy()],
            focal_px=float(batch["focal_px"][i]) * zoom,
            principal_px=(side_px / 2, side_px / 2),
        )
        skeleton = draw_skeleton(np.asarray(pixels, dtype=np.uint8), joints_px, topology.skeleton)
        columns.append(np.concatenate([skeleton, mesh]))
    return np.concatenate(columns, axis=1)
