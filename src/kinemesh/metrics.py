"""Errors of joints and meshes, and the report that carries a number together with its protocol.

Inputs are metres, the errors are millimetres, one number a sample; everything stays on the device
of its input. Averages over a data set are taken by `MetricReport.from_values`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from kinemesh.geometry.procrustes import coordinates_first, procrustes_align
from kinemesh.losses import check_same_points
from kinemesh.skeletons import Skeleton

MM_PER_M = 1000.0


def point_distances(prediction: Tensor, target: Tensor) -> Tensor:
    """Euclidean distances (B, N) between points (B, N, D), in the unit of the points.

    Raises:
        InputError: The shapes differ.
    """
    check_same_points(prediction, target)
    first, *others = (prediction.float() - target.float()).unbind(dim=-1)
    squared = first.square()
    for difference in others:  # much faster than a sum over an axis of two or three
        squared = torch.addcmul(squared, difference, difference)
    return squared.sqrt()


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
        prediction_m = prediction_m - _mean_of_joints(prediction_m, root)
        target_m = target_m - _mean_of_joints(target_m, root)
    return mean_over_points(point_distances(prediction_m, target_m), valid) * MM_PER_M


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
    aligned_m, target_m = best_aligned(prediction_m, target_m, valid, reflection)
    return mean_over_points(point_distances(aligned_m, target_m), valid) * MM_PER_M


def best_aligned(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None, reflection: bool = False
) -> tuple[Tensor, Tensor]:
    """The prediction after the best similarity of each sample, and the target beside it.

    Args:
        prediction: (B, N, 3), any unit.
        target: (B, N, 3), same unit.
        valid: (B, N), points that take part; all if None. The others may hold NaN; both results
            hold a number in place of it. NaN in a point that takes part makes its sample NaN.
        reflection: Whether the alignment may mirror.

    Returns:
        Both (B, N, 3) float32.
    """
    prediction, target = prediction.float(), target.float()
    weights = None if valid is None else valid.float()
    if weights is not None:
        prediction = torch.where(weights[..., None] > 0, prediction, 0.0)
        target = torch.where(weights[..., None] > 0, target, 0.0)
    prediction, target = coordinates_first(prediction), coordinates_first(target)
    # half-precision matrix products would cost millimetres
    with torch.autocast(prediction.device.type, enabled=False):
        fit = procrustes_align(
            prediction, target, weights, reflection=reflection, check_finite=False
        )
        return fit.apply(prediction), target


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
    return mean_over_points(point_distances(prediction_px, target_px), valid)


def pck_of_samples(distances: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """Share of each sample's points within each threshold (the threshold itself counts as within).

    Args:
        distances: (B, J) in any unit; NaN is within none.
        thresholds: (T,) in the same unit, ascending.
        valid: (B, J), points that count; all if None.

    Returns:
        (B, T) in [0, 1], NaN for samples without a point that counts.
    """
    within, total = _count_within(distances, thresholds, valid)
    return within / total


def pck(distances: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """Share (T,) of points within each threshold, over all points of all samples.

    Arguments as in `pck_of_samples`; NaN if no point counts.
    """
    within, total = _count_within(distances, thresholds, valid)
    return within.sum(dim=0) / total.sum(dim=0)


def area_under(curve: Tensor, thresholds: Tensor) -> Tensor:
    """Area (...) under curves (..., T) by the trapezoid rule, over the range of thresholds (T,)."""
    return torch.trapezoid(curve, thresholds) / (thresholds[-1] - thresholds[0])


def pck_auc(distances: Tensor, thresholds: Tensor, valid: Tensor | None = None) -> Tensor:
    """Area under the PCK curve by the trapezoid rule, over the thresholds' range: () in [0, 1].

    FreiHAND uses 100 thresholds from 0 to 50 mm: ``torch.linspace(0, 50, 100)``.
    """
    return area_under(pck(distances, thresholds, valid), thresholds)


def nearest_distances(
    prediction: Tensor, target: Tensor, pairs_at_once: int = 1 << 21
) -> tuple[Tensor, Tensor]:
    """Distances to the nearest point of the other side, by comparing all pairs.

    Args:
        prediction: (B, N, 3), any unit.
        target: (B, M, 3), same unit; M may differ from N.
        pairs_at_once: Bounds the memory: how many distances are held at a time (at least those of
            one sample).

    Returns:
        (B, N) from each predicted point and (B, M) from each target point, float32.
    """
    step = max(1, pairs_at_once // (prediction.shape[1] * target.shape[1]))
    parts = []
    for own, true in zip(torch.split(prediction, step), torch.split(target, step), strict=True):
        # differences, not the faster inner products, which lose millimetres to cancellation
        pairs = torch.cdist(own.float(), true.float(), compute_mode="donot_use_mm_for_euclid_dist")
        parts.append((pairs.amin(dim=2), pairs.amin(dim=1)))
    from_prediction, from_target = zip(*parts, strict=True)
    return torch.cat(from_prediction), torch.cat(from_target)


def f_scores_of(from_prediction: Tensor, from_target: Tensor, thresholds: Tensor) -> Tensor:
    """Harmonic mean of precision and recall of two point sets at distance thresholds.

    Precision is the share of predicted points nearer than the threshold to any target point, recall
    the share of target points nearer than it to any predicted one (Knapitsch et al. 2017, sec. 6).

    Args:
        from_prediction: (B, N) distances as `nearest_distances` gives them.
        from_target: (B, M) likewise.
        thresholds: (T,), same unit.

    Returns:
        (B, T) in [0, 1]; 0 where precision and recall are 0.
    """
    precision, recall = (
        (distances[..., None] < thresholds).float().mean(dim=1)
        for distances in (from_prediction, from_target)
    )
    both = precision + recall
    return 2 * precision * recall / torch.where(both > 0, both, 1.0)


def f_scores(prediction: Tensor, target: Tensor, thresholds: Tensor) -> Tensor:
    """F-scores (B, T) of points (B, N, 3) and (B, M, 3) at thresholds (T,); see `f_scores_of`."""
    return f_scores_of(*nearest_distances(prediction, target), thresholds)


def _count_within(
    distances: Tensor, thresholds: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Points (B, T) within each threshold, and points (B, 1) that count."""
    counts = torch.ones_like(distances) if valid is None else (valid > 0).to(distances.dtype)
    first_within = torch.searchsorted(thresholds.contiguous(), distances.contiguous())
    histogram = distances.new_zeros(len(distances), len(thresholds) + 1)
    histogram = histogram.scatter_add(1, first_within, counts)
    return histogram.cumsum(dim=1)[:, :-1], counts.sum(dim=1, keepdim=True)


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
        regressor: What makes the joints of a predicted mesh.
        samples: Which samples count, for example ``"has_3d"``.
        averaging: How the samples are averaged.
    """

    metric: str
    value: float
    unit: str
    joint_set: str
    root: str
    alignment: str
    sample_count: int
    dataset: str = ""
    regressor: str = ""
    samples: str = ""
    averaging: str = ""

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
        value = f"{self.value:.2f} {self.unit}" if self.unit else f"{self.value:.4f}"
        regressor = f" from {self.regressor}" if self.regressor else ""
        details = [
            f"{self.joint_set}{regressor}",
            f"root: {self.root}",
            f"alignment: {self.alignment}",
        ]
        details += [f"samples: {self.samples}"] if self.samples else []
        details += [f"averaging: {self.averaging}"] if self.averaging else []
        details.append(f"{self.sample_count} samples")
        return f"{self.metric} {value}{where} ({', '.join(details)})"

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
    own, true = (_mean_of_joints(points, root) for points in (prediction_joints_m, target_joints_m))
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


def _mean_of_joints(points: Tensor, joints: Sequence[int]) -> Tensor:
    """(B, 1, 3) mean of some joints; a list of indices would make the host wait for its copy."""
    return torch.stack([points[:, joint] for joint in joints], dim=1).mean(dim=1, keepdim=True)


def mean_over_points(distances: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean (B,) of distances (B, N) over the points that count, NaN where none does."""
    if valid is None:
        return distances.mean(dim=1)
    counts = valid.bool()
    return torch.where(counts, distances, 0.0).sum(dim=1) / counts.sum(dim=1)
