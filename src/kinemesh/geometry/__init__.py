"""Frames, crops, cameras, rotations and alignment; see ``docs/conventions.md``."""

from kinemesh.geometry.cameras import (
    PerspectiveCamera,
    WeakPerspective,
    default_focal_px,
    focal_from_35mm,
    focal_from_fov,
    fov_from_focal,
    perspective_to_weak,
    ray_rotation,
    solve_translation,
    weak_to_perspective,
)
from kinemesh.geometry.crops import (
    box_to_square,
    crop_matrix,
    from_signed,
    invert_affine,
    to_cv2,
    to_signed,
    transform_points,
    warp_crop,
)
from kinemesh.geometry.procrustes import Similarity, procrustes_align
from kinemesh.geometry.rotations import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_quaternion,
    matrix_to_rotation_6d,
    quaternion_to_matrix,
    rotation_6d_to_matrix,
    skew,
)

__all__ = [
    "PerspectiveCamera",
    "Similarity",
    "WeakPerspective",
    "axis_angle_to_matrix",
    "box_to_square",
    "crop_matrix",
    "default_focal_px",
    "focal_from_35mm",
    "focal_from_fov",
    "fov_from_focal",
    "from_signed",
    "invert_affine",
    "matrix_to_axis_angle",
    "matrix_to_quaternion",
    "matrix_to_rotation_6d",
    "perspective_to_weak",
    "procrustes_align",
    "quaternion_to_matrix",
    "ray_rotation",
    "rotation_6d_to_matrix",
    "skew",
    "solve_translation",
    "to_cv2",
    "to_signed",
    "transform_points",
    "warp_crop",
    "weak_to_perspective",
]
