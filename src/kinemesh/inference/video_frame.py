"""What a video gives: for each frame the people in it, each with the number of a track."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from kinemesh.inference.person import Person


@dataclass(frozen=True, eq=False)
class TrackedPerson:
    """Somebody in a frame who is known from other frames.

    Attributes:
        track: Number of the track, from 1; the same person has the same number in all frames.
        person: Who was found, in the camera frame of this frame.
        seen: False where nobody was found in this frame, and the person was filled in between
            frames before and after it.
    """

    track: int
    person: Person
    seen: bool = True


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """The people of one frame.

    Attributes:
        index: Number of the frame in its source, from 0; where frames are left out on purpose
            (every second one, say) the numbers have gaps.
        time_s: Seconds since the first frame of the source.
        image_size: Width and height in pixels.
        people: Those in the frame.
    """

    index: int
    time_s: float
    image_size: tuple[int, int]
    people: tuple[TrackedPerson, ...]

    def of_track(self, track: int) -> TrackedPerson | None:
        """The person with this track number, None if they are not in the frame."""
        return next((found for found in self.people if found.track == track), None)

    def owners(self) -> dict[int, int]:
        """Track of the person that a hand belongs to, by the track of the hand."""
        return {
            found.track: self.people[found.person.owner].track
            for found in self.people
            if found.person.owner is not None
        }


def with_owners(
    people: Sequence[TrackedPerson], owners: Mapping[int, int]
) -> tuple[TrackedPerson, ...]:
    """Bodies, then hands, whose ``owner`` is the position of their person here.

    Args:
        people: Of one frame, in any order.
        owners: Track of the person by the track of the hand; hands of nobody here have none.
    """
    ordered = sorted(people, key=lambda found: found.person.side is not None)
    places = {found.track: place for place, found in enumerate(ordered)}
    return tuple(
        replace(found, person=replace(found.person, owner=places.get(owners.get(found.track, -1))))
        for found in ordered
    )
