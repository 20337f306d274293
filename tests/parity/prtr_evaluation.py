"""PRTR's read-out, similarities, suppression, COCO and MPII scores of its goldens."""

import json
from pathlib import Path

import numpy as np
import torch

from kinemesh.evaluation.coco_ap import METRICS, coco_scores, labels_from, result_rows
from kinemesh.evaluation.keypoint_readout import (
    KeypointPerson,
    Keypoints,
    read_out,
    read_out_people,
    read_out_sequential,
    to_image,
    unflip,
)
from kinemesh.evaluation.oks import best_first, oks_matrix, suppressed
from kinemesh.evaluation.pckh import MpiiLabels, pckh_scores
from kinemesh.models.prtr import KeypointSetOutput
from kinemesh.skeletons import COCO17, MPII16, Skeleton
from tests import parity
from tests.parity import EXACT, Comparison, Tolerance
from tests.seeded_weights import normal

Golden = dict[str, np.ndarray]
Ours = dict[str, object]
SCORES, PIXELS = Tolerance(1e-6), Tolerance(1e-4)  # both sides round to float32; up to 700 px
PASSES = ("plain", "flip")


def compare(golden_folder: Path, salt: str = "") -> list[Comparison]:
    """The golden files of read-out and evaluation, as far as they are there."""
    parts = {
        "np_readout_coco": lambda golden: _read_out(golden, COCO17, salt),
        "np_readout_mpii": lambda golden: _read_out(golden, MPII16, salt),
        "np_seq_infer": lambda golden: _sequential(golden, salt),
        "np_oks": _similarity,
        "np_cocoeval": lambda golden: _coco(golden, golden_folder / "np_cocoeval.json"),
        "np_pckh": lambda golden: _mpii(golden, golden_folder / "np_pckh.json"),
    }
    found = []
    for name, part in parts.items():
        if (golden_folder / f"{name}.npz").is_file():
            with np.load(golden_folder / f"{name}.npz") as file:
                golden = dict(file)
            ours, tolerances = part(golden)
            skipped = {"soft_keep*": "soft suppression; no published configuration uses it"}
            skipped = {} if name != "np_oks" else skipped
            found.append(parity.compare(name, ours, golden, SCORES, tolerances, skipped))
    return found


def hypotheses(name: str, shape: tuple[int, int, int], salt: str) -> KeypointSetOutput:
    """The seeded output of a network; the shape is that of the logits."""
    logits = 3 * normal(f"input:{name}.pred_logits", shape, salt)
    places = normal(f"input:{name}.pred_coords", (*shape[:2], 2), salt)
    coords = np.clip(np.float32(0.5) + np.float32(0.2) * places, 0, 1)
    return KeypointSetOutput(torch.from_numpy(logits), torch.from_numpy(coords))


def _read_out(golden: Golden, skeleton: Skeleton, salt: str) -> tuple[Ours, dict[str, Tolerance]]:
    given = ("center", "scale", "image_size_wh")
    center, scale = (torch.from_numpy(golden[key]) for key in given[:2])
    size = [int(side) for side in golden["image_size_wh"]]
    shape = (len(center), 100, len(skeleton) + 1)
    outputs = {name: hypotheses(f"readout.{name}", shape, salt) for name in PASSES}
    ours: Ours = {key: golden[key] for key in given}  # inputs
    tolerances = {}
    for key, background in (("nobg", False), ("bg", True)):
        for name, prefix in (("plain", ""), ("flip", "flip_")):
            crop = read_out(outputs[name].logits, outputs[name].coords, background)
            crop = crop if name == "plain" else unflip(crop, skeleton)
            ours |= {
                f"{key}/{prefix}scores": crop.scores[..., None],
                f"{key}/{prefix}crop_coords": crop.coords * torch.tensor(size),
                f"{key}/{prefix}preds": to_image(crop.coords, center, scale, size),
            }
        merged: Keypoints = read_out_people(
            outputs["plain"], outputs["flip"], center, scale, size, skeleton, background
        )
        ours[f"{key}/merged_preds"] = merged.coords
        ours[f"{key}/merged_scores"] = merged.scores[..., None]
    for key in ours:
        if key.endswith(("preds", "coords")):
            tolerances[key] = PIXELS
    return ours, tolerances


def _sequential(golden: Golden, salt: str) -> tuple[Ours, dict[str, Tolerance]]:
    people = golden["coords"].shape[:2]
    logits = 3 * normal("input:seqinfer.logits", (*people, 100, 18), salt)
    coords = normal("input:seqinfer.coords", (*people, 100, 2), salt)
    found = read_out_sequential(torch.from_numpy(logits), torch.from_numpy(coords))
    return {"coords": found.coords}, {"coords": EXACT}


def _similarity(golden: Golden) -> tuple[Ours, dict[str, Tolerance]]:
    keypoints, area, score = (
        torch.from_numpy(golden[key]).double() for key in ("keypoints", "area", "score")
    )
    matrix = oks_matrix(keypoints[..., :2], area)
    order = best_first(score)
    sorted_matrix = matrix[order][:, order]
    ours: Ours = {key: golden[key] for key in ("keypoints", "area", "score")}  # inputs
    ours["oks_matrix"] = matrix
    for key in golden:
        if key.startswith("keep_"):
            gone = suppressed(sorted_matrix[None], float(key.removeprefix("keep_")))[0]
            ours[key] = order[~gone]
    return ours, {"keep_": EXACT}


def _coco(golden: Golden, labels_path: Path) -> tuple[Ours, dict[str, Tolerance]]:
    given = ("preds", "boxes_cx_cy_sx_sy_area_score", "image_id")
    people = [
        KeypointPerson(int(image), pose[:, :2], pose[:, 2], box[:2], box[2:4], float(box[5]))
        for pose, box, image in zip(*(golden[key] for key in given), strict=True)
    ]
    areas = golden["boxes_cx_cy_sx_sy_area_score"][:, 4]
    np.testing.assert_allclose([person.area for person in people], areas, rtol=1e-6)
    rows = result_rows(people)
    beside = json.loads(labels_path.read_text("utf-8"))
    values = coco_scores(rows, labels_from(beside["gt"], labels_path.name))
    stats = np.array([values[name] for name in METRICS])
    golden["json/stats"] = np.array([beside["stats"][name] for name in beside["stat_names"]])
    golden["json/n_in,n_after_nms"] = np.array([beside["n_in"], beside["n_after_nms"]])
    ours: Ours = {key: golden[key] for key in given}  # inputs
    ours |= {
        "result_image_id": np.array([row["image_id"] for row in rows]),
        "result_score": np.array([row["score"] for row in rows]),
        "result_kpt0": np.array([row["keypoints"][:3] for row in rows]),
        "stats": stats,
        "json/stats": stats,
        "json/n_in,n_after_nms": np.array([len(people), len(rows)]),
    }
    return ours, {"result_image_id": EXACT, "json/": Tolerance(1e-12)}


def _mpii(golden: Golden, names_path: Path) -> tuple[Ours, dict[str, Tolerance]]:
    given = ("preds", "gt_1based_16x2xN", "missing_16xN", "headboxes_2x2xN")
    predictions, positions, missing, boxes = (golden[key] for key in given)
    labels = MpiiLabels.from_boxes(
        "np_pckh",
        positions.transpose(2, 0, 1),
        missing.T == 0,
        boxes.transpose(2, 0, 1).reshape(-1, 4),
    )
    values = pckh_scores(predictions, labels)
    renamed = {"Mean@0.1": "PCKh@0.11"}
    beside = json.loads(names_path.read_text("utf-8"))
    golden["json/values"] = np.array([beside["values"][name] for name in beside["names"]])
    ours: Ours = {key: golden[key] for key in given}  # inputs
    numbers = np.array([values[renamed.get(name, name)] for name in beside["names"]])
    ours |= {"values": numbers, "json/values": numbers}
    return ours, {"values": Tolerance(0.0, 1e-6), "json/": Tolerance(1e-11)}
