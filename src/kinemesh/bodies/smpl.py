"""SMPL from the user's own model file (Loper et al., SIGGRAPH Asia 2015)."""

from pathlib import Path

from torch import Tensor

from kinemesh.bodies.model_files import ModelArrays, read_model_file
from kinemesh.bodies.skinning import BodyMesh, BodyModel, check_pose
from kinemesh.skeletons import SMPL24

JOINTS = len(SMPL24)


class SmplModel(BodyModel):
    """SMPL: pose and shape to a mesh of 6890 vertices and 24 joints.

    Axes of the file: x to the person's left, y up, z forward. Batched and differentiable, float32
    unless the module is converted. No parameters, and nothing of the file enters state dicts.

    Attributes:
        joint_regressor: (24, V) float64 array, rest joints from rest vertices.
    """

    def __init__(self, arrays: ModelArrays) -> None:
        super().__init__(arrays, arrays.joint_regressor)

    @classmethod
    def load(cls, path: str | Path) -> "SmplModel":
        """Read a .pkl, .npz or .safetensors model file; `read_model_file` says how it fails."""
        return cls(read_model_file(path, JOINTS))

    def forward(self, pose_B72: Tensor, betas_B10: Tensor) -> BodyMesh:
        """Pose the body.

        Args:
            pose_B72: (B, 72) axis times angle in radians for each of the 24 joints of
                `kinemesh.skeletons.SMPL24`, relative to its parent.
            betas_B10: (B, 10) shape coefficients.

        Returns:
            Vertices (B, V, 3) and joints (B, 24, 3), metres, in the axes of the file.

        Raises:
            InputError: A shape does not fit.
        """
        check_pose("pose_B72", pose_B72, JOINTS)
        return self.posed(pose_B72, betas_B10)
