"""Recovers people from pictures: 2D keypoints, 3D joints, body and hand meshes."""

__version__ = "0.1.0"
