"""The figures of a classifier's report; each gives the bytes of a PNG."""

import math
from collections.abc import Sequence

import numpy as np

from kinemesh.reporting.class_summary import ClassSummary, ShownImage
from kinemesh.reporting.figures import COLORS, describe, new_figure, png_of

_COLUMNS = 6
_MOST_BARS = 40


def draw_images(images: Sequence[ShownImage]) -> bytes:
    """Images with the name of their class and of the found one, red where these differ."""
    rows = math.ceil(len(images) / _COLUMNS)
    figure = new_figure(2.0 * _COLUMNS, 2.4 * rows)
    places = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in places[len(images) :]:
        axes.set_axis_off()
    for axes, image in zip(places, images, strict=False):
        axes.imshow(image.picture)
        axes.set(xticks=[], yticks=[])
        right = image.label == image.found
        text = f"{image.label}, {image.probability:.0%}"
        text += "" if right else f"\nfound: {image.found}"
        axes.set_title(text, fontsize=9, color="black" if right else "#c03a2e")
    return png_of(figure)


def draw_class_bars(summary: ClassSummary) -> bytes:
    """Share of the images of each class that were found; of many classes the worst ones."""
    accuracies = summary.accuracies()
    chosen = np.flatnonzero(summary.counts)
    title = "accuracy of each class"
    if len(chosen) > _MOST_BARS:
        chosen = chosen[np.argsort(accuracies[chosen], kind="stable")[:_MOST_BARS]]
        title = f"accuracy of the {_MOST_BARS} worst classes"
    figure = new_figure(7.5, 1.2 + 0.25 * len(chosen))
    axes = figure.subplots()
    axes.barh(np.arange(len(chosen)), accuracies[chosen], 0.7, color=COLORS[0])
    axes.set_yticks(np.arange(len(chosen)), [summary.names[number] for number in chosen])
    axes.set_xlim(0, 100)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    describe(axes, title, "%", "")
    axes.grid(axis="y", visible=False)
    return png_of(figure)
