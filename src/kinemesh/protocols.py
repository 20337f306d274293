"""Protocols: everything that decides a score, in one object that prints itself with its number.

Papers that report "PA-MPJPE on Human3.6M" differ in joints, regressor, root, alignment, which
samples count and how they are averaged. A :class:`Protocol` states all of it.
``docs/protocols.md`` describes those that are built in.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kinemesh.bodies.topology import Topology
from kinemesh.errors import InputError
from kinemesh.metrics import (
    MM_PER_M,
    MetricReport,
    area_under,
    best_aligned,
    f_scores_of,
    mean_over_points,
    nearest_distances,
    pck_of_samples,
    point_distances,
)
from kinemesh.skeletons import H36M14, HAND21, Skeleton, joint_map, root_position

Part = Literal["joints", "vertices"]
Alignment = Literal["none", "similarity", "similarity, may mirror"]
Root = Literal["none", "joints", "mesh"]
Samples = Literal["all", "has_3d", "has_mesh"]
Kind = Literal["error", "auc", "f"]
Averaging = Literal["samples", "official"]


def auc_thresholds_mm(like: Tensor) -> Tensor:
    """FreiHAND's 100 thresholds (100,) from 0 to 50 mm, the ends included, typed as ``like``."""
    return torch.linspace(0, 50, 100, dtype=like.dtype, device=like.device)


class Points(NamedTuple):
    """What one side of a comparison knows of B samples, metres.

    Attributes:
        joints: (B, J, 3) in the order of the protocol's joint set.
        vertices: (B, V, 3) in the frame of the joints; None where there is no mesh.
        mesh_root: (B, 1, 3) root joint by the mesh's own regressor; None likewise.
    """

    joints: Tensor
    vertices: Tensor | None = None
    mesh_root: Tensor | None = None


class Known(NamedTuple):
    """Which samples are labelled: 1 or 0 for each of B samples."""

    has_3d: Tensor
    has_mesh: Tensor


@dataclass(frozen=True)
class Score:
    """One line of a protocol.

    Attributes:
        metric: Its name, for example ``"PA-MPJPE"``.
        part: What is compared.
        kind: Mean distance in mm, area under the PCK curve, or F-score.
        root: What is moved to the origin on both sides: nothing, the root of the joint set, or the
            root joint that the mesh's regressor gives.
        alignment: What is fitted before comparing.
        samples: Which samples count.
        official_weight: Which samples weigh a batch in the official averaging; those that count if
            None.
        threshold_mm: Of an F-score.
    """

    metric: str
    part: Part
    kind: Kind = "error"
    root: Root = "none"
    alignment: Alignment = "none"
    samples: Samples = "has_3d"
    official_weight: Samples | None = None
    threshold_mm: float = 0.0

    @property
    def unit(self) -> str:
        """``"mm"`` for errors, else empty."""
        return "mm" if self.kind == "error" else ""


@dataclass(frozen=True)
class Protocol:
    """How a data set is scored.

    Attributes:
        name: Short name for the command line.
        title: For people.
        joint_set: The joints that are compared.
        scores: The lines of the report.
        ground_truth: Where the target comes from.
        regressor: What makes joints of a predicted mesh.
        sample_count: Size of the official set; None where it is not fixed.
        keep: Which rows belong, said of their keys; see `human36m_p2_rows`.
    """

    name: str
    title: str
    joint_set: Skeleton
    scores: tuple[Score, ...]
    ground_truth: str = "as labelled"
    regressor: str = "the mesh's own"
    sample_count: int | None = None
    keep: Literal["all", "human36m-p2"] = "all"

    def joints_of(self, joints: Tensor, skeleton: Skeleton) -> Tensor:
        """The protocol's joints (B, J, 3) out of those of another set (B, K, 3).

        Raises:
            InputError: The other set lacks some of them.
        """
        mapping = joint_map(skeleton, self.joint_set)
        found = [index for index in mapping if index is not None]
        if len(found) < len(mapping):
            missing = [
                joint
                for joint, index in zip(self.joint_set.joints, mapping, strict=True)
                if index is None
            ]
            raise InputError(
                f"protocol {self.name}: it compares the joints of '{self.joint_set.name}', but "
                f"'{skeleton.name}' has no {', '.join(missing)}. Choose another protocol (own "
                "takes the joints of the model's mesh), or a model of another mesh."
            )
        # a list of indices would be copied to the device, and the host would wait
        return torch.stack([joints[:, index] for index in found], dim=1)

    def points_of_mesh(self, vertices: Tensor, topology: Topology) -> Points:
        """Joints and root of meshes (B, V, 3) by the topology's regressor."""
        joints = topology.joints(vertices)
        return Points(self.joints_of(joints, topology.skeleton), vertices, topology.root(joints))

    def measure(self, prediction: Points, target: Points) -> dict[str, Tensor]:
        """Numbers of each sample, by the metric's name; nothing here waits for the device.

        Returns:
            (B,) for each score, or (B, T) for a PCK curve, float32 on the points' device. Scores
            of vertices are left out where a side has none.
        """
        columns: dict[str, Tensor] = {}
        views: dict[tuple[Part, Root, Alignment], _View] = {}
        for score in self.scores:
            sides = (prediction.vertices, target.vertices)
            if score.part == "vertices" and any(side is None for side in sides):
                continue
            key = (score.part, score.root, score.alignment)
            if key not in views:
                views[key] = self._view(score, prediction, target)
            columns[score.metric] = views[key].numbers(score)
        return columns

    def joint_errors_mm(self, prediction: Points, target: Points) -> dict[str, Tensor]:
        """Distances of single joints (B, J) in mm, for each score that is their mean."""
        return {
            score.metric: self._view(score, prediction, target).distances_mm
            for score in self.scores
            if score.part == "joints" and score.kind == "error"
        }

    def _view(self, score: Score, prediction: Points, target: Points) -> "_View":
        own, true = (self._moved(score, side) for side in (prediction, target))
        if score.alignment != "none":
            own, true = best_aligned(own, true, reflection=score.alignment != "similarity")
        return _View(own, true)

    def _moved(self, score: Score, side: Points) -> Tensor:
        points = side.joints if score.part == "joints" else side.vertices
        assert points is not None  # measure() leaves such scores out
        if score.root == "joints":
            return points - root_position(side.joints, self.joint_set)
        if score.root == "mesh":
            assert side.mesh_root is not None
            return points - side.mesh_root
        return points

    def report(
        self,
        score: Score,
        mean: float,
        count: int,
        mesh: Topology | str,
        dataset: str,
        averaging: str = "mean over samples",
    ) -> MetricReport:
        """The line of a score: its number and all that made it.

        Args:
            score: One of ``scores``.
            mean: Its number.
            count: How many samples it is of.
            mesh: The predicted mesh, or its name.
            dataset: Name of the data set.
            averaging: How the samples were averaged.
        """
        own = " and ".join(self.joint_set.joints[i] for i in self.joint_set.root_indices())
        mesh_name, mesh_root = (mesh, own) if isinstance(mesh, str) else (mesh.name, _root(mesh))
        joints = score.part == "joints"
        return MetricReport(
            score.metric,
            mean,
            score.unit,
            joint_set=self.joint_set.name if joints else mesh_name,
            root={"none": "none", "joints": own, "mesh": mesh_root}[score.root],
            alignment=score.alignment,
            sample_count=count,
            dataset=dataset,
            regressor=self.regressor if joints else "",
            samples=score.samples,
            averaging=averaging,
        )


def _root(topology: Topology) -> str:
    skeleton = topology.skeleton
    return " and ".join(skeleton.joints[i] for i in skeleton.root_indices())


class _View:
    """Two sides moved as scores want them; what several scores need is computed once."""

    def __init__(self, prediction: Tensor, target: Tensor) -> None:
        self.prediction, self.target = prediction, target

    @cached_property
    def distances_mm(self) -> Tensor:
        return point_distances(self.prediction, self.target) * MM_PER_M

    @cached_property
    def nearest(self) -> tuple[Tensor, Tensor]:
        return nearest_distances(self.prediction, self.target)

    def numbers(self, score: Score) -> Tensor:
        """(B,), or (B, T) for a curve."""
        if score.kind == "f":
            threshold = self.prediction.new_full((1,), score.threshold_mm / MM_PER_M)
            return f_scores_of(*self.nearest, threshold)[:, 0]
        if score.kind == "auc":
            return pck_of_samples(self.distances_mm, auc_thresholds_mm(self.distances_mm))
        return mean_over_points(self.distances_mm)


def overall(score: Score, values: Tensor, known: Known) -> tuple[float, int]:
    """Exact mean over the samples that count, and their number.

    Args:
        score: The line.
        values: (N,) or (N, T) as `Protocol.measure` gives them, of all samples, in a fixed order.
        known: (N,) flags.
    """
    values = values[_counting(score.samples, known)].double()
    mean = values.mean(dim=0) if len(values) else values.new_full(values.shape[1:], float("nan"))
    return _as_number(score, mean), len(values)


def overall_official(
    score: Score, values: Tensor, known: Known, batch_size: int, processes: int = 1
) -> tuple[float, int]:
    """Mean as the official METRO and Mesh Graphormer code takes it.

    A batch's mean over the samples that count is weighed by the number of samples of
    ``official_weight``, and the processes' means are averaged without weights. Samples are dealt to
    processes in turn and the last round is filled up with the first samples
    (``torch.utils.data.DistributedSampler`` without shuffling). It differs from the exact mean for
    PA-MPJPE where a batch holds samples without 3D labels, and with several processes.

    Args:
        score: The line.
        values: As for `overall`, in the order of the data set.
        known: (N,) flags.
        batch_size: Samples in a batch of one process.
        processes: How many there were.
    """
    counts = _counting(score.samples, known)
    weighs = _counting(score.official_weight or score.samples, known)
    dealt = -(-len(values) // processes) * processes
    order = torch.arange(dealt) % max(len(values), 1)
    means = []
    for rank in range(processes):
        batches = torch.split(order[rank::processes], batch_size)
        means.append(_weighted_mean(values.double(), counts, weighs, batches))
    return _as_number(score, torch.stack(means).mean(dim=0)), int(counts.sum())


def _weighted_mean(
    values: Tensor, counts: Tensor, weighs: Tensor, batches: Sequence[Tensor]
) -> Tensor:
    total, weight = values.new_zeros(values.shape[1:]), 0
    for rows in batches:
        kept = values[rows][counts[rows]]
        count = int(weighs[rows].sum())
        if len(kept):  # the official code takes zero for the mean of nothing
            total = total + kept.mean(dim=0) * count
        weight += count
    return total / weight if weight else torch.full_like(total, float("nan"))


def _counting(samples: Samples, known: Known) -> Tensor:
    flags = {"has_3d": known.has_3d, "has_mesh": known.has_mesh}
    return torch.ones_like(known.has_3d) > 0 if samples == "all" else flags[samples] > 0


def _as_number(score: Score, mean: Tensor) -> float:
    return float(area_under(mean, auc_thresholds_mm(mean)) if score.kind == "auc" else mean)


# the greedy start takes the last folder or file name ("valid.hw.tsv_") that may precede the name
_HUMAN36M_KEY = re.compile(r"^(?:.*(?:[/\\]|\.tsv_))?S(\d+)_[^/\\]*\.(\d{8})_(\d+)(?:\.\w+)?$")


def human36m_p2_rows(keys: Sequence[str]) -> list[int] | None:
    """Rows of Human3.6M that belong to protocol 2: S9 and S11, frontal camera, every fifth frame.

    Args:
        keys: Names such as ``S9_Directions_1.60457274_000001.jpg``, with or without folders or
            the ``X.tsv_`` that composite sets put before them; frames are counted from 1, and 1,
            6, 11, ... belong.

    Returns:
        Positions of the keys that belong; None if no key has this form, so that nothing can be
        said.
    """
    parts = [_HUMAN36M_KEY.search(key) for key in keys]
    if not any(parts):
        return None
    return [row for row, found in enumerate(parts) if found and _in_p2(*found.groups())]


def _in_p2(subject: str, camera: str, frame: str) -> bool:
    return subject in {"9", "11"} and camera == "60457274" and int(frame) % 5 == 1


_BODY_SCORES = (
    Score("MPVPE", "vertices", root="mesh", samples="has_mesh"),
    Score("MPJPE", "joints", root="joints", samples="has_3d"),
    Score("PA-MPJPE", "joints", alignment="similarity", samples="all", official_weight="has_3d"),
)
_REGRESSOR = "J_regressor_h36m_correct on the predicted mesh"

HUMAN36M_P2 = Protocol(
    name="human36m-p2",
    title="Human3.6M, protocol 2 (S9 and S11, camera 60457274, every 5th frame)",
    joint_set=H36M14,
    scores=_BODY_SCORES,
    ground_truth="labelled joints; meshes of neutral SMPL, where there are any",
    regressor=_REGRESSOR,
    keep="human36m-p2",
)
THREEDPW = Protocol(
    name="3dpw",
    title="3DPW, test split",
    joint_set=H36M14,
    scores=_BODY_SCORES,
    ground_truth="labelled joints; meshes of neutral SMPL, though the data set has genders",
    regressor=_REGRESSOR,
    sample_count=35515,
)


def _hand_scores(part: Part, name: str) -> tuple[Score, ...]:
    samples: Samples = "has_3d" if part == "joints" else "has_mesh"
    root: Root = "joints" if part == "joints" else "mesh"
    mirror: Alignment = "similarity, may mirror"
    return (
        Score(f"MP{name}PE", part, root=root, samples=samples),
        Score(f"PA-MP{name}PE", part, alignment=mirror, samples=samples),
        Score(f"AUC of {part}", part, "auc", root, samples=samples),
        Score(f"PA-AUC of {part}", part, "auc", alignment=mirror, samples=samples),
    )


def _f_scores(threshold: int) -> tuple[Score, ...]:
    plain = Score(
        f"F@{threshold}", "vertices", "f", "mesh", samples="has_mesh", threshold_mm=threshold
    )
    aligned = replace(
        plain, metric=f"PA-F@{threshold}", root="none", alignment="similarity, may mirror"
    )
    return plain, aligned


FREIHAND = Protocol(
    name="freihand",
    title="FreiHAND, evaluation split",
    joint_set=HAND21,
    scores=(
        *_hand_scores("joints", "J"),
        *_hand_scores("vertices", "V"),
        *_f_scores(5),
        *_f_scores(15),
    ),
    ground_truth="labelled joints and vertices (by MANO where only its parameters are labelled)",
    regressor="MANO's, with vertices 745, 317, 445, 556 and 673 for the tips",
    sample_count=3960,
)
PROTOCOLS = {protocol.name: protocol for protocol in (HUMAN36M_P2, THREEDPW, FREIHAND)}


def own_protocol(topology: Topology) -> Protocol:
    """Protocol "own" for any mesh: its token joints, its root, and similarities without mirroring.

    On SMPL the scores are those of `HUMAN36M_P2`, of any data.
    """
    if topology.name == "smpl":
        return replace(HUMAN36M_P2, name="own", title="SMPL's 14 joints and mesh", keep="all")
    scores = (
        Score("MPJPE", "joints", root="joints", samples="has_3d"),
        Score("PA-MPJPE", "joints", alignment="similarity", samples="has_3d"),
        Score("MPVPE", "vertices", root="mesh", samples="has_mesh"),
        Score("PA-MPVPE", "vertices", alignment="similarity", samples="has_mesh"),
    )
    return Protocol("own", f"joints and mesh of {topology.name}", topology.token_skeleton, scores)


def get_protocol(name: str, topology: Topology) -> Protocol:
    """Protocol by name; "own" is that of the topology.

    Raises:
        InputError: No protocol has this name.
    """
    if name == "own":
        return own_protocol(topology)
    if name not in PROTOCOLS:
        raise InputError(
            f"There is no protocol '{name}'. Protocols: {', '.join([*PROTOCOLS, 'own'])}."
        )
    return PROTOCOLS[name]


def without_root(protocol: Protocol) -> Protocol:
    """The same protocol with everything compared where it lies, as the FreiHAND benchmark does."""
    scores = tuple(replace(score, root="none") for score in protocol.scores)
    return replace(protocol, scores=scores)
