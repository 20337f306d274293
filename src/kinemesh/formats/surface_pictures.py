"""Depth, normals and masks of recovered people, pixel for pixel with their photo.

Image generation takes them as controls, and robots as measurements. One picture shows either
everybody, the nearest in front, or one person alone and whole, also where others hide them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch

from kinemesh.formats.glb import check_meshes
from kinemesh.inference.person import Person, PhotoCamera
from kinemesh.rendering import interpolate, project_points, rasterize, vertex_normals

DEPTH_LIMIT_MM = 65535
FARTHEST_GREY = 51
"""Of the farthest surface in `encode_nearness`, to stand apart from the black behind it."""
FLAT_NORMAL = (128, 128, 255)
"""Where nobody is: the colour of a surface that faces the viewer."""


@dataclass(frozen=True)
class Surface:
    """The visible surface of people in a photo; beyond its window there is none.

    Attributes:
        size: Width and height of the photo in pixels.
        window: Columns and rows (left, top, right, bottom) of the photo that the arrays cover.
        depth_m: (H, W) float32 z in the camera frame, infinite where nothing is.
        normals: (H, W, 3) float32 outward unit normals in camera axes, 0 where nothing is.
    """

    size: tuple[int, int]
    window: tuple[int, int, int, int]
    depth_m: np.ndarray
    normals: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool, true where a surface is seen."""
        return np.asarray(np.isfinite(self.depth_m))

    def in_photo(self, values: np.ndarray, background: int | tuple[int, ...]) -> np.ndarray:
        """A picture of the photo's size from values of the window, the rest one colour."""
        left, top, right, bottom = self.window
        shape = (self.size[1], self.size[0], *values.shape[2:])
        picture = np.full(shape, background, values.dtype)
        picture[top:bottom, left:right] = values
        return picture


def see_surface(people: Sequence[Person]) -> Surface:
    """What the camera of the photo sees of people if nothing else were there.

    Every pixel is what its centre sees, without smoothing of edges. Surfaces nearer than 1 cm are
    left out.

    Args:
        people: At least one, of one photo.

    Raises:
        InputError: Somebody has no mesh.
    """
    check_meshes(people, "depth, normal or mask")
    camera = people[0].camera
    starts = np.cumsum([0, *(len(person.vertices) for person in people[:-1])])
    vertices = torch.from_numpy(np.concatenate([person.vertices for person in people])).double()
    faces = torch.from_numpy(
        np.concatenate([p.faces + start for p, start in zip(people, starts, strict=True)])
    )
    points_px = project_points(
        vertices[None],
        vertices.new_tensor([camera.focal_px]),
        vertices.new_tensor([camera.principal_px]),
    )
    window = _window(points_px[0], camera)
    left, top, right, bottom = window
    shifted = points_px - points_px.new_tensor([left, top, 0])
    fragments = rasterize(shifted, faces, bottom - top, right - left)
    blended = interpolate(fragments, faces, vertex_normals(vertices[None], faces).float())[0]
    normals = torch.nn.functional.normalize(blended, dim=-1)
    return Surface(camera.image_size, window, fragments.depth[0].numpy(), normals.numpy())


def encode_depth(surface: Surface) -> bytes:
    """PNG of 16 bits: z in whole millimetres, 0 where nothing is, at most 65535."""
    depth_mm = np.where(surface.mask, surface.depth_m * 1000, 0)
    values = np.clip(np.round(depth_mm), 0, DEPTH_LIMIT_MM).astype(np.uint16)
    return _png(surface.in_photo(values, 0))


def encode_nearness(surface: Surface) -> bytes:
    """PNG of 8 bits for image generation: white is nearest, dark grey farthest, black nothing.

    Grey is linear in 1 / z between 51 at the farthest and 255 at the nearest surface, the form of
    the maps on which networks of image generation are trained.
    """
    mask = surface.mask
    inverse = np.where(mask, 1 / surface.depth_m, 0)
    far, near = (inverse[mask].min(), inverse[mask].max()) if mask.any() else (0.0, 0.0)
    share = (inverse - far) / (near - far) if near > far else np.ones_like(inverse)
    grey = np.where(mask, FARTHEST_GREY + (255 - FARTHEST_GREY) * share, 0)
    return _png(surface.in_photo(np.round(grey).astype(np.uint8), 0))


def encode_normals(surface: Surface) -> bytes:
    """PNG of 8-bit RGB: red faces left, green up, blue to the viewer, each from -1 (0) to 1 (255).

    These are the colours that ControlNet's normal networks expect. Left is the viewer's left. In
    camera axes (x right, y down, z forward) that is the negated normal.
    """
    colours = np.round((1 - surface.normals) * 127.5).astype(np.uint8)
    colours[~surface.mask] = FLAT_NORMAL
    return _png(surface.in_photo(colours, FLAT_NORMAL)[:, :, ::-1])


def encode_mask(surface: Surface) -> bytes:
    """PNG of 8 bits: 255 where a surface is, else 0."""
    return _png(surface.in_photo(np.where(surface.mask, 255, 0).astype(np.uint8), 0))


def _window(points_px: torch.Tensor, camera: PhotoCamera) -> tuple[int, int, int, int]:
    """The part of the photo that the points may reach, at least one pixel."""
    width, height = camera.image_size
    before = points_px[points_px[:, 2] > 0]
    if len(before) == 0:
        return 0, 0, 1, 1
    low, high = before[:, :2].min(0).values, before[:, :2].max(0).values
    left = int(low[0].floor().clamp(0, width - 1))
    top = int(low[1].floor().clamp(0, height - 1))
    right = int(high[0].ceil().clamp(left + 1, width))
    bottom = int(high[1].ceil().clamp(top + 1, height))
    return left, top, right, bottom


def _png(picture: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", picture)[1].tobytes())
