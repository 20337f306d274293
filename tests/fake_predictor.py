"""A small topology and a network with known answers: prediction is tested without weights."""

from typing import NamedTuple

import numpy as np
import torch
import trimesh
from torch import Tensor, nn

from kinemesh.bodies.topology import CoarseLevel, Topology
from kinemesh.inference.person import Person
from kinemesh.inference.predictor import Predictor
from kinemesh.skeletons import get_skeleton

RESOLUTION = 64


def fake_topology(kind: str = "hand") -> Topology:
    """An egg of 162 vertices and 8 cm radius whose joints are some of its vertices."""
    skeleton = get_skeleton("hand21" if kind == "hand" else "coco17")
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.08)
    # glTF's outward order of corners, kept by the turn into camera axes; a lopsided egg, since a
    # ball would hide mirrored results
    vertices = np.asarray(ball.vertices) * [1.0, -1.3, -0.7]
    vertices[:, 0] += 0.4 * vertices[:, 1] ** 2 / 0.08
    every = torch.arange(len(vertices))
    level = CoarseLevel(
        every,
        torch.tensor([[0, 1]]),
        torch.tensor(np.asarray(ball.faces)).long(),
        every[:, None],
        torch.ones(len(vertices), 1),
    )
    joints = torch.arange(len(skeleton)) * 7
    return Topology(
        name=f"fake-{kind}",
        kind=kind,
        template=torch.tensor(vertices, dtype=torch.float32),
        faces=level.faces,
        levels=(level,),
        regressor_index=joints[:, None],
        regressor_weight=torch.ones(len(skeleton), 1),
        skeleton=skeleton,
    )


class FakeOutput(NamedTuple):
    joints: Tensor
    vertices: Tensor
    joints_2d: Tensor
    confidence: Tensor


class FakeNetwork(nn.Module):
    """Finds the red spot in the crop and says that the template stands there.

    The confidence is the share of red in the left half of the crop, to tell an image from its
    mirror image.
    """

    pixels_per_metre = 200.0

    def __init__(self, topology: Topology) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.topology = topology
        self.batches: list[Tensor] = []

    def forward(self, image_B3SS: Tensor) -> FakeOutput:
        self.batches.append(image_B3SS)
        B, _, S, _ = image_B3SS.shape
        red = (image_B3SS[:, 0] - image_B3SS[:, 1]).clamp(min=0) + 1e-9
        places = torch.arange(S) + 0.5
        mass = red.sum((1, 2))
        x = (red.sum(1) * places).sum(1) / mass
        y = (red.sum(2) * places).sum(1) / mass
        joints = self.topology.template_joints.expand(B, -1, -1)
        spot = torch.stack([x, y], 1)[:, None]
        left_share = red[:, :, : S // 2].sum((1, 2)) / mass
        return FakeOutput(
            joints=joints,
            vertices=self.topology.template.expand(B, -1, -1),
            joints_2d=spot + joints[..., :2] * self.pixels_per_metre,
            confidence=left_share[:, None].expand(B, joints.shape[1]).clamp(0.01, 1),
        )


def fake_predictor(kind: str = "hand") -> Predictor:
    topology = fake_topology(kind)
    return Predictor(FakeNetwork(topology), topology, {"resolution": RESOLUTION}, device="cpu")


def spot_photo(width: int, height: int, x: int, y: int, radius: int = 6) -> np.ndarray:
    """A grey photo with a red square centred on (x, y)."""
    photo = np.full((height, width, 3), 128, np.uint8)
    photo[y - radius : y + radius, x - radius : x + radius] = (255, 0, 0)
    return photo


def fake_people(kind: str = "hand") -> list[Person]:
    """Two people in one photo; for hands a right and a left one."""
    photo = spot_photo(300, 200, 80, 100)
    boxes = [
        {"bbox": [30, 50, 100, 100], "score": 0.9, "side": "right"},
        {"bbox": [60, 40, 140, 120], "side": "left"},
    ]
    return fake_predictor(kind).predict(photo, boxes)
