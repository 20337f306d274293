"""Slow, obvious twins in float64: rotations and linear blend skinning, one vertex at a time."""

import numpy as np


def official_rotation(axis_angle: np.ndarray) -> np.ndarray:
    """(3, 3) of one vector: angle ``|v + 1e-8|``, axis ``v / angle``, by way of a quaternion."""
    angle = np.sqrt(sum((component + 1e-8) ** 2 for component in axis_angle))
    x, y, z = np.sin(angle / 2) * axis_angle / angle
    w = np.cos(angle / 2)
    norm = np.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / norm, x / norm, y / norm, z / norm
    return np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (w * y + x * z)],
            [2 * (w * z + x * y), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (w * x + y * z), w * w - x * x - y * y + z * z],
        ]
    )


def skin(
    arrays: dict[str, np.ndarray], rotations: np.ndarray, betas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (V, 3) and joints (J, 3) of one body from the arrays of a model file."""
    parents = [int(parent) for parent in arrays["kintree_table"][0]]
    rest = np.array(
        [
            vertex + sum(beta * basis[:, k] for k, beta in enumerate(betas))
            for vertex, basis in zip(arrays["v_template"], arrays["shapedirs"], strict=True)
        ]
    )
    joints = np.array(
        [sum(w * v for w, v in zip(row, rest, strict=True)) for row in arrays["J_regressor"]]
    )
    transforms = []
    for joint, rotation in enumerate(rotations):
        local = np.eye(4)
        local[:3, :3] = rotation
        local[:3, 3] = joints[joint] - (joints[parents[joint]] if joint else 0)
        transforms.append(transforms[parents[joint]] @ local if joint else local)
    feature = np.concatenate([(rotation - np.eye(3)).ravel() for rotation in rotations[1:]])
    vertices = []
    for vertex, basis, weights in zip(rest, arrays["posedirs"], arrays["weights"], strict=True):
        place = vertex + basis @ feature
        vertices.append(
            sum(
                weight * (transform @ np.append(place - joint, 1))[:3]
                for weight, transform, joint in zip(weights, transforms, joints, strict=True)
            )
        )
    return np.array(vertices), np.array([transform[:3, 3] for transform in transforms])
