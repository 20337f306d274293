"""POTTER's bodies joint by joint, as reports want to see them.

Legend of shapes: B samples, J joints, S image side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from kinemesh.bodies.hybrik_bodies import HYBRIK17
from kinemesh.data.hybrik_crop import pictured
from kinemesh.data.hybrik_dataset import HybrikDataset
from kinemesh.data.hybrik_records import HybrikSample
from kinemesh.evaluation.hybrik import (
    COMPARED_14,
    H36M_FOR_3DHP,
    HybrikColumns,
    ProtocolName,
    protocol_errors_mm,
)
from kinemesh.evaluation.samples import JointSamples
from kinemesh.skeletons import H36M17, SMPL24


def sample_keys(samples: Dataset[HybrikSample]) -> list[str]:
    """What finds each sample again: its row, and its picture where it is a stored one."""
    if isinstance(samples, Subset):
        return sample_keys(samples.dataset)[: len(samples)]
    if isinstance(samples, HybrikDataset):
        pictures = enumerate(samples.table.pictures)
        return [f"row {row}: {path.parent.name}/{path.name}" for row, path in pictures]
    return [f"row {row}" for row in range(len(samples))]  # type: ignore[arg-type]


def joint_samples(
    columns: HybrikColumns, protocol: ProtocolName, keys: Sequence[str], images_B3SS: Tensor
) -> JointSamples:
    """A batch joint by joint, about the pelvis.

    Args:
        columns: What is compared.
        protocol: How; its means are those of the errors here.
        keys: What finds each sample again.
        images_B3SS: Crops, normalised as `kinemesh.data.hybrik_crop` does.

    Returns:
        Joints of `SMPL24` for rendered people, else of `H36M17`.
    """
    predicted, target = columns.predicted, columns.target
    plain, aligned = protocol_errors_mm(predicted, target, protocol)
    skeleton, joints = SMPL24, tuple(range(plain.shape[1]))
    if protocol != "own":
        skeleton, joints = H36M17, _places(protocol)
        predicted = _placed(predicted, HYBRIK17)
        target = _placed(target, joints if protocol == "3dhp" else HYBRIK17)
    compared = torch.zeros(len(keys), len(skeleton), dtype=torch.bool)
    compared[:, list(joints)] = True
    return JointSamples(
        skeleton=skeleton,
        keys=keys,
        errors={"MPJPE": _placed(plain, joints), "PA-MPJPE": _placed(aligned, joints)},
        compared=compared,
        unit="mm",
        predicted=predicted - predicted[:, :1],
        target=target - target[:, :1],
        picture=lambda row: pictured(images_B3SS[row]),
    )


def _places(protocol: ProtocolName) -> tuple[int, ...]:
    """The joint of `H36M17` behind each column of a protocol's errors."""
    rows = H36M_FOR_3DHP if protocol == "3dhp" else COMPARED_14
    return tuple(HYBRIK17[row] for row in rows)


def _placed(values: Tensor, joints: Sequence[int]) -> Tensor:
    """Columns (B, J, ...) in the places that ``joints`` names among 17 or 24; zeros elsewhere."""
    out = values.new_zeros(len(values), 17 if len(joints) <= 17 else len(joints), *values.shape[2:])
    out[:, list(joints)] = values
    return out
