"""How well models do on small labelled sets of real photos, beside a constant mean shape.

    python benchmarks/real_fixtures.py [--data FOLDER] [--model body=NEW.safetensors body=body]
        [--sets h36m lspet] [--json scores.json] [--sheet FOLDER]

The photos may not be redistributed, so they are no part of the repository: docs/real-photos.md
lists the files. A model is ``body=FILE`` or ``hand=FILE``; ``body=body`` and ``hand=hand`` are the
shipped ones, which are scored if nothing is said. ``--sheet`` writes pictures to look at: each
photo with its labels, and what each model drew onto it. Of a model that says how far off it expects
each joint to be, the measured distance is printed by thirds of the expected one.
"""

import argparse
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

import kinemesh
from _measure import machine
from kinemesh.bodies import load_topology
from kinemesh.data.synthetic import SyntheticDataset
from kinemesh.errors import InputError
from kinemesh.evaluation.calibration import Calibration
from kinemesh.evaluation.real_photos import RENDERED, LabelledBox, LabelledSet, read_real_sets
from kinemesh.evaluation.real_scores import (
    BOX_PX,
    PlacedJoints,
    RealScore,
    draw_into_box,
    pooled,
    score_real,
)
from kinemesh.evaluation.real_spread import real_calibration
from kinemesh.evaluation.real_views import VIEWS, view_of
from kinemesh.evaluation.synthetic import MEAN_SHAPE_SAMPLES, mean_shape
from kinemesh.files import write_bytes, write_json
from kinemesh.inference.images import LoadedImage, load_image
from kinemesh.inference.labelled_photos import as_placed, predict_labelled
from kinemesh.inference.person import Person
from kinemesh.rendering.overlay import draw_mesh, draw_skeleton
from kinemesh.skeletons import get_skeleton

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CONSTANT = "mean shape"
TILE_PX = 224
ACROSS, DOWN = 8, 6
"""Tiles of a page."""
_CONTEXT = 1.4  # side of a tile over that of the box


@dataclass(frozen=True)
class NamedModel:
    """A predictor, what it recovers, and its name in the table."""

    kind: str
    name: str
    predictor: Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--model", nargs="+", default=["body=body", "hand=hand"])
    parser.add_argument("--sheet", type=Path, help="folder for pictures to look at")
    options = parser.parse_args()
    try:
        sets = read_real_sets(options.data, options.sets)
        models = load_all(options.model)
        scores: list[RealScore] = []
        spread: dict[str, Calibration] = {}
        for kind in ("hand", "body"):
            chosen = [one for one in sets if one.kind == kind]
            used = [one for one in models if one.kind == kind]
            if chosen and used:
                found, expected = score_kind(kind, chosen, used, options.sheet)
                scores += found
                spread |= expected
    except InputError as error:
        parser.error(str(error))
    print(table(scores))
    for name, one in spread.items():
        print(f"{name}: {one}")
    write_record(options.json, scores, spread={name: one.to_dict() for name, one in spread.items()})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that the peers' script has as well."""
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the labelled sets")
    parser.add_argument("--sets", nargs="*", default=[], help="only these sets")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")


def load_all(texts: Sequence[str]) -> list[NamedModel]:
    """Models from ``body=FILE`` and ``hand=FILE``, with a name of its own for each.

    Raises:
        InputError: A text has another form, or comes twice, or a file is no weight file.
    """
    parts = [text.partition("=")[::2] for text in texts]
    for text, (kind, place) in zip(texts, parts, strict=True):
        if kind not in ("body", "hand") or not place:
            raise InputError(f"--model: expected body=FILE or hand=FILE, found '{text}'.")
        if texts.count(text) > 1:
            raise InputError(f"--model: '{text}' comes {texts.count(text)} times. Give it once.")
    stems = [Path(place).stem for _, place in parts]
    names = [
        place if stems.count(stem) > 1 else stem
        for stem, (_, place) in zip(stems, parts, strict=True)
    ]
    return [
        NamedModel(kind, f"shipped {kind}" if place == kind else name, kinemesh.load(place, "cpu"))
        for name, (kind, place) in zip(names, parts, strict=True)
    ]


def score_kind(
    kind: str, sets: Sequence[LabelledSet], models: Sequence[NamedModel], sheet: Path | None
) -> tuple[list[RealScore], dict[str, Calibration]]:
    """All lines of the sets of one kind, then those of all sets together, bodies also by view.

    Returns:
        The lines; and of the models that say how far off joints will be, by name, whether they are.
    """
    constant = ConstantShape(kind)
    by_model: dict[str, list[RealScore]] = {}
    by_view: dict[str, list[RealScore]] = {}
    answered: dict[str, list[tuple[LabelledSet, list[PlacedJoints]]]] = {}
    scores = []
    for labels in sets:
        people = {one.name: predict_set(one, labels) for one in models}
        answers = {name: [as_placed(one) for one in found] for name, found in people.items()}
        if labels.name not in RENDERED:
            for name, found in answers.items():
                answered.setdefault(name, []).append((labels, found))
        answers[CONSTANT] = constant.answers(labels)
        for name, found in answers.items():
            scores.append(score_real(labels, found, name))
            by_model.setdefault(name, []).append(scores[-1])
        if sheet is not None:
            draw_sheets(sheet, labels, people, answers)
        if kind == "body":
            for name, found in answers.items():
                by_view.setdefault(name, []).extend(score_views(labels, found, name))
    expected = {name: real_calibration(pairs) for name, pairs in answered.items()}
    spread = {name: one for name, one in expected.items() if one is not None}
    return scores + all_photos(kind, by_model) + all_views(by_view), spread


def score_views(
    labels: LabelledSet,
    answers: Sequence[PlacedJoints],
    model: str,
    only: Collection[str] | None = None,
) -> list[RealScore]:
    """A score for each view of a body that the set has, with the view as name."""
    views = [view_of(sample, labels.joints) for sample in labels.samples]
    scores = []
    for view in sorted(set(views)):
        rows = [row for row, found in enumerate(views) if found == view]
        samples = tuple(labels.samples[row] for row in rows)
        part = replace(labels, name=view, samples=samples, coco=None)
        scores.append(score_real(part, [answers[row] for row in rows], model, only))
    return scores


def all_views(by_view: dict[str, list[RealScore]]) -> list[RealScore]:
    """A line for each view and model, over all sets."""
    return [
        pooled([one for one in scores if one.dataset == view], f"all photos, {view}")
        for view in VIEWS
        for scores in by_view.values()
        if any(one.dataset == view for one in scores)
    ]


def all_photos(kind: str, by_model: dict[str, list[RealScore]]) -> list[RealScore]:
    """A line for each model: the samples of all sets of photos together."""
    lines = {
        name: [one for one in rows if one.dataset not in RENDERED]
        for name, rows in by_model.items()
    }
    return [pooled(rows, f"all photos, {kind}") for rows in lines.values() if rows]


def predict_set(model: NamedModel, labels: LabelledSet) -> list[Person]:
    """One prediction a labelled box."""
    return predict_labelled(model.predictor, labels)


class ConstantShape:
    """The generalised Procrustes mean of synthetic training samples, drawn into each box."""

    def __init__(self, kind: str) -> None:
        topology = load_topology(f"anny-{kind}")
        training = SyntheticDataset(kind, seed=0, resolution=128, split="train")  # type: ignore[arg-type]
        self.names = topology.skeleton.joints
        self.vertices: Tensor = mean_shape(training.meshes(range(MEAN_SHAPE_SAMPLES)), topology)
        self.joints: Tensor = topology.joints(self.vertices[None])[0]

    def answers(self, labels: LabelledSet) -> list[PlacedJoints]:
        """The same shape for each sample."""
        return [
            draw_into_box(sample, self.names, self.joints, self.vertices)
            for sample in labels.samples
        ]


NUMBERS: tuple[tuple[str, str, str], ...] = (
    ("PA-MPJPE mm", "pa_mpjpe_mm", ".1f"),
    ("MPJPE mm", "mpjpe_mm", ".1f"),
    ("3DPCK", "pck_3d", ".3f"),
    ("3D AUC", "auc_3d", ".3f"),
    ("2D px/256", "error_px", ".1f"),
    ("PCK.1", "pck_2d", ".3f"),
    ("2D AUC", "auc_2d", ".3f"),
    ("COCO AP", "coco_ap", ".3f"),
)


def table(scores: Sequence[RealScore]) -> str:
    """Markdown, one line a score."""
    heads = [
        "set",
        "model",
        "samples",
        "joints",
        "boxes",
        *(head for head, _, _ in NUMBERS),
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for score in scores:
        cells = [score.dataset, score.model, str(score.samples), str(score.joints), score.protocol]
        for _, name, form in NUMBERS:
            value = getattr(score, name)
            cells.append("–" if math.isnan(value) else format(value, form))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_record(path: Path | None, scores: Sequence[RealScore], **more: Any) -> None:
    """All numbers with the machine that made them, if a file was asked for."""
    if path is not None:
        record = {"machine": machine(), **more, "scores": [one.to_dict() for one in scores]}
        write_json(path, record)


def draw_sheets(
    folder: Path,
    labels: LabelledSet,
    people: dict[str, list[Person]],
    answers: dict[str, list[PlacedJoints]],
) -> None:
    """Pages of tiles: each photo with its labels, then each model's mesh and joints."""
    strips = []
    for index, sample in enumerate(labels.samples):
        tile = Tile.around(load_image(sample.photo), sample)
        tiles = [tile.labelled(sample, f"{labels.name} {index}")]
        for name, found in people.items():
            error = sample_error(labels, index, answers[name][index])
            tiles.append(tile.drawn(found[index], f"{error:.0f} px"))
        strips.append(np.concatenate(tiles, axis=1))
    across = max(1, ACROSS // (1 + len(people)))
    strips += [np.zeros_like(strips[0])] * (-len(strips) % across)
    lines = [np.concatenate(strips[k : k + across], axis=1) for k in range(0, len(strips), across)]
    folder.mkdir(parents=True, exist_ok=True)
    for page, first in enumerate(range(0, len(lines), DOWN)):
        picture = np.concatenate(lines[first : first + DOWN])
        _, encoded = cv2.imencode(".png", picture[:, :, ::-1])
        write_bytes(folder / f"{labels.name}-{page}.png", encoded.tobytes())


def sample_error(labels: LabelledSet, index: int, answer: PlacedJoints) -> float:
    """Error of one sample in the image, the longer side of its box being 256 px."""
    one = replace(labels, samples=(labels.samples[index],), coco=None)
    return score_real(one, [answer], "").error_px


@dataclass(frozen=True, eq=False)
class Tile:
    """A square part of a photo: its pixels, where it starts, and its zoom."""

    pixels: np.ndarray
    corner_px: np.ndarray
    zoom: float

    @classmethod
    def around(cls, photo: LoadedImage, sample: LabelledBox) -> "Tile":
        """The box with its surroundings."""
        left, top, width, height = sample.box_px
        side = _CONTEXT * sample.side_px
        corner = np.array([left + width / 2 - side / 2, top + height / 2 - side / 2])
        zoom = TILE_PX / side
        matrix = np.column_stack([np.eye(2) * zoom, -corner * zoom])
        how = cv2.INTER_AREA if zoom < 1 else cv2.INTER_LINEAR
        pixels = cv2.warpAffine(photo.pixels, matrix, (TILE_PX, TILE_PX), flags=how)
        return cls(np.asarray(pixels), corner, zoom)

    def labelled(self, sample: LabelledBox, text: str) -> np.ndarray:
        """With the labelled joints."""
        canvas = self.pixels.copy()
        for place in (sample.points_px[sample.labelled] - self.corner_px) * self.zoom:
            cv2.circle(canvas, tuple(int(v) for v in place), 3, (0, 255, 0), -1, cv2.LINE_AA)
        return write_on(canvas, text)

    def drawn(self, person: Person, text: str) -> np.ndarray:
        """With a predicted mesh and the joints found in the image."""
        canvas = self.pixels
        if person.has_mesh:
            middle = (np.array(person.camera.principal_px) - self.corner_px) * self.zoom
            focal = person.camera.focal_px * self.zoom
            canvas = draw_mesh(canvas, [person.vertices], [person.faces], focal, middle, alpha=0.7)
        places = (person.joints_px - self.corner_px) * self.zoom
        drawn = draw_skeleton(canvas, places, get_skeleton(person.skeleton), thickness=1.5)
        return write_on(drawn, text)


def write_on(canvas: np.ndarray, text: str) -> np.ndarray:
    """A short text in the upper left corner, readable on any ground."""
    for color, width in (((0, 0, 0), 3), ((255, 255, 0), 1)):
        cv2.putText(
            canvas, text, (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, color, width, cv2.LINE_AA
        )
    return canvas


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"px are 1/{BOX_PX:.0f} of the longer side of the labelled box")
    main()
