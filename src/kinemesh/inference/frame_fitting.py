"""Body models along the tracks of a video, for `kinemesh.inference.video_run`.

What is found in a frame is fitted from the parameters of the frame before, and gives each track its
shape. Filters then move meshes and parameters apart, so that what is written is fitted again, to
the smooth mesh, with the shape of the track, from the smooth parameters. Neither fit needs more
than is kept of a run that was broken off.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from kinemesh.bodies.parameters import BodyParameters
from kinemesh.inference.person import Person
from kinemesh.inference.video_frame import TrackedPerson, VideoFrame

Previous = Sequence[BodyParameters | None]
Shapes = Sequence[np.ndarray | None]
Fit = Callable[[Sequence[Person], Previous | None, Shapes | None], list[Person]]
"""`kinemesh.inference.fitting.PeopleFitter.fit`."""


@dataclass
class TrackFitter:
    """Fits the people of one frame after the other, each from the last parameters of the track.

    Args:
        fit: Fits people of one frame.
    """

    fit: Fit
    _before: dict[int, BodyParameters] = field(default_factory=dict)

    def fit_frame(self, frame: VideoFrame) -> VideoFrame:
        """The next frame with parameters."""
        people = [found.person for found in frame.people]
        before = [self._before.get(found.track) for found in frame.people]
        fitted = _with_people(frame, self.fit(people, before, None))
        self.remember(fitted)
        return fitted

    def remember(self, frame: VideoFrame) -> None:
        """Begin with the parameters of a frame that was fitted in an earlier run."""
        for found in frame.people:
            if found.person.parameters is not None:
                self._before[found.track] = found.person.parameters


def fit_again(frame: VideoFrame, fit: Fit) -> VideoFrame:
    """A smooth frame with parameters that fit its meshes, of the shapes that it has."""
    people = [found.person for found in frame.people]
    near = [person.parameters for person in people]
    shapes = [None if parameters is None else parameters.shape for parameters in near]
    return _with_people(frame, fit(people, near, shapes))


def _with_people(frame: VideoFrame, people: Sequence[Person]) -> VideoFrame:
    tracked = tuple(
        TrackedPerson(found.track, person, found.seen)
        for found, person in zip(frame.people, people, strict=True)
    )
    return replace(frame, people=tracked)
