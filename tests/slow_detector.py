"""Slow twins of the detector's targets, losses and suppression: one location or box at a time."""

import math

from kinemesh.detector_losses import BACKGROUND, CENTRE_RADIUS, LEVEL_REACH
from kinemesh.models.detector import CLASSES, PERSON, STRIDES, level_sizes


def places(side):
    """All locations as (x, y, stride)."""
    return [
        ((column + 0.5) * stride, (row + 0.5) * stride, stride)
        for stride, size in zip(STRIDES, level_sizes(side), strict=True)
        for row in range(size)
        for column in range(size)
    ]


def sides_of(box, x, y):
    left, top, right, bottom = box
    return x - left, y - top, right - x, bottom - y


def serves(box, x, y, stride):
    sides = sides_of(box, x, y)
    if min(sides) <= 0:
        return False
    middle_x, middle_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    if max(abs(x - middle_x), abs(y - middle_y)) > CENTRE_RADIUS * stride:
        return False
    least = 0 if stride == STRIDES[0] else LEVEL_REACH / 2 * stride
    most = math.inf if stride == STRIDES[-1] else LEVEL_REACH * stride
    return least < max(sides) <= most


def targets(boxes, labels, ignored, side):
    """For each location: label, sides, centre-ness, and which classes count."""
    rows = []
    for x, y, stride in places(side):
        label, sides, smallest = BACKGROUND, (1.0,) * 4, math.inf
        for box, one, left_out in zip(boxes, labels, ignored, strict=True):
            area = (box[2] - box[0]) * (box[3] - box[1])
            if one >= 0 and not left_out and serves(box, x, y, stride) and area < smallest:
                label, sides, smallest = one, sides_of(box, x, y), area
        centre = 0.0
        if label != BACKGROUND:
            left, top, right, bottom = sides
            centre = math.sqrt(
                min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
            )
        counted = [True] * len(CLASSES)
        for box, one, left_out in zip(boxes, labels, ignored, strict=True):
            if one >= 0 and left_out and min(sides_of(box, x, y)) > 0:
                for number in range(len(CLASSES)):
                    if (number == PERSON) == (one == PERSON) and number != label:
                        counted[number] = False
        rows.append((label, sides, centre, counted))
    return rows


def iou(one, other):
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / max(sum(areas) - width * height, 1e-9)


def suppressed(boxes, scores, groups, overlap):
    """Greedy suppression by its definition."""
    order = sorted(range(len(boxes)), key=lambda number: -scores[number])
    kept = []
    for number in order:
        rivals = [other for other in kept if groups[other] == groups[number]]
        if all(iou(boxes[number], boxes[other]) <= overlap for other in rivals):
            kept.append(number)
    return kept


def losses(logits, distances, centre_logits, rows):
    """The three terms for one photo, from lists."""
    classes = boxes = centres = weights = 0.0
    count = max(1, sum(label != BACKGROUND for label, *_ in rows))
    for place, (label, sides, centre, counted) in enumerate(rows):
        for number in range(len(CLASSES)):
            if counted[number]:
                p = 1 / (1 + math.exp(-logits[place][number]))
                if number == label:
                    classes += -0.25 * (1 - p) ** 2 * math.log(p)
                else:
                    classes += -0.75 * p**2 * math.log(1 - p)
        if label == BACKGROUND:
            continue
        found, wanted = ((-one[0], -one[1], one[2], one[3]) for one in (distances[place], sides))
        hull = (max(found[2], wanted[2]) - min(found[0], wanted[0])) * (
            max(found[3], wanted[3]) - min(found[1], wanted[1])
        )
        overlap = iou(found, wanted)
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (found, wanted)]
        union = sum(areas) / (1 + overlap)
        boxes += centre * (1 - overlap + (hull - union) / hull)
        weights += centre
        p = 1 / (1 + math.exp(-centre_logits[place]))
        centres += -centre * math.log(p) - (1 - centre) * math.log(1 - p)
    return {
        "classes": classes / count,
        "boxes": boxes / max(weights, 1e-6),
        "centres": centres / count,
    }
