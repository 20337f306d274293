"""Pictures of results: the photo with meshes and joints drawn on it, and views of 3D joints."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from kinemesh.errors import InputError
from kinemesh.inference.person import Person
from kinemesh.rendering.joint_view import draw_views
from kinemesh.rendering.overlay import draw_mesh, draw_skeleton
from kinemesh.skeletons import get_skeleton

SMALLEST_SIDE = 512
MOST_PIXELS = 25_000_000


def encode_overlay(
    pixels: np.ndarray, people: Sequence[Person], suffix: str = ".png", *, skeleton: bool = False
) -> bytes:
    """`draw_overlay` as the bytes of a PNG or JPEG file.

    Raises:
        InputError: ``suffix`` is neither ".png" nor ".jpg".
    """
    if suffix not in (".png", ".jpg"):
        raise InputError(f"The overlay is written as '.png' or '.jpg', not as {suffix!r}.")
    return _encoded(draw_overlay(pixels, people, skeleton=skeleton), suffix)


def encode_views(people: Sequence[Person], suffix: str = ".png") -> bytes:
    """`draw_people_views` as the bytes of a PNG or JPEG file."""
    return _encoded(draw_people_views(people), suffix)


def draw_people_views(people: Sequence[Person]) -> np.ndarray:
    """A row for each person: the 3D joints seen from the camera, from the right and from above.

    Args:
        people: At least one, with joints in 3D.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows = [draw_views(person.joints, get_skeleton(person.skeleton)) for person in people]
    return np.concatenate(rows)


def _encoded(picture: np.ndarray, suffix: str) -> bytes:
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
    _, encoded = cv2.imencode(suffix, picture[:, :, ::-1], options)
    return bytes(encoded.tobytes())


def draw_overlay(
    pixels: np.ndarray, people: Sequence[Person], *, skeleton: bool = False
) -> np.ndarray:
    """Draw the meshes of all people on their photo.

    The picture has the size of the photo. Only a thumbnail, which would hide the mesh, is enlarged
    to a longer side of 512 pixels, and a photo beyond 25 megapixels, which takes long to draw, is
    reduced to that number.

    Args:
        pixels: (H, W, 3) uint8 RGB photo.
        people: People in the photo.
        skeleton: Whether to draw the joints found in the image on top; those of people without a
            mesh are always drawn.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    picture, zoom = _resized(pixels)
    with_mesh = [person for person in people if person.has_mesh]
    if with_mesh:
        camera = with_mesh[0].camera
        principal_x, principal_y = camera.principal_px
        picture = draw_mesh(
            picture,
            [person.vertices for person in with_mesh],
            [person.faces for person in with_mesh],
            camera.focal_px * zoom,
            (principal_x * zoom, principal_y * zoom),
        )
    for person in people:
        if skeleton or not person.has_mesh:
            picture = draw_skeleton(
                picture,
                person.joints_px * zoom,
                get_skeleton(person.skeleton),
                person.joint_confidence,
            )
    return picture


def _resized(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    height, width = pixels.shape[:2]
    zoom = max(SMALLEST_SIDE / max(height, width), 1.0)
    zoom = min(zoom, math.sqrt(MOST_PIXELS / (height * width)))
    if zoom == 1.0:
        return pixels, 1.0
    size = (max(1, int(width * zoom + 1e-6)), max(1, int(height * zoom + 1e-6)))
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=how)), zoom
