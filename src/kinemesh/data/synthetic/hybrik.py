"""Rendered people with the labels of POTTER's mesh network, for Anny's body.

Twists are those with which the network's inverse kinematics comes nearest to the true rotations;
rotations are what it then finds from the true places.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from kinemesh.bodies.hybrik import fit_twists, joint_rotations, signed_quaternion
from kinemesh.bodies.hybrik_anny import AnnyHybrik
from kinemesh.data.hybrik_crop import normalised
from kinemesh.data.hybrik_records import HybrikSample
from kinemesh.data.hybrik_targets import DEPTH_UNIT_M, camera_target, place_targets
from kinemesh.data.synthetic.body_poses import sample_body_pose
from kinemesh.data.synthetic.dataset import Split, SyntheticDataset
from kinemesh.data.synthetic.scene import Scene, load_stage

SYNTHETIC_HYBRIK = "synthetic-hybrik"


@cache
def load_anny_hybrik() -> AnnyHybrik:
    """Anny's body, made once in each process."""
    return AnnyHybrik(load_stage("body").rig)


class SyntheticHybrik(Dataset[HybrikSample]):
    """The pictures of `SyntheticDataset` of bodies, with the labels of `HybrikSample`.

    Arguments are those of `SyntheticDataset`.
    """

    def __init__(
        self, seed: int = 0, resolution: int = 256, length: int = 10**7, split: Split = "train"
    ) -> None:
        self.pictures = SyntheticDataset("body", seed, resolution, length, split)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> HybrikSample:
        """Sample ``index``."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[HybrikSample]:
        """Several samples, rendered together."""
        plain = self.pictures.__getitems__(indices)
        return [
            self._labelled(index, sample["image"], sample["vertices"] + sample["root_m"])
            for index, sample in zip(indices, plain, strict=True)
        ]

    def _labelled(self, index: int, image: Tensor, vertices_V3: Tensor) -> HybrikSample:
        stage, body = load_stage("body"), load_anny_hybrik()
        size = self.pictures.resolution
        # a scene begins with pose and shape, so the same stream gives them again
        rng = self.pictures._generator(index)
        pose = torch.as_tensor(sample_body_pose(rng, stage.rig), dtype=torch.float32)
        shape = stage.rig.sample_shape(rng)
        scene = stage.sample(self.pictures._generator(index), size)
        return _sample(body, scene, pose[None], shape[None], image, vertices_V3, size)


def _sample(
    body: AnnyHybrik,
    scene: Scene,
    pose_1N33: Tensor,
    shape_1K: Tensor,
    image: Tensor,
    vertices_V3: Tensor,
    size: int,
) -> HybrikSample:
    view = scene.view
    turn_33 = torch.from_numpy(view.rotation)
    joints_1N3, world_1J33 = body.pose_whole(pose_1N33, shape_1K)
    joints_1N3 = joints_1N3 @ turn_33.T + torch.from_numpy(view.translation_m)
    betas_1S = body.coefficients(shape_1K)
    rest_1N3 = body.rest_joints(betas_1S)
    twist_1K2 = fit_twists(turn_33 @ world_1J33, joints_1N3, rest_1N3, body.tree)
    rotations = joint_rotations(joints_1N3, rest_1N3, twist_1K2, body.tree, adaptive=False)
    points = joints_1N3[0].double().numpy()
    relative = points - points[:1]
    places = np.concatenate(
        [points[:, :2] / points[:, 2:] * view.focal_px + size / 2, relative[:, 2:]], axis=1
    )
    uvd, uvd_weight = place_targets(places, np.ones_like(places), size)
    turning = body.tree.turning
    camera = camera_target(relative[:turning], uvd[:turning], uvd_weight[:turning])
    return HybrikSample(
        image=torch.from_numpy(normalised(image.permute(1, 2, 0).numpy() * 255)),
        uvd=_tensor(uvd),
        uvd_weight=_tensor(uvd_weight),
        xyz=_tensor(relative[:turning] / DEPTH_UNIT_M),
        xyz_weight=torch.ones(turning, 3),
        theta=signed_quaternion(rotations)[0],
        theta_weight=torch.ones(turning, 4),
        betas=betas_1S[0],
        twist=twist_1K2[0],
        twist_weight=torch.ones(turning - 1, 2),
        smpl_weight=torch.ones(1),
        camera_scale=torch.tensor([camera.scale], dtype=torch.float32),
        camera_shift=_tensor(camera.shift),
        joints_17=_tensor(relative[:turning]),
        vertices=vertices_V3 - joints_1N3[0, :1],
        activity=torch.tensor(-1),
        sequence=torch.tensor(-1),
        center_px=torch.full((2,), size / 2),
        side_px=torch.tensor(float(size)),
    )


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
