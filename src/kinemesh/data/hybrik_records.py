"""What POTTER's mesh network learns from and is scored by: one person in one crop."""

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from kinemesh.errors import InputError


class HybrikSample(TypedDict):
    """One person in one square crop of side S.

    Places in the crop are shares of its side from -0.5 to 0.5, x right, y down; depths and points
    in space are about the root joint, in the camera's axes, in units of 2.2 m. All readers fill all
    fields; what is not labelled has weight 0. N = 29 joints, J = 24 of them turn.
    """

    image: Tensor
    """(3, S, S) float32, normalised by `kinemesh.data.hybrik_crop`."""
    uvd: Tensor
    """(N, 3) float32 place in the crop and depth."""
    uvd_weight: Tensor
    """(N, 3) float32, 0 for joints outside of the crop or its depth."""
    xyz: Tensor
    """(J, 3) float32 points in space."""
    xyz_weight: Tensor
    """(J, 3) float32."""
    theta: Tensor
    """(J, 4) float32 quaternions (w, x, y, z) relative to the parent, the first to the camera."""
    theta_weight: Tensor
    """(J, 4) float32."""
    betas: Tensor
    """(K,) float32 shape coefficients."""
    twist: Tensor
    """(J - 1, 2) float32 cosine and sine."""
    twist_weight: Tensor
    """(J - 1, 2) float32."""
    smpl_weight: Tensor
    """(1,) float32: 1 where rotations and shape are labelled."""
    camera_scale: Tensor
    """(1,) float32."""
    camera_shift: Tensor
    """(2,) float32 metres."""
    joints_17: Tensor
    """(R, 3) float32 metres about the first, the joints that scores compare; or (0, 3)."""
    vertices: Tensor
    """(V, 3) float32 metres about the root joint, or (0, 3): scores then make them of rotations and
    shape."""
    activity: Tensor
    """() int64 number of the activity, -1 where unknown."""
    sequence: Tensor
    """() int64 number of the recording, -1 where unknown."""
    center_px: Tensor
    """(2,) float32 centre of the crop in the source image."""
    side_px: Tensor
    """() float32 side of the crop in the source image."""


def collate_hybrik(samples: Sequence[HybrikSample]) -> dict[str, Tensor]:
    """Stack samples to a batch, field by field.

    Fields of different lengths in one batch, which happens to what only scores need, become empty.

    Raises:
        InputError: There is no sample, or pictures or targets differ in size.
    """
    if not samples:
        raise InputError("collate_hybrik needs at least one sample. Check the batch size.")
    batch = {}
    for name in HybrikSample.__annotations__:
        values: list[Tensor] = [sample[name] for sample in samples]  # type: ignore[literal-required]
        shapes = {tuple(value.shape) for value in values}
        if len(shapes) == 1:
            batch[name] = torch.stack(values)
        elif name in {"joints_17", "vertices"}:
            batch[name] = torch.zeros(len(samples), 0, 3)
        else:
            raise InputError(
                f"collate_hybrik: the field '{name}' has different shapes in one batch: "
                f"{sorted(shapes)}. Use one size of crop and one body in a batch."
            )
    return batch
