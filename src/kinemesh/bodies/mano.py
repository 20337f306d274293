"""MANO's right hand from the user's own model file (Romero et al., SIGGRAPH Asia 2017)."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kinemesh.bodies.model_files import ModelArrays, read_model_file
from kinemesh.bodies.skinning import BodyMesh, BodyModel, check_pose, take
from kinemesh.errors import InputError

JOINTS, VERTICES = 16, 778
TIP_VERTICES = (745, 317, 444, 556, 673)
"""Thumb, index, middle, ring and little finger tip of the layer that makes labels and templates."""
REGRESSOR_TIP_VERTICES = (745, 317, 445, 556, 673)
"""The same in the regressor that makes joints of predicted meshes; the middle finger differs."""
HAND21_ORDER = (0, 13, 14, 15, 16, 1, 2, 3, 17, 4, 5, 6, 18, 10, 11, 12, 19, 7, 8, 9, 20)
"""Where each joint of HAND21 stands among the file's 16 joints followed by the five tips."""


class ManoModel(BodyModel):
    """MANO, right hand: pose and shape to a mesh of 778 vertices and 21 joints.

    Batched and differentiable, float32 unless the module is converted. No parameters, and nothing
    of the file enters state dicts. A left hand is the right hand of a mirrored picture:
    ``Topology.mirrored()`` and a negated x turn results into a left hand's.

    Attributes:
        joint_regressor: (21, 778) float64 array, joints of a mesh in whatever pose: what losses and
            results are made with. The file's regressor with the tips of `REGRESSOR_TIP_VERTICES`.
            It was made for the rest shape, and the middle finger's tip is another vertex, so it
            does not reproduce the joints of `forward` exactly; published results use it all the
            same.
    """

    mean_pose_45: Tensor

    def __init__(self, arrays: ModelArrays) -> None:
        """Keep the arrays.

        Raises:
            InputError: There is no mean hand pose, or the mesh does not have 778 vertices.
        """
        if arrays.mean_pose is None:
            raise InputError("arrays: expected a hand with 'hands_mean', found none; is it MANO?")
        if len(arrays.template) != VERTICES:
            raise InputError(
                f"arrays: expected {VERTICES} vertices, found {len(arrays.template)}; the finger "
                "tips are known for MANO's own mesh alone"
            )
        tips = np.eye(VERTICES)[list(REGRESSOR_TIP_VERTICES)]
        rows = np.concatenate([arrays.joint_regressor, tips])
        super().__init__(arrays, rows[list(HAND21_ORDER)])
        mean = torch.from_numpy(arrays.mean_pose).float()
        self.register_buffer("mean_pose_45", mean, persistent=False)

    @classmethod
    def load(cls, path: str | Path) -> "ManoModel":
        """Read MANO_RIGHT as .pkl, .npz or .safetensors; `read_model_file` says how it fails.

        Raises:
            InputError: The file is named as a left hand's, or it is not a MANO file.
        """
        path = Path(path)
        if "left" in path.stem.lower():
            raise InputError(
                f"{path}: expected the right hand, found the left; networks and labels know only "
                "right hands. Use MANO_RIGHT and mirror picture and mesh for a left hand"
            )
        return cls(read_model_file(path, JOINTS))

    def forward(self, pose_B48: Tensor, betas_B10: Tensor) -> BodyMesh:
        """Pose the hand.

        Args:
            pose_B48: (B, 48) axis times angle in radians: the wrist, then 15 joints to which the
                file's mean pose is added, so that zeros give the mean pose.
            betas_B10: (B, 10) shape coefficients.

        Returns:
            Vertices (B, 778, 3) and joints (B, 21, 3) of `kinemesh.skeletons.HAND21`, metres, in
            the axes of the file. (Published labels and layers also speak of millimetres.) Finger
            tips are vertices; the wrist is not at the origin.

        Raises:
            InputError: A shape does not fit.
        """
        check_pose("pose_B48", pose_B48, JOINTS)
        full_B48 = torch.cat([pose_B48[:, :3], pose_B48[:, 3:] + self.mean_pose_45], dim=1)
        vertices_BV3, joints_BJ3 = self.posed(full_B48, betas_B10)
        with_tips = torch.cat([joints_BJ3, take(vertices_BV3, TIP_VERTICES)], dim=1)
        return BodyMesh(vertices_BV3, take(with_tips, HAND21_ORDER))
