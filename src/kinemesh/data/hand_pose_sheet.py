"""Contact sheets of 3D hand pose data: crops, their 2D joints, and the 3D joints beside them."""

from collections.abc import Sequence

import numpy as np

from kinemesh.data.hand_pose_records import LEFT, HandPoseSample
from kinemesh.data.keypoint_crop import Picture, denormalise_picture
from kinemesh.rendering.joint_view import draw_joints
from kinemesh.rendering.overlay import draw_skeleton
from kinemesh.skeletons import HAND21

_PIXEL_CENTER = 0.5  # pictures are drawn on with the corner of the first pixel at (0, 0)


def tile_hand_poses(samples: Sequence[HandPoseSample], columns: int = 3) -> Picture:
    """Tile crops, each beside its 2D joints and its 3D joints from the camera and from the right.

    Returns:
        (rows * S, columns * 4 * S, 3) uint8 RGB.
    """
    cells = [_cell(sample) for sample in samples]
    cells += [np.zeros_like(cells[0])] * (-len(cells) % min(columns, len(cells)))
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def _cell(sample: HandPoseSample) -> Picture:
    picture = denormalise_picture(sample["image"].numpy(), "rgb")
    side, seen = len(picture), sample["visible_2d"].numpy()
    places = sample["joints_2d_px"].numpy() + _PIXEL_CENTER
    known = seen.astype(np.float32)
    labelled = draw_skeleton(picture, places, HAND21, confidence=known, thickness=2)
    joints = np.where(sample["visible"].numpy()[:, None], sample["joints_m"].numpy(), np.nan)
    views = [draw_joints(joints, HAND21, view, side) for view in ("camera", "right")]
    return np.concatenate([picture, labelled, *views], axis=1)


def describe_hand_poses(samples: Sequence[HandPoseSample]) -> list[str]:
    """What is labelled in samples of 3D hand pose data."""
    left = sum(int(sample["side"]) == LEFT for sample in samples)
    joints_3d, joints_2d = (
        float(np.mean([sample[name].numpy().mean() for sample in samples]))
        for name in ("visible", "visible_2d")
    )
    sides = [float(sample["side_px"]) for sample in samples]
    size = samples[0]["image"].shape[-1]
    return [
        f"hands      {len(samples) - left} right, {left} left",
        f"labelled   3D {joints_3d:.0%}, 2D {joints_2d:.0%} of {len(HAND21)} joints",
        f"crops      {size} px, of {min(sides):.0f} to {max(sides):.0f} px in the picture",
    ]
