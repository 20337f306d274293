"""The picture that explains what was recovered in a photo: a row for each person."""

from collections.abc import Sequence

import cv2
import numpy as np
import torch

from kinemesh.geometry.crops import crop_matrix, transform_points, warp_crop
from kinemesh.inference.explanation import Explanation
from kinemesh.inference.person import Person
from kinemesh.rendering.explanation_view import draw_attention, draw_sampled

PANEL_PX = 384
_GAP_PX = 2


def draw_explanations(pixels: np.ndarray, people: Sequence[Person]) -> np.ndarray:
    """Draw what the network looked at, on the part of the photo that it saw.

    Args:
        pixels: (H, W, 3) uint8 RGB photo.
        people: At least one with an explanation; the others are left out.

    Returns:
        (H', W', 3) uint8 RGB. From left to right: the sampled points, for a network that samples at
        points, and the attention of each joint. Black is beyond the border of the photo.
    """
    explained = [person.explanation for person in people if person.explanation is not None]
    rows = [_row(pixels, explanation) for explanation in explained]
    return np.concatenate(rows)


def encode_explanations(pixels: np.ndarray, people: Sequence[Person], suffix: str) -> bytes:
    """`draw_explanations` as the bytes of a PNG or JPEG file."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 92] if suffix == ".jpg" else []
    picture = draw_explanations(pixels, people)
    return bytes(cv2.imencode(suffix, picture[:, :, ::-1], options)[1].tobytes())


def _row(pixels: np.ndarray, explanation: Explanation) -> np.ndarray:
    x, y, side = explanation.square_px
    matrix = crop_matrix(torch.tensor([[x, y]]), torch.tensor([side]), PANEL_PX)[0].double()
    photo = np.asarray(warp_crop(pixels, matrix, PANEL_PX))

    def placed(points_px: np.ndarray) -> np.ndarray:
        points = torch.from_numpy(np.asarray(points_px, dtype=float))
        return np.asarray(transform_points(matrix, points).numpy())

    panels = []
    if explanation.sampled_px is not None:
        places = placed(explanation.sampled_px)
        title = "features are sampled here"
        panels.append(draw_sampled(photo, places, explanation.sampled_regions, title))
    vertices = placed(explanation.vertices_px)
    joints = placed(explanation.joints_px)
    for name, joint, weights in zip(explanation.joints, joints, explanation.attention, strict=True):
        inside = ((joint >= 0) & (joint < PANEL_PX)).all()
        title = f"attention of {name.replace('_', ' ')}{'' if inside else ' (outside)'}"
        panels.append(draw_attention(photo, joint, vertices, weights, title))
    gap = np.full((panels[0].shape[0], _GAP_PX, 3), 255, dtype=np.uint8)
    return np.concatenate([part for panel in panels for part in (panel, gap)][:-1], axis=1)
