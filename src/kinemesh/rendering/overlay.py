"""Drawings on photos: meshes, a view from the side, skeletons. No OpenGL, no display.

Photos are (H, W, 3) uint8 RGB. Cameras as in the rasteriser: x right, y down, z forward, metres;
pixel centres at integer + 0.5.
"""

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.rendering.color import linear_to_srgb, srgb_to_linear
from kinemesh.rendering.lighting import Lighting
from kinemesh.rendering.rasterizer import NEAR_M, project_points
from kinemesh.rendering.shading import shade
from kinemesh.skeletons import Skeleton

Image = NDArray[np.uint8]
Points = NDArray[np.floating] | Tensor
Color = tuple[float, float, float]

TINTS: tuple[Color, ...] = (
    (0.70, 0.82, 0.97),
    (0.98, 0.80, 0.67),
    (0.70, 0.90, 0.76),
    (0.82, 0.76, 0.96),
    (0.96, 0.90, 0.64),
    (0.96, 0.75, 0.82),
    (0.62, 0.89, 0.90),
    (0.86, 0.82, 0.76),
)
SIDE_COLORS: dict[str, Color] = {
    "left": (1.00, 0.55, 0.20),
    "right": (0.20, 0.60, 1.00),
    "": (0.45, 0.88, 0.45),
}
FINGER_COLORS: dict[str, Color] = {
    "thumb": (0.95, 0.35, 0.30),
    "index": (0.98, 0.78, 0.20),
    "middle": (0.40, 0.82, 0.35),
    "ring": (0.25, 0.70, 0.95),
    "pinky": (0.75, 0.45, 0.95),
}
_BACKGROUND = (236, 238, 241)
_SUPERSAMPLE = 2
_LARGEST_SUPERSAMPLED = 1 << 20  # pixels; beyond, edges are smoothed after drawing instead
_SAMPLES = 1 << 19  # samples shaded at once: bounds the memory, and near what a cache holds
_HALO = 2  # rows that a band sees of its neighbours, so that smoothing leaves no seam
_DEPTH_STEP = 0.01  # relative jump of depth between neighbours that is an edge
_LEAST_CONFIDENCE = 0.3


def draw_mesh(
    image: Image,
    vertices: Sequence[Points],
    faces: Sequence[Points],
    focal_px: float,
    principal_px: Sequence[float] | Points,
    colors: Sequence[Color] | None = None,
    alpha: float = 0.9,
) -> Image:
    """Draw people over their photo, with their occlusion of each other and smooth edges.

    Edges come from 2 x 2 samples a pixel. Where the people fill more than a megapixel, that would
    take many seconds and show little; there one sample is taken and edges are smoothed after.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        vertices: For each person (V, 3) metres in the one camera frame of the photo.
        faces: For each person (F, 3) vertex indices.
        focal_px: Focal length of the photo's camera.
        principal_px: (2,) its principal point.
        colors: For each person sRGB in [0, 1]; by default light tints, blue first.
        alpha: Opacity of the meshes.

    Returns:
        A new image of the same size.

    Raises:
        InputError: The image is not uint8 RGB, or the lists do not fit together.
    """
    _check_image(image)
    canvas = image.copy()
    if not vertices:
        return canvas
    placed, triangles, albedo = _join_people(vertices, faces, colors)
    focal = torch.tensor([float(focal_px)])
    principal = torch.as_tensor(principal_px, dtype=torch.float32).reshape(1, 2)
    left, top, right, bottom = _bounds(placed, focal, principal, image.shape)
    if right <= left or bottom <= top:
        return canvas
    factor = _SUPERSAMPLE if (right - left) * (bottom - top) <= _LARGEST_SUPERSAMPLED else 1
    band = max(8, _SAMPLES // (factor**2 * (right - left)))
    for first in range(top, bottom, band):
        last = min(first + band, bottom)
        start = first - _HALO
        rendering = shade(
            placed,
            triangles,
            focal,
            principal - torch.tensor([[left, start]]),
            last - first + 2 * _HALO,
            right - left,
            albedo,
            placed,
            Lighting.studio(),
            supersample=factor,
            shadow_resolution=256,
            cull=False,
        )
        rgba = rendering.rgba[0].numpy()
        if factor == 1:
            rgba = _smooth_edges(rgba, rendering.depth[0].numpy())
        _blend(canvas[first:last, left:right], rgba[_HALO:-_HALO], alpha)
    return canvas


def draw_side_view(
    vertices: Sequence[Points],
    faces: Sequence[Points],
    focal_px: float,
    height: int,
    width: int,
    colors: Sequence[Color] | None = None,
) -> Image:
    """Draw people on a neutral background as seen from the right of the picture.

    The view is turned by 90 degrees about the vertical axis through the middle of the group, so
    somebody who faces the camera looks to the left. The scale is that of :func:`draw_mesh` unless
    the group would not fit; the group stands in the middle of the picture.

    Args:
        vertices: For each person (V, 3) metres, camera frame.
        faces: For each person (F, 3) vertex indices.
        focal_px: Focal length of the photo's camera.
        height: Rows of the picture.
        width: Columns of the picture.
        colors: As in :func:`draw_mesh`.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    canvas = np.full((height, width, 3), _BACKGROUND, dtype=np.uint8)
    if not vertices:
        return canvas
    people = [_to_float(v).reshape(-1, 3) for v in vertices]
    group = torch.cat(people)
    low, high = group.amin(0), group.amax(0)
    centre = (low + high) / 2
    distance = max(float(centre[2]), 1.5 * float((high - low).norm()), 10 * NEAR_M)
    quarter_turn = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    shift = torch.tensor([0.0, 0.0, distance])
    turned = [(v - centre) @ quarter_turn.T + shift for v in people]
    plane = torch.cat([v[:, :2] / v[:, 2:] for v in turned])
    middle, extent = (plane.amin(0) + plane.amax(0)) / 2, plane.amax(0) - plane.amin(0)
    size = torch.tensor([float(width), float(height)])
    fitting = float((0.9 * size / extent.clamp(min=1e-6)).min())
    focal = min(focal_px * distance / max(float(centre[2]), NEAR_M), fitting)
    return draw_mesh(canvas, turned, faces, focal, size / 2 - middle * focal, colors, alpha=1.0)


def draw_skeleton(
    image: Image,
    joints_px: Points,
    skeleton: Skeleton,
    confidence: Points | None = None,
    thickness: float | None = None,
) -> Image:
    """Draw the bones and joints of one person.

    The left side is orange, the right side blue, the middle green; fingers have a colour each.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        joints_px: (J, 2) pixels in the order of ``skeleton``. Joints that are not finite are left
            out with their bones.
        skeleton: The joint set.
        confidence: (J,) in [0, 1]; joints below 0.3 are left out with their bones.
        thickness: Width of a bone in pixels; by default 1/160 of the image's shorter side.

    Returns:
        A new image of the same size.

    Raises:
        InputError: The image is not uint8 RGB, or the number of joints is not the skeleton's.
    """
    _check_image(image)
    joints = _to_float(joints_px).numpy()
    if joints.shape != (len(skeleton), 2):
        raise InputError(
            f"joints_px: expected ({len(skeleton)}, 2) for skeleton '{skeleton.name}', found "
            f"{joints.shape}. Give x and y of each joint in the skeleton's order."
        )
    canvas = image.copy()
    height, width = image.shape[:2]
    line = max(1.0, min(height, width) / 160) if thickness is None else max(1.0, thickness)
    # OpenCV's integers overflow far outside the image.
    seen = (np.abs(joints) < 16 * max(height, width)).all(axis=1)
    if confidence is not None:
        seen &= _to_float(confidence).numpy().reshape(-1) >= _LEAST_CONFIDENCE
    bones = [bone for bone in skeleton.bones if seen[list(bone)].all()]
    for bone in bones:
        draw_line(canvas, joints[list(bone)], (0.1, 0.1, 0.1), line + max(2.0, 0.5 * line))
    for bone in bones:
        draw_line(canvas, joints[list(bone)], _bone_color(skeleton, *bone), line)
    for joint in np.flatnonzero(seen):
        color = _joint_color(skeleton.joints[joint])
        draw_disk(canvas, joints[joint], color, 0.9 * line)
    return canvas


def _check_image(image: Image) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise InputError(
            f"image: expected uint8 RGB of shape (H, W, 3), found {image.dtype} {image.shape}. "
            "Convert the picture, for example with PIL's convert('RGB')."
        )


def _join_people(
    vertices: Sequence[Points], faces: Sequence[Points], colors: Sequence[Color] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """One mesh of all people: vertices (1, V, 3), faces (F, 3), albedo (1, V, 4)."""
    if colors is None:
        colors = [TINTS[k % len(TINTS)] for k in range(len(vertices))]
    if not len(vertices) == len(faces) == len(colors):
        raise InputError(
            f"vertices, faces, colors: expected one of each for every person, found "
            f"{len(vertices)}, {len(faces)} and {len(colors)}. Give lists of equal length."
        )
    places = [_to_float(v).reshape(-1, 3) for v in vertices]
    triangles, albedo, before = [], [], 0
    for place, face, color in zip(places, faces, colors, strict=True):
        triangles.append(torch.as_tensor(face).to("cpu", torch.int64) + before)
        linear = srgb_to_linear(torch.tensor(color, dtype=torch.float32))
        albedo.append(torch.cat([linear, torch.ones(1)]).expand(len(place), 4))
        before += len(place)
    return torch.cat(places)[None], torch.cat(triangles), torch.cat(albedo)[None]


def _to_float(points: Points) -> Tensor:
    return torch.as_tensor(points).detach().to("cpu", torch.float32)


def _bounds(
    vertices: Tensor, focal: Tensor, principal: Tensor, shape: tuple[int, ...]
) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the pixels that the mesh may touch."""
    points = project_points(vertices, focal, principal)[0]
    points = points[(points[:, 2] > NEAR_M) & points.isfinite().all(dim=1), :2]
    if len(points) == 0:
        return 0, 0, 0, 0
    size = torch.tensor([shape[1], shape[0]])
    low = points.amin(0).floor().clamp(min=0).minimum(size)
    high = points.amax(0).ceil().clamp(min=0).minimum(size)
    # One pixel more on each side, which smoothed edges may reach.
    return (
        max(int(low[0]) - 1, 0),
        max(int(low[1]) - 1, 0),
        min(int(high[0]) + 1, shape[1]),
        min(int(high[1]) + 1, shape[0]),
    )


def _smooth_edges(rgba: NDArray[np.float32], depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blur premultiplied colour over one pixel where the depth jumps, and only there."""
    near = np.minimum(depth, np.float32(1e6))
    window = np.ones((3, 3), np.uint8)
    lowest, highest = cv2.erode(near, window), cv2.dilate(near, window)
    edge = highest - lowest > _DEPTH_STEP * lowest
    return np.where(edge[..., None], cv2.GaussianBlur(rgba, (3, 3), 0), rgba)


def _blend(region: Image, rgba: NDArray[np.float32], alpha: float) -> None:
    """Lay premultiplied linear ``rgba`` over ``region`` in place."""
    covered = rgba[..., 3] > 0
    top = torch.from_numpy(rgba[covered])
    color = linear_to_srgb(top[:, :3] / top[:, 3:]) * 255
    below = torch.from_numpy(region[covered]).float()
    mixed = below + (color - below) * (top[:, 3:] * alpha)
    region[covered] = mixed.round().to(torch.uint8).numpy()


def _joint_color(joint: str) -> Color:
    first = joint.split("_", maxsplit=1)[0]
    return FINGER_COLORS.get(first) or SIDE_COLORS.get(first, SIDE_COLORS[""])


def _bone_color(skeleton: Skeleton, child: int, parent: int) -> Color:
    """Colour of the child, or of the middle where a bone joins both sides."""
    names = skeleton.joints[child], skeleton.joints[parent]
    sides = {name.split("_")[0] for name in names} & {"left", "right"}
    return SIDE_COLORS[""] if len(sides) == 2 else _joint_color(names[0])


_SUBPIXEL_BITS = 4


def _to_subpixel(point: NDArray[np.float32]) -> tuple[int, int]:
    # OpenCV counts from the centre of the first pixel, not from its corner.
    x, y = np.round((point - 0.5) * 2**_SUBPIXEL_BITS).astype(int)
    return int(x), int(y)


def _to_bytes(color: Color) -> tuple[int, int, int]:
    red, green, blue = (round(255 * c) for c in color)
    return red, green, blue


def draw_line(canvas: Image, ends: NDArray[np.float32], color: Color, thickness: float) -> None:
    """Draw a line between two points (2, 2) in pixels on the picture itself."""
    start, end = _to_subpixel(ends[0]), _to_subpixel(ends[1])
    width = max(1, round(thickness))
    cv2.line(canvas, start, end, _to_bytes(color), width, cv2.LINE_AA, _SUBPIXEL_BITS)


def draw_disk(canvas: Image, centre: NDArray[np.float32], color: Color, radius: float) -> None:
    """Draw a filled circle about a point (2,) in pixels on the picture itself."""
    size = round(radius * 2**_SUBPIXEL_BITS)
    where = _to_subpixel(centre)
    cv2.circle(canvas, where, size, _to_bytes(color), cv2.FILLED, cv2.LINE_AA, _SUBPIXEL_BITS)
