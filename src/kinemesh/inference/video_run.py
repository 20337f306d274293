"""A run over a video: find people frame by frame, follow them, smooth, draw.

It has two halves. `recover` finds people and gives them track numbers; what it finds is put into a
journal at once, frame by frame, and whatever is there already is read from it in place of running
the network: killing a run loses the frame in work, and going on gives what an unbroken run gives,
because everything after the network follows from the journal alone. The second half refines what
was found and draws it. With an offline filter, which needs the frames to come, the second half
begins when the first is done, and decodes the video again; else they run at the same time.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from kinemesh.errors import InputError
from kinemesh.inference.boxes import Box, whole_image
from kinemesh.inference.frame_fitting import Fit, TrackFitter, fit_again
from kinemesh.inference.images import LoadedImage
from kinemesh.inference.person import LOW_SCORE, Person
from kinemesh.inference.pipeline import StageClock, in_thread
from kinemesh.inference.refinement import OnlineRefiner, TrackSizes, refine_offline
from kinemesh.inference.smoothing import OfflineSmoothing, check_strength
from kinemesh.inference.tracking import Tracker, TrackingRule
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame, with_owners
from kinemesh.inference.video_source import DamagedVideoError, SourceFrame, VideoSource

Boxes = tuple[Box, ...] | None
Find = Callable[[Sequence[LoadedImage], Sequence[Boxes]], list[list[Person]]]
"""People of several frames; boxes None is the whole image, or a network that finds people."""
Detect = Callable[[int, LoadedImage], Boxes]
"""Boxes of the frame of a number."""
_LEAST_INSIDE = 0.2  # of a box that is looked at again
_GUESSED_RATE = 25.0
_FOLLOWED_OKS = 0.5  # where COCO begins to count two people as one
_STORED: Boxes = (Box(-1.0, -1.0, 1.0, 1.0),)  # stands for a frame of the journal


class Journal(Protocol):
    """Where found people are kept, by the number of the frame."""

    def has(self, index: int) -> bool:
        """Whether a frame is complete."""

    def read(self, index: int) -> VideoFrame:
        """A frame as it was written."""

    def write(self, frame: VideoFrame) -> None:
        """Keep a frame, whole or not at all."""


class Overlay(Protocol):
    """Draws frames and makes a video of them."""

    @property
    def finished(self) -> int:
        """How many frames from the first on are there already."""

    def draw(self, photo: LoadedImage, frame: VideoFrame) -> np.ndarray:
        """The picture of a frame."""

    def add(self, time_s: float, pixels: np.ndarray) -> None:
        """Take the next picture."""

    def finish(self) -> None:
        """Close the video; nothing can be added after it."""


class Results(Protocol):
    """Where the refined frames go."""

    @property
    def journal(self) -> Journal:
        """Where found people are kept before they are refined."""

    @property
    def overlay(self) -> Overlay | None:
        """Who draws; None where nothing is drawn."""

    @property
    def finished(self) -> int:
        """How many frames from the first on are there already."""

    def write(self, frame: VideoFrame) -> None:
        """Take the next frame."""


@dataclass(frozen=True)
class RunRule:
    """How a run is done.

    Attributes:
        every: Every how many frames one is looked at.
        max_frames: At most so many are looked at; None for all.
        smooth: Strength of smoothing, 0 to 1.
        offline: "gaussian" or "savgol"; None smooths online.
        batch_frames: How many frames go through the network together, where their boxes do not
            come from one another.
        tracking: When a found person is a known one.

    Raises:
        InputError: A number is out of its range.
    """

    every: int = 1
    max_frames: int | None = None
    smooth: float = 0.5
    offline: OfflineSmoothing | None = None
    batch_frames: int = 1
    tracking: TrackingRule = field(default_factory=TrackingRule)

    def __post_init__(self) -> None:
        check_strength(self.smooth)
        if self.batch_frames < 1:
            raise InputError(
                f"batch_frames: expected a number of frames from 1 on, found {self.batch_frames}."
            )
        if self.every < 1 or (self.max_frames is not None and self.max_frames < 1):
            raise InputError(
                "every, max_frames: expected numbers of frames from 1 on, found "
                f"{self.every} and {self.max_frames}."
            )


@dataclass
class VideoReport:
    """What became of a run.

    Attributes:
        frames: Frames looked at, those of the journal too.
        computed: Frames that went through the network in this run.
        tracks: How many different people are in the results.
        seconds: How long it took.
        clock: What the stages did in this time.
        damage: Why the source ended early; None if it did not.
    """

    frames: int = 0
    computed: int = 0
    tracks: int = 0
    seconds: float = 0.0
    clock: StageClock = field(default_factory=StageClock)
    damage: str | None = None


@dataclass
class VideoRun:
    """One run over a video.

    Args:
        source: The frames.
        find: Finds people.
        results: Where they go.
        rule: How.
        detect: Says where people are in a frame. None: the boxes of a frame come from the tracks
            of those before it; where nobody is known, ``start`` is looked at.
        start: Boxes to begin with; None is the whole image.
        fit: Fits body models to the people; None leaves them without parameters.
        progress: Called with the name of the half, frames done, and frames in all if known.
    """

    source: VideoSource
    find: Find
    results: Results
    rule: RunRule = field(default_factory=RunRule)
    detect: Detect | None = None
    start: Boxes = None
    fit: Fit | None = None
    progress: Callable[[str, int, int | None], None] = lambda half, done, total: None
    report: VideoReport = field(default_factory=VideoReport)

    def run(self) -> VideoReport:
        """Do it.

        Raises:
            InputError: A frame is not usable for the network; frames before it are kept.
            OSError: Results cannot be written.
        """
        begun = time.perf_counter()
        offline = self.rule.offline
        pairs = self._online() if offline is None else self._offline(offline, self._find_all())
        try:
            self._finish(pairs)
        except KeyboardInterrupt:
            if not self.source.is_live:
                raise
        if self.results.overlay is not None:
            with self.report.clock.measure("encode"):
                self.results.overlay.finish()
        self.report.seconds = time.perf_counter() - begun
        return self.report

    def _online(self) -> Iterator[tuple[SourceFrame, VideoFrame]]:
        refiner = OnlineRefiner(self.rule.smooth)
        total = self._total()
        first = self._first_drawn()
        for position, (shown, frame) in enumerate(in_thread(self._recover(first)), start=1):
            with self.report.clock.measure("refine"):
                refined = refiner.refine(frame)
            yield shown, self._fitted_again(refined, position)
            self.progress("finding people", position, total)

    def _find_all(self) -> tuple[TrackSizes, list[tuple[int, float]]]:
        """The first half: sizes of all tracks, and number and time of each frame."""
        sizes, frames = TrackSizes(), []
        total = self._total()
        for position, (shown, frame) in enumerate(in_thread(self._recover(None)), start=1):
            sizes.add(frame)
            frames.append((shown.index, shown.time_s))
            self.progress("finding people", position, total)
        return sizes, frames

    def _offline(
        self, smoothing: OfflineSmoothing, found: tuple[TrackSizes, list[tuple[int, float]]]
    ) -> Iterator[tuple[SourceFrame, VideoFrame]]:
        """The second half: refined frames, with pixels where they are still to be drawn."""
        sizes, frames = found
        refined = refine_offline(
            lambda position: self.results.journal.read(frames[position][0]),
            len(frames),
            self._rate([seconds for _, seconds in frames]),
            sizes.lasting(self.rule.tracking.lost_s),
            smoothing,
        )
        refined = self.report.clock.timed("refine", refined)
        first = self._first_drawn()
        shown_frames: Iterable[SourceFrame]
        if first is None:
            shown_frames = (SourceFrame(index, seconds, None) for index, seconds in frames)
        else:
            shown_frames = in_thread(self._decoded(first))
        shown_frames = itertools.islice(shown_frames, len(frames))
        for position, pair in enumerate(zip(shown_frames, refined, strict=True), start=1):
            yield pair[0], self._fitted_again(pair[1], position)
            self.progress("smoothing and drawing", position, len(frames))

    def _fitted_again(self, frame: VideoFrame, position: int) -> VideoFrame:
        """A refined frame with parameters for its meshes, if it is still to be written."""
        if self.fit is None or position <= self.results.finished:
            return frame
        with self.report.clock.measure("fit"):
            return fit_again(frame, self.fit)

    def _finish(self, pairs: Iterator[tuple[SourceFrame, VideoFrame]]) -> None:
        tracks: set[int] = set()
        overlay, clock = self.results.overlay, self.report.clock

        def written() -> Iterator[tuple[SourceFrame, VideoFrame]]:
            for position, (shown, frame) in enumerate(pairs):
                if position >= self.results.finished:
                    with clock.measure("write"):
                        self.results.write(frame)
                tracks.update(found.track for found in frame.people)
                self.report.tracks = len(tracks)
                yield shown, frame

        if overlay is None:
            for _ in written():
                pass
            return

        def drawn() -> Iterator[tuple[float, np.ndarray]]:
            skipped = overlay.finished
            for position, (shown, frame) in enumerate(written()):
                if position >= skipped and shown.photo is not None:
                    with clock.measure("draw"):
                        picture = overlay.draw(shown.photo, frame)
                    yield shown.time_s, picture

        for time_s, picture in in_thread(drawn()):
            with clock.measure("encode"):
                overlay.add(time_s, picture)

    def _recover(self, drawn_from: int | None) -> Iterator[tuple[SourceFrame, VideoFrame]]:
        """Found people of each frame; pixels come with those that are computed or drawn."""
        tracking = self.rule.tracking
        if self.detect is None:  # boxes of two tracks may look at one person
            tracking = replace(tracking, twin_oks=_FOLLOWED_OKS)
        tracker = Tracker(tracking)
        fitter = None if self.fit is None else TrackFitter(self.fit)
        journal = self.results.journal
        stored = self._stored()
        first = stored if drawn_from is None else min(stored, drawn_from)
        focal_px: float | None = None
        located = in_thread(self._located(first, stored))
        for group in self._groups(located):
            for shown, people in self._found_in(group, tracker, focal_px):
                if people is None:
                    frame = journal.read(shown.index)
                    tracker.update([p.person for p in frame.people], frame.time_s)
                    if fitter is not None:
                        fitter.remember(frame)
                else:
                    sure = [person for person in people if person.score >= LOW_SCORE]
                    known = iter(tracker.update(sure, shown.time_s))
                    numbers = [next(known) if p.score >= LOW_SCORE else None for p in people]
                    frame = self._frame(shown, people, numbers)
                    if fitter is not None:
                        with self.report.clock.measure("fit"):
                            frame = fitter.fit_frame(frame)
                    with self.report.clock.measure("write"):
                        journal.write(frame)
                    self.report.computed += 1
                if frame.people and focal_px is None:
                    focal_px = frame.people[0].person.camera.focal_px
                self.report.frames += 1
                yield shown, frame

    def _found_in(
        self,
        group: Sequence[tuple[SourceFrame, Boxes]],
        tracker: Tracker,
        focal_px: float | None,
    ) -> Iterator[tuple[SourceFrame, list[Person] | None]]:
        """People of the frames of a group; None for a frame of the journal, which comes alone."""
        shown, boxes = group[0]
        if boxes is _STORED:
            yield shown, None
            return
        photos = [
            _with_focal(shown.photo, focal_px) for shown, _ in group if shown.photo is not None
        ]
        wanted = [
            self._followed(tracker, shown) if self.detect is None else found
            for shown, found in group
        ]
        with self.report.clock.measure("network"):
            answers = self.find(photos, wanted)
        for (shown, _), people in zip(group, answers, strict=True):
            yield shown, people

    def _followed(self, tracker: Tracker, shown: SourceFrame) -> Boxes:
        """Where the tracks say that people are, else where to begin."""
        if shown.photo is None:
            return None
        expected = tracker.expected_boxes(shown.time_s)
        if any(box.side is None for box in expected):  # hands beside bodies are found by them
            expected = [box for box in expected if box.side is None]
        inside = [box for box in expected if _share_inside(box, shown.photo.size) > _LEAST_INSIDE]
        return tuple(inside) or self.start

    def _frame(
        self, shown: SourceFrame, people: Sequence[Person], numbers: Sequence[int | None]
    ) -> VideoFrame:
        tracked = [
            TrackedPerson(number, replace(person, explanation=None))
            for person, number in zip(people, numbers, strict=True)
            if number is not None
        ]
        owners = {
            number: owner
            for person, number in zip(people, numbers, strict=True)
            if number is not None
            and person.owner is not None
            and (owner := numbers[person.owner]) is not None
        }
        size = self.source.image_size
        return VideoFrame(shown.index, shown.time_s, size, with_owners(tracked, owners))

    def _groups(
        self, located: Iterator[tuple[SourceFrame, Boxes]]
    ) -> Iterator[list[tuple[SourceFrame, Boxes]]]:
        """Frames that go through the network together; the first one of all alone.

        It says what camera the others have.
        """
        size = self.rule.batch_frames if self.detect is not None else 1
        group: list[tuple[SourceFrame, Boxes]] = []
        for shown, boxes in located:
            group.append((shown, boxes))
            position = shown.index // self.rule.every
            if boxes is _STORED or position == 0 or (position + 1) % size == 0:
                yield group
                group = []
        if group:
            yield group

    def _located(self, first: int, stored: int) -> Iterator[tuple[SourceFrame, Boxes]]:
        """Decoded frames with the boxes of the detector."""
        for shown in in_thread(self._decoded(first)):
            boxes: Boxes = None
            if shown.index < stored:
                boxes = _STORED
            elif self.detect is not None and shown.photo is not None:
                with self.report.clock.measure("detect"):
                    boxes = self.detect(shown.index, shown.photo)
            yield shown, boxes

    def _decoded(self, first: int) -> Iterator[SourceFrame]:
        frames = self.report.clock.timed("decode", self.source.frames(self.rule.every, first))
        try:
            yield from itertools.islice(frames, self.rule.max_frames)
        except DamagedVideoError as error:
            self.report.damage = str(error)

    def _stored(self) -> int:
        """Number of the first frame that is to be found; those before it are in the journal.

        Frames that went through the network together are found together again, since the last
        digits of a network's answer depend on the size of its batch.
        """
        positions = itertools.count()
        missing = next(p for p in positions if not self.results.journal.has(p * self.rule.every))
        if self.detect is not None:
            missing -= missing % self.rule.batch_frames
        return missing * self.rule.every

    def _first_drawn(self) -> int | None:
        """Number of the first frame that is still to be drawn, None if none is."""
        overlay = self.results.overlay
        return None if overlay is None else overlay.finished * self.rule.every

    def _total(self) -> int | None:
        count = self.source.frame_count
        total = None if count is None else -(-count // self.rule.every)
        limits = [number for number in (total, self.rule.max_frames) if number is not None]
        return min(limits, default=None)

    def _rate(self, times_s: Sequence[float]) -> float:
        """Frames a second that were looked at."""
        if self.source.frame_rate is not None:
            return self.source.frame_rate / self.rule.every
        steps = np.diff(times_s)
        step = float(np.median(steps)) if len(steps) else 0.0
        return 1 / step if step > 0 else _GUESSED_RATE


def one_by_one(find: Callable[[LoadedImage, Boxes], list[Person]]) -> Find:
    """A finder of people in one photo as one for several."""

    def find_all(photos: Sequence[LoadedImage], boxes: Sequence[Boxes]) -> list[list[Person]]:
        return [find(photo, wanted) for photo, wanted in zip(photos, boxes, strict=True)]

    return find_all


def _with_focal(photo: LoadedImage, focal_px: float | None) -> LoadedImage:
    """A frame seen by the camera of the first one: a lens is not guessed anew for every frame."""
    return photo if focal_px is None else replace(photo, focal_px=focal_px)


def _share_inside(box: Box, size: tuple[int, int]) -> float:
    image = whole_image(size)
    width = min(box.x + box.width, image.width) - max(box.x, 0.0)
    height = min(box.y + box.height, image.height) - max(box.y, 0.0)
    return max(width, 0.0) * max(height, 0.0) / (box.width * box.height)
