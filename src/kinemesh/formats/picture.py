"""The overlay picture: a photo with the recovered meshes and joints drawn on it."""

from collections.abc import Sequence

import cv2
import numpy as np

from kinemesh.errors import InputError
from kinemesh.inference.person import Person
from kinemesh.rendering.overlay import draw_mesh, draw_skeleton
from kinemesh.skeletons import get_skeleton

SMALLEST_SIDE = 512
LARGEST_SIDE = 2048


def encode_overlay(
    pixels: np.ndarray, people: Sequence[Person], suffix: str = ".png", *, skeleton: bool = False
) -> bytes:
    """`draw_overlay` as the bytes of a PNG or JPEG file.

    Raises:
        InputError: ``suffix`` is neither ".png" nor ".jpg".
    """
    if suffix not in (".png", ".jpg"):
        raise InputError(f"The overlay is written as '.png' or '.jpg', not as {suffix!r}.")
    picture = draw_overlay(pixels, people, skeleton=skeleton)
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
    _, encoded = cv2.imencode(suffix, picture[:, :, ::-1], options)
    return bytes(encoded.tobytes())


def draw_overlay(
    pixels: np.ndarray, people: Sequence[Person], *, skeleton: bool = False
) -> np.ndarray:
    """Draw the meshes of all people on their photo.

    The picture is resized so that its longer side lies between 512 and 2048 pixels: a thumbnail
    would hide the mesh, and a full-size camera photo takes long to draw.

    Args:
        pixels: (H, W, 3) uint8 RGB photo.
        people: People in the photo.
        skeleton: Whether to draw the joints found in the image on top.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    picture, zoom = _resized(pixels)
    if people:
        camera = people[0].camera
        principal_x, principal_y = camera.principal_px
        picture = draw_mesh(
            picture,
            [person.vertices for person in people],
            [person.faces for person in people],
            camera.focal_px * zoom,
            (principal_x * zoom, principal_y * zoom),
        )
    if skeleton:
        for person in people:
            picture = draw_skeleton(
                picture,
                person.joints_px * zoom,
                get_skeleton(person.skeleton),
                person.joint_confidence,
            )
    return picture


def _resized(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    height, width = pixels.shape[:2]
    longest = max(height, width)
    zoom = min(max(longest, SMALLEST_SIDE), LARGEST_SIDE) / longest
    if zoom == 1.0:
        return pixels, 1.0
    size = (max(1, round(width * zoom)), max(1, round(height * zoom)))
    how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels, size, interpolation=how)), zoom
