"""Cameras: a full-image pinhole, the weak perspective of a crop, and the way between them.

Camera axes: x right, y down, z forward, metres. Pixels: x right, y down, the image spans
[0, W] x [0, H]. Root frame: camera axes with the origin at the root joint.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kinemesh.errors import InputError
from kinemesh.geometry.crops import from_signed
from kinemesh.geometry.rotations import shortest_rotation

MIN_DEPTH_M = 1e-3
MIN_WEAK_SCALE = 1e-4
FULL_FRAME_DIAGONAL_MM = math.hypot(36.0, 24.0)


def default_focal_px(image_size: tuple[int, int]) -> float:
    """Guess for an unknown lens: the diagonal of the image (width, height), about 53 degrees."""
    return math.hypot(*image_size)


def focal_from_35mm(focal_35mm: float, image_size: tuple[int, int]) -> float:
    """Focal length in pixels from the EXIF entry "focal length in 35 mm film", by diagonals.

    Args:
        focal_35mm: Equivalent focal length in millimetres on a 36 x 24 mm film.
        image_size: Width and height in pixels.
    """
    return focal_35mm / FULL_FRAME_DIAGONAL_MM * math.hypot(*image_size)


def focal_from_fov(fov_rad: float, extent_px: float) -> float:
    """Focal length in pixels whose view over ``extent_px`` pixels has the angle ``fov_rad``."""
    if not 0 < fov_rad < math.pi:
        raise InputError(f"fov_rad: expected an angle between 0 and pi, found {fov_rad}.")
    return extent_px / (2 * math.tan(fov_rad / 2))


def fov_from_focal(focal_px: float, extent_px: float) -> float:
    """Angle of view in radians over ``extent_px`` pixels (width, height or diagonal)."""
    return 2 * math.atan2(extent_px, 2 * focal_px)


@dataclass(frozen=True)
class PerspectiveCamera:
    """Pinhole camera of a whole image, or of a batch of images of one size.

    Attributes:
        focal_px: (..., 2) focal lengths along x and y; `with_square_pixels` takes one number.
        principal_px: (..., 2) where the optical axis meets the image.
        image_size: Width and height in pixels.

    Raises:
        InputError: Wrong shapes, or a focal length that is not positive.
    """

    focal_px: Tensor
    principal_px: Tensor
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        for name in ("focal_px", "principal_px"):
            shape = tuple(getattr(self, name).shape)
            if not shape or shape[-1] != 2:
                raise InputError(
                    f"{name}: expected shape (..., 2), found {shape}. "
                    "Use PerspectiveCamera.with_square_pixels for one focal length an image."
                )
        if not bool((self.focal_px > 0).all()):
            raise InputError(
                f"focal_px: expected positive numbers, found {self.focal_px.tolist()}."
            )

    @classmethod
    def with_square_pixels(
        cls,
        image_size: tuple[int, int],
        focal_px: Tensor | float | None = None,
        principal_px: Tensor | None = None,
    ) -> "PerspectiveCamera":
        """Camera with one focal length for both axes.

        Args:
            image_size: Width and height in pixels.
            focal_px: () or (B,); the diagonal of the image if None.
            principal_px: (2,) or (B, 2); the middle of the image if None.
        """
        if focal_px is None:
            focal_px = default_focal_px(image_size)
        focal = torch.as_tensor(focal_px, dtype=torch.float32)
        if principal_px is None:
            principal_px = torch.tensor(image_size, dtype=focal.dtype, device=focal.device) / 2
        return cls(focal[..., None].expand(*focal.shape, 2), principal_px, image_size)

    def to(self, device: torch.device | str) -> "PerspectiveCamera":
        """The same camera with its tensors on ``device``."""
        return PerspectiveCamera(
            self.focal_px.to(device), self.principal_px.to(device), self.image_size
        )

    @property
    def matrix(self) -> Tensor:
        """(..., 3, 3) intrinsics K: K (x, y, z) is proportional to (u, v, 1)."""
        batch = (self.focal_px + self.principal_px).shape[:-1]
        k = self.focal_px.new_zeros((*batch, 3, 3))
        k[..., 0, 0], k[..., 1, 1] = self.focal_px[..., 0], self.focal_px[..., 1]
        k[..., :2, 2] = self.principal_px
        k[..., 2, 2] = 1
        return k

    @property
    def mean_focal_px(self) -> Tensor:
        """(...,) geometric mean of the two focal lengths."""
        return self.focal_px.prod(dim=-1).sqrt()

    def project(self, points_m: Tensor) -> Tensor:
        """Pixels (..., N, 2) of points (..., N, 3) in camera metres.

        Points nearer than `MIN_DEPTH_M`, or behind the camera, are projected as if at that depth:
        the result is finite but lies far outside of the image. Check z where that matters.
        """
        return self.ray_to_px(points_m[..., :2] / points_m[..., 2:].clamp(min=MIN_DEPTH_M))

    def unproject(self, points_px: Tensor, depth_m: Tensor) -> Tensor:
        """Points (..., N, 3) in camera metres at pixels (..., N, 2) and depths z (..., N)."""
        rays = self.px_to_ray(points_px)
        return torch.cat((rays * depth_m[..., None], depth_m[..., None]), dim=-1)

    def px_to_ray(self, points_px: Tensor) -> Tensor:
        """Pixels (..., N, 2) to x/z and y/z of their viewing rays (..., N, 2)."""
        return (points_px - self.principal_px[..., None, :]) / self.focal_px[..., None, :]

    def ray_to_px(self, rays: Tensor) -> Tensor:
        """x/z and y/z (..., N, 2) to pixels (..., N, 2)."""
        return rays * self.focal_px[..., None, :] + self.principal_px[..., None, :]


@dataclass(frozen=True)
class WeakPerspective:
    """Scaled orthographic camera of a square crop, as METRO predicts it.

    ``p = scale * (X_xy + translation)`` in signed crop coordinates [-1, 1]: the shift comes before
    the scaling.

    Attributes:
        scale: (B,) signed crop units a metre.
        translation: (B, 2) metres.
    """

    scale: Tensor
    translation: Tensor

    @classmethod
    def from_vector(cls, camera: Tensor) -> "WeakPerspective":
        """From (B, 3) numbers (s, tx, ty) as a network gives them."""
        return cls(camera[..., 0], camera[..., 1:])

    def to_vector(self) -> Tensor:
        """(B, 3) numbers (s, tx, ty)."""
        return torch.cat((self.scale[..., None], self.translation), dim=-1)

    def project(self, points_m: Tensor) -> Tensor:
        """Signed crop coordinates (B, N, 2) of points (B, N, 3) in metres, root frame."""
        return self.scale[..., None, None] * (points_m[..., :2] + self.translation[..., None, :])

    def project_px(self, points_m: Tensor, resolution: int) -> Tensor:
        """Crop pixels (B, N, 2) of points (B, N, 3) in metres, root frame."""
        return from_signed(self.project(points_m), resolution)


def weak_to_perspective(
    weak: WeakPerspective, crop_center_px: Tensor, crop_side_px: Tensor, camera: PerspectiveCamera
) -> Tensor:
    """Where the root frame of each crop stands in the camera of its whole image.

    The depth is chosen so that, at the root, one metre covers as many pixels in both cameras, and
    the sideways shift so that both agree there: points in the plane z = 0 of the root frame land on
    the same pixels (exactly, where the pixels are square). Other points move by the factor
    1 / (1 + z / depth), which weak perspective ignores; the crop must not be rotated. The person's
    own rotation stays as seen along the crop's axis: apply `ray_rotation` to the points, about the
    root, if they should face the way they do in the whole image.

    Args:
        weak: Camera of B crops. Scales below `MIN_WEAK_SCALE` are raised to it.
        crop_center_px: (B, 2) centres of the crops in image pixels.
        crop_side_px: (B,) sides of the crops in image pixels.
        camera: Camera of the image or of the B images.

    Returns:
        (B, 3) metres; add it to root-frame points to get camera-frame points.
    """
    scale = weak.scale.clamp(min=MIN_WEAK_SCALE)
    depth = 2 * camera.mean_focal_px / (scale * crop_side_px)
    axis = (crop_center_px - camera.principal_px) / camera.focal_px
    return torch.cat((weak.translation + axis * depth[..., None], depth[..., None]), dim=-1)


def perspective_to_weak(
    translation_m: Tensor, crop_center_px: Tensor, crop_side_px: Tensor, camera: PerspectiveCamera
) -> WeakPerspective:
    """Inverse of `weak_to_perspective` for translations (B, 3) with positive depth."""
    depth = translation_m[..., 2]
    scale = 2 * camera.mean_focal_px / (depth * crop_side_px)
    axis = (crop_center_px - camera.principal_px) / camera.focal_px
    return WeakPerspective(scale, translation_m[..., :2] - axis * depth[..., None])


def ray_rotation(pixel: Tensor, camera: PerspectiveCamera) -> Tensor:
    """Shortest rotation that takes +z to the viewing ray of a pixel.

    A crop far from the middle of the image sees a person along that ray, not along the optical
    axis; this rotation turns what the crop shows into the camera frame of the image.

    Args:
        pixel: (..., 2) image pixels.
        camera: Camera of the image or images.

    Returns:
        (..., 3, 3) rotation R with ``R @ (0, 0, 1)`` along the ray, see `shortest_rotation`.
    """
    ray = camera.px_to_ray(pixel[..., None, :])[..., 0, :]
    direction = torch.nn.functional.normalize(
        torch.cat((ray, torch.ones_like(ray[..., :1])), dim=-1), dim=-1
    )
    forward = direction.new_tensor([0.0, 0.0, 1.0]).expand_as(direction)
    return shortest_rotation(forward, direction)


def solve_translation(
    joints_root_m: Tensor,
    joints_px: Tensor,
    camera: PerspectiveCamera,
    weights: Tensor | None = None,
) -> Tensor:
    """Translation that projects root-frame joints onto given pixels, by linear least squares.

    Each joint (X, Y, Z) seen along the ray (a, b) asks for ``X + tx = a (Z + tz)`` and
    ``Y + ty = b (Z + tz)``; the weighted sum of squared residuals is minimised in closed form, in
    float64. Exact for noiseless pixels. The residual is a distance in metres across the view, so
    with noise it is close to, but not quite, the least reprojection error.

    Args:
        joints_root_m: (B, J, 3) metres, root frame.
        joints_px: (B, J, 2) image pixels.
        camera: Camera of the image or of the B images.
        weights: (B, J) not negative, for example confidences; all equal if None.

    Returns:
        (B, 3) metres, in the type of ``joints_root_m``. The depth can come out negative when the
        pixels contradict the joints.

    Raises:
        InputError: A sample has fewer than two different pixels of positive weight.
    """
    points, rays = joints_root_m.double(), camera.px_to_ray(joints_px).double()
    w = torch.ones_like(points[..., 0]) if weights is None else weights.double()
    # joints of weight zero may hold NaN, which times zero would stay NaN
    used = (w > 0)[..., None]
    points, rays = torch.where(used, points, 0.0), torch.where(used, rays, 0.0)
    w = (w / w.sum(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny))[..., None]
    gap = rays * points[..., 2:] - points[..., :2]
    ray_mean, gap_mean = (w * rays).sum(dim=1), (w * gap).sum(dim=1)
    ray_free, gap_free = rays - ray_mean[:, None], gap - gap_mean[:, None]
    spread = (w * ray_free.square()).sum(dim=(1, 2))
    if not bool((spread > 1e-18).all()):
        raise InputError(
            "joints_px, weights: a translation needs at least two different pixels of positive "
            f"weight a sample; sample {int(spread.argmin())} has fewer. Drop that sample."
        )
    depth = -(w * ray_free * gap_free).sum(dim=(1, 2)) / spread
    sideways = gap_mean + ray_mean * depth[:, None]
    return torch.cat((sideways, depth[:, None]), dim=-1).to(joints_root_m.dtype)
