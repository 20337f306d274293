"""How many people are found, and how many boxes are wrong, by the least score of a box.

    python benchmarks/detector_limit.py kinemesh-detector COCO [--split val2017] [--count 500]

COCO is a folder of COCO's or an annotation file. A box is right if its intersection over union with
somebody labelled is at least 0.5 and no better box has them; boxes on crowds count neither way. The
least score of `kinemesh predict` is chosen by this.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from kinemesh.data.coco_keypoints import CocoFile
from kinemesh.data.detection_boxes import PERSON, read_box
from kinemesh.inference.images import load_image
from kinemesh.inference.own_detector import OwnDetector
from kinemesh.models.detector_decoding import box_iou

LIMITS = np.arange(0.30, 0.81, 0.05)
_COVERED = 0.5
_LEAST = 0.05


def labelled(file: CocoFile, image) -> tuple[NDArray, NDArray]:
    """Left, top, right, bottom (N, 4) of the people of a photo, and which are crowds (N,)."""
    rows = [
        (read_box(row, file.where(number)), bool(row.get("iscrowd", 0)))
        for number, row in image.annotations
        if row.get("category_id", PERSON) == PERSON
    ]
    boxes = np.array([box for box, _ in rows], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes, np.array([crowd for _, crowd in rows], bool)


def matched(found: NDArray, truth: NDArray, crowds: NDArray) -> list[bool | None]:
    """For each box, best first, whether it is right; None where it lies on a crowd."""
    overlap = box_iou(torch.from_numpy(found), torch.from_numpy(truth)).numpy()
    free, results = ~crowds, []
    for row in overlap:
        best = int(np.where(free, row, -1).argmax()) if free.any() else -1
        if best >= 0 and free[best] and row[best] >= _COVERED:
            free[best] = False
            results.append(True)
        else:
            results.append(None if (row[crowds] > 0).any() else False)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("detector")
    parser.add_argument("coco", type=Path)
    parser.add_argument("--split")
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    detector = OwnDetector.load(options.detector, "auto", _LEAST)
    file = CocoFile(options.coco, None, options.split)
    scores: list[float] = []
    rights: list[bool] = []
    people = 0
    photos = file.images[: options.count]
    for image in photos:
        boxes = detector.detect(load_image(image.path))
        truth, crowds = labelled(file, image)
        people += int((~crowds).sum())
        corners = np.array([box.xywh for box in boxes], float).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        for box, right in zip(boxes, matched(corners, truth, crowds), strict=True):
            if right is not None and box.score is not None:
                scores.append(box.score)
                rights.append(right)
    print(f"{len(photos)} photos, {people} people")
    print("least score   found   right boxes   F1     boxes a photo")
    for limit in LIMITS:
        sure = np.array(scores) >= limit
        right = int(np.array(rights, bool)[sure].sum())
        recall, precision = right / max(people, 1), right / max(int(sure.sum()), 1)
        f1 = 2 * recall * precision / max(recall + precision, 1e-9)
        rate = sure.sum() / len(photos)
        print(f"{limit:11.2f} {recall:7.1%} {precision:13.1%} {f1:6.3f} {rate:9.1f}")


if __name__ == "__main__":
    main()
