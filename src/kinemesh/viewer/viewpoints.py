"""From where the page looks: through the photo's camera, from the side, from above.

All points are in the camera frame of the photo (x right, y down, z forward, metres), which is the
world of the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kinemesh.inference.person import PhotoCamera
from kinemesh.viewer.scenes import Figure

ViewName = Literal["camera", "side", "above"]
UP = (0.0, -1.0, 0.0)
"""Up in a frame whose y axis points down."""
USUAL_DEPTH_M = 3.0
"""Where people without a depth are shown."""
_FOV_RAD = math.radians(45)
_STEP = 1.25


@dataclass(frozen=True)
class Viewpoint:
    """Where a view stands, what it turns about, and how wide it sees.

    Attributes:
        position: (x, y, z) in metres.
        look_at: Point in the middle of the view, about which dragging turns it.
        up: Direction that is up on the screen.
        fov_rad: Angle from the upper to the lower border.
    """

    position: tuple[float, float, float]
    look_at: tuple[float, float, float]
    up: tuple[float, float, float]
    fov_rad: float


def bounds(figures: Sequence[Figure]) -> tuple[np.ndarray, np.ndarray] | None:
    """Lowest and highest x, y and z of everybody who has a depth; None without such people."""
    parts = [figure.person.vertices for figure in figures if figure.person.has_mesh]
    parts += [figure.person.joints for figure in figures if figure.person.has_depth]
    if not parts:
        return None
    points = np.concatenate(parts).astype(float)
    return points.min(0), points.max(0)


def backdrop_depth_m(figures: Sequence[Figure]) -> float:
    """Where the photo stands so that it is behind everybody.

    It is a power of 1.25, so that it seldom moves while people in a video do.
    """
    limits = bounds(figures)
    if limits is None:
        return USUAL_DEPTH_M
    farthest = 1.05 * max(float(limits[1][2]), 1e-3)
    return float(_STEP ** math.ceil(math.log(farthest, _STEP)))


def viewpoint(
    name: ViewName, camera: PhotoCamera, figures: Sequence[Figure], aspect: float
) -> Viewpoint:
    """A viewpoint by its name.

    Args:
        name: "camera" sees exactly what the photo's camera saw, the photo as large as it fits;
            "side" stands to the right of the picture, "above" over the heads.
        camera: Camera of the photo.
        figures: The people.
        aspect: Width of the window over its height.
    """
    limits = bounds(figures)
    if limits is None:
        centre, radius = np.array([0.0, 0.0, USUAL_DEPTH_M]), 1.0
    else:
        centre = (limits[0] + limits[1]) / 2
        radius = max(float(np.linalg.norm(limits[1] - limits[0])) / 2, 0.05)
    if name == "camera":
        depth = max(float(centre[2]), 1e-2)
        return Viewpoint((0.0, 0.0, 0.0), (0.0, 0.0, depth), UP, _fitting_fov(camera, aspect))
    distance = 1.1 * radius / math.sin(_FOV_RAD / 2) / min(1.0, aspect)
    # A hair away from straight down, where "up" would have no meaning for the page's controls.
    away = np.array([1.0, 0.0, 0.0] if name == "side" else [0.0, -1.0, -0.01])
    x, y, z = (float(value) for value in centre + distance * away)
    return Viewpoint(
        (x, y, z), (float(centre[0]), float(centre[1]), float(centre[2])), UP, _FOV_RAD
    )


def _fitting_fov(camera: PhotoCamera, aspect: float) -> float:
    """Vertical angle at which the whole photo is in the window.

    The view looks along the optical axis; where that does not meet the middle of the photo, there
    is a margin on the nearer sides.
    """
    (x, y), (width, height) = camera.principal_px, camera.image_size
    half_width, half_height = max(x, width - x), max(y, height - y)
    return 2 * math.atan(max(half_height, half_width / aspect) / camera.focal_px)


def _triple(point: np.ndarray) -> tuple[float, float, float]:
    return float(point[0]), float(point[1]), float(point[2])
