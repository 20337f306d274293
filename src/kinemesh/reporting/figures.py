"""The figures of a report, drawn by Matplotlib without a display; each gives the bytes of a PNG."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kinemesh.optional import require
from kinemesh.rendering.overlay import FINGER_COLORS, SIDE_COLORS, draw_skeleton
from kinemesh.reporting.curves import TOTAL, Curve, RunCurves
from kinemesh.reporting.summary import SampleSummary, ShownSample
from kinemesh.skeletons import Skeleton

EXTRA = "report"
_DPI = 110
COLORS = ("#3b6fb6", "#e08a2e", "#4a9a5c", "#a05cb0")
_MM_PER_M = 1000.0
_MOST_PANELS = 9
_VIEWS = {"from the front": (0, 1), "from the side": (2, 1)}
_AXES = ("x, mm", "y, mm", "depth, mm")


def new_figure(width: float, height: float) -> Any:
    """An empty Matplotlib figure of a size in inches.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = require("matplotlib.figure", EXTRA).Figure(figsize=(width, height), dpi=_DPI)
    require("matplotlib.backends.backend_agg", EXTRA).FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    return figure


def png_of(figure: Any) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    # without the name of the program and the date, equal figures have equal bytes
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw_curves(curves: RunCurves) -> bytes:
    """Training and validation losses in the first panel, then each score of the validation."""
    scores = list(curves.scores.items())[: _MOST_PANELS - 1]
    panels = 1 + len(scores)
    columns = min(panels, 3)
    rows = math.ceil(panels / columns)
    figure = new_figure(4.6 * columns, 3.2 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    _draw_losses(axes[0], curves)
    for place, (name, curve) in zip(axes[1:], scores, strict=False):
        place.plot(curve.steps, curve.values, color=COLORS[1], marker="o", markersize=3)
        describe(place, f"validation: {name}", "update", name)
    for place in axes[panels:]:
        place.set_visible(False)
    return png_of(figure)


def _draw_losses(axes: Any, curves: RunCurves) -> None:
    """The total alone, since its terms differ by orders of magnitude."""
    drawn: list[tuple[str, Curve]] = []
    if TOTAL in curves.losses:
        drawn.append(("training", curves.losses[TOTAL]))
    drawn += [(f"validation: {name}", c) for name, c in curves.validation_losses.items()]
    values = [value for _, curve in drawn for value in curve.values]
    for color, (label, curve) in zip(COLORS, drawn, strict=False):
        marker = "o" if len(curve.steps) < 30 else None
        axes.plot(curve.steps, curve.values, label=label, color=color, marker=marker, markersize=3)
    if values and min(values) > 0 and max(values) > 5 * min(values):
        axes.set_yscale("log")
    describe(axes, "loss", "update", "loss")
    if drawn:
        axes.legend(frameon=False)


def draw_joint_bars(summary: SampleSummary) -> bytes:
    """Mean error of each joint, a bar for each score."""
    assert summary.skeleton is not None
    joints = summary.skeleton.joints
    means = summary.joint_means()
    figure = new_figure(7.5, 1.2 + 0.27 * len(joints) * max(1.0, 0.6 * len(means)))
    axes = figure.subplots()
    places = np.arange(len(joints))
    height = 0.8 / len(means)
    for number, (name, values) in enumerate(means.items()):
        offset = (number - (len(means) - 1) / 2) * height
        label = f"{name}, mean {np.nanmean(values):.1f}"
        axes.barh(places + offset, values, height, label=label, color=COLORS[number % 4])
    axes.set_yticks(places, [joint.replace("_", " ") for joint in joints])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    describe(axes, f"error of each joint over {summary.ranking.count} samples", summary.unit, "")
    axes.grid(axis="y", visible=False)
    axes.legend(frameon=False)
    return png_of(figure)


def draw_calibration(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Measured over predicted distance of the bins, a panel for each record; true on the diagonal.

    Args:
        records: From `kinemesh.evaluation.calibration.Calibration.to_dict`.
    """
    figure = new_figure(4.4 * len(records), 4.2)
    panels = figure.subplots(1, len(records), squeeze=False)[0]
    for axes, record, color in zip(panels, records, COLORS, strict=False):
        predicted, measured = (
            np.array([one[name] for one in record["bins"]], dtype=float)
            for name in ("predicted", "measured")
        )
        longest = 1.05 * float(np.nanmax([predicted, measured]))
        axes.plot([0, longest], [0, longest], color="#999", linewidth=1, linestyle="--")
        axes.plot(predicted, measured, color=color, marker="o", markersize=4)
        axes.set_xlim(0, longest)
        axes.set_ylim(0, longest)
        axes.set_aspect("equal")
        unit = record["unit"]
        describe(axes, record["joints"], f"predicted distance, {unit}", f"measured, {unit}")
    return png_of(figure)


def describe(axes: Any, title: str, x_label: str, y_label: str) -> None:
    """Title, labels and a light grid."""
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw_samples(samples: Sequence[ShownSample], skeleton: Skeleton, unit: str) -> bytes:
    """A row for each sample: its picture, what is labelled (left) and predicted (right)."""
    is_3d = samples[0].target.shape[-1] == 3
    columns = 5 if is_3d else 3
    figure = new_figure(2.7 * columns, 3.0 * len(samples))
    grid = figure.subplots(len(samples), columns, squeeze=False)
    for row, sample in zip(grid, samples, strict=True):
        row[0].imshow(sample.picture)
        row[0].set_axis_off()
        row[0].set_title(_caption(sample, unit), fontsize=8, loc="left")
        draw = _draw_row_3d if is_3d else _draw_row_2d
        draw(row[1:], sample, skeleton)
    return png_of(figure)


def _caption(sample: ShownSample, unit: str) -> str:
    key = sample.key if len(sample.key) <= 40 else f"…{sample.key[-39:]}"
    short = "%" if unit.startswith("%") else unit
    errors = "  ".join(f"{name} {value:.1f} {short}" for name, value in sample.errors.items())
    return f"{key}\n{errors}"


def _draw_row_3d(row: Sequence[Any], sample: ShownSample, skeleton: Skeleton) -> None:
    roots = list(skeleton.root_indices())
    sides = {
        "ground truth": sample.target - sample.target[roots].mean(axis=0),
        "prediction": sample.predicted - sample.predicted[roots].mean(axis=0),
    }
    seen = {"ground truth": sample.compared, "prediction": np.ones_like(sample.compared)}
    shown = [_MM_PER_M * points[seen[side]] for side, points in sides.items()]
    limits = _limits(np.concatenate(shown))
    places = iter(row)
    for side, points in sides.items():
        for view, plane in _VIEWS.items():
            axes = next(places)
            _draw_bones(axes, _MM_PER_M * points[:, plane], seen[side], skeleton)
            axes.set_xlim(limits[plane[0]])
            axes.set_ylim(limits[plane[1]][::-1])  # y points down
            axes.set_aspect("equal")
            axes.set_title(f"{side}, {view}", fontsize=9)
            axes.set_xlabel(_AXES[plane[0]], fontsize=7)
            axes.set_ylabel(_AXES[plane[1]], fontsize=7)
            axes.tick_params(labelsize=7)
            axes.grid(alpha=0.3)


def _limits(points_mm: NDArray) -> list[tuple[float, float]]:
    """The same span on each axis, so that both sides and both views compare."""
    finite = points_mm[np.isfinite(points_mm).all(axis=1)]
    if not len(finite):
        return [(-1.0, 1.0)] * 3
    low, high = finite.min(axis=0), finite.max(axis=0)
    half = 0.55 * max(float((high - low).max()), 1.0)
    return [(float(middle - half), float(middle + half)) for middle in (low + high) / 2]


def _draw_bones(axes: Any, points: NDArray, seen: NDArray, skeleton: Skeleton) -> None:
    for child, parent in skeleton.bones:
        if seen[child] and seen[parent]:
            ends = points[[child, parent]]
            axes.plot(ends[:, 0], ends[:, 1], color=_color(skeleton.joints[child]), linewidth=2)
    axes.scatter(
        *points[seen].T, s=12, zorder=3, color=[_color(joint) for joint in _named(skeleton, seen)]
    )


def _named(skeleton: Skeleton, seen: NDArray) -> list[str]:
    return [joint for joint, is_seen in zip(skeleton.joints, seen, strict=True) if is_seen]


def _color(joint: str) -> tuple[float, float, float]:
    """As pictures on photos have them."""
    first = joint.split("_", maxsplit=1)[0]
    return FINGER_COLORS.get(first) or SIDE_COLORS.get(first, SIDE_COLORS[""])


def _draw_row_2d(row: Sequence[Any], sample: ShownSample, skeleton: Skeleton) -> None:
    sides = {"ground truth": sample.target, "prediction": sample.predicted}
    for axes, (side, points) in zip(row, sides.items(), strict=True):
        confidence = sample.compared.astype(np.float32) if side == "ground truth" else None
        axes.imshow(draw_skeleton(sample.picture, points, skeleton, confidence))
        axes.set_axis_off()
        axes.set_title(side, fontsize=9)
