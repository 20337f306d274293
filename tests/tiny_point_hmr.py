"""A small PointHMR on a made-up body of 60 vertices, on Anny's, or on any topology."""

from pathlib import Path
from typing import Any

import torch

from kinemesh.bodies.official_assets import smpl_topology
from kinemesh.bodies.topology import Topology
from kinemesh.models.point_hmr import PointHmr
from kinemesh.models.variants import build_variant
from tests.body_fixtures import write_smpl_assets

SIDE = 64
TINY_HRNET = {"name": "hrnet", "width": 4, "stem_width": 4, "modules": (1, 1, 1)}
TINY_RESNET = {"name": "resnet", "depth": 50, "width": 2}
TINY = {
    "width": 16,
    "position_width": 8,
    "second_width": 8,
    "feed_forward": (16, 8),
    "heads": 2,
    "layers": 2,
    "resolution": SIDE,
}


def small_body(folder: Path) -> Topology:
    """Levels of 60, 15 and 4 vertices."""
    write_smpl_assets(folder, 60, form="npz")
    return smpl_topology(folder)


def tiny(
    topology: Topology | None = None, name: str = "point-hmr-body-w32", **changes: Any
) -> PointHmr:
    """The network with random weights of every kind, in eval mode."""
    backbone = TINY_RESNET if name.endswith("r50") else TINY_HRNET
    network = build_variant(name, topology, **{"backbone": backbone, **TINY, **changes})
    assert isinstance(network, PointHmr)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor_name, value in network.state_dict().items():
            if value.is_floating_point() and value.ndim < 2:
                noise = torch.randn(value.shape, generator=generator)
                value.copy_(
                    1 + 0.1 * noise.abs() if tensor_name.endswith("running_var") else 0.1 * noise
                )
    return network.eval()
