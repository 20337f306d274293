"""The one record that every data set yields, and how records are stacked to a batch."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from kinemesh.errors import InputError


class Sample(TypedDict):
    """One person or hand in one square crop of side S pixels.

    Frames: *crop* pixels run from (0, 0) to (S, S), x right, y down, with pixel centres at +0.5.
    The *root frame* has the camera's axes (x right, y down, z away from the viewer), metres, and
    its origin in the root joint (body: the pelvis or the middle of the hips, as the skeleton says;
    hand: wrist). Where ``focal_px`` is known the camera has its principal point in the centre of
    the crop: ``u = focal_px * x / z + S / 2``.

    All readers fill all fields. A field that a data set never labels is empty (its first axis has
    length 0); a field that one sample lacks keeps its shape and holds zeros or the data set's own
    filler, and the matching ``has_*`` flag is 0.
    """

    image: Tensor
    """(3, S, S) float32, sRGB in [0, 1]."""
    joints_2d: Tensor
    """(J, 3) float32: x and y in crop pixels, then a confidence in [0, 1]. Synthetic joints outside
    the crop have confidence 0."""
    joints_3d: Tensor
    """(J, 4) float32: metres in the root frame, then a confidence in [0, 1]."""
    vertices: Tensor
    """(V, 3) float32: metres in the root frame, all vertices of the topology; or (0, 3)."""
    pose: Tensor
    """(P,) float32: axis-angle of each joint of the body model, radians (SMPL: 72, MANO: 48), the
    first one turning the model into the camera's axes; or (0,)."""
    betas: Tensor
    """(10,) float32: shape coefficients of the body model; or (0,)."""
    keep_mask: Tensor
    """(Q, 1) float32: 1 for each query token (joints, then coarse vertices) that the network may
    see, 0 for a masked one; or (0, 1) where the reader draws no masks."""
    focal_px: Tensor
    """() float32: focal length in crop pixels, 0 where unknown."""
    root_m: Tensor
    """(3,) float32: the root joint in the camera frame, metres; zeros where unknown."""
    center_px: Tensor
    """(2,) float32: centre of the crop in the source image, pixels."""
    side_px: Tensor
    """() float32: side of the crop in the source image, pixels."""
    has_2d: Tensor
    """() float32: 1 where ``joints_2d`` is labelled."""
    has_3d: Tensor
    """() float32: 1 where ``joints_3d`` is labelled."""
    has_mesh: Tensor
    """() float32: 1 where the mesh is labelled: by ``vertices``, or where that field is empty by
    ``pose`` and ``betas`` of the data set's body model."""


SAMPLE_FIELDS: tuple[str, ...] = tuple(Sample.__annotations__)


def collate(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Stack samples to a batch, field by field.

    Args:
        samples: B samples with equal shapes.

    Returns:
        The fields of :class:`Sample`, each with a leading axis of length B.

    Raises:
        InputError: ``samples`` is empty, or a field is missing or differs in shape.
    """
    if not samples:
        raise InputError("collate needs at least one sample, got none. Check the batch size.")
    return {name: _stack(samples, name) for name in SAMPLE_FIELDS}


def _stack(samples: Sequence[Sample], name: str) -> Tensor:
    values: list[Tensor | None] = [dict(sample).get(name) for sample in samples]  # type: ignore[misc]
    tensors = [value for value in values if value is not None]
    if len(tensors) != len(values):
        raise InputError(
            f"collate: {len(values) - len(tensors)} of {len(values)} samples lack the field "
            f"'{name}'. Fill it with zeros and set its has_* flag to 0."
        )
    shapes = {tuple(value.shape) for value in tensors}
    if len(shapes) > 1:
        raise InputError(
            f"collate: the field '{name}' has different shapes in one batch: {sorted(shapes)}. "
            "Use one resolution and one topology in a batch."
        )
    return torch.stack(tensors)
