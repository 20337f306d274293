"""From what was found in each frame to smooth motion: constant sizes, gaps filled, filters.

`refine_offline` sees a whole video, a block at a time, so that its memory does not grow with the
length; `OnlineRefiner` sees the frames as they come.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from kinemesh.inference.attached_hands import attach_hands
from kinemesh.inference.gaps import fill_gaps, runs_without_long_gaps
from kinemesh.inference.motion_state import (
    Array,
    TrackSize,
    body_size,
    person_of,
    stack_states,
    state_of,
)
from kinemesh.inference.smoothing import OfflineSmoothing, OnlineSmoothing
from kinemesh.inference.tracking import TrackingRule
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame, with_owners

T = TypeVar("T")
BLOCK = 64
LONGEST_GAP_S = 0.5
LEAST_FRAMES = 3
"""Tracks found in fewer frames are left out, where they could be found in as many."""
_REMEMBERED = 1001  # sizes from which a track's median is taken


@dataclass
class TrackSizes:
    """The size of everybody, from all frames; a person does not grow from frame to frame."""

    _sizes: dict[int, list[float]] = field(default_factory=dict)
    _shapes: dict[int, list[Array]] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)
    _first_s: float = 0.0
    _last_s: float = 0.0
    frames: int = 0

    def add(self, frame: VideoFrame) -> None:
        """Take a frame in."""
        if not self.frames:
            self._first_s = frame.time_s
        self._last_s = frame.time_s
        self.frames += 1
        for found in frame.people:
            sizes = self._sizes.setdefault(found.track, [])
            count = self._counts.get(found.track, 0)
            _remember(sizes, body_size(found.person), count)
            if found.person.parameters is not None:
                shapes = self._shapes.setdefault(found.track, [])
                _remember(shapes, found.person.parameters.shape.astype(np.float64), count)
            self._counts[found.track] = count + 1

    def of_track(self, track: int) -> TrackSize:
        """Medians of what is known of a track."""
        sizes, shapes = self._sizes.get(track), self._shapes.get(track)
        return TrackSize(
            (float(np.median(sizes)) or None) if sizes else None,
            np.median(shapes, axis=0) if shapes else None,
        )

    def lasting(self, lost_s: float = TrackingRule.lost_s) -> dict[int, TrackSize]:
        """Sizes of the tracks that are found in enough frames.

        Args:
            lost_s: Seconds after which somebody is forgotten; where frames are further apart,
                everybody is somebody new in each of them.
        """
        least = min(LEAST_FRAMES, self.frames)
        if self.frames > 1 and self._last_s > self._first_s:
            step_s = (self._last_s - self._first_s) / (self.frames - 1)
            least = min(least, 1 + int(lost_s / step_s))
        return {t: self.of_track(t) for t, count in self._counts.items() if count >= least}


def _remember(values: list[T], value: T, count: int) -> None:
    if len(values) < _REMEMBERED:
        values.append(value)
    else:  # an even spread over a long track, without remembering all of it
        values[(count * 383) % _REMEMBERED] = value


def refine_offline(
    read: Callable[[int], VideoFrame],
    count: int,
    frame_rate: float,
    sizes: Mapping[int, TrackSize],
    smoothing: OfflineSmoothing,
    block: int = BLOCK,
) -> Iterator[VideoFrame]:
    """Frames with gaps filled, one size for each track, and smooth motion.

    Args:
        read: Gives the frame at a position.
        count: Number of frames.
        frame_rate: Frames a second that were looked at.
        sizes: The tracks that are kept and their sizes, from `TrackSizes.lasting`.
        smoothing: The filter.
        block: How many frames are made at a time; the result does not depend on it.
    """
    longest = round(LONGEST_GAP_S * frame_rate)
    reach = smoothing.reach(frame_rate) + longest
    known: dict[int, VideoFrame] = {}
    for start in range(0, count, block):
        stop = min(start + block, count)
        wanted = range(max(0, start - reach), min(count, stop + reach))
        known = {p: known[p] if p in known else read(p) for p in wanted}
        people: dict[int, list[TrackedPerson]] = {p: [] for p in range(start, stop)}
        owners: dict[int, dict[int, int]] = {p: {} for p in range(start, stop)}
        for track in sorted(sizes):
            positions = [p for p in wanted if known[p].of_track(track)]
            for run in runs_without_long_gaps(positions, longest):
                if run[0] < stop and run[-1] >= start:
                    made = _refine_run(known, track, run, sizes[track], frame_rate, smoothing)
                    for position, found, owner in made:
                        if position in people:
                            people[position].append(found)
                        if position in owners and owner is not None:
                            owners[position][track] = owner
        for position, found_here in people.items():
            frame = known[position]
            complete = attach_hands(with_owners(found_here, owners[position]))
            yield VideoFrame(frame.index, frame.time_s, frame.image_size, complete)


def _refine_run(
    frames: Mapping[int, VideoFrame],
    track: int,
    run: Sequence[int],
    size: TrackSize,
    frame_rate: float,
    smoothing: OfflineSmoothing,
) -> Iterator[tuple[int, TrackedPerson, int | None]]:
    """Positions, who is there, and for a hand the track of its person."""
    seen = {p: found.person for p in run if (found := frames[p].of_track(track))}
    every = range(run[0], run[-1] + 1)
    state = stack_states([state_of(person, size) for person in seen.values()])
    times = np.array([frames[p].time_s for p in run])
    if len(every) > len(run):
        state = fill_gaps(state, times, np.array([frames[p].time_s for p in every]))
    state = smoothing.smooth(state, frame_rate)
    last = run[0]
    for row, position in enumerate(every):
        last = position if position in seen else last
        person = person_of(state.at(row), seen[last], size.size_m)
        owner = frames[last].owners().get(track)
        yield position, TrackedPerson(track, person, position in seen), owner


@dataclass
class OnlineRefiner:
    """Smooths frames as they come; gaps stay, since nobody knows how they end.

    Args:
        strength: Of the One-Euro filters, 0 for none to 1.
    """

    strength: float = 0.5
    sizes: TrackSizes = field(default_factory=TrackSizes)
    _filters: dict[int, tuple[OnlineSmoothing, float]] = field(default_factory=dict)

    def refine(self, frame: VideoFrame) -> VideoFrame:
        """The next frame, smoothed by those before it."""
        self.sizes.add(frame)
        people = tuple(self._refine(found, frame.time_s) for found in frame.people)
        self._filters = {
            track: entry
            for track, entry in self._filters.items()
            if frame.time_s - entry[1] <= LONGEST_GAP_S
        }
        return VideoFrame(frame.index, frame.time_s, frame.image_size, attach_hands(people))

    def _refine(self, found: TrackedPerson, time_s: float) -> TrackedPerson:
        smooth, before = self._filters.get(found.track, (None, time_s))
        smooth = smooth or OnlineSmoothing(self.strength)
        size = self.sizes.of_track(found.track)
        state = smooth(state_of(found.person, size), time_s - before)
        person = person_of(state, found.person, size.size_m)
        self._filters[found.track] = (smooth, time_s)
        return TrackedPerson(found.track, person, found.seen)
