"""SMPL from the user's own model file (Loper et al., SIGGRAPH Asia 2015)."""

from pathlib import Path

from torch import Tensor, nn

from kinemesh.bodies.model_files import ModelArrays, read_model_file
from kinemesh.bodies.skinning import BodyMesh, Skinning, official_rotations
from kinemesh.errors import InputError
from kinemesh.skeletons import SMPL24

JOINTS = len(SMPL24)


class SmplModel(nn.Module):
    """SMPL: pose and shape to a mesh of 6890 vertices and 24 joints.

    Axes of the file: x to the person's left, y up, z forward. Batched and differentiable, float32
    unless the module is converted. No parameters, and nothing of the file enters state dicts.

    Attributes:
        joint_regressor: (24, V) float64 array, rest joints from rest vertices.
    """

    def __init__(self, arrays: ModelArrays) -> None:
        super().__init__()
        self.joint_regressor = arrays.joint_regressor
        self.skinning = Skinning(arrays)

    @classmethod
    def load(cls, path: str | Path) -> "SmplModel":
        """Read a .pkl, .npz or .safetensors model file; `read_model_file` says how it fails."""
        return cls(read_model_file(path, JOINTS))

    @property
    def faces(self) -> Tensor:
        """(F, 3) int64 triangles, counter-clockwise seen from outside."""
        return self.skinning.faces_F3

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
        if pose_B72.shape[1:] != (3 * JOINTS,):
            raise InputError(
                f"pose_B72: expected shape (B, {3 * JOINTS}), found {tuple(pose_B72.shape)}; "
                "flatten the axis-angle vectors of the 24 joints"
            )
        rotations_BJ33 = official_rotations(pose_B72.reshape(-1, JOINTS, 3))
        posed: BodyMesh = self.skinning(rotations_BJ33, betas_B10)
        return posed
