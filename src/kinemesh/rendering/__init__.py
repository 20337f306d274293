"""Pictures of meshes without OpenGL: rasteriser, shading and overlays on photos."""

from kinemesh.rendering.color import linear_to_srgb, srgb_to_linear
from kinemesh.rendering.lighting import Lighting, SurfaceNoise
from kinemesh.rendering.rasterizer import (
    Fragments,
    interpolate,
    project_points,
    rasterize,
    vertex_normals,
)
from kinemesh.rendering.shading import Rendering, shade

__all__ = [
    "Fragments",
    "Lighting",
    "Rendering",
    "SurfaceNoise",
    "interpolate",
    "linear_to_srgb",
    "project_points",
    "rasterize",
    "shade",
    "srgb_to_linear",
    "vertex_normals",
]
