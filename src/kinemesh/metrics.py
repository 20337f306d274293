"""Errors of joints and meshes, and the report that carries a number together with its protocol.

Inputs are metres, the errors are millimetres, one number a sample; everything stays on the device
of its input. Averages over a data set are taken by `MetricReport.from_values`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from kinemesh.geometry.procrustes import procrustes_align
from kinemesh.losses import check_same_points
from kinemesh.skeletons import Skeleton

MM_PER_M = 1000.0


def point_distances(prediction: Tensor, target: Tensor) -> Tensor:
    """Euclidean distances (B, N) between points (B, N, D), in the unit of the points.

    Raises:
        InputError: The shapes differ.
    """
    check_same_points(prediction, target)
    return (prediction.float() - target.float()).square().sum(dim=-1).sqrt()


def mpjpe_mm(
    prediction_m: Tensor,
    target_m: Tensor,
    root: Sequence[int] | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Mean per-joint position error.

    Args:
        prediction_m: (B, J, 3) metres.
        target_m: (B, J, 3) metres.
        root: Joints whose mean is moved to the origin on both sides, for example
            ``skeleton.root_indices()``; the points are compared where they are if None.
        valid: (B, J), joints that count; all if None.

    Returns:
        (B,) millimetres, NaN for samples without a joint that counts.
    """
    if root is not None:
        prediction_m = prediction_m - prediction_m[:, list(root)].mean(dim=1, keepdim=True)
        target_m = target_m - target_m[:, list(root)].mean(dim=1, keepdim=True)
    return _mean_over_points(point_distances(prediction_m, target_m), valid) * MM_PER_M


def pa_mpjpe_mm(
    prediction_m: Tensor,
    target_m: Tensor,
    valid: Tensor | None = None,
    reflection: bool = False,
) -> Tensor:
    """MPJPE after the best similarity (scale, rotation, translation) of each sample.

    Args:
        prediction_m: (B, J, 3) metres.
        target_m: (B, J, 3) metres.
        valid: (B, J), joints that take part in alignment and error; all if None.
        reflection: Whether the alignment may mirror, as FreiHAND's official scores do.

    Returns:
        (B,) millimetres, NaN for samples without a joint that counts.
    """
    prediction, target = prediction_m.float(), target_m.float()
    weights = None if valid is None else valid.float()
    if weights is not None:
        # points that do not count may hold NaN, which the alignment refuses
        prediction = torch.where(weights[..., None] > 0, prediction, 0.0)
        target = torch.where(weights[..., None] > 0, target, 0.0)
    # half-precision matrix products would cost millimetres
    with torch.autocast(prediction.device.type, enabled=False):
        fit = procrustes_align(prediction, target, weights, reflection=reflection)
        aligned = fit.apply(prediction)
    return _mean_over_points(point_distances(aligned, target), valid) * MM_PER_M


def mpvpe_mm(
    prediction_m: Tensor,
    target_m: Tensor,
    prediction_root_m: Tensor | None = None,
    target_root_m: Tensor | None = None,
) -> Tensor:
    """Mean per-vertex position error.

    Args:
        prediction_m: (B, V, 3) metres.
        target_m: (B, V, 3) metres.
        prediction_root_m: (B, 1, 3) point moved to the origin; none is moved if None.
        target_root_m: (B, 1, 3) likewise.

    Returns:
        (B,) millimetres.
    """
    if prediction_root_m is not None:
        prediction_m = prediction_m - prediction_root_m
    if target_root_m is not None:
        target_m = target_m - target_root_m
    return mpjpe_mm(prediction_m, target_m)


def pa_mpvpe_mm(prediction_m: Tensor, target_m: Tensor, reflection: bool = False) -> Tensor:
    """MPVPE (B,) in millimetres after the best similarity of each sample's (B, V, 3) vertices."""
    return pa_mpjpe_mm(prediction_m, target_m, reflection=reflection)


def keypoint_error_px(
    prediction_px: Tensor, target_px: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Mean distance (B,) in pixels of keypoints (B, J, 2); NaN for samples without valid ones."""
    return _mean_over_points(point_distances(prediction_px, target_px), valid)


def pck(distances: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """Share of points within each threshold.

    Args:
        distances: (B, J) in any unit.
        thresholds: (T,) in the same unit.
        valid: (B, J), points that count; all if None.

    Returns:
        (T,) in [0, 1], over all points of all samples; NaN if none counts.
    """
    if valid is not None:
        distances = distances[valid.bool()]
    return (distances.reshape(-1, 1) <= thresholds).float().mean(dim=0)


def pck_auc(distances: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """Area under the PCK curve by the trapezoid rule, over the thresholds' range: () in [0, 1].

    FreiHAND uses 100 thresholds from 0 to 50 mm: ``torch.linspace(0, 50, 100)``.
    """
    curve = pck(distances, thresholds, valid)
    return torch.trapezoid(curve, thresholds) / (thresholds[-1] - thresholds[0])


@dataclass(frozen=True)
class MetricReport:
    """A score with all that is needed to compare it.

    Attributes:
        metric: For example ``"PA-MPJPE"``.
        value: Mean over the samples, NaN if there are none.
        unit: For example ``"mm"``.
        joint_set: Name of the skeleton, or of the mesh for vertex errors.
        root: What is moved to the origin before comparing, for example ``"wrist"`` or ``"none"``.
        alignment: ``"none"``, ``"similarity"`` or another one.
        sample_count: How many samples the mean is taken over.
        dataset: Name of the data and its split.
    """

    metric: str
    value: float
    unit: str
    joint_set: str
    root: str
    alignment: str
    sample_count: int
    dataset: str = ""

    @classmethod
    def from_values(
        cls,
        metric: str,
        values: Tensor,
        *,
        unit: str = "mm",
        joint_set: str,
        root: str,
        alignment: str,
        has: Tensor | None = None,
        dataset: str = "",
    ) -> "MetricReport":
        """Average one number a sample (N,), over the samples with ``has`` (N,) if it is given."""
        if has is not None:
            values = values[has.bool()]
        mean = float(values.double().mean()) if values.numel() else float("nan")
        return cls(metric, mean, unit, joint_set, root, alignment, values.numel(), dataset)

    def __str__(self) -> str:
        where = f" on {self.dataset}" if self.dataset else ""
        return (
            f"{self.metric} {self.value:.2f} {self.unit}{where} "
            f"({self.joint_set}, root: {self.root}, alignment: {self.alignment}, "
            f"{self.sample_count} samples)"
        )

    def to_dict(self) -> dict[str, str | float | int]:
        """All fields, for a JSON record."""
        return asdict(self)


def mesh_reports(
    prediction_joints_m: Tensor,
    target_joints_m: Tensor,
    prediction_vertices_m: Tensor,
    target_vertices_m: Tensor,
    skeleton: Skeleton,
    mesh_name: str,
    dataset: str = "",
) -> tuple[MetricReport, ...]:
    """MPJPE, PA-MPJPE, MPVPE and PA-MPVPE of N samples, in this order.

    Joints and vertices of MPJPE and MPVPE are rooted at the skeleton's root, each side at its own.

    Args:
        prediction_joints_m: (N, J, 3) metres in the order of ``skeleton``.
        target_joints_m: (N, J, 3) metres.
        prediction_vertices_m: (N, V, 3) metres in the same frame as the joints.
        target_vertices_m: (N, V, 3) metres.
        skeleton: The joint set, which also gives the root.
        mesh_name: Name of the mesh, for example ``"anny-hand"``.
        dataset: Name of the data and its split.
    """
    root = skeleton.root_indices()
    root_name = " and ".join(skeleton.joints[i] for i in root)
    own, true = (
        points[:, list(root)].mean(dim=1, keepdim=True)
        for points in (prediction_joints_m, target_joints_m)
    )
    rooted = mpjpe_mm(prediction_joints_m, target_joints_m, root)
    aligned = pa_mpjpe_mm(prediction_joints_m, target_joints_m)
    rooted_mesh = mpvpe_mm(prediction_vertices_m, target_vertices_m, own, true)
    aligned_mesh = pa_mpvpe_mm(prediction_vertices_m, target_vertices_m)
    rows = (
        ("MPJPE", rooted, skeleton.name, root_name, "none"),
        ("PA-MPJPE", aligned, skeleton.name, "none", "similarity"),
        ("MPVPE", rooted_mesh, mesh_name, root_name, "none"),
        ("PA-MPVPE", aligned_mesh, mesh_name, "none", "similarity"),
    )
    return tuple(
        MetricReport.from_values(
            metric, values, joint_set=points, root=origin, alignment=fit, dataset=dataset
        )
        for metric, values, points, origin, fit in rows
    )


def _mean_over_points(distances: Tensor, valid: Tensor | None) -> Tensor:
    """(B, N) to (B,) over the points that count."""
    if valid is None:
        return distances.mean(dim=1)
    counts = valid.bool()
    return torch.where(counts, distances, 0.0).sum(dim=1) / counts.sum(dim=1)
