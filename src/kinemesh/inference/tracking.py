"""Who is who from frame to frame: a Kalman filter for each box, matched by the Hungarian method.

A track is a box that moves evenly: x and y of its middle, its width and its height, each with a
speed (Kalman 1960; the same state as in SORT, Bewley et al. 2016, with the logarithm of the sides
in place of area and aspect). People found in a frame are matched with the tracks by the assignment
of least cost (Kuhn 1955), the cost being one minus a mean of

* the overlap of the found box with the box that the track expects, and
* the likeness of the found joints and the last joints of the track, moved along with its box,
  as the mean over the joints of exp(-d^2 / 2 s^2), the form of COCO's OKS.

Lost tracks, whose place is known less and less, take part: somebody who stands where another was
hidden must not inherit the other's number. A found person that no track takes begins one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from kinemesh.inference.boxes import Box, Side
from kinemesh.inference.duplicates import joint_similarity
from kinemesh.inference.person import Person
from kinemesh.inference.placement import NEAR_M

Array = NDArray[np.float64]
_NEVER = 1e6


@dataclass(frozen=True)
class TrackingRule:
    """Numbers that say when a found person is a known one.

    Attributes:
        lost_s: Seconds after which somebody who is not found again is forgotten.
        most_cost: Highest cost of a match, in 0..1.
        joint_spread: s of the likeness of joints, over the size of the box.
        joint_share: Weight of the joints in the cost; that of the box is the rest.
        least_score: Nobody with a lower score begins a track.
        twin_likeness: Of two people of a frame whose joints are more alike than this, one is taken
            for the other found twice, and dropped.
        twin_oks: The same for the similarity of `kinemesh.inference.duplicates`, which takes
            people for one earlier; None for no such limit. It is for frames whose boxes come from
            the tracks: where people cross, two boxes look at the one in front, and the track of
            the hidden one has to wait where its own motion leads.
    """

    lost_s: float = 2.0
    most_cost: float = 0.7
    joint_spread: float = 0.15
    joint_share: float = 0.7
    least_score: float = 0.05
    twin_likeness: float = 0.85
    twin_oks: float | None = None


@dataclass
class BoxFilter:
    """Kalman filter of one box: middle x, middle y, log width, log height, and their speeds.

    The four run apart from one another. Sigmas of the middle are shares of the box's size
    (geometric mean of width and height), those of the sides are relative by nature.

    Attributes:
        mean: (4, 2) value and its change a second.
        covariance: (4, 2, 2).
    """

    mean: Array
    covariance: Array

    MEASURED = 0.05
    """Sigma of a measured box."""
    SPEED = 1.5
    """Sigma of the speed of somebody who was not known before, sizes a second."""
    ACCELERATION = 3.0
    """Sigma of the white noise of the acceleration, sizes a second squared, for a second of it."""
    SLOW_SIDES = 0.3
    """How much slower sides change than places do."""

    @classmethod
    def of(cls, box: Box) -> "BoxFilter":
        """Begin with a box that stands still."""
        mean = np.stack([_measure(box), np.zeros(4)], axis=1)
        scale = _scales(mean)
        covariance = np.zeros((4, 2, 2))
        covariance[:, 0, 0] = (cls.MEASURED * scale) ** 2
        covariance[:, 1, 1] = (cls.SPEED * scale * _slowness()) ** 2
        return cls(mean, covariance)

    def predict(self, seconds: float) -> "BoxFilter":
        """Where the box will be, with a sigma that grows."""
        step = np.array([[1.0, seconds], [0.0, 1.0]])
        noise = np.array(
            [[seconds**3 / 3, seconds**2 / 2], [seconds**2 / 2, seconds]]
        )  # white acceleration, integrated
        strength = (self.ACCELERATION * _scales(self.mean) * _slowness()) ** 2
        covariance = step @ self.covariance @ step.T + strength[:, None, None] * noise
        return BoxFilter(self.mean @ step.T, covariance)

    def update(self, box: Box) -> "BoxFilter":
        """Take a measured box in."""
        noise = (self.MEASURED * _scales(self.mean)) ** 2
        gain = self.covariance[:, :, 0] / (self.covariance[:, 0, 0] + noise)[:, None]
        surprise = _measure(box) - self.mean[:, 0]
        mean = self.mean + gain * surprise[:, None]
        covariance = self.covariance - gain[:, :, None] * self.covariance[:, None, 0, :]
        return BoxFilter(mean, covariance)

    @property
    def box(self) -> Box:
        """The box in pixels."""
        x, y, width, height = (*self.mean[:2, 0], *np.exp(self.mean[2:, 0]))
        return Box(float(x - width / 2), float(y - height / 2), float(width), float(height))

    @property
    def sigma(self) -> float:
        """How uncertain its place is, over its size."""
        return float(np.sqrt(self.covariance[:2, 0, 0].mean()) / _scales(self.mean)[0])


@dataclass
class Track:
    """Somebody who is known.

    Attributes:
        number: From 1.
        filter: Its box, as of ``time_s``.
        time_s: When it was last found.
        person: As they were last found.
        side: Which hand, None for a body; never matched with another.
    """

    number: int
    filter: BoxFilter
    time_s: float
    person: Person
    side: Side | None


@dataclass
class Tracker:
    """Gives the people of one frame after the other the numbers of their tracks.

    Args:
        rule: When a found person is a known one.
    """

    rule: TrackingRule = field(default_factory=TrackingRule)
    tracks: list[Track] = field(default_factory=list)
    _numbers: int = 0

    def update(self, people: Sequence[Person], time_s: float) -> list[int | None]:
        """Match the people of the next frame.

        Args:
            people: Whom the network found.
            time_s: Time of the frame, later than that of the one before.

        Returns:
            For each person the number of the track; None for somebody who was found twice or is too
            doubtful to begin a track.
        """
        self.tracks = [t for t in self.tracks if time_s - t.time_s <= self.rule.lost_s]
        numbers: list[int | None] = [None] * len(people)
        boxes = [seen_box(person) for person in people]
        free = self._without_twins(people, boxes, time_s)
        for track, index in self._match(free, people, boxes, time_s):
            self._found(track, people[index], boxes[index], time_s)
            numbers[index] = track.number
        for index in free:
            if numbers[index] is None and people[index].score >= self.rule.least_score:
                numbers[index] = self._begin(people[index], boxes[index], time_s)
        return numbers

    def expected_boxes(self, time_s: float) -> list[Box]:
        """Where the tracks should be found at a time, for frames that no detector looks at."""
        return [
            Box(*track.filter.predict(time_s - track.time_s).box.xywh, side=track.side)
            for track in self.tracks
        ]

    def _match(
        self,
        free: Sequence[int],
        people: Sequence[Person],
        boxes: Sequence[Box],
        time_s: float,
    ) -> list[tuple[Track, int]]:
        if not self.tracks or not free:
            return []
        costs = np.array(
            [[self._cost(t, people[i], boxes[i], time_s) for i in free] for t in self.tracks]
        )
        allowed = np.where(costs <= self.rule.most_cost, costs, _NEVER)
        rows, columns = linear_sum_assignment(allowed)
        return [
            (self.tracks[row], free[column])
            for row, column in zip(rows, columns, strict=True)
            if allowed[row, column] < _NEVER
        ]

    def _cost(self, track: Track, person: Person, box: Box, time_s: float) -> float:
        if track.side != person.side or track.person.skeleton != person.skeleton:
            return _NEVER
        expected = track.filter.predict(time_s - track.time_s)
        # where a track's place is uncertain, a box beside the expected one is no surprise
        overlap = box_overlap(_grown(expected.box, expected.sigma), _grown(box, expected.sigma))
        moved = _moved(track.person.joints_px, track.filter.box, expected.box)
        spread = self.rule.joint_spread + expected.sigma
        alike = likeness(moved, person.joints_px, _size(box) * spread, person.joint_confidence)
        share = self.rule.joint_share
        return 1 - (1 - share) * overlap - share * alike

    def _without_twins(
        self, people: Sequence[Person], boxes: Sequence[Box], time_s: float
    ) -> list[int]:
        """Indices of the people without those found twice; the one nearer to a track stays."""
        nearest = [
            min((self._cost(t, p, b, time_s) for t in self.tracks), default=_NEVER)
            for p, b in zip(people, boxes, strict=True)
        ]
        order = sorted(range(len(people)), key=lambda i: (nearest[i], -people[i].score, i))
        kept: list[int] = []
        for index in order:
            if not any(self._are_twins(people[index], people[k], boxes[k]) for k in kept):
                kept.append(index)
        return sorted(kept)

    def _are_twins(self, person: Person, other: Person, box: Box) -> bool:
        if person.skeleton != other.skeleton or person.side != other.side:
            return False
        limit = self.rule.twin_oks
        if limit is not None and float(joint_similarity([other, person])[0, 1]) > limit:
            return True
        spread = _size(box) * self.rule.joint_spread / 2
        alike = likeness(person.joints_px, other.joints_px, spread, other.joint_confidence)
        return alike > self.rule.twin_likeness

    def _found(self, track: Track, person: Person, box: Box, time_s: float) -> None:
        track.filter = track.filter.predict(time_s - track.time_s).update(box)
        track.time_s, track.person = time_s, person

    def _begin(self, person: Person, box: Box, time_s: float) -> int:
        self._numbers += 1
        track = Track(self._numbers, BoxFilter.of(box), time_s, person, person.side)
        self.tracks.append(track)
        return track.number


def seen_box(person: Person) -> Box:
    """The box around somebody as they were found, tighter than the one that was asked for.

    It holds the mesh as it stands in the picture, or the joints with a margin of a tenth on each
    side where there is no mesh.
    """
    if person.has_mesh:
        vertices = person.vertices.astype(np.float64)
        vertices[:, 2] = np.maximum(vertices[:, 2], NEAR_M)  # a limb may reach past the camera
        points, margin = person.camera.project(vertices), 0.0
    else:
        points, margin = person.joints_px.astype(np.float64), 0.1
    low, high = points.min(axis=0), points.max(axis=0)
    extent = np.maximum(high - low, 1.0)
    x, y = low - margin * extent
    width, height = extent * (1 + 2 * margin)
    return Box(float(x), float(y), float(width), float(height), person.score, person.side)


def box_overlap(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(first.x + first.width, second.x + second.width) - max(first.x, second.x)
    height = min(first.y + first.height, second.y + second.height) - max(first.y, second.y)
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (first.width * first.height + second.width * second.height - shared)


def likeness(
    first_px: np.ndarray, second_px: np.ndarray, spread_px: float, weights: np.ndarray
) -> float:
    """How alike two poses (J, 2) in pixels are, in 0..1; joints count by ``weights`` (J,)."""
    squared = ((first_px.astype(np.float64) - second_px) ** 2).sum(axis=1)
    alike = np.exp(-squared / (2 * max(spread_px, 1e-6) ** 2))
    total = float(weights.sum())
    return float((alike * weights).sum() / total) if total > 0 else float(alike.mean())


def _measure(box: Box) -> Array:
    sides = np.log(np.maximum([box.width, box.height], 1.0))
    return np.array([box.x + box.width / 2, box.y + box.height / 2, *sides])


def _scales(mean: Array) -> Array:
    """(4,) what a sigma is multiplied with: the size for the middle, one for the log sides."""
    size = float(np.exp(mean[2:, 0].mean()))
    return np.array([size, size, 1.0, 1.0])


def _slowness() -> Array:
    return np.array([1.0, 1.0, BoxFilter.SLOW_SIDES, BoxFilter.SLOW_SIDES])


def _size(box: Box) -> float:
    return float(np.sqrt(box.width * box.height))


def _grown(box: Box, share: float) -> Box:
    extra = share * _size(box)
    return Box(box.x - extra / 2, box.y - extra / 2, box.width + extra, box.height + extra)


def _moved(points_px: np.ndarray, before: Box, after: Box) -> Array:
    """Points that follow a box."""
    old = np.array([before.x, before.y]), np.array([before.width, before.height])
    new = np.array([after.x, after.y]), np.array([after.width, after.height])
    return np.asarray((points_px - old[0]) / old[1] * new[1] + new[0], dtype=np.float64)
