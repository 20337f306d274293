"""Aria's fisheye camera model, and the pin-hole picture that is made of its pictures.

The model is FISHEYE624 of Project Aria: one focal length, six radial, two tangential and four
thin-prism coefficients. Pixel coordinates here put integers on pixel centres, as Aria's
calibrations and the Ego-Exo4D benchmark do.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kinemesh.errors import InputError

Float = NDArray[np.float64]
Picture = NDArray[np.uint8]

PARAMETERS = 15
MAX_ANGLE_RAD = 1.0
"""Largest angle from the axis that Aria's calibration trusts where a file says nothing."""


@dataclass(frozen=True, eq=False)
class Fisheye624:
    """A calibrated fisheye camera.

    Attributes:
        parameters: (15,) focal length, principal point x and y (pixels), radial k0..k5, tangential
            p0, p1, thin prism s0..s3.

    Raises:
        InputError: There are not 15 finite numbers, or the focal length is not positive.
    """

    parameters: Float

    def __post_init__(self) -> None:
        values = np.asarray(self.parameters, dtype=np.float64)
        if values.shape != (PARAMETERS,) or not np.isfinite(values).all() or values[0] <= 0:
            raise InputError(
                f"FISHEYE624: expected {PARAMETERS} finite numbers [f, cx, cy, k0..k5, p0, p1, "
                f"s0..s3] with f > 0, found {np.array2string(values, threshold=20)}."
            )
        object.__setattr__(self, "parameters", values)

    def project(self, rays: Float) -> Float:
        """Pixels (..., 2) of points (..., 3) in the camera frame, any unit, in front of the camera.

        With theta the angle from the axis, theta_d = theta (1 + sum k_i theta^(2 i + 2)) and
        (u, v) = (a, b) theta_d / r, the tangential part adds 2 (p . uv) uv + (p) |uv|^2, and the
        prism s (|uv|^2, |uv|^4).
        """
        f, cx, cy = self.parameters[:3]
        k, (p0, p1), (s0, s1, s2, s3) = np.split(self.parameters[3:], [6, 8])
        a, b = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
        r = np.hypot(a, b)
        theta = np.arctan(r)
        powers = np.square(theta)
        radial = 1 + powers * np.polynomial.polynomial.polyval(powers, k)
        # on the axis theta / r is 1 by its limit
        stretch = np.divide(theta, r, out=np.ones_like(r), where=r > 0) * radial
        u, v = a * stretch, b * stretch
        q, m = u * u + v * v, p0 * u + p1 * v
        x = u + 2 * u * m + p0 * q + s0 * q + s1 * q * q
        y = v + 2 * v * m + p1 * q + s2 * q + s3 * q * q
        return np.stack([f * x + cx, f * y + cy], axis=-1)


@dataclass(frozen=True)
class PinholeView:
    """A square picture of a pin-hole camera.

    Attributes:
        size: Side in pixels.
        focal_px: Focal length.
        center_px: Both coordinates of the principal point.
    """

    size: int = 512
    focal_px: float = 150.0
    center_px: float = 255.5

    def rays(self) -> Float:
        """(size, size, 3) a point on the ray of each pixel, at depth 1."""
        along = (np.arange(self.size) - self.center_px) / self.focal_px
        x, y = np.meshgrid(along, along)
        return np.stack([x, y, np.ones_like(x)], axis=-1)


EGO_EXO4D_VIEW = PinholeView()
"""The undistorted picture of the Ego-Exo4D hand pose benchmark."""


@dataclass(frozen=True, eq=False)
class Undistortion:
    """Turns fisheye pictures into pin-hole pictures; made once, used for each frame.

    Attributes:
        camera: The fisheye camera.
        source_size: Width and height of its pictures.
        view: The picture that is made.
        max_angle_rad: Rays farther from the axis stay black.
    """

    camera: Fisheye624
    source_size: tuple[int, int] = (1408, 1408)
    view: PinholeView = EGO_EXO4D_VIEW
    max_angle_rad: float = MAX_ANGLE_RAD

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """(S, S): which pixels of the view the fisheye picture shows."""
        rays, (width, height) = self.view.rays(), self.source_size
        angle = np.arctan(np.hypot(rays[..., 0], rays[..., 1]))
        x, y = np.moveaxis(self._places, -1, 0)
        inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        return np.asarray((angle <= self.max_angle_rad) & inside)

    @cached_property
    def _places(self) -> Float:
        return self.camera.project(self.view.rays())

    @cached_property
    def _samples(self) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Flat index (N,) of each valid pixel's first neighbour, and parts (2, N) of a step."""
        width, height = self.source_size
        x, y = self._places[self.valid].T
        # on the last row or column the place is the second neighbour itself
        x0 = np.minimum(x.astype(np.int64), width - 2)
        y0 = np.minimum(y.astype(np.int64), height - 2)
        return y0 * width + x0, np.stack([x - x0, y - y0]).astype(np.float32)

    def apply(self, picture: Picture) -> Picture:
        """The view (S, S, C) of a fisheye picture (H, W, C): bilinear, rounded down, black around.

        Raises:
            InputError: The picture has another size.
        """
        width, height = self.source_size
        if picture.ndim != 3 or picture.shape[:2] != (height, width):
            raise InputError(
                f"undistortion: expected a picture of {width} x {height} pixels with channels, "
                f"found shape {picture.shape}. Take the full video frame, not a thumbnail."
            )
        first, parts = self._samples
        u, v = parts[..., None]
        flat = picture.reshape(height * width, -1).astype(np.float32)
        # in this form an even area keeps its value exactly, which rounding down would else darken
        top = flat[first] + u * (flat[first + 1] - flat[first])
        below = first + width
        bottom = flat[below] + u * (flat[below + 1] - flat[below])
        view = np.zeros((self.view.size, self.view.size, flat.shape[1]), dtype=np.uint8)
        view[self.valid] = (top + v * (bottom - top)).astype(np.uint8)
        return view
