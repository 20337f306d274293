"""Made-up parameters of people that move: exports are tested without a network or a fit."""

from typing import Literal

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.bodies.posable import PosableBody


def moving_person(
    body: PosableBody,
    times: int,
    seed: int = 0,
    side: Literal["left", "right"] | None = None,
    bend_rad: float = 0.25,
) -> list[BodyParameters]:
    """A person of one random shape who walks through the picture, all joints bent at random."""
    rng = np.random.default_rng(seed)
    shape = (0.3 * rng.normal(size=len(body.shape_basis))).astype(np.float32)
    start, end = bend_rad * rng.normal(size=(2, len(body.bones), 3))
    start[0], end[0] = (0.1, -0.4, 0.05), (-0.1, 0.6, 0.0)  # the first bone turns the whole person
    shares = np.linspace(0, 1, times)
    return [
        BodyParameters(
            body=body.name,
            rotations=Rotation.from_rotvec(start + share * (end - start))
            .as_matrix()
            .astype(np.float32),
            shape=shape,
            translation_m=np.array([0.3 * share, 0.1, 3 - share], np.float32),
            residual_mm=1.0,
            side=side,
        )
        for share in shares
    ]


def small_body() -> PosableBody:
    """Six bones whose order is not depth first, with two vertices each."""
    parents = (-1, 0, 0, 1, 2, 3)
    heads = torch.tensor(
        [[0, 0, 0], [0.1, 0.1, 0], [-0.1, 0.1, 0], [0.1, 0.5, 0.1], [-0.1, 0.5, 0.1], [0.1, 0.9, 0]]
    )
    ends = heads + torch.tensor([0.0, 0.1, 0.02])
    return PosableBody(
        name="small",
        bones=("root", "thigh.L", "thigh.R", "shin.L", "shin.R", "foot.L"),
        parents=parents,
        faces=torch.tensor([[0, 2, 4], [1, 3, 5]]),
        skin_weights=torch.eye(len(parents)).repeat(2, 1),
        template=torch.cat([heads, ends]),
        shape_basis=torch.zeros(1, 2 * len(parents), 3),
        bone_template=heads,
        bone_basis=torch.zeros(1, len(parents), 3),
        pose_basis=None,
        axes=torch.eye(3),
    )
