"""From an Ego-Exo4D download to the folder that `kinemesh.data.ego_exo4d` reads.

Four steps for each split: calibrations, annotation files, frames of the videos, undistorted
pictures. Takes are sorted and random numbers follow from a seed and the take alone, so two runs
write the same files. A run that was interrupted goes on where it was: annotation files are made
anew (they are quick to make), pictures that are there stay.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from kinemesh.data.aria_calibration import colour_camera
from kinemesh.data.ego_exo4d import (
    SPLITS,
    HandPoseOptions,
    Split,
    annotation_folder,
    find_annotation,
    pictures_folder,
)
from kinemesh.data.ego_exo4d_annotations import read_takes
from kinemesh.data.ego_exo4d_images import TakePictures, make_pictures
from kinemesh.data.ego_exo4d_labels import SIDES, LabelRules, label_frame
from kinemesh.data.ego_exo4d_release import Release, Take
from kinemesh.errors import InputError
from kinemesh.files import atomic_path, write_json
from kinemesh.geometry.fisheye import Fisheye624, Undistortion
from kinemesh.optional import require

Progress = Callable[[str, int, int], None]
"""Told a step, how many takes are done, and of how many."""


@dataclass(frozen=True)
class PrepareOptions:
    """What is made.

    Attributes:
        splits: "train", "val" and "test". The labels of the test split are not published: its
            pictures are made after the public annotation file, which has to lie in the folder.
        rules: Which joints and hands are kept, and which way up the pictures are.
        calibrations: Folder with calibrations; see `kinemesh.data.ego_exo4d_release.Release`.
        images: Make the pictures, too.
        keep_distorted: Keep the frames as they are in the video beside the undistorted ones.
        seed: Of the boxes of the test split.
        workers: Processes that make pictures; 0: none besides this one.

    Raises:
        InputError: A split is unknown or named twice, or a number is negative.
    """

    splits: tuple[Split, ...] = ("train", "val")
    rules: LabelRules = field(default_factory=LabelRules)
    calibrations: Path | None = None
    images: bool = True
    keep_distorted: bool = False
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        unknown = set(self.splits) - set(SPLITS)
        if unknown or not self.splits or len(set(self.splits)) < len(self.splits):
            raise InputError(
                f"splits: expected some of {', '.join(SPLITS)}, each once, found "
                f"{', '.join(self.splits) or 'none'}."
            )
        if min(self.seed, self.workers) < 0:
            raise InputError("seed, workers: expected numbers from 0 up.")


@dataclass
class PreparedSplit:
    """What was made of one split.

    Attributes:
        split: Which.
        takes: Takes with at least one hand.
        frames: Frames with at least one hand.
        hands: All of them.
        pictures: Pictures that were written by this run.
        skipped: Takes that have no calibration, one line each, left out as officially.
        problems: What could not be done, one line each.
    """

    split: Split
    takes: int = 0
    frames: int = 0
    hands: int = 0
    pictures: int = 0
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = (
            f"{self.split}: {self.hands} hands in {self.frames} frames of {self.takes} takes, "
            f"{self.pictures} new pictures"
        )
        text += f", {len(self.skipped)} takes left out" if self.skipped else ""
        return text + (f", {len(self.problems)} problems" if self.problems else "")


def prepare_ego_exo4d(
    release: str | Path,
    out: str | Path,
    options: PrepareOptions | None = None,
    progress: Progress | None = None,
) -> tuple[PreparedSplit, ...]:
    """Make the benchmark's files of a download.

    A take that cannot be read does not end the run; the report names it.

    Args:
        release: The download; see `kinemesh.data.ego_exo4d_release`.
        out: Folder to write to; see `kinemesh.data.ego_exo4d`.
        options: What is made.
        progress: Told about each take.

    Returns:
        A report for each split.

    Raises:
        InputError: The download lacks what all takes need.
        MissingExtraError: PyAV is needed and not installed.
    """
    options = options or PrepareOptions()
    if options.images:
        require("av", "video")  # before the labels are made
    source = Release(release, options.calibrations)
    work = _Preparation(source, Path(out), options, progress or _silent)
    with ExitStack() as stack:
        pool = None
        if options.workers:
            # a fork would inherit the locked locks of the threads of OpenCV and FFmpeg
            pool = ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn"))
            stack.callback(pool.shutdown, cancel_futures=True)
        return tuple(work.prepare(split, pool) for split in options.splits)


class _Preparation:
    """One run; keeps the cameras that were read."""

    def __init__(
        self, release: Release, out: Path, options: PrepareOptions, progress: Progress
    ) -> None:
        self.release, self.out, self.options, self.progress = release, out, options, progress
        self.cameras: dict[str, Fisheye624] = {}

    def prepare(self, split: Split, pool: Executor | None) -> PreparedSplit:
        report = PreparedSplit(split)
        annotation = self._annotate(split, report)
        if self.options.images:
            self._make_pictures(split, annotation, report, pool)
        return report

    def _annotate(self, split: Split, report: PreparedSplit) -> Path:
        """Write the annotation files of a split; the public one is returned."""
        rules = self._rules(split)
        folder = annotation_folder(self.out, rules.annotations, rules.portrait)
        uids = self.release.uids(split, rules.annotations)
        if not uids:
            return self._given_annotation(split, report)
        folder.mkdir(parents=True, exist_ok=True)
        kinds = ("public", "private") if split == "test" else ("public",)
        paths = [folder / f"ego_pose_gt_anno_{split}_{kind}.json" for kind in kinds]
        with ExitStack() as stack:
            writers = [stack.enter_context(_TakeWriter(path)) for path in paths]
            for number, uid in enumerate(uids):
                self.progress(f"{split} labels", number, len(uids))
                frames = self._label_take(split, uid, report)
                for writer, kind in zip(writers, kinds, strict=True):
                    hidden = split == "test" and kind == "public"
                    writer.add(uid, _without_labels(frames) if hidden else frames)
            self.progress(f"{split} labels", len(uids), len(uids))
            if not report.takes:
                reasons = report.problems + report.skipped
                first = f" First: {reasons[0]}" if reasons else ""
                raise InputError(
                    f"'{self.release.folder}', {split}: none of {len(uids)} takes gave a hand."
                    f"{first}"
                )
        return paths[0]

    def _given_annotation(self, split: Split, report: PreparedSplit) -> Path:
        """The file that the benchmark publishes, where the download has no raw annotations."""
        rules = self._rules(split)
        options = HandPoseOptions(rules.annotations, rules.portrait)
        try:
            path = find_annotation(self.out, split, options)
        except InputError as error:
            folder = annotation_folder(self.out, rules.annotations, rules.portrait)
            raise InputError(
                f"'{self.release.folder}' has no raw hand annotations ({rules.annotations}) with "
                f"camera poses for {split}. Download them, or put the published "
                f"ego_pose_gt_anno_{split}_public.json into '{folder}'."
            ) from error
        takes = read_takes(path)
        report.takes = len(takes)
        report.frames = sum(len(frames) for frames in takes.values())
        report.hands = sum(map(_count_hands, takes.values()))
        return path

    def _label_take(self, split: Split, uid: str, report: PreparedSplit) -> dict[str, Any]:
        try:
            take = self.release.take(uid)
            camera = self._camera(take)
            if camera is None:
                report.skipped.append(f"take {take.name}: no calibration")
                return {}
            frames = self._label_frames(split, take, camera)
        except InputError as error:
            report.problems.append(f"take {uid}: {error}")
            return {}
        report.takes += bool(frames)
        report.frames += len(frames)
        report.hands += _count_hands(frames)
        return frames

    def _label_frames(self, split: Split, take: Take, camera: Fisheye624) -> dict[str, Any]:
        rules, draw = self._rules(split), None
        if split == "test":
            draw = _generator(self.options.seed, take.uid)
        posed = self.release.camera(split, take, Undistortion(camera).valid)
        frames: dict[str, Any] = {}
        for frame, raw in self.release.annotation(split, rules.annotations, take).items():
            try:
                entry = label_frame(frame, raw, posed, rules, draw)
                number = int(frame)
            except (InputError, ValueError) as error:
                raise InputError(f"frame {frame}: {error}") from error
            if entry is not None:
                entry["metadata"] = {
                    "take_uid": take.uid,
                    "take_name": take.name,
                    "frame_number": number,
                }
                frames[frame] = entry
        return frames

    def _rules(self, split: Split) -> LabelRules:
        """The test split is marked by people alone."""
        rules = self.options.rules
        return replace(rules, annotations="manual") if split == "test" else rules

    def _camera(self, take: Take) -> Fisheye624 | None:
        """The camera of a take, whose calibration is written, too; None without calibration."""
        if take.uid not in self.cameras:
            path = self.out / "aria_calib_json" / f"{take.name}.json"
            calibration = self.release.calibration(take)
            if calibration is None:
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, calibration)
            self.cameras[take.uid] = colour_camera(calibration, f"calibration of {take.name}")
        return self.cameras[take.uid]

    def _make_pictures(
        self, split: Split, annotation: Path, report: PreparedSplit, pool: Executor | None
    ) -> None:
        jobs = list(self._jobs(split, annotation, report))
        done = map(_attempt, jobs) if pool is None else pool.map(_attempt, jobs)
        for number, result in enumerate(done, start=1):
            if isinstance(result, str):
                report.problems.append(result)
            else:
                report.pictures += result
            self.progress(f"{split} pictures", number, len(jobs))

    def _jobs(
        self, split: Split, annotation: Path, report: PreparedSplit
    ) -> Iterator[TakePictures]:
        portrait = self.options.rules.portrait
        views, frames_of = (
            pictures_folder(self.out, portrait, step) / split
            for step in ("undistorted", "distorted")
        )
        for uid, frames in read_takes(annotation).items():
            try:
                take = self.release.take(uid)
                camera = self._camera(take)
            except InputError as error:
                report.problems.append(f"take {uid}: {error}")
                continue
            if camera is None:
                report.skipped.append(f"take {take.name}: no calibration, so no pictures")
                continue
            kept = frames_of / take.name if self.options.keep_distorted else None
            numbers = tuple(map(int, frames))
            yield TakePictures(
                self.release.video(take), numbers, camera, views / take.name, kept, portrait
            )


class _TakeWriter:
    """Writes ``{uid: frames}`` a take at a time; the file appears when the block ends well."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._separator = b"{"

    def __enter__(self) -> "_TakeWriter":
        temporary = self._stack.enter_context(atomic_path(self.path))
        self._file: IO[bytes] = self._stack.enter_context(temporary.open("wb"))
        return self

    def add(self, uid: str, frames: Mapping[str, Any]) -> None:
        """Append a take, unless it is empty; missing joints become bare NaN, as published."""
        if frames:
            self._file.write(self._separator + f"{json.dumps(uid)}: {json.dumps(frames)}".encode())
            self._separator = b", "

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._file.write(b"}\n" if self._separator == b", " else b"{}\n")
        self._stack.__exit__(*error)


def _attempt(job: TakePictures) -> int | str:
    """Pictures written, or why not; errors of one take must not end the others."""
    try:
        return make_pictures(job)
    except InputError as error:
        return str(error)


def _without_labels(frames: Mapping[str, Any]) -> dict[str, Any]:
    """What the public file of the test split says: boxes and metadata."""
    kept = [*(f"{side}_hand_bbox" for side in SIDES), "metadata"]
    return {frame: {name: entry[name] for name in kept} for frame, entry in frames.items()}


def _count_hands(frames: Mapping[str, Any]) -> int:
    return sum(bool(entry.get(f"{side}_hand_bbox")) for entry in frames.values() for side in SIDES)


def _generator(seed: int, uid: str) -> np.random.RandomState:
    """Random numbers of one take, whatever other takes are there."""
    words = np.frombuffer(hashlib.sha256(uid.encode()).digest(), dtype="<u4")
    return np.random.RandomState([seed % 2**32, *words.tolist()])


def _silent(step: str, done: int, total: int) -> None:
    """Say nothing."""
